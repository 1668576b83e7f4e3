"""What a run chooses to compute with, and why; compiled layers that are compiled once and replay their dropout."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import printed_in_a_fork

from trainer.config_file import load_config, resolve_config
from trainer.errors import InputError
from trainer.model import self_check
from trainer.model.families import FAMILIES
from trainer.model.loading import load_encoder
from trainer.model.packing import pack
from trainer.training import fast_paths
from trainer.training.fast_paths import FastPaths, choose_fast_paths


@pytest.mark.parametrize(("written", "read"), [('"auto"', "off"), ('"on"', "on"), ("true", "on"), ("false", "off")])
def test_the_setting_is_a_word_or_what_it_was_before(written, read, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(f'[data]\ntrain = "p.json"\n[train]\ncompile = {written}\n')
    assert load_config(path).train.compile == read


def test_another_word_is_an_error_with_the_fix():
    with pytest.raises(InputError, match=r'train\.compile = "maybe": use one of "on", "off"'):
        resolve_config({"data": {"train": "p.json"}, "train": {"compile": "maybe"}})


# ---- choosing, with stand-ins for what each check finds

SOUND = {"attention": None, "layers": None, "update": None, "triton": True}


@pytest.fixture
def chosen(tiny_model, monkeypatch):
    """Choose for a tiny encoder, the checks finding what is given. (fast paths, encoder, whether layers were tried)."""

    def run(wanted, family="mpnet", **found):
        found = SOUND | found
        tried = []

        def layers(*_):
            tried.append(True)
            if isinstance(found["layers"], Exception):
                raise found["layers"]
            return found["layers"]

        monkeypatch.setattr(fast_paths, "find_spec", lambda name: object() if found["triton"] else None)
        monkeypatch.setattr(fast_paths, "attention_fault", lambda *_: found["attention"])
        monkeypatch.setattr(fast_paths, "layers_fault", layers)
        monkeypatch.setattr(fast_paths, "update_fault", lambda *_: found["update"])
        encoder = load_encoder(str(tiny_model(family)))
        return choose_fast_paths(encoder, wanted == "on", nullcontext), encoder, bool(tried)

    return run


def test_what_is_sound_is_used(chosen):
    found, encoder, _ = chosen("on")
    assert (found.attention, found.compiled, found.fused) == ("kernel", True, True)
    assert found.notes == ("Layers are compiled",)
    assert encoder.path == "packed, attention by Triton kernel, layers compiled"
    assert found.conditions() == {"attention": "kernel", "train.compile": True, "fused update": True}


def test_layers_are_compiled_where_that_is_asked_for_alone(chosen):
    found, encoder, tried = chosen("off")
    assert not found.compiled and not tried and found.notes == () and encoder.attention == "kernel"


def test_without_triton_all_goes_the_plain_way(chosen):
    found, encoder, tried = chosen("on", triton=False)
    assert (found.attention, found.compiled, tried) == ("groups", False, False)
    assert encoder.path == "packed, attention in groups"
    assert found.notes == (
        "The attention kernel is not used: Triton is not installed; attention runs in groups of sequences",
        "Layers run eagerly: Triton is not installed",
    )


def test_what_is_broken_is_not_used_and_named(chosen):
    found, encoder, _ = chosen(
        "on", attention="values off by 2", layers=RuntimeError("no C compiler\nadvice"), update="it breaks its promise"
    )
    assert found == FastPaths(
        "groups",
        False,
        False,
        (
            "The attention kernel is not used: values off by 2; attention runs in groups of sequences",
            "Layers run eagerly: RuntimeError: no C compiler",
            "The fused update is not used: it breaks its promise; each gradient is read before the plain one",
        ),
    )
    assert encoder.attention == "groups" and not encoder.compiled


def test_what_fails_on_one_rank_is_used_on_none(chosen, monkeypatch):
    monkeypatch.setattr(fast_paths.ranks, "gather_objects", lambda value: [value, "differs here"])
    found, encoder, _ = chosen("on")
    assert (found.attention, found.compiled, found.fused) == ("groups", False, False)
    assert all("differs here" in note for note in found.notes) and not encoder.compiled


def test_memory_that_runs_out_is_not_taken_for_a_fault(chosen):
    with pytest.raises(torch.OutOfMemoryError):
        chosen("on", layers=torch.OutOfMemoryError("full"))


@pytest.mark.slow
def test_a_broken_kernel_is_found_by_the_choice(tiny_model, monkeypatch):
    """End to end, in Triton's interpreter: a wrong sign of the scores."""
    attention_triton = pytest.importorskip("trainer.model.attention_triton", reason="needs the package triton")
    right = attention_triton.packed_attention
    encoder = load_encoder(str(tiny_model("bert")))
    encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    encoder.spec = replace(encoder.spec, max_length=5)
    encoder.model.config.attention_probs_dropout_prob = 0.0
    assert choose_fast_paths(encoder, False, nullcontext).attention == "kernel"
    monkeypatch.setattr(attention_triton, "packed_attention", lambda query, *rest: right(-query, *rest))
    found = choose_fast_paths(encoder, False, nullcontext)
    assert found.attention == encoder.attention == "groups"
    assert found.notes[0].startswith("The attention kernel is not used: values off by")


def test_judging_goes_the_plain_way_whatever_was_chosen(tiny_model, monkeypatch):
    encoder = load_encoder(str(tiny_model("mpnet"))).eval()
    chunk = pack(np.arange(5, 25), np.array([9, 11]))
    plain = encoder(chunk)
    encoder.attention, encoder.compiled = "kernel", True
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    assert torch.equal(encoder(chunk), plain)


