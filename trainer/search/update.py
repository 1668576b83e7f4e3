"""Make an index of a file of tickets, or bring one up to date: only new and changed texts are embedded.

The work is done in parts of PART texts, the longest texts first. Each part is on disk, with its hash, before the next
begins, and is found again by the hashes of its texts: whatever ends the process, the same command goes on from there.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from trainer.data.identifiers import id_key
from trainer.data.readers import Reading
from trainer.data.ticket_table import Columns
from trainer.errors import InputError, NumericError, StorageError
from trainer.model.embedding_types import KINDS, ROWS_AT_ONCE, EmbeddingType
from trainer.model.encoder import Encoder, embedding_conditions
from trainer.model.loading import load_encoder
from trainer.search.index import load_for, measure_reach
from trainer.search.storage import (
    PARTS,
    Contents,
    Stored,
    Ticket,
    identity,
    is_index,
    read_index,
    require_room,
    write_index,
)
from trainer.search.ticket_texts import Preparation, TicketTexts, read_ticket_texts, require_ids
from trainer.system.console import progress
from trainer.system.files import digest, only_writer, read_cached, remove_debris, write_cached
from trainer.system.gpu import default_device
from trainer.text.bm25 import WordIndex

PART = 512


@dataclass(frozen=True)
class IndexRequest:
    """What is asked of `trainer index`."""

    model: str
    tickets: str
    folder: Path
    columns: Columns = field(default_factory=Columns)
    reading: Reading | None = None
    dims: int | None = None
    """To cut embeddings to; None: as the index has them, else what the model's folder says."""
    type: str | None = None
    """How to keep them, one of `embedding_types.TYPES`; None: as the index has them, else float32."""
    clean: bool | None = None
    """See `Preparation`; None: as the index has it, else True."""
    mask: bool | None = None
    """Likewise, else False."""
    remove: str = ""
    """"COLUMN=VALUE,...": tickets with such a value leave the index, or do not enter it."""
    remove_missing: bool = False
    """Whether tickets that are not in the file leave the index."""


class Update(NamedTuple):
    """What an update came to, in tickets."""

    contents: Contents
    added: int
    changed: int
    unchanged: int
    removed: int
    kept: int
    """That the file does not mention, or has no text of."""
    embedded: int
    """Different texts that were new."""
    resumed: int
    """Of these, embedded before the last stop."""
    facts: dict[str, int]
    """Rows of the file that were left out, by the reason."""
    clipped: float = 0.0
    """The share of coordinates that lie beyond the ranges of int8."""


def update_index(request: IndexRequest) -> Update:
    """Make an index, or bring it up to date.

    Raises:
        InputError: bad tickets or options, no such model, or the index is of another one.
        CheckpointError: a file of the index is not what was written.
        StorageError: the file system refused, or the folder holds other things.
        NumericError: an embedding is NaN or Inf.
    """
    require_room(request.folder)
    with only_writer(request.folder):
        remove_debris(request.folder)
        old = read_index(request.folder) if is_index(request.folder) else None
        preparation = _preparation(request, old)
        if old is None:
            encoder = load_encoder(request.model).to(default_device())
        else:
            encoder = load_for(old.contents, request.model, request.folder)
        dims = _dims(request, old, encoder)
        if old and request.type not in (None, old.contents.type):
            raise InputError(
                f"--type {request.type}: the index {request.folder} has {old.contents.type}; leave --type out, or "
                "index into a new folder"
            )
        tickets = read_ticket_texts(request.tickets, request.columns, preparation, request.reading, request.remove)
        before = list(old.tickets()) if old else []
        merged = _merge(before, require_ids(tickets, request.tickets), request)
        name = str(Path(request.model).resolve()) if Path(request.model).is_dir() else request.model
        if old and _is_up_to_date(old.contents, merged, name):
            return Update(old.contents, *merged[1:6], 0, 0, merged.facts)
        rows, embedded = _embeddings(request.folder / PARTS, before, old, dims, merged.tickets, encoder)
        kept = old.type if old else EmbeddingType.fit(request.type or "float32", rows)
        stored, clipped = _encoded(kept, rows)
        words = WordIndex.of([ticket.text for ticket in merged.tickets]) if find_spec("bm25s") else None
        facts = {"model_name": name, "model": embedding_conditions(encoder), "preparation": preparation}
        facts |= measure_reach(stored, kept=kept)._asdict()
        contents = write_index(request.folder, stored, merged.tickets, words, facts, kept)
        shutil.rmtree(request.folder / PARTS, ignore_errors=True)
        return Update(contents, *merged[1:6], *embedded, merged.facts, clipped)


