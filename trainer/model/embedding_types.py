"""Embeddings in fewer bytes: as float16, as int8 between the ends of each coordinate, or as the sign of each alone.

What is kept is compared with queries in float32, so only one side of a cosine loses anything. Of signs that is what
others call rescoring, here of all rows and not of those alone that differ in few bits.

Legend: N embeddings of length 1, E dims.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Float = NDArray[np.float32]

TYPES = ("float32", "float16", "int8", "binary")
KINDS = dict(zip(TYPES, map(np.dtype, ("float32", "float16", "int8", "uint8")), strict=True))
STEPS = 255  # between the ends of a coordinate, as many as int8 has
ROWS_AT_ONCE = 2048  # stay in a core's own cache between decoding and product


def unit_prefixes(rows: NDArray[Any], dims: int) -> Float:
    """[N, dims] of embeddings [N, W]: cut, and brought to length 1; zeros stay."""
    prefixes = rows[:, :dims].astype(np.float32)
    lengths = np.linalg.norm(prefixes, axis=1, keepdims=True)
    prefixes /= np.where(lengths > 0, lengths, 1)
    return prefixes


@dataclass(frozen=True, eq=False)
class EmbeddingType:
    """How embeddings are kept.

    Example::

        kept = EmbeddingType.fit("int8", rows)
        stored = kept.encode(rows)              # [N, E] int8
        kept.decode(stored)                     # [N, E] float32, each coordinate at most half a step off
        kept.dots(stored, query)                # [N]
    """

    name: str
    """One of TYPES."""
    dims: int
    """E."""
    ranges: Float | None = None
    """[2, E] the lowest and the highest value of each coordinate that int8 can tell; None for other types."""

    @classmethod
    def fit(cls, name: str, rows: Float) -> EmbeddingType:
        """A type for embeddings like these [N, E], at least one: int8 reaches as far as their coordinates do."""
        ranges = np.stack([rows.min(axis=0), rows.max(axis=0)]) if name == "int8" else None
        return cls(name, rows.shape[1], ranges)

    @property
    def columns(self) -> int:
        """Of what is kept: a number a coordinate, or a byte for eight."""
        return -(-self.dims // 8) if self.name == "binary" else self.dims

    @property
    def bytes_each(self) -> int:
        """Bytes of an embedding."""
        return KINDS[self.name].itemsize * self.columns

    def encode(self, rows: Float) -> NDArray[Any]:
        """What is kept of embeddings [N, E]. Coordinates beyond the ranges become their ends."""
        if self.name == "binary":
            return np.packbits(rows > 0, axis=1)
        if self.ranges is None:
            return rows.astype(KINDS[self.name])
        low, step = self._scale()
        steps = np.clip(np.rint((rows - low) / step), 0, STEPS)
        return (steps - 128).astype(np.int8)

    def decode(self, stored: NDArray[Any]) -> Float:
        """Embeddings [N, E] again, of a length near 1. What is decoded is encoded as it was."""
        if self.name == "binary":
            signs = np.unpackbits(stored, axis=1, count=self.dims).astype(np.float32)
            return (2 * signs - 1) / np.float32(np.sqrt(self.dims))
        if self.ranges is None:
            return _as_float32(stored)
        low, step = self._scale()
        return (stored.astype(np.float32) + 128) * step + low

    def dots(self, stored: NDArray[Any], query: Float) -> Float:
        """[N] products of what is kept, decoded, with a query [E]."""
        if self.name == "float32":
            product: Float = stored @ query
            return product
        dots = np.empty(len(stored), dtype=np.float32)
        weights, offset = query, np.zeros((), dtype=np.float32)
        if self.ranges is not None:
            low, step = self._scale()
            weights, offset = step * query, np.asarray((128 * step + low) @ query)
        tables = self._sums_by_byte(query) if self.name == "binary" else None
        for start in range(0, len(stored), ROWS_AT_ONCE):
            rows = stored[start : start + ROWS_AT_ONCE]
            if tables is None:
                dots[start : start + ROWS_AT_ONCE] = _as_float32(rows) @ weights + offset
            else:
                parts = (of_byte.take(column) for of_byte, column in zip(tables, rows.T, strict=True))
                dots[start : start + ROWS_AT_ONCE] = sum(parts)
        return dots

    def clipped(self, rows: Float) -> int:
        """How many coordinates of embeddings [N, E] lie beyond the ranges by more than a step."""
        if self.ranges is None:
            return 0
        low, step = self._scale()
        places = (rows - low) / step
        return int(((places < -1) | (places > STEPS + 1)).sum())

    def _sums_by_byte(self, query: Float) -> Float:
        """[columns, 256] what each value of each byte of signs adds to the product with a query."""
        padded = np.zeros(8 * self.columns, dtype=np.float32)
        padded[: self.dims] = query / np.float32(np.sqrt(self.dims))
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32)
        sums: Float = padded.reshape(-1, 8) @ (2 * bits - 1).T
        return sums

    def _scale(self) -> tuple[Float, Float]:
        """[E] the lowest value of each coordinate, and the size of its steps: 1 where it has one value only."""
        assert self.ranges is not None
        low, high = self.ranges
        step = (high - low) / np.float32(STEPS)
        return low, np.where(step > 0, step, np.float32(1))


def _as_float32(rows: NDArray[Any]) -> Float:
    if rows.dtype == np.float16:  # numpy takes ten times as long
        wide: Float = torch.from_numpy(np.array(rows)).float().numpy()
        return wide
    return rows.astype(np.float32)
