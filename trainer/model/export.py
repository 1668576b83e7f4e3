"""The trained encoder as folders that load anywhere, proven by loading them (`proof`).

`model/` is a sentence-transformers folder with merged weights; `adapter/` one with the PEFT adapter alone, which loads
its base from where training did. Where training began by merging another adapter, no folder holds that base, so it is
written too, as `base/`. Both say all that their embeddings depend on: tokenizer, max length, pooling, prompts.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer import __version__
from trainer.errors import StorageError
from trainer.model.encoder import Encoder
from trainer.model.families import without_pooler
from trainer.model.folder import ADAPTER_WEIGHTS, DENSE_KEY, DENSE_WEIGHTS, KINDS, SETTINGS
from trainer.model.proof import check_exports, merged
from trainer.system.files import DEBRIS, new_folder, sync, write_file, write_manifest
from trainer.system.run_files import ADAPTER, BASE, MODEL

MAGNITUDE = ".lora_magnitude_vector"


def export(
    encoder: Encoder,
    base: Encoder,
    folder: Path,
    card: str,
    probes: list[str],
    extra_files: Mapping[str, str] | None = None,
    untouched: bool = False,
    dims: Sequence[int] = (),
) -> dict[str, float]:
    """Write `model/`, and `adapter/` where there are adapters, into a run's folder; only what passed the proof arrives.

    An adapter that training fitted to weights which stand nowhere gets these as `base/` first.

    Args:
        base: the encoder that training began with.
        probes: texts to compare on.
        extra_files: texts to keep in the model's folder beside it, by file name.
        untouched: the encoder is meant to be the base.
        dims: Matryoshka dims that the exports are for; the full width is always checked.

    Returns what `check_exports` found. Raises CheckpointError as that does, StorageError where files cannot be written.
    """
    staging = folder / f".export{DEBRIS}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        save_model(encoder, staging / MODEL, card)
        for name, text in (extra_files or {}).items():
            write_file(staging / MODEL / name, text)
        if isinstance(encoder.backbone, peft.PeftModel):
            named = encoder.spec.base or _save_base(base, folder / BASE)
            save_adapter(encoder, staging / ADAPTER, named)
        differences = check_exports(encoder, base, staging, probes, untouched, dims)
        for path in staging.iterdir():
            final = folder / path.name
            shutil.rmtree(final, ignore_errors=True)  # of an export that was cut short
            path.rename(final)
        sync(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return differences


def save_model(encoder: Encoder, folder: Path, card: str) -> None:
    """Write a sentence-transformers folder: safetensors weights, tokenizer, pooling, prompts, model card.

    What the model's class has beside what was trained (a pooler) is copied from the base, where that has it.

    Raises:
        StorageError: the folder exists or cannot be written.
    """
    plain, (pooler, complete) = merged(encoder), base_pooler(encoder)

    def save_weights(path: Path) -> None:
        plain.model.save_pretrained(path, state_dict=plain.model.state_dict() | pooler)

    _save(encoder, folder, save_weights, {} if complete else {"add_pooling_layer": False}, card)


def _save_base(base: Encoder, folder: Path) -> str:
    """Write the model that an adapter was trained around; its place as the adapter names it."""
    shutil.rmtree(folder, ignore_errors=True)  # of an export that was cut short
    save_model(base, folder, f"# What `../{ADAPTER}` was trained around\n\nIt was merged when training began.\n")
    return str(folder.resolve())


def save_adapter(encoder: Encoder, folder: Path, base: str) -> None:
    """Write the PEFT adapter alone, as a sentence-transformers folder that loads its base by this name.

    Raises as `save_model`.
    """
    _, complete = base_pooler(encoder)
    for config in encoder.backbone.peft_config.values():
        config.base_model_name_or_path = base

    def save_weights(path: Path) -> None:
        encoder.backbone.save_pretrained(str(path), safe_serialization=True)
        _name_magnitudes_for_all(path / ADAPTER_WEIGHTS)

    card = (
        f"# Adapter for {base}\n\nIt needs that model beside it, loaded as float32 whatever it is stored in, and the "
        f"library `peft`. The merged model is in `../{MODEL}`, with its card and its thresholds.\n"
    )
    options = {"dtype": "float32"} | ({} if complete else {"add_pooling_layer": False})
    _save(encoder, folder, save_weights, options, card)


def _save(
    encoder: Encoder, folder: Path, save_weights: Callable[[Path], None], options: Mapping[str, Any], card: str
) -> None:
    """Write a folder whole, or not at all: weights, tokenizer, modules with options of the model's class, card."""
    with new_folder(folder) as path:
        try:
            save_weights(path)
            save_tokenizer(encoder, path)
        except Exception as error:  # Rust libraries give a failed write as an error of their own, or a bare Exception
            if "os error" not in str(error):
                raise
            raise StorageError(f"{path}: cannot write: {error}") from error
        (path / "README.md").unlink(missing_ok=True)  # PEFT's is a form to fill in
        _write_modules(path, encoder, options)
        write_manifest(path)  # without the card, which people edit
        (path / "README.md").write_text(card, encoding="utf-8")


