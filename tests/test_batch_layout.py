"""What the loss sees of a batch, against a slow and literal reading of the rules."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config import LossConfig
from trainer.data.batch_layout import LayoutBuilder
from trainer.data.pairs import PairTable, pairs_from_columns, positives_of
from trainer.loss.objective import Objective


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

    queries_of_all: list[str] = []
    layouts = []
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
        assert layout.first_query == len(queries_of_all)
        queries_of_all += found["queries"]
        layouts.append((layout, [b for _, b, _ in positives]))
        assert len(layout.pair_labels) == (len(rows) if all_pairs else 0)
        texts = np.concatenate(layout.texts)
        if all_pairs:
            assert [pairs.texts[texts[i]] for i in layout.pair1] == [a for a, _, _ in rows]
            assert [pairs.texts[texts[i]] for i in layout.pair2] == [b for _, b, _ in rows]
    for layout, targets in layouts:
        for i, target in enumerate(targets):
            known_to_it = [j for j, query in enumerate(queries_of_all) if related(target, query)]
            assert numbers(layout.reverse_excluded[i]) == known_to_it


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


TWO_DIMS = LossConfig(dims=(8, 4))


def objective_gradient(rows, embeddings, loss=TWO_DIMS, unmask=False):
    """d loss / d embeddings of the batch of all rows, by text."""
    pairs = table(rows)
    layout = builder(pairs, all_pairs=loss.pair_weight > 0).build([np.arange(len(rows))])
    if unmask:
        layout.excluded[:] = -1
    texts = [pairs.texts[t] for t in layout.texts[0]]
    x = torch.stack([embeddings[text] for text in texts]).requires_grad_()
    Objective(loss)(x, layout).total.backward()
    return dict(zip(texts, x.grad, strict=True))


@pytest.mark.parametrize("pair_weight", [0.0, 1.0])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_label_0_never_attracts(seed, symmetric, pair_weight):
    """A small step of a labelled negative's text against its gradient takes it away from its anchor."""
    torch.manual_seed(seed)
    embeddings = {text: torch.randn(8).double() for text in ("a", "p", "n")}
    rows = [("a", "p", 1), ("a", "n", 0)]
    loss = LossConfig(dims=(8,), symmetric=symmetric, pair_weight=pair_weight)
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


def test_the_scale_learns_only_where_asked():
    assert not [p for p in Objective(LossConfig()).parameters() if p.requires_grad]
    objective = Objective(LossConfig(dims=(8,), learn_scale=True))
    pairs = table([("a", "p", 1), ("b", "q", 1)])
    objective(torch.randn(4, 8), builder(pairs).build([np.arange(2)])).total.backward()
    assert objective.log_scale.grad.abs() > 0 and float(objective.scale.detach()) == pytest.approx(20.0)
