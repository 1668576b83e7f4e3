"""What a config comes to: what it leaves open filled in, what differs from the defaults, and what has no effect.

The measured rates are those of bench/LOG.md on real incident pairs with all-MiniLM-L6-v2, dims 384 to 64: dev Spearman
from 0.5575 to 0.6762 with all weights at 1e-4 (0.6167 at 2e-4 where 1e-4 had 0.6317), to 0.6477 with LoRA of rank 16 at
1e-3. The reference recipe's 5e-6 moves little in as few steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trainer.config import Config
from trainer.config_file import to_tree
from trainer.data.curriculum import training_mode
from trainer.data.pairs import PairTable
from trainer.data.run_data import INCIDENTS
from trainer.errors import InputError
from trainer.model.encoder import Encoder
from trainer.system.console import console
from trainer.system.values import toml_value
from trainer.training.schedule import schedule_edges

LORA_RATE, FULL_RATE = 1e-3, 1e-4
LORA_MOVES, FULL_MOVES = 5e-4, 3e-5
"""Learning rates of all steps added up, below which a run moves next to nothing. Measured with MiniLM on incident pairs
in 10 steps (bench/LOG.md): LoRA gained dev Spearman 0.0022 at a sum of 6e-4 and 0.0102 at 6e-3, all weights 0.0035 at
6e-5 and 0.0096 at 6e-4; with all-mpnet-base-v2 LoRA gained 0.0002 at 8e-5, the reference recipe's first 20 steps."""
DIMS_BELOW = (512, 256, 128, 64)
NOT_SHOWN = ("output.dir",)  # said by `plan.describe`


def settle(config: Config, width: int, pairs: PairTable) -> Config:
    """The config with what it leaves open settled by the length of the model's embeddings (`width`, after a cut), the
    training pairs and the way of training.

    Raises:
        SettingError: a setting that does not go with what was settled, such as a floor above the rate.
    """
    rate = config.optim.lr or (LORA_RATE if config.lora.enabled else FULL_RATE)
    return replace(
        config,
        curriculum=replace(config.curriculum, mode=training_mode(pairs, config.curriculum)),
        optim=replace(config.optim, lr=rate),
        loss=replace(config.loss, dims=config.loss.dims or (width, *(dim for dim in DIMS_BELOW if dim < width))),
    )


def little_movement(config: Config, rates: Sequence[float]) -> str:
    """Why a plan is known to move next to nothing, with the fix, in a line; "" where it is not.

    AdamW moves a weight by about the learning rate in a step, so what counts is the rates of all steps added up.

    Args:
        config: as it was settled.
        rates: of the steps that are made.
    """
    lora, total = config.lora.enabled, math.fsum(rates)
    if total >= (LORA_MOVES if lora else FULL_MOVES):
        return ""
    way, seen, rate = (
        ("LoRA", "6e-04 for +0.002 of dev Spearman, 6e-03 for +0.010", LORA_RATE)
        if lora
        else ("training all weights", "6e-05 for +0.004 of dev Spearman, 6e-04 for +0.010", FULL_RATE)
    )
    fix = f"raise optim.lr (measured: {rate:g})" if config.optim.lr < rate else "train for more steps"
    return (
        f"Warning: optim.lr = {config.optim.lr:g} for {len(rates)} steps will move next to nothing: their rates add up "
        f"to {total:.0e}, and {way} took {seen}, as measured with all-MiniLM-L6-v2; {fix}"
    )


def changed_settings(config: Config, other: Config | None = None) -> dict[str, str]:
    """Key -> value, as TOML, of each setting that differs from another config's, or else from the default."""
    tree, other_tree = to_tree(config), to_tree(other or Config())
    return {
        f"{section}.{name}": toml_value(value)
        for section, values in tree.items()
        for name, value in values.items()
        if value != other_tree[section][name] and f"{section}.{name}" not in NOT_SHOWN
    }


def check_dims_fit(config: Config, encoder: Encoder) -> None:
    """Raise InputError where a Matryoshka dim is wider than the model."""
    if max(config.loss.dims) > encoder.width:
        raise InputError(
            f"loss.dims = {list(config.loss.dims)}: {config.model.name} is {encoder.width} wide; "
            f"use dims up to {encoder.width}, or leave them out for those that fit it"
        )


def keep_cut_that_fits(config: Config, encoder: Encoder) -> None:
    """Have exports cut embeddings as the base's folder does where that is the run's largest dim, else not."""
    cut = encoder.spec.truncate_dim
    if cut is not None and cut != max(config.loss.dims):
        encoder.spec = replace(encoder.spec, truncate_dim=None)
        if cut < encoder.width:
            console.print(
                f"model.name = {config.model.name}: cuts embeddings to {cut} values (truncate_dim); the exported model "
                f"will not, since it is trained for the dims {', '.join(map(str, config.loss.dims))}",
                markup=False,
            )


