"""The model that a run begins with, and the original where that one came of another run: found, loaded, fit for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator

from trainer.config import Config
from trainer.data.run_data import RunData, locate_model
from trainer.errors import InputError
from trainer.model.encoder import Encoder, EncoderSpec, weights_fingerprint
from trainer.model.folder import UnfitModel, base_of_adapter, optional_json
from trainer.model.loading import load_encoder
from trainer.model.lora import resolve_targets, settled_by_adapter
from trainer.model.proof import check_padding
from trainer.model.served import is_served
from trainer.system.console import console
from trainer.system.run_files import ADAPTER, METADATA, MODEL
from trainer.training.settled import check_dims_fit, keep_cut_that_fits, settle


@dataclass(frozen=True)
class Origin:
    """What a chain of runs began with, as training_metadata.json has it."""

    name: str
    """Hub name or absolute folder."""
    weights: str = ""
    """Fingerprint of its weights; "" where nobody wrote it down."""

    def __post_init__(self) -> None:
        """Raise TypeError where a file holds something else."""
        if {str} != set(map(type, vars(self).values())):
            raise TypeError("name and weights of an origin are texts")


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
    load_original(config, encoder, announce=True)  # so does this
    return config, model_name, encoder


def load_base(config: Config, model_name: str, announce: bool = False) -> Encoder:
    """The untouched encoder, from disk, on the CPU; `announce` what a person should know of it. Raises InputError."""
    if is_served(model_name):
        raise InputError(f"model.name = {model_name}: an exported graph is not trained; name the model it was made of")
    asked = config.model
    return load_encoder(
        model_name, max_length=asked.max_length, pooling=asked.pooling, prompts=asked.prompts, announce=announce
    )


def load_original(config: Config, start: Encoder, announce: bool = False) -> Encoder | None:
    """The model to compare with at the end beside the one that the run began with; None where there is no other.

    Args:
        start: the encoder that the run began with.
        announce: say what it is, or why it cannot be had.

    Raises:
        InputError: model.original names one, and it cannot be had.
    """
    named = config.model.original not in ("", "auto")
    origin = Origin(config.model.original) if named else origin_of(start.spec) if config.model.original else None
    if origin is None:
        return None
    original, problem = None, ""
    try:
        original = load_base(config, origin.name)
        weights = weights_fingerprint(original)
        if origin.weights and weights != origin.weights:
            problem = f"{origin.name}: its weights are not what they were when training began there"
        elif original.width < max(config.loss.dims):
            problem = f"{origin.name}: it is {original.width} wide, and loss.dims go up to {max(config.loss.dims)}"
        elif weights == weights_fingerprint(start):
            return None
    except InputError as error:
        problem = str(error).removeprefix("model.name = ")
    if problem and named:
        raise InputError(f"model.original = {problem}")
    if announce:
        said = f"not compared with at the end: {problem}; name it as model.original" if problem else origin.name
        console.print(f"Original of model.name = {start.spec.name}: {said}", markup=False)
    return None if problem else original


def origin_of(spec: EncoderSpec) -> Origin | None:
    """Where the model of a folder came from: what the metadata of its run say, or an adapter's base; None of others."""
    folder = Path(spec.name).resolve()
    if folder.name in (MODEL, ADAPTER) and (file := folder.parent / METADATA).is_file():
        try:
            metadata = optional_json(file)
            began = {"name": metadata["model"]["name"], "weights": metadata["fingerprints"]["base_weights"]}
            return Origin(**metadata.get("original", began))
        except (UnfitModel, LookupError, TypeError):
            console.print(f"{file}: damaged or of another version; it does not tell the original", markup=False)
    return Origin(base_of_adapter(spec.adapter)) if spec.adapter else None


def origin_of_run(spec: EncoderSpec, weights: str) -> Origin:
    """What a run writes down as its origin: that of the model it began with, or this model itself.

    Args:
        spec: of the encoder that the run began with, and its weights' fingerprint.
    """
    name = str(Path(spec.name).resolve()) if Path(spec.name).is_dir() else spec.name
    return origin_of(spec) or Origin(name, weights)
