"""One step of training: what it returns, what it refuses, and what it must not wait for."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.config_file import load_config
from trainer.data.incidents import generate_pairs
from trainer.errors import NumericError
from trainer.model.embedding import embed
from trainer.system.console import console
from trainer.system.gpu import default_device
from trainer.training import plan, setup
from trainer.training.fast_paths import FastPaths
from trainer.training.setup import build_run, read_inputs
from trainer.training.step import Stepper, backward

pytestmark = pytest.mark.numbers

# Operators that make the host wait for a GPU: values read back, and results whose size depends on values.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim"}


@pytest.fixture
def make_stepper(tiny_model, tmp_path):
    """make_stepper(name, {key: value}, lag) -> a stepper whose run is ready for its first step."""
    pairs, dev = tmp_path / "pairs.json", tmp_path / "dev.json"
    pairs.write_text(json.dumps(generate_pairs(72, 0, "train")))
    dev.write_text(json.dumps(generate_pairs(72, 0, "dev")))
    config = tmp_path / "run.toml"
    config.write_text(
        f'[model]\nname = "{tiny_model("mpnet")}"\n'
        f'[data]\ntrain = "{pairs}"\ndev = "{dev}"\n'
        "[train]\nbatch_size = 8\n[optim]\nlr = 1e-3\n[loss]\ndims = [64, 16]\npair_weight = 0.5\n"
    )

    def make(name, changes=None, lag=0):
        overrides = [f"{key}={value}" for key, value in (changes or {}).items()]
        run = build_run(read_inputs(load_config(config, overrides), tmp_path / name, {}))
        run.encoder.train()
        return Stepper(run, lag)

    return make


def test_the_padding_of_a_step_is_that_of_all_its_chunks_together(make_stepper):
    """A mean over the chunks would give the last one, of a few short texts, the weight of a full one."""
    run = make_stepper("run", {"train.tokens_per_chunk": 150}).run
    for step in range(3):
        prepared = run.prepare(step)
        assert len(prepared.chunks) > 1
        real = sum(length**2 for chunk in prepared.chunks for length in chunk.lengths.tolist())
        padded = sum(group.count * group.length**2 for chunk in prepared.chunks for group in chunk.groups)
        assert prepared.known()["waste"] == pytest.approx(1 - real / padded)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"train.tokens_per_chunk": 150}])
def test_timing_a_step_leaves_the_run_as_it_was(make_stepper, changes, monkeypatch):
    stepper = make_stepper("run", changes)
    run, encoded = stepper.run, []
    run.encoder.eval()
    monkeypatch.setattr(plan, "backward", lambda *of: encoded.append(run.encoder.training) or backward(*of))

    def state():
        tensors = [*run.encoder.state_dict().values(), torch.get_rng_state()]
        return [tensor.clone() for tensor in tensors]

    before = state()
    assert plan.step_seconds(run, 1) > 0 and encoded == [True, True] and not run.encoder.training
    assert all(map(torch.equal, before, state()))
    assert not run.optimizer.state and all(parameter.grad is None for parameter in run.parameters.values())
    # Negative control: what is timed does draw dropout and give gradients.
    run.encoder.train()
    backward(run, run.prepare(1))
    assert not torch.equal(before[-1], torch.get_rng_state())
    assert any(parameter.grad is not None for parameter in run.parameters.values())


def test_the_duration_goes_by_tokens_and_a_small_plan_is_not_timed(make_stepper, monkeypatch):
    run = make_stepper("run").run
    timed = []
    monkeypatch.setattr(plan, "step_seconds", lambda run, step: timed.append(step) or 1000.0)
    with console.capture() as captured:
        plan.print_duration(run)
    assert captured.get() == "" and not timed
    with console.capture() as captured:
        plan.print_duration(run, even_if_small=True)
    lengths, table = run.tokens.longest(len(run.data.train.texts)), run.data.train
    tokens = [sum(int(lengths[table.text1[r]] + lengths[table.text2[r]]) for r in rows) for rows in run.sampler]
    (median,) = timed
    assert sorted(tokens)[len(tokens) // 2] == tokens[median]
    minutes = math.ceil(1000 * sum(tokens) / tokens[median] / 60)
    assert f"take about {minutes // 60}:{minutes % 60:02} (h:mm), at 1e+03 s" in captured.get() and minutes > 120


def test_products_in_fp32_are_computed_in_full_whatever_the_process_had(make_stepper):
    for start in (default_device, lambda: make_stepper("run")):
        torch.set_float32_matmul_precision("medium")  # as a notebook may have it
        start()
        assert torch.get_float32_matmul_precision() == "highest"


def test_all_ranks_go_by_what_the_first_one_found_on_dev(make_stepper, monkeypatch):
    """Machines may differ in a last bit, and ranks that choose otherwise wait for each other for ever."""
    run = make_stepper("run").run
    monkeypatch.setattr(
        setup.ranks, "share_object", lambda found: {dim: dict.fromkeys(of, 0.5) for dim, of in found.items()}
    )
    assert {value for of in run.judge_on_dev().values() for value in of.values()} == {0.5}


def test_ranks_start_from_the_same_weights_and_draw_different_dropout(make_stepper, monkeypatch):
    shared, seeds = [], set()
    monkeypatch.setattr(setup.ranks, "share_parameters", lambda parameters: shared.append([*map(id, parameters)]))
    monkeypatch.setattr(setup, "prove_fast_paths", lambda inputs: FastPaths())  # which steps on a GPU
    for number in range(2):
        monkeypatch.setattr(setup.ranks, "rank", lambda number=number: number)
        run = make_stepper(str(number)).run
        assert shared.pop() == [*map(id, run.parameters.values())] and not shared
        seeds.add(torch.initial_seed())
    assert len(seeds) == 2


def test_the_loss_scale_is_read_where_a_gradient_overflowed_alone(make_stepper, monkeypatch):
    """Reading it waits for the device."""
    stepper, asked = make_stepper("run"), []
    scaler = SimpleNamespace(get_scale=lambda: asked.append("scale") or 2.0)
    monkeypatch.setattr(stepper.run.accelerator, "scaler", scaler)
    stepper.check_finite(0, 1.0, 1.0)
    assert not asked
    stepper.check_finite(0, 1.0, np.inf)  # the scaler passes over it
    assert asked
    scaler.get_scale = lambda: 1.0  # it has nothing left to lower
    with pytest.raises(NumericError, match="gradient norm is inf"):
        stepper.check_finite(0, 1.0, np.inf)


class Watch(TorchDispatchMode):
    """Notes which operators of WAITS are called."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        indexed_by_bool = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in WAITS or indexed_by_bool:
            self.seen.add("index by bool" if indexed_by_bool else name)
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"train.tokens_per_chunk": 150}, {"lora.enabled": "false"}],
    ids=["lora", "chunks", "full"],
)
def test_a_step_asks_nothing_of_the_device(make_stepper, changes):
    stepper = make_stepper("run", changes, lag=1)
    batches = [stepper.run.prepare(step) for step in range(2)]
    with Watch() as watch:
        for step, batch in enumerate(batches):
            # Reading the step before is the one thing that may wait; `Arriving` does it from the CPU's memory.
            stepper.train_step(step, batch)
    assert watch.seen == set()


