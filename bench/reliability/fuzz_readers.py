"""Everything that reads a file, as functions of bytes with whole ones to begin with: what `fuzz.py` fuzzes.

Modules of the trainer are imported within the functions: `fuzz.py` instruments them as they are imported.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.records import ROOT

Reader = tuple[Callable[[bytes], object], list[bytes]]
"""A function of a file's bytes, and whole files."""
PAIRS: dict[str, list[Any]] = {
    "texts1": ["vpn is down", "mail bounces", "a,b"],
    "texts2": ["no vpn", "Grüße, 日本", 'c "d"'],
    "labels": [1, 0.5, True],
    "phase_indicators": [1, 2, 1],
}
TICKETS: dict[str, list[Any]] = {
    "number": ["INC1", "2"],
    "short_description": ["vpn is down", "mail"],
    "description": ["Hello,\nthe vpn is down again. From: a@b.de", ""],
    "assignment_group": ["network", ""],
}


def row_files(columns: dict[str, list[Any]], names: tuple[str, ...]) -> dict[str, bytes]:
    """The same rows in each format, by suffix; `names` are those of a column where there is a row a line."""
    rows = list(zip(*columns.values(), strict=True))

    def lines(cut: str) -> bytes:
        file = io.StringIO()
        csv.writer(file, delimiter=cut, lineterminator="\n").writerows([names, *rows])
        return file.getvalue().encode()

    records = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    whole = {".json": json.dumps(columns).encode(), ".jsonl": "\n".join(records).encode()}
    return whole | {".csv": lines(","), ".tsv": lines("\t")}


def file_readers(root: Path) -> dict[str, Reader]:
    """Readers of pairs, tickets and configs."""
    from trainer.config_file import load_config, resolve_config
    from trainer.data.pairs import read_pairs
    from trainer.data.ticket_table import Columns
    from trainer.data.tickets import Filter, load_tickets

    def from_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
        path = root / name

        def one(data: bytes) -> object:
            path.write_bytes(data)
            return read(path)

        return one

    pairs, tickets = row_files(PAIRS, ("text1", "text2", "label", "phase")), row_files(TICKETS, tuple(TICKETS))
    found: dict[str, Reader] = {}
    for suffix in pairs:
        found[f"pairs{suffix}"] = from_file(f"pairs{suffix}", read_pairs), [pairs[suffix]]
        read = from_file(f"tickets{suffix}", lambda path: load_tickets(path, Columns(), Filter(mask=True)))
        found[f"tickets{suffix}"] = read, [tickets[suffix]]
    squeezed = from_file("pairs.jsonl.gz", read_pairs)
    # Bytes as they are, or squeezed here: else no change would get past the checksum.
    found["pairs.jsonl.gz"] = (
        lambda data: squeezed(gzip.compress(data[1:], 1) if data[:1] == b"z" else data),
        [b"z" + pairs[".jsonl"], gzip.compress(pairs[".jsonl"])],
    )
    toml = (ROOT / "configs" / "quickstart.toml").read_bytes()
    found["config"] = (from_file("run.toml", load_config), [toml, b'[data]\ntrain = "x"\n[loss]\ndims = [8, 4]\n'])
    found["setting"] = (
        lambda data: resolve_config({"data": {"train": "x"}}, data.decode("utf-8", "replace").split("\x01")),
        [b"train.seed=1\x01loss.dims=[8, 4]", b"optim.lr=1e-3\x01model.name=a b"],
    )
    return found


def in_place(path: Path, read: Callable[[], object], settle: Callable[[], object] = lambda: None) -> Reader:
    """A reader of a file among whole ones, which is spoilt for each call; `settle` fits the others to it."""
    seed = path.read_bytes() if path.exists() else b"{}"

    def one(data: bytes) -> object:
        path.write_bytes(data)
        settle()
        try:
            return read()
        finally:
            path.write_bytes(seed)

    return one, [seed, b"{}"]


def make_run(root: Path) -> Path:
    """The folder of a small run, finished in seconds where it is not there yet."""
    from trainer.main import cli

    if (root / "run").exists():
        return root / "run"
    config = ROOT / "configs" / "quickstart.toml"
    sets = ("curriculum.epochs=1", "loss.dims=[16]", "lora.enabled=false", "train.batch_size=64")
    assert cli(["--config", str(config), "--output-dir", str(root / "run"), *(f"--set={pair}" for pair in sets)]) == 0
    return root / "run"


