"""What is concluded from embeddings: intervals, retrieval, verdicts, the diagnostic, forgetting."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from trainer.data.pairs import PairTable, pairs_from_columns
from trainer.errors import InputError, NumericError
from trainer.evaluation import assessment
from trainer.evaluation.assessment import assess, assess_search, forgetting
from trainer.evaluation.bootstrap import bootstrap_means, interval
from trainer.evaluation.diagnostic import adversarial, diagnose, insufficient
from trainer.evaluation.groups import groups_of_queries
from trainer.evaluation.metric_choice import AUTO, JUDGED_BY, SEARCH_METRICS, choose_metric, headline, require_metric
from trainer.evaluation.pair_metrics import (
    JUDGING,
    METRICS,
    classify_at,
    pair_metrics,
    pearson,
    prefix_cosines,
    roc_auc,
    spearman,
)
from trainer.evaluation.verdict import decide, no_intervals, overall_verdict, paired_verdict

DIMS = (16, 4)
AT = {"16": 0.3, "4": 0.4}


def tickets(count: int, categories: int = 3, seed: int = 0) -> PairTable:
    """Every title with its own body (1) and with another ticket's (0)."""
    rng = np.random.default_rng(seed)
    other = (np.arange(count) + rng.integers(1, count, size=count)) % count
    titles, bodies = [f"title {i}" for i in range(count)], [f"body {i}" for i in range(count)]
    known = [f"group {i % categories}" for i in range(count)]
    shuffled = rng.permutation(known).tolist()  # so that some positives cross categories
    return pairs_from_columns(
        {
            "texts1": titles * 2,
            "texts2": bodies + [bodies[i] for i in other],
            "labels": [1] * count + [0] * count,
            "categories1": known * 2,
            "categories2": shuffled + [known[i] for i in other],
        },
        "pairs.json",
    )


def rows_of(table: PairTable, noise: float, seed: int = 1) -> np.ndarray:
    """[T, 16] embeddings where the texts of a ticket lie close."""
    rng = np.random.default_rng(seed)
    ticket = np.array([int(text.split()[1]) for text in table.texts])
    centres = np.random.default_rng(9).normal(size=(ticket.max() + 1, 16))
    return (centres[ticket] + noise * rng.normal(size=(len(ticket), 16))).astype(np.float32)


def test_the_figures_are_the_plain_ones_and_lie_in_their_intervals() -> None:
    table = tickets(80)
    rows = rows_of(table, 1.0)
    found = assess(table, {"model": rows}, DIMS, {"model": AT}, resamples=200)
    cosines = prefix_cosines(rows[table.text1], rows[table.text2], DIMS)
    for dim, scores in zip(DIMS, cosines, strict=True):
        metrics, intervals = found.metrics["model"][str(dim)], found.intervals["model"][str(dim)]
        plain = pair_metrics(scores, table.score, table.label) | classify_at(scores, table.label, AT[str(dim)])
        assert {name: metrics[name] for name in plain} == plain | {"threshold": AT[str(dim)]}
        assert set(intervals) == metrics.keys() - {"threshold"} and {"recall@5", "mrr@10", "ndcg@10"} < set(intervals)
        assert all(low < metrics[name] < high for name, (low, high) in intervals.items())
    assert found.queries == 160 and decide(found, "spearman").verdicts == {} and found.undefined == {}
    assert found.groups["kind"] == "groups of texts connected by positives" and found.groups["count"] == 80


@pytest.mark.parametrize("metric", ["spearman", "ndcg@10"])
def test_verdicts_are_paired_and_by_the_metric_asked_for(metric: str) -> None:
    table = tickets(150)
    good, bad = rows_of(table, 0.5), rows_of(table, 2.0, seed=2)
    both = {"model": AT, "baseline": AT}

    def verdicts(model: np.ndarray, baseline: np.ndarray) -> dict[str, str]:
        return decide(assess(table, {"model": model, "baseline": baseline}, DIMS, both, resamples=200), metric).verdicts

    assert verdicts(good, bad) == {"16": "BETTER", "4": "BETTER"}
    assert verdicts(bad, good) == {"16": "NOT BETTER", "4": "NOT BETTER"}
    assert verdicts(good, good) == {"16": "NOT BETTER", "4": "NOT BETTER"}  # no difference at all
    alike = rows_of(table, 0.5, seed=3)
    assert set(verdicts(good, alike).values()) == {"UNCLEAR"}
    # A model that is better at one dim only.
    mixed = bad.copy()
    mixed[:, :4] = good[:, :4]
    assert verdicts(mixed, bad)["4"] == "BETTER"


