"""MNRL and the ranking term against the plain definition and against sentence-transformers, in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.loss import tiled
from trainer.loss.cosent import pairwise_ranking
from trainer.loss.distillation import margin_mse
from trainer.loss.matryoshka import matryoshka_mnrl
from trainer.loss.tiled import LEAST, ON_CPU, ON_GPU, tile_shape

pytestmark = pytest.mark.numbers

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def slow_mnrl(queries, candidates, dims, weights, scale, targets, mask):
    """The definition: normalise each prefix, one product a dim, one softmax a row."""
    losses = []
    for dim in dims:
        logits = scale * F.normalize(queries[:, :dim], dim=1) @ F.normalize(candidates[:, :dim], dim=1).T
        rows = []
        for i, target in enumerate(targets.tolist()):
            kept = [j for j in range(len(candidates)) if j == target or not mask[i, j]]
            rows.append(torch.logsumexp(logits[i, kept], 0) - logits[i, target])
        losses.append(torch.stack(rows).mean())
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)), torch.stack(losses)


def slow_ranking(first, second, labels, dims, weights, scale):
    """The definition: every positive against every negative."""
    total = 0.0
    for dim, weight in zip(dims, weights, strict=True):
        cosines = F.cosine_similarity(first[:, :dim], second[:, :dim])
        terms = [torch.zeros((), dtype=first.dtype)]
        terms += [scale * (n - p) for p in cosines[labels] for n in cosines[~labels]]
        total = total + weight * torch.logsumexp(torch.stack(terms), 0)
    return total


def slow_margin_mse(first, second, teacher, groups, dims, weights):
    """The definition: each margin of two pairs of a group, less the teacher's; a group counts by its pairs."""
    total, scored = 0.0, [i for i in range(len(teacher)) if not math.isnan(teacher[i])]
    for dim, weight in zip(dims, weights, strict=True):
        cosines = F.cosine_similarity(first[:, :dim], second[:, :dim])
        for i in scored:
            members = [j for j in scored if groups[j] == groups[i]]
            for j in members:
                error = (cosines[i] - cosines[j]) - (teacher[i] - teacher[j])
                total = total + weight * error**2 / (2 * len(members) * len(scored))
    return total


def listed(mask):
    """A mask [Q, G] as the `excluded` candidates of each query, with more filling than need be."""
    return torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1)


def grads(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


shapes = st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(2, 24), st.integers(0, 2**32 - 1))


