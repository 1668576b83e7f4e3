"""What judging by search costs: 10,000 queries among 100,000 texts, a model beside its baseline, 5 dims, all measures.

Embeddings are random, width 768, of texts in clusters of two to six, with coordinates that carry less towards the end
of the embedding. Measured are the seconds of the clock and of the processor (all threads) for `search` over both models
and for the intervals of all figures and their differences, and by how much the process grew meanwhile beyond the
embeddings. Writes bench/results/search.json.

    OMP_NUM_THREADS=2 python -m bench.speed.search
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from bench.records import RESULTS, environment, save_record
from trainer.evaluation.assessment import CHANGE, assess_search
from trainer.evaluation.search import SearchTask, search
from trainer.evaluation.search_scores import EmbeddingScores

WIDTH, DIMS = 768, (64, 128, 256, 512, 768)
NOISE = {"model": 2.2, "baseline": 2.4}


def draw_clusters(texts: int, random: np.random.Generator) -> np.ndarray:
    """[U] cluster of each text."""
    clusters = np.repeat(np.arange(texts), random.integers(2, 7, size=texts))[:texts]
    random.shuffle(clusters)
    return clusters


def draw_embeddings(clusters: np.ndarray, noise: float, random: np.random.Generator) -> np.ndarray:
    """[U, WIDTH]; texts of a cluster share what is not noise."""
    spread = np.linspace(1.5, 0.5, WIDTH, dtype=np.float32)
    centres = random.standard_normal((clusters.max() + 1, WIDTH), dtype=np.float32)
    rows = noise * random.standard_normal((len(clusters), WIDTH), dtype=np.float32)
    rows += centres[clusters]
    return rows * spread


def find_others(clusters: np.ndarray, count: int, random: np.random.Generator) -> tuple[np.ndarray, SearchTask]:
    """Queries [Q], and their task: all others of a query's cluster are right."""
    sizes = np.bincount(clusters)
    queries = random.permutation(np.flatnonzero(sizes[clusters] > 1))[:count]
    texts = np.arange(len(clusters))
    members = csr_matrix((np.ones(len(texts), dtype=np.int8), (clusters, texts)), shape=(len(sizes), len(texts)))
    own = csr_matrix(
        (np.ones(len(queries), dtype=np.int8), (np.arange(len(queries)), queries)), (len(queries), len(texts))
    )
    relevant = members[clusters[queries]] - own
    relevant.eliminate_zeros()
    return queries, SearchTask(relevant, own)


def held_bytes(most: bool) -> int:
    """The memory that this process holds, or the `most` it held since `forget_peak`."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM" if most else "VmRSS"].split()[0]) * 1024


def forget_peak() -> None:
    """Let Linux begin anew with the most memory that this process held."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(texts: int, count: int) -> dict[str, Any]:
    """Seconds and bytes of one judgement."""
    random = np.random.default_rng(0)
    clusters = draw_clusters(texts, random)
    rows = {system: draw_embeddings(clusters, noise, random) for system, noise in NOISE.items()}
    queries, task = find_others(clusters, count, random)
    search(EmbeddingScores(rows["model"][:1], rows["model"][:100], DIMS), _first_of_hundred())  # loads what is lazy
    forget_peak()
    held, clock, processor = held_bytes(most=False), time.perf_counter(), time.process_time()
    values = {system: search(EmbeddingScores(each[queries], each, DIMS), task) for system, each in rows.items()}
    searched, grown = time.perf_counter() - clock, held_bytes(most=True) - held
    found = assess_search(values, clusters[queries], DIMS, texts=texts, source="drawn")
    return {
        "texts": texts,
        "queries": len(queries),
        "width": WIDTH,
        "dims": list(DIMS),
        "models": len(rows),
        "seconds": time.perf_counter() - clock,
        "seconds_of_search": searched,
        "cpu_seconds": time.process_time() - processor,
        "extra_bytes": grown,
        "success@5": {system: metrics[str(WIDTH)]["success@5"] for system, metrics in found.metrics.items()},
        "success@5_difference": found.intervals[CHANGE][str(WIDTH)]["success@5"],
    }


def _first_of_hundred() -> SearchTask:
    return SearchTask(csr_matrix(([1], ([0], [1])), shape=(1, 100)), csr_matrix(([1], ([0], [0])), shape=(1, 100)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    options = parser.parse_args()
    found = measure(options.texts, options.queries)
    print(
        f"{found['queries']:,} queries among {found['texts']:,} texts, {found['models']} models, {len(DIMS)} dims: "
        f"{found['seconds']:.1f} s ({found['seconds_of_search']:.1f} s of them search), {found['cpu_seconds']:.1f} s "
        f"of the processor, {found['extra_bytes'] / 2**20:.0f} MiB beside the embeddings"
    )
    print(f"Record: {save_record('search', {'environment': environment(), **found}, options.results)}")


if __name__ == "__main__":
    main()
