"""Building a run: `read_inputs` reads and checks everything it is given, `build_run` adds what trains.

Between the two the encoder is untouched, which is when the baseline is judged (see `loop.train`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import set_seed
from torch import Tensor
from torch.nn import Parameter

from trainer.config import Config, OutputConfig
from trainer.data.batch_layout import LayoutBuilder
from trainer.data.curriculum import PhasedBatchSampler
from trainer.data.false_negatives import Guide
from trainer.data.pairs import PairTable
from trainer.data.run_data import RunData, load_data
from trainer.evaluation.metric_choice import judged_on, require_metric, settle_metric
from trainer.evaluation.pair_metrics import Metrics
from trainer.evaluation.scoring import evaluate
from trainer.evaluation.trained_pairs import seen_by_earlier_runs
from trainer.model.embedding import embed, embed_cached
from trainer.model.encoder import Encoder
from trainer.model.loading import hush_transformers
from trainer.model.lora import continues_adapter, start_adapters
from trainer.model.tokens import TokenTable
from trainer.system import distributed as ranks
from trainer.system.console import console
from trainer.system.gpu import compute_fp32_in_full, require_code
from trainer.system.numerics import Numerics, settle_numerics
from trainer.system.transfer import to_device
from trainer.training.accelerator import make_accelerator
from trainer.training.base_model import read_base
from trainer.training.batch import Prepared, collate
from trainer.training.fast_paths import FastPaths, choose_fast_paths
from trainer.training.optimizer import build_optimizer
from trainer.training.schedule import learning_rates
from trainer.training.tokenized_data import TokenizedData, fingerprints_of, tokenize_data

CORPUS = "Embedding the corpus"

_version = cache(version)  # of a package, at a few milliseconds: each checkpoint asks for four


@dataclass(frozen=True, kw_only=True)
class Inputs(TokenizedData):
    """What a run is given, read and checked. Nothing has been written and no weight has changed."""

    # What was asked for
    config: Config
    """As it was resolved and settled, with `output.dir` the run's folder."""
    asked: Config
    """As it was given, with what it leaves open still open."""
    folder: Path
    accelerator: Accelerator
    saved_conditions: Mapping[str, Any]
    """`Run.conditions` of the run that is continued; {} for a new one."""
    numerics: Numerics
    """The precision and the products that it computes with."""

    # Model
    model_name: str
    """The folder or the hub name that the encoder was loaded from."""
    encoder: Encoder

    # Plan
    sampler: PhasedBatchSampler
    rates: list[float]
    """The learning rate of every step of the plan."""
    steps: int
    """How many steps of the plan are made: all, or the first ones where the run is cut (`--max-steps`)."""
    layouts: LayoutBuilder
    fingerprints: dict[str, str]
    """Of everything that decides the result beside the config."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this is the first rank, which writes and speaks for all."""
        return bool(self.accelerator.is_main_process)

    @property
    def judged_on(self) -> str:
        """What the best weights and the strength are chosen on: a "corpus" where eval.metric is of search, or "dev"."""
        return judged_on(self.config.eval.metric, "dev", self.corpus is not None)

    def judge_on_dev(self, autocast: Callable[[], AbstractContextManager[Any]] | None = None) -> Metrics:
        """All metrics that dev can tell, thresholds fitted on dev itself; of search on the corpus, where the run is
        judged on that. In the run's precision, unless another is given. Collective: all ranks have the first one's, as
        a last bit that differs between machines must not part them."""
        dims, autocast = self.config.loss.dims, autocast or self.autocast
        metrics = evaluate(self.encoder, self.dev, dims, autocast)
        if self.corpus is not None and self.judged_on == "corpus":
            metrics = self.corpus.add_to(metrics, embed(self.encoder, self.corpus.tokens, autocast, CORPUS))
        shared: Metrics = ranks.share_object(metrics)
        return shared

    def judge_untouched(self) -> Metrics:
        """As `judge_on_dev` before training, and by search of the corpus in any case, in fp32: the end of the run takes
        the same embeddings from the cache. Collective."""
        metrics = evaluate(self.encoder, self.dev, self.config.loss.dims, self.autocast)
        if self.corpus is not None:
            metrics = self.corpus.add_to(metrics, embed_cached(self.encoder, self.corpus.tokens, CORPUS))
        return metrics

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of the encoder's forward, in the run's precision."""
        return self.numerics.autocast(self.device)

    def prepare(self, step: int) -> Prepared:
        """Lay out and collate this rank's part of the batch of a step, and send it to the device."""
        layout = self.layouts.build([self.sampler.local(step, rank) for rank in range(ranks.world_size())])
        in_groups = self.encoder.attention != "kernel"
        prepared = collate(layout, self.tokens, self.config.train.tokens_per_chunk, in_groups)
        moved: Prepared = to_device(prepared, self.device)
        return moved


@dataclass(frozen=True, kw_only=True)
class Run(Inputs):
    """What lives as long as a run: its inputs, the encoder now with adapters, and what trains."""

    parameters: dict[str, Parameter]
    """What trains, by name."""
    optimizer: AcceleratedOptimizer
    """AdamW over exactly these, in accelerate's wrapper, which adds fp16 loss scaling."""
    fast_paths: FastPaths
    """How the steps are computed on this device."""

    def conditions(self) -> dict[str, Any]:
        """What, apart from the config, decides a result's last bits."""
        return {
            "processes": ranks.world_size(),
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            **self.numerics.conditions(),
            **self.fast_paths.conditions(),
            **{name: _version(name) for name in ("torch", "transformers", "peft", "numpy")},
        }

    def start_values(self, untouched: Encoder) -> dict[str, Tensor]:
        """What the parameters that train began with, by name, but for the random factors of fresh adapters.

        Those of an adapter that is continued are read from its folder again.
        """
        lora, encoder = self.config.lora, untouched
        if lora.enabled:
            start_adapters(encoder := copy.deepcopy(untouched), lora)
        drawn = lora.enabled and not continues_adapter(lora, untouched.spec)
        parameters = encoder.trainable().items()
        return {name: parameter.detach() for name, parameter in parameters if not (drawn and ".lora_A." in name)}


