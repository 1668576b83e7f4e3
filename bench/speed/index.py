"""What an index of 100,000 tickets costs: time of a query once it is embedded, what a search by prefix misses, memory.

Embeddings are random, in clusters of 11 to 30, with coordinates that carry less towards the end of the embedding; texts
are made of words as frequent as those of a language. The index is written and opened as the commands do it; then stored
embeddings, disturbed a little, search with a text of their own, one at a time. Measured is the processor's
time, which others on the machine disturb less than the clock. Writes bench/results/index.json.

    OMP_NUM_THREADS=1 python -m bench.speed.index --widths 384
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from bench.measuring import in_new_process
from bench.records import finish, make_parser, settings_of
from bench.speed.search import draw_embeddings, forget_peak, held_bytes
from trainer.model.embedding_types import TYPES, EmbeddingType
from trainer.model.encoder import EmbeddingConditions
from trainer.search.index import Index, measure_reach
from trainer.search.storage import Ticket, write_index
from trainer.search.ticket_texts import Preparation
from trainer.text.bm25 import WordIndex

TOP, WORDS, VOCABULARY = 10, 60, 50_000
NOISE = 1.0


def draw_texts(count: int, random: np.random.Generator) -> list[str]:
    """Texts of WORDS words, the n-th word as frequent as 1 / n."""
    shares = 1 / np.arange(1, VOCABULARY + 1)
    drawn = random.choice(VOCABULARY, size=(count, WORDS), p=shares / shares.sum())
    return [" ".join(f"w{word:x}" for word in row) for row in drawn.tolist()]


def draw_clusters(count: int, random: np.random.Generator) -> np.ndarray:
    """[N] cluster of each ticket: enough of each that the best TOP are of the query's own."""
    clusters = np.repeat(np.arange(count), random.integers(TOP + 1, 3 * TOP + 1, size=count))[:count]
    random.shuffle(clusters)
    return clusters


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, in place."""
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def write(folder: Path, count: int, width: int, random: np.random.Generator, type: str = "float32") -> dict[str, float]:
    """Write an index of drawn tickets; seconds of each step."""
    rows = draw_embeddings(draw_clusters(count, random), NOISE, random)[:, :width]
    rows, texts = unit(np.ascontiguousarray(rows)), draw_texts(count, random)
    tickets = [Ticket(f"INC{row}", hashlib.sha256(text.encode()).hexdigest(), text) for row, text in enumerate(texts)]
    clock = [time.perf_counter()]
    kept = EmbeddingType.fit(type, rows)
    rows = kept.encode(rows)
    reach = measure_reach(rows, kept=kept)
    clock.append(time.perf_counter())
    words = WordIndex.of(texts)
    clock.append(time.perf_counter())
    model = EmbeddingConditions("0" * 64, "mean", 384, "", "")
    facts = {"model_name": "drawn", "model": model, "preparation": Preparation()}
    write_index(folder, rows, tickets, words, facts | reach._asdict(), kept)
    clock.append(time.perf_counter())
    return dict(
        zip(("seconds_of_measuring", "seconds_of_bm25", "seconds_of_writing"), np.diff(clock).tolist(), strict=True)
    )


def ask(index: Index, queries: np.ndarray, texts: list[str], **how: Any) -> tuple[np.ndarray, list[set[str]]]:
    """Milliseconds [Q] of the processor for each query, and the ids it found."""
    times, found = [], []
    for place, query in enumerate(queries):
        start = time.process_time()
        hits = index.search_embeddings(query[None], TOP, texts[place : place + 1], **how)[0]
        times.append(1000 * (time.process_time() - start))
        found.append({hit.id for hit in hits})
    return np.array(times), found


def measure(folder: Path, tickets: int, width: int, count: int) -> dict[str, Any]:
    """Times, recall and bytes of one index."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:  # libraries load a part of themselves at their first use
        write(Path(place) / "small", 3000, width, random)
        small = Index.open(Path(place) / "small", model=None)
        for how in ({}, {"exact": True}):
            ask(small, small.kept.decode(small.embeddings[:3]), ["w1 w2", "w3", "w4"], **how)
    forget_peak()
    held, clock = held_bytes(most=False), time.perf_counter()
    index = Index.open(folder, model=None)
    opened = time.perf_counter() - clock
    noise = random.standard_normal((count, width), dtype=np.float32) * (0.5 / np.sqrt(width))
    near = index.embeddings[np.sort(random.choice(tickets, size=count, replace=False))]
    queries = unit(index.kept.decode(near) + noise)
    texts = draw_texts(count, random)
    by_both, _ = ask(index, queries, texts)
    by_prefix, found = ask(index, queries, [])
    grown = held_bytes(most=True) - held
    exact, best = ask(index, queries, [], exact=True)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "width": width,
        "type": index.kept.name,
        "prefix": index.contents.prefix,
        "candidates": index.contents.candidates,
        "recall_when_written": index.contents.recall,
        "recall": float(np.mean([len(one & other) / TOP for one, other in zip(found, best, strict=True)])),
        "seconds_to_open": opened,
        "bytes": size,
        "memory_bytes": grown,
        "memory_by_index": grown / size,
        "cpu_milliseconds": {
            name: {"median": float(np.median(times)), "worst of 100": float(np.quantile(times, 0.99))}
            for name, times in (("embeddings and BM25", by_both), ("embeddings", by_prefix), ("exact", exact))
        },
    }


def main() -> None:
    parser = make_parser(__doc__, "index")
    parser.add_argument("--tickets", dest="count", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 768])
    parser.add_argument("--types", nargs="+", choices=TYPES, default=["float32", "int8", "binary"])
    options = parser.parse_args()
    record: dict[str, Any] = {"settings": settings_of(options), "runs": []}
    for width, type in product(options.widths, options.types):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "index"
            written = write(folder, options.count, width, np.random.default_rng(width), type)
            # Memory that this process has freed would be taken again, and not be seen to grow.
            measured = in_new_process(measure, folder, options.count, width, options.queries)
            record["runs"].append(written | measured)
            print(width, type, written | measured)
    finish(options, record)


if __name__ == "__main__":
    main()
