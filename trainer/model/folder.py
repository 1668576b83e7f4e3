"""What a model folder says, fetched from the hub if need be: its files, modules, pooling, prompts. Reads JSON alone."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.errors import InputError, StorageError, first_line
from trainer.model.encoder import SURROGATES, EncoderSpec
from trainer.system.failures import is_disk_full
from trainer.system.files import MANIFEST, find_damage

# Patterns of a snapshot: never pickles, ONNX files or code.
HUB_FILES = ["*.json", "*.txt", "*.model", "model*.safetensors", "*/model*.safetensors", "adapter_model.safetensors"]
SETTINGS = "config_sentence_transformers.json"
"""The file of a sentence-transformers folder with what its embeddings depend on beside the modules."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DENSE_WEIGHTS, DENSE_KEY = "model.safetensors", "linear.weight"
AUTO = ("auto",)
"""Prompts that the folder names."""
SIDES = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""The names under which folders keep the prompt of a side, the first of them before the others."""
# Settings of a folder's Transformer module that change embeddings and that the trainer does not know how to apply.
UNKNOWN_TO_US = (
    *("query_length", "document_length", "query_expansion"),
    *("processing_kwargs", "config_args", "config_kwargs"),
)


KINDS = ("Transformer", "Pooling", "Dense", "Normalize")
"""Modules of a sentence-transformers folder, the first two of which the others need."""


class UnfitModel(Exception):
    """What keeps a model from being loaded, with the fix; `load_encoder` adds which model it is."""


def find_folder(name: str) -> tuple[Path, Path]:
    """(folder of the transformer, folder of the whole model), fetched from the hub where it is not local.

    Raises UnfitModel, as all of this module does, and as `download_model`.
    """
    root = Path(name)
    if not root.is_dir():
        if root.exists() or root.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise UnfitModel("no such folder; name a model folder or a hub model")
        root = download_model(name, HUB_FILES, f"model.name = {name}")
    transformer = root
    for module in _modules(root):
        if _kind(module) == "Transformer":
            transformer = _inside(root, module["path"])
    if not (transformer / "config.json").is_file() and not is_adapter(transformer):
        if (inner := root / "model" / "config.json").is_file():
            raise UnfitModel(f"is the folder of a run; its model is {inner.parent}")
        raise UnfitModel(f"no config.json in {transformer}; name a Hugging Face model folder")
    return transformer, root


def download_model(name: str, patterns: Sequence[str], asked: str) -> Path:
    """The folder of a hub model's files that match the patterns, downloaded where the hub's cache lacks them.

    Args:
        asked: the setting or option that names the model, as messages begin with it: "model.name = NAME".

    Raises:
        InputError: no such model, or no network.
        StorageError: the disk of the hub's cache is full.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():  # a bar drawn over itself is escape codes in a file
        disable_progress_bars()

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (HFValidationError, OSError, RuntimeError) as error:  # the hub's other errors are OSErrors
        if is_disk_full(error):
            raise StorageError(
                f"{asked}: no space to download it; free some, or set HF_HOME to a folder with more"
            ) from error
        if isinstance(error, RuntimeError):
            raise
        raise InputError(
            f"{asked}: no such folder, and not to be had from the hub ({type(error).__name__}); check the name and the "
            "network, or name a local folder"
        ) from error


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter alone, without the model that it is for."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of_adapter(folder: Path) -> str:
    """The name of the model that an adapter is for."""
    config = optional_json(folder / ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UnfitModel(f"{ADAPTER_CONFIG} names no base model; name a merged model")
    if config.get("peft_type") != "LORA":
        kind = config.get("peft_type")
        raise UnfitModel(f"an adapter of kind {kind!r}; only LORA is read: name a merged model")
    if config.get("megatron_config"):
        raise UnfitModel(f"{ADAPTER_CONFIG} asks to import a module of its own (megatron_config); name a merged model")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UnfitModel(f"an adapter without {ADAPTER_WEIGHTS}; save it as safetensors")
    if is_adapter(Path(base)):
        raise UnfitModel(f"an adapter for {base}, an adapter itself; name a merged model")
    return base


def require_safetensors(folder: Path) -> None:
    """Raise UnfitModel where weights are missing, pickled, elsewhere, or another model's."""
    if not any(folder.glob("model*.safetensors")):
        pickles = sorted(path.name for path in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
        problem = f"only {pickles[0]}, a pickle, which is not loaded" if pickles else "no weights"
        raise UnfitModel(f"{problem}; save the model as safetensors")

    index = folder / "model.safetensors.index.json"
    shards = optional_json(index).get("weight_map", {})
    if not isinstance(shards, dict) or not all(re.fullmatch(r"[\w.-]+\.safetensors", str(s)) for s in shards.values()):
        raise UnfitModel(f"{index.name} names other files than safetensors of its own folder")
    if (folder / ADAPTER_CONFIG).exists():  # transformers would load the base that it names instead
        raise UnfitModel("holds an adapter for another model; name a merged model")


def require_whole(root: Path) -> None:
    """Raise UnfitModel where a folder is not what its manifest says."""
    if (root / MANIFEST).is_file() and (problem := find_damage(root)):
        raise UnfitModel(
            f"{problem}; copy or export the model again, or remove its {MANIFEST} if you changed it yourself"
        )


def read_spec(
    name: str, root: Path, max_length: int = 0, pooling: str = "auto", prompts: Sequence[str] = AUTO
) -> EncoderSpec:
    """What a folder says of how embeddings are made, but for what is asked for otherwise, as in `load_encoder`."""
    folders = module_folders(root)
    if pooling == "auto":
        pooling = _read_pooling(optional_json(folders["Pooling"] / "config.json")) if "Pooling" in folders else "mean"
    if "Normalize" in folders:
        normalize = optional_json(folders["Normalize"] / "config.json")
        if normalize.get("module_input_name", "sentence_embedding") != "sentence_embedding":
            raise UnfitModel("normalising something else than the embedding cannot be honoured")
    transformer = folders.get("Transformer", root)
    settings = _transformer_settings(transformer)
    folder_length = settings.get("max_seq_length") or 0
    if type(folder_length) is not int or folder_length < 0:
        raise UnfitModel(f"max_seq_length = {folder_length!r} is no whole number above 0")
    truncate_dim = optional_json(root / SETTINGS).get("truncate_dim")
    if truncate_dim is not None and (type(truncate_dim) is not int or truncate_dim < 1):
        raise UnfitModel(f"truncate_dim = {truncate_dim!r} in {SETTINGS} is no whole number above 0")
    named, default, sides = _read_prompts(root, prompts)
    return EncoderSpec(
        name=name,
        folder=transformer,
        # A name of the hub stays one: where its files lie on this machine is of no use elsewhere.
        base=str(transformer.resolve()) if Path(name).is_dir() else name,
        pooling=pooling,
        max_length=max_length or folder_length,
        normalize="Normalize" in folders,
        lower_case=bool(settings.get("do_lower_case", False)),
        prompts=named,
        default_prompt=default,
        query_prompt=sides[0],
        document_prompt=sides[1],
        truncate_dim=truncate_dim,
    )


def module_folders(root: Path) -> dict[str, Path]:
    """Kind of module -> its folder, in order; {} of a folder that lists none.

    Raises UnfitModel where they are not a Transformer, with a Pooling, a Dense and a Normalize behind it or without.
    """
    modules = _modules(root)
    kinds = [_kind(module) for module in modules]
    if modules and (kinds[:2] != list(KINDS[: len(kinds[:2])]) or kinds != [kind for kind in KINDS if kind in kinds]):
        listed = ", ".join(kinds)
        raise UnfitModel(f"modules.json lists {listed}; only {', '.join(KINDS)}, in this order, can be honoured")
    return {kind: _inside(root, module["path"]) for kind, module in zip(kinds, modules, strict=True)}


def _read_prompts(root: Path, asked: Sequence[str]) -> tuple[tuple[tuple[str, str], ...], str | None, tuple[str, str]]:
    """(prompts by name, name of the default one or None, prompts of query and document).

    A side has the prompt of its name, else the default one, else none.
    """
    if tuple(asked) != AUTO:
        query, document = asked[0], asked[-1]
        if query == document:
            return ((("query", query), ("document", query)), "query", (query, query)) if query else ((), None, ("", ""))
        return (("query", query), ("document", document)), None, (query, document)
    settings = optional_json(root / SETTINGS)
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str | None) for prompt in prompts.values()):
        raise UnfitModel(f"prompts in {SETTINGS} are no named texts")
    if default is not None and default not in list(prompts):
        raise UnfitModel(f"default_prompt_name {default!r} is none of its prompts")
    if any(SURROGATES.search(prompt or "") for prompt in prompts.values()):
        raise UnfitModel("a prompt holds half a surrogate pair, which is no text; take it out")
    fallback = (prompts[default] or "") if default else ""
    query, document = (
        next((prompts[key] for key in keys if prompts.get(key) is not None), fallback) for keys in SIDES.values()
    )
    return tuple((key, prompt or "") for key, prompt in prompts.items()), default, (query, document)


