"""Load an encoder from a folder or the hub: only safetensors weights, and no code from a model folder."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from trainer.errors import InputError, first_line
from trainer.model.encoder import Encoder, EncoderSpec
from trainer.model.families import FAMILIES
from trainer.model.fast_layers import make_lean
from trainer.model.hub import download_model
from trainer.system.console import console
from trainer.system.files import MANIFEST, find_damage

# Patterns of a snapshot: never pickles, ONNX files or code.
HUB_FILES = ["*.json", "*.txt", "*.model", "model*.safetensors", "*/model*.safetensors"]
# What libraries raise at values in a model's files that they did not expect.
LOADING_ERRORS = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RuntimeError),
    *(SafetensorError, StrictDataclassError),
)
SHORTEST = 3  # start, one token, end
UNBOUNDED = 10**6  # tokenizers write a huge model_max_length where they know of none


def load_encoder(name: str, *, max_length: int = 0, pooling: str = "auto") -> Encoder:
    """Load an encoder from a folder or from the hub, in fp32 on the CPU, ready for evaluation.

    Reads sentence-transformers folders and plain Hugging Face ones. Linear layers and dropout are replaced by ones that
    compute the same faster.

        >>> from trainer.model.loading import load_encoder
        >>> encoder = load_encoder("models/tiny", pooling="cls")  # of `build_tiny_mpnet`, or any model's folder
        >>> encoder.width, encoder.spec.max_length, encoder.spec.pooling
        (64, 128, 'cls')

    Args:
        name: a folder, or a name on the hub such as "sentence-transformers/all-mpnet-base-v2".
        max_length: tokens of the longest sequence, special ones included; 0 takes what the folder says.
        pooling: "mean", "cls", or "auto" for what the folder says.

    Raises:
        InputError: no such model, a pickle, foreign code, missing weights, or modules that cannot be honoured.
        StorageError: the disk is too full for what the hub has.
    """
    folder, root = _find_folder(name)
    spec = _read_spec(name, root, max_length, pooling)
    if "auto_map" in _optional_json(folder / "config.json", name):
        raise InputError(f"model.name = {name}: config.json asks to run code of its own (auto_map); use another model")
    _require_safetensors(folder, name)
    _require_whole(root, name)
    hush_transformers()
    backbone = _load_backbone(folder, name)
    make_lean(backbone)
    tokenizer = _load_tokenizer(folder, name)
    encoder = Encoder(backbone, tokenizer, _fit_length(spec, backbone, tokenizer, max_length))
    if backbone.config.model_type not in FAMILIES:
        console.print(
            f"{backbone.config.model_type} is none of {', '.join(FAMILIES)}: training on the padded path", markup=False
        )
    return encoder.eval()


def hush_transformers() -> None:
    """Turn off its loading reports and bars, which would drown ours; what matters of them is checked here."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _load_backbone(folder: Path, name: str) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(folder)
        family = FAMILIES.get(config.model_type)
        options = {"dtype": torch.float32, "use_safetensors": True} | (family.without_pooler if family else {})
        model, report = AutoModel.from_pretrained(folder, config=config, output_loading_info=True, **options)
    except LOADING_ERRORS as error:
        raise InputError(f"model.name = {name}: cannot load the model: {first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"model.name = {name}: {len(missing)} weights are missing from the file, first {missing[0]}; use a "
            "complete model"
        )
    return model


def _load_tokenizer(folder: Path, name: str) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
    except LOADING_ERRORS as error:
        raise InputError(f"model.name = {name}: cannot load the tokenizer: {first_line(error)}") from error
    # Where its files are missing, transformers may make one that knows its special tokens and no word.
    if len(tokenizer) <= len(tokenizer.all_special_ids) or not getattr(tokenizer, "is_fast", False):
        raise InputError(f"model.name = {name}: the folder has no fast tokenizer (tokenizer.json); add one")
    return tokenizer


def _find_folder(name: str) -> tuple[Path, Path]:
    """(folder of the transformer, folder of the whole model), fetched from the hub where it is not local."""
    root = Path(name)
    if not root.is_dir():
        if root.exists() or root.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise InputError(f"model.name = {name}: no such folder; name a model folder or a hub model")
        root = download_model(name, HUB_FILES, f"model.name = {name}")
    transformer = root
    for module in _modules(root, name):
        if _kind(module) == "Transformer":
            transformer = _inside(root, module["path"], name)
    if not (transformer / "config.json").is_file():
        raise InputError(f"model.name = {name}: no config.json in {transformer}; name a Hugging Face model folder")
    return transformer, root


