"""Thresholds of "same problem": fitted on dev, kept beside the model they belong to, applied frozen to test."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from trainer.data.pairs import PairTable
from trainer.errors import InputError
from trainer.evaluation.alerts import AlertCounts, threshold_for_alerts
from trainer.evaluation.prevalence import TELLING, percent, threshold_at_share
from trainer.model.encoder import EmbeddingConditions
from trainer.system.files import write_file
from trainer.system.run_files import THRESHOLDS

SIMILARITY = "cosine"
"""What is compared with a threshold: of embeddings cut to the dim, so the dot product once they have length 1."""
RULE = "f1"  # how they are fitted where nobody asks for another way
MARGIN = 1e-5
"""More than a cosine in fp32 differs by between libraries, batches and processors."""
RULES = "f1, precision=P with P above 0 and up to 1, or false_positive_rate=R with R from 0 to below 1"


@dataclass(frozen=True)
class Thresholds:
    """One threshold a dim, and everything that it holds for: whoever uses it needs no more than this."""

    values: dict[str, float]
    """Dim -> the lowest cosine that is called positive."""
    rule: str
    """How they were fitted, as `parse_rule` takes it: the best F1, or the lowest that keep what was asked for; or
    "alerts_per_ticket=A": the lowest at which unlabelled tickets raise at most A alerts each."""
    source: str
    """What the pairs, or the tickets, they were fitted on are called."""
    data_fingerprint: str
    """Of those pairs: `PairTable.fingerprint`; of those tickets: SHA-256 (hex) of their different texts in order."""
    positive_share: float
    """The share of positives that they were fitted at: that of those pairs, or the one asked for. Among pairs with
    fewer the precision is lower. Of tickets: the largest share of all their pairs that may reach a threshold."""
    model: EmbeddingConditions
    """The model whose cosines they are for."""
    similarity: str = SIMILARITY
    normalize_embeddings: bool = True
    """Embeddings are brought to length 1 after they were cut to the dim."""
    tail: tuple[str, ...] = ()
    """Dims whose false-positive rates came from unlabelled tickets: the pairs have too few negatives to tell them."""
    tickets: int = 0
    """How many different tickets they were fitted on; 0 where labelled pairs were."""

    @property
    def where(self) -> str:
        """The share of positives in words, to be written after how they were fitted."""
        if self.tickets:
            return f"which {percent(self.positive_share)} of all pairs of these {self.tickets:,} tickets reach"
        return f"where {percent(self.positive_share)} are positive"


def parse_rule(text: str) -> tuple[str, float]:
    """ "precision=0.9" -> ("precision", 0.9); "f1" -> ("f1", nan). Raises InputError."""
    kind, _, number = text.partition("=")
    try:
        target = float(number) if number else float("nan")
    except ValueError:
        target = float("nan")
    fits = {"f1": text == "f1", "precision": 0 < target <= 1, "false_positive_rate": 0 <= target < 1}
    if not fits.get(kind, False):
        raise InputError(f"threshold rule {text!r} is not known: write {RULES}")
    return kind, target


def fit_thresholds(
    cosines: np.ndarray,
    table: PairTable,
    dims: Sequence[int],
    rule: str,
    model: EmbeddingConditions,
    share: float | None = None,
    alerts: Mapping[str, AlertCounts] | None = None,
) -> Thresholds:
    """Fit a threshold at every dim on cosines [M, N] of a table's pairs.

    Args:
        model: that the cosines are of (`encoder.embedding_conditions`).
        share: of positives to fit at; None takes that of the table.
        alerts: of unlabelled tickets by dim, for false-positive rates at that share that the table cannot tell.

    Raises:
        InputError: the rule is not known, or cannot be kept on these pairs.
    """
    at = float(table.label.mean()) if share is None else share
    values: dict[str, float] = {}
    tail: list[str] = []
    for dim, scores in zip(map(str, dims), cosines, strict=True):
        counts = alerts.get(dim) if share is not None and alerts is not None else None
        value, by_tail = value_at_share(scores, table, dim, at, rule, counts)
        values[dim] = clear_of_the_ends(value, scores)
        tail += [dim] * by_tail
    return Thresholds(values, rule, table.source, table.fingerprint(), at, model, tail=tuple(tail))


def fit_to_alerts(
    alerts: float, counts: Mapping[str, AlertCounts], source: str, texts: Sequence[str], model: EmbeddingConditions
) -> Thresholds:
    """Find the lowest threshold at every dim at which tickets raise at most so many alerts each, on average.

    Args:
        counts: of the tickets' alerts, by dim.
        source: what their file is called.
        texts: of the tickets, all different.
        model: that the counts are of.

    Raises InputError where no threshold does.
    """
    values = {}
    for dim, of_dim in counts.items():
        try:
            values[dim] = threshold_for_alerts(of_dim, alerts)
        except ValueError as error:
            option = f"--alerts-per-ticket {alerts:g}"
            raise InputError(f"{option}: {source}, {dim} dims: {error}; ask for another number") from error
    fingerprint = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    rule, share = f"alerts_per_ticket={alerts:g}", alerts / (len(texts) - 1)
    return Thresholds(values, rule, source, fingerprint, share, model, tickets=len(texts))


def clear_of_the_ends(threshold: float, scores: np.ndarray) -> float:
    """A threshold that calls all or none of the scores positive, moved away from the last of them by MARGIN.

    Others stand halfway between two scores, but these at one, where a pair would be called otherwise by whoever rounds
    its cosine otherwise.
    """
    lowest, highest = float(scores.min()), float(scores.max())
    if threshold <= lowest:
        return lowest - MARGIN
    return highest + MARGIN if threshold > highest else threshold


def value_at_share(
    scores: np.ndarray, table: PairTable, dim: str, share: float, rule: str, alerts: AlertCounts | None
) -> tuple[float, bool]:
    """The threshold of scores [N] at a share of positives, and whether unlabelled tickets gave false-positive rates.

    They do where it would call fewer than TELLING negatives of the table positive. Raises as `fit_thresholds`.
    """
    try:
        value = threshold_at_share(scores, table.label, share, parse_rule(rule))
        if alerts is None or int((scores[~table.label] >= value).sum()) >= TELLING:
            return value, False
        return threshold_at_share(scores, table.label, share, parse_rule(rule), alerts.flagged), True
    except ValueError as error:
        raise InputError(f"{table.source}: {dim} dims: {error}; ask for less") from error


def thresholds_text(thresholds: Thresholds) -> str:
    """What thresholds.json holds."""
    return json.dumps(asdict(thresholds), indent=2, ensure_ascii=False) + "\n"


def store_thresholds(folder: Path, thresholds: Thresholds) -> Path:
    """Write thresholds into a model's folder. Raises StorageError."""
    path = folder / THRESHOLDS
    write_file(path, thresholds_text(thresholds))
    return path


