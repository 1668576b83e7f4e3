"""Whether the fast ways through an encoder do on this machine what the plain ones do: asked once, before step 0.

The attention kernel is held against attention in groups, and the compiled layers against the eager ones, in the run's
own precision, over a few short sequences. Each check returns what is wrong in words, or None. Torch's random state is
the same afterwards. Shapes: T tokens, H heads, D head width, L tokens of a sequence, E width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import Tensor

from trainer.model.attention import choose_attention
from trainer.model.encoder import Encoder, in_mode
from trainer.model.families import FAMILIES
from trainer.model.forward import packed_hidden_states, pool
from trainer.model.packing import TokenBatch, pack
from trainer.system.transfer import to_device

# The attention kernel: the largest error, as a share of the largest value, of what it computes in a type from what the
# groups compute from the same numbers in fp32. A few roundings of the type; a wrong term is off by tens of percent.
ATTENTION_TOLERANCE = {torch.bfloat16: 0.04, torch.float16: 0.01, torch.float32: 1e-3, torch.float64: 1e-5}
# Compiled layers: the norm of the difference, as a share of the norm. Rounding adds up over the layers.
LAYER_TOLERANCE = {torch.bfloat16: 0.06, torch.float16: 0.03, torch.float32: 2e-3, torch.float64: 1e-6}
NEARLY_ZERO = 0.05  # share of the norm of all gradients below which one is compared with that instead of its own
# How many times the difference between two draws of dropout a third may be away from the first: for any tensor, as it
# may depend on few random numbers, and for all of them in the mean, where right draws came to 1.1 and dropout that does
# not scale what it leaves to 2.0 (a model of 2 layers, LoRA, dropout 0.1).
DRAW_TOLERANCE, MEAN_DRAW_TOLERANCE = 4.0, 1.5

ATTENTION_LENGTHS = (131, 67, 64, 30, 1)  # whole blocks of a kernel, parts of one, and a single token
DROPOUT_LENGTH = 67
LAYER_LENGTHS = (17, 11, 6, 3)
EVERY, MEAN = "every embedding", "the mean embedding"
COPIES = 128  # of each sequence under dropout: their mean is nearly that of all draws


@contextmanager
def same_random_state(device: torch.device) -> Iterator[None]:
    """Draw from a fixed seed inside; put the random states of the CPU and the device back afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def attention_fault(encoder: Encoder, dtype: torch.dtype) -> str | None:
    """Say in what the attention kernel differs from attention in groups for an encoder's heads; None in nothing.

    Args:
        dtype: of queries, keys and values.
    """
    probability = getattr(encoder.model.config, FAMILIES[encoder.model.config.model_type].attention_dropout)
    with same_random_state(encoder.model.device):
        problem = _Problem(encoder, ATTENTION_LENGTHS, dtype)
        mine, theirs = problem.leaves(dtype), problem.leaves(problem.wide)
        errors = problem.errors(problem.attend(mine, "kernel"), mine, problem.attend(theirs, "groups"), theirs)
        if probability:
            errors |= dropout_errors(encoder, dtype, probability)
    tolerance = ATTENTION_TOLERANCE[dtype]
    for name, error in errors.items():
        if not error <= tolerance:  # NaN is above it
            return f"{name} off by {error:.2g}, where {tolerance:g} is allowed"
    return None


class _Problem:
    """Random queries, keys, values and, where the family has one, a bias by distance, over some sequences."""

    def __init__(self, encoder: Encoder, lengths: tuple[int, ...], dtype: torch.dtype) -> None:
        config, device = encoder.model.config, encoder.model.device
        family = FAMILIES[config.model_type]
        self.dtype = dtype
        self.wide = torch.promote_types(dtype, torch.float32)
        self.heads = config.num_attention_heads
        self.width = encoder.width // self.heads
        self.lengths = sorted((min(length, encoder.spec.max_length) for length in lengths), reverse=True)
        total, longest = sum(self.lengths), self.lengths[0]
        self.batch: TokenBatch = to_device(pack(np.zeros(total, dtype=np.int64), np.array(self.lengths)), device)
        *self.inputs, self.upstream = torch.randn(4, total, encoder.width, device=device, dtype=dtype).unbind()
        if family.relative_bias:
            self.inputs.append(torch.randn(self.heads, 2 * longest - 1, device=device, dtype=dtype))
        places = torch.arange(longest, device=device)
        self.distance = places[None, :] - places[:, None] + longest - 1

    def leaves(self, dtype: torch.dtype) -> list[Tensor]:
        """The inputs as leaves of a type."""
        return [tensor.detach().to(dtype).requires_grad_() for tensor in self.inputs]

    def bias(self, inputs: list[Tensor]) -> Tensor | None:
        """[1, H, L, L] by position."""
        return inputs[3][:, self.distance][None] if len(inputs) == 4 else None

    def attend(self, inputs: list[Tensor], way: str, probability: float = 0.0) -> Tensor:
        """Attention by kernel or in groups [T, H * D]."""
        return choose_attention(self.batch, self.bias(inputs), self.heads, probability, way)(*inputs[:3])

    def errors(self, out: Tensor, inputs: list[Tensor], right: Tensor, right_inputs: list[Tensor]) -> dict[str, float]:
        """The largest error of values and gradients, each as a share of the largest of the right ones."""
        gradients = torch.autograd.grad(out, inputs, self.upstream)
        right_gradients = torch.autograd.grad(right, right_inputs, self.upstream.to(right.dtype))
        names = ("values", *(f"the gradient of {name}" for name in ("queries", "keys", "values", "the bias")))
        pairs = zip(names, (out, *gradients), (right, *right_gradients), strict=False)  # there may be no bias
        return {name: largest_error(mine, theirs) for name, mine, theirs in pairs}