@settings(max_examples=60, deadline=None)
@given(shapes, st.data())
def test_mnrl_equals_the_definition(shape, data):
    rows, extra, width, seed = shape
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(rows, width, generator=generator, dtype=torch.float64, requires_grad=True)
    candidates = torch.randn(rows + extra, width, generator=generator, dtype=torch.float64, requires_grad=True)
    dims = data.draw(st.lists(st.integers(1, width), min_size=1, max_size=5, unique=True))
    weights = torch.rand(len(dims), generator=generator, dtype=torch.float64).add(0.1).tolist()
    targets = torch.randint(rows + extra, (rows,), generator=generator)
    mask = torch.rand(rows, rows + extra, generator=generator) < 0.3
    scale = 200 * torch.rand((), generator=generator, dtype=torch.float64).add(0.01).item()
    tile = data.draw(st.none() | st.tuples(*[st.sampled_from([1, 2, 3, 7, 1024])] * 2))

    fast, by_dim = matryoshka_mnrl(
        queries, candidates, dims=dims, weights=weights, scale=scale, targets=targets, excluded=listed(mask), tile=tile
    )
    slow, slow_by_dim = slow_mnrl(queries, candidates, dims, weights, scale, targets, mask)
    torch.testing.assert_close(fast, slow, **EXACT)
    torch.testing.assert_close(by_dim, slow_by_dim, **EXACT)
    for mine, theirs in zip(grads(fast, queries, candidates), grads(slow, queries, candidates), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_parts_of_ranks_sum_to_the_whole():
    torch.manual_seed(0)
    queries, candidates = torch.randn(7, 16).double(), torch.randn(11, 16).double()
    whole, _ = matryoshka_mnrl(queries, candidates, dims=[16, 4])
    parts = [
        matryoshka_mnrl(queries[a:b], candidates, dims=[16, 4], targets=torch.arange(a, b), total_queries=7)[0]
        for a, b in ((0, 3), (3, 3), (3, 7))
    ]
    torch.testing.assert_close(sum(parts), whole, **EXACT)


def test_an_excluded_candidate_gets_no_gradient_and_the_target_cannot_be_excluded():
    torch.manual_seed(1)
    queries = torch.randn(3, 8).double()
    candidates = torch.randn(4, 8).double().requires_grad_()
    excluded = torch.tensor([[3, 0], [3, -1], [3, 3]])  # 0 is the target of row 0
    loss, _ = matryoshka_mnrl(queries, candidates, dims=[8], excluded=excluded)
    (gradient,) = grads(loss, candidates)
    assert gradient[3].abs().max() == 0
    assert torch.isfinite(loss) and gradient[0].abs().max() > 0
    (of_all,) = grads(matryoshka_mnrl(queries, candidates, dims=[8])[0], candidates)
    assert of_all[3].abs().max() > 0  # where it is not excluded it has one


@pytest.mark.parametrize("negatives", [0, 1, 2])
def test_parity_with_sentence_transformers(negatives):
    from sentence_transformers.sentence_transformer import losses as st_losses

    torch.manual_seed(2)
    dims, weights, rows = [48, 32, 8], [1.0, 0.5, 2.0], 6
    columns = [torch.randn(rows, 48, dtype=torch.float64, requires_grad=True) for _ in range(2 + negatives)]

    class Lookup(torch.nn.Module):
        """Stands in for a SentenceTransformer: column number in, its embeddings out."""

        def forward(self, features):
            return {"sentence_embedding": columns[features["column"]]}

        def get_embedding_dimension(self):
            return 48

    model = Lookup()
    inner = st_losses.MultipleNegativesRankingLoss(model)
    peer = st_losses.MatryoshkaLoss(model, inner, matryoshka_dims=dims, matryoshka_weights=weights)
    theirs = peer([{"column": i} for i in range(len(columns))], None)
    mine, _ = matryoshka_mnrl(columns[0], torch.cat(columns[1:]), dims=dims, weights=weights, scale=20.0)
    torch.testing.assert_close(mine, theirs, **EXACT)
    for a, b in zip(grads(mine, *columns), grads(theirs, *columns), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_ranking_equals_the_definition(positives, negatives, seed):
    generator = torch.Generator().manual_seed(seed)
    count = positives + negatives
    first = torch.randn(count, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    second = torch.randn(count, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(count) < positives
    fast, _ = pairwise_ranking(first, second, labels, dims=[12, 3, 7], weights=[1.0, 2.0, 0.5])
    slow = slow_ranking(first, second, labels, [12, 3, 7], [1.0, 2.0, 0.5], 20.0)
    torch.testing.assert_close(fast, torch.as_tensor(slow), **EXACT)
    if positives and negatives:
        for a, b in zip(grads(fast, first, second), grads(slow, first, second), strict=True):
            torch.testing.assert_close(a, b, **EXACT)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_distillation_equals_the_definition(count, groups, seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        torch.randn(count, 11, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    teacher = torch.randn(count, generator=generator, dtype=torch.float64)
    teacher[torch.rand(count, generator=generator) < 0.3] = math.nan
    group = torch.randint(min(groups, count), (count,), generator=generator)
    dims, weights = [11, 3, 7], [1.0, 2.0, 0.5]
    fast, by_dim = margin_mse(first, second, teacher, group, dims=dims, weights=weights)
    slow = slow_margin_mse(first, second, teacher.tolist(), group.tolist(), dims, weights)
    torch.testing.assert_close(fast, torch.as_tensor(slow, dtype=torch.float64), **EXACT)
    assert fast.item() == pytest.approx((by_dim * torch.tensor(weights)).sum().item(), abs=1e-9)
    if isinstance(slow, torch.Tensor):
        for a, b in zip(grads(fast, first, second), grads(slow, first, second), strict=True):
            torch.testing.assert_close(a, b, **EXACT)


def test_distillation_minds_differences_alone_and_is_fp32_under_autocast():
    torch.manual_seed(7)
    first, second, group = torch.randn(6, 8), torch.randn(6, 8), torch.tensor([0, 0, 0, 1, 1, 2])
    teacher = F.cosine_similarity(first, second)
    shifted = teacher + torch.tensor([3.0, -5.0, 0.25])[group]  # another zero in each group
    by_dim = {}
    for name, scores in (("own", teacher), ("shifted", shifted), ("wrong", shifted.flip(0))):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            by_dim[name] = margin_mse(first, second, scores, group, dims=[8, 4])[1]
        assert by_dim[name].dtype == torch.float32
        torch.testing.assert_close(by_dim[name], margin_mse(first, second, scores, group, dims=[8, 4])[1])
    torch.testing.assert_close(by_dim["own"], by_dim["shifted"])
    assert by_dim["own"][0] < 1e-12 < 1e-3 < by_dim["wrong"][0]  # at the teacher's own dim there is nothing to learn


def test_logits_are_fp32_under_autocast():
    torch.manual_seed(3)
    queries, candidates = torch.randn(8, 32), torch.randn(8, 32)
    outside, _ = matryoshka_mnrl(queries, candidates, dims=[32, 16])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, by_dim = matryoshka_mnrl(queries, candidates, dims=[32, 16])
        lossy = queries @ candidates.T
    assert inside.dtype == by_dim.dtype == torch.float32 and lossy.dtype == torch.bfloat16
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)


def test_zero_vectors_give_finite_losses_and_gradients():
    queries = torch.zeros(2, 4, requires_grad=True)
    candidates = torch.ones(2, 4, requires_grad=True)
    loss, _ = matryoshka_mnrl(queries, candidates, dims=[4, 2])
    assert all(torch.isfinite(g).all() for g in (loss, *grads(loss, queries, candidates)))


@pytest.mark.parametrize(
    "change",
    [
        {"dims": []},
        {"dims": [0, 4]},
        {"dims": [4, 4]},
        {"dims": [9]},
        {"dims": [4], "weights": [1.0, 2.0]},
        {"dims": [4], "targets": torch.arange(3)},
        {"dims": [4], "excluded": torch.zeros(3, 2, dtype=torch.int64)},
        {"dims": [4], "excluded": torch.zeros(2, dtype=torch.int64)},
        {"dims": [4], "excluded": torch.zeros(2, 3, dtype=torch.bool)},
    ],
)
def test_what_does_not_fit_is_an_error(change):
    with pytest.raises(ValueError):
        matryoshka_mnrl(torch.randn(2, 8), torch.randn(3, 8), **change)
    matryoshka_mnrl(torch.randn(2, 8), torch.randn(3, 8), dims=[8, 1])  # the same inputs are fine otherwise


def test_a_row_with_a_single_candidate_has_loss_zero():
    torch.manual_seed(4)
    queries, candidates = torch.randn(3, 8).double().requires_grad_(), torch.randn(4, 8).double().requires_grad_()
    excluded = torch.arange(4).expand(3, 4)
    loss, _ = matryoshka_mnrl(queries, candidates, dims=[8, 2], scale=200.0, excluded=excluded, tile=(2, 2))
    assert loss.item() == 0 and all(gradient.abs().max() == 0 for gradient in grads(loss, queries, candidates))


@pytest.mark.parametrize("tile", [(16, 16), (1024, 8), None])
def test_fp32_is_close_to_the_definition(tile):
    torch.manual_seed(5)
    queries, candidates = torch.randn(50, 64).requires_grad_(), torch.randn(90, 64).requires_grad_()
    mask, targets = torch.rand(50, 90) < 0.2, torch.randperm(90)[:50]
    arguments = ([64, 8], [1.0, 1.0], 20.0, targets, mask)
    fast, _ = matryoshka_mnrl(queries, candidates, dims=[64, 8], targets=targets, excluded=listed(mask), tile=tile)
    slow, _ = slow_mnrl(queries.double(), candidates.double(), *arguments)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-5)
    for a, b in zip(grads(fast, queries, candidates), grads(slow, queries, candidates), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@given(st.integers(0, 2**24), st.integers(1, 8), st.sampled_from([ON_CPU, ON_GPU]))
def test_a_band_takes_room_that_grows_with_the_candidates_alone(candidates, dims, sizes):
    height, width = tile_shape(candidates, dims, sizes)
    assert height * candidates * dims <= max(sizes.band, LEAST * candidates * dims)
    assert height * (width - 1) < sizes.tile


def test_without_gradient_there_is_one_product(monkeypatch):
    """Forward alone makes no gradient, and is the same loss."""
    walked = []
    monkeypatch.setattr(tiled.Band, "add_gradients", lambda *args: walked.append(args))
    rows = torch.randn(5, 8, requires_grad=True)
    with torch.no_grad():
        matryoshka_mnrl(rows, rows, dims=[8, 4])
    matryoshka_mnrl(rows.detach(), rows.detach(), dims=[8, 4])
    assert not walked
    matryoshka_mnrl(rows, rows.detach(), dims=[8, 4])
    assert walked


@pytest.mark.slow
def test_memory_does_not_grow_with_the_square():
    """Tensors kept for backward: a few numbers a row, no matrix of queries by candidates."""
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    queries, candidates = torch.randn(400, 8, requires_grad=True), torch.randn(400, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        matryoshka_mnrl(queries, candidates, dims=[8, 4, 2], tile=(32, 32))
    assert max(saved) <= 400 * 8


def test_the_gradient_is_fp32_when_backward_runs_under_autocast():
    torch.manual_seed(6)
    queries, candidates = torch.randn(8, 32).requires_grad_(), torch.randn(8, 32)
    (outside,) = grads(matryoshka_mnrl(queries, candidates, dims=[32, 16])[0], queries)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (inside,) = grads(matryoshka_mnrl(queries, candidates, dims=[32, 16])[0], queries)
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)
