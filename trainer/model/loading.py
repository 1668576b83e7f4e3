"""Load an encoder from a folder or the hub: only safetensors weights, and no code from a model folder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from torch import Tensor
from transformers import (
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from trainer.errors import InputError, first_line
from trainer.model.encoder import Encoder, EncoderSpec
from trainer.model.families import FAMILIES, without_pooler
from trainer.model.fast_layers import make_lean
from trainer.model.folder import (
    ADAPTER_WEIGHTS,
    AUTO,
    DENSE_KEY,
    DENSE_WEIGHTS,
    UnfitModel,
    base_of_adapter,
    find_folder,
    is_adapter,
    module_folders,
    optional_json,
    read_spec,
    require_safetensors,
    require_whole,
)
from trainer.model.served import is_served, load_served
from trainer.system.console import console

# What libraries raise at values in a model's files that they did not expect.
LOADING_ERRORS = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RuntimeError),
    *(SafetensorError, StrictDataclassError),
)
SHORTEST = 3  # start, one token, end
UNBOUNDED = 10**6  # tokenizers write a huge model_max_length where they know of none
HALF_TYPES = ("float16", "bfloat16")
PADDINGS = ("eos_token", "unk_token", "sep_token", "cls_token", "bos_token", "mask_token")
"""What a tokenizer without a padding token may pad with: special tokens that it has already, which no text changes."""


def load_encoder(
    name: str, *, max_length: int = 0, pooling: str = "auto", prompts: Sequence[str] = AUTO, announce: bool = True
) -> Encoder:
    """Load an encoder from a folder or from the hub, in fp32 on the CPU, ready for evaluation.

    Reads sentence-transformers folders, plain Hugging Face ones, those of a PEFT adapter, which is merged into its base
    (`load_with_adapter` has it beside that), and graphs that `trainer export` wrote. Linear layers and dropout are
    replaced by ones that compute the same faster. Of an encoder-decoder model of the T5 kind the encoder is taken. A
    tokenizer pads on the right and has a padding token, whatever its folder says.

        >>> from trainer.model.loading import load_encoder
        >>> encoder = load_encoder("models/tiny", pooling="cls")  # of `build_tiny_mpnet`, or any model's folder
        >>> encoder.width, encoder.spec.max_length, encoder.spec.pooling
        (64, 128, 'cls')

    Args:
        name: a folder, or a name on the hub such as "sentence-transformers/all-mpnet-base-v2".
        max_length: tokens of the longest sequence, special ones included; 0 takes what the folder says.
        pooling: "mean", "cls", or "auto" for what the folder says.
        prompts: ("auto",) for what the folder says, one prompt for both sides, or the query's and the document's.
        announce: say what a person should know of the model.

    Raises:
        InputError: no such model, a pickle, foreign code, missing weights, or modules that cannot be honoured.
        StorageError: the disk is too full for what the hub has.
    """
    hush_transformers()
    try:
        encoder, notes = _load(name, max_length=max_length, pooling=pooling, prompts=prompts)
    except UnfitModel as error:
        raise InputError(f"model.name = {name}: {error}") from error
    for note in notes if announce else ():
        console.print(note, markup=False)
    return encoder


def _load(name: str, max_length: int, **options: Any) -> tuple[Encoder, list[str]]:
    """An encoder, and what a person should know of it. Raises UnfitModel, and as `_fit_length` and `download_model`."""
    if is_served(name):
        if max_length or tuple(options.values()) != ("auto", AUTO):
            raise UnfitModel(
                "an exported graph has its max length, pooling and prompts fixed; name what it was made of"
            )
        return load_served(name), []
    folder, root = find_folder(name)
    require_whole(root)
    if is_adapter(folder):
        return _load_adapted(folder, root, name, max_length, **options), []
    spec = read_spec(name, root, max_length, **options)
    config = optional_json(folder / "config.json")
    if "auto_map" in config:
        raise UnfitModel("config.json asks to run code of its own (auto_map); use another model")
    require_safetensors(folder)
    backbone = _load_backbone(folder)
    make_lean(backbone)
    tokenizer = _load_tokenizer(folder)
    notes = []
    if substitute := make_padding_safe(tokenizer, backbone):
        notes.append(f"model.name = {name}: its tokenizer has no padding token; {substitute} serves as one")
    if (stored := config.get("dtype", config.get("torch_dtype"))) in HALF_TYPES:
        notes.append(f"model.name = {name}: its weights are {stored}; they are trained, judged and exported in float32")
    if any(prompt for _, prompt in spec.prompts) and not any(spec.side_prompts):
        names = ", ".join(name for name, _ in spec.prompts)
        notes.append(f"model.name = {name}: none of its prompts ({names}) is of a side; model.prompts may name the two")
    if tuple(options["prompts"]) != AUTO:
        told = "before training too, whether or not they are its own"
        notes.append(f"model.name = {name}: with model.prompts {told}: its own figures may be others")
    if backbone.config.model_type not in FAMILIES:
        notes.append(f"{backbone.config.model_type} is none of {', '.join(FAMILIES)}: training on the padded path")
    return _complete(spec, backbone, tokenizer, max_length, _load_dense(root, backbone.config.hidden_size)), notes


def _complete(
    spec: EncoderSpec, backbone: PreTrainedModel, tokenizer: Any, max_length: int, dense: Tensor | None
) -> Encoder:
    if spec.lower_case:
        _lower_case(tokenizer.backend_tokenizer)
    encoder = Encoder(backbone, tokenizer, _fit_length(spec, backbone, tokenizer, max_length))
    encoder.dense = dense
    return encoder.eval()


def _load_dense(root: Path, width: int) -> Tensor | None:
    """Weights [E, E] of a folder's Dense module; None without one. Raises UnfitModel for any but a plain product."""
    folder = module_folders(root).get("Dense")
    if folder is None:
        return None
    config = optional_json(folder / "config.json")
    names = ("module_input_name", "module_output_name")
    # What its config leaves out is a bias and an activation for sentence-transformers.
    plain = str(config.get("activation_function", "")).rpartition(".")[2] == "Identity" and config.get("bias") is False
    if not plain or any(config.get(name) not in (None, "sentence_embedding") for name in names):
        raise UnfitModel(f"{folder.name} has a bias, an activation or another input, which cannot be honoured")
    if not (folder / DENSE_WEIGHTS).is_file():
        raise UnfitModel(f"{folder.name} has no {DENSE_WEIGHTS}; save the model as safetensors")
    try:
        tensors = load_file(folder / DENSE_WEIGHTS)
        weights = tensors.pop(DENSE_KEY).float()
    except LOADING_ERRORS as error:
        raise UnfitModel(f"cannot load {folder.name}: {first_line(error)}") from error
    if tensors:
        raise UnfitModel(f"{folder.name} has weights beside {DENSE_KEY}, first {min(tensors)}; use another model")
    if weights.shape != (width, width):
        raise UnfitModel(f"{folder.name} makes {list(weights.shape)} of {width} values; only as many can be honoured")
    return weights


