"""Texts a second by the exported forms of a model, beside torch here and in sentence-transformers, and what each keeps.

Every form embeds the same real texts, the forms in turns; counted is the processor's time, which others on the machine
disturb less than the clock. All sort by length. Ours pad within groups of near-equal length alone,
sentence-transformers each of its batches of 32. Its ONNX backend is left out: it wants older versions of the libraries
than the trainer. Writes bench/results/serving.json.

    OMP_NUM_THREADS=1 python -m bench.speed.serving --model models/minilm --pairs pairs_dev.json --dims 384 128 64
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from bench.records import finish, make_parser, settings_of
from trainer.data.pairs import PairTable, read_pairs
from trainer.data.split import sample_pairs
from trainer.model.encoder import Encoder
from trainer.model.loading import load_encoder
from trainer.serving.export import ExportRequest, export
from trainer.serving.judging import PairsToJudge, judge_export

FORMS = {"ONNX": ("onnx", False), "ONNX, int8": ("onnx", True), "OpenVINO": ("openvino", False)}
TORCH, PEER = "torch", "torch, sentence-transformers"


def export_forms(model: str, folder: Path) -> dict[str, Path]:
    """The folder of every form that can be made here."""
    made = {}
    for form, (runtime, int8) in FORMS.items():
        if find_spec({"onnx": "onnxruntime"}.get(runtime, runtime)):
            made[form] = export(ExportRequest(model, runtime, int8, output=folder / form))
    return made


def embedders(model: str, encoder: Encoder, folders: dict[str, Path]) -> dict[str, Callable[[list[str]], Any]]:
    """What embeds texts, by form."""
    peer = SentenceTransformer(model, device="cpu", local_files_only=True)
    served = {form: load_encoder(str(folder)).encode for form, folder in folders.items()}
    return {TORCH: encoder.encode, PEER: lambda texts: peer.encode(texts, show_progress_bar=False)} | served


def measure(embed: dict[str, Callable[[list[str]], Any]], texts: list[str], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each round by form."""
    seconds: dict[str, list[float]] = {form: [] for form in embed}
    for each in embed.values():
        each(texts[:4])  # what runs for the first time
    for _ in range(rounds):
        for form, each in embed.items():
            start = time.process_time()
            each(texts)
            seconds[form].append(time.process_time() - start)
    return seconds


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
    options = parser.parse_args()
    encoder, table = load_encoder(options.model), sample_pairs(read_pairs(options.pairs), options.rows, seed=0)
    texts = [table.texts[row] for row in np.random.default_rng(0).permutation(len(table.texts))[: options.texts]]
    with tempfile.TemporaryDirectory() as place:
        folders = export_forms(options.model, Path(place))
        forms = figures(encoder, folders, table, options.dims)
        seconds = measure(embedders(options.model, encoder, folders), texts, options.rounds)
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
