"""What only a GPU can show: steps that never wait for it, and compiled layers that give what plain ones give."""

from __future__ import annotations

import json

import pytest
import torch

from trainer.config import load_config
from trainer.data.incidents import generate_pairs
from trainer.training.setup import Run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def run_on_gpu(tiny_model, folder, **changes):
    """A run ready for its first step."""
    pairs = folder / "pairs.json"
    pairs.write_text(json.dumps(generate_pairs(144, 0, "train")))
    config = folder / "run.toml"
    config.write_text(
        f'[model]\nname = "{tiny_model("mpnet")}"\n'
        f'[data]\ntrain = "{pairs}"\ndev = "{pairs}"\nallow_overlap = true\n'
        '[train]\nbatch_size = 16\nprecision = "fp32"\n[loss]\ndims = [64, 16]\npair_weight = 0.5\nsymmetric = true\n'
    )
    run = Run(load_config(config, [f"{key}={value}" for key, value in changes.items()]), folder / "run")
    run.add_trainables()
    run.encoder.train()
    return run


@pytest.mark.parametrize("budget", [0, 300])
def test_a_step_never_waits_for_the_device(tiny_model, tmp_path, budget):
    run = run_on_gpu(tiny_model, tmp_path, **{"train.tokens_per_chunk": budget})
    for step in range(4):  # compiles
        run.train_step(step, run.prepare(step))
    run.settle()
    batch = run.prepare(4)
    torch.cuda.set_sync_debug_mode("error")
    try:
        arrived = run.train_step(4, batch)  # an operator that waits raises
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert arrived == [] and [numbers["step"] for numbers in run.settle()] == [4]


def test_compiled_layers_train_like_plain_ones(tiny_model, tmp_path):
    losses = []
    for compiled in ("true", "false"):
        (tmp_path / compiled).mkdir()
        run = run_on_gpu(tiny_model, tmp_path / compiled, **{"train.compile": compiled})
        run.encoder.eval()  # no dropout: the two draw other masks
        found = [numbers for step in range(6) for numbers in run.train_step(step, run.prepare(step))]
        losses.append([numbers["loss"] for numbers in found + run.settle()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_chunks_replay_the_dropout_of_compiled_layers(tiny_model, tmp_path):
    """The gradient norm of a step in chunks is that of the same step again: each replay drew what it should."""
    norms = []
    for _ in range(2):
        (tmp_path / f"{len(norms)}").mkdir()
        run = run_on_gpu(tiny_model, tmp_path / f"{len(norms)}", **{"train.tokens_per_chunk": 300})
        run.train_step(0, run.prepare(0))
        norms.append(run.settle()[0]["grad_norm"])
    assert norms[0] == norms[1]