def test_models_of_different_widths_are_compared_at_common_dims() -> None:
    table = tickets(60)
    rows = rows_of(table, 1.0)
    at = {"model": {"4": 0.4}, "baseline": {"4": 0.4}}
    found = assess(table, {"model": rows, "baseline": rows[:, :4]}, (4,), at)
    assert found.metrics["model"] == found.metrics["baseline"]
    assert set(map(tuple, found.intervals["difference"]["4"].values())) == {(0.0, 0.0)}


def test_the_order_of_dims_is_no_matter() -> None:
    table = tickets(60)
    embeddings = {"model": rows_of(table, 1.0), "baseline": rows_of(table, 2.0)}
    found = assess(table, embeddings, DIMS, {"model": AT, "baseline": AT}, resamples=100)
    turned = assess(table, embeddings, DIMS, {"model": AT, "baseline": dict(reversed(AT.items()))}, resamples=100)
    assert turned == found
    turned = assess(table, embeddings, DIMS[::-1], {"model": AT, "baseline": AT}, resamples=100)
    assert turned == found


def test_too_few_groups_give_no_verdict_but_a_reason() -> None:
    table = tickets(12)
    embeddings = {"model": rows_of(table, 0.1), "baseline": rows_of(table, 9.0)}
    found = assess(table, embeddings, DIMS, {"model": AT, "baseline": AT}, resamples=100)
    assert set(decide(found, "spearman").verdicts.values()) == {"UNCLEAR"}
    assert "to draw from" in found.undefined["spearman"] and "clusters of dup" in found.undefined["recall@1"]
    assert all(math.isnan(end) for ends in found.intervals["model"]["16"].values() for end in ends)
    said = no_intervals(found.undefined, list(found.metrics["model"]["16"]))
    assert len(said) == 1 and said[0].startswith("No intervals, so no verdict can be sure: there are ")


def test_a_difference_that_is_undefined_more_often_than_either_system_has_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = tickets(60)
    whole = assessment.bootstrap_pairs

    def with_gaps(*args: Any, **options: Any) -> dict[str, np.ndarray]:
        found = whole(*args, **options)
        found["pearson"][: len(DIMS), :4], found["pearson"][len(DIMS) :, 4:8] = math.nan, math.nan
        return found

    monkeypatch.setattr(assessment, "bootstrap_pairs", with_gaps)
    embeddings = {"model": rows_of(table, 1.0), "baseline": rows_of(table, 2.0)}
    found = assess(table, embeddings, DIMS, {"model": AT, "baseline": AT}, resamples=100)
    of_dim = [found.intervals[name]["16"]["pearson"] for name in ("model", "baseline", "difference")]
    assert [math.isnan(low) for low, _ in of_dim] == [False, False, True]
    assert list(found.undefined) == ["pearson"] and "8%" in found.undefined["pearson"]


def test_copies_of_a_text_are_one_query_and_no_rival() -> None:
    table = pairs_from_columns(
        {
            "texts1": ["vpn down", "VPN  down", "mail", *(f"a{i}" for i in range(30))],
            "texts2": ["no vpn", "no vpn", "outlook", *(f"b{i}" for i in range(30))],
            "labels": [1, 1, 1, *([0] * 30)],
        },
        "x",
    )
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(len(table.texts), 8)).astype(np.float32)
    for pair in (("vpn down", "VPN  down", "no vpn"), ("mail", "outlook")):
        for text in pair[1:]:
            rows[table.texts.index(text)] = rows[table.texts.index(pair[0])] + 1e-3
    found = assess(table, {"model": rows}, (8,), {"model": {"8": 0.5}}, resamples=100)
    assert found.queries == 4 and found.metrics["model"]["8"]["recall@1"] == 1.0


