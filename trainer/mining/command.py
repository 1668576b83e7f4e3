"""The command `trainer build-pairs`: its options, and the settings that they make."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trainer.data.readers import add_reading_options, reading_from
from trainer.data.ticket_table import Columns
from trainer.data.tickets import OPTIONAL_REASONS, Filter
from trainer.errors import InputError
from trainer.mining.settings import (
    BANDS,
    MARGIN,
    PHASES,
    SIMILARITIES,
    TRANSLATE_LANGUAGE,
    Settings,
    parse_augment,
    parse_phases,
)
from trainer.system.arguments import Parser, parse_names
from trainer.text.cleaning import LANGUAGES

DESCRIPTION = """Make labelled pairs in three phases, easy to hard, out of raw tickets. A positive is a pair of tickets
as similar as its phase's band says, inside a group that no negative touches and that stands in one of train, dev and
test; known duplicates come first. Similarities are guesses: read some pairs before training on them."""
EPILOG = """A band is LOW:HIGH:CATEGORY: cosines from LOW to below HIGH, of two tickets of the same, other or any
category (with a LOW below zero, after an equals sign: --easy-negatives=-1:0.15:other). A band with too few pairs is
reported with numbers and never filled from another; exit 2 only where a phase would be empty, or with --strict."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options; those with a default say it."""

    def add(group: Any, name: str, text: str, **rest: Any) -> None:
        default = " (default: %(default)s)" if rest.get("default") not in (None, "", ()) else ""
        group.add_argument(name, help=text + default, **rest)

    files = parser.add_argument_group("files")
    add(
        files,
        "--tickets",
        "raw tickets: CSV, TSV, JSON, JSON Lines, XLSX or Parquet, also gzipped",
        required=True,
        metavar="FILE",
    )
    text = "new folder for train.json, dev.json, test.json, report.json and dropped.csv; or new file for train, the "
    add(files, "--output", text + "others beside it", required=True, type=Path, metavar="DIR|FILE.json")
    columns = parser.add_argument_group("columns")
    add(
        columns,
        "--number-column",
        "the ticket's number (default: number, or another usual name)",
        default="",
        metavar="NAME",
    )
    text = "what it says, title first (default: short_description,description, or other usual names)"
    add(columns, "--text-columns", text, default="", metavar="NAME,...")
    text = "who or what it belongs to (default: assignment_group, or another usual name)"
    add(columns, "--category-column", text, default="", metavar="NAME")
    add(columns, "--duplicate-column", "the number of the ticket that this one duplicates", metavar="NAME")
    text = "a name that tickets about one problem share; tickets of two names are never a positive"
    add(columns, "--cluster-column", text, metavar="NAME")
    add_reading_options(parser.add_argument_group("what files do not tell by themselves"), columns=False)
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
        f"such a negative scores at most (1 - margin) x its anchor's positive (default: {MARGIN:g})",
        type=float,
    )
    for place, phase in enumerate(PHASES):
        bands = zip(("positives", "negatives"), BANDS["tfidf"][place], BANDS["encoder"][place], strict=True)
        for label, band, encoder_band in bands:
            add(group, f"--{phase}-{label}", f"band (default: {band}, for an encoder {encoder_band})", metavar="BAND")
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
    text = "mask names behind a label (name: ...), e-mail addresses, phone numbers, ids and hosts in the pairs too, as "
    text += "always in the report; no guarantee: a name within a sentence stays"
    add(group, "--mask", text, action="store_true")
    add(group, "--augment", "add altered copies of a share of the train pairs; KIND is deletion, edit or translation, "
        "which is also their origin in the file", metavar="KIND=SHARE,...")  # fmt: skip
    add(
        group, "--translators", "two seq2seq models for round trips, there and back", nargs=2, metavar=("THERE", "BACK")
    )
    add(
        group,
        "--translate-language",
        f"what THERE reads; texts of other languages are left out (default: {TRANSLATE_LANGUAGE})",
        metavar="LANG",
    )


def settings_from(options: argparse.Namespace) -> Settings:
    """The settings of a parsed command line. Raises InputError for options that make no sense."""
    for name in ("min_words", "max_words", "per_template"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: write a whole number above 0")
    if options.margin is not None and not options.model:
        raise InputError(f"--margin {options.margin:g} needs an encoder: name one with --model")
    if options.translate_language is not None and not options.translators:
        raise InputError(f"--translate-language {options.translate_language} needs --translators THERE BACK: add them")
    bands = [(getattr(options, f"{phase}_positives"), getattr(options, f"{phase}_negatives")) for phase in PHASES]
    settings = Settings(
        tickets=options.tickets,
        output=options.output,
        columns=Columns(
            number=options.number_column,
            texts=parse_names(options.text_columns),
            category=options.category_column,
            duplicate_of=options.duplicate_column,
            cluster=options.cluster_column,
        ),
        reading=reading_from(options),
        quality=Filter(
            min_words=options.min_words,
            max_words=options.max_words,
            languages=_languages(options.languages or ""),
            per_template=options.per_template,
            keep=tuple(options.keep),
            mask=options.mask,
        ),
        phases=parse_phases(options.sizes, bands, options.similarity),
        similarity=options.similarity,
        model=options.model,
        margin=MARGIN if options.margin is None else options.margin,
        dev_share=options.dev_share,
        test_share=options.test_share,
        largest_group=options.max_group,
        most_uses=options.max_uses,
        augment=parse_augment(options.augment),
        translators=tuple(options.translators) if options.translators else None,
        translate_language=options.translate_language or TRANSLATE_LANGUAGE,
        raw_texts=options.texts == "raw",
        strict=options.strict,
        seed=options.seed,
    )
    settings.check()
    return settings


def _languages(text: str) -> tuple[str, ...]:
    """Languages in our spelling. Raises InputError for one that no ticket can be of."""
    names = tuple(name.lower() for name in parse_names(text))
    if unknown := [name for name in names if name not in LANGUAGES]:
        raise InputError(f"--languages {unknown[0]}: is none that is told apart: name some of {', '.join(LANGUAGES)}")
    return names


def build_pairs_parser() -> argparse.ArgumentParser:
    """Options of `trainer build-pairs`."""
    parser = Parser(prog="trainer build-pairs", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    add_options(parser)
    return parser


def run_build_pairs(options: argparse.Namespace) -> None:
    """Build pairs from raw tickets."""
    from trainer.mining.build_pairs import build_pairs

    build_pairs(settings_from(options))