def checkpoint_readers(run: Path) -> dict[str, Reader]:
    """A checkpoint whose manifest somebody made anew, so that only its content can tell; and the manifest itself."""
    import torch

    from trainer.checkpoint.identity import identity
    from trainer.checkpoint.sealed_folder import FILES, newest_checkpoint
    from trainer.config_file import load_config, to_tree
    from trainer.system.files import find_damage, write_manifest
    from trainer.training import resume

    place = newest_checkpoint(run / "checkpoints")
    parameters = {"w": torch.nn.Parameter(torch.zeros(2))}
    # The least that a resume asks for, of a run of one parameter.
    stub: Any = SimpleNamespace(
        folder=run,
        config=load_config(run / "config.toml"),
        fingerprints={},
        conditions=dict,
        parameters=parameters,
        optimizer=SimpleNamespace(optimizer=torch.optim.AdamW(parameters.values())),
        accelerator=SimpleNamespace(scaler=None),
        is_main=False,
    )
    shrink_checkpoint(place, identity(to_tree(stub.config), {}, {}))

    def seal() -> None:
        (place / "manifest.json").unlink()
        write_manifest(place)

    seal()
    resume.resumed_state(stub, False)  # whole, it is taken
    found = {
        f"checkpoint {file}": in_place(place / file, lambda: resume.resumed_state(stub, False), seal) for file in FILES
    }
    return found | {"checkpoint manifest.json": in_place(place / "manifest.json", lambda: find_damage(place, FILES))}


def run_readers(root: Path) -> dict[str, Reader]:
    """Readers of what a run leaves behind."""
    from trainer.evaluation.thresholds import stored_thresholds
    from trainer.model.encoder import EmbeddingConditions
    from trainer.model.loading import load_encoder
    from trainer.report import run_page as report
    from trainer.training.log import open_log

    run = make_run(root)
    model, found = run / "model", checkpoint_readers(run)
    (model / "manifest.json").unlink(missing_ok=True)  # it would notice everything
    conditions = EmbeddingConditions(**json.loads((model / "thresholds.json").read_text())["model"])
    found["model thresholds.json"] = in_place(
        model / "thresholds.json", lambda: stored_thresholds(model, (16,), conditions)
    )
    own = ("config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer_config.json")
    for file in (*own, "config_sentence_transformers.json", "model.safetensors.index.json"):
        found[f"model {file}"] = in_place(model / file, lambda: load_encoder(str(model)))

    def resume_log() -> None:
        accelerator: Any = SimpleNamespace(is_main_process=True, trackers=[])
        open_log(run, accelerator, 5)
        lines = (run / "log.jsonl").read_text().splitlines()
        assert all(json.loads(line)["step"] < 5 for line in lines), "a line of a later step was kept"

    found["log.jsonl"] = in_place(run / "log.jsonl", resume_log)
    report._pictures = lambda run: []  # a second for each call
    files = ("config.toml", "log.jsonl", "metrics.json", "scores.json", "plan.json", "training_metadata.json")
    for file in (*files, "lint.json", "strength.json"):
        found[f"report {file}"] = in_place(run / file, lambda: report.write_report(run))
    return found


def shrink_checkpoint(place: Path, same: dict[str, Any]) -> None:
    """Leave of a checkpoint what a run of one parameter would have, small enough to be fuzzed."""
    import torch
    from safetensors.torch import load_file, save_file

    kept = {name: value for name, value in load_file(place / "tensors.safetensors").items() if "random/" in name}
    kept |= {f"{kind}/w": torch.zeros(2) for kind in ("weight", "best", "optimizer/exp_avg", "optimizer/exp_avg_sq")}
    save_file({**kept, "optimizer/step/w": torch.tensor(1.0)}, place / "tensors.safetensors")
    state, metrics = json.loads((place / "state.json").read_text()), {"16": {"spearman": 0.5}}
    state |= {"parameters": ["w"], "identity": same, "evaluations": [], "baseline": metrics}
    state |= {"best": {"step": 1, "value": 0.5, "metrics": metrics}}
    (place / "state.json").write_text(json.dumps(state))