def _transformer_settings(folder: Path) -> dict[str, Any]:
    """Settings of the Transformer module; older versions of sentence-transformers named the file after the model."""
    files = [folder / "sentence_bert_config.json", *sorted(folder.glob("sentence_*_config.json"))]
    settings = next((read for file in files if (read := optional_json(file))), {})
    if unknown := [key for key in UNKNOWN_TO_US if settings.get(key)]:
        raise UnfitModel(f"{unknown[0]} of its Transformer module cannot be honoured")
    if settings.get("transformer_task", "feature-extraction") != "feature-extraction":
        raise UnfitModel(f"a model for {settings['transformer_task']}, not for embeddings")
    return settings


def _read_pooling(config: dict[str, Any]) -> str:
    """Pooling of a sentence-transformers folder: one `pooling_mode`, or the older switch a mode."""
    switches = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    modes = [switches.get(key, key) for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        modes = mode if isinstance(mode, list) else [mode]
    if modes not in (["mean"], ["cls"]):
        shown = " + ".join(map(str, modes)) or "of no kind"
        raise UnfitModel(f"pooling {shown} cannot be honoured; set model.pooling")
    if config.get("include_prompt") is False:
        raise UnfitModel("pooling without the prompt (include_prompt) cannot be honoured")
    return str(modes[0])


def _modules(root: Path) -> list[dict[str, Any]]:
    path = root / "modules.json"
    modules = _read_json(path) if path.is_file() else []
    shape_is_known = isinstance(modules, list) and all(
        isinstance(module, dict) and isinstance(module.get("type"), str) and isinstance(module.get("path"), str)
        for module in modules
    )
    if not shape_is_known:
        raise UnfitModel("modules.json is no list of modules with type and path")
    return list(modules)


def _kind(module: dict[str, Any]) -> str:
    """The class name of a sentence-transformers module; anything from elsewhere keeps its full name."""
    package, _, kind = module["type"].rpartition(".")
    return kind if package.split(".")[0] == "sentence_transformers" else str(module["type"])


def _inside(root: Path, path: str) -> Path:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path or "\0" in path:
        raise UnfitModel(f"modules.json points outside the model folder: {path!r}")
    return root / parts


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UnfitModel(f"cannot read {path.name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UnfitModel(f"{path.name} is no valid JSON: {first_line(error)}") from error


def optional_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder; {} where there is no such file."""
    value = _read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise UnfitModel(f"{path.name} is no JSON object")
    return value
