"""What thresholds are worth outside of the labelled pairs: at another share of positives, and in alerts a ticket."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING
from typing import Any

import numpy as np

from trainer.data.pairs import PairTable
from trainer.data.tickets import OPTIONAL_REASONS, Filter, load_tickets
from trainer.errors import InputError
from trainer.evaluation import alerts as tail
from trainer.evaluation import prevalence
from trainer.evaluation.alerts import AlertCounts
from trainer.evaluation.bootstrap import interval
from trainer.evaluation.groups import Groups, groups_of_pairs
from trainer.evaluation.prevalence import TELLING, percent, smallest_rate
from trainer.evaluation.question import Question
from trainer.evaluation.scoring import pair_cosines
from trainer.evaluation.thresholds import Thresholds, fit_to_alerts, parse_rule, value_at_share
from trainer.model.embedding import embed_cached, sides, tokenize_sides
from trainer.model.encoder import Encoder, embedding_conditions

Counts = Mapping[str, AlertCounts]
"""Dim -> alerts of a set of texts."""


def read_ticket_texts(asked: Question) -> list[str]:
    """The texts of the tickets, cleaned as `trainer build-pairs` does it, copies of a text once; [] for no file.

    Raises InputError for a bad file, and for one with fewer than two different texts.
    """
    if not asked.tickets:
        return []
    quality = Filter(min_words=1, keep=OPTIONAL_REASONS)
    texts = load_tickets(asked.tickets, asked.columns, quality, asked.reading).texts
    if len(texts) < 2:
        raise InputError(f"--tickets {asked.tickets}: different texts: {len(texts)}; alerts need two tickets or more")
    return texts


def count_for(encoder: Encoder, texts: list[str], dims: tuple[int, ...]) -> Counts:
    """The alerts of different texts by dim, from cached embeddings; {} for none."""
    if not texts:
        return {}
    embeddings = embed_cached(encoder, tokenize_sides(encoder, texts), description="Embedding (tickets)")
    return {str(dim): tail.count_alerts(*sides(embeddings, len(texts)), dim) for dim in dims}


def thresholds_for_alerts(
    asked: Question, texts: list[str], encoders: Mapping[str, Encoder], counts: Mapping[str, Counts]
) -> dict[str, Thresholds]:
    """The thresholds that raise as many alerts as were asked for, by system; {} where that was not asked.

    Raises InputError where no threshold does.
    """
    if asked.alerts_per_ticket is None or asked.tickets is None:
        return {}
    wanted = asked.alerts_per_ticket
    return {
        system: fit_to_alerts(wanted, counts[system], asked.tickets, texts, embedding_conditions(encoder))
        for system, encoder in encoders.items()
    }


def worth_in_deployment(
    asked: Question,
    dims: tuple[int, ...],
    judged: tuple[PairTable, Mapping[str, np.ndarray]],
    fitted_on: tuple[PairTable, Mapping[str, np.ndarray]] | None,
    thresholds: Mapping[str, Thresholds],
    for_alerts: Mapping[str, Thresholds],
    counts: Mapping[str, Counts],
) -> dict[str, Any] | None:
    """What --json holds as "deployment"; None where nothing was asked.

    Args:
        asked: with the rule that thresholds are fitted by.
        judged: held-out pairs, and embeddings of their texts by system.
        fitted_on: the pairs that thresholds were fitted on just now, likewise.
        thresholds: kept or fitted by a rule, by system; none where there are no negatives.
        for_alerts: those of `thresholds_for_alerts`.
        counts: alerts of the tickets by system and dim; none without tickets.
    """
    if asked.prevalence is None and not asked.tickets:
        return None
    notes: dict[str, None] = {}
    systems: dict[str, Any] = {}
    for system, rows in judged[1].items():
        cosines = pair_cosines(rows, judged[0], dims)
        on = None if fitted_on is None else (fitted_on[0], pair_cosines(fitted_on[1][system], fitted_on[0], dims))
        systems[system] = {
            str(dim): _rows(
                asked,
                str(dim),
                (judged[0], cosines[m]),
                None if on is None else (on[0], on[1][m]),
                thresholds.get(system),
                for_alerts.get(system),
                counts.get(system, {}).get(str(dim)),
                notes,
            )
            for m, dim in enumerate(dims)
        }
    some = next(iter(counts.values()), {})
    return {
        "prevalence": asked.prevalence,
        "alerts_per_ticket": asked.alerts_per_ticket,
        "tickets": {"source": asked.tickets, "count": next(iter(some.values())).tickets} if some else None,
        "systems": systems,
        "notes": list(notes),
    }


def _rows(
    asked: Question,
    dim: str,
    judged: tuple[PairTable, np.ndarray],
    fitted_on: tuple[PairTable, np.ndarray] | None,
    thresholds: Thresholds | None,
    for_alerts: Thresholds | None,
    counts: AlertCounts | None,
    notes: dict[str, None],
) -> list[dict[str, Any]]:
    """The thresholds at one dim, and what each is worth."""
    share = asked.prevalence
    chosen: list[dict[str, Any]] = []
    if thresholds is not None:
        fits = share == thresholds.positive_share
        in_sample = " (in-sample)" if thresholds.data_fingerprint == judged[0].fingerprint() else ""
        where = f"{thresholds.rule} on {thresholds.source}, {thresholds.where}{in_sample}"
        ends = _fit_ends(asked, fitted_on, thresholds, dim, counts) if fits else None
        chosen.append({"chosen": where, "threshold": thresholds.values[dim], "threshold_interval": ends})
        if share is not None and not fits:
            value, by_tail = value_at_share(judged[1], judged[0], dim, share, asked.rule, counts)
            where = f"{asked.rule} on {judged[0].source}, where {percent(share)} are positive (in-sample)"
            refit = Thresholds({dim: value}, asked.rule, "", "", share, thresholds.model, tail=(dim,) * by_tail)
            ends = _fit_ends(asked, judged, refit, dim, counts)
            chosen.append({"chosen": where, "threshold": value, "threshold_interval": ends})
    samples = tail.resample_alerts(counts, asked.resamples, asked.seed) if counts is not None else None
    if asked.alerts_per_ticket is not None and for_alerts is not None and counts is not None and samples is not None:
        ends = interval(tail.resampled_thresholds(samples, asked.alerts_per_ticket)).tolist()
        where = f"{asked.alerts_per_ticket:g} alerts a ticket on {asked.tickets}"
        chosen.append({"chosen": where, "threshold": for_alerts.values[dim], "threshold_interval": ends})
        _note_tail(asked.alerts_per_ticket, counts, judged[0], notes)
    groups = groups_of_pairs(judged[0])
    return [row | _worth(asked, row["threshold"], judged, groups, counts, samples, notes) for row in chosen]


def _worth(
    asked: Question,
    threshold: float,
    judged: tuple[PairTable, np.ndarray],
    groups: Groups,
    counts: AlertCounts | None,
    samples: np.ndarray | None,
    notes: dict[str, None],
) -> dict[str, Any]:
    """Recall on the judged pairs; precision and F1 at the share; alerts. Each with its interval."""
    (table, scores), share = judged, asked.prevalence
    options = {"resamples": asked.resamples, "seed": asked.seed}
    called, negatives = scores >= threshold, int((~table.label).sum())
    recall = float(called[table.label].mean())
    recalls, rates = (
        x[0] for x in prevalence.resampled_rates(scores[None], table.label, [threshold], groups, **options)
    )
    worth: dict[str, Any] = {"recall": recall, "recall_interval": interval(recalls).tolist()}
    if counts is not None and samples is not None:
        alarms = tail.resampled_per_ticket(counts, samples, threshold)
        worth |= {"alerts": counts.per_ticket(threshold), "alerts_interval": interval(alarms).tolist()}
        worth["share_of_pairs"] = worth["alerts"] / (counts.tickets - 1)
    if not negatives:
        return worth
    wrong = int(called[~table.label].sum())
    rate = worth["false_positive_rate"] = wrong / negatives
    if share is None:
        return worth
    by_tail = wrong < TELLING and counts is not None
    if by_tail and counts is not None:
        rate = float(prevalence.rate_of_unlabelled(worth["share_of_pairs"], recall, share))
        rates = prevalence.rate_of_unlabelled(alarms / (counts.tickets - 1), recalls, share)
    for name, measure in (("precision", prevalence.precision_at_share), ("f1", prevalence.f1_at_share)):
        ends = interval(measure(recalls, rates, share)).tolist()
        if wrong < TELLING and not by_tail:  # no resample shows what so few negatives cannot
            ends[0] = min(ends[0], float(measure(worth["recall_interval"][0], smallest_rate(negatives), share)))
        worth |= {name: float(measure(recall, rate, share)), f"{name}_interval": ends}
    if wrong < TELLING:
        limit = f"{_limit(negatives)}: a threshold that calls {wrong} of them positive"
        notes[
            f"{limit} takes its false-positive rate from the pairs of {asked.tickets}"
            if by_tail
            else f"{limit} may be wrong that often, which the low end of its precision allows for; --tickets would tell"
        ] = None
    return worth | {"rate_from": asked.tickets if by_tail else table.source}


def _fit_ends(
    asked: Question,
    fitted_on: tuple[PairTable, np.ndarray] | None,
    thresholds: Thresholds,
    dim: str,
    counts: AlertCounts | None,
) -> list[float] | None:
    """The interval of a threshold that was fitted at the prevalence just now; None for one that was kept."""
    if fitted_on is None or asked.prevalence is None:
        return None
    flagged = counts.flagged if counts is not None and dim in thresholds.tail else None
    table, scores = fitted_on
    rule, options = parse_rule(asked.rule), {"resamples": asked.resamples, "seed": asked.seed}
    drawn = prevalence.resampled_thresholds(
        scores, table.label, asked.prevalence, rule, groups_of_pairs(table), flagged, **options
    )
    ends: list[float] = interval(drawn).tolist()
    return ends


def _note_tail(alerts: float, counts: AlertCounts, table: PairTable, notes: dict[str, None]) -> None:
    """Say where the labelled negatives could not have told the rate that is asked for."""
    rate, negatives = alerts / (counts.tickets - 1), int((~table.label).sum())
    if negatives and rate < smallest_rate(negatives):
        notes[
            f"{alerts:g} alerts a ticket are {percent(rate)} of all pairs. {_limit(negatives)}, so the tickets' own "
            "pairs are counted"
        ] = None


def _limit(negatives: int) -> str:
    return f"{negatives} negatives cannot tell rates under {percent(smallest_rate(negatives), ROUND_CEILING)}"