def stored_thresholds(folder: Path, dims: Sequence[int], model: EmbeddingConditions) -> Thresholds | None:
    """The thresholds kept in a model's folder, at the given dims; None where there are none.

    Args:
        model: the one beside them, as it is used now.

    Raises:
        InputError: the file is damaged or of an older version, belongs to another model, or lacks a dim.
    """
    path, again = folder / THRESHOLDS, "fit them again with trainer evaluate --dev, or remove the file"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_bytes())
        if isinstance(record, dict) and "weights_fingerprint" in record:
            raise InputError(f"{path}: of an older version, which did not keep prompts and max length; {again}")
        stored = Thresholds(**record | {"model": EmbeddingConditions(**record["model"])})
        values = {dim: float(value) for dim, value in stored.values.items()}
        if not np.isfinite(list(values.values())).all():
            raise ValueError("a threshold is not finite")
        if not (0 <= float(stored.positive_share) <= 1 and set(map(type, [*stored.tail, ""])) == {str}):
            raise ValueError("a share or a dim is none")
        if type(stored.tickets) is not int:
            raise ValueError("the tickets are no number")
        stored = replace(stored, positive_share=float(stored.positive_share), tail=tuple(stored.tail))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as thresholds; {again}") from error
    if stored.model.weights_fingerprint != model.weights_fingerprint:
        raise InputError(f"{path}: fitted for other weights than those beside it; {again}")
    if stored.similarity != SIMILARITY:
        raise InputError(f"{path}: for the similarity {stored.similarity!r}, not {SIMILARITY}; {again}")
    for name in (field.name for field in fields(model)):
        fitted, now = getattr(stored.model, name), getattr(model, name)
        if fitted != now:
            raise InputError(f"{path}: fitted at {name} {fitted!r}, which is {now!r} now; {again}")
    if missing := [str(dim) for dim in dims if str(dim) not in values]:
        kept = ",".join(values)
        raise InputError(f"{path}: no threshold for {', '.join(missing)} dims; take --dims of {kept}, or {again}")
    return replace(stored, values={str(dim): values[str(dim)] for dim in dims})
