"""Texts a second by the exported forms of a model, beside torch here and in sentence-transformers, and what each keeps.

Every form embeds the same real texts, the forms in turns; counted is the processor's time, which others on the machine
disturb less than the clock. All sort by length. Ours pad within groups of near-equal length alone,
sentence-transformers each of its batches of 32. Its other backends want older versions of the libraries than the
trainer: `--backends onnx openvino` makes an environment for each in a temporary folder, by pip. Writes
bench/results/serving.json.

    OMP_NUM_THREADS=1 python -m bench.speed.serving --model models/minilm --pairs pairs_dev.json --dims 384 128 64
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from bench.records import finish, make_parser, settings_of
from trainer.data.pairs import PairTable, read_pairs
from trainer.data.split import sample_pairs
from trainer.model.encoder import Encoder
from trainer.model.loading import load_encoder
from trainer.serving.export import ExportRequest, export
from trainer.serving.judging import PairsToJudge, judge_export

FORMS = {
    "ONNX": ("onnx", False),
    "ONNX, int8": ("onnx", True),
    "OpenVINO": ("openvino", False),
    "OpenVINO, int8": ("openvino", True),
}
TORCH, PEER = "torch", "torch, sentence-transformers"
BACKENDS = {"onnx": "ONNX, sentence-transformers", "openvino": "OpenVINO, sentence-transformers"}
PEERS = {"onnx": "sentence-transformers[onnx]<6", "openvino": "sentence-transformers[openvino]"}
"""What pip comes to for each; by itself it takes many minutes to find the first."""
Timer = Callable[[list[str]], float]


def export_forms(model: str, forms: list[str], folder: Path) -> dict[str, Path]:
    """The folders of those forms that can be made here."""
    requests = {form: ExportRequest(model, *FORMS[form], output=folder / form) for form in forms}
    return {form: export(request) for form, request in requests.items() if all(map(find_spec, request.packages))}


def timed(embed: Callable[[list[str]], Any]) -> Timer:
    """The processor seconds that embedding takes in this process."""

    def measure(texts: list[str]) -> float:
        start = time.process_time()
        embed(texts)
        return time.process_time() - start

    return measure


@contextmanager
def peer_elsewhere(model: str, backend: str, folder: Path) -> Iterator[Timer]:
    """Sentence-transformers by another backend, in a new environment and a process that is there for all rounds."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    same_torch = f"torch=={torch.__version__.partition('+')[0]}"
    subprocess.run([python, "-m", "pip", "install", "-q", PEERS[backend], same_torch], check=True)
    command = [python, str(Path(__file__).with_name("serving_peer.py")), model, backend, str(torch.get_num_threads())]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        questions, answers = process.stdin, process.stdout
        assert questions and answers

        def measure(texts: list[str]) -> float:
            print(json.dumps(texts), file=questions, flush=True)
            return float(answers.readline() or sys.exit(f"{backend}: sentence-transformers ended; it said why above"))

        yield measure
        questions.close()


def timers(model: str, encoder: Encoder, folders: dict[str, Path]) -> dict[str, Timer]:
    """What embeds texts in this process, by form."""
    peer = SentenceTransformer(model, device="cpu", local_files_only=True)
    served = {form: timed(load_encoder(str(folder)).encode) for form, folder in folders.items()}
    return {
        TORCH: timed(encoder.encode),
        PEER: timed(lambda texts: peer.encode(texts, show_progress_bar=False)),
    } | served


def measure(forms: dict[str, Timer], texts: list[str], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each round by form."""
    for each in forms.values():
        each(texts[:4])  # what runs for the first time
    by_round = [{form: each(texts) for form, each in forms.items()} for _ in range(rounds)]
    return {form: [seconds[form] for seconds in by_round] for form in forms}


def figures(encoder: Encoder, folders: dict[str, Path], table: PairTable, dims: list[int]) -> dict[str, Any]:
    """Spearman by form and dim, with the interval of the difference from torch; size in bytes."""
    pairs = PairsToJudge(table, "spearman", tuple(dims))
    found: dict[str, Any] = {}
    for form, folder in folders.items():
        judged = judge_export(encoder, folder, pairs, allowed=2.0)["dims"]  # Spearman's whole range: nothing is refused
        found[TORCH] = {"dims": {dim: {"spearman": each["model"]} for dim, each in judged.items()}}
        by_dim = {dim: {"spearman": each["exported"], "interval": each["interval"]} for dim, each in judged.items()}
        found[form] = {"bytes": sum(file.stat().st_size for file in folder.iterdir()), "dims": by_dim}
    return found


def main() -> None:
    parser = make_parser(__doc__, "serving")
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--pairs", required=True, help="labelled pairs: their texts are embedded, and judged by")
    parser.add_argument("--rows", type=int, default=1000, help="pairs to take, at most (default 1000)")
    parser.add_argument("--texts", type=int, default=1000, help="texts of them to time, at most (default 1000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dims", type=int, nargs="+", required=True)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="to export (default: all)")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=[], help="of sentence-transformers, too")
    options = parser.parse_args()
    encoder, table = load_encoder(options.model), sample_pairs(read_pairs(options.pairs), options.rows, seed=0)
    texts = [table.texts[row] for row in np.random.default_rng(0).permutation(len(table.texts))[: options.texts]]
    with tempfile.TemporaryDirectory() as place, ExitStack() as peers:
        folders = export_forms(options.model, options.forms, Path(place))
        forms = figures(encoder, folders, table, options.dims)
        by_form = timers(options.model, encoder, folders)
        for backend in options.backends:
            peer = peer_elsewhere(options.model, backend, Path(place) / backend)
            by_form[BACKENDS[backend]] = peers.enter_context(peer)
        seconds = measure(by_form, texts, options.rounds)
    for form, took in seconds.items():
        forms.setdefault(form, {})["texts_per_second"] = [len(texts) / each for each in took]
    settings = settings_of(options) | {"model": Path(options.model).name, "pairs": Path(options.pairs).name}
    tokens = encoder.tokenize(texts, (encoder.spec.prompt,)).lengths
    counts = {
        "pairs": len(table),
        "texts": len(texts),
        "mean_tokens": float(tokens.mean()),
        "most_tokens": int(tokens.max()),
    }
    finish(options, {"settings": settings, "counts": counts, "forms": forms})


if __name__ == "__main__":
    main()
