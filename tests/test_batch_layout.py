"""What the loss sees of a batch, against a slow and literal reading of the rules."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from trainer.config import LossConfig
from trainer.data import false_negatives
from trainer.data.batch_layout import LayoutBuilder
from trainer.data.false_negatives import ROUNDING, Guide
from trainer.data.pairs import PairTable, pairs_from_columns, positives_of
from trainer.loss.objective import batch_loss


def table(rows) -> PairTable:
    first, second, labels = zip(*rows, strict=True)
    return pairs_from_columns({"texts1": list(first), "texts2": list(second), "labels": list(labels)}, "pairs.json")


def builder(pairs: PairTable, rank: int = 0, all_pairs: bool = False) -> LayoutBuilder:
    return LayoutBuilder(pairs, positives_of(pairs), rank=rank, all_pairs=all_pairs)


def names(pairs: PairTable, layout) -> dict[str, list[str]]:
    """The layout in words: which text each index of the gathered embeddings is."""
    texts = np.concatenate(layout.texts)
    return {key: [pairs.texts[texts[i]] for i in getattr(layout, key)] for key in ("queries", "candidates")}


# Few texts, in several spellings, so that copies, known positives and shared anchors are common.
spellings = st.builds(lambda n, form: [f"T {n}", f"t  {n}", f" T {n}"][form], st.integers(0, 9), st.integers(0, 2))
random_rows = st.lists(st.tuples(spellings, spellings, st.integers(0, 1)), min_size=4, max_size=24)


def numbers(row: torch.Tensor) -> list[int]:
    """A row of excluded columns, in order and without its filling, each of them once."""
    found = sorted(row[row >= 0].tolist())
    assert len(set(found)) == len(found)
    return found


def same(a: str, b: str) -> bool:
    return " ".join(a.lower().split()) == " ".join(b.lower().split())


@settings(max_examples=80, deadline=None)
@given(random_rows, st.integers(1, 3), st.booleans())
def test_layout_follows_the_rules(rows, world_size, all_pairs):
    rows = rows[: len(rows) - len(rows) % world_size]
    pairs = table(rows)
    shares = np.array_split(np.arange(len(rows)), world_size)
    known = [(a, b) for a, b, label in rows if label]

    def related(a, b):
        return same(a, b) or any((same(a, x) and same(b, y)) or (same(a, y) and same(b, x)) for x, y in known)

    for rank, share in enumerate(shares):
        layout = builder(pairs, rank, all_pairs).build(list(shares))
        found = names(pairs, layout)
        positives = [rows[row] for row in share if rows[row][2]]
        assert found["queries"] == [a for a, _, _ in positives]
        assert [found["candidates"][t] for t in layout.targets] == [b for _, b, _ in positives]
        assert len(set(found["candidates"])) == len(found["candidates"])
        for i, query in enumerate(found["queries"]):
            known_to_it = [j for j, candidate in enumerate(found["candidates"]) if related(query, candidate)]
            assert numbers(layout.excluded[i]) == known_to_it
        for row in range(len(rows)):  # every row brings a candidate, one of its own texts
            a, b, label = rows[row]
            assert b in found["candidates"] or (not label and a in found["candidates"])
        assert [len(set(texts.tolist())) for texts in layout.texts] == [len(texts) for texts in layout.texts]
        assert layout.total_queries == sum(label for _, _, label in rows)
        assert len(layout.pair_labels) == (len(rows) if all_pairs else 0)
        texts = np.concatenate(layout.texts)
        if all_pairs:
            assert [pairs.texts[texts[i]] for i in layout.pair1] == [a for a, _, _ in rows]
            assert [pairs.texts[texts[i]] for i in layout.pair2] == [b for _, b, _ in rows]


def test_a_layout_takes_room_that_grows_with_the_batch_and_not_with_its_square():
    count = 20_000
    rows = [(f"text {i % (count // 2)}", f"answer {i}", 1) for i in range(count)]  # two known positives each
    pairs = table(rows)
    builds = builder(pairs)
    tracemalloc.start()
    layout = builds.build([np.arange(count)])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert layout.excluded.shape == (count, 2) and most < count**2 / 10


def test_a_negative_of_a_query_on_its_right_side_brings_its_left_side():
    pairs = table([("anchor", "match", 1), ("look-alike", "anchor", 0), ("left", "right", 0)])
    found = names(pairs, builder(pairs).build([np.arange(3)]))
    assert sorted(found["candidates"]) == ["look-alike", "match", "right"]
    # As a candidate it has the prompt of one, as those that stand on the right side do.
    layout = guided(pairs, None, two_prompts=True).build([np.arange(3)])
    assert all(layout.texts[0][layout.candidates] >= len(pairs.texts))


TWO_DIMS = LossConfig(dims=(8, 4))


def objective_gradient(rows, embeddings, loss=TWO_DIMS, unmask=False):
    """d loss / d embeddings of the batch of all rows, by text."""
    pairs = table(rows)
    layout = builder(pairs, all_pairs=loss.pair_weight > 0).build([np.arange(len(rows))])
    if unmask:
        layout.excluded[:] = -1
    texts = [pairs.texts[t] for t in layout.texts[0]]
    x = torch.stack([embeddings[text] for text in texts]).requires_grad_()
    batch_loss(loss, x, layout).total.backward()
    return dict(zip(texts, x.grad, strict=True))


@pytest.mark.parametrize("pair_weight", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_label_0_never_attracts(seed, pair_weight):
    """A small step of a labelled negative's text against its gradient takes it away from its anchor."""
    torch.manual_seed(seed)
    embeddings = {text: torch.randn(8).double() for text in ("a", "p", "n")}
    rows = [("a", "p", 1), ("a", "n", 0)]
    loss = LossConfig(dims=(8,), pair_weight=pair_weight)
    gradient = objective_gradient(rows, embeddings, loss)

    def cosine_after(step, only):
        moved = {t: embeddings[t] - step * gradient[t] if t in only else embeddings[t] for t in embeddings}
        return torch.cosine_similarity(moved["a"], moved["n"], dim=0)

    assert cosine_after(1e-4, {"n"}) < cosine_after(0, {"n"})
    # Negative control: with the labels swapped it is pulled towards it.
    gradient = objective_gradient([("a", "p", 0), ("a", "n", 1)], embeddings, loss)
    assert cosine_after(1e-4, {"n"}) > cosine_after(0, {"n"})