def _require_safetensors(folder: Path, name: str) -> None:
    if not any(folder.glob("model*.safetensors")):
        pickles = sorted(path.name for path in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
        problem = f"only {pickles[0]}, a pickle, which is not loaded" if pickles else "no weights"
        raise InputError(f"model.name = {name}: {problem}; save the model as safetensors")

    index = folder / "model.safetensors.index.json"
    shards = _optional_json(index, name).get("weight_map", {})
    if not isinstance(shards, dict) or not all(re.fullmatch(r"[\w.-]+\.safetensors", str(s)) for s in shards.values()):
        raise InputError(f"model.name = {name}: {index.name} names other files than safetensors of its own folder")
    if (folder / "adapter_config.json").exists():  # transformers would load the base that it names instead
        raise InputError(f"model.name = {name}: holds an adapter for another model; name a merged model")


def _require_whole(root: Path, name: str) -> None:
    if (root / MANIFEST).is_file() and (problem := find_damage(root)):
        raise InputError(
            f"model.name = {name}: {problem}; copy or export the model again, or remove its {MANIFEST} if you changed "
            "it yourself"
        )


def _modules(root: Path, name: str) -> list[dict[str, Any]]:
    path = root / "modules.json"
    modules = _read_json(path, name) if path.is_file() else []
    shape_is_known = isinstance(modules, list) and all(
        isinstance(module, dict) and isinstance(module.get("type"), str) and isinstance(module.get("path"), str)
        for module in modules
    )
    if not shape_is_known:
        raise InputError(f"model.name = {name}: modules.json is no list of modules with type and path")
    return modules


def _kind(module: dict[str, Any]) -> str:
    """The class name of a sentence-transformers module; anything from elsewhere keeps its full name."""
    package, _, kind = module["type"].rpartition(".")
    return kind if package.split(".")[0] == "sentence_transformers" else module["type"]


def _inside(root: Path, path: str, name: str) -> Path:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path or "\0" in path:
        raise InputError(f"model.name = {name}: modules.json points outside the model folder: {path!r}")
    return root / parts


def _read_spec(name: str, root: Path, max_length: int, pooling: str) -> EncoderSpec:
    modules = _modules(root, name)
    kinds = [_kind(module) for module in modules]
    if modules and kinds not in (["Transformer"], ["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise InputError(
            f"model.name = {name}: modules.json lists {', '.join(kinds)}; only Transformer, Pooling and Normalize can "
            "be honoured"
        )
    if pooling == "auto":
        pooling = "mean"
        if "Pooling" in kinds:
            where = _inside(root, modules[1]["path"], name) / "config.json"
            pooling = _read_pooling(_optional_json(where, name), name)
    settings = _optional_json(root / "config_sentence_transformers.json", name)
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str | None) for prompt in prompts.values()):
        raise InputError(f"model.name = {name}: prompts in config_sentence_transformers.json are no named texts")
    if default is not None and default not in list(prompts):
        raise InputError(f"model.name = {name}: default_prompt_name {default!r} is none of its prompts")
    transformer = _inside(root, modules[0]["path"], name) if modules else root
    bert = _optional_json(transformer / "sentence_bert_config.json", name)
    folder_length = bert.get("max_seq_length") or 0
    if type(folder_length) is not int or folder_length < 0:
        raise InputError(f"model.name = {name}: max_seq_length = {folder_length!r} is no whole number above 0")
    return EncoderSpec(
        name=name,
        pooling=pooling,
        max_length=max_length or folder_length,
        normalize="Normalize" in kinds,
        lower_case=bool(bert.get("do_lower_case", False)),
        prompts=tuple((key, prompt or "") for key, prompt in prompts.items()),
        default_prompt=default,
    )


def _read_pooling(config: dict[str, Any], name: str) -> str:
    """Pooling of a sentence-transformers folder: one `pooling_mode`, or the older switch a mode."""
    switches = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    modes = [switches.get(key, key) for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        modes = mode if isinstance(mode, list) else [mode]
    if modes not in (["mean"], ["cls"]):
        shown = " + ".join(map(str, modes)) or "of no kind"
        raise InputError(f"model.name = {name}: pooling {shown} cannot be honoured; set model.pooling")
    if config.get("include_prompt") is False:
        raise InputError(f"model.name = {name}: pooling without the prompt (include_prompt) cannot be honoured")
    return modes[0]


def _fit_length(spec: EncoderSpec, backbone: Any, tokenizer: Any, asked: int) -> EncoderSpec:
    """Settle the max length: what was asked for, else the folder's, never beyond the model's positions."""
    positions = getattr(backbone.config, "max_position_embeddings", None) or UNBOUNDED
    family = FAMILIES.get(backbone.config.model_type)
    if family is not None and family.position_offset:
        positions -= backbone.embeddings.word_embeddings.padding_idx + 1
    if asked > positions:
        raise InputError(f"model.max_length = {asked}: {spec.name} has positions for {positions} tokens; lower it")
    length = min(spec.max_length or tokenizer.model_max_length, positions)
    if length < SHORTEST:
        raise InputError(f"model.name = {spec.name}: its max length is {length} tokens; set model.max_length")
    return replace(spec, max_length=length if length < UNBOUNDED else 512)


def _read_json(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"model.name = {name}: cannot read {path.name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"model.name = {name}: {path.name} is no valid JSON: {first_line(error)}") from error


def _optional_json(path: Path, name: str) -> dict[str, Any]:
    value = _read_json(path, name) if path.is_file() else {}
    if not isinstance(value, dict):
        raise InputError(f"model.name = {name}: {path.name} is no JSON object")
    return value
