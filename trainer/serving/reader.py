"""What a service does with an exported folder, and nothing else: a second process that proves that the folder suffices.

    python -m trainer.serving.reader FOLDER TEXTS.json OUTPUT.npz

It reads the texts, prompts included, and writes what the graph makes of them, one by one and in padded batches. It
imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tokenizers

from trainer.model.runtime import EMBEDDING, HIDDEN, SERVING, open_graph

BATCH = 4


def main(folder: str, texts_file: str, output: str) -> None:
    """Write ids [T], hidden [T, E] and embeddings [N, D] of N texts one by one, and batched [N, D] of BATCH at once."""
    root, texts = Path(folder), json.loads(Path(texts_file).read_bytes())
    graph = open_graph(root, json.loads((root / SERVING).read_bytes())["runtime"])
    tokenizer = tokenizers.Tokenizer.from_file(str(root / "tokenizer.json"))

    def inputs(batch: list[str]) -> tuple[np.ndarray, np.ndarray]:
        encodings = tokenizer.encode_batch(batch)
        ids, mask = ([getattr(each, name) for each in encodings] for name in ("ids", "attention_mask"))
        return np.array(ids, dtype=np.int64), np.array(mask, dtype=np.int64)

    single = [inputs([text]) for text in texts]
    alone = [(ids[0], *graph((HIDDEN, EMBEDDING), ids, mask)) for ids, mask in single]
    starts = range(0, len(texts), BATCH)
    np.savez(
        output,
        ids=np.concatenate([ids for ids, _, _ in alone]),
        hidden=np.concatenate([hidden[0] for _, hidden, _ in alone]),
        embeddings=np.concatenate([embedding for _, _, embedding in alone]),
        batched=np.concatenate([graph((EMBEDDING,), *inputs(texts[start : start + BATCH]))[0] for start in starts]),
        imported=np.array([name for name in ("torch", "transformers") if name in sys.modules], dtype=str),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