def positives(count: int) -> PairTable:
    """Every title with its own body."""
    table = tickets(count)
    return table.take(table.label)


def test_positives_alone_are_judged_by_search() -> None:
    """Values and paired intervals are those of the queries themselves; nothing else is there."""
    table = positives(150)
    rows = {"model": rows_of(table, 0.5), "baseline": rows_of(table, 2.0, seed=2)}
    found = assess(table, rows, DIMS, {}, resamples=200)
    assert decide(found, "mrr@10").verdicts == {"16": "BETTER", "4": "BETTER"}
    assert found.diagnostic == {} and found.undefined == {}
    assert (found.queries, found.texts) == (300, 300)
    assert all(set(values) == set(SEARCH_METRICS) for system in found.metrics.values() for values in system.values())
    ranks: dict[str, np.ndarray] = {}
    for system, embeddings in rows.items():  # the plain definition: sort the others, look for the partner
        unit = embeddings.astype(np.float64) / np.linalg.norm(embeddings, axis=1, keepdims=True)
        similar = unit @ unit.T
        np.fill_diagonal(similar, -2)
        partner = np.empty(300, dtype=int)
        partner[table.text1], partner[table.text2] = table.text2, table.text1
        ranks[system] = 1 + (similar > similar[np.arange(300), partner][:, None]).sum(1)
    reciprocal = {system: np.where(rank <= 10, 1 / rank, 0) for system, rank in ranks.items()}
    for system in rows:
        assert found.metrics[system]["16"]["mrr@10"] == pytest.approx(reciprocal[system].mean())
        assert found.metrics[system]["16"]["success@5"] == pytest.approx((ranks[system] <= 5).mean())
    tickets_of_texts = np.array([int(text.split()[1]) for text in table.texts])
    difference = (reciprocal["model"] - reciprocal["baseline"])[None]
    ends = interval(bootstrap_means(difference, groups_of_queries(tickets_of_texts), resamples=200))[0]
    assert found.intervals["difference"]["16"]["mrr@10"] == pytest.approx(ends.tolist())


def topics(table: PairTable, count: int, noise: float) -> np.ndarray:
    """[T, 16] embeddings that tell of a text its topic, one of `count`, and hardly its ticket."""
    rng = np.random.default_rng(4)
    ticket = np.array([int(text.split()[1]) for text in table.texts])
    centres = rng.normal(size=(count, 16))
    return (centres[ticket % count] + noise * rng.normal(size=(len(ticket), 16))).astype(np.float32)


def test_a_gain_on_pairs_with_a_loss_on_search_is_not_better_and_said_first() -> None:
    """A model that only knows topics tells random negatives apart, and finds the right one of a topic by chance."""
    table = tickets(400)
    rows, at = {"model": topics(table, 25, 0.05), "baseline": rows_of(table, 1.0)}, {"16": 0.3, "8": 0.3}
    found = assess(table, rows, (16, 8), {"model": at, "baseline": at}, resamples=200)
    decision = decide(found, "spearman")
    assert set(decision.verdicts.values()) == {"BETTER"} and decision.verdict == "NOT BETTER"
    assert ("success@10", "16") in found.surely_worse and ("map@100", "16") in found.surely_worse
    before, after = (found.metrics[system]["16"]["success@10"] for system in ("baseline", "model"))
    assert decision.sentences[0].startswith("NOT BETTER: the model is surely worse at finding the right ticket: ")
    assert f"success@10 {before:.3f} -> {after:.3f} [-0." in decision.sentences[0]
    assert decision.sentences[0].endswith("; deploy: no.") and "fewer of 100 searches" in decision.sentences[1]
    assert "searching the 800 texts of pairs.json at 16 dims" in decision.sentences[1]
    assert decide(replace(found, surely_worse=[]), "spearman").verdict == "BETTER"  # so it would be by pairs alone


