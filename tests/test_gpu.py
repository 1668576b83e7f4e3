"""What only a GPU shows: steps that never wait for it, compiled layers that train like plain ones, one mask a step."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch

from trainer.config_file import load_config
from trainer.data.incidents import generate_pairs
from trainer.loss.objective import batch_loss
from trainer.model.self_check import without_dropout
from trainer.training.gradcache import backward_in_chunks
from trainer.training.setup import build_run, read_inputs
from trainer.training.step import Stepper

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def stepper(tiny_model, tmp_path):
    """stepper(name, {key: value}) -> the maker of a run's steps on the GPU, ready for the first."""

    def make(name, changes=None):
        folder = tmp_path / name
        folder.mkdir()
        pairs, dev = folder / "pairs.json", folder / "dev.json"
        pairs.write_text(json.dumps(generate_pairs(144, 0, "train")))
        dev.write_text(json.dumps(generate_pairs(72, 0, "dev")))
        config = folder / "run.toml"
        config.write_text(
            f'[model]\nname = "{tiny_model("mpnet")}"\n'
            f'[data]\ntrain = "{pairs}"\ndev = "{dev}"\n'
            '[train]\nbatch_size = 16\ncompile = "on"\n'
            "[loss]\ndims = [64, 16]\npair_weight = 0.5\n"
        )
        overrides = [f"{key}={value}" for key, value in (changes or {}).items()]
        run = build_run(read_inputs(load_config(config, overrides), folder / "run", {}))
        run.encoder.train()
        return Stepper(run)

    return make


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_everything_that_is_fast_proves_itself(stepper, precision):
    fast_paths = stepper("run", {"train.precision": precision}).run.fast_paths
    assert (fast_paths.attention, fast_paths.compiled, fast_paths.fused) == ("kernel", True, True), fast_paths.notes


@pytest.mark.parametrize(("budget", "precision"), [(0, "auto"), (300, "auto"), (0, "fp16")])
def test_a_step_never_waits_for_the_device_and_compiles_nothing_after_the_first(stepper, budget, precision):
    from torch._dynamo.utils import counters

    steps = stepper("run", {"train.tokens_per_chunk": budget, "train.precision": precision})
    for step in range(2):
        steps.train_step(step, steps.run.prepare(step))
    steps.settle()
    graphs = counters["stats"]["unique_graphs"]
    batches = [steps.run.prepare(step) for step in range(2, 6)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        arrived = [steps.train_step(2 + i, batch) for i, batch in enumerate(batches)]  # an operator that waits raises
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [len(numbers) for numbers in arrived] == [0, 1, 1, 1]
    assert [numbers.step for numbers in steps.settle()] == [5]
    assert graphs > 0 and counters["stats"]["unique_graphs"] == graphs


def test_compiled_layers_train_like_plain_ones(stepper):
    losses = []
    for compiled in ("on", "off"):
        steps = stepper(compiled, {"train.compile": compiled})
        with without_dropout(steps.run.encoder):  # the two draw other masks
            found = [numbers for step in range(6) for numbers in steps.train_step(step, steps.run.prepare(step))]
        losses.append([numbers.logged["loss"] for numbers in found + steps.settle()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("compiled", ["on", "off"])
def test_chunks_replay_the_dropout_of_the_first_pass(stepper, compiled):
    """The gradient in chunks is the whole one's under the same masks, which is far from that under other masks.

    The whole keeps one graph over all chunks, in the order in which they draw. Sums by atomics come in any order.
    """
    run = (steps := stepper("run", {"train.tokens_per_chunk": 300, "train.compile": compiled})).run
    batch = steps.run.prepare(0)
    assert len(batch.chunks) > 1

    def gradient():
        found = torch.cat([parameter.grad.flatten() for parameter in run.parameters.values()])
        run.optimizer.zero_grad()
        return found

    def in_chunks(seed):
        torch.manual_seed(seed)
        backward_in_chunks(
            run.encoder,
            batch.chunks,
            batch.positions,
            lambda embeddings: batch_loss(run.config.loss, embeddings, batch.layout),
            torch.Tensor.backward,
            nullcontext,
        )
        return gradient()

    torch.manual_seed(3)
    embeddings = torch.cat([run.encoder(chunk) for chunk in batch.chunks])
    batch_loss(run.config.loss, embeddings[torch.cat(batch.positions).argsort()], batch.layout).total.backward()
    whole = gradient()
    size = whole.norm()
    assert (in_chunks(3) - whole).norm() < 1e-4 * size
    assert (in_chunks(4) - whole).norm() > 1e-2 * size