# ---- compiled once, and replayed

REPLAYED = """
from contextlib import nullcontext
import numpy as np, torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import MPNetConfig, MPNetModel
from trainer.model.forward import packed_hidden_states, pool
from trainer.model.packing import pack
from trainer.training.gradcache import backward_in_chunks
torch.set_num_threads(1)
counter = CompileCounterWithBackend("aot_eager")
compile_as_it_is = torch.compile
torch.compile = lambda fn, **options: compile_as_it_is(fn, backend=counter, **options)
torch.manual_seed(0)
model = MPNetModel(MPNetConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=32, max_position_embeddings=20, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2),
    add_pooling_layer=False).double().train()
encode = lambda batch: pool(packed_hidden_states(model, batch, compiled=True), batch, "mean")
class Loss:
    def __init__(self, rows):
        self.total = (rows @ rows.T).sin().sum()
rng = np.random.default_rng(0)
def gradients(cut, seed, batches, places):
    model.zero_grad()
    torch.manual_seed(seed)
    if cut:
        backward_in_chunks(encode, batches, places, Loss, torch.Tensor.backward, nullcontext)
    else:
        rows = torch.cat([encode(batch) for batch in batches])
        Loss(rows[torch.cat(places).argsort()]).total.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])
for step in range(2):
    lengths = rng.integers(2, 12, 6)
    batches = [pack(rng.integers(5, 60, part.sum()), part) for part in np.split(lengths, [2, 5])]
    places = list(torch.from_numpy(rng.permutation(6)).split([2, 3, 1]))
    whole, cut = (gradients(cut, step, batches, places) for cut in (False, True))
    other = gradients(True, step + 100, batches, places)
    size = whole.norm()
    print("replayed", float((cut - whole).norm() / size) < 1e-10, float((other - whole).norm() / size) > 1e-2)
    print("frames", counter.frame_count)
"""


MANY = """
import numpy as np, torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from transformers import MPNetConfig, MPNetModel
from trainer.model.forward import forget_compiled, packed_hidden_states
from trainer.model.packing import pack
compile_as_it_is = torch.compile
torch.compile = lambda fn, **options: compile_as_it_is(fn, backend="eager", **options)
def train(width):
    model = MPNetModel(MPNetConfig(vocab_size=64, hidden_size=width, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=20), add_pooling_layer=False).train()
    packed_hidden_states(model, pack(np.arange(5, 25), np.array([9, 11])), compiled=True)
with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
    for width in range(8, 32, 2):
        forget_compiled()
        train(width)
    print("all compiled")
    try:
        for width in range(8, 32, 2):
            train(width)
    except FailOnRecompileLimitHit:
        print("limited")
"""


@pytest.mark.slow
def test_the_layers_of_many_models_in_one_process_are_all_compiled(tmp_path):
    """And without letting go of those before, torch soon compiles no more."""
    assert printed_in_a_fork(lambda: exec(MANY, {}), tmp_path / "lines").splitlines() == ["all compiled", "limited"]


WHOLE = """
import torch
from trainer.model.families import FAMILIES
from trainer.model.fast_layers import make_plain
from trainer.model.loading import load_encoder
for folder in FOLDERS:
    model = load_encoder(folder, announce=False).model
    make_plain(model)  # what is fast on a CPU alone is not compiled for a GPU
    family = FAMILIES[model.config.model_type]
    layer, hidden = family.layers(model)[0], torch.randn(5, model.config.hidden_size)
    for part, inputs in ((family.project, (hidden,)), (family.finish, (hidden, hidden))):
        torch._dynamo.reset()
        torch.compile(part, backend="eager", fullgraph=True)(layer, *inputs)  # which raises where it is cut in two
    print(model.config.model_type)
"""


def test_layers_are_checked_by_compiled_ones_alone_and_after_forgetting_those_before(chosen, tiny_model, monkeypatch):
    """Where torch compiles no more, the check has to fail, not the plain layers to pass for compiled ones."""
    forgotten, limits = [], []
    monkeypatch.setattr(fast_paths, "forget_compiled", lambda: forgotten.append(True))
    chosen("on")
    assert forgotten
    probe = self_check._layer_probe

    def noting(*arguments):
        limits.append(torch._dynamo.config.fail_on_recompile_limit_hit)
        return probe(*arguments)

    monkeypatch.setattr(self_check, "_layer_probe", noting)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    encoder = load_encoder(str(tiny_model("bert")))
    assert self_check.layers_fault(encoder, nullcontext, torch.float32) is None and limits == [True]
    assert not torch._dynamo.config.fail_on_recompile_limit_hit


@pytest.mark.slow
def test_a_layer_compiles_without_a_break(tiny_model, tmp_path):
    folders = [str(tiny_model(family)) for family in FAMILIES]
    printed = printed_in_a_fork(lambda: exec(WHOLE, {"FOLDERS": folders}), tmp_path / "lines").split()
    assert printed == list(FAMILIES)


@pytest.mark.slow
def test_compiled_layers_replay_their_dropout_and_are_compiled_once(tmp_path):
    """In chunks and whole under one mask; another mask is far off. After the first step nothing is compiled again."""
    lines = printed_in_a_fork(lambda: exec(REPLAYED, {}), tmp_path / "lines").splitlines()
    assert lines[::2] == ["replayed True True"] * 2
    assert len(set(lines[1::2])) == 1, lines
