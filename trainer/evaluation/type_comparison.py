"""What a search loses where embeddings are kept at fewer dims, or in fewer bytes: a table to choose from.

Legend: U texts of a corpus, Q queries, E embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Table
from scipy.sparse import csr_matrix

from trainer.evaluation.search import SearchTask, search
from trainer.evaluation.search_scores import EmbeddingScores
from trainer.evaluation.search_set import SearchedTexts, task_of
from trainer.model.embedding import sides
from trainer.model.embedding_types import TYPES, EmbeddingType, Float, unit_prefixes
from trainer.system.console import console

NEAREST = 10
MOST_QUERIES = 1000  # drawn from more: they tell a share to three points
QUERIES_AT_ONCE = 256
HEADINGS = ("dims", "type", "bytes a ticket", "success@10", "recall@10")
MEANING = (
    "recall@10: of the ten texts that are nearest by float32 at {width} dims, how many are among the ten found (copies "
    "tie, so that float32 may miss one); "
    "success@10: how often a known duplicate is among them. `trainer index --dims N --type TYPE` keeps tickets so."
)


def compare_types(searched: SearchedTexts, embeddings: np.ndarray, dims: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each of TYPES at each dim, the most bytes first: "dims", "type", "bytes", "success@10", "recall@10".

    Example::

        compare_types(searched, embeddings, (384, 64))[0]["recall@10"]      # 1.0: float32 at the largest dim

    Args:
        embeddings: of the different texts, as `SearchedTexts.search` takes them.
    """
    corpus, task = searched.corpus, task_of(searched.corpus)
    first, second = sides(embeddings, searched.count)
    drawn = np.sort(np.random.default_rng(0).permutation(len(corpus.queries))[:MOST_QUERIES])
    asking, found = first[searched.place[corpus.queries[drawn]]], second[searched.place]
    limits = task.limits[drawn] if task.limits is not None else None
    by_duplicates = SearchTask(task.relevant[drawn], task.excluded[drawn], limits)
    by_nearest = _nearest(asking, found, max(dims), by_duplicates)
    rows = []
    for dim in sorted(dims, reverse=True):
        queries, texts = unit_prefixes(asking, dim), unit_prefixes(found, dim)
        for name in TYPES:
            kept = EmbeddingType.fit(name, texts)
            scores = EmbeddingScores(queries, kept.decode(kept.encode(texts)), (dim,))
            about = f"Search at {dim} dims, {name}"
            success, recall = (
                float(search(scores, task, about)[f"{metric}@{NEAREST}"].mean())
                for metric, task in (("success", by_duplicates), ("recall", by_nearest))
            )
            sizes = {"dims": dim, "type": name, "bytes": kept.bytes_each}
            rows.append(sizes | {f"success@{NEAREST}": success, f"recall@{NEAREST}": recall})
    return rows


def _nearest(queries: Float, texts: Float, dim: int, task: SearchTask) -> SearchTask:
    """The same search, where right are the NEAREST by brute force [Q, U] in float32 at a dim, or all there are."""
    asking, found = (torch.from_numpy(unit_prefixes(rows, dim)) for rows in (queries, texts))
    count, (size, width) = min(NEAREST, len(found)), task.excluded.shape
    rows, columns = [], []
    for start in range(0, size, QUERIES_AT_ONCE):
        block = task.block(start, min(start + QUERIES_AT_ONCE, size))
        cosines = asking[start : start + QUERIES_AT_ONCE] @ found.T
        cosines[torch.from_numpy(block.barred_rows), torch.from_numpy(block.barred_columns)] = -torch.inf
        cosines.masked_fill_(torch.arange(width) >= torch.from_numpy(block.limits)[:, None], -torch.inf)
        values, places = cosines.topk(count, dim=1)
        at, nth = values.isfinite().nonzero(as_tuple=True)
        rows.append(start + at.numpy())
        columns.append(places[at, nth].numpy())
    links = np.concatenate(rows), np.concatenate(columns)
    right = csr_matrix((np.ones(len(links[0]), dtype=np.bool_), links), shape=(size, width))
    return SearchTask(right, task.excluded, task.limits)


def cells_of(row: Mapping[str, Any]) -> list[str]:
    """A row as HEADINGS has it."""
    figures = (f"{row[f'{metric}@{NEAREST}']:.4f}" for metric in ("success", "recall"))
    return [str(row["dims"]), row["type"], f"{row['bytes']:,}", *figures]


def print_types(rows: Sequence[Mapping[str, Any]]) -> None:
    """Show the table."""
    table = Table(title="embeddings in an index", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "type" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*cells_of(row))
    console.print(table)
    console.print(meaning(rows), markup=False)


def types_in_markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of the table for a model card, with what it means."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---:|---|---:|---:|---:|"]
    return [*lines, *(f"| {' | '.join(cells_of(row))} |" for row in rows), "", meaning(rows)]


def meaning(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the table's figures are."""
    return MEANING.format(width=max(row["dims"] for row in rows))
