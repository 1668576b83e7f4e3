"""The data of a run as its encoder takes them: every text tokenised once, and fingerprints of all that it learns from.

What else is worked out of the data before step 0 belongs here.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.checkpoint.identity import SOURCE
from trainer.data.run_data import RunData
from trainer.data.sources import by_source
from trainer.evaluation.metric_choice import SEARCH_METRICS
from trainer.evaluation.scoring import PairSet
from trainer.evaluation.search_set import SearchSet
from trainer.model.embedding import tokenize_sides
from trainer.model.encoder import Encoder, weights_fingerprint
from trainer.model.tokens import TokenTable


@dataclass(frozen=True, kw_only=True)
class TokenizedData:
    """All texts that a run is given, as tokens of its encoder."""

    data: RunData
    tokens: TokenTable
    """Of the training texts, on either side (`tokenize_sides`)."""
    dev: PairSet
    test: PairSet | None
    general: PairSet | None
    """The forgetting set."""
    corpus: SearchSet | None
    """What is searched before and after training, and at each evaluation where eval.metric is one of search."""

    @property
    def held_out(self) -> list[PairSet]:
        """What the run is judged on: dev and, where there is one, test."""
        return [self.dev] if self.test is None else [self.dev, self.test]


def tokenize_data(data: RunData, encoder: Encoder, metric: str) -> TokenizedData:
    """Tokenise every text of a run, or take the tokens from the cache.

    Args:
        metric: what the run is judged by; for one of search without a corpus, the texts of dev search for each other.
    """
    corpus = SearchSet.build(data.corpus, encoder) if data.corpus is not None else None
    searched = metric in SEARCH_METRICS and corpus is None
    return TokenizedData(
        data=data,
        tokens=tokenize_sides(encoder, data.train.texts),
        dev=PairSet.build(data.dev, encoder, searched),
        test=PairSet.build(data.test, encoder) if data.test is not None else None,
        general=PairSet.build(data.general, encoder) if data.general is not None else None,
        corpus=corpus,
    )


def fingerprints_of(data: RunData, tokens: TokenTable, encoder: Encoder) -> dict[str, str]:
    """SHA-256 (hex) by name of everything that decides a run's result or its verdict beside its config.

    Without the forgetting set, which may change freely on a resume.

    Args:
        tokens: of the training texts.
        encoder: untouched.
    """
    return {
        "train_data": data.train.fingerprint(),
        **{SOURCE + part.source: part.fingerprint() for part in by_source(data.train) if len(data.train.sources) > 1},
        "dev_data": data.dev.fingerprint(),
        **({"test_data": data.test.fingerprint()} if data.test is not None else {}),
        **({"corpus": data.corpus.fingerprint()} if data.corpus is not None else {}),
        "base_weights": weights_fingerprint(encoder),
        "tokens": tokens.fingerprint(),
    }