def test_copies_and_known_positives_are_not_pushed_away():
    torch.manual_seed(0)
    rows = [("A", "p", 1), ("b", "a ", 1), ("A", "other match", 1), ("c", "d", 1)]
    embeddings = {text: torch.randn(8).double() for row in rows for text in row[:2]}
    only_a = [*rows[:1], *rows[3:]]
    pairs = table(rows)
    layout = builder(pairs).build([np.arange(4)])
    found = names(pairs, layout)
    row = found["queries"].index("A")
    excluded = {found["candidates"][j] for j in numbers(layout.excluded[row])}
    assert excluded == {"p", "a ", "other match"}  # its target is listed, and kept by the loss
    assert set(objective_gradient(only_a, embeddings)) == {"A", "p", "c", "d"}
    # Negative control: without the mask the copy of the query gets a gradient from the query's row.
    honest, broken = (objective_gradient(rows, embeddings, unmask=unmask)["other match"] for unmask in (False, True))
    assert not torch.allclose(honest, broken)


def test_what_a_teacher_says_goes_with_its_pairs():
    """Margins among the rows of their anchor, scores among all; graded labels where there is no teacher."""
    triplets = {"anchor": ["a", "b"], "positive": ["p", "q"], "negative": [["n", "m"], ["o"]]}
    by_margin = pairs_from_columns({**triplets, "margin": [[4.0, 1.0], [2.0]]})
    by_score = pairs_from_columns({**triplets, "pos_scores": [9.0, 8.0], "neg_scores": [[5.0, 8.0], [6.0]]})
    order, found = np.array([3, 1, 4, 0, 2]), []
    for pairs in (by_margin, by_score):
        layout = builder(pairs, all_pairs=True).build([order[:2], order[2:]])
        found.append((layout.pair_teacher.tolist(), layout.pair_groups.tolist()))
    assert found == [([0, -4, -2, 0, -1], [1, 0, 1, 0, 0]), ([8, 5, 6, 9, 8], [0] * 5)]
    graded = pairs_from_columns({"text1": ["a", "b"], "text2": ["c", "d"], "label": [4.0, 0.0]}, label_scale=5.0)
    assert builder(graded, all_pairs=True).build([np.arange(2)]).pair_teacher.tolist() == pytest.approx([0.8, 0.0])

    def gradient(weight, pairs):
        loss = LossConfig(dims=(8, 4), distillation_weight=weight)
        rows = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        layout = builder(pairs, all_pairs=True).build([np.arange(5)])
        batch_loss(loss, rows[: layout.counts[0]], layout).total.backward()
        return rows.grad

    plain, learned = gradient(0.0, by_margin), gradient(1.0, by_margin)
    assert not torch.allclose(plain, learned)
    torch.testing.assert_close(gradient(1.0, pairs_from_columns(triplets)), plain)  # nobody says anything


# ---- probable false negatives


def guided(pairs: PairTable, guide: Guide | None, rank: int = 0, two_prompts: bool = False) -> LayoutBuilder:
    known = positives_of(pairs)
    return LayoutBuilder(pairs, known, rank=rank, all_pairs=False, two_prompts=two_prompts, guide=guide)