def _is_up_to_date(contents: Contents, merged: Merged, name: str) -> bool:
    """Whether nothing of an index would be other than it is."""
    has_words = "words" in contents.files or not find_spec("bm25s")
    return has_words and contents.model_name == name and not (merged.added or merged.changed or merged.removed)


def _preparation(request: IndexRequest, old: Stored | None) -> Preparation:
    """How texts are prepared. Raises InputError where the index has it otherwise than is asked for."""
    given = {name: value for name in ("clean", "mask") if (value := getattr(request, name)) is not None}
    if old is None:
        return Preparation(**given)
    there = old.contents.preparation
    if replace(there, **given) != there:
        options = {"clean": f"--texts {'raw' if there.clean else 'clean'}", "mask": "--mask"}
        wrong = next(options[name] for name, value in given.items() if getattr(there, name) != value)
        raise InputError(
            f"{request.folder}: its texts were prepared otherwise than {wrong} says; leave that out, or index "
            "into a new folder"
        )
    return there


def _dims(request: IndexRequest, old: Stored | None, encoder: Encoder) -> int:
    """The length of embeddings. Raises InputError where it cannot be that which is asked for."""
    dims = request.dims or (old.contents.dims if old else encoder.usual_dim)
    if dims > encoder.width:
        raise InputError(f"--dims {dims}: embeddings of {request.model} have {encoder.width}; ask for at most so many")
    if old and old.contents.dims != dims:
        raise InputError(
            f"--dims {dims}: the index {request.folder} has {old.contents.dims}; leave --dims out, or index "
            "into a new folder"
        )
    return dims


class Merged(NamedTuple):
    """The tickets of the new index, and what became of whom."""

    tickets: list[Ticket]
    added: int
    changed: int
    unchanged: int
    removed: int
    kept: int
    facts: dict[str, int]


def _merge(old: Sequence[Ticket], new: TicketTexts, request: IndexRequest) -> Merged:
    """The tickets of the index in their order, brought up to date, then the new ones. Raises InputError for none."""
    merged = {id_key(ticket.id): ticket for ticket in old}
    before = {key: ticket.sha256 for key, ticket in merged.items()}
    given = {
        id_key(name): Ticket(name, hashlib.sha256(text.encode()).hexdigest(), text)
        for name, text in zip(new.ids, new.texts, strict=True)
    }
    merged |= given
    gone = new.closed | (merged.keys() - given.keys() - new.blank if request.remove_missing else set())
    tickets = [ticket for key, ticket in merged.items() if key not in gone]
    if not tickets:
        raise InputError(f"{request.tickets}: no ticket would be left in the index; remove its folder instead")
    same = sum(before.get(key) == ticket.sha256 for key, ticket in given.items())
    changed = len(given.keys() & before.keys()) - same
    removed = len(gone & before.keys())
    kept = len(before.keys() - given.keys() - gone)
    return Merged(tickets, len(given.keys() - before.keys()), changed, same, removed, kept, new.facts)


# ---- embeddings


