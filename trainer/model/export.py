"""The trained encoder as folders that load anywhere, proven by loading them.

`model/` is a sentence-transformers folder with merged weights, `adapter/` the PEFT adapter alone. Both are read back
from disk, and their embeddings of probe texts must equal the model in memory and differ from the one training began
with; else the run fails. An adapter that was saved but not applied, or applied but not saved, cannot pass.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from torch import Tensor

from trainer import __version__
from trainer.errors import CheckpointError, StorageError
from trainer.model.embedding import embed, tokenize_for
from trainer.model.encoder import Encoder
from trainer.model.loading import load_encoder
from trainer.system.files import DEBRIS, new_folder, sync, write_file, write_manifest
from trainer.system.run_files import ADAPTER, MODEL

# A sentence-transformers module list that every version of that library since 2.0 reads.
_MODULES = (
    ("", "sentence_transformers.models.Transformer"),
    ("1_Pooling", "sentence_transformers.models.Pooling"),
    ("2_Normalize", "sentence_transformers.models.Normalize"),
)
RELOAD_TOLERANCE = 1e-5  # on embeddings of length one, fp32


def merged(encoder: Encoder) -> Encoder:
    """A copy of the encoder on the CPU with its adapters folded into the weights; the encoder itself is unchanged."""
    twin = copy.deepcopy(encoder).cpu().eval()
    if isinstance(twin.backbone, peft.PeftModel):
        twin.backbone = twin.backbone.merge_and_unload()
    twin.compiled = False  # a compiled layer is compiled anew for every copy
    return twin.requires_grad_(True)  # as one just loaded, so that its products are the same to the last bit


def export(
    encoder: Encoder,
    base: Encoder,
    folder: Path,
    card: str,
    probes: list[str],
    extra_files: Mapping[str, str] | None = None,
    untouched: bool = False,
) -> dict[str, float]:
    """Write `model/`, and `adapter/` where there are adapters, into a run's folder; only what passed the proof arrives.

    Args:
        extra_files: texts to keep in the model's folder beside it, by file name.
        untouched: the encoder is meant to be the base.

    Returns what `check_exports` found. Raises CheckpointError as that does, StorageError where files cannot be written.
    """
    staging = folder / f".export{DEBRIS}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        save_model(encoder, staging / MODEL, card)
        for name, text in (extra_files or {}).items():
            write_file(staging / MODEL / name, text)
        if isinstance(encoder.backbone, peft.PeftModel):
            save_adapter(encoder, staging / ADAPTER)
        differences = check_exports(encoder, base, staging, probes, untouched)
        for path in staging.iterdir():
            final = folder / path.name
            shutil.rmtree(final, ignore_errors=True)  # of an export that was cut short
            path.rename(final)
        sync(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return differences


def save_model(encoder: Encoder, folder: Path, card: str) -> None:
    """Write a sentence-transformers folder: safetensors weights, tokenizer, pooling, model card.

    Raises:
        StorageError: the folder exists or cannot be written.
    """
    spec, plain = encoder.spec, merged(encoder)
    with new_folder(folder) as path:
        plain.tokenizer.model_max_length = spec.max_length
        with _full_disk_is_named(path):
            plain.model.save_pretrained(path, safe_serialization=True)
            plain.tokenizer.save_pretrained(path)
        modules = _MODULES if spec.normalize else _MODULES[:2]
        _write_json(
            path / "modules.json",
            [{"idx": i, "name": str(i), "path": where, "type": kind} for i, (where, kind) in enumerate(modules)],
        )
        for where, _ in modules[1:]:
            (path / where).mkdir()
        _write_json(
            path / "1_Pooling" / "config.json",
            {
                "word_embedding_dimension": encoder.width,
                "pooling_mode_cls_token": spec.pooling == "cls",
                "pooling_mode_mean_tokens": spec.pooling == "mean",
                "pooling_mode_max_tokens": False,
                "pooling_mode_mean_sqrt_len_tokens": False,
            },
        )
        _write_json(
            path / "sentence_bert_config.json", {"max_seq_length": spec.max_length, "do_lower_case": spec.lower_case}
        )
        _write_json(
            path / "config_sentence_transformers.json",
            {
                "__version__": {"matryoshka_trainer": __version__},
                "prompts": dict(spec.prompts),
                "default_prompt_name": spec.default_prompt,
                "similarity_fn_name": "cosine",
            },
        )
        write_manifest(path)  # without the card, which people edit
        (path / "README.md").write_text(card, encoding="utf-8")


def save_adapter(encoder: Encoder, folder: Path) -> None:
    """Write the PEFT adapter alone. Raises StorageError where the folder exists or cannot be written."""
    for config in encoder.backbone.peft_config.values():
        config.base_model_name_or_path = encoder.spec.name  # not where the hub's files lie on this machine
    with new_folder(folder) as path:
        with _full_disk_is_named(path):
            encoder.backbone.save_pretrained(str(path), safe_serialization=True)
        (path / "README.md").unlink(missing_ok=True)  # PEFT's is a form to fill in; the model's card is beside it
        write_manifest(path)


@contextmanager
def _full_disk_is_named(folder: Path) -> Iterator[None]:
    """Rust libraries give a failed write as an error of their own, or as a bare Exception."""
    try:
        yield
    except Exception as error:
        if "os error" not in str(error):
            raise
        raise StorageError(f"{folder}: cannot write: {error}") from error


def check_trained(encoder: Encoder, base: Encoder, probes: list[str]) -> None:
    """Compare the trained encoder with its merged copy and with the base, before anything is chosen or written.

    Raises:
        CheckpointError: merging the adapters changes the embeddings, or training did not.
    """
    in_memory = _unit_embeddings(encoder, probes)
    gap = _gap(merged(encoder), in_memory, probes)
    _require_equal("the merged model", gap, "in memory")
    _require_moved("the trained model", _gap(base, in_memory, probes), gap)


def check_exports(
    encoder: Encoder, base: Encoder, folder: Path, probes: list[str], untouched: bool = False
) -> dict[str, float]:
    """Reload `model/` and `adapter/` from disk and compare with the encoder in memory and the untouched base.

    Args:
        base: the encoder that training began with.
        folder: the run's folder.
        probes: texts to compare on.
        untouched: the encoder is meant to be the base.

    Returns:
        The largest differences of unit-length embeddings: "model" and "adapter" against memory, "base" against base.

    Raises:
        CheckpointError: a reloaded model is not the one in memory, or is the base and is not meant to be.
    """
    in_memory = _unit_embeddings(encoder, probes)
    reloaded = {MODEL: load_encoder(str(folder / MODEL))}
    if (folder / ADAPTER).exists():
        reloaded[ADAPTER] = copy.deepcopy(base).cpu()
        reloaded[ADAPTER].backbone = peft.PeftModel.from_pretrained(reloaded[ADAPTER].model, folder / ADAPTER)
    gaps = {name: _gap(twin, in_memory, probes) for name, twin in reloaded.items()}
    for name, gap in gaps.items():
        _require_equal(f"{folder / name}: what was reloaded", gap, "in memory")
    moved = _gap(base, in_memory, probes)
    if untouched:
        _require_equal(
            f"{folder}: the exported model, chosen to be the untouched one,", moved, "that training began with"
        )
    else:
        _require_moved(f"{folder}: the exported model", moved, max(gaps.values()))
    return {**gaps, "base": moved}


def _gap(encoder: Encoder, expected: Tensor, probes: list[str]) -> float:
    return float((_unit_embeddings(encoder, probes) - expected).abs().max())


def _require_equal(what: str, gap: float, other: str) -> None:
    if not gap <= RELOAD_TOLERANCE:  # also catches NaN
        raise CheckpointError(
            f"{what} gives embeddings that differ by {gap:.1e} (allowed {RELOAD_TOLERANCE:.0e}) from the model "
            f"{other}; it is not what was trained"
        )


def _require_moved(what: str, moved: float, gap: float) -> None:
    if moved <= 2 * gap:
        raise CheckpointError(
            f"{what} gives the embeddings of the untouched one (largest difference {moved:.1e}); training changed "
            "nothing, raise optim.lr or train longer"
        )


def _unit_embeddings(encoder: Encoder, texts: list[str]) -> Tensor:
    rows = torch.from_numpy(embed(encoder, tokenize_for(encoder, texts), description="Checking", alone=True))
    return torch.nn.functional.normalize(rows.double(), dim=1)


def choose_probes(texts: list[str], count: int = 32) -> list[str]:
    """Texts spread evenly over the lengths that occur."""
    by_length = sorted(texts, key=len)
    return [by_length[i] for i in np.unique(np.linspace(0, len(by_length) - 1, count).astype(int))]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
