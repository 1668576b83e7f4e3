"""The options of `trainer build-pairs`, and the settings that they make."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.errors import InputError
from trainer.mining import CATEGORY_RULES, Band, Phase
from trainer.tickets import OPTIONAL_REASONS, Columns, Filter

DESCRIPTION = """Make labelled pairs in three phases, easy to hard, out of raw tickets. A positive is a pair of tickets
as similar as its phase's band says, inside a group that no negative touches and that stands in one of train, dev and
test; known duplicates come first. Similarities are guesses: read some pairs before training on them."""
EPILOG = """A band is LOW:HIGH:CATEGORY: cosines from LOW to below HIGH, of two tickets of the same, other or any
category (with a LOW below zero, after an equals sign: --easy-negatives=-1:0.15:other). A band with too few pairs is
reported with numbers and never filled from another; exit 2 only where a phase would be empty, or with --strict."""

PHASES = ("easy", "medium", "hard")
SIMILARITIES = ("tfidf", "encoder", "both")
AUGMENTATIONS = ("deletion", "edit", "translation")

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
class Settings:
    """All that decides what comes out."""

    tickets: str
    output: Path
    columns: Columns
    quality: Filter
    phases: tuple[Phase, ...]
    similarity: str = "tfidf"
    model: str | None = None
    margin: float = 0.05
    dev_share: float = 0.08
    test_share: float = 0.08
    largest_group: int = 300
    most_uses: int = 25
    augment: tuple[tuple[str, float], ...] = ()  # kind, share of the train pairs
    translators: tuple[str, str] | None = None
    translate_language: str = "en"
    raw_texts: bool = False
    strict: bool = False
    seed: int = 0

    def check(self) -> None:
        """Raises InputError for settings that contradict each other or make no sense."""
        if self.similarity != "tfidf" and not self.model:
            raise InputError(f"--similarity {self.similarity} needs an encoder: name one with --model")
        if not (0 <= self.dev_share < 1 and 0 <= self.test_share < 1 and self.dev_share + self.test_share < 0.9):
            raise InputError(
                f"--dev-share {self.dev_share:g}, --test-share {self.test_share:g}: leave at least a tenth for train"
            )
        if not 0 <= self.margin < 1:
            raise InputError(f"--margin {self.margin:g}: write a share from 0 to below 1, such as 0.05")
        for name, value in (("--max-group", self.largest_group), ("--max-uses", self.most_uses)):
            if value < 2 - (name == "--max-uses"):
                raise InputError(f"{name} {value}: raise it")
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

    Raises:
        InputError: not numbers, odd or too small sizes, or a band that is none.
    """
    numbers = [int(part) if part.strip().isdecimal() else -1 for part in sizes.split(",")]
    numbers = numbers * len(PHASES) if len(numbers) == 1 else numbers
    if len(numbers) != len(PHASES) or any(number < 0 or number % 2 for number in numbers):
        raise InputError(f"--sizes {sizes}: write one even number of pairs a phase, as in --sizes 5000,5000,5000")
    phases = []
    for place, (name, number) in enumerate(zip(PHASES, numbers, strict=True)):
        chosen = [own or default for own, default in zip(bands[place], BANDS[similarity][place], strict=True)]
        positives, negatives = (
            parse_band(f"--{name}-{label}", text)
            for label, text in zip(("positives", "negatives"), chosen, strict=True)
        )
        if positives.low <= 0:
            raise InputError(f"--{name}-positives {positives}: the low end must be above 0")
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


