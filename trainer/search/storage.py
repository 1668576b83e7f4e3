"""An index on disk: plain files, and one small JSON that names them with size and SHA-256.

    INDEX/
      index.json               the model, dims, counts, what was measured, and the names of the others
      embeddings-<hash>.npy    [N, E] of length 1: float32, float16 or int8, or [N, E / 8] bytes of signs
      ranges-<hash>.npy        [2, E] between which int8 tells values apart; for that alone
      tickets-<hash>.csv       id, sha256 of the text, text: a line a row of the embeddings
      words-<hash>.safetensors BM25 of the texts, where its library was there
      parts/                   what an unfinished `trainer index` has embedded

A change writes new files beside the old ones, then replaces index.json, which is one step, and only then removes what
no longer counts: whoever reads, and whenever a process dies, there is the old index or the new one. What is read is
compared with its hash first; nothing is unpickled.

Legend: N tickets, E dims, W words.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import safetensors.numpy
from scipy.sparse import csc_matrix

from trainer.data.identifiers import id_key
from trainer.errors import CheckpointError, InputError, StorageError
from trainer.model.embedding_types import KINDS, TYPES, EmbeddingType, Float
from trainer.model.encoder import EmbeddingConditions
from trainer.search.ticket_texts import Preparation
from trainer.system.files import DEBRIS, LOCK, make_folder, seal, sync, write_json
from trainer.text.bm25 import WordIndex

CONTENTS, PARTS = "index.json", "parts"
ENDINGS = {"embeddings": "npy", "tickets": "csv", "words": "safetensors", "ranges": "npy"}
NAME = re.compile(rf"({'|'.join(ENDINGS)})-[0-9a-f]{{16}}\.({'|'.join(ENDINGS.values())})")
HEADER = ["id", "sha256", "text"]
AGAIN = "remove the folder and index again"


class Ticket(NamedTuple):
    """A row of an index."""

    id: str
    sha256: str
    """Of the text, hex."""
    text: str


@dataclass(frozen=True)
class Contents:
    """What index.json says."""

    model_name: str
    """Where the model stood when it was last used."""
    model: EmbeddingConditions
    preparation: Preparation
    dims: int
    """E."""
    tickets: int
    """N."""
    prefix: int
    """The dims by which candidates are found."""
    candidates: int
    """How many of them the full width ranks; N: all, so that nothing is left out."""
    recall: float
    """Share of the exact best ten that are among them, of `measured_on` stored embeddings."""
    measured_on: int
    files: dict[str, dict[str, Any]]
    """"embeddings", "tickets", maybe "words", and for int8 "ranges" -> name, size, sha256."""
    type: str = "float32"
    """How the embeddings are kept, see `embedding_types`."""


def is_index(folder: Path) -> bool:
    """Whether a folder holds an index, whole or not."""
    return (folder / CONTENTS).exists()


def require_room(folder: Path) -> None:
    """Raise StorageError where a folder holds other things than an index or what an unfinished one left."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        if name not in (CONTENTS, PARTS, LOCK) and not NAME.fullmatch(name) and not name.endswith(DEBRIS):
            raise StorageError(f"{folder}: holds {name}, which is no part of an index; name a new folder")


# ---- reading


class Stored(NamedTuple):
    """An index as it is on disk, compared with its hashes."""

    contents: Contents
    type: EmbeddingType
    embeddings: np.ndarray
    """[N, ...] as `type` keeps them, read from the file where it is needed."""
    files: dict[str, Path]

    def rows(self, places: Sequence[int] | slice = slice(None)) -> Float:
        """Embeddings [n, E] of some rows in float32, of a length near 1."""
        return self.type.decode(self.embeddings[places])

    def tickets(self) -> Iterator[Ticket]:
        """The N rows. Raises CheckpointError where an id stands twice, or there are more or fewer."""
        path, keys = self.files["tickets"], set()
        csv.field_size_limit(max(csv.field_size_limit(), path.stat().st_size))
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = csv.reader(file, strict=True)
                if next(rows, None) != HEADER:
                    raise damaged(path)
                for row in rows:
                    ticket = Ticket(*row)
                    if (key := id_key(ticket.id)) in keys:
                        raise CheckpointError(f"{path}: the ticket {ticket.id} stands there twice; {AGAIN}")
                    keys.add(key)
                    yield ticket
        except (csv.Error, ValueError, TypeError) as error:
            raise damaged(path) from error
        if len(keys) != self.contents.tickets:
            raise damaged(path)

    def words(self) -> WordIndex | None:
        """BM25 of the texts; None without. Raises CheckpointError."""
        if "words" not in self.files:
            return None
        try:
            arrays = safetensors.numpy.load_file(self.files["words"])
            words = arrays["words"].tobytes().decode().split("\n")
            parts = (arrays["data"], arrays["indices"], arrays["indptr"])
            values = csc_matrix(parts, shape=(self.contents.tickets, len(words)))
            values.check_format(full_check=True)
        except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise damaged(self.files["words"]) from error
        return WordIndex({word: column for column, word in enumerate(words)}, values)


def read_index(folder: Path) -> Stored:
    """An index, all of its files compared with their hashes.

    Raises:
        InputError: there is none.
        CheckpointError: a file is not what was written.
    """
    while True:
        contents = read_contents(folder)
        try:
            return _read_files(folder, contents)
        except FileNotFoundError as error:
            if read_contents(folder) == contents:  # else it was replaced meanwhile
                raise CheckpointError(f"{error.filename}: is missing; {AGAIN}") from error