def largest_error(mine: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference as a share of the largest absolute value; NaN where there is one."""
    mine, theirs = mine.detach().to(theirs.dtype), theirs.detach()
    return float((mine - theirs).abs().max() / theirs.abs().max())


def dropout_errors(encoder: Encoder, dtype: torch.dtype, probability: float) -> dict[str, float]:
    """Errors of the kernel under dropout: what is drawn, and the gradient for the mask that was drawn.

    Values that are rows of the identity make the weights visible, and with them the mask, which depends on nothing but
    the seed. Then the plain definition under that mask gives what is right.
    """
    problem = _Problem(encoder, (DROPOUT_LENGTH,), dtype)
    length, heads = problem.lengths[0], problem.heads
    mine, theirs = problem.leaves(dtype), problem.leaves(problem.wide)

    def heads_first(flat: Tensor) -> Tensor:
        """[L, H * D] -> [H, L, D]"""
        return flat.view(length, heads, -1).transpose(0, 1)

    def weights(seed: int, columns: int) -> Tensor:
        """[H, L, columns] after dropout, D of them at a time."""
        parts = []
        for first in range(0, columns, problem.width):
            part = torch.eye(length, device=mine[0].device, dtype=dtype)[:, first : first + problem.width]
            shown = torch.nn.functional.pad(part, (0, problem.width - part.shape[1])).repeat(1, heads)
            torch.manual_seed(seed)
            with torch.no_grad():
                out = problem.attend([*mine[:2], shown, *mine[3:]], "kernel", probability)
            parts.append(heads_first(out)[..., : part.shape[1]])
        return torch.cat(parts, -1).to(problem.wide)

    after = weights(1, length)
    some = min(length, problem.width)  # enough to tell two masks apart
    replayed, redrawn = weights(1, some), weights(2, some)
    kept = (after != 0).to(problem.wide)
    spread = (probability * (1 - probability) / kept.numel()) ** 0.5
    missed = abs(1 - float(kept.mean()) - probability)
    scores = heads_first(theirs[0]) @ heads_first(theirs[1]).mT * problem.width**-0.5
    bias = problem.bias(theirs)
    scores = scores if bias is None else scores + bias[0]
    dropped = scores.softmax(-1) * kept / (1 - probability)
    right = (dropped @ heads_first(theirs[2])).transpose(0, 1).reshape(length, -1)
    torch.manual_seed(1)
    errors = problem.errors(problem.attend(mine, "kernel", probability), mine, right, theirs)
    return {
        "dropout's second mask from one seed": float(not torch.equal(after[..., :some], replayed)),
        "dropout's mask from another seed": float(torch.equal(after[..., :some], redrawn)),
        "the share that dropout drops": 0.0 if missed <= 5 * spread else missed / probability,
        "what dropout leaves": largest_error(after, dropped.detach()),
        **{f"under dropout {name}": error for name, error in errors.items()},
    }


def layers_fault(
    encoder: Encoder, autocast: Callable[[], AbstractContextManager[None]], dtype: torch.dtype
) -> str | None:
    """Say in what the compiled layers of an encoder differ from the eager ones; None in nothing.

    Without dropout the two must be equal but for rounding. Under dropout they draw other masks: the mean over many
    copies of a sequence, and the gradient over all, may be as far from the eager ones' as these are from themselves;
    and a second pass from the same random state must be the first. Attention goes the way that the encoder's does.

    Args:
        dtype: in which the layers compute.
    """
    rounding = LAYER_TOLERANCE[dtype]
    whole = torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)  # else the plain layers would check themselves
    with whole, in_mode(encoder, training=True), same_random_state(encoder.model.device):
        draw = _layer_probe(encoder, autocast)
        with without_dropout(encoder):
            right, mine = draw(False, 1), draw(True, 1)
        one, other = (draw(False, seed) for seed in (2, 3))
        drawn, again = (draw(True, 4) for _ in range(2))
    fault = _difference(right, right, mine, rounding) or _difference(one, other, drawn, rounding)
    replay_error = float((drawn[EVERY] - again[EVERY]).norm())
    if fault is None and not replay_error <= rounding * float(drawn[EVERY].norm()):
        fault = "a second pass from the same random state draws other dropout"
    return fault


@contextmanager
def without_dropout(encoder: Encoder) -> Iterator[None]:
    """Set every dropout of an encoder to 0 inside, that of the attention weights included."""
    config = encoder.model.config
    attention = FAMILIES[config.model_type].attention_dropout
    modules = [module for module in encoder.modules() if isinstance(module, torch.nn.Dropout)]
    probabilities, weights = [module.p for module in modules], getattr(config, attention)
    try:
        for module in modules:
            module.p = 0.0
        setattr(config, attention, 0.0)
        yield
    finally:
        for module, probability in zip(modules, probabilities, strict=True):
            module.p = probability
        setattr(config, attention, weights)


def _layer_probe(
    encoder: Encoder, autocast: Callable[[], AbstractContextManager[None]]
) -> Callable[[bool, int], dict[str, Tensor]]:
    """(compiled, seed) -> what an encoder makes of copies of a few sequences, under the dropout of a seed.

    Embeddings [n * COPIES, E], their mean over copies [n, E], and the gradients of all that trains, by a loss that
    depends on what was drawn.
    """
    device, parameters = encoder.model.device, encoder.trainable()
    lengths = np.minimum(LAYER_LENGTHS, encoder.spec.max_length)
    largest = encoder.model.get_input_embeddings().num_embeddings
    ids = np.random.default_rng(0).integers(min(5, largest - 1), largest, lengths.sum())
    batch: TokenBatch = to_device(pack(np.tile(ids, COPIES), np.tile(lengths, COPIES)), device)
    weights = torch.randn(len(lengths), encoder.width, device=device).repeat(COPIES, 1)

    def draw(compiled: bool, seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        with autocast():
            embeddings = pool(
                packed_hidden_states(encoder.model, batch, compiled, encoder.attention), batch, encoder.spec.pooling
            )
        wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        gradients = torch.autograd.grad((wide.square() * weights).sum(), list(parameters.values()), allow_unused=True)
        found = zip((f"the gradient of {name}" for name in parameters), gradients, strict=True)
        mean = wide.detach().view(COPIES, -1, wide.shape[1]).mean(0)
        return {EVERY: wide.detach(), MEAN: mean, **{name: each for name, each in found if each is not None}}

    return draw


def _difference(
    one: dict[str, Tensor], other: dict[str, Tensor], mine: dict[str, Tensor], rounding: float
) -> str | None:
    """Say in what a compiled draw is further from an eager one than two eager ones are from each other, if in any."""
    # Some gradients are zero but for rounding, as that of a bias of the keys, which moves all scores of a row alike.
    total = sum(float(tensor.norm()) ** 2 for name, tensor in one.items() if name not in (EVERY, MEAN)) ** 0.5
    ratios = []
    for name in one:
        if name == EVERY:
            continue  # it knows its own draw alone
        if name not in mine:
            return f"{name} is missing"
        size = float(one[name].norm())
        rounded = rounding * (size if name == MEAN else max(size, NEARLY_ZERO * total))
        spread, error = float((one[name] - other[name]).norm()), float((mine[name] - one[name]).norm())
        if not error <= DRAW_TOLERANCE * spread + rounded:  # NaN is above it
            return f"{name} is off by {error:.2g}, where {DRAW_TOLERANCE * spread + rounded:.2g} is allowed"
        if spread > rounded:
            ratios.append(error / spread)
    mean_ratio = sum(ratio**2 for ratio in ratios) ** 0.5 / max(len(ratios), 1) ** 0.5
    if mean_ratio > MEAN_DRAW_TOLERANCE:
        return f"two draws of dropout differ by {mean_ratio:.2g} times what two eager ones do"
    return None