def test_the_watch_sees_what_waits():
    """Negative control."""
    x = torch.randn(4)
    with Watch() as watch:
        float(x[0]), x[x > 0], x.nonzero()
    assert watch.seen >= {"_local_scalar_dense", "nonzero"}


@pytest.mark.slow
def test_numbers_that_lag_are_the_same_numbers(make_stepper):
    found = []
    for lag in (0, 1):
        stepper = make_stepper(f"lag{lag}", lag=lag)
        arrived = [stepper.train_step(step, stepper.run.prepare(step)) for step in range(4)]
        assert [len(numbers) for numbers in arrived] == ([1] * 4 if lag == 0 else [0, 1, 1, 1])
        weights = {name: parameter.detach().clone() for name, parameter in stepper.run.parameters.items()}
        numbers = [one for some in [*arrived, stepper.settle()] for one in some]
        found.append(([replace(one, logged={**one.logged, "peak_memory": None}) for one in numbers], weights))
    assert [numbers.step for numbers in found[0][0]] == [0, 1, 2, 3]
    assert found[0][0] == found[1][0]
    for name, value in found[0][1].items():
        assert torch.equal(value, found[1][1][name]), name


@pytest.mark.slow
@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_nothing_is_updated_by_what_is_not_finite_or_after_it(make_stepper, lag, broken):
    stepper = make_stepper("run", lag=lag)
    run = stepper.run
    stepper.train_step(0, stepper.run.prepare(0))
    before = {name: parameter.detach().clone() for name, parameter in run.parameters.items()}
    moments = [value.clone() for state in run.optimizer.state.values() for value in state.values()]
    name, parameter = next((n, p) for n, p in run.parameters.items() if "lora_B" in n)
    if broken == "loss":
        handle = run.encoder.register_forward_hook(lambda module, inputs, rows: rows * float("nan"))
    else:
        handle = parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NumericError, match=rf"step 1, .*{broken} .*is (nan|inf).*rows"):
        for step in (1, 2, 3):
            stepper.train_step(step, stepper.run.prepare(step))
    handle.remove()
    for name, value in before.items():
        assert torch.equal(value, run.parameters[name]), name
    after = [value for state in run.optimizer.state.values() for value in state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))


def test_what_draws_in_a_step_draws_from_torch_alone(make_stepper):
    """Checkpoints hold no other random states."""
    stepper = make_stepper("run")

    def states():
        return str(np.random.get_state(legacy=False)), random.getstate(), torch.get_rng_state()

    numpys, pythons, torchs = states()
    for step in range(2):
        stepper.train_step(step, stepper.run.prepare(step))
    assert states()[:2] == (numpys, pythons) and not torch.equal(states()[2], torchs)


@pytest.mark.slow
def test_the_guide_is_the_untouched_encoder_whatever_was_trained(make_stepper):
    stepper = make_stepper("guided", {"loss.guide_margin": 0.2})
    run = stepper.run
    untouched = torch.from_numpy(embed(run.encoder, run.tokens))
    guide = run.layouts.guide
    torch.testing.assert_close(guide.embeddings, torch.nn.functional.normalize(untouched))
    arrived = stepper.train_step(0, run.prepare(0)) + stepper.settle()
    assert arrived[0].logged["false_negatives"] > 0
    trained = torch.from_numpy(embed(run.encoder, run.tokens))
    assert not torch.allclose(untouched, trained)
    again = make_stepper("again", {"loss.guide_margin": 0.2}).run.layouts.guide  # as where it is resumed
    assert torch.equal(again.embeddings, guide.embeddings)
    # Negative control: without it nothing is masked as one.
    plain = make_stepper("plain").run
    assert plain.layouts.guide is None and plain.prepare(0).known()["false_negatives"] == 0