def _load_adapted(folder: Path, root: Path, name: str, max_length: int, **options: Any) -> Encoder:
    """An adapter's base with the adapter merged into it; what the adapter's folder does not say, the base's does."""
    try:
        base = load_encoder(base_of_adapter(folder), max_length=max_length, announce=False, **options)
    except InputError as error:
        raise UnfitModel(f"holds an adapter whose base cannot be used: {error}") from error
    adapted: Any = _around(base.model, folder)
    backbone = adapted.merge_and_unload().requires_grad_(True)  # PEFT had frozen the base
    make_lean(backbone)
    spec, tokenizer, dense = replace(base.spec, name=name), base.tokenizer, base.dense
    if (root / "modules.json").is_file():
        spec = replace(read_spec(name, root, max_length, **options), folder=base.spec.folder)
        dense = _load_dense(root, base.width)
    spec = replace(spec, adapter=folder, base="")
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = _load_tokenizer(folder)
        make_padding_safe(tokenizer, backbone)
    return _complete(spec, backbone, tokenizer, max_length, dense)


def load_with_adapter(spec: EncoderSpec, dropout: float) -> peft.PeftModel:
    """Load the base and the adapter of an encoder again, side by side, the adapter to be trained on.

    What merging added to the base could only be taken away with rounding.

    Args:
        spec: of an encoder with an adapter.
        dropout: of the adapter's inputs, whatever the adapter says.

    Raises:
        InputError: they are no longer what they were when the encoder was loaded.
    """
    assert spec.adapter is not None
    try:
        backbone = _load_backbone(spec.folder)
        make_lean(backbone)
        adapted = _around(backbone, spec.adapter, dropout)
    except UnfitModel as error:
        raise InputError(f"model.name = {spec.name}: {error}") from error
    make_lean(adapted)
    return adapted


