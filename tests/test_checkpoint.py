"""Checkpoints come back bit for bit or not at all; a damaged one is noticed, set aside and the one before is used."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracles import watch_disk
from torch import Tensor

from trainer.checkpoint import sealed_folder
from trainer.checkpoint.sealed_folder import KEEP, load_checkpoint, newest_checkpoint, save_checkpoint
from trainer.errors import CheckpointError, StorageError
from trainer.system.console import console
from trainer.system.files import find_damage, new_folder, remove_folder, write_manifest

FILES = ("manifest.json", "state.json", "tensors.safetensors")


def load_newest(root: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], Path]:
    """What a resume does: find, then read."""
    folder = newest_checkpoint(root)
    return *load_checkpoint(folder), folder


def tensors_of(step: int) -> dict[str, Tensor]:
    return {"weight": torch.arange(12, dtype=torch.float32).view(3, 4) + step, "step": torch.tensor(float(step))}


def save(root: Path, step: int) -> Path:
    return save_checkpoint(root, step, tensors_of(step), {"step": step})


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def flip(folder: Path, file: str, bit: int) -> None:
    data = bytearray((folder / file).read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    (folder / file).write_bytes(data)


# ---- round trip


def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(3)
    floats = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    integers = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
    tensors = {str(dtype): torch.randn(5, 3).to(dtype) for dtype in floats}
    tensors |= {str(dtype): torch.randint(0, 100, (7,)).to(dtype) for dtype in integers}
    base = torch.randn(4, 6)
    tensors |= {
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "not finite": torch.tensor([math.nan, -math.nan, math.inf, -0.0]),
        "subnormal": torch.tensor([1e-45]),
        "transposed": base.T,
        "strided": base[:, ::2],
        "same storage 1": base,
        "same storage 2": base,
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "random state": torch.get_rng_state(),
    }
    state = {"step": 7, "text": 'ä"\n🙂', "nested": [{"a": None, "b": 0.1 + 0.2}], "loss": math.nan, "huge": 2**60}
    folder = save_checkpoint(tmp_path, 7, tensors, state)
    assert folder == tmp_path / "step-000007"
    loaded, loaded_state, found = load_newest(tmp_path)
    assert found == folder
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(loaded[name]) == bits(tensor.detach()), name
    assert json.dumps(loaded_state) == json.dumps(state)


def test_what_is_loaded_stands_on_its_own(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    loaded, _, _ = load_newest(tmp_path)
    loaded["weight"].add_(1)
    assert find_damage(folder) is None
    assert torch.equal(load_newest(tmp_path)[0]["weight"], tensors_of(1)["weight"])


# ---- which one


def test_the_newest_by_number_is_loaded(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 3):
        save(tmp_path, step)
    assert load_newest(tmp_path)[1] == {"step": 1_000_000}


def test_only_the_newest_are_kept_and_nothing_else_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "step-000001.damaged").mkdir()
    for step in range(1, KEEP + 3):
        save(tmp_path, step)
    kept = {f"step-{step:06d}" for step in range(3, KEEP + 3)}
    assert {path.name for path in tmp_path.iterdir()} == kept | {"notes", "step-000001.damaged"}


def test_a_checkpoint_is_on_disk_before_its_name_and_named_before_an_older_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(1, KEEP + 1):
        save(tmp_path, step)
    events, newest = watch_disk(monkeypatch, tmp_path), f"step-{KEEP + 1:06d}"
    save(tmp_path, KEEP + 1)
    assert sorted(events[:3]) == [f"sync {file}" for file in FILES]
    assert events[3:] == [f"sync ({newest})", f"name {newest}", f"sync {tmp_path.name}", "name (step-000001)"]


def test_a_step_saved_twice_is_left_as_it_is(tmp_path: Path) -> None:
    folder = save(tmp_path, 4)
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert save(tmp_path, 4) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("make", [lambda root: None, lambda root: root.mkdir(), lambda root: root.write_text("file")])
def test_where_there_is_none_that_is_said(make: Callable[[Path], Any], tmp_path: Path) -> None:
    make(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint to resume from; remove the folder"):
        load_newest(tmp_path / "checkpoints")


# ---- damage


def truncate(folder: Path, file: str) -> None:
    os.truncate(folder / file, (folder / file).stat().st_size - 1)


def halve(folder: Path, file: str) -> None:
    os.truncate(folder / file, (folder / file).stat().st_size // 2)


def empty(folder: Path, file: str) -> None:
    os.truncate(folder / file, 0)


def zero(folder: Path, file: str) -> None:
    (folder / file).write_bytes(bytes((folder / file).stat().st_size))


def append(folder: Path, file: str) -> None:
    with (folder / file).open("ab") as stream:
        stream.write(b"0")


def delete(folder: Path, file: str) -> None:
    (folder / file).unlink()


def flip_middle(folder: Path, file: str) -> None:
    flip(folder, file, 8 * ((folder / file).stat().st_size // 2) + 3)


def flip_last(folder: Path, file: str) -> None:
    flip(folder, file, 8 * ((folder / file).stat().st_size - 1))


def swap(folder: Path, file: str) -> None:
    """Put the file of an older checkpoint there, whole in itself."""
    (folder / file).write_bytes((folder.with_name("step-000001") / file).read_bytes())


def make_folder(folder: Path, file: str) -> None:
    (folder / file).unlink()
    (folder / file).mkdir()


DAMAGE = [truncate, halve, empty, zero, append, delete, flip_middle, flip_last, swap, make_folder]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("file", FILES)
def test_damage_to_any_file_is_noticed_and_the_one_before_is_used(
    file: str, damage: Callable[[Path, str], None], tmp_path: Path
) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    damage(newest, file)
    with console.capture() as captured:
        loaded, state, folder = load_newest(tmp_path)
    assert folder == tmp_path / "step-000001"
    assert state == {"step": 1}
    assert torch.equal(loaded["weight"], tensors_of(1)["weight"])
    assert {path.name for path in tmp_path.iterdir()} == {"step-000001", "step-000002.damaged"}
    line = captured.get()
    assert line.count("\n") == 1
    assert line.startswith(f"{newest}: ")
    assert line.endswith("; set aside\n")


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_in_any_byte_is_damage(file: str, tmp_path: Path) -> None:
    rng = random.Random(file)
    folder = save_checkpoint(tmp_path, 1, {"w": torch.ones(2)}, {"step": 1})
    original = (folder / file).read_bytes()
    for byte in range(len(original)):
        bit = 8 * byte + rng.randrange(8)
        flip(folder, file, bit)
        assert find_damage(folder) is not None, f"bit {bit} of {file}"
        (folder / file).write_bytes(original)
    assert find_damage(folder) is None


def test_without_the_hashes_a_flipped_bit_goes_unnoticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: it is the hash that notices, not the file format."""
    blind = SimpleNamespace(hexdigest=lambda: "0" * 64)
    monkeypatch.setattr(hashlib, "file_digest", lambda stream, name: blind)
    flip_last(save(tmp_path, 1), "tensors.safetensors")
    loaded, _, _ = load_newest(tmp_path)
    assert any(not torch.equal(loaded[name], tensor) for name, tensor in tensors_of(1).items())