def test_a_loss_by_the_metric_itself_is_said_first() -> None:
    table, at = tickets(200), {"16": 0.3, "8": 0.3}
    rows = {"model": rows_of(table, 3.0), "baseline": rows_of(table, 0.5)}
    found = assess(table, rows, (16, 8), {"model": at, "baseline": at}, resamples=200)
    first = decide(replace(found, surely_worse=[]), "spearman").sentences[0]
    assert first.startswith("NOT BETTER: the model is surely worse: spearman 0.") and first.endswith("; deploy: no.")
    assert " at 16 dims (also at 8)" in first
    first = decide(found, "spearman").sentences[0]
    assert first.index("success@10 ") < first.index("spearman ")


def test_a_corpus_stands_for_all_that_is_searched() -> None:
    """Its figures guard the verdict by pairs, and carry the one by a search metric."""
    table, found_by = tickets(150), np.random.default_rng(0).permutation(500)
    rows = {"model": rows_of(table, 0.5), "baseline": rows_of(table, 2.0, seed=2)}
    values = {
        system: dict.fromkeys(SEARCH_METRICS, np.tile((found_by < share * 500).astype(float), (2, 1)))
        for system, share in (("model", 0.5), ("baseline", 0.6))
    }
    corpus = assess_search(values, np.arange(500), DIMS, texts=9000, source="tickets.csv", resamples=200)
    found = assess(table, rows, DIMS, {"model": AT, "baseline": AT}, search=corpus, resamples=200)
    assert found.metrics["model"]["4"]["mrr@10"] == 0.5 and found.intervals.keys() == corpus.intervals.keys()
    assert set(decide(found, "spearman").verdicts.values()) == {"BETTER"}
    for metric in ("spearman", "mrr@10"):
        decision = decide(found, metric)
        assert decision.verdict == "NOT BETTER" and "success@10 0.600 -> 0.500" in decision.sentences[0]
        assert "for 60 -> 50 of 100 tickets [" in decision.sentences[1]
        assert "searching the 9,000 texts of tickets.csv at 16 dims" in decision.sentences[1]
    assert set(decide(found, "mrr@10").verdicts.values()) == {"NOT BETTER"}


def test_any_metric_carries_the_verdict() -> None:
    table = tickets(150)
    rows = {"model": rows_of(table, 0.5), "baseline": rows_of(table, 2.0, seed=2)}
    found = assess(table, rows, DIMS, {"model": AT, "baseline": AT}, resamples=200)
    for metric in JUDGED_BY:
        decision = decide(found, metric)
        low, high = found.intervals["difference"]["16"][metric]
        assert decision.verdicts["16"] == paired_verdict(low, high) and f"because {metric} " in decision.sentences[0]


def test_where_search_cannot_tell_a_sentence_says_so() -> None:
    """Many negatives, few positives: enough groups for labels, too few for search."""
    count = 200
    pairs = {
        "texts1": [f"title {i}" for i in range(count)],
        "texts2": [f"body {i if i < 12 else i + count}" for i in range(count)],
        "labels": [1] * 12 + [0] * (count - 12),
    }
    table = pairs_from_columns(pairs, "few.json")
    rows = {"model": rows_of(table, 0.1), "baseline": rows_of(table, 9.0)}
    found = assess(table, rows, DIMS, {"model": AT, "baseline": AT}, resamples=200)
    decision = decide(found, "roc_auc")
    assert decision.verdict == "BETTER" and "success@10 and map@100 could not be checked" in decision.sentences[0]
    reason = "there are 12.0 clusters of duplicates to draw from (counted as of equal size), and 20 are needed"
    assert decision.sentences[2] == f"Whether search got better or worse cannot be told: {reason}."


def test_a_metric_is_required_by_a_known_name() -> None:
    for name in (*JUDGING, *SEARCH_METRICS, AUTO):
        require_metric(name, "x")
    assert set(JUDGED_BY) == (METRICS.keys() - {"precision", "recall", "false_positive_rate"}) | set(SEARCH_METRICS)
    for name in ("accuracy", "false_positive_rate", "recall", "threshold", ""):
        with pytest.raises(
            InputError, match=r"^--metric x: use one of auto, spearman, pearson, .*, mrr@10, ndcg@10, map@100$"
        ):
            require_metric(name, "--metric x")