def parse_augment(text: str | None) -> tuple[tuple[str, float], ...]:
    """ "deletion=0.1,edit=0.1" as (kind, share of the train pairs). Raises InputError."""
    chosen: dict[str, float] = {}
    for part in text.split(",") if text else []:
        kind, _, share = part.strip().partition("=")
        try:
            chosen[kind] = float(share)
        except ValueError:
            chosen[kind] = -1
        if kind not in AUGMENTATIONS or not 0 < chosen[kind] <= 1:
            kinds = ", ".join(AUGMENTATIONS)
            raise InputError(f"--augment {part}: write KIND=SHARE, KIND one of {kinds}, SHARE above 0 and up to 1")
    return tuple(chosen.items())


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options; those with a default say it."""

    def add(group: Any, name: str, said: str, **rest: Any) -> None:
        shown = " (default: %(default)s)" if rest.get("default") not in (None, ()) else ""
        group.add_argument(name, help=said + shown, **rest)

    files = parser.add_argument_group("files")
    add(files, "--tickets", "raw tickets: .csv, .tsv, .jsonl or .json, each also .gz", required=True, metavar="FILE")
    said = "new folder for train.json, dev.json, test.json, report.json and dropped.csv; or new file for train, the "
    add(files, "--output", said + "others beside it", required=True, type=Path, metavar="DIR|FILE.json")
    columns = parser.add_argument_group("columns")
    add(columns, "--number-column", "the ticket's number", default="number", metavar="NAME")
    texts = "short_description,description"
    add(columns, "--text-columns", "what it says, title first", default=texts, metavar="NAME,...")
    add(columns, "--category-column", "who or what it belongs to", default="assignment_group", metavar="NAME")
    add(columns, "--duplicate-column", "the number of the ticket that this one duplicates", metavar="NAME")
    said = "a name that tickets about one problem share; tickets of two names are never a positive"
    add(columns, "--cluster-column", said, metavar="NAME")
    _add_filter_options(parser.add_argument_group("which tickets"), add)
    _add_mining_options(parser.add_argument_group("which pairs"), add)
    _add_output_options(parser.add_argument_group("what is written"), add)


def _add_filter_options(group: Any, add: Any) -> None:
    add(group, "--min-words", "drop tickets with fewer words", type=int, default=3, metavar="N")
    add(group, "--max-words", "cut texts after so many words", type=int, default=400, metavar="N")
    add(group, "--languages", "drop tickets in others, by a guess from frequent words", metavar="en,de,...")
    add(group, "--per-template", "tickets kept of one template, such as an alert", type=int, default=5, metavar="N")
    add(group, "--keep", "do not drop for this reason", action="append", default=[], choices=OPTIONAL_REASONS)


def _add_mining_options(group: Any, add: Any) -> None:
    add(
        group,
        "--sizes",
        "train pairs a phase, half of them positive; 0 leaves it out",
        default="5000,5000,5000",
        metavar="N,N,N",
    )
    add(group, "--similarity", "what a band's cosines are; both: the lower one must make a positive, the higher one a "
        "negative", choices=SIMILARITIES, default="tfidf")  # fmt: skip
    add(group, "--model", "encoder; besides its similarity it picks the last phase's negatives, the ones it takes for "
        "positives", metavar="DIR|NAME")  # fmt: skip
    add(
        group,
        "--margin",
        "such a negative scores at most (1 - margin) x its anchor's positive",
        type=float,
        default=0.05,
    )
    for place, phase in enumerate(PHASES):
        for label, band in zip(("positives", "negatives"), BANDS["tfidf"][place], strict=True):
            own = "" if BANDS["encoder"][place][label == "negatives"] == band else ", for an encoder "
            said = f"band (default: {band}{own}{BANDS['encoder'][place][label == 'negatives']})"
            add(group, f"--{phase}-{label}", said, metavar="BAND")
    for part in ("dev", "test"):
        add(
            group,
            f"--{part}-share",
            f"of the tickets, and of the pairs asked for, for {part}",
            type=float,
            default=0.08,
            metavar="SHARE",
        )
    add(group, "--max-group", "largest group of similar tickets", type=int, default=300, metavar="N")
    add(group, "--max-uses", "pairs of a phase and label that one ticket may be in", type=int, default=25, metavar="N")
    add(group, "--seed", "of every random choice", type=int, default=0, metavar="N")
    add(group, "--strict", "exit 2 and write nothing where train has fewer pairs than asked for", action="store_true")


def _add_output_options(group: Any, add: Any) -> None:
    add(group, "--texts", "clean: without mail headers, greetings, signatures and repeated passages; raw: as they are, "
        "pairs still chosen by the clean ones", choices=("clean", "raw"), default="clean")  # fmt: skip
    add(group, "--mask", "mask e-mail addresses, phone numbers, ids and hosts in the pairs too; in the report they are "
        "always masked", action="store_true")  # fmt: skip
    add(group, "--augment", "add altered copies of a share of the train pairs; KIND is deletion, edit or translation, "
        "which is also their origin in the file", metavar="KIND=SHARE,...")  # fmt: skip
    add(
        group, "--translators", "two seq2seq models for round trips, there and back", nargs=2, metavar=("THERE", "BACK")
    )
    add(
        group,
        "--translate-language",
        "what THERE reads; texts of other languages are left out",
        default="en",
        metavar="LANG",
    )


def settings_from(options: argparse.Namespace) -> Settings:
    """The settings of a parsed command line. Raises InputError for options that make no sense."""
    for name in ("min_words", "max_words", "per_template"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: write a whole number above 0")
    bands = [(getattr(options, f"{phase}_positives"), getattr(options, f"{phase}_negatives")) for phase in PHASES]
    settings = Settings(
        tickets=options.tickets,
        output=options.output,
        columns=Columns(
            number=options.number_column,
            texts=_names(options.text_columns),
            category=options.category_column,
            duplicate_of=options.duplicate_column,
            cluster=options.cluster_column,
        ),
        quality=Filter(
            min_words=options.min_words,
            max_words=options.max_words,
            languages=_names(options.languages or ""),
            per_template=options.per_template,
            keep=tuple(options.keep),
            mask=options.mask,
        ),
        phases=parse_phases(options.sizes, bands, options.similarity),
        similarity=options.similarity,
        model=options.model,
        margin=options.margin,
        dev_share=options.dev_share,
        test_share=options.test_share,
        largest_group=options.max_group,
        most_uses=options.max_uses,
        augment=parse_augment(options.augment),
        translators=tuple(options.translators) if options.translators else None,
        translate_language=options.translate_language,
        raw_texts=options.texts == "raw",
        strict=options.strict,
        seed=options.seed,
    )
    settings.check()
    return settings


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)
