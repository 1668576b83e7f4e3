"""Embeddings of whole data sets: tokens and embeddings of untouched models cached, ranks sharing the work.

For texts at hand, `Encoder.encode` is enough.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from trainer.model.encoder import TOKENS_PER_BATCH, Encoder, weights_fingerprint
from trainer.model.tokens import TokenTable
from trainer.system.console import console
from trainer.system.distributed import gather_rows, rank, share_object, world_size
from trainer.system.files import cache_dir, write_file


def tokenize_for(encoder: Encoder, texts: list[str]) -> TokenTable:
    """N texts, at least one, as the queries of an encoder, from the cache where they were tokenised before.

    For texts that are compared with each other, whichever side of a pair they may stand on.

    Raises:
        InputError: the tokenizer gives no token, or tokens that the model has no embedding for.
    """
    return encoder.tokenize(texts, (encoder.spec.query_prompt,), cached=True)


def tokenize_sides(encoder: Encoder, texts: list[str]) -> TokenTable:
    """N texts as they stand on either side of a pair, from the cache likewise; raises as `tokenize_for`.

    N rows where the encoder has the same prompt, or none, for both sides; else 2 * N: all as queries, then all as
    documents. The first N rows are then those of first texts, the last N rows those of second ones.
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
    alone: bool = False,
) -> np.ndarray:
    """Unnormalised embeddings [N, E] fp32 of all N texts of a table, each encoded once.

    The ranks share the texts out and all get the result; `alone`, this rank does it all and the others need not know.
    Dropout is off meanwhile; neither the training mode nor any random state is changed.
    """
    workers = 1 if alone else world_size()
    # Dealing the length-sorted texts out in turn gives every rank nearly the same number of tokens.
    by_length = np.argsort(-tokens.lengths, kind="stable")
    shares = [by_length[worker::workers] for worker in range(workers)]
    rows = encoder.embed(tokens, shares[0 if alone else rank()], TOKENS_PER_BATCH, autocast, description)
    gathered = rows if alone else gather_rows(rows, [len(share) for share in shares])
    embeddings = np.empty((len(tokens.lengths), encoder.width), dtype=np.float32)
    embeddings[np.concatenate(shares)] = gathered.cpu().numpy()
    return embeddings


def embed_cached(encoder: Encoder, tokens: TokenTable, description: str = "Embedding") -> np.ndarray:
    """As `embed` in fp32, or from the cache where the same encoder met the same tokens before. For untouched models.

    The cache is keyed by all weights, the model's settings, the pooling, the kind of device and every token.
    """
    path = cache_dir() / "embeddings" / f"{_embedding_key(encoder, tokens)}.safetensors"
    cached = share_object(_read_cached(path) if rank() == 0 and path.exists() else None)
    if cached is not None:
        return np.asarray(cached)
    embeddings = embed(encoder, tokens, description=description)
    if rank() == 0:
        write_file(path, safetensors.numpy.save({"rows": embeddings}, metadata={"sha256": _digest(embeddings)}))
    return embeddings


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