def _name_magnitudes_for_all(file: Path) -> None:
    """Rename DoRA's magnitudes, which transformers leaves out under the name that PEFT writes; both read this one."""
    weights = load_file(file)
    if any(name.endswith(MAGNITUDE) for name in weights):
        renamed = {f"{name}.weight" if name.endswith(MAGNITUDE) else name: value for name, value in weights.items()}
        save_file(renamed, file, metadata={"format": "pt"})


def save_tokenizer(encoder: Encoder, folder: Path) -> None:
    """Write a tokenizer that cuts at the encoder's max length, without the cutting and padding of the last call."""
    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.model_max_length = encoder.spec.max_length
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)


def base_pooler(encoder: Encoder) -> tuple[dict[str, Tensor], bool]:
    """(weights of the base that its class has and the encoder lacks, by name; whether these are all that it lacks)."""
    kind, weights = type(encoder.model), encoder.spec.folder
    if not without_pooler(kind):
        return {}, True
    with torch.device("meta"):
        whole = kind(encoder.model.config, add_pooling_layer=True)
    names = {name for name, _ in whole.named_parameters() if name.split(".")[0] == "pooler"}
    shapes = {name: value.shape for name, value in whole.named_parameters() if name in names}
    pooler: dict[str, Tensor] = {}
    for file in sorted(weights.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  # it is no dict
                name = next((name for name in names if f".{key}".endswith(f".{name}")), None)
                if name is not None:
                    pooler[name] = tensors.get_tensor(key).float()
    complete = {name: value.shape for name, value in pooler.items()} == shapes
    return (pooler if complete else {}), complete


def _write_modules(path: Path, encoder: Encoder, options: Mapping[str, Any]) -> None:
    """Write what sentence-transformers reads beside weights and tokenizer."""
    spec, width = encoder.spec, encoder.width
    there = {"Dense": encoder.dense is not None, "Normalize": spec.normalize}
    kinds = [kind for kind in KINDS if there.get(kind, True)]
    folders = {kind: f"{i}_{kind}" if i else "" for i, kind in enumerate(kinds)}
    for where in folders.values():
        (path / where).mkdir(exist_ok=True)
    pooling = {f"pooling_mode_{mode}": False for mode in ("max_tokens", "mean_sqrt_len_tokens")}
    pooling |= {"pooling_mode_cls_token": spec.pooling == "cls", "pooling_mode_mean_tokens": spec.pooling == "mean"}
    prompts = dict(spec.prompts)
    if prompts or spec.query_prompt or spec.document_prompt:
        # Under the names that encode_query and encode_document look for first.
        prompts |= {"query": spec.query_prompt, "document": spec.document_prompt}
    files: dict[str, Any] = {
        "modules.json": [
            # Names of classes that every version of that library since 2.0 reads.
            {"idx": i, "name": str(i), "path": where, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, where) in enumerate(folders.items())
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": width, **pooling},
        "sentence_bert_config.json": {
            "max_seq_length": spec.max_length,
            "do_lower_case": spec.lower_case,
            **({"model_args": dict(options)} if options else {}),
        },
        SETTINGS: {
            "__version__": {"matryoshka_trainer": __version__},
            "prompts": prompts,
            "default_prompt_name": spec.default_prompt,
            "similarity_fn_name": "cosine",
            **({"truncate_dim": spec.truncate_dim} if spec.truncate_dim else {}),
        },
    }
    if encoder.dense is not None:
        files[f"{folders['Dense']}/config.json"] = {
            "in_features": width,
            "out_features": width,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        save_file({DENSE_KEY: encoder.dense.cpu().contiguous()}, path / folders["Dense"] / DENSE_WEIGHTS)
    for name, value in files.items():
        (path / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
