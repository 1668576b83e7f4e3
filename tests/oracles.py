"""What several test files use: the order of writes to disk, kills, model folders by hand, edits of files."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel, AutoTokenizer

WIDTH, LAYERS, LONGEST = 64, 2, 128  # of the tiny models


def watch_disk(patch: pytest.MonkeyPatch, root: Path) -> list[str]:
    """What happens below a folder from now on, in order: "sync NAME" by os.fsync, "name NAME" by a rename to it.

    Temporary names stand in brackets, without what makes them unique.
    """
    events: list[str] = []

    def short(name: str) -> str:
        return re.sub(r"^\.(.+)\.[^.]+\.tmp$", r"(\1)", name)

    def fsync(handle: int, real: Any = os.fsync) -> None:
        real(handle)
        inode = os.fstat(handle).st_ino
        events.extend(f"sync {short(path.name)}" for path in [root, *root.rglob("*")] if path.stat().st_ino == inode)

    def noted(real: Callable[..., None]) -> Callable[..., None]:
        return lambda old, new: (real(old, new), events.append(f"name {short(Path(new).name)}"))[0]

    patch.setattr(os, "fsync", fsync)
    patch.setattr(os, "rename", noted(os.rename))
    patch.setattr(os, "replace", noted(os.replace))
    return events


class Killed(BaseException):
    """Stands in for a kill: nothing in the trainer catches it."""


def kill_before_update(patch: pytest.MonkeyPatch, number: int) -> None:
    """From now on a process dies before its update of that number, counted from 0."""
    real, updates = torch.optim.AdamW.step, itertools.count()

    def step(self: torch.optim.AdamW, *arguments: Any) -> Any:
        if next(updates) == number:
            raise Killed
        return real(self, *arguments)

    patch.setattr(torch.optim.AdamW, "step", step)


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    values = json.loads(path.read_bytes()) if path.exists() else {}
    values = {key: value for key, value in (values | changes).items() if value is not None}
    path.write_text(json.dumps(values), encoding="utf-8")


def write_old_layout(source: Path, folder: Path, pooling: str = "mean", inner: str = "", **bert: Any) -> Path:
    """The layout of sentence-transformers 2 to 5, by hand; before them the Transformer lay in "0_Transformer"."""
    shutil.copytree(source, folder / inner)
    kinds = {inner: "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / inner / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20} | bert))
    (folder / "1_Pooling").mkdir()
    switches = {f"pooling_mode_{mode}": False for mode in ("cls_token", "mean_tokens", "max_tokens")}
    switches[{"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}[pooling]] = True
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH} | switches))
    return folder


def other_model(family: str, folder: Path, source: Path, **changes: Any) -> Path:
    """A tiny model of a family that packing does not know, with the tokenizer of another."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    sizes: dict[str, Any] = {
        "t5": {"d_model": WIDTH, "d_kv": 16, "d_ff": WIDTH, "num_layers": LAYERS, "num_heads": 4},
        "gpt2": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": LONGEST},
        "bart": {"d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 1, "decoder_start_token_id": 0},
    }
    common = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": WIDTH}
    common |= {"max_position_embeddings": LONGEST}
    options = sizes.get(family, common) | ({"decoder_start_token_id": 0} if family == "t5" else {}) | changes
    ids = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    options = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **ids, **options}
    torch.manual_seed(1)
    AutoModel.from_config(AutoConfig.for_model(family, **options)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SPLICES = [b'"', b",", b"\n", b"\r", b"\t", b"{", b"[", b"\\ud800", b"\\u0000", b"\0", b"\xff", b"NaN", b"-1e999", b":"]
Edits = list[tuple[float, int, bytes]]
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 6), st.one_of(st.sampled_from(SPLICES), st.binary(max_size=3))),
    min_size=1,
    max_size=4,
)
"""Strategy of a few edits of a file: where (as a share of its length), how many bytes out, which bytes in."""


def edited(data: bytes, edits: Edits) -> bytes:
    """The data with a few bytes cut out and others put in."""
    for where, removed, inserted in edits:
        at = int(where * len(data))
        data = data[:at] + inserted + data[at + removed :]
    return data


def printed_in_a_fork(work: Callable[[], object], out: Path) -> str:
    """What `work` prints in a forked process: what it changes stays there, and nothing is imported anew."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with out.open("w") as lines, redirect_stdout(lines):
                work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, f"the forked process ended with {code}"
    return out.read_text()
