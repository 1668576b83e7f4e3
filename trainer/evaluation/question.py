"""What `trainer evaluate` is asked, of pairs or of a corpus, and what both ways of judging do alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.pairs import PairTable, read_pairs
from trainer.data.readers import Reading
from trainer.data.split import require_positives
from trainer.data.ticket_table import Columns
from trainer.errors import InputError
from trainer.evaluation.bootstrap import RESAMPLES, check_resampling
from trainer.evaluation.diagnostic import FEWEST
from trainer.evaluation.metric_choice import AUTO, require_metric
from trainer.evaluation.thresholds import parse_rule
from trainer.model.embedding import embed, embed_cached, tokenize_sides
from trainer.model.encoder import Encoder
from trainer.model.folder import UnfitModel
from trainer.model.loading import load_encoder
from trainer.model.served import is_served, read_facts
from trainer.system.console import console
from trainer.system.gpu import default_device


@dataclass(frozen=True)
class EncoderQuestion:
    """What is asked in either way of judging."""

    model: str
    """Folder or hub name."""
    pairs: str | PairTable = ""
    """Held-out pairs: a file, or a table (`trainer.data.pairs.pairs_from_columns`). Positives alone are judged by
    search among their texts. With a corpus, texts of positive pairs search for each other there too."""
    baseline: str | None = None
    dims: tuple[int, ...] = ()
    """Empty: the full width, or what the folder cuts to; in a judgement, those that were judged."""
    label_scale: float = 1.0
    positive_threshold: float | None = None
    metric: str = AUTO
    """What the verdict goes by, one of `metric_choice.JUDGED_BY`; AUTO takes Spearman, and MRR for positives alone and
    for a corpus. In a judgement, what it was."""
    reading: Reading | None = None
    """How to read the files, where they do not tell it themselves."""
    tickets: str | None = None
    """File of tickets: the corpus, or beside pairs what alerts are counted on."""
    columns: Columns = field(default_factory=Columns)
    """What a file of tickets calls its fields, and in a corpus which are the same problem."""
    resamples: int = RESAMPLES
    seed: int = 0

    def read(self, pairs: str | PairTable) -> PairTable:
        """Pairs, some of which are positive. Raises InputError."""
        if isinstance(pairs, str):
            pairs = read_pairs(
                pairs,
                label_scale=self.label_scale,
                positive_threshold=self.positive_threshold,
                reading=self.reading,
            )
        require_positives(pairs)
        return pairs

    def load_encoders(self) -> dict[str, Encoder]:
        """The encoders by system, where they compute. Raises InputError."""
        names = {"model": self.model} | ({"baseline": self.baseline} if self.baseline else {})
        return {system: load_encoder(name).to(default_device()) for system, name in names.items()}

    def check(self) -> None:
        """Raise InputError for options that make no sense."""
        check_resampling(self.resamples, self.seed)


@dataclass(frozen=True)
class Question(EncoderQuestion):
    """What is asked of pairs."""

    dev: str | PairTable | None = None
    """Pairs to fit thresholds on; without, those kept in a model's folder, else the judged pairs themselves."""
    rule: str = ""
    """How thresholds are fitted; see `thresholds.parse_rule`. Empty: f1, or as those were that are kept."""
    forgetting: str | None = None
    """STS file of general similarity, judged before (baseline) and after (model)."""
    fewest: int = FEWEST
    """Pairs of either kind that the adversarial diagnostic needs."""
    prevalence: float | None = None
    """Share of positives among the pairs that the model will meet; thresholds are fitted at it."""
    alerts_per_ticket: float | None = None
    """The alerts a ticket to find a threshold for; with `dev` and no `rule` that is the one in use, and kept."""

    def check(self) -> None:
        super().check()
        require_metric(self.metric, f"--metric {self.metric}")
        if self.rule:
            parse_rule(self.rule)
        share, alerts = self.prevalence, self.alerts_per_ticket
        options = (
            (
                share is not None and not 0 < share < 1,
                f"--prevalence {share or 0:g}: write a share of positives between 0 and 1, as in 0.01",
            ),
            (
                alerts is not None and not alerts > 0,
                f"--alerts-per-ticket {alerts or 0:g}: write a number above 0",
            ),
            (alerts and not self.tickets, "--alerts-per-ticket: name the tickets to count alerts on as --tickets FILE"),
            (self.forgetting and not self.baseline, "--forgetting: name the model before training as --baseline"),
            (self.fewest < 1, f"--fewest {self.fewest}: use 1 or more"),
        )
        for is_wrong, message in options:
            if is_wrong:
                raise InputError(message)


@dataclass(frozen=True)
class SearchQuestion(EncoderQuestion):
    """What is asked of a corpus: either tickets, or pairs with a corpus to find their texts in."""

    corpus: str | None = None
    """File of tickets whose texts are candidates beside those of the pairs."""
    queries: str = ""
    """COLUMN=VALUE: only such tickets search."""
    index_types: bool = False
    """Also search by embeddings as `trainer index --type` would keep them."""


def asked_of_export(model: str) -> dict[str, Any]:
    """What is asked of an exported graph by those who do not say: its dims, beside the model that it was made of.

    {} of any other model; no baseline, which is said, where that model is no longer there. Raises InputError.
    """
    if not is_served(model):
        return {}
    try:
        facts = read_facts(Path(model))
    except UnfitModel as error:
        raise InputError(f"model.name = {model}: {error}") from error
    source = facts.model["name"]
    if Path(source).is_absolute() and not Path(source).is_dir():
        console.print(f"{model} was made of {source}, which is no longer there; name it as --baseline", markup=False)
        return {"dims": facts.dims}
    return {"dims": facts.dims, "baseline": source}


def embed_systems(encoders: Mapping[str, Encoder], texts: list[str]) -> dict[str, np.ndarray]:
    """Embeddings of texts by system, as `embedding.sides` takes them."""
    # A baseline comes again and again, a model in training does not.
    return {
        system: (embed_cached if system == "baseline" else embed)(
            encoder, tokenize_sides(encoder, texts), description=f"Embedding ({system})"
        )
        for system, encoder in encoders.items()
    }
