"""The settings of `trainer build-pairs`: what they are, and how a person writes bands and phases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.origins import ALTERED, SAID
from trainer.data.readers import Reading, require_folder_name
from trainer.data.ticket_table import Columns
from trainer.data.tickets import Filter
from trainer.errors import InputError

PARTS = ("train", "dev", "test")
CATEGORY_RULES = ("same", "other", "any")
PHASES = ("easy", "medium", "hard")
LABELS = ("positives", "negatives")
SOURCES = (*SAID, "similarity")
"""What labels come from, the most trusted first."""
SOURCE_COLUMNS = {"duplicates": ("duplicate_of", "cluster"), "resolution": ("resolution",), "notes": ("notes",)}
SPLITS = ("groups", "time")
SIMILARITIES = ("tfidf", "encoder", "both")
BoolArray = NDArray[np.bool_]

# By similarity, then phase: the bands of positives and of negatives. Those of an encoder fit all-MiniLM-L6-v2, whose
# cosines of unrelated tickets lie around 0.15; other encoders need their own.
_TFIDF = (("0.6:0.95:same", "0:0.05:other"), ("0.45:0.95:other", "0.1:0.3:same"), ("0.5:0.6:same", "0.3:0.5:any"))
_ENCODER = (
    ("0.75:0.97:same", "-1:0.15:other"),
    ("0.65:0.97:other", "0.25:0.45:same"),
    ("0.6:0.7:same", "0.45:0.6:any"),
)
BANDS: dict[str, tuple[tuple[str, str], ...]] = {
    "tfidf": _TFIDF,
    "encoder": _ENCODER,
    "both": tuple((positives, negatives) for (positives, _), (_, negatives) in zip(_TFIDF, _ENCODER, strict=True)),
}


@dataclass(frozen=True)
class Band:
    """Which pairs a phase takes: low <= cosine < high, and how their categories compare."""

    low: float
    high: float
    category: str  # one of CATEGORY_RULES

    def holds(self, cosine: NDArray[np.float32], same: BoolArray, known: BoolArray) -> BoolArray:
        """Mask of the cosines; `same`: equal categories, `known`: neither is missing."""
        fits = known & (same == (self.category == "same")) if self.category != "any" else True
        return (cosine >= self.low) & (cosine < self.high) & fits

    def __str__(self) -> str:
        return f"{self.low:g}:{self.high:g}:{self.category}"


@dataclass(frozen=True)
class Phase:
    """A phase of the curriculum: its number from 1, pairs in train, and where they come from."""

    number: int
    name: str
    size: int
    positives: Band
    negatives: Band


@dataclass(frozen=True)
class Settings:
    """All that decides what comes out."""

    tickets: str
    output: Path
    columns: Columns
    reading: Reading
    quality: Filter
    phases: tuple[Phase, ...]
    sources: tuple[str, ...] = ()  # of SOURCES; empty: what the tickets offer, similarity where that is nothing
    guess: bool = False  # also by similarity, where the sources offer something
    similarity: str = "tfidf"
    model: str | None = None
    margin: float = 0.3
    dev_share: float = 0.08
    test_share: float = 0.08
    split_by: str = "groups"  # of SPLITS
    largest_group: int = 300
    most_uses: int = 25
    augment: tuple[tuple[str, float], ...] = ()  # kind, share of the train pairs
    translators: Sequence[str] = ()
    translate_language: str = "en"
    raw_texts: bool = False
    strict: bool = False
    seed: int = 0

    def wants(self, source: str) -> bool:
        """Whether labels may come from a source where the tickets offer it."""
        return not self.sources or source in self.sources

    @property
    def shares(self) -> tuple[float, float, float]:
        """Of the tickets, and of the pairs asked for in train, for each of PARTS."""
        return 1.0, self.dev_share, self.test_share

    def wanted(self, phase: Phase, part: int) -> int:
        """Positives, and as many negatives, asked for in a phase of a part."""
        return round(phase.size / 2 * self.shares[part])

    def without_categories(self) -> Settings:
        """The settings with bands of any category."""

        def widened(phase: Phase) -> Phase:
            return replace(phase, **{side: replace(getattr(phase, side), category="any") for side in LABELS})

        return replace(self, phases=tuple(map(widened, self.phases)))

    def check(self) -> None:
        """Raises InputError for settings that contradict each other or make no sense."""
        if self.output.suffix != ".json":
            require_folder_name(self.output, "--output", "name a folder, or a file that ends in .json")
        for source, fields in SOURCE_COLUMNS.items():
            named = next((field for field in fields if getattr(self.columns, field)), None)
            if named and not self.wants(source):
                option = self.columns.options[named]
                raise InputError(f"{option} {getattr(self.columns, named)} is not read without --sources ...,{source}")
        if self.similarity != "tfidf" and not self.model:
            raise InputError(f"--similarity {self.similarity} needs an encoder: name one with --model")
        if not (0 <= self.dev_share < 1 and 0 <= self.test_share < 1 and self.dev_share + self.test_share < 0.9):
            raise InputError(
                f"--dev-share {self.dev_share:g}, --test-share {self.test_share:g}: leave at least a tenth for train"
            )
        if not 0 <= self.margin < 1:
            raise InputError(f"--margin {self.margin:g}: write a share from 0 to below 1, such as 0.05")
        for option, value, least in (
            ("--max-group", self.largest_group, 2),
            ("--max-uses", self.most_uses, 1),
            ("--min-words", self.quality.min_words, 1),
            ("--max-words", self.quality.max_words, 1),
            ("--per-template", self.quality.per_template, 1),
            ("--seed", self.seed, 0),
        ):
            if value < least:
                raise InputError(f"{option} {value}: write a whole number from {least} on")
        if not self.phases:
            raise InputError("--sizes: all phases are 0: ask for pairs in one of them")
        if any(kind == "translation" for kind, _ in self.augment) != bool(self.translators):
            raise InputError("--augment translation=SHARE and --translators THERE BACK go together: give both")

    def figures(self) -> dict[str, Any]:
        """For the report: bands as they are written on the command line."""
        bands = {phase.name: [str(phase.positives), str(phase.negatives)] for phase in self.phases}
        sizes = {phase.name: phase.size for phase in self.phases}
        return {**asdict(self), "output": str(self.output), "phases": {"sizes": sizes, "bands": bands}}


def parse_phases(sizes: str, bands: Sequence[tuple[str | None, str | None]], similarity: str) -> tuple[Phase, ...]:
    """Phases from "5000,5000,5000" (or one number for all; 0 leaves a phase out) and their bands, None for the default.

    Raises InputError: not numbers, odd or too small sizes, or a band that is none.
    """
    numbers = [int(part) if part.strip().isdecimal() else -1 for part in sizes.split(",")]
    numbers = numbers * len(PHASES) if len(numbers) == 1 else numbers
    if len(numbers) != len(PHASES) or any(number < 0 or number % 2 for number in numbers):
        raise InputError(f"--sizes {sizes}: write one even number of pairs a phase, as in --sizes 5000,5000,5000")
    phases = []
    for place, (name, number) in enumerate(zip(PHASES, numbers, strict=True)):
        chosen = [given or default for given, default in zip(bands[place], BANDS[similarity][place], strict=True)]
        positives, negatives = (
            parse_band(f"--{name}-{label}", text) for label, text in zip(LABELS, chosen, strict=True)
        )
        if positives.low <= 0:
            raise InputError(f"--{name}-positives {positives}: the low end must be above 0")
        if not number and any(numbers) and any(bands[place]):
            raise InputError(
                f"--sizes {sizes}: leaves out the {name} phase, for which a band is given: drop one of them"
            )
        if number:
            phases.append(Phase(place + 1, name, number, positives, negatives))
    return tuple(phases)


def parse_band(option: str, text: str) -> Band:
    """ "0.3:0.5:any" as a band. Raises InputError."""
    parts = text.split(":")
    try:
        low, high, category = float(parts[0]), float(parts[1]), parts[2]
        if len(parts) == 3 and -1 <= low < high <= 1.01 and category in CATEGORY_RULES:
            return Band(low, high, category)
    except (ValueError, IndexError):
        pass
    rules = ", ".join(CATEGORY_RULES)
    raise InputError(f"{option} {text}: write LOW:HIGH:CATEGORY with CATEGORY one of {rules}, as in 0.3:0.5:any")


def parse_augment(text: str) -> tuple[tuple[str, float], ...]:
    """ "deletion=0.1,edit=0.1" as (kind, share of the train pairs). Raises InputError."""
    chosen: dict[str, float] = {}
    for part in text.split(","):
        kind, _, share = part.strip().partition("=")
        try:
            chosen[kind] = float(share)
        except ValueError:
            chosen[kind] = -1
        if kind not in ALTERED or not 0 < chosen[kind] <= 1:
            kinds = ", ".join(ALTERED)
            raise InputError(f"--augment {part}: write KIND=SHARE, KIND one of {kinds}, SHARE above 0 and up to 1")
    return tuple(chosen.items())
