"""The model that a run begins with: found, loaded, and fit for what the config asks of it."""

from __future__ import annotations

from dataclasses import replace

from accelerate import Accelerator

from trainer.config import Config
from trainer.data.run_data import RunData, locate_model
from trainer.model.encoder import Encoder
from trainer.model.loading import load_encoder
from trainer.model.lora import resolve_targets, settled_by_adapter
from trainer.model.proof import check_padding
from trainer.training.settled import check_dims_fit, keep_cut_that_fits, settle


def read_base(config: Config, data: RunData, accelerator: Accelerator) -> tuple[Config, str, Encoder]:
    """The config settled by model and data, the folder or hub name of the model, and the untouched encoder.

    Raises:
        InputError: no such model, or it is not fit for the run.
    """
    with accelerator.local_main_process_first():
        model_name = locate_model(config.model.name, data.train.texts, config.train.seed)
        encoder = load_base(config, model_name, announce=True)
    config = replace(config, lora=settled_by_adapter(config.lora, encoder))
    config = settle(config, encoder.usual_dim, data.train)
    check_dims_fit(config, encoder)
    keep_cut_that_fits(config, encoder)
    if config.lora.enabled:
        resolve_targets(encoder.model, config.lora.targets)  # complains before any work is done
    check_padding(encoder, data.dev.texts)
    return config, model_name, encoder


def load_base(config: Config, model_name: str, announce: bool = False) -> Encoder:
    """The untouched encoder, from disk, on the CPU; `announce` what a person should know of it."""
    asked = {name: getattr(config.model, name) for name in ("max_length", "pooling", "prompts")}
    return load_encoder(model_name, announce=announce, **asked)
