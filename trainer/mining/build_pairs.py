"""`trainer build-pairs`: raw tickets in; train, dev and test pairs, the dropped rows and a report out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from trainer.data.identifiers import as_cell
from trainer.data.origins import SAID
from trainer.data.tickets import REASONS, Tickets, load_tickets
from trainer.errors import InputError, StorageError
from trainer.mining.augment import Translator, delete_span, edit_text, load_translator, round_trip
from trainer.mining.labelled import Labels, take_labelled
from trainer.mining.negatives import Search, take_negatives
from trainer.mining.neighbours import Similarity
from trainer.mining.positives import Pairs, mine_positives, take_positives
from trainer.mining.settings import BANDS, PARTS, SOURCE_COLUMNS, Settings
from trainer.mining.sources import Source, Texts, read_sources, text_forms
from trainer.mining.summary import Chosen, Report, part_figures, print_report, shortcuts, written_of
from trainer.mining.time_split import require_dates
from trainer.system.console import console
from trainer.system.files import new_folder, write_file
from trainer.text.canonical import canonical_form
from trainer.text.cleaning import language
from trainer.text.tfidf import FloatArray, tfidf_matrix

FORMAT = ("texts1", "texts2", "labels", "phase_indicators")
CATEGORIES = ("categories1", "categories2")
BESIDE = ("origins", "numbers1", "numbers2")  # where a row comes from; readers of pairs skip what they do not know
COSINES = {"tfidf": "tfidf_cosines", "encoder": "encoder_cosines"}  # what measured them -> column
Rows = dict[str, list[Any]]
"""Columns of the pair format, one value a row."""


def build_pairs(settings: Settings) -> Report:
    """Do it all; the files are there at the end, or none is.

    Raises:
        InputError: bad tickets, columns, settings or models; a phase without pairs; `strict` and too few candidates.
        StorageError: the output exists or cannot be written.
    """
    if taken := next(filter(Path.exists, _files_of(settings.output)), None):
        raise StorageError(f"{taken}: exists already and is not overwritten; name another --output or remove it")
    translators = [load_translator(name) for name in settings.translators]  # a wrong name should fail at once
    tickets = load_tickets(settings.tickets, settings.columns, settings.quality, settings.reading)
    if settings.split_by == "time":
        require_dates(tickets)
    texts, sources = read_sources(
        tickets, settings.sources or SAID, settings.quality, settings.seed, settings.raw_texts
    )
    by_bands = settings.guess or not sources
    _check_tickets(tickets, settings, sources, by_bands)
    settings, left_out = _fit_categories(tickets, settings) if by_bands else (settings, "")
    console.print(f"{len(tickets)} of {tickets.facts['read']} tickets kept", markup=False)
    labels, search = _compare(texts, sources, by_bands, settings)
    offered = {source.name: len(source) for source in sources}
    report = Report(settings.figures(), tickets, by_bands, offered, left_out)
    files: dict[str, Rows] = {}
    for number, part in enumerate(PARTS):
        if settings.shares[number]:
            chosen = _select(labels, search, number)
            report.parts[part] = part_figures(labels, search, chosen, number)
            if part == "train":
                _check_train(report, settings)
                report.shortcuts_by_source = shortcuts(labels, chosen)
                report.shortcuts = report.shortcuts_by_source.pop("")
            files[part] = _rows(labels, chosen)
    if settings.augment:
        known = set(map(canonical_form, texts.written))
        report.augmented = _augment(files["train"], settings, known, translators)
    _write(settings.output, {name: rows for name, rows in files.items() if rows["labels"]}, report)
    print_report(report)
    return report


def _compare(
    texts: Texts, sources: Sequence[Source], by_bands: bool, settings: Settings
) -> tuple[Labels, Search | None]:
    """Measure all texts, and deal the tickets to groups and parts: what pairs of sources, and of bands where these are
    asked for, are drawn from."""
    tickets, size = texts.tickets, len(texts.tickets)
    encoder = {"encoder": _embed(settings.model, texts.clean)} if settings.model else {}
    by_words = bool(sources) or settings.similarity != "encoder"
    tfidf = {"tfidf": tfidf_matrix(tickets.texts, texts.clean[size:])} if by_words else {}
    measures, forms = Similarity(tfidf | encoder), text_forms(texts)
    used = np.concatenate([side for source in sources for side in (source.first, source.pool)] or [forms[:0]])
    whole = measures.head(size).by(settings.similarity)
    mined = mine_positives(tickets, whole, settings, by_bands, (texts.ticket(used), forms[used]))
    labels = Labels(texts, sources, measures, mined, forms, settings)
    return labels, Search(tickets, measures, mined, settings) if by_bands else None


def _check_tickets(tickets: Tickets, settings: Settings, sources: Sequence[Source], by_bands: bool) -> None:
    """Raises InputError for too few tickets, and for a source that a person asked for and the tickets do not offer."""
    read, largest = tickets.facts["read"], max(phase.size for phase in settings.phases)
    if len(tickets) < 2:
        reasons = ", ".join(f"{count} {reason}" for reason, count in tickets.facts["dropped"].items())
        raise InputError(f"{tickets.source}: {len(tickets)} of {read} tickets are usable ({reasons}): give more")
    offered = {source.name for source in sources} | {"similarity"}
    if missing := next((name for name in settings.sources if name not in offered), ""):
        columns, fields = tickets.facts["columns"], SOURCE_COLUMNS.get(missing, ("texts",))
        named = [name for field in fields for name in np.atleast_1d(columns[field] or []).tolist()]
        what = f"{' + '.join(named)} gives no such pairs" if named else "has no column of a usual name"
        fix = " or ".join(settings.columns.options[field] for field in fields)
        raise InputError(f"{tickets.source}: --sources {missing}: {what}: name one with {fix}, or leave it out")
    if by_bands and read < largest:
        raise InputError(
            f"{tickets.source}: {read} tickets for a phase of {largest} pairs: lower --sizes to {read - read % 2} or "
            "less, or give more tickets"
        )


def _fit_categories(tickets: Tickets, settings: Settings) -> tuple[Settings, str]:
    """The settings, with bands of any category for default bands that ask for one where tickets have no two of them;
    and what was left out, in words. Raises InputError where a band that a person gave asks for one."""
    bands = ((phase.name, band) for phase in settings.phases for band in (phase.positives, phase.negatives))
    asking = [(name, str(band)) for name, band in bands if band.category != "any"]
    if len(tickets.categories) > 1 or not asking:
        return settings, ""
    only = repr(tickets.categories[0]) if tickets.categories else ""
    if {band for _, band in asking} <= {band for bands in BANDS[settings.similarity] for band in bands}:
        present = f"all tickets are of {only}" if only else "the tickets have no category"
        return settings.without_categories(), (
            f"{present}: what the bands ask of categories is left out ({', '.join(map(' '.join, asking))}); to have it "
            "name --category-column"
        )
    raise InputError(
        f"{tickets.source}: column {tickets.facts['columns']['category'] or 'for categories'} holds "
        f"{f'only the category {only}' if only else 'no category'}: name another with --category-column, or end every "
        "band in :any"
    )


def _check_train(report: Report, settings: Settings) -> None:
    short = report.shortages("train")
    empty = [name for name, figures in report.parts["train"].items() if not figures["written_of_each"]]
    if empty or (short and settings.strict):
        fix = "widen the bands, lower --sizes, or give more tickets"
        raise InputError(f"{report.tickets.source}: {'; '.join(short)}: {fix}")


def _embed(name: str, texts: list[str]) -> FloatArray:
    """[N, E] embeddings of length 1."""
    from trainer.errors import NumericError
    from trainer.model.embedding import embed
    from trainer.model.loading import load_encoder
    from trainer.system.gpu import default_device

    device = default_device()
    encoder = load_encoder(name).to(device)
    rows = embed(encoder, encoder.tokenize(texts, (encoder.spec.query_prompt,), cached=True))
    if not np.isfinite(rows).all():
        raise NumericError(f"--model {name}: some embeddings are not finite")
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _select(labels: Labels, search: Search | None, part: int) -> Chosen:
    """Positives and negatives of a part by phase: of what tickets say, then, where bands are asked for, of bands."""
    chosen = take_labelled(labels, part)
    if search is None:
        return chosen
    settings = search.settings
    wanted = {phase.number: settings.wanted(phase, part) - len(chosen[phase.number][0]) for phase in settings.phases}
    positives = take_positives(search.mined, settings, part, wanted)
    taken = {pair for pairs in positives.values() for pair in pairs.sorted()}
    for phase in settings.phases:
        own = positives[phase.number]
        negatives = take_negatives(search, phase, own, part, taken)
        guesses, said = written_of((own, negatives)), chosen[phase.number]
        chosen[phase.number] = Pairs.join([said[0], guesses[0]]), Pairs.join([said[1], guesses[1]])
    return chosen


def _rows(labels: Labels, chosen: Chosen) -> Rows:
    """The pairs of a part in the pair format, half of each phase positive, with ticket numbers, origins and cosines."""
    tickets, settings = labels.texts.tickets, labels.settings
    names = [*tickets.categories, ""]  # -1, no category, is the last
    random = np.random.default_rng(settings.seed)
    rows: Rows = {key: [] for key in (*FORMAT, *(CATEGORIES if tickets.categories else ()), *BESIDE)}
    for phase, both in chosen.items():
        written = written_of(both)
        order = random.permutation(sum(map(len, written)))
        ends = [
            np.concatenate(sides)[order] for sides in zip(*((each.first, each.second) for each in written), strict=True)
        ]
        for side, texts_at in zip("12", ends, strict=True):
            tickets_at = labels.texts.ticket(texts_at)
            rows[f"texts{side}"] += [labels.texts.written[end] for end in texts_at]
            if tickets.categories:
                rows[f"categories{side}"] += [names[tickets.category[end]] for end in tickets_at]
            rows[f"numbers{side}"] += [tickets.numbers[end] for end in tickets_at]
        rows["labels"] += [int(place < len(written[0])) for place in order]
        rows["phase_indicators"] += [phase] * len(order)
        origins = written[0].origin + written[1].origin
        rows["origins"] += [origins[place] for place in order]
        for name, cosines in labels.measures.of_pairs(*ends).items():
            rows.setdefault(COSINES[name], []).extend(round(float(cosine), 4) for cosine in cosines)
    return rows


def _augment(
    rows: Rows, settings: Settings, known: set[str], translators: Sequence[Translator]
) -> dict[str, dict[str, int]]:
    """Append rows whose second text is altered, as many of either label in each phase; returns counts by kind.

    `known`: canonical forms of all tickets' texts; an altered text that is one of them (it may be in dev) is left out.
    """
    counts = {}
    strata: dict[tuple[int, int], list[int]] = {}
    for row, phase_and_label in enumerate(zip(rows["phase_indicators"], rows["labels"], strict=True)):
        strata.setdefault(phase_and_label, []).append(row)
    for kind, share in settings.augment:
        random = Random(f"{settings.seed}/{kind}")
        picked = {key: random.sample(of_stratum, round(share * len(of_stratum))) for key, of_stratum in strata.items()}
        asked = [row for of_stratum in picked.values() for row in of_stratum]
        altered = _alter(kind, [rows["texts2"][row] for row in asked], settings, translators, random)
        pairs = zip(asked, altered, strict=True)
        new = {row: text for row, text in pairs if text and canonical_form(text) not in known}
        fit = {key: [row for row in of_stratum if row in new] for key, of_stratum in picked.items()}
        fewest = {phase: min(len(fit[phase, label]) for label in (0, 1)) for phase, _ in fit}
        chosen = [row for (phase, _), of_stratum in fit.items() for row in of_stratum[: fewest[phase]]]
        changed: dict[str, list[Any]] = {"texts2": [new[row] for row in chosen], "origins": [kind] * len(chosen)}
        changed |= {name: [None] * len(chosen) for name in COSINES.values()}  # they are of the unaltered text
        for name, column in rows.items():
            column += changed.get(name) or [column[row] for row in chosen]
        counts[kind] = {"asked": len(asked), "written": len(chosen)}
    return counts


def _alter(
    kind: str, texts: list[str], settings: Settings, translators: Sequence[Translator], random: Random
) -> list[str | None]:
    if kind != "translation":
        alter = delete_span if kind == "deletion" else edit_text
        return [alter(text, random) for text in texts]
    there, back = translators
    fits = [place for place, text in enumerate(texts) if language(text) in (settings.translate_language, "")]
    altered: list[str | None] = [None] * len(texts)
    for place, text in zip(fits, round_trip([texts[place] for place in fits], there, back), strict=True):
        altered[place] = text
    return altered


def _write(output: Path, files: dict[str, Rows], report: Report) -> None:
    """A folder with all files, or, where the output is named .json, the others beside it under its name."""
    contents = {f"{part}.json": json.dumps(rows, ensure_ascii=False) + "\n" for part, rows in files.items()}
    contents["dropped.csv"] = _dropped_table(report.tickets)
    report.files = {name: len(rows["labels"]) for name, rows in files.items()}
    contents["report.json"] = json.dumps(report.figures(), indent=2, ensure_ascii=False) + "\n"
    if output.suffix != ".json":
        with new_folder(output) as folder:
            for name, content in contents.items():
                write_file(folder / name, content)
        return
    for name, content in reversed(contents.items()):  # train, the file that was asked for, is there when all are
        write_file(_beside(output, name), content)


def _files_of(output: Path) -> list[Path]:
    """What may be written for an output: a folder, or a file and those beside it."""
    if output.suffix != ".json":
        return [output]
    return [_beside(output, name) for name in (*(f"{part}.json" for part in PARTS), "dropped.csv", "report.json")]


def _beside(output: Path, name: str) -> Path:
    return output if name == "train.json" else output.with_name(f"{output.stem}-{name}")


def _dropped_table(tickets: Tickets) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["row", "number", "reason", "meaning", "kept_instead"])
    for drop in tickets.dropped:
        writer.writerow([drop.row, as_cell(drop.number), drop.reason, REASONS[drop.reason], as_cell(drop.kept)])
    return table.getvalue()