def test_the_metric_is_one_that_all_held_out_pairs_can_tell() -> None:
    labelled, alone = tickets(20), positives(20)
    assert choose_metric(AUTO, [labelled], "x") == choose_metric("spearman", [labelled], "x") == "spearman"
    assert choose_metric(AUTO, [alone], "x") == choose_metric(AUTO, [labelled, alone], "x") == "mrr@10"
    assert choose_metric(AUTO, [labelled], "x", has_corpus=True) == "mrr@10"
    assert choose_metric("spearman", [labelled], "x", has_corpus=True) == "spearman"
    assert choose_metric("ndcg@10", [labelled, alone], "x") == "ndcg@10"
    for tables in ([alone], [labelled, alone]):
        with pytest.raises(
            InputError, match=r"^eval.metric: pairs.json holds positives alone, .* add negative .* mrr@10"
        ):
            choose_metric("roc_auc", tables, "eval.metric")


def test_what_a_small_table_shows() -> None:
    assert headline(METRICS, "spearman") == ["spearman", "roc_auc", "f1"]
    assert headline([*METRICS, *SEARCH_METRICS], "ndcg@10") == ["spearman", "roc_auc", "f1", "ndcg@10"]
    assert headline(SEARCH_METRICS, "mrr@10") == ["success@1", "success@5", "success@10", "mrr@10"]


def test_a_silent_diagnostic_is_a_sentence() -> None:
    table = crossed(3, 40)
    scores = {"model": np.zeros((1, len(table)))}
    few, enough = (diagnose(table, scores, {"model": {"8": 0.5}}, fewest) for fewest in (20, 3))
    said = insufficient(few, 20)
    assert said is not None and said.startswith("INSUFFICIENT: ") and said.endswith("these pairs have 3 and 40.")
    assert insufficient(enough, 3) is None
    assert insufficient({}, 20) == "The adversarial diagnostic needs negatives, and these pairs have none."


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.01, 0.2, "BETTER"),
        (0.0, 0.2, "UNCLEAR"),
        (-0.1, 0.2, "UNCLEAR"),
        (-0.2, 0.0, "NOT BETTER"),
        (0.0, 0.0, "NOT BETTER"),
        (-0.2, -0.1, "NOT BETTER"),
        (math.nan, math.nan, "UNCLEAR"),
    ],
)
def test_paired_verdict(low: float, high: float, expected: str) -> None:
    assert paired_verdict(low, high) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (("BETTER", "BETTER"), "BETTER"),
        (("BETTER", "UNCLEAR"), "UNCLEAR"),
        (("BETTER", "NOT BETTER"), "NOT BETTER"),
        (("UNCLEAR", "NOT BETTER"), "NOT BETTER"),
    ],
)
def test_overall_verdict(found: tuple[str, ...], expected: str) -> None:
    assert overall_verdict(dict(zip(("64", "8"), found, strict=True))) == expected


def crossed(positives: int, negatives: int, easy: int = 50) -> PairTable:
    """Adversarial pairs of both kinds, and pairs that a category shortcut solves or that lack a category."""
    kinds = [("a", "b", 1)] * positives + [("a", "a", 0)] * negatives + [("a", "a", 1), ("a", "b", 0)] * easy
    kinds += [("", "", 1), ("", "a", 0), ("", "", 0)] * 10
    count = len(kinds)
    return pairs_from_columns(
        {
            "texts1": [f"x{i}" for i in range(count)],
            "texts2": [f"y{i}" for i in range(count)],
            "labels": [label for *_, label in kinds],
            "categories1": [first for first, *_ in kinds],
            "categories2": [second for _, second, _ in kinds],
        },
        "x",
    )


def test_the_diagnostic_takes_exactly_the_adversarial_pairs() -> None:
    table = crossed(30, 40)
    rows = adversarial(table)
    assert rows[:70].all() and not rows[70:].any()
    plain = pairs_from_columns({"texts1": ["a", "b"], "texts2": ["c", "d"], "labels": [0, 1]}, "x")
    assert not adversarial(plain).any()


