"""Malformed and hostile inputs through the command line: one line that names the culprit, no debris, no code run.

Every case is a row of CASES: what is put there, what is asked for, what the line must name, the exit code. `pytest
tests/test_hostile.py` counts them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import EDITS, Edits, Killed, Payload, edit_json, edited, kill_before_update, write_old_layout
from safetensors.torch import load_file, save, save_file

from trainer.data import text_files
from trainer.data.incidents import generate_pairs
from trainer.data.tickets import Columns, Filter, load_tickets
from trainer.errors import InputError
from trainer.main import cli
from trainer.system.files import write_manifest

SETTINGS = {"train.batch_size": 8, "curriculum.epochs": 1, "loss.dims": [16], "lora.enabled": "false"}


@dataclass(frozen=True)
class Place:
    """Good input, copied for a case to spoil, and where its output would go."""

    root: Path
    canary: Path  # made by code that must not run

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def payload(self) -> bytes:
        """A pickle that makes the canary."""
        return pickle.dumps(Payload(self.canary))

    def train(self, *options: str, **changes: Any) -> list[str]:
        """The command that trains on good input, but for the changes."""
        paths = {"model.name": self.model, "data.train": self.root / "train.json", "data.dev": self.root / "dev.json"}
        chosen = {**SETTINGS, **paths, **{key.replace("__", "."): value for key, value in changes.items()}}
        folder = () if "--output-dir" in options else ("--output-dir", str(self.root / "out"))
        sets = [f"--set={key}={value}" for key, value in chosen.items()]
        return ["train", "--config", str(self.root / "empty.toml"), *folder, *sets, *options]


@pytest.fixture(scope="module")
def good(tiny_model: Any, blank_report: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good input: model, pairs, tickets, a run that was stopped before its third step."""
    root = tmp_path_factory.mktemp("good") / "place"
    write_old_layout(tiny_model("bert"), root / "model")
    for part, rows in (("train", 72), ("dev", 36)):
        (root / f"{part}.json").write_text(json.dumps(generate_pairs(rows, 0, part)))
    (root / "empty.toml").write_text("")
    (root / "tickets.csv").write_text(TICKETS)
    with pytest.MonkeyPatch.context() as patch:
        kill_before_update(patch, 2)
        with pytest.raises(Killed):
            cli(Place(root, root).train("--output-dir", str(root / "run"), checkpoint__every=1))
    return root


