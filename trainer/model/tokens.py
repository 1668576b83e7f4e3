"""Texts to tokens, once: a table of the whole data set that batches are cut from.

`tokenize` makes the table, `tokenize_cached` keeps it on disk for the next run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.model.packing import TokenBatch, pack, ragged_arange
from trainer.system.console import progress
from trainer.system.files import cache_dir, digest, read_cached, write_cached

CHUNK = 2048  # texts handed to the tokenizer at once; it spreads each chunk over the cores


@dataclass(frozen=True)
class TokenTable:
    """The tokens of texts 0..N-1, end to end."""

    ids: np.ndarray  # [T] int32
    offsets: np.ndarray  # [N + 1] int64; text i is ids[offsets[i]:offsets[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, [N] int64."""
        return np.diff(self.offsets)

    def longest(self, texts: int) -> np.ndarray:
        """Tokens of each of N texts, [N] int64: the most of all prompts that it stands after in the table."""
        longest: np.ndarray = self.lengths.reshape(-1, texts).max(axis=0)
        return longest

    def fingerprint(self) -> str:
        """SHA-256 of all tokens: of the texts, the tokenizer and the max length together."""
        return digest(self.ids, self.offsets)

    def batch(self, texts: np.ndarray) -> TokenBatch:
        """The given texts [n] as one packed run."""
        lengths = self.lengths[texts]
        where = np.repeat(self.offsets[texts], lengths) + ragged_arange(lengths)
        return pack(self.ids[where], lengths)

    def chunks(self, texts: np.ndarray, budget: int) -> list[np.ndarray]:
        """Cut positions 0..n-1 of texts [n] into runs of at most `budget` tokens, longest texts first.

        A text longer than the budget is a run alone; a budget of 0 puts all into one.
        """
        if budget == 0:
            return [np.arange(len(texts))]
        lengths = self.lengths[texts]
        descending = np.argsort(-lengths, kind="stable")
        chunks, first, filled = [], 0, 0
        for i, length in enumerate(lengths[descending]):
            if i > first and filled + length > budget:
                chunks.append(descending[first:i])
                first, filled = i, 0
            filled += length
        return [*chunks, descending[first:]]


def tokenize(texts: Sequence[str], tokenizer: Any, max_length: int) -> TokenTable:
    """Tokenise texts, at least one, with special tokens, each cut at `max_length` tokens; shows progress.

    Args:
        tokenizer: a fast tokenizer of transformers.
    """
    ids: list[np.ndarray] = []
    lengths: list[int] = []
    with progress("Tokenising", len(texts)) as advance:
        for start in range(0, len(texts), CHUNK):
            chunk = list(texts[start : start + CHUNK])
            encoded = tokenizer(
                chunk,
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]
            lengths += [len(sequence) for sequence in encoded]
            ids.append(np.concatenate([np.asarray(sequence, dtype=np.int32) for sequence in encoded]))
            advance(len(chunk))
    return TokenTable(np.concatenate(ids), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def tokenize_cached(texts: Sequence[str], tokenizer: Any, max_length: int) -> TokenTable:
    """As `tokenize`, or from the cache where the same texts were tokenised before.

    The cache is keyed by the tokenizer's serialisation, the max length and every text.
    """
    path = cache_dir() / "tokens" / f"{_fingerprint(texts, tokenizer, max_length)}.safetensors"
    arrays = read_cached(path, ("ids", "offsets"), "tokenising")
    if arrays is None:
        arrays = vars(tokenize(texts, tokenizer, max_length))
        write_cached(path, arrays)
    return TokenTable(**arrays)


def _fingerprint(texts: Sequence[str], tokenizer: Any, max_length: int) -> str:
    backend = tokenizer.backend_tokenizer
    # Every call leaves its truncation in the tokenizer, which would give the same texts another key.
    backend.no_truncation()
    backend.no_padding()
    key = [backend.to_str(), tokenizer.truncation_side, max_length, *texts]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()
