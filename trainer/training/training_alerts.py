"""How many alerts a ticket the thresholds of a run raise on the texts that it was trained on, for the model card."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.data.pairs import PairTable
from trainer.evaluation.prevalence import percent
from trainer.evaluation.real_world import count_embedded
from trainer.evaluation.thresholds import Thresholds
from trainer.model.embedding import tokenize_sides
from trainer.model.encoder import Encoder

MOST_TEXTS = 2000  # drawn from larger sets: two million pairs tell a share of them well, and seconds embed them


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
    dims = tuple(int(dim) for dim in thresholds.values)
    by_dim = {}
    for dim, counts in count_embedded(embeddings, len(texts), dims, groups=1).items():
        share = float(counts.flagged(np.array(thresholds.values[dim])))
        flagged = {
            "threshold": thresholds.values[dim],
            "share_of_pairs": share,
            "alerts_per_ticket": share * (total - 1),
        }
        by_dim[dim] = flagged
    return {"texts": total, "counted": len(texts), "by_dim": by_dim}


def alerts_in_words(alerts: dict[str, Any] | None) -> str:
    """A sentence that nobody misreads, "" where nothing was counted."""
    if alerts is None:
        return ""
    drawn = "" if alerts["counted"] == alerts["texts"] else f" (by the pairs of {alerts['counted']:,} of them)"
    each = [
        f"at {dim} dims the threshold {entry['threshold']:.4f} flags {percent(entry['share_of_pairs'])} of all pairs: "
        f'{_count(entry["alerts_per_ticket"])} "same problem" a ticket'
        for dim, entry in alerts["by_dim"].items()
    ]
    return (
        f"On the {alerts['texts']:,} training texts{drawn}, {'; '.join(each)}. `trainer evaluate --pairs FILE "
        "--tickets FILE --alerts-per-ticket A` finds the threshold for as many as people can look at."
    )


def _count(alerts: float) -> str:
    return f"{alerts:,.0f}" if alerts >= 10 else f"{alerts:.2g}"