def read_contents(folder: Path) -> Contents:
    """What index.json says. Raises as `read_index`."""
    path = folder / CONTENTS
    if not path.is_file():
        problem = (
            "an unfinished index: finish it with the same command" if (folder / PARTS).is_dir() else "no index there"
        )
        raise InputError(f"{folder}: {problem}; `trainer index` makes one")
    try:
        record = json.loads(path.read_bytes())
        if record.pop("sha256") != _checksum(record):
            raise ValueError("changed")
        record["model"] = EmbeddingConditions(**record["model"])
        record["preparation"] = Preparation(**record["preparation"])
        contents = Contents(**record)
        needed = {"embeddings", "tickets", *(["ranges"] if contents.type == "int8" else [])}
        if contents.type not in TYPES or set(contents.files) - {"words"} != needed:
            raise ValueError("files")
        for kind, file in contents.files.items():
            if not re.fullmatch(rf"{kind}-[0-9a-f]{{16}}\.{ENDINGS[kind]}", file["name"]) or len(file) != 3:
                raise ValueError("a name that is none of ours")
        counts = [contents.dims, contents.tickets, contents.prefix, contents.candidates]
        if {*map(type, counts)} != {int} or min(counts) < 1 or type(contents.model_name) is not str:
            raise ValueError("counts")
        if contents.prefix > contents.dims or contents.candidates > contents.tickets:
            raise ValueError("more than all")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path) from error
    return contents


def _read_files(folder: Path, contents: Contents) -> Stored:
    """Raises CheckpointError, and FileNotFoundError where a file is missing."""
    files = {kind: folder / file["name"] for kind, file in contents.files.items()}
    for kind, path in files.items():
        if seal(path) != {key: contents.files[kind][key] for key in ("size", "sha256")}:
            raise damaged(path)
    ranges = None
    if "ranges" in files:
        ranges = np.array(_load(files["ranges"], (2, contents.dims), np.dtype(np.float32)))
        if not (np.isfinite(ranges).all() and (ranges[0] <= ranges[1]).all()):
            raise damaged(files["ranges"])
    kept = EmbeddingType(contents.type, contents.dims, ranges)
    embeddings = _load(files["embeddings"], (contents.tickets, kept.columns), KINDS[contents.type])
    return Stored(contents, kept, embeddings, files)


def _load(path: Path, shape: tuple[int, int], kind: np.dtype) -> np.ndarray:
    """An array of a file, read where it is needed. Raises CheckpointError where it is of another shape or type."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise damaged(path) from error
    if array.shape != shape or array.dtype != kind or not array.flags.c_contiguous:
        raise damaged(path)
    return array


def damaged(path: Path) -> CheckpointError:
    """The error for a file that is not what was written."""
    return CheckpointError(f"{path}: is not what was written; {AGAIN}")


# ---- writing


def write_index(
    folder: Path,
    embeddings: np.ndarray,
    tickets: Sequence[Ticket],
    words: WordIndex | None,
    contents: dict[str, Any],
    kept: EmbeddingType | None = None,
) -> Contents:
    """Replace the index of a folder in one step, then remove the files of the old one.

    Args:
        embeddings: [N, ...] as `kept` has encoded them.
        contents: the fields of `Contents` but for `files`, `tickets`, `dims` and `type`.
        kept: None: as they are, float32.

    Raises StorageError: the file system refused; the old index is untouched.
    """
    kept = kept or EmbeddingType("float32", embeddings.shape[1])
    files = {
        "embeddings": _write(folder, "embeddings", lambda file: np.lib.format.write_array(file, embeddings)),
        "tickets": _write(folder, "tickets", lambda file: _write_tickets(file, tickets)),
    }
    if (ranges := kept.ranges) is not None:
        files["ranges"] = _write(folder, "ranges", lambda file: np.lib.format.write_array(file, ranges))
    if words is not None:
        files["words"] = _write(folder, "words", lambda file: file.write(safetensors.numpy.save(words.arrays())))
    whole = Contents(tickets=len(tickets), dims=kept.dims, type=kept.name, files=files, **contents)
    record = asdict(whole)
    write_json(folder / CONTENTS, record | {"sha256": _checksum(record)})
    for path in folder.iterdir():
        if NAME.fullmatch(path.name) and path.name not in {file["name"] for file in files.values()}:
            with suppress(FileNotFoundError):
                path.unlink()
    return whole


def _write(folder: Path, kind: str, write: Callable[[BinaryIO], object]) -> dict[str, Any]:
    """Write a file under the name that its content gives it; name, size and SHA-256."""
    temporary = folder / f".{kind}.{os.getpid()}{DEBRIS}"
    try:
        make_folder(folder)
        with temporary.open("wb") as file:
            write(file)
        sync(temporary)
        sealed = seal(temporary)
        name = f"{kind}-{sealed['sha256'][:16]}.{ENDINGS[kind]}"
        temporary.replace(folder / name)
        sync(folder)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StorageError(f"{temporary}: cannot write: {error.strerror or error}") from error
    return {"name": name, **sealed}


def _write_tickets(file: BinaryIO, tickets: Sequence[Ticket]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    csv.writer(text, lineterminator="\n").writerows([HEADER, *tickets])
    text.detach()


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def identity(model: EmbeddingConditions, dims: int) -> str:
    """What makes embeddings interchangeable: a short name for a model at a width."""
    values = [getattr(model, field.name) for field in fields(model)]
    return hashlib.sha256(json.dumps([values, dims]).encode()).hexdigest()[:16]