@pytest.mark.parametrize(
    ("positives", "negatives", "noise", "threshold", "status"),
    [
        (30, 40, 0.1, 0.5, "PASS"),
        (20, 20, 0.1, 0.5, "PASS"),
        (19, 40, 0.1, 0.5, "INSUFFICIENT"),
        (40, 19, 0.1, 0.5, "INSUFFICIENT"),
        (0, 40, 0.1, 0.5, "INSUFFICIENT"),
        (30, 40, 5.0, 0.5, "FAIL"),
        (30, 40, 0.1, 5.0, "FAIL"),  # the order is perfect, the frozen threshold calls nothing positive
    ],
)
def test_the_diagnostic(positives: int, negatives: int, noise: float, threshold: float, status: str) -> None:
    table = crossed(positives, negatives)
    scores = table.label + noise * np.random.default_rng(0).normal(size=(1, len(table)))
    weak = np.random.default_rng(1).normal(size=(1, len(table)))
    at: dict[str, Any] = {"model": {"8": threshold}, "baseline": {"8": 0.0}}
    found = diagnose(table, {"model": scores, "baseline": weak}, at)["8"]
    assert (found["status"], found["positives"], found["negatives"]) == (status, positives, negatives)
    if positives:
        rows = adversarial(table)
        assert found["baseline"]["roc_auc"] == roc_auc(weak[0, rows], table.label[rows])
        assert found["model"]["f1"] == classify_at(scores[0, rows], table.label[rows], threshold)["f1"]
    assert diagnose(table, {"model": scores}, at, fewest=50)["8"]["status"] == "INSUFFICIENT"


def test_forgetting_is_measured_on_graded_scores() -> None:
    rng = np.random.default_rng(3)
    table = pairs_from_columns(
        {
            "texts1": [f"x{i}" for i in range(200)],
            "texts2": [f"y{i}" for i in range(200)],
            "labels": np.round(5 * rng.random(200), 1).tolist(),
        },
        "sts.csv",
        label_scale=5.0,
    )
    before = rng.normal(size=(400, 16)).astype(np.float32)
    before[table.text2] += (3 * table.score)[:, None].astype(np.float32) * before[table.text1]
    worse = (before + 1.5 * rng.normal(size=before.shape)).astype(np.float32)
    found = forgetting(table, before, worse, DIMS, resamples=200, seed=0)
    for m, dim in enumerate(("16", "4")):
        for name, plain in (("spearman", spearman), ("pearson", pearson)):
            for when, rows in (("before", before), ("after", worse)):
                scores = prefix_cosines(rows[table.text1], rows[table.text2], DIMS)[m]
                assert found[dim][name][when] == plain(scores, table.score)
            low, high = found[dim][name]["difference"]
            assert low < found[dim][name]["after"] - found[dim][name]["before"] < high < 0
    same = forgetting(table, before, before, DIMS, resamples=200, seed=0)
    assert same["16"]["spearman"]["difference"] == [0.0, 0.0]


def test_broken_embeddings_are_a_numeric_error() -> None:
    table = tickets(30)
    rows = rows_of(table, 1.0)
    rows[3] = np.nan
    with pytest.raises(NumericError, match="not finite"):
        assess(table, {"model": rows}, DIMS, {"model": AT})


def test_the_difference_is_the_models_in_whatever_order_the_systems_come() -> None:
    table, rng = tickets(40), np.random.default_rng(3)
    rows = {system: rng.normal(size=(len(table.texts), 16)) for system in ("baseline", "model")}
    at = dict.fromkeys(rows, AT)
    found = [
        assess(table, {name: rows[name] for name in order}, DIMS, at)
        for order in (["baseline", "model"], ["model", "baseline"])
    ]
    assert found[0] == found[1]
    low, high = found[0].intervals["difference"]["16"]["spearman"]
    metrics = found[0].metrics
    assert low < metrics["model"]["16"]["spearman"] - metrics["baseline"]["16"]["spearman"] < high
