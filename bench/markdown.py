"""What the tables of all pages are written with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], record: dict[str, Any], said: str, left: int = 1
) -> list[str]:
    """Lines of a table and, under it, what it was measured on.

    Args:
        record: that its figures come from.
        said: what else a reader must know.
        left: columns of words; those after them are of numbers.
    """
    aligned = ["---" if column < left else "---:" for column in range(len(headings))]
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (headings, *rows)]
    return [lines[0], f"|{'|'.join(aligned)}|", *lines[1:], "", source(record, said)]


def source(record: dict[str, Any], said: str) -> str:
    """What a record was measured on, in a line."""
    env = record["environment"]
    threads = f"{env['threads']} thread{'s' if env['threads'] > 1 else ''}"
    where = env["gpu"] or f"{env['processor']}, {threads} of {env['cores']} cores"
    packages = env["packages"]
    return f"{said}; {where}; torch {packages['torch']}, transformers {packages['transformers']}; {env['date'][:10]}."


def change(before: float, after: float) -> str:
    """Two values and their difference."""
    return f"{before:.4f} → {after:.4f} ({after - before:+.4f})"


def mebibytes(count: float) -> str:
    """Bytes in words."""
    return f"{count / 2**20:,.0f} MiB"