@pytest.fixture
def place(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A copy of it, in the very same place for all cases, since a run knows its files by their paths."""
    kept = good.with_name("kept")
    good.rename(kept)
    shutil.copytree(kept, good)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text_files, "EXPANSION_ALWAYS_BYTES", 10**6)
    yield Place(good, tmp_path / "canary")
    shutil.rmtree(good)
    kept.rename(good)


# ---- what is wrong: the command, what its error must name, the exit code

Case = Callable[[Place], tuple[list[str], str, int]]
CASES: dict[str, Case] = {}


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pair_case(name: str, content: str | bytes | Callable[[Place], bytes]) -> Case:
    def case(place: Place) -> tuple[list[str], str, int]:
        path = put(place.root / "hostile" / name, content(place) if callable(content) else content)
        return place.train(data__train=path), str(path), 2

    return case


PAIRS_HEAD = "text1,text2,label,phase\n"
ROW = '{"text1":"a","text2":"b","label":1}\n'
SMALL = '{"texts1":["a"],"texts2":["b"],"labels":[1]}'
# One of each kind of fault; test_pairs.py has them all, without the command line.
BAD_PAIRS: dict[str, tuple[str, str | bytes]] = {
    "empty": ("a.json", ""),
    "header alone": ("a.csv", PAIRS_HEAD),
    "unknown format": ("a.parquet", "x"),
    "bad JSON": ("a.json", '{"texts1": ["a"],\n "texts2": [}'),
    "bad JSON line": ("a.jsonl", ROW + "\n" + '{"text1": oops}'),
    "ragged": ("a.json", '{"texts1":["a","b"],"texts2":["c","d"],"labels":[1]}'),
    "missing column": ("a.json", '{"texts1":["a"],"text2":["b"],"labels":[1]}'),
    "duplicate key": ("a.json", SMALL[:-1] + ',"labels":[0]}'),
    "NaN label": ("a.json", SMALL.replace("1]", "NaN]")),
    "huge integer line": ("a.jsonl", ROW + ROW.replace(":1", ":" + "9" * 5000)),
    "short row": ("a.csv", PAIRS_HEAD + 'a,"b\n\nb",1,1\nc,d,1\n'),
    "unclosed quote": ("a.csv", PAIRS_HEAD + 'a,b,1,1\n\nc,"d,1,1\ne,f,1,1\n'),
    "Latin-1": ("a.csv", PAIRS_HEAD.encode() + "für,b,1,1\n".encode("latin-1")),
    "UTF-16": ("a.json", SMALL.encode("utf-16")),
    "zeros": ("a.json", bytes(1000)),
    "deep nesting": ("a.json", "[" * 10**6),
    "cut gzip": ("a.csv.gz", gzip.compress(PAIRS_HEAD.encode())[:-3]),
}
for title, (name, content) in BAD_PAIRS.items():
    CASES[f"pairs: {title}"] = pair_case(name, content)
BOMB = gzip.compress(b"text1,text2,label\n" + b"a" * 10**7)
CASES["pairs: gzip bomb"] = pair_case("a.csv.gz", BOMB)
CASES["pairs: a bomb in a bomb"] = pair_case("a.csv.gz", gzip.compress(BOMB))
CASES["pairs: a pickle"] = pair_case("a.json", lambda place: place.payload)
CASES["pairs: a pickle of old"] = pair_case("a.csv", lambda place: pickle.dumps(Payload(place.canary), 0))
CASES["pairs: negatives alone"] = pair_case("a.csv", "text1,text2,label\na,b,0\nc,d,0\n")
CASES["pairs: half a surrogate"] = pair_case("a.json", '{"texts1":["\\ud800"],"texts2":["b"],"labels":[1]}')
CASES["pairs: a terminal's commands"] = pair_case("a.csv", 'text1,text2,label\n"\x1b]0;owned\x07",b,\x1b[2J\n')
CASES["pairs: no such file"] = lambda place: (place.train(data__dev="none.json"), "none.json", 2)
CASES["pairs: a folder"] = lambda place: (place.train(data__test=place.root), str(place.root), 2)
CASES["pairs: a device"] = lambda place: (place.train(data__train="/dev/zero"), "/dev/zero", 2)
CASES["pairs: NUL in the name"] = lambda place: (place.train(data__train='"a\\u0000.json"'), "data.train", 2)
CASES["pairs: dev is train"] = lambda place: (
    place.train(data__dev=place.root / "train.json"),
    str(place.root / "train.json"),
    2,
)

HEAD = "number,short_description,description,assignment_group\n"
TICKETS = HEAD + "".join(f"T{i},printer {i} in room is jammed,paper is stuck again,print\n" for i in range(9))


def ticket_case(name: str, content: str | bytes | Callable[[Place], bytes], *options: str) -> Case:
    def case(place: Place) -> tuple[list[str], str, int]:
        path = put(place.root / "hostile" / name, content(place) if callable(content) else content)
        return ["build-pairs", "--tickets", str(path), "--output", str(place.root / "out"), *options], str(path), 2

    return case


CASES |= {
    "tickets: empty": ticket_case("t.csv", ""),
    "tickets: header alone": ticket_case("t.csv", HEAD),
    "tickets: other columns": ticket_case("t.csv", "id,text\n1,a\n"),
    "tickets: a column twice": ticket_case("t.csv", "number," + HEAD + "1,1,a,b,c\n"),
    "tickets: another category column": ticket_case("t.csv", TICKETS, "--category-column", "team"),
    "tickets: one group of similar ones": ticket_case("t.csv", TICKETS),
    "tickets: ragged": ticket_case("t.csv", HEAD + "1,a,b\n"),
    "tickets: unclosed quote": ticket_case("t.csv", HEAD + '1,"a,b,c\n'),
    "tickets: UTF-16": ticket_case("t.csv", TICKETS.encode("utf-16")),
    "tickets: Latin-1": ticket_case("t.csv", TICKETS.replace("stuck", "für").encode("latin-1")),
    "tickets: a list in a cell": ticket_case(
        "t.jsonl", '{"number":1,"short_description":[],"description":"","assignment_group":""}'
    ),
    "tickets: deep nesting": ticket_case("t.json", "[" * 10**6),
    "tickets: a key twice": ticket_case("t.json", '{"number":[1],"number":[1]}'),
    "tickets: cut gzip": ticket_case("t.csv.gz", gzip.compress(TICKETS.encode())[:-9]),
    "tickets: gzip bomb": ticket_case("t.csv.gz", BOMB),
    "tickets: a pickle": ticket_case("t.csv", lambda place: place.payload),
    "tickets: a spreadsheet": ticket_case("t.xlsx", b"PK\x03\x04"),
}


def config_case(content: str | bytes | Callable[[Place], bytes]) -> Case:
    def case(place: Place) -> tuple[list[str], str, int]:
        path = put(place.root / "hostile.toml", content(place) if callable(content) else content)
        sets = [f"--set=data.train={place.root / 'train.json'}", f"--set=model.name={place.model}"]
        return ["--config", str(path), "--output-dir", str(place.root / "out"), *sets], str(path), 2

    return case


CASES |= {
    "config: no TOML": config_case("[train\n"),
    "config: a pickle": config_case(lambda place: place.payload),
    "config: NUL": config_case("[train]\nseed = 1\0"),
    "config: UTF-16": config_case("[train]\nseed = 1".encode("utf-16")),
    "config: deep nesting": config_case("x = " + "[" * 100_000),
    "config: huge integer": config_case("[train]\nseed = " + "9" * 5000),
    "config: large integer": config_case("[train]\nseed = " + "9" * 400),
    "config: NaN": config_case("[optim]\nlr = nan"),
    "config: infinite": config_case("[loss]\nscale = inf"),
    "config: a key twice": config_case("[train]\nseed = 1\nseed = 2"),
    "config: unknown section": config_case("[trian]\nseed = 1"),
    "config: unknown key": config_case("[train]\nsead = 1"),
    "config: another type": config_case('[train]\nbatch_size = "8; rm -rf"'),
    "config: a date": config_case("[train]\nseed = 1979-05-27"),
    "config: section as a list": config_case("[[train]]\nseed = 1"),
    "config: negative": config_case("[optim]\nlr = -1.0"),
    "config: a dim beyond the model": lambda place: (place.train(loss__dims=[10**9]), "loss.dims", 2),
    "config: NUL in the model's name": lambda place: (place.train(model__name='"a\\u0000b"'), "model.name", 2),
    "config: a folder": lambda place: (["--config", str(place.root)], str(place.root), 2),
    "config: not there": lambda place: (["--config", "none.toml"], "none.toml", 2),
}


def model_case(spoil: Callable[[Path, Place], Any]) -> Case:
    def case(place: Place) -> tuple[list[str], str, int]:
        spoil(place.model, place)
        return place.train(), str(place.model), 2

    return case


def modules(**changes: Any) -> Callable[[Path, Place], Any]:
    """Change the first module; a folder with a good model lies outside, and code that makes the canary inside."""

    def spoil(folder: Path, place: Place) -> None:
        shutil.copytree(folder, place.root / "other")
        put(folder / "own.py", f"open({str(place.canary)!r}, 'w')\nclass Transformer: pass\n")
        listed = json.loads((folder / "modules.json").read_text())
        put(folder / "modules.json", json.dumps([listed[0] | changes, *listed[1:]]))

    return spoil


def own_code(file: str, **changes: Any) -> Callable[[Path, Place], Any]:
    def spoil(folder: Path, place: Place) -> None:
        put(folder / "own.py", f"open({str(place.canary)!r}, 'w')\nclass Own: pass\n")
        edit_json(folder / file, **changes)

    return spoil


def content(file: str, data: str | bytes) -> Callable[[Path, Place], Any]:
    return lambda folder, place: put(folder / file, data)


def as_pickle(file: str, instead_of: str = "") -> Callable[[Path, Place], Any]:
    def spoil(folder: Path, place: Place) -> None:
        if instead_of:
            (folder / instead_of).unlink()
        put(folder / file, place.payload)

    return spoil


def weights(change: Callable[[bytes], bytes]) -> Callable[[Path, Place], Any]:
    return lambda folder, place: put(folder / "model.safetensors", change((folder / "model.safetensors").read_bytes()))


def header(text: str, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + text.encode()


def not_numbers(place: Place) -> tuple[list[str], str, int]:
    path = place.model / "model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)
    return place.train(), "54 embeddings are not finite", 3


def resealed_wrongly(folder: Path, place: Place) -> None:
    """A bit flips after the manifest was written."""
    write_manifest(folder)
    weights(lambda data: data[:-1] + bytes([data[-1] ^ 1]))(folder, place)


OUTSIDE = '{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4000000000]}}'
CASES |= {
    "model: a pickle alone": model_case(as_pickle("pytorch_model.bin", "model.safetensors")),
    "model: a pickle named .pt": model_case(as_pickle("model.pt", "model.safetensors")),
    "model: a pickle as safetensors": model_case(as_pickle("model.safetensors")),
    "model: a pickle as config": model_case(as_pickle("config.json")),
    "model: a pickle as modules": model_case(as_pickle("modules.json")),
    "model: a pickle as tokenizer": model_case(as_pickle("tokenizer.json")),
    "model: a pickle as pooling": model_case(as_pickle("1_Pooling/config.json")),
    "model: code of its own": model_case(own_code("config.json", auto_map={"AutoModel": "own.Own"})),
    "model: code of another repository": model_case(own_code("config.json", auto_map={"AutoModel": "a/b--own.Own"})),
    "model: code for a type of its own": model_case(
        own_code("config.json", model_type="own", auto_map={"AutoConfig": "own.Own"})
    ),
    "model: a module of its own": model_case(modules(type="own.Transformer")),
    "model: a module of a fork": model_case(modules(type="sentence_transformers_fork.models.Transformer")),
    "model: a module that is a command": model_case(modules(type="os.system")),
    "model: a module not known": model_case(modules(type="sentence_transformers.models.CLIP")),
    "model: a module above": model_case(modules(path="../other")),
    "model: a module at the root": model_case(modules(path="/")),
    "model: a module behind backslashes": model_case(modules(path="..\\other")),
    "model: a module without a path": model_case(modules(path=None)),
    "model: NUL in a module's path": model_case(modules(path="a\0b")),
    "model: shards above": model_case(
        content("model.safetensors.index.json", '{"weight_map": {"a": "../other/model.safetensors"}}')
    ),
    "model: shards that are pickles": model_case(
        content("model.safetensors.index.json", '{"weight_map": {"a": "a.bin"}}')
    ),
    "model: an adapter for another base": model_case(
        content("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "other/model"}')
    ),
    "model: cut weights": model_case(weights(lambda data: data[:-1000])),
    "model: weights without a tensor": model_case(weights(lambda data: save({}))),
    "model: empty weights": model_case(content("model.safetensors", b"")),
    "model: zeros": model_case(weights(lambda data: bytes(len(data)))),
    "model: a header of 2^63 bytes": model_case(content("model.safetensors", header("{}", 2**63))),
    "model: a header beyond the file": model_case(content("model.safetensors", header("{}", 10**6))),
    "model: a tensor beyond the file": model_case(content("model.safetensors", header(OUTSIDE))),
    "model: a header nested deeply": model_case(content("model.safetensors", header("[" * 10**5))),
    "model: weights that are no numbers": not_numbers,
    "model: a flipped bit under a manifest": model_case(resealed_wrongly),
    "model: a manifest of nothing": model_case(content("manifest.json", "{}")),
    "model: a manifest of files outside": model_case(
        content("manifest.json", '{"../train.json": {"size": 1, "sha256": ""}}')
    ),
    "model: a manifest nested deeply": model_case(content("manifest.json", "[" * 10**6)),
    "model: config nested deeply": model_case(content("config.json", '{"a":' * 10**5)),
    "model: config of no object": model_case(content("config.json", "7")),
    "model: a type not known": model_case(content("config.json", '{"model_type": "no-such-type"}')),
    "model: a width that does not fit": model_case(
        lambda folder, place: edit_json(folder / "config.json", hidden_size=48)
    ),
    "model: heads that do not fit": model_case(
        lambda folder, place: edit_json(folder / "config.json", num_attention_heads=7)
    ),
    "model: no tokenizer": model_case(lambda folder, place: [path.unlink() for path in folder.glob("tokenizer*")]),
    "model: tokenizer of no object": model_case(content("tokenizer.json", "[]")),
    "model: a length below 0": model_case(content("sentence_bert_config.json", '{"max_seq_length": -1}')),
    "model: prompts that are no texts": model_case(
        content("config_sentence_transformers.json", '{"prompts": {"a": 1}}')
    ),
    "model: not there": lambda place: (place.train(model__name="./none"), "./none", 2),
    "model: a file": lambda place: (place.train(model__name=place.root / "dev.json"), str(place.root / "dev.json"), 2),
}


def checkpoint_case(spoil: Callable[[Path, Place], Any], reseal: bool = False) -> Case:
    """Every checkpoint of a stopped run is spoilt, and where asked sealed again as if by the trainer itself."""

    def case(place: Place) -> tuple[list[str], str, int]:
        for folder in (place.run / "checkpoints").iterdir():
            spoil(folder, place)
            if reseal:
                (folder / "manifest.json").unlink()
                write_manifest(folder)
        return place.train("--resume", "--output-dir", str(place.run), checkpoint__every=1), str(place.run), 4

    return case


def lacking(file: str, part: str) -> Callable[[Path, Place], Any]:
    """A state without a key, or tensors without those of a kind."""

    def spoil(folder: Path, place: Place) -> None:
        if file == "state.json":
            edit_json(folder / file, **{part: None})
        else:
            tensors = {name: value for name, value in load_file(folder / file).items() if not name.startswith(part)}
            save_file(tensors, folder / file)

    return spoil


def other_shapes(folder: Path, place: Place) -> None:
    tensors = load_file(folder / "tensors.safetensors")
    save_file({name: tensor.flatten()[:1].clone() for name, tensor in tensors.items()}, folder / "tensors.safetensors")


def spoilt_run(file: str, data: str, code: int, *options: str) -> Case:
    """A stopped run with a file of its own spoilt."""

    def case(place: Place) -> tuple[list[str], str, int]:
        put(place.run / file, data or place.payload)
        return ["train", "--resume", "--output-dir", str(place.run), *options], str(place.run), code

    return case


def without_checkpoints(place: Place) -> tuple[list[str], str, int]:
    shutil.rmtree(place.run / "checkpoints")
    return place.train("--resume", "--output-dir", str(place.run)), str(place.run), 4


CASES |= {
    "checkpoint: empty states": checkpoint_case(content("state.json", "")),
    "checkpoint: cut tensors": checkpoint_case(lambda folder, place: os.truncate(folder / "tensors.safetensors", 100)),
    "checkpoint: pickles as tensors": checkpoint_case(as_pickle("tensors.safetensors")),
    "checkpoint: no manifests": checkpoint_case(lambda folder, place: (folder / "manifest.json").unlink()),
    "checkpoint: manifests of files outside": checkpoint_case(
        content("manifest.json", '{"/etc/hostname": {"size": 1, "sha256": ""}}')
    ),
    "checkpoint: manifests nested deeply": checkpoint_case(content("manifest.json", "[" * 10**6)),
    "checkpoint: files where folders were": checkpoint_case(
        lambda folder, place: (shutil.rmtree(folder), put(folder, "x"))
    ),
    "checkpoint: sealed pickles": checkpoint_case(as_pickle("tensors.safetensors"), reseal=True),
    "checkpoint: sealed headers of 2^63 bytes": checkpoint_case(
        content("tensors.safetensors", header("{}", 2**63)), reseal=True
    ),
    "checkpoint: sealed states of no JSON": checkpoint_case(content("state.json", "{"), reseal=True),
    "checkpoint: sealed states nested deeply": checkpoint_case(content("state.json", "[" * 10**6), reseal=True),
    "checkpoint: sealed states of no object": checkpoint_case(content("state.json", "[]"), reseal=True),
    "checkpoint: sealed states without identity": checkpoint_case(lacking("state.json", "identity"), reseal=True),
    "checkpoint: sealed states without a log": checkpoint_case(lacking("state.json", "log"), reseal=True),
    "checkpoint: sealed tensors without weights": checkpoint_case(
        lacking("tensors.safetensors", "weight/"), reseal=True
    ),
    "checkpoint: sealed tensors without moments": checkpoint_case(
        lacking("tensors.safetensors", "optimizer/exp_avg_sq"), reseal=True
    ),
    "checkpoint: sealed tensors without random states": checkpoint_case(
        lacking("tensors.safetensors", "random/"), reseal=True
    ),
    "checkpoint: sealed tensors of other shapes": checkpoint_case(other_shapes, reseal=True),
    "checkpoint: none where a run was": without_checkpoints,
    "checkpoint: of another run": lambda place: (
        place.train("--resume", "--output-dir", str(place.run), checkpoint__every=1, train__seed=9),
        str(place.run),
        4,
    ),
    "run: its config a pickle": spoilt_run("config.toml", "", 2),
    "run: its config no TOML": spoilt_run("config.toml", "[", 2),
    "run: started again": lambda place: (place.train("--output-dir", str(place.run)), str(place.run), 5),
    "run: resumed where none is": lambda place: (
        place.train("--resume", "--output-dir", str(place.root / "none")),
        str(place.root / "none"),
        2,
    ),
    "run: a file where its folder should be": lambda place: (
        place.train("--output-dir", str(place.root / "dev.json")),
        str(place.root / "dev.json"),
        5,
    ),
    "run: NUL in its folder": lambda place: (
        [part for part in place.train("--output-dir", "x") if part not in ("--output-dir", "x")]
        + ['--set=output.dir="a\\u0000b"'],
        "output.dir",
        2,
    ),
    "run: where nothing can be written": lambda place: (place.train("--output-dir", "/proc/x"), "/proc/x", 5),
}


def thresholds_case(text: str) -> Case:
    def case(place: Place) -> tuple[list[str], str, int]:
        path = put(place.model / "thresholds.json", text or place.payload)
        return ["evaluate", "--model", str(place.model), "--pairs", str(place.root / "dev.json")], str(path), 2

    return case


def report_case(text: str) -> Case:
    def case(place: Place) -> tuple[list[str], str, int]:
        put(place.run / "metrics.json", text or place.payload)
        return ["report", str(place.run)], str(place.run), 2

    return case


THRESHOLDS_OF_ANOTHER = (
    '{"values": {"64": 0.5}, "rule": "f1", "source": "", "data_fingerprint": "", "positive_share": 0, "model": '
    '{"weights_fingerprint": "x", "pooling": "mean", "max_length": 9, "query_prompt": "", "document_prompt": ""}}'
)
CASES |= {
    "thresholds: a pickle": thresholds_case(""),
    "thresholds: nested deeply": thresholds_case("[" * 10**6),
    "thresholds: a list": thresholds_case("[]"),
    "thresholds: NaN": thresholds_case(THRESHOLDS_OF_ANOTHER.replace("0.5", "NaN")),
    "thresholds: of other weights": thresholds_case(THRESHOLDS_OF_ANOTHER),
    "thresholds: of an older version": thresholds_case(
        '{"values": {"64": 0.5}, "rule": "f1", "source": "", "data_fingerprint": "", "weights_fingerprint": "x"}'
    ),
    "report: of an unfinished run": lambda place: (["report", str(place.run)], str(place.run), 2),
    "report: a pickle": report_case(""),
    "report: no JSON": report_case("{"),
    "report: a list": report_case("[]"),
    "report: nested deeply": report_case("[" * 10**6),
    "report: no run": lambda place: (["report", str(place.model)], str(place.model), 2),
    "command: unknown": lambda place: (["tarin"], "tarin", 2),
    "command: unknown option": lambda place: (place.train("--resmue"), "--resmue", 2),
    "command: a setting without a value": lambda place: (place.train("--set", "train.seed"), "train.seed", 2),
    "command: dims of no size": lambda place: (
        ["evaluate", "--model", str(place.model), "--pairs", str(place.root / "dev.json"), "--dims", "0"],
        "--dims",
        2,
    ),
    "command: lint without pairs": lambda place: (["lint"], "--pairs", 2),
}


# ---- what must be so


def tree(root: Path) -> dict[str, str]:
    """Every file below a folder and its content; that a checkpoint was set aside leaves its files what they were."""
    return {
        str(path.relative_to(root)).replace(".damaged", ""): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in root.rglob("*")
        if path != root / "out" or any(path.iterdir())  # an empty folder is as good as none
    }


def judge(code: int, said: str, named: str, expected: int) -> None:
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in said, said[-2000:]
    assert (code, len(errors)) == (expected, 1), said[-2000:]
    assert named in errors[0] and errors[0].isprintable(), errors[0]


@pytest.mark.parametrize(  # one case of three in the fast subset: of each kind some
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (number % 3 > 0)) for number, name in enumerate(CASES)]
)
def test_it_is_refused_by_name_and_nothing_is_left_or_run(
    name: str, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, named, expected = CASES[name](place)
    before = tree(place.root)
    capfd.readouterr()
    judge(cli(arguments), capfd.readouterr().err, named, expected)
    assert tree(place.root) == before
    assert list(place.canary.parent.iterdir()) == []  # the working folder: neither the canary nor anything else


def test_there_are_at_least_eighty() -> None:
    assert len(CASES) >= 80


@pytest.mark.slow
def test_the_good_input_is_good(place: Place) -> None:
    """The control: what the cases spoil is trained on to the end and judged as it is."""
    assert cli(place.train("--resume", "--output-dir", str(place.run), checkpoint__every=1)) == 0
    assert cli(["evaluate", "--model", str(place.model), "--pairs", str(place.root / "dev.json")]) == 0
    assert cli(["report", str(place.run)]) == 0


def test_the_canary_would_sing(place: Place) -> None:
    pickle.loads(place.payload)
    assert place.canary.exists()
    with pytest.raises(AssertionError):
        judge(2, "Traceback\nerror: x", "x", 2)


@pytest.mark.slow
@given(suffix=st.sampled_from([".csv", ".jsonl", ".json"]), edits=EDITS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tickets_with_a_few_bytes_changed_give_tickets_or_a_refusal(tmp_path: Path, suffix: str, edits: Edits) -> None:
    names, *rows = [line.split(",") for line in TICKETS.splitlines()]
    forms = {
        ".csv": TICKETS,
        ".jsonl": "\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows),
        ".json": json.dumps(dict(zip(names, zip(*rows, strict=True), strict=True))),
    }
    path = put(tmp_path / f"tickets{suffix}", edited(forms[suffix].encode(), edits))
    try:
        tickets = load_tickets(path, Columns(), Filter())
    except InputError as error:
        assert str(path) in str(error) and str(error).isprintable()
    else:
        assert len(tickets) + len(tickets.dropped) == tickets.facts["read"] > 0
        assert not any(re.search("[\0\ud800-\udfff]", text) for text in tickets.texts)