def random_guide(texts: int, margin: float, seed: int) -> Guide:
    embeddings = torch.randn(texts, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Guide(torch.nn.functional.normalize(embeddings), margin)


@settings(max_examples=40, deadline=None)
@given(random_rows, st.integers(1, 3), st.booleans(), st.floats(-0.5, 0.5), st.integers(0, 2**32 - 1))
def test_the_guide_follows_the_rules(rows, world_size, two_prompts, margin, seed):
    rows = rows[: len(rows) - len(rows) % world_size]
    pairs = table(rows)
    shares = np.array_split(np.arange(len(rows)), world_size)
    guide = random_guide(len(pairs.texts) * (1 + two_prompts), margin, seed)
    second_side = len(pairs.texts) if two_prompts else 0

    def labelled(a, b, wanted):
        return any(
            label == wanted and ((same(a, x) and same(b, y)) or (same(a, y) and same(b, x))) for x, y, label in rows
        )

    def is_near(text, other, target):
        to_other, to_target = (float(guide.embeddings[text] @ guide.embeddings[i]) for i in (other, target))
        return to_other > to_target - margin - ROUNDING

    def expected(text, target, others):
        """Of text ids: who is masked for `text`, in a slow and literal reading."""
        masked, count = [], 0
        for j, other in enumerate(others):
            a, b = (pairs.texts[i % len(pairs.texts)] for i in (text, other))
            if same(a, b) or labelled(a, b, 1):
                masked.append(j)
            elif is_near(text, other, target) and not labelled(a, b, 0):
                masked.append(j)
                count += 1
        return masked, count

    for rank, share in enumerate(shares):
        layout = guided(pairs, guide, rank, two_prompts).build(list(shares))
        texts = np.concatenate(layout.texts)
        candidates = [texts[i] for i in layout.candidates]
        masked = 0
        for i, row in enumerate(row for row in share if pairs.label[row]):
            query, target = pairs.text1[row], pairs.text2[row] + second_side
            listed, count = expected(query, target, candidates)
            assert numbers(layout.excluded[i]) == listed
            masked += count
        assert layout.false_negatives == masked


def test_a_labelled_negative_is_never_masked_whatever_the_guide_says():
    rows = [("a", "p", 1), ("a", "n", 0), ("m", "a", 0), ("c", "d", 1)]
    pairs = table(rows)
    direction = torch.nn.functional.normalize(torch.randn(len(pairs.texts), 4) * 0.1 + torch.ones(4))
    layout = guided(pairs, Guide(direction, 1.0)).build([np.arange(4)])  # to it all are alike
    found = names(pairs, layout)
    masked = [{found["candidates"][j] for j in numbers(row)} for row in layout.excluded]
    assert masked == [{"p", "d"}, {"n", "m", "p", "d"}] and layout.false_negatives == 1 + 3
    # Negative control: without their labels they are masked.
    pairs = table([row for row in rows if row[2]] + [("x", "n", 0), ("m", "y", 0)])
    layout = guided(pairs, Guide(torch.ones(len(pairs.texts), 1), 1.0)).build([np.arange(4)])
    assert layout.false_negatives == 2 * 3


@pytest.mark.parametrize("most", [1, 3, 6])
def test_bands_and_the_most_of_a_query_keep_the_nearest(most, monkeypatch):
    """In bands of one query and a few, against a sort of each row."""
    generator = torch.Generator().manual_seed(most)
    queries = torch.randn(7, 4, dtype=torch.float64, generator=generator)
    candidates = torch.randn(11, 4, dtype=torch.float64, generator=generator)
    thresholds, known = torch.randn(7, dtype=torch.float64, generator=generator), np.eye(7, 11, dtype=bool)
    expected = np.zeros((7, 11), bool)
    for i in range(7):
        dots = [(float(queries[i] @ candidates[j]), j) for j in range(11) if i != j]
        near = sorted((dot, j) for dot, j in dots if dot > float(thresholds[i]))
        expected[i, [j for _, j in near[-most:]]] = True
    for band in (1, 25, 2**24):
        monkeypatch.setattr(false_negatives, "BAND", band)
        found = false_negatives.nearest_above(queries, candidates, thresholds, sparse.csr_matrix(known), most)
        assert np.array_equal(found.toarray(), expected)
    assert expected.sum() < 7 * 10 and expected.sum(1).max() == most  # some are not near, and the most is reached


def test_what_the_guide_masks_gets_no_gradient():
    torch.manual_seed(0)
    rows = [("a", "p", 1), ("b", "q", 1), ("c", "r", 1)]
    pairs = table(rows)
    guide = Guide(torch.eye(3, dtype=torch.float64)[[0, 0, 1, 1, 2, 2]].clone(), 0.0)
    loss = LossConfig(dims=(8, 4))

    def gradient(guide):
        embeddings = torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        batch_loss(loss, embeddings, guided(pairs, guide).build([np.arange(3)])).total.backward()
        return embeddings.grad

    torch.testing.assert_close(gradient(guide), gradient(None))  # to it nothing but the positives is near
    guide.embeddings[pairs.texts.index("q")] = guide.embeddings[pairs.texts.index("a")]  # as near as a's own
    layout = guided(pairs, guide).build([np.arange(3)])
    assert layout.false_negatives == 1 + 2  # and to b its own is now as far as the other three
    only_a = replace(layout, queries=layout.queries[:1], targets=layout.targets[:1], excluded=layout.excluded[:1])
    embeddings = torch.randn(6, 8, dtype=torch.float64).requires_grad_()
    batch_loss(loss, embeddings, only_a).total.backward()
    touched = {text for text, row in zip(pairs.texts, embeddings.grad, strict=True) if row.abs().max() > 0}
    assert touched == {"a", "p", "r"}