def _encoded(kept: EmbeddingType, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """[N, ...] what is kept of embeddings [N, E], and the share of coordinates that were clipped."""
    stored = np.empty((len(rows), kept.columns), dtype=KINDS[kept.name])
    clipped = 0
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = rows[start : start + ROWS_AT_ONCE]
        stored[start : start + ROWS_AT_ONCE] = kept.encode(block)
        clipped += kept.clipped(block)
    return stored, clipped / rows.size


def _embeddings(
    folder: Path,
    before: Sequence[Ticket],
    old: Stored | None,
    dims: int,
    tickets: Sequence[Ticket],
    encoder: Encoder,
) -> tuple[np.ndarray, tuple[int, int]]:
    """[N, E] of all tickets, and how many different texts were embedded, and how many of them before the last stop.

    Args:
        folder: of the parts.
        before: the tickets of the old index, none without one.
    """
    known = {ticket.sha256: row for row, ticket in enumerate(before)}
    new = {ticket.sha256: ticket.text for ticket in tickets if ticket.sha256 not in known}
    parts = _Parts(folder, identity(embedding_conditions(encoder), dims), dims)
    finished = {sha256 for path in parts.paths() for sha256 in parts.hashes(path)} & new.keys()
    parts.embed({sha256: text for sha256, text in new.items() if sha256 not in finished}, len(finished), encoder)
    rows = np.empty((len(tickets), dims), dtype=np.float32)
    places = [row for row, ticket in enumerate(tickets) if ticket.sha256 in known]
    for start in range(0, len(places), ROWS_AT_ONCE):
        assert old is not None  # without one nothing is known
        block = places[start : start + ROWS_AT_ONCE]
        rows[block] = old.rows([known[tickets[row].sha256] for row in block])
    by_hash: dict[str, list[int]] = {sha256: [] for sha256 in new}
    for row, ticket in enumerate(tickets):
        if ticket.sha256 in new:
            by_hash[ticket.sha256].append(row)
    parts.fill(rows, by_hash)
    return rows, (len(new), len(finished))


class _Parts:
    """Embeddings of texts, in files of up to PART texts, of one model at one width."""

    def __init__(self, folder: Path, model: str, dims: int) -> None:
        self.folder, self.model, self.dims = folder, model, dims

    def paths(self) -> list[Path]:
        """The files, of which some may be damaged."""
        return sorted(self.folder.glob(f"{self.model}-*.safetensors"))

    def hashes(self, path: Path) -> list[str]:
        """SHA-256 of the texts of a file; [] where it is damaged, which is said."""
        arrays = self._read(path)
        return [bytes(each).hex() for each in arrays["hashes"]] if arrays else []

    def _read(self, path: Path) -> dict[str, np.ndarray] | None:
        arrays = read_cached(path, ("hashes", "rows"), "embedding")
        if arrays and (arrays["hashes"].shape[1:], arrays["rows"].shape[1:]) != ((32,), (self.dims,)):
            return None
        return arrays

    def embed(self, texts: Mapping[str, str], done: int, encoder: Encoder) -> None:
        """Embed texts by their hashes, and keep them. Raises NumericError, StorageError, and as `Encoder.tokenize`."""
        longest_first = sorted(texts, key=lambda sha256: -len(texts[sha256]))
        with progress("Embedding", len(texts) + done, done) as advance:
            for start in range(0, len(longest_first), PART):
                part = longest_first[start : start + PART]
                tokens = encoder.tokenize([texts[sha256] for sha256 in part], (encoder.spec.document_prompt,))
                embeddings = encoder.embed(tokens, advance=advance)[:, : self.dims]
                rows = torch.nn.functional.normalize(embeddings, dim=1).cpu().numpy()
                if not np.isfinite(rows).all():
                    raise NumericError(f"{encoder.spec.name}: embeddings of tickets are not finite; use another model")
                hashes = np.frombuffer(bytes.fromhex("".join(part)), dtype=np.uint8).reshape(-1, 32)
                write_cached(
                    self.folder / f"{self.model}-{digest(hashes)[:16]}.safetensors", {"hashes": hashes, "rows": rows}
                )

    def fill(self, rows: np.ndarray, places: Mapping[str, Sequence[int]]) -> None:
        """Put all embeddings where their texts belong. Raises StorageError where a file has changed since."""
        missing = set(places)
        for path in self.paths() if places else ():
            arrays = self._read(path)
            for each, row in zip(*(arrays["hashes"], arrays["rows"]) if arrays else ((), ()), strict=True):
                sha256 = bytes(each).hex()
                rows[places.get(sha256, [])] = row
                missing.discard(sha256)
        if missing:
            raise StorageError(f"{self.folder}: {len(missing)} embeddings were damaged meanwhile; index again")