@pytest.mark.parametrize(
    "manifest",
    ["[]", "{}", "null", '"x"', "[" * 100_000, '{"state.json": 1, "tensors.safetensors": 2}', '{"state.json": {}}'],
)
def test_a_manifest_of_another_shape_is_damage(manifest: str, tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    (folder / "manifest.json").write_text(manifest)
    assert find_damage(folder) == "manifest.json is not what was written"


def cannot_read(monkeypatch: pytest.MonkeyPatch, number: int, call: str) -> None:
    """Every call of a kind that reads a checkpoint raises an OSError of a number."""

    def fail(*args: object, **named: object) -> None:
        # `read` raises it with no file name.
        raise OSError(number, os.strerror(number), *([] if call == "file_digest" else [str(args[0])]))

    monkeypatch.setattr(hashlib if call == "file_digest" else Path, call, fail)


@pytest.mark.parametrize("call", ["open", "file_digest", "stat", "iterdir"])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_a_file_that_cannot_be_read_is_no_damage(
    number: int, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    sealed_folder._known_whole.clear()  # as in another process
    cannot_read(monkeypatch, number, call)
    said = rf"step-000003.*: cannot read: {os.strerror(number)}; mend that and try again, or move step-000003 away to"
    said = rf"{tmp_path}: cannot read: {os.strerror(number)}; mend that and try again$" if call == "iterdir" else said
    with pytest.raises(StorageError, match=said):
        newest_checkpoint(tmp_path)
    if call == "iterdir":
        with pytest.raises(StorageError, match=said):
            sealed_folder.has_checkpoints(tmp_path)  # or the run would begin anew
    else:
        monkeypatch.setattr(Path, "exists", lambda path: True)
        with pytest.raises(StorageError, match=r"step-000003.*: cannot read: .* try again$"):
            save(tmp_path, 3)
        sealed_folder.drop_old(tmp_path, ())  # a save ends well though an older one cannot be read
    monkeypatch.undo()
    assert {path.name for path in tmp_path.iterdir()} == {f"step-{step:06d}" for step in (1, 2, 3)}
    assert load_newest(tmp_path)[1] == {"step": 3}


def test_one_that_cannot_be_set_aside_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip_last(save(tmp_path, 1), "state.json")
    cannot_read(monkeypatch, errno.EACCES, "rename")
    with pytest.raises(StorageError, match=r"step-000001\.damaged: cannot write: Permission denied"):
        newest_checkpoint(tmp_path)


def test_where_all_are_damaged_they_are_named_and_none_is_lost(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    last = tmp_path / "step-000003" / "state.json"
    whole = last.read_bytes()
    for step in (1, 2, 3):
        flip_last(tmp_path / f"step-{step:06d}", "state.json")
    names = [f"step-{step:06d}.damaged" for step in (1, 2, 3)]
    for _ in range(2):  # also once they are set aside
        with pytest.raises(CheckpointError) as caught:
            load_newest(tmp_path)
        assert str(caught.value) == (
            f"{tmp_path}: no checkpoint is whole; restore one that was set aside ({', '.join(names)}) and take "
            ".damaged off its name, or start a new run"
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == names
    # The fix that it names
    (tmp_path / names[2]).rename(last.parent)
    last.write_bytes(whole)
    assert load_newest(tmp_path)[1] == {"step": 3}


def test_a_step_may_be_damaged_again(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for _ in range(2):
        flip_last(save(tmp_path, 2), "state.json")
        assert load_newest(tmp_path)[2] == tmp_path / "step-000001"
    assert {path.name for path in tmp_path.iterdir()} == {"step-000001", "step-000002.damaged"}


# ---- a save that fails


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_save_that_finds_no_room_leaves_the_older_ones(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(1, KEEP + 1):
        save(tmp_path, step)
    before = {path.name for path in tmp_path.iterdir()}
    calls = 0
    real = Path.open

    def open_until_full(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += "w" in mode
        if "w" in mode and calls == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_until_full)
    with pytest.raises(StorageError, match="No space left on device"):
        save(tmp_path, 99)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert load_newest(tmp_path)[1] == {"step": KEEP}


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """Also a file whose manifest is right is read as safetensors only."""
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (canary.touch, ())

    folder = save(tmp_path / "checkpoints", 1)
    torch.save(Payload(), folder / "tensors.safetensors")
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    assert find_damage(folder) is None
    with pytest.raises(Exception, match="header"):
        load_newest(tmp_path / "checkpoints")
    assert not canary.exists()
    torch.load(io.BytesIO((folder / "tensors.safetensors").read_bytes()), weights_only=False)
    assert canary.exists()


# ---- negative controls: without the guard, the test of it turns red


def test_a_damaged_checkpoint_that_is_used_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_folder, "find_damage", lambda *_: None)
    with pytest.raises(AssertionError):
        test_damage_to_any_file_is_noticed_and_the_one_before_is_used("state.json", swap, tmp_path)


@pytest.mark.parametrize("wrong", ["none", "too early"])
def test_a_manifest_that_does_not_hold_every_file_is_seen(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_early(folder: Path) -> None:
        state = (folder / "state.json").read_bytes()
        (folder / "state.json").unlink()
        write_manifest(folder)
        (folder / "state.json").write_bytes(state)

    monkeypatch.setattr(sealed_folder, "write_manifest", too_early if wrong == "too early" else lambda folder: None)
    with pytest.raises((CheckpointError, FileNotFoundError), match=r"is whole|manifest\.json"):
        test_the_newest_by_number_is_loaded(tmp_path)


def test_an_older_checkpoint_that_goes_too_early_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def room_first(folder: Path) -> Iterator[Path]:
        if folder.name == f"step-{KEEP + 1:06d}":
            remove_folder(folder.with_name("step-000001"))
        with new_folder(folder) as path:
            yield path

    monkeypatch.setattr(sealed_folder, "new_folder", room_first)
    with pytest.raises(AssertionError):
        test_a_checkpoint_is_on_disk_before_its_name_and_named_before_an_older_one_goes(tmp_path, monkeypatch)
