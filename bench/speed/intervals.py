"""What judging costs: 20,000 pairs at 5 dims, a model beside its baseline, every metric with its 95 % interval.

Embeddings are random, width 768: their values cost what real ones cost. As in the real pairs, each title stands with
its own body (1) and with another's (0). Measured are 1,000 resamples of one model's pair metrics, then all of
`trainer.evaluation.assessment.assess`: cosines, resamples of every metric for both models and their difference, search
among the pairs' own texts, and the diagnostic. Seconds of the processor are those of all threads.

    python -m bench.speed.intervals
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.measuring import clocked
from bench.records import finish, make_parser
from bench.workload import MPNET_DIMS as DIMS
from trainer.data.pairs import PairTable, pairs_from_columns
from trainer.evaluation.assessment import assess
from trainer.evaluation.bootstrap import RESAMPLES, bootstrap_pairs
from trainer.evaluation.groups import groups_of_texts
from trainer.evaluation.scoring import pair_cosines

WIDTH = DIMS[0]
NOISE = {"baseline": 6.0, "model": 5.0}


def titles_and_bodies(count: int, random: np.random.Generator) -> PairTable:
    """`count` pairs, half of them positive."""
    half = count // 2
    titles, bodies = [f"title {i}" for i in range(half)], [f"body {i}" for i in range(half)]
    other = (np.arange(half) + random.integers(1, half, size=half)) % half
    return pairs_from_columns(
        {"texts1": titles * 2, "texts2": bodies + [bodies[i] for i in other], "labels": [1] * half + [0] * half},
        "made up",
    )


def embeddings(table: PairTable, noise: float, random: np.random.Generator) -> np.ndarray:
    """[T, WIDTH] of the table's texts; a title and its body share what is not noise."""
    topic = {text: int(text.split()[1]) for text in table.texts}
    topics = random.normal(size=(max(topic.values()) + 1, WIDTH))
    rows = topics[[topic[text] for text in table.texts]] + noise * random.normal(size=(len(table.texts), WIDTH))
    return rows.astype(np.float32)


def measure(count: int, resamples: int) -> dict[str, Any]:
    """Seconds of the clock and of the processor for one judgement."""
    random = np.random.default_rng(0)
    table = titles_and_bodies(count, random)
    rows = {system: embeddings(table, noise, random) for system, noise in NOISE.items()}
    thresholds = {system: {str(dim): 0.3 for dim in DIMS} for system in rows}
    cosines = pair_cosines(rows["model"], table, DIMS)
    groups = groups_of_texts(table.text1, table.text2, table.label)
    frozen = np.full(len(DIMS), 0.3)
    with clocked() as alone:
        bootstrap_pairs(cosines, table.score, table.label, frozen, groups, resamples=resamples)
    with clocked() as took:
        found = assess(table, rows, DIMS, thresholds, resamples=resamples)
    return {
        "pairs": len(table),
        "dims": list(DIMS),
        "resamples": resamples,
        "queries": found.queries,
        "bootstrap_of_one_model": alone,
        **took,
        "spearman_difference": found.intervals["difference"][str(WIDTH)]["spearman"],
    }


def main() -> None:
    parser = make_parser(__doc__, "intervals")
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    options = parser.parse_args()
    found = measure(options.pairs, options.resamples)
    for name, took in (("bootstrap of one model", found["bootstrap_of_one_model"]), ("two models, all of it", found)):
        print(f"{found['pairs']:,} pairs, {name}: {took['seconds']:.1f} s, processor {took['cpu_seconds']:.1f} s")
    finish(options, found)


if __name__ == "__main__":
    main()
