"""What lint calls serious: from where on each share, score or difference is worth a warning, and from where on more.

A few findings have no limit: what is wrong with them in one row is wrong (their severity stands beside them).
"""

from __future__ import annotations

from typing import NamedTuple

SERIOUS, WARNING, EXPECTED = "serious", "warning", "expected"


class Limit(NamedTuple):
    """From where on a value is worth a warning, and from where on it is serious."""

    warning: float
    serious: float

    def severity(self, value: float) -> str | None:
        """None below the warning; 0 is never worth one."""
        if value >= self.serious:
            return SERIOUS
        return WARNING if value > 0 and value >= self.warning else None


def worst(*severities: str | None) -> str | None:
    """The highest of some severities."""
    return SERIOUS if SERIOUS in severities else WARNING if WARNING in severities else None


# ---- What the table alone shows (table_checks.py)

# Shares are of the file's rows where nothing else is said. One row that contradicts another is a slip; one in a
# thousand is how the file was made, and the two rows cancel out in training.
CONTRADICTED = Limit(0, 0.001)
# "Same problem" is not strictly transitive, so a few chains may break; one in a hundred are wrong labels.
BROKEN_CHAINS = Limit(0, 0.01)
SELF_PAIRS = Limit(0, 0.01)
# A copy weighs its pair double. That hurts little, but copies fall on both sides of any random split.
DUPLICATES = Limit(0, 0.05)
# Monitoring repeats itself in any real queue; from a tenth on the model learns templates.
TEMPLATES = Limit(0.02, 0.10)
# A text in so many pairs is what the model learns, from whichever side; with few pairs a text is soon in many.
DOMINANT = Limit(0.05, 0.20)
DOMINANT_ROWS = 20
# A text of one word has no meaning to learn. Real tickets have some.
NEAR_EMPTY = Limit(0.01, 0.10)
FEWEST_WORDS = 2
# What lies behind the cut is not seen; from a quarter of the texts on the longest tickets are judged by their openings.
TRUNCATED = Limit(0.05, 0.25)
# Outside these the rarer label is too rare for thresholds and for the loss.
BALANCE = Limit(0.70, 0.95)  # share of the commoner label
SMALL_PHASE = 0.10  # of the largest phase: a phase this small hardly moves the model
# A category nearly always of one label gives the label away. Fewer rows than that happen by chance in some category.
ONE_SIDED = 0.95
ONE_SIDED_ROWS = 20
ONE_SIDED_CHANCE = 0.001  # that any category is so by luck, all of them tested
CATEGORY = Limit(0.02, 0.10)  # share of rows in such categories
# Held-out rows that training has seen measure memory. In 1 of 100 that moves a metric by as much as models differ.
SEEN = Limit(0, 0.01)
# Texts of a template recur in any real queue and then differ in what matters; whole pairs are the same question again.
SEEN_TEMPLATES = Limit(0.05, 0.50)
SEEN_TEMPLATE_PAIRS = Limit(0.01, 0.05)

# ---- What scores show (score_checks.py)

# Below one half, negatives score above positives; just above it the score cannot tell them apart.
AT_CHANCE = 0.55
# A curriculum goes from easy to hard. At a ROC-AUC of 0.93 two phases of 1,300 pairs differ by 0.02 by luck (two
# standard errors).
EASIER_PHASE = Limit(0.02, 0.05)
# What the hardest phase trains should be about as hard as what the model is judged by.
EASIER_THAN_HELD_OUT = Limit(0.05, 0.10)
TFIDF = "TF-IDF"  # what gave the scores
# ROC-AUC in either direction. A sound set of easy and hard pairs gives some away; at 0.95 nothing else need be learnt.
SHORTCUTS = {"same category": Limit(0.85, 0.95), TFIDF: Limit(0.90, 0.95), "length difference": Limit(0.70, 0.85)}
# Lower bound of the share of wrong labels. Ten well-known test sets hold 3.3 % on average (Northcutt et al. 2021,
# "Pervasive label errors in test sets destabilize machine learning benchmarks"): surely near that is serious.
SUSPECT = Limit(0.02, 0.025)
