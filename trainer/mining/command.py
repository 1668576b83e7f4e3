"""The command `trainer build-pairs`: its options, and the settings that they make."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from trainer.data.readers import add_reading_options, reading_from
from trainer.data.ticket_table import Columns
from trainer.data.tickets import OPTIONAL_REASONS, Filter
from trainer.errors import InputError
from trainer.mining.settings import (
    BANDS,
    LABELS,
    PHASES,
    SIMILARITIES,
    SOURCE_COLUMNS,
    SOURCES,
    SPLITS,
    Settings,
    parse_augment,
    parse_phases,
)
from trainer.system.arguments import Parser, parse_names
from trainer.text.cleaning import LANGUAGES

DESCRIPTION = """Make labelled pairs in three phases, easy to hard, out of raw tickets. Labels come from what tickets
say of themselves, the most trusted first: known duplicates, resolutions, a title and its body, work notes. Where they
say nothing, or if asked for, similarity guesses: a positive is then a pair of tickets as similar as its phase's band
says. Train, dev and test share no ticket, duplicate or template. Read some pairs before training on them."""
EPILOG = """A band is LOW:HIGH:CATEGORY: cosines from LOW to below HIGH, of two tickets of the same, other or any
category (with a LOW below zero, after an equals sign: --easy-negatives=-1:0.15:other). A band with too few pairs is
reported with numbers and never filled from another; exit 2 only where a phase would be empty, or with --strict."""
DEFAULTS = {field.name: field.default for kind in (Columns, Filter, Settings) for field in fields(kind)}
T = TypeVar("T")


class TicketColumns(Columns):
    """Columns as the options of `trainer build-pairs` name them."""

    options: ClassVar[Mapping[str, str]] = {**Columns.options, "part": "--leave-out-rows"}


def _adder(group: argparse._ActionsContainer) -> Callable[..., None]:
    """Adds options to a group: `add(option, help)`. They have the default of a field of Columns, Filter or Settings
    (`field`, where it is not called as the option), say it, and are of its type."""

    def add(option: str, text: str, field: str = "", **rest: Any) -> None:
        field = field or option.removeprefix("--").replace("-", "_")
        default = rest.setdefault("default", DEFAULTS.get(field))
        if "action" not in rest and type(default) in (int, float):
            rest.setdefault("type", type(default))
        said = " (default: %(default)s)" if default or type(default) is int else ""
        group.add_argument(option, dest=field, help=text + said, **rest)

    return add


def build_pairs_parser() -> argparse.ArgumentParser:
    """Options of `trainer build-pairs`."""
    parser = Parser(prog="trainer build-pairs", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    add = _adder(parser.add_argument_group("files"))
    text = "raw tickets: CSV, TSV, JSON, JSON Lines, XLSX or Parquet, also gzipped"
    add("--tickets", text, required=True, default=None, metavar="FILE")
    text = "new folder for train.json, dev.json, test.json, report.json and dropped.csv; or new file for train, the "
    text += "others beside it"
    add("--output", text, required=True, default=None, type=Path, metavar="DIR|FILE.json")
    _add_column_options(_adder(parser.add_argument_group("columns")))
    add_reading_options(parser.add_argument_group("what files do not tell by themselves"), columns=False)
    _add_ticket_options(_adder(parser.add_argument_group("which tickets")))
    _add_mining_options(_adder(parser.add_argument_group("which pairs")))
    _add_output_options(_adder(parser.add_argument_group("what is written")))
    return parser


def _add_column_options(add: Callable[..., None]) -> None:
    text = "the ticket's number (default: number, or another usual name)"
    add("--number-column", text, field="number", metavar="NAME")
    text = "what it says, title first (default: short_description,description, or other usual names)"
    add("--text-columns", text, field="texts", type=parse_names, metavar="NAME,...")
    text = "who or what it belongs to (default: assignment_group, or another usual name)"
    add("--category-column", text, field="category", metavar="NAME")
    text = "the number of the ticket that this one duplicates (default: duplicate_of, parent_incident, problem_id and "
    text += "other usual names, all of them)"
    add("--duplicate-column", text, field="duplicate_of", metavar="NAME")
    text = "a name that tickets about one problem share; tickets of two names are never a positive"
    add("--cluster-column", text, field="cluster", metavar="NAME")
    text = "how it was resolved (default: close_notes, or another usual name)"
    add("--resolution-column", text, field="resolution", metavar="NAME")
    text = "what was noted meanwhile (default: work_notes, or other usual names)"
    add("--notes-column", text, field="notes", metavar="NAME")
    text = "when it was opened: tickets of a category and a day are soon about one incident (default: opened_at, or "
    add("--date-column", text + "another usual name)", field="date", metavar="NAME")


def _add_ticket_options(add: Callable[..., None]) -> None:
    add("--min-words", "drop tickets with fewer words", metavar="N")
    add("--max-words", "cut texts after so many words", metavar="N")
    text = "drop tickets in others, by a guess from frequent words"
    add("--languages", text, type=_languages, metavar="en,de,...")
    add("--per-template", "tickets kept of one template, such as an alert", metavar="N")
    text = "pairs whose texts must not appear, such as those a model is to be judged by: tickets with one of them, and "
    text += "known duplicates of such, are left out"
    add("--leave-out", text, type=parse_names, metavar="FILE,...")
    text = "leave out the tickets with this value in this column"
    add("--leave-out-rows", text, metavar="COLUMN=VALUE")
    add("--keep", "do not drop for this reason", action="append", default=[], choices=OPTIONAL_REASONS)


def _add_mining_options(add: Callable[..., None]) -> None:
    text = f"what labels come from: some of {', '.join(SOURCES)} (default: what the tickets offer; similarity only "
    text += "where that is nothing, or where a band is given)"
    add("--sources", text, type=_sources, default=(), metavar="NAME,...")
    text = "train pairs a phase, half of them positive; 0 leaves it out"
    add("--sizes", text, default="5000,5000,5000", metavar="N,N,N")
    text = "what a band's cosines are; both: the lower one must make a positive, the higher one a negative"
    add("--similarity", text, choices=SIMILARITIES)
    text = "encoder; besides its similarity it picks the last phase's negatives, the ones it takes for positives"
    add("--model", text, metavar="DIR|NAME")
    text = (
        "a negative that is chosen for being hard (of what tickets say, or by an encoder) scores at most (1 - margin) "
    )
    text += f"x its anchor's positive (default: {Settings.margin:g})"
    add("--margin", text, type=float, default=None)
    for place, phase in enumerate(PHASES):
        bands = zip(LABELS, BANDS["tfidf"][place], BANDS["encoder"][place], strict=True)
        for label, band, encoder_band in bands:
            text = f"band (default: {band}, for an encoder {encoder_band})"
            add(f"--{phase}-{label}", text, metavar="BAND")
    for part in ("dev", "test"):
        text = f"of the tickets, and of the pairs asked for, for {part}"
        add(f"--{part}-share", text, metavar="SHARE")
    text = "groups: similar tickets stand in one part; time: train before, then dev, then test, so that the judgement "
    add("--split-by", text + "is of tickets that came later (see --date-column)", choices=SPLITS)
    add("--max-group", "largest group of similar tickets", field="largest_group", metavar="N")
    add("--max-uses", "pairs of a phase and label that one ticket may be in", field="most_uses", metavar="N")
    add("--seed", "of every random choice", metavar="N")
    text = "exit 2 and write nothing where train has fewer pairs than asked for"
    add("--strict", text, action="store_true")


def _add_output_options(add: Callable[..., None]) -> None:
    text = "clean: without mail headers, greetings, signatures and repeated passages; raw: as they are, "
    text += "pairs still chosen by the clean ones"
    add("--texts", text, field="written_texts", choices=("clean", "raw"), default="clean")
    text = "mask names behind a label (name: ...), e-mail addresses, phone numbers, ids and hosts in the pairs too, as "
    text += "always in the report; no guarantee: a name within a sentence stays"
    add("--mask", text, action="store_true")
    text = "add altered copies of a share of the train pairs; KIND is deletion, edit or translation, which is also "
    text += "their origin in the file"
    add("--augment", text, type=parse_augment, metavar="KIND=SHARE,...")
    text = "two seq2seq models for round trips, there and back"
    add("--translators", text, nargs=2, metavar=("THERE", "BACK"))
    text = f"what THERE reads; texts of other languages are left out (default: {Settings.translate_language})"
    add("--translate-language", text, default=None, metavar="LANG")


def settings_from(options: argparse.Namespace) -> Settings:
    """The settings of a parsed command line. Raises InputError for options that make no sense."""
    given = {name: value for name, value in vars(options).items() if value is not None}

    def of_fields(kind: type[T]) -> T:
        return kind(**{field.name: given[field.name] for field in fields(kind) if field.name in given})  # type: ignore[arg-type]

    for name, needed, there in (
        ("margin", "an encoder (--model) or other --sources", options.model or options.sources != ("similarity",)),
        ("translate_language", "--translators THERE BACK: add them", options.translators),
    ):
        if name in given and not there:
            raise InputError(f"--{name.replace('_', '-')} {given[name]} needs {needed}")
    bands = [(getattr(options, f"{phase}_positives"), getattr(options, f"{phase}_negatives")) for phase in PHASES]
    if options.sources and "similarity" not in options.sources and any(map(any, bands)):
        raise InputError("bands say what similarity makes pairs of: leave them out, or add similarity to --sources")
    wanted = options.sources or SOURCES
    sought = {field: "" for source in wanted for field in SOURCE_COLUMNS.get(source, ())}
    given = {"date": ""} | sought | given
    given |= {
        "columns": of_fields(TicketColumns),
        "reading": reading_from(options),
        "quality": of_fields(Filter),
        "phases": parse_phases(options.sizes, bands, options.similarity),
        "guess": "similarity" in options.sources or any(map(any, bands)),
        "raw_texts": options.written_texts == "raw",
    }
    settings = of_fields(Settings)
    settings.check()
    return settings


def _sources(text: str) -> tuple[str, ...]:
    """Sources in the order of trust. Raises InputError for one that there is not."""
    names = parse_names(text)
    if unknown := [name for name in names if name not in SOURCES]:
        raise InputError(f"--sources {unknown[0]}: name some of {', '.join(SOURCES)}")
    return tuple(source for source in SOURCES if source in names)


def _languages(text: str) -> tuple[str, ...]:
    """Languages in our spelling. Raises InputError for one that no ticket can be of."""
    names = tuple(name.lower() for name in parse_names(text))
    if unknown := [name for name in names if name not in LANGUAGES]:
        raise InputError(f"--languages {unknown[0]}: is none that is told apart: name some of {', '.join(LANGUAGES)}")
    return names


def run_build_pairs(options: argparse.Namespace) -> None:
    """Build pairs from raw tickets."""
    from trainer.mining.build_pairs import build_pairs

    build_pairs(settings_from(options))
