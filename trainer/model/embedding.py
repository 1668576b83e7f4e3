"""Embeddings of whole data sets: tokens and embeddings of untouched models cached, ranks sharing the work.

For texts at hand, `Encoder.encode` is enough.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from trainer.model.encoder import TOKENS_PER_BATCH, Encoder, weights_fingerprint
from trainer.model.tokens import TokenTable
from trainer.system.distributed import gather_rows, rank, share_object, world_size
from trainer.system.files import cache_dir, read_cached, write_cached


def tokenize_sides(encoder: Encoder, texts: list[str]) -> TokenTable:
    """N texts as they stand on either side of a pair, cached. Raises as `Encoder.tokenize`.

    N rows where the encoder has the same prompt, or none, for both sides; else 2 * N: all as queries, then all as
    documents. The first N rows are always those of first texts, the last N those of second ones.
    """
    return encoder.tokenize(texts, encoder.spec.side_prompts, cached=True)


def sides(embeddings: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [N, E] of N = `count` texts as first and as second ones, of those that `tokenize_sides` stands for.

    The same array twice where the encoder treats both sides alike.
    """
    assert len(embeddings) in (count, 2 * count)
    first = embeddings[:count]
    return first, embeddings[count:] if len(embeddings) > count else first


def embed(
    encoder: Encoder,
    tokens: TokenTable,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    description: str = "Embedding",
) -> np.ndarray:
    """Unnormalised embeddings [N, E] fp32 of all N texts of a table, each encoded once.

    Collective: the ranks share the texts out and all get the result. `Encoder.embed` says what stays as it was.
    """
    # Dealing the length-sorted texts out in turn gives every rank nearly the same number of tokens.
    by_length = np.argsort(-tokens.lengths, kind="stable")
    shares = [by_length[worker :: world_size()] for worker in range(world_size())]
    rows = encoder.embed(tokens, shares[rank()], TOKENS_PER_BATCH, autocast, description)
    gathered = gather_rows(rows, [len(share) for share in shares])
    embeddings = np.empty((len(tokens.lengths), encoder.width), dtype=np.float32)
    embeddings[np.concatenate(shares)] = gathered.cpu().numpy()
    return embeddings


def embed_cached(encoder: Encoder, tokens: TokenTable, description: str = "Embedding") -> np.ndarray:
    """As `embed` in fp32, or from the cache where the same encoder met the same tokens before. For untouched models.

    The cache is keyed by all weights, the model's settings, the pooling, the kind of device and every token.
    """
    path = cache_dir() / "embeddings" / f"{_embedding_key(encoder, tokens)}.safetensors"
    arrays = share_object(read_cached(path, ("rows",), "embedding") if rank() == 0 else None)
    if arrays is None:
        arrays = {"rows": embed(encoder, tokens, description=description)}
        if rank() == 0:
            write_cached(path, arrays)
    return np.asarray(arrays["rows"])


def _embedding_key(encoder: Encoder, tokens: TokenTable) -> str:
    config = encoder.model.config.to_dict()
    settings = {key: value for key, value in config.items() if key != "_name_or_path"}  # copies of a model are one
    device = next(encoder.parameters()).device.type
    parts = [weights_fingerprint(encoder), settings, encoder.spec.pooling, device, tokens.fingerprint()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