def read_inputs(
    asked: Config, folder: Path, saved_conditions: Mapping[str, Any], max_steps: int | None = None
) -> Inputs:
    """Read data and model of a run, tokenise, plan the batches; refuse what is wrong with any of it. Writes nothing.

    Args:
        saved_conditions: `Run.conditions` of the run that is continued; {} for a new one.
        max_steps: cut the run after so many steps of its plan, which stays what it is.

    Raises:
        InputError: the config, a file or the model is not fit for the run.
    """
    require_metric(asked.eval.metric, f'eval.metric = "{asked.eval.metric}"')
    accelerator, numerics = start_process(asked, folder, saved_conditions)
    data = load_data(asked.data, asked.train.seed)
    seen = seen_by_earlier_runs(asked.model.name, data.held_out, asked.data.allow_overlap)
    data = replace(data, overlap=data.overlap | seen)
    metric = settle_metric(asked.eval.metric, list(data.held_out.values()), data.corpus is not None)
    config, model_name, encoder = read_base(replace(asked, eval=replace(asked.eval, metric=metric)), data, accelerator)
    sampler = plan_batches(config, data.train)
    with accelerator.local_main_process_first():  # the others find it in the cache
        tokenized = tokenize_data(data, encoder, metric)
    fingerprints = fingerprints_of(data, tokenized.tokens, encoder)
    encoder.to(accelerator.device)
    return Inputs(
        **vars(tokenized),
        config=replace(config, output=OutputConfig(dir=str(folder))),
        asked=asked,
        folder=folder,
        accelerator=accelerator,
        saved_conditions=saved_conditions,
        numerics=numerics,
        model_name=model_name,
        encoder=encoder,
        sampler=sampler,
        rates=learning_rates(config.optim, len(sampler)),
        steps=min(max_steps or len(sampler), len(sampler)),
        layouts=layout_builder(config, data, encoder, tokenized.tokens),
        fingerprints=fingerprints,
    )


def start_process(config: Config, folder: Path, saved_conditions: Mapping[str, Any]) -> tuple[Accelerator, Numerics]:
    """Settle what this process computes on and with, who speaks, and what is drawn. Raises InputError."""
    accelerator = make_accelerator(config, folder)
    require_code(accelerator.device)
    compute_fp32_in_full()
    console.quiet = not accelerator.is_main_process
    numerics = settle_numerics(config.train.precision, accelerator.device, saved_conditions)
    set_seed(config.train.seed)
    hush_transformers()
    return accelerator, numerics


def plan_batches(config: Config, table: PairTable) -> PhasedBatchSampler:
    """The rows of every batch of the run, for all ranks. Raises InputError where a phase cannot be trained."""
    return PhasedBatchSampler(
        table,
        config.curriculum,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        world_size=ranks.world_size(),
        weights=[source.weight for source in config.data.training_files()],
        by_source=config.data.batches == "by_source",
    )


def layout_builder(config: Config, data: RunData, encoder: Encoder, tokens: TokenTable) -> LayoutBuilder:
    """What lays out this rank's part of each batch, by the encoder before training. Collective."""
    return LayoutBuilder(
        data.train,
        data.known_positives,
        rank=ranks.rank(),
        all_pairs=config.loss.pair_weight > 0 or config.loss.distillation_weight > 0,
        two_prompts=len(encoder.spec.side_prompts) > 1,
        guide=Guide.build(encoder, tokens, config.loss),
        teacher_scale=config.loss.teacher_scale,
    )


def build_run(inputs: Inputs) -> Run:
    """Add adapters where asked for, and an optimizer over exactly what trains. Changes the encoder."""
    config, encoder = inputs.config, inputs.encoder
    if config.lora.enabled:
        start_adapters(encoder, config.lora)
        encoder.to(inputs.device)
    parameters = encoder.trainable()
    ranks.share_parameters(parameters.values())
    # The sum of gradients over ranks stays ours. DDP would do it exactly, but averages what are parts of one sum, and
    # has to be kept quiet in every chunk but the last: more lines than the sum has.
    fast_paths = prove_fast_paths(inputs)
    optimizer = inputs.accelerator.prepare_optimizer(build_optimizer(parameters, config.optim, fast_paths.fused))
    set_seed((config.train.seed + 1 + ranks.rank()) % 2**32)  # dropout differs between ranks
    return Run(**vars(inputs), parameters=parameters, optimizer=optimizer, fast_paths=fast_paths)


def prove_fast_paths(inputs: Inputs) -> FastPaths:
    """Choose how steps are computed, by proof on a GPU, and say so. Collective."""
    compiles, fast_paths = inputs.config.train.compile == "on", FastPaths()
    if inputs.device.type == "cuda":
        fast_paths = choose_fast_paths(inputs.encoder, compiles, inputs.autocast)
    elif compiles:
        fast_paths = FastPaths(notes=('train.compile = "on": layers are compiled on a GPU alone',))
    for note in fast_paths.notes:
        console.print(note, markup=False)
    return fast_paths
