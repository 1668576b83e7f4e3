"""What the loss sees of a batch: which texts are encoded where, who is a candidate for whom, and who is masked.

A positive row's text1 is a query and its text2 the query's target. A negative row only ever adds a candidate: the
other side where one of its texts is a query of the batch, else its text2. So a label-0 pair cannot be a target.

Where the encoder has a prompt for each side, a text is two: one as a query, one as a candidate, which are encoded apart
and still count as copies of each other.

Shapes: U texts encoded on all ranks together, Q queries of this rank, G candidates, P labelled pairs, B rows a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from trainer.data.false_negatives import Guide
from trainer.data.pairs import PairTable, negatives_of, soft_targets


@dataclass(frozen=True)
class BatchLayout:
    """Positions in the gathered embeddings [U, E], rank after rank.

    What comes of a row is where the row's own rank encodes it; a candidate that several ranks encode is the first's.
    """

    texts: tuple[np.ndarray, ...]  # text ids that each rank encodes, each once
    queries: Tensor  # [Q] of this rank
    candidates: Tensor  # [G] of all ranks
    targets: Tensor  # [Q] into candidates
    # [Q, K] into candidates: the query's own copies and known positives, and probable false negatives; filled with -1.
    excluded: Tensor
    total_queries: int  # of all ranks
    false_negatives: int  # how many of `excluded` are there as such alone
    pair1: Tensor  # [P] every labelled pair of the global batch
    pair2: Tensor  # [P]
    pair_labels: Tensor  # [P] bool
    pair_teacher: Tensor  # [P] fp32, what a teacher, or a graded label, says of each pair; NaN for nothing
    pair_groups: Tensor  # [P] from 0: which of these scores are comparable

    @property
    def counts(self) -> tuple[int, ...]:
        """How many texts each rank encodes."""
        return tuple(map(len, self.texts))


class LayoutBuilder:
    """Lays out batches of one pair table. The known positives of the whole table count, not only the batch's."""

    def __init__(
        self,
        table: PairTable,
        known_positives: sparse.csr_matrix,
        *,
        rank: int,
        all_pairs: bool,
        two_prompts: bool = False,
        guide: Guide | None = None,
        teacher_scale: float = 1.0,
    ) -> None:
        """
        Args:
            known_positives: [C, C] bool over canonical texts, symmetric.
            all_pairs: encode both sides of every negative row, as terms over pairs need; else only its candidate.
            two_prompts: the encoder has a prompt for each side; text ids are then those of `PairTable.with_sides`.
            guide: tells probable false negatives, which are masked unless they are labelled negative.
            teacher_scale: how much a teacher's scores differ where cosines should differ by 1.
        """
        self.table, self.rank, self.all_pairs = table.with_sides() if two_prompts else table, rank, all_pairs
        self.second_side = len(table.texts) if two_prompts else 0  # added to a first text's id
        self.related = related_of(known_positives)
        self.guide, self.negatives = guide, negatives_of(table)
        self.teacher = soft_targets(table, teacher_scale)

    def build(self, ranks: list[np.ndarray]) -> BatchLayout:
        """Lay out a global batch, given as the rows [B] of each rank."""
        table = self.table
        rows = np.concatenate(ranks)
        positive = table.label[rows]
        query_texts, target_texts = table.text1[rows[positive]], table.text2[rows[positive]]
        candidate_texts = candidates_of(table, rows, self.second_side)

        encoded = []
        for part in ranks:
            needed = [candidate_texts[np.isin(rows, part)], table.text1[part][table.label[part]]]
            if self.all_pairs:
                needed += [table.text1[part], table.text2[part]]
            encoded.append(np.unique(np.concatenate(needed)))
        positives = [part[table.label[part]] for part in ranks]
        unique_candidates = np.unique(candidate_texts)
        encoded_once, first_place = np.unique(np.concatenate(encoded), return_index=True)
        first = sum(map(len, positives[: self.rank]))
        of_rank = slice(first, first + len(positives[self.rank]))
        pairs = ranks if self.all_pairs else [part[:0] for part in ranks]
        own_queries, own_targets = query_texts[of_rank], target_texts[of_rank]
        excluded, false_negatives = self._excluded(own_queries, own_targets, unique_candidates)
        return BatchLayout(
            texts=tuple(encoded),
            queries=_positions(encoded, table.text1, positives)[of_rank],
            candidates=torch.from_numpy(first_place[np.searchsorted(encoded_once, unique_candidates)]),
            targets=torch.from_numpy(np.searchsorted(unique_candidates, own_targets)),
            excluded=excluded,
            total_queries=len(query_texts),
            false_negatives=false_negatives,
            pair1=_positions(encoded, table.text1, pairs),
            pair2=_positions(encoded, table.text2, pairs),
            pair_labels=torch.from_numpy(table.label[np.concatenate(pairs)]),
            pair_teacher=torch.from_numpy(self.teacher[np.concatenate(pairs)]).float(),
            pair_groups=torch.from_numpy(np.unique(table.teacher_group[np.concatenate(pairs)], return_inverse=True)[1]),
        )

    def _excluded(self, queries: np.ndarray, targets: np.ndarray, candidates: np.ndarray) -> tuple[Tensor, int]:
        """Which candidates are copies or known positives of each query, or probable false negatives beside its target:
        [queries, the most of any], filled with -1. And how many are the last alone."""
        canonical = self.table.canonical
        sides = canonical[queries], canonical[candidates]
        excluded, false_negatives = related_among(self.related, *sides), 0
        if self.guide is not None:
            known = excluded + related_among(self.negatives, *sides)
            nearer = self.guide.false_negatives(queries, targets, candidates, known)
            excluded, false_negatives = excluded + nearer, nearer.nnz
        counts = np.diff(excluded.indptr)
        columns = np.full((len(queries), counts.max(initial=0)), -1)
        columns[np.arange(columns.shape[1]) < counts[:, None]] = excluded.indices
        return torch.from_numpy(columns), false_negatives


def candidates_of(table: PairTable, rows: np.ndarray, second_side: int = 0) -> np.ndarray:
    """[B] the text that each of a batch's rows [B] adds as a candidate for its queries, the first texts of positives:
    its second text, but of a negative whose second text alone is a query its first (plus `second_side`)."""
    first, second, positive = table.text1[rows], table.text2[rows], table.label[rows]
    queries = table.canonical[first[positive]]
    swapped = ~positive & np.isin(table.canonical[second], queries) & ~np.isin(table.canonical[first], queries)
    return np.where(swapped, first + second_side, second)


def related_of(known_positives: sparse.csr_matrix) -> sparse.csr_matrix:
    """[C, C] which canonical texts are no negatives of each other: known positives, and each of itself."""
    return known_positives + sparse.identity(known_positives.shape[0], bool, "csr")


def related_among(related: sparse.csr_matrix, queries: np.ndarray, candidates: np.ndarray) -> sparse.csr_matrix:
    """[Q, G] the part of a relation [C, C] between queries [Q] and candidates [G], both by their canonical numbers."""
    placed = np.ones(len(candidates), bool), (candidates, np.arange(len(candidates)))
    return related[queries] @ sparse.csr_matrix(placed, shape=(related.shape[0], len(candidates)))


def _positions(encoded: Sequence[np.ndarray], texts: np.ndarray, rows: Sequence[np.ndarray]) -> Tensor:
    """Where each rank encodes the texts [N] of its rows, rank after rank."""
    starts = accumulate(map(len, encoded), initial=0)
    parts = zip(starts, encoded, rows, strict=False)
    return torch.from_numpy(np.concatenate([start + np.searchsorted(ids, texts[part]) for start, ids, part in parts]))