def _around(backbone: Any, folder: Path, dropout: float | None = None) -> peft.PeftModel:
    """An adapter around its base, to be trained with a dropout, or for evaluation.

    Raises UnfitModel where it does not fit, also where PEFT would leave weights out with a warning.
    """
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        if dropout is not None:
            config.lora_dropout = dropout
        with warnings.catch_warnings(action="ignore"):  # of weights left out: counted below
            adapted = peft.PeftModel.from_pretrained(backbone, folder, config=config, is_trainable=dropout is not None)
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as tensors:
            stored = {name.removesuffix(".weight") for name in tensors.keys()}  # noqa: SIM118  # it is no dict
        used = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except LOADING_ERRORS as error:
        raise UnfitModel(f"cannot load the adapter: {first_line(error)}") from error
    if strays := sorted(stored ^ {name.removesuffix(".weight") for name in used}):
        raise UnfitModel(f"the adapter does not fit its base: {len(strays)} weights of one only, first {strays[0]}")
    return adapted


def hush_transformers() -> None:
    """Turn off its loading reports and bars, which would drown ours; what matters of them is checked here.

    So are its warnings of what will change: PEFT asks it for a property by an old name, which no user can help.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _load_backbone(folder: Path) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(folder)
        factory: Any = AutoModel
        kind: Any = MODEL_MAPPING.get(type(config), None)
        encoder_kind: Any = MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(config), None)
        if encoder_kind is not None and encoder_kind is not kind and encoder_kind.__name__.endswith("EncoderModel"):
            factory, kind = AutoModelForTextEncoding, encoder_kind
        elif config.is_encoder_decoder:
            raise UnfitModel(
                f"{config.model_type} is an encoder-decoder model, of which only the T5 kind is known by its encoder; "
                "use that, or an encoder"
            )
        options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
        options |= without_pooler(kind) if kind is not None else {}
        model, report = factory.from_pretrained(folder, config=config, output_loading_info=True, **options)
    except LOADING_ERRORS as error:
        raise UnfitModel(f"cannot load the model: {first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise UnfitModel(f"{len(missing)} weights are missing from the file, first {missing[0]}; use a complete model")
    if not isinstance(getattr(model.config, "hidden_size", None), int):
        raise UnfitModel(f"{config.model_type} is no text encoder; use another model")
    return model


def _load_tokenizer(folder: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
    except LOADING_ERRORS as error:
        raise UnfitModel(f"cannot load the tokenizer: {first_line(error)}") from error
    # Where its files are missing, transformers may make one that knows its special tokens and no word.
    if len(tokenizer) <= len(tokenizer.all_special_ids) or not getattr(tokenizer, "is_fast", False):
        raise UnfitModel("the folder has no fast tokenizer (tokenizer.json); add one")
    return tokenizer


def _lower_case(backend: Any) -> None:
    """Put lower-casing before all else that a tokenizer does to a text, unless it is there."""
    steps = [backend.normalizer] if backend.normalizer is not None else []
    if steps and isinstance(steps[0], Normalizers):
        steps = [steps[0][i] for i in range(len(steps[0]))]
    if not any(isinstance(step, Lowercase) for step in steps):
        backend.normalizer = Normalizers([Lowercase(), *steps])


def make_padding_safe(tokenizer: Any, backbone: Any) -> str:
    """Pad on the right, where absolute positions stay what they were, and with a token that the model has.

    Returns the special token that pads now because there was none for it; "" where there was one.
    """
    tokenizer.padding_side, embeddings = "right", backbone.get_input_embeddings().num_embeddings
    if tokenizer.pad_token is not None and tokenizer.pad_token_id < embeddings:
        return ""
    for kind in PADDINGS:
        token = getattr(tokenizer, kind, None)
        if token is not None and tokenizer.convert_tokens_to_ids(token) < embeddings:
            tokenizer.pad_token = token
            return str(token)
    raise UnfitModel(
        "the tokenizer has no padding token, nor another special one that could serve; name one as pad_token in "
        "tokenizer_config.json"
    )


def _fit_length(spec: EncoderSpec, backbone: Any, tokenizer: Any, asked: int) -> EncoderSpec:
    """Settle the max length: what was asked for, else the folder's, never beyond the model's positions."""
    positions = getattr(backbone.config, "max_position_embeddings", None) or UNBOUNDED
    positions = positions if positions > 0 else UNBOUNDED  # XLNet writes -1
    # Families of fairseq count positions from behind the padding index on.
    tables = (getattr(module, "position_embeddings", None) for module in backbone.modules())
    table = next((table for table in tables if isinstance(table, torch.nn.Embedding)), None)
    if table is not None and table.padding_idx is not None:
        positions -= table.padding_idx + 1
    if asked > positions:
        raise InputError(f"model.max_length = {asked}: {spec.name} has positions for {positions} tokens; lower it")
    length = min(spec.max_length or tokenizer.model_max_length, positions)
    if length < SHORTEST:
        raise UnfitModel(f"its max length is {length} tokens; set model.max_length")
    return replace(spec, max_length=length if length < UNBOUNDED else 512)
