"""Embeddings in fewer bytes: what is decoded beside the plain definition, saturation, products, what a search loses."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.data.pairs import pairs_from_columns
from trainer.data.search_corpus import corpus_of_pairs
from trainer.evaluation.search_set import SearchedTexts
from trainer.evaluation.type_comparison import compare_types, print_types, types_in_markdown
from trainer.model.embedding_types import ROWS_AT_ONCE, TYPES, EmbeddingType, unit_prefixes


def drawn(count: int, width: int) -> np.ndarray:
    rows = np.random.default_rng().standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("width", [1, 7, 8, 33])
def test_what_is_decoded_is_the_plain_definition(width: int) -> None:
    rows = drawn(50, width)
    rows[:, 0] = 0.5  # a coordinate that is the same everywhere
    low, high = rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64)
    steps = np.where(high > low, (high - low) / 255, 1)
    plain = {
        "float32": rows,
        "float16": rows.astype(np.float16).astype(np.float64),
        "int8": low + np.round((rows - low) / steps) * steps,
        "binary": np.where(rows > 0, 1, -1) / np.sqrt(width),
    }
    sizes = {"float32": 4 * width, "float16": 2 * width, "int8": width, "binary": (width + 7) // 8}
    for name in TYPES:
        kept = EmbeddingType.fit(name, rows)
        stored = kept.encode(rows)
        assert stored.nbytes == 50 * sizes[name] == 50 * kept.bytes_each
        # A value halfway between two steps may go to either.
        assert np.abs(kept.decode(stored) - plain[name]).max() <= (1.01 * steps.max() if name == "int8" else 1e-7)
        assert np.abs(kept.decode(stored) - rows).max() <= {"int8": 0.505 * steps.max(), "binary": 2}.get(name, 1e-3)
        assert (kept.encode(kept.decode(stored)) == stored).all()


def test_values_beyond_the_ranges_saturate() -> None:
    rows = drawn(20, 5)
    kept = EmbeddingType.fit("int8", rows)
    assert kept.ranges is not None and kept.clipped(rows) == 0
    for far in (1.5, 100, 1e30):
        high, low = (kept.decode(kept.encode(np.full((1, 5), value, dtype=np.float32)))[0] for value in (far, -far))
        assert high == pytest.approx(kept.ranges[1], abs=1e-6) and low == pytest.approx(kept.ranges[0], abs=1e-6)
        assert kept.clipped(np.full((3, 5), far, dtype=np.float32)) == 15


@pytest.mark.parametrize("count", [0, 1, ROWS_AT_ONCE + 3])
def test_products_are_those_of_what_is_decoded(count: int) -> None:
    query = drawn(1, 21)[0]
    for name in TYPES:
        kept = EmbeddingType.fit(name, drawn(30, 21))
        stored = kept.encode(drawn(count, 21))
        assert kept.dots(stored, query) == pytest.approx(kept.decode(stored).astype(np.float64) @ query, abs=1e-6)


@pytest.mark.parametrize("sided", [False, True])
def test_the_table_says_what_brute_force_finds(sided: bool, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"text {row}" for row in range(60)]
    table = pairs_from_columns({"text1": texts[:20], "text2": texts[20:40], "label": [1] * 20})
    corpus = corpus_of_pairs(table, texts[40:])
    searched = SearchedTexts(corpus, np.arange(60), 60)
    rows = drawn(60, 40)
    rows[20:40] += 0.8 * rows[:20]
    embeddings = np.concatenate([drawn(60, 40) * 0.3 + rows, rows]) if sided else rows
    found = compare_types(searched, embeddings, (32, 40))
    assert [(row["dims"], row["type"]) for row in found] == [(dim, name) for dim in (40, 32) for name in TYPES]
    asking = embeddings[:60][corpus.queries]

    def best(queries: np.ndarray, kept: np.ndarray) -> np.ndarray:
        cosines = queries.astype(np.float64) @ (kept / np.linalg.norm(kept, axis=1, keepdims=True)).T
        cosines[corpus.excluded.nonzero()] = -9
        return np.argsort(-cosines, axis=1)[:, :10]

    exact = best(asking, rows)
    for row in found:
        kept = EmbeddingType.fit(row["type"], unit_prefixes(rows, row["dims"]))
        ten = best(asking[:, : row["dims"]], kept.decode(kept.encode(unit_prefixes(rows, row["dims"]))))
        recall = np.mean([np.isin(one, other).mean() for one, other in zip(ten, exact, strict=True)])
        hits = np.mean([corpus.relevant[place, each].sum() > 0 for place, each in enumerate(ten)])
        # Two that all but tie may change places between float32 and float64: one of the ten of two queries.
        tie = 2 / (10 * len(ten)) + 1e-9
        assert row["recall@10"] == pytest.approx(recall, abs=tie)
        assert row["success@10"] == pytest.approx(hits, abs=2 / len(ten) + 1e-9)
    assert found[0]["recall@10"] == pytest.approx(1, abs=tie) and found[3]["recall@10"] < 1 - tie
    print_types(found)
    assert "binary" in capsys.readouterr().err and len(types_in_markdown(found)) == 2 + 8 + 2