@dataclass(frozen=True)
class Conditions:
    """What decides whether a setting has an effect: the settled config, and what the run came to."""

    config: Config
    steps: int
    planned_steps: int
    """Of the whole plan, of which `steps` are made."""
    processes: int
    has_negatives: bool
    has_soft_targets: bool
    """Whether pairs have a teacher's scores, or graded labels."""
    has_teacher: bool
    """Whether some have a teacher's scores."""
    is_limited: bool
    """Whether data.limit left pairs out."""
    from_adapter: bool
    """Whether the model was loaded with an adapter."""

    @property
    def is_phased(self) -> bool:
        """Whether there are phases to train in order."""
        return self.config.curriculum.mode == "phased"

    @property
    def evaluations_before_the_end(self) -> int:
        """Evaluations on dev while there are steps left."""
        phases = len(self.config.curriculum.phases) if self.is_phased else 1
        every = self.config.eval.every
        return (self.steps - 1) // every if every else phases - 1

    @property
    def decays(self) -> bool:
        """Whether the learning rate comes down within the steps that are made."""
        optim = self.config.optim
        return schedule_edges(self.planned_steps, optim.warmup_ratio, optim.hold_ratio)[1] < self.steps

    def reads_pairs(self, *own: str) -> bool:
        """Whether some pairs come from a file, of sources one without settings of its own of these names; the labels
        of generated pairs are 0 and 1."""
        data = self.config.data
        sources = [source.path for source in data.sources if not any(getattr(source, name) for name in own)]
        return any(path not in ("", INCIDENTS) for path in (data.train, *sources, data.dev, data.test))


@dataclass(frozen=True)
class Effect:
    """When a setting has an effect, and why it has none otherwise."""

    holds: Callable[[Conditions], bool]
    otherwise: str


_ADAPTERS = Effect(lambda run: run.config.lora.enabled, "lora.enabled = false")
_NO_FILE = "all pairs are generated, or of sources that have their own"
_OF_FILES = Effect(lambda run: run.reads_pairs() or bool(run.config.data.corpus), "all pairs are generated")
# Of the settings that do not always have one. What cannot be honoured at all is an error of the config instead.
EFFECTS = {
    **{f"lora.{name}": _ADAPTERS for name in ("rank", "alpha", "dropout", "targets", "rslora", "dora")},
    "lora.start": Effect(lambda run: run.config.lora.enabled and run.from_adapter, "there is no adapter to go on with"),
    "data.dev_fraction": Effect(
        lambda run: not run.config.data.dev and run.config.data.train != INCIDENTS, "dev is not split off"
    ),
    "data.batches": Effect(lambda run: len(run.config.data.sources) > 1, "there is one source of pairs"),
    "data.label_scale": Effect(lambda run: run.reads_pairs("label_scale"), _NO_FILE),
    # On the scale of data alone.
    "data.positive_threshold": Effect(lambda run: run.reads_pairs("positive_threshold", "label_scale"), _NO_FILE),
    "data.columns": Effect(lambda run: run.reads_pairs("columns"), _NO_FILE),
    "data.encoding": _OF_FILES,
    "data.separator": _OF_FILES,
    "data.allow_overlap": Effect(
        lambda run: bool(run.config.data.dev or run.config.data.test), "a dev that is split off shares no text"
    ),
    "data.limit": Effect(lambda run: run.is_limited, "there are no more pairs"),
    "curriculum.phases": Effect(lambda run: run.is_phased, 'curriculum.mode = "mixed" trains all phases at once'),
    "curriculum.replay": Effect(
        lambda run: run.is_phased and len(run.config.curriculum.phases) > 1, "there is no earlier phase"
    ),
    "train.timeout": Effect(lambda run: run.processes > 1, "one process waits for no other"),
    "optim.floor_lr": Effect(lambda run: run.decays, "no step comes after warm-up and hold"),
    "loss.pair_weight": Effect(lambda run: run.has_negatives, "there are no negatives"),
    "loss.distillation_weight": Effect(
        lambda run: run.has_soft_targets, "no pair has a teacher's score or a label between 0 and data.label_scale"
    ),
    "loss.teacher_scale": Effect(
        lambda run: run.has_teacher and run.config.loss.distillation_weight > 0, "no teacher's scores are learned"
    ),
    "eval.largest_strength": Effect(lambda run: run.config.eval.choose_strength, "eval.choose_strength = false"),
    "early_stopping.patience": Effect(
        lambda run: run.evaluations_before_the_end > run.config.early_stopping.patience,
        "so few evaluations come before the end; set eval.every",
    ),
    "checkpoint.every": Effect(lambda run: run.config.checkpoint.every < run.steps, "the run has fewer steps"),
}


def ignored_settings(asked: Config, run: Conditions) -> list[str]:
    """Each setting that was set and has no effect in the run, with why: "lora.rank (lora.enabled = false)".

    Args:
        asked: the config as it was given, before it was settled.
    """
    return [
        f"{key} ({EFFECTS[key].otherwise})"
        for key in changed_settings(asked)
        if key in EFFECTS and not EFFECTS[key].holds(run)
    ]


def print_settings(asked: Config, run: Conditions, width: int) -> None:
    """Say which settings differ from the defaults, were left open, have no effect, and which dims are not trained."""
    settled = run.config

    def show(heading: str, settings: dict[str, str]) -> None:
        if settings:
            shown = ", ".join(f"{key} = {value}" for key, value in settings.items())
            console.print(f"{heading}: {shown}", markup=False)

    show("Settings that differ from the defaults", changed_settings(asked))
    show("Settled by the model and the pairs", changed_settings(settled, asked))
    if ignored := ignored_settings(asked, run):
        console.print(f"Ignored: {', '.join(ignored)}", markup=False)
    if (largest := max(settled.loss.dims)) < width:
        console.print(
            f"The largest of loss.dims, {largest}, is below the model's width, {width}: only embeddings cut to "
            f"{largest} or less are trained and judged",
            markup=False,
        )
