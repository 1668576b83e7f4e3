"""Texts to embeddings: tokenise once, embed in batches of bounded size, cache what never changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError, safe_open

from trainer.errors import InputError
from trainer.model.encoder import Encoder, weights_fingerprint
from trainer.model.tokens import TokenTable, tokenize
from trainer.system.console import console, progress
from trainer.system.distributed import gather_rows, rank, share_object, world_size
from trainer.system.files import cache_dir, write_file
from trainer.system.transfer import to_device

TOKENS_PER_BATCH = 8_192


def tokenize_for(encoder: Encoder, texts: list[str]) -> TokenTable:
    """Texts as an encoder wants them: its prompt, its case, its length.

    Raises:
        InputError: the tokenizer gives tokens that the model has no embedding for.
    """
    prepared = [encoder.prepare(text) for text in texts]
    tokens = tokenize(prepared, encoder.tokenizer, encoder.spec.max_length)
    rows = encoder.model.get_input_embeddings().num_embeddings
    if (largest := int(tokens.ids.max())) >= rows:
        raise InputError(
            f"model.name = {encoder.spec.name}: the tokenizer gives token {largest}, the model has embeddings for "
            f"{rows}; use the tokenizer it was trained with"
        )
    return tokens


def embed(
    encoder: Encoder,
    tokens: TokenTable,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    description: str = "Embedding",
    alone: bool = False,
) -> np.ndarray:
    """Embeddings [N, E] fp32 of all texts of a table, each encoded once.

    The ranks share the texts out and all get the result; `alone`, this rank does it all and the others need not know.
    Dropout is off meanwhile; neither the training mode nor any random state is changed.
    """
    count, device = len(tokens.lengths), next(encoder.parameters()).device
    workers = 1 if alone else world_size()
    # Dealing the length-sorted texts out in turn gives every rank nearly the same number of tokens.
    by_length = np.argsort(-tokens.lengths, kind="stable")
    shares = [by_length[worker::workers] for worker in range(workers)]
    own = shares[0 if alone else rank()]
    rows = torch.empty(len(own), encoder.width, device=device)
    was_training = encoder.training
    encoder.eval()
    try:
        with progress(description, len(own)) as advance, torch.no_grad(), autocast():
            for chunk in tokens.chunks(own, TOKENS_PER_BATCH) if len(own) else ():
                batch = to_device(tokens.batch(own[chunk]), device)
                rows[torch.as_tensor(chunk, device=device)] = encoder(batch).float()
                advance(len(chunk))
    finally:
        encoder.train(was_training)
    gathered = rows if alone else gather_rows(rows, [len(share) for share in shares])
    embeddings = np.empty((count, encoder.width), dtype=np.float32)
    embeddings[np.concatenate(shares)] = gathered.cpu().numpy()
    return embeddings


def embed_cached(encoder: Encoder, tokens: TokenTable, description: str = "Embedding") -> np.ndarray:
    """As `embed` in fp32, or from the cache where the same encoder met the same tokens before. For untouched models.

    The cache is keyed by all weights, the model's settings, the pooling, the kind of device and every token.
    """
    path = cache_dir() / "embeddings" / f"{_embedding_key(encoder, tokens)}.safetensors"
    found = share_object(_read_cached(path) if rank() == 0 and path.exists() else None)
    if found is not None:
        return np.asarray(found)
    rows = embed(encoder, tokens, description=description)
    if rank() == 0:
        write_file(path, safetensors.numpy.save({"rows": rows}, metadata={"sha256": _digest(rows)}))
    return rows


def _embedding_key(encoder: Encoder, tokens: TokenTable) -> str:
    config = encoder.model.config.to_dict()
    settings = {key: value for key, value in config.items() if key != "_name_or_path"}  # copies of a model are one
    device = next(encoder.parameters()).device.type
    parts = [weights_fingerprint(encoder), settings, encoder.spec.pooling, device, _digest(tokens.ids, tokens.offsets)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def _read_cached(path: Path) -> np.ndarray | None:
    """The embeddings of a cache file, or None where it does not hold what its checksum says."""
    try:
        with safe_open(path, framework="np") as file:
            rows: np.ndarray = file.get_tensor("rows")
            if (file.metadata() or {}).get("sha256") == _digest(rows):
                return rows
    except SafetensorError:
        pass  # said below
    console.print(f"{path}: damaged; embedding again", markup=False)
    return None
