"""How many alerts a ticket the thresholds of a run raise on the texts that it was trained on, for the model card."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.data.pairs import PairTable
from trainer.evaluation.alerts import alerts_at
from trainer.evaluation.bootstrap import interval
from trainer.evaluation.thresholds import Thresholds
from trainer.model.embedding import sides, tokenize_sides
from trainer.model.encoder import Encoder

MOST_TEXTS = 500  # drawn from larger sets: 2,000 halved the interval, and with mpnet took a core ten minutes, not three


def alerts_on_training(encoder: Encoder, table: PairTable, thresholds: Thresholds, seed: int) -> dict[str, Any] | None:
    """What a threshold would flag among a table's texts, copies once; None for fewer than two texts.

    This process embeds them alone. Of more than MOST_TEXTS so many are drawn, seeded; alerts are then those that the
    share of flagged pairs comes to among all.
    """
    representatives = np.unique(table.canonical, return_index=True)[1]
    total = len(representatives)
    if total < 2:
        return None
    if total > MOST_TEXTS:
        representatives = np.sort(np.random.default_rng(seed).choice(representatives, MOST_TEXTS, replace=False))
    texts = [table.texts[text] for text in representatives]
    embeddings = encoder.embed(tokenize_sides(encoder, texts), description="Embedding (training texts)").cpu().numpy()
    by_dim = {}
    for dim, threshold in thresholds.values.items():
        of_counted, samples = alerts_at(*sides(embeddings, len(texts)), int(dim), threshold, seed)
        share = of_counted / (len(texts) - 1)
        by_dim[dim] = {
            "threshold": threshold,
            "share_of_pairs": share,
            "alerts_per_ticket": share * (total - 1),
            "alerts_interval": (interval(samples) * (total - 1) / (len(texts) - 1)).tolist(),
        }
    return {"texts": total, "counted": len(texts), "by_dim": by_dim}
