"""What the loss sees of a batch: which texts are encoded where, who is a candidate for whom, and who is masked.

A positive row's text1 is a query and its text2 the query's target. A negative row only ever adds a candidate: the
other side where one of its texts is a query of the batch, else its text2. So a label-0 pair cannot be a target.

Shapes: U texts encoded on all ranks together, Q queries of this rank, G candidates, P labelled pairs, B rows a rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from trainer.pairs import PairTable


@dataclass(frozen=True)
class BatchLayout:
    """Positions in the gathered embeddings [U, E], rank after rank."""

    texts: tuple[np.ndarray, ...]  # text ids that each rank encodes, each once
    queries: Tensor  # [Q] of this rank
    candidates: Tensor  # [G] of all ranks
    targets: Tensor  # [Q] into candidates
    mask: Tensor  # [Q, G] bool: the query's own copies and known positives
    all_queries: Tensor  # of all ranks; rows of the other direction are this rank's targets
    first_query: int  # where this rank's queries stand among all_queries
    reverse_mask: Tensor  # [Q, all queries] bool: the target's own copies and known positives
    pair1: Tensor  # [P] every labelled pair of the global batch
    pair2: Tensor  # [P]
    pair_labels: Tensor  # [P] bool


class LayoutBuilder:
    """Lays out batches of one pair table. The known positives of the whole table count, not only the batch's."""

    def __init__(self, table: PairTable, known_positives: sparse.csr_matrix, *, rank: int, all_pairs: bool) -> None:
        """
        Args:
            known_positives: [C, C] bool over canonical texts, symmetric.
            all_pairs: encode both sides of every negative row, as a pairwise term needs; else only its candidate.
        """
        self.table, self.known_positives, self.rank, self.all_pairs = table, known_positives, rank, all_pairs

    def build(self, ranks: list[np.ndarray]) -> BatchLayout:
        """Lay out a global batch, given as the rows [B] of each rank."""
        table = self.table
        rows = np.concatenate(ranks)
        positive = table.label[rows]
        query_texts, target_texts = table.text1[rows[positive]], table.text2[rows[positive]]
        candidate_texts = self._candidates(rows, positive)

        encoded = []
        for part in ranks:
            needed = [candidate_texts[np.isin(rows, part)], table.text1[part][table.label[part]]]
            if self.all_pairs:
                needed += [table.text1[part], table.text2[part]]
            encoded.append(np.unique(np.concatenate(needed)))
        where = _Finder(np.concatenate(encoded))

        unique_candidates = np.unique(candidate_texts)
        per_rank = [int(table.label[part].sum()) for part in ranks]
        first = sum(per_rank[: self.rank])
        own = slice(first, first + per_rank[self.rank])
        pairs = rows if self.all_pairs else rows[:0]
        return BatchLayout(
            texts=tuple(encoded),
            queries=where(query_texts[own]),
            candidates=where(unique_candidates),
            targets=torch.from_numpy(np.searchsorted(unique_candidates, target_texts[own])),
            mask=self._related(query_texts[own], unique_candidates),
            all_queries=where(query_texts),
            first_query=first,
            reverse_mask=self._related(target_texts[own], query_texts),
            pair1=where(table.text1[pairs]),
            pair2=where(table.text2[pairs]),
            pair_labels=torch.from_numpy(table.label[pairs]),
        )

    def _candidates(self, rows: np.ndarray, positive: np.ndarray) -> np.ndarray:
        """The candidate text of each row."""
        table = self.table
        first, second = table.text1[rows], table.text2[rows]
        anchors = table.canonical[first[positive]]
        swapped = ~positive & np.isin(table.canonical[second], anchors) & ~np.isin(table.canonical[first], anchors)
        return np.where(swapped, first, second)

    def _related(self, texts: np.ndarray, others: np.ndarray) -> Tensor:
        """[texts, others] bool: copies of each other, or known positives."""
        a, b = self.table.canonical[texts], self.table.canonical[others]
        return torch.from_numpy((a[:, None] == b[None, :]) | self.known_positives[a][:, b].toarray())


class _Finder:
    """Positions of text ids in a list of them; the first where one stands twice."""

    def __init__(self, texts: np.ndarray) -> None:
        self.texts, self.first = np.unique(texts, return_index=True)

    def __call__(self, texts: np.ndarray) -> Tensor:
        return torch.from_numpy(self.first[np.searchsorted(self.texts, texts)])
