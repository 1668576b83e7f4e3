"""Proof that an encoder is what it should be: trained, merged, written and read back, and in others' hands.

Exports are read back from disk, and their embeddings of probe texts must equal the model in memory and differ from the
one training began with; else the run fails. An adapter that was saved but not applied, or applied but not saved, cannot
pass. Others use them in padded batches, so these are checked too: by the model's own forward with the exported
tokenizer, and, where it is installed, by sentence-transformers itself, prompts, dims and max length included.

Shapes: N probe texts, S prompts (2 where a pair's sides have different ones, else 1), E width.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from torch import Tensor
from torch.nn.functional import normalize

from trainer.errors import CheckpointError, InputError, first_line
from trainer.model.embedding import tokenize_sides
from trainer.model.encoder import Encoder, in_mode
from trainer.model.loading import LOADING_ERRORS, load_encoder
from trainer.system.console import console
from trainer.system.run_files import ADAPTER, MODEL

RELOAD_TOLERANCE = 1e-5  # on embeddings of length one, fp32
PADDED_PROBES = 4  # texts of a padded batch: a forward pass for each side and dim must not take seconds


def merged(encoder: Encoder) -> Encoder:
    """A copy of the encoder on the CPU with its adapters folded into the weights; the encoder itself is unchanged."""
    twin = copy.deepcopy(encoder).cpu().eval()
    if isinstance(twin.backbone, peft.PeftModel):
        twin.backbone = twin.backbone.merge_and_unload()
    twin.compiled = False  # a compiled layer is compiled anew for every copy
    return twin.requires_grad_(True)  # as one just loaded, so that its products are the same to the last bit


def check_padding(encoder: Encoder, texts: list[str]) -> None:
    """Compare padded batches, which users of the export make, with the texts one by one. Before training.

    Raises:
        InputError: they differ, or the model's own forward does not take them.
    """
    probes = choose_probes(texts, PADDED_PROBES)
    name = f"model.name = {encoder.spec.name}"
    try:
        padded = _padded_embeddings(encoder, probes)
    except LOADING_ERRORS as error:
        raise InputError(
            f"{name}: its own forward pass does not take a padded batch: {first_line(error)}; use another model"
        ) from error
    alone = _unit_embeddings(encoder, probes)
    if not torch.isfinite(alone).all():
        return  # no fault of padding: the first judgement says how many, of which data
    gap = _largest_difference(padded, alone)
    if not gap <= RELOAD_TOLERANCE:
        raise InputError(
            f"{name}: embeddings of a padded batch differ by {gap:.1e} from those of the same texts alone, so that no "
            "library would use it as it is trained; use another model"
        )


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
    encoder: Encoder,
    base: Encoder,
    folder: Path,
    probes: list[str],
    untouched: bool = False,
    dims: Sequence[int] = (),
) -> dict[str, float]:
    """Reload `model/` and `adapter/` from disk and compare with the encoder in memory and the untouched base.

    Arguments as of `export`. Returns the largest differences of unit-length embeddings: "model" and "adapter" against
    memory, "base" against base; "model padded" and "adapter padded" of padded batches, "model in sentence-transformers"
    and the like where that is installed.

    Raises:
        CheckpointError: a reloaded model is not the one in memory, or is the base and is not meant to be.
    """
    in_memory = _unit_embeddings(encoder, probes)
    few = choose_probes(probes, PADDED_PROBES)
    rows = [probes.index(text) for text in few]
    in_memory_of_few = in_memory.view(-1, len(probes), encoder.width)[:, rows].flatten(0, 1)
    gaps: dict[str, float] = {}
    for name in (MODEL, ADAPTER):
        if not (folder / name).exists():
            continue
        twin = load_encoder(str(folder / name), announce=False)
        gaps[name] = _gap(twin, in_memory, probes)
        gaps[f"{name} padded"] = _largest_difference(_padded_embeddings(twin, few), in_memory_of_few)
        peer = _peer_difference(folder / name, encoder, few, in_memory_of_few, dims)
        gaps |= {f"{name} in sentence-transformers": peer} if peer is not None else {}
    for name, gap in gaps.items():
        kind, _, way = name.partition(" ")
        _require_equal(f"{folder / kind}: what was reloaded{f' ({way})' if way else ''}", gap, "in memory")
    moved = _gap(base, in_memory, probes)
    if untouched:
        _require_equal(
            f"{folder}: the exported model, chosen to be the untouched one,", moved, "that training began with"
        )
    else:
        _require_moved(f"{folder}: the exported model", moved, max(gaps.values()))
    return {**gaps, "base": moved}


def _peer_difference(
    folder: Path, encoder: Encoder, texts: list[str], expected: Tensor, dims: Sequence[int]
) -> float | None:
    """The largest difference of what sentence-transformers makes of a folder, at every dim; None without the library.

    Args:
        texts: of several lengths, the shortest first.
        expected: [S * N, E] of the texts.
    """
    if find_spec("sentence_transformers") is None:
        return None
    try:
        from sentence_transformers import SentenceTransformer
    except (ImportError, RuntimeError) as error:
        console.print(f"sentence-transformers cannot be imported ({first_line(error)}): not checked by it")
        return None
    if not hasattr(SentenceTransformer, "encode_query"):
        console.print("sentence-transformers is older than 5.0: not checked by it")
        return None
    queries, documents = expected[: len(texts)], expected[-len(texts) :]
    gaps = []
    try:
        with warnings.catch_warnings(action="ignore"):  # of what will change in other libraries
            peer: Any = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        for encode, rows in ((peer.encode_query, queries), (peer.encode_document, documents)):
            for dim in sorted({*dims, encoder.width}):
                count = len(texts) if dim == encoder.width else 2  # shortest first; how it cuts is the same for all
                found = encode(texts[:count], normalize_embeddings=True, truncate_dim=dim, show_progress_bar=False)
                gaps.append(_largest_difference(torch.from_numpy(found), normalize(rows[:count, :dim], dim=1)))
    except LOADING_ERRORS as error:
        raise CheckpointError(f"{folder}: sentence-transformers cannot use it: {first_line(error)}") from error
    return max(gaps)


def _padded_embeddings(encoder: Encoder, texts: list[str]) -> Tensor:
    """[S * N, E] of length 1, by the model's own forward of one padded batch a prompt, as other libraries do it."""
    rows = []
    device = next(encoder.parameters()).device
    for prompt in encoder.spec.side_prompts:
        prompted = [prompt + text for text in texts]
        options: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "pt"}
        inputs = encoder.tokenizer(prompted, max_length=encoder.spec.max_length, **options).to(device)
        mask = inputs["attention_mask"]
        with in_mode(encoder, training=False), torch.no_grad():
            hidden = encoder.model(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
        summed = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        rows.append(encoder.through_dense(hidden[:, 0] if encoder.spec.pooling == "cls" else summed))
    return normalize(torch.cat(rows).double().cpu(), dim=1)


def _gap(encoder: Encoder, expected: Tensor, probes: list[str]) -> float:
    return _largest_difference(_unit_embeddings(encoder, probes), expected)


def _largest_difference(embeddings: Tensor, expected: Tensor) -> float:
    """The largest difference of two sets of embeddings; infinite where their shapes differ."""
    if embeddings.shape != expected.shape:
        return float("inf")
    return float((embeddings - expected).abs().max())


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
    """[S * N, E] of length 1."""
    rows = encoder.embed(tokenize_sides(encoder, texts), description="Checking")
    return normalize(rows.cpu().double(), dim=1)


def choose_probes(texts: list[str], count: int = 32) -> list[str]:
    """Texts spread evenly over the lengths that occur."""
    by_length = sorted(texts, key=len)
    return [by_length[i] for i in np.unique(np.linspace(0, len(by_length) - 1, count).astype(int))]
