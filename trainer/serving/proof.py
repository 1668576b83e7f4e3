"""Proof that an exported folder gives what the model gave, alone in another process, at every length.

Shapes: N texts, T tokens of all, E hidden width, D dims of an embedding.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

import trainer
from trainer.errors import CheckpointError
from trainer.model.encoder import Encoder, in_mode
from trainer.model.forward import packed_hidden_states
from trainer.model.proof import choose_probes

PROBES = 16  # real texts that are taken as they are
TOLERANCE = 1e-4  # of an embedding's or a hidden state's length, fp32


def probe_texts(encoder: Encoder, texts: Sequence[str]) -> list[str]:
    """Texts of every length from none to more than the encoder takes, after each of its prompts.

    Args:
        texts: real ones, of which some are taken as they are, and beginnings of all together.
    """
    words = " ".join(texts).split()
    words *= encoder.spec.max_length // max(len(words), 1) + 1
    sizes = [0, *(2**power for power in range(encoder.spec.max_length.bit_length()))]
    probes = [*choose_probes(list(texts), PROBES), *(" ".join(words[:size]) for size in sizes)]
    return [
        prompt + text for prompt in dict.fromkeys((encoder.spec.prompt, *encoder.spec.side_prompts)) for text in probes
    ]


def differences(encoder: Encoder, dim: int, folder: Path, texts: Sequence[str]) -> dict[str, float]:
    """The largest differences of a folder's graph from the encoder, as shares of the lengths of what is compared.

    Args:
        folder: whole, with SERVING.
        texts: prompts included.

    Returns "hidden", "embeddings" of texts one by one, "batched" of padded batches, and "cosine": how far from 1 that
    of an embedding with the encoder's is at most.

    Raises:
        CheckpointError: the folder cannot be read without torch, its tokens are others, or something is not finite.
    """
    read = _read_elsewhere(folder, texts)
    tokens = encoder.tokenize(texts, ("",))
    if not np.array_equal(read["ids"], tokens.ids):
        raise CheckpointError("the export's tokenizer gives other tokens than the model's; nothing is exported")
    pooled = encoder.embed(tokens, description="Checking").cpu()[:, :dim]
    expected = normalize(pooled, dim=1) if encoder.spec.normalize else pooled
    batch = tokens.batch(np.arange(len(texts)))
    with in_mode(encoder, training=False), torch.no_grad():
        hidden = packed_hidden_states(encoder.model, batch)
    places = torch.cat([torch.where(batch.segments == row)[0] for row in batch.order])
    found = {name: torch.from_numpy(read[name]) for name in ("hidden", "embeddings", "batched")}
    wanted = {"hidden": hidden[places], "embeddings": expected, "batched": expected}
    gaps = {name: _gap(found[name], wanted[name]) for name in wanted}
    gaps["cosine"] = float((1 - torch.cosine_similarity(found["batched"], expected)).max())
    if not np.isfinite(list(gaps.values())).all():
        raise CheckpointError("the exported graph gives values that are not finite; nothing is exported")
    return gaps


def require_equal(gaps: dict[str, float]) -> None:
    """Raise CheckpointError where a graph in fp32 differs from the model."""
    for name in ("hidden", "embeddings", "batched"):
        if not gaps[name] <= TOLERANCE:
            raise CheckpointError(
                f"the exported graph's {name} differ from the model's by {gaps[name]:.1e} (allowed {TOLERANCE:.0e}); "
                "nothing is exported"
            )


def _gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference as a share of the row's length; infinite where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float(((found - expected).abs().amax(1) / expected.norm(dim=1).clamp(min=1e-12)).max())


def _read_elsewhere(folder: Path, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """What `serving.reader` makes of the texts in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        texts_file, output = Path(place) / "texts.json", Path(place) / "read.npz"
        texts_file.write_text(json.dumps(list(texts)), encoding="utf-8")
        command = [sys.executable, "-m", "trainer.serving.reader", str(folder.resolve()), str(texts_file), str(output)]
        root = Path(trainer.__file__).parent.parent
        ended = subprocess.run(command, cwd=root, capture_output=True, text=True, errors="replace")
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or [f"exit {ended.returncode}"])[-1]
            raise CheckpointError(f"another process cannot use the export: {last}")
        with np.load(output, allow_pickle=False) as arrays:
            read = dict(arrays)
    if read["imported"].size:
        raise CheckpointError(f"reading the export imports {', '.join(read['imported'])}; nothing is exported")
    return read
