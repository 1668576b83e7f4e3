"""Two and four gloo ranks against one process: same plan, same gradient, before an optimiser can hide a factor."""

from __future__ import annotations

import socket
import sys
import traceback
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from trainer.config import CurriculumConfig, LossConfig
from trainer.data.batch_layout import LayoutBuilder
from trainer.data.curriculum import PhasedBatchSampler
from trainer.data.false_negatives import Guide
from trainer.data.pairs import pairs_from_columns, positives_of
from trainer.loss.objective import batch_loss
from trainer.system import distributed as ranks

WIDTH = 12
GLOBAL_BATCH = 16
LOSS = LossConfig(dims=(12, 4, 8), weights=(1.0, 0.5, 2.0), pair_weight=0.7)
LOSS = replace(LOSS, distillation_weight=0.9)


def make_pairs():
    rng = np.random.default_rng(0)
    rows = [(f"a{i // 2}", f"p{i}" if i % 2 == 0 else f"n{rng.integers(50)}", 1 - i % 2) for i in range(64)]
    rows += [(f"orphan {i}", f"n{i}", 0) for i in range(8)]
    # Positives of a later phase, which must be masked in this one already.
    later = [(f"a{i}", f"p{2 * ((i + k) % 32)}", 1) for i in range(32) for k in (1, 2, 3)]
    first, second, labels = zip(*rows, *later, strict=True)
    phases = [1] * len(rows) + [2] * len(later)
    columns = {"texts1": first, "texts2": second, "labels": labels, "phase_indicators": phases}
    columns["teacher"] = [None if row % 5 == 0 else score for row, score in enumerate(rng.normal(size=len(labels)))]
    return pairs_from_columns({name: list(column) for name, column in columns.items()}, "pairs")


def make_model():
    """Text id -> embedding through shared weights, so that every rank touches every parameter."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(500, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    return features, torch.nn.Parameter(weight)


def step_gradients(world_size: int, sabotage: str = ""):
    """Plan of the run, loss and summed gradients of its first steps, on this rank."""
    pairs = make_pairs()
    sampler = PhasedBatchSampler(
        pairs, CurriculumConfig(phases=(1, 2)), batch_size=GLOBAL_BATCH // world_size, seed=0, world_size=world_size
    )
    features, weight = make_model()
    embeddings = torch.nn.functional.normalize(features[: len(pairs.texts)] + 0.5)
    guide = Guide(embeddings, -0.1)
    builder = LayoutBuilder(
        pairs, positives_of(pairs), rank=ranks.rank(), all_pairs=True, guide=guide, teacher_scale=3.0
    )
    found = []
    for step in range(3):
        layout = builder.build([sampler.local(step, rank) for rank in range(world_size)])
        assert world_size > 1 or layout.false_negatives > 0
        if sabotage == "shift targets" and ranks.rank() > 0:
            layout.targets[:] = (layout.targets + 1) % len(layout.candidates)
        if sabotage == "drop mask":
            layout.excluded[:] = -1
        own = layout.texts[ranks.rank()]
        loss = batch_loss(LOSS, features[own] @ weight, layout)
        weight.grad = None
        loss.total.backward()
        ranks.sum_gradients([weight])
        if sabotage == "scale by ranks":
            weight.grad *= world_size
        found.append((ranks.sum_over_ranks(loss.total).item(), weight.grad.clone().numpy()))
    return np.stack(list(sampler)), found


def work(rank, world_size, port, queue, sabotages):
    """One rank of a gloo group; whatever happens, something is put on the queue."""
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
        queue.put((rank, {sabotage: step_gradients(world_size, sabotage) for sabotage in sabotages}))
        dist.barrier()
        dist.destroy_process_group()
    except Exception:
        queue.put((rank, traceback.format_exc()))
        raise


def on_ranks(world_size, sabotages=("",)):
    """Run `step_gradients` on so many processes, once a sabotage; results in the order of ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # A new process would import torch for longer than it works.
    method = "fork" if sys.platform == "linux" else "spawn"
    queue = mp.get_context(method).SimpleQueue()
    processes = mp.start_processes(
        work, (world_size, port, queue, sabotages), nprocs=world_size, join=False, start_method=method
    )
    results = dict(queue.get() for _ in range(world_size))
    processes.join()
    return [results[rank] for rank in range(world_size)]


@pytest.fixture(scope="module")
def alone():
    return step_gradients(1)


def largest_difference(found, reference):
    return max(
        float(np.abs(np.asarray(mine) - np.asarray(theirs)).max())
        for step, expected in zip(found, reference, strict=True)
        for mine, theirs in zip(step, expected, strict=True)
    )


SABOTAGES = ("scale by ranks", "shift targets", "drop mask")


@pytest.fixture(scope="module")
def on_two():
    return on_ranks(2, ("", *SABOTAGES))


@pytest.mark.slow
def test_two_ranks_agree_with_one_process(alone, on_two):
    plan, reference = alone
    for results in on_two:
        assert np.array_equal(results[""][0], plan)
        assert largest_difference(results[""][1], reference) < 1e-10


@pytest.mark.slow
def test_four_ranks_agree_with_one_process(alone):
    plan, reference = alone
    for results in on_ranks(4):
        assert np.array_equal(results[""][0], plan)
        assert largest_difference(results[""][1], reference) < 1e-10


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_a_broken_exchange_is_noticed(sabotage, alone, on_two):
    """Negative controls of the tests above."""
    assert all(largest_difference(results[sabotage][1], alone[1]) > 1e-6 for results in on_two)


def test_one_process_needs_no_group():
    rows = torch.randn(3, 4, requires_grad=True)
    assert ranks.gather_with_gradient(rows, [3]) is rows and ranks.gather_rows(rows, [3]) is rows
    assert ranks.world_size() == 1 and ranks.share_object({"a": 1}) == {"a": 1} and ranks.gather_objects(1) == [1]
