"""Where a run's pairs and model come from: files, a split of one file, or generated incidents and a tiny model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from scipy.sparse import csr_matrix

from trainer.config_data import DataConfig, SourceConfig
from trainer.config_file import load_config
from trainer.data.incidents import generate_pairs
from trainer.data.pairs import PairTable, pairs_from_columns, positives_beyond, read_pairs
from trainer.data.raw_table import brief
from trainer.data.readers import Reading
from trainer.data.search_corpus import SearchCorpus, corpus_of_pairs, remarks
from trainer.data.sources import by_source, join, rows_by_source
from trainer.data.split import check_overlap, has_both_labels, hold_out, require_positives, sample_pairs
from trainer.data.ticket_corpus import corpus_of_tickets, read_texts
from trainer.data.ticket_table import Columns
from trainer.errors import InputError, StorageError
from trainer.model.tiny import build_tiny_mpnet
from trainer.system.console import console
from trainer.system.files import cache_dir
from trainer.system.run_files import CONFIG
from trainer.text.canonical import canonical_form

INCIDENTS = "incidents"  # data.train: generated pairs
TINY_MODEL = "tiny-mpnet"  # model.name: built on the spot
STS_SCALE = 5.0  # scores of a forgetting set run from 0 to this
NEARLY_ALL = 0.9  # of the rows of a held-out part
GENERATED_ROWS = {"train": 720, "dev": 240, "test": 240}


@dataclass(frozen=True)
class RunData:
    """The pairs of a run, how many texts its parts share, and the corpus to search."""

    train: PairTable
    known_positives: csr_matrix  # over canonical texts of train, also by rows that data.limit leaves out
    dev: PairTable
    test: PairTable | None
    general: PairTable | None  # STS set of general similarity, to see what is forgotten
    corpus: SearchCorpus | None  # what is searched, and by what
    overlap: dict[str, int]
    """"dev", "test" and, where there are some, "forgetting" -> texts also in train; "dev and test" -> texts in both;
    "dev and earlier runs" likewise, of those that the model came of."""
    left_out: int  # rows of the training file that are in neither train nor dev, as they connect the two
    beyond_limit: int  # rows to train on but for data.limit

    @property
    def held_out(self) -> dict[str, PairTable]:
        """What the run is judged on: "dev" and, where there is one, "test"."""
        return {"dev": self.dev} if self.test is None else {"dev": self.dev, "test": self.test}


def load_data(config: DataConfig, seed: int) -> RunData:
    """Read, split and check the pairs of a run, and the corpus.

    Raises:
        InputError: a file is bad, a part has no positives, parts share texts that must not, or nearly all rows; or
            nothing can search the corpus.
    """
    config.require_train()
    train, left_out = join([_read(config, source, "train", seed) for source in config.training_files()]), 0
    require_positives(train)
    if config.dev or config.train == INCIDENTS:
        dev = _read(config, config.as_source(config.dev or INCIDENTS), "dev", seed)
    else:
        before = rows_by_source(train)
        train, dev, left_out = hold_out(train, config.dev_fraction, seed)
        for (source, rows), kept, held in zip(
            before.items(), rows_by_source(train).values(), rows_by_source(dev).values(), strict=True
        ):
            lost = rows - kept - held
            between = f"; {lost} rows that connect both sides are left out" if lost else ""
            console.print(f"{source}: held out {held} of {rows} rows as dev{between}", markup=False)
    test = _read(config, config.as_source(config.test), "test", seed) if config.test else None
    general = read_general(config.forgetting) if config.forgetting else None
    held_out = {"dev": dev} if test is None else {"dev": dev, "test": test}
    for name, table in held_out.items():
        require_positives(table)
        require_other_pairs(f"data.{name}", table, "data.sources" if config.sources else "data.train", train)
    if test is not None:
        require_other_pairs("data.test", test, "data.dev", dev)
    if general is not None:  # by texts alone: what is called positive may differ
        alike = [replace(table, label=np.ones_like(table.label)) for table in (general, train)]
        require_other_pairs("data.forgetting", alike[0], "data.sources" if config.sources else "data.train", alike[1])
    overlap = {name: check_overlap(train, table, config.allow_overlap) for name, table in held_out.items()}
    if test is not None:
        overlap["dev and test"] = check_overlap(dev, test, config.allow_overlap)
    if general is not None and (shared := check_overlap(train, general, allowed=1)):
        overlap["forgetting"] = shared
        met = f"{shared} of its texts are trained on, so it shows less of what is forgotten"
        console.print(f"data.forgetting = {general.source}: {met}", markup=False)
    corpus = read_corpus(config, dev, train.texts)
    if corpus is not None and test is not None and not has_both_labels(test):
        raise InputError(
            f"data.test = {test.source}: it holds positives alone, which are judged by search, and data.corpus is what "
            "is searched, by dev: it would have no say; leave out one of the two"
        )
    # Last, so that what a run is judged by does not depend on it.
    sample = sample_pairs(train, config.limit or len(train), seed)
    if beyond_limit := len(train) - len(sample):
        console.print(f"{train.source}: trains on {len(sample)} of {len(train)} rows (data.limit)", markup=False)
    return RunData(sample, positives_beyond(sample, train), dev, test, general, corpus, overlap, left_out, beyond_limit)


def pairs_of_run(folder: Path) -> RunData:
    """The pairs of a run, read again from where it read them, without its corpus and forgetting set.

    Raises InputError: its config or one of the files is bad, or gone.
    """
    config = load_config(folder / CONFIG)
    alone = replace(config.data, corpus="", duplicates="", corpus_columns=(), forgetting="", allow_overlap=1.0)
    return load_data(alone, config.train.seed)


def require_other_pairs(key: str, held_out: PairTable, other_key: str, other: PairTable) -> None:
    """Raise InputError where nearly all rows of a held-out table stand in another one: it would judge nothing.

    Whatever data.allow_overlap says, which is for single texts that recur.
    """
    known = set(_canonical_rows(other))
    shared = sum(row in known for row in _canonical_rows(held_out))
    if shared >= NEARLY_ALL * len(held_out):
        if len(other.sources) > 1:
            held = set(_canonical_rows(held_out))
            files = [part.source for part in by_source(other) if held.intersection(_canonical_rows(part))]
            other_key += f" ({' and '.join(files)})"
        fix = f"name another file as {key}" + (", or leave it out to split a part off" if key == "data.dev" else "")
        raise InputError(
            f"{key} = {held_out.source}: {shared} of its {len(held_out)} rows are also in {other_key}: {fix}"
        )


def _canonical_rows(table: PairTable) -> list[tuple[frozenset[str], bool]]:
    """[N] the canonical forms of each pair's texts, in either order, and its label."""
    forms = [canonical_form(text) for text in table.texts]
    pairs = zip(table.text1, table.text2, table.label.tolist(), strict=True)
    return [(frozenset((forms[first], forms[second])), label) for first, second, label in pairs]


def read_general(path: str) -> PairTable:
    """A set of general similarity in STS format: sentence, sentence, score 0-5, no header. Raises InputError."""
    return read_pairs(path, label_scale=STS_SCALE, scale_setting="")


def _read(config: DataConfig, file: SourceConfig, part: str, seed: int) -> PairTable:
    if file.path == INCIDENTS:
        return pairs_from_columns(generate_pairs(GENERATED_ROWS[part], seed, part), f"{INCIDENTS} ({part})")
    reading = Reading(config.encoding, config.separator, file.columns)
    threshold = file.positive_threshold or None
    return read_pairs(file.path, label_scale=file.label_scale, positive_threshold=threshold, reading=reading)


class CorpusColumns(Columns):
    """Columns that the settings of a run name."""

    options: ClassVar[Mapping[str, str]] = {
        "number": 'data.corpus_columns, as in ["number=NAME"]',
        "texts": 'data.corpus_columns, as in ["text=NAME"]',
        "cluster": 'data.corpus_columns, as in ["cluster=NAME"]',
        "date": 'data.corpus_columns, as in ["date=NAME"]',
        "duplicate_of": "data.duplicates",
    }


def columns_of_settings(duplicates: str, named: Sequence[str]) -> CorpusColumns:
    """Columns from the settings data.duplicates and data.corpus_columns.

    >>> columns_of_settings("dup", ["text=Title", "text=Body", "date=opened"]).texts
    ('Title', 'Body')

    Raises:
        InputError: not FIELD=COLUMN, or a field twice that has one column, or one that only links give a meaning.
    """
    columns: dict[str, list[str]] = {"number": [], "text": [], "cluster": [], "date": []}
    for text in named:
        field, sign, column = (part.strip() for part in text.partition("="))
        if not sign or field not in columns or not column:
            raise InputError(
                f"data.corpus_columns, {brief(text)}: write FIELD=COLUMN, FIELD one of {', '.join(columns)}"
            )
        columns[field].append(column)
    for field in ("number", "cluster", "date"):
        if len(columns[field]) > 1:
            raise InputError(f"data.corpus_columns: {field} is named twice: only text may have several columns")
        if columns[field] and not (duplicates or columns["cluster"]):
            raise InputError(
                f"data.corpus_columns: {field} means something only where tickets are linked: set data.duplicates too, "
                "or leave it out"
            )
    number, cluster, date = (next(iter(columns[field]), "") for field in ("number", "cluster", "date"))
    return CorpusColumns(
        number=number,
        texts=tuple(columns["text"]),
        duplicate_of=duplicates or None,
        cluster=cluster or None,
        date=date or None,
    )


def read_corpus(config: DataConfig, dev: PairTable, trained: Collection[str]) -> SearchCorpus | None:
    """What data.corpus is to be searched for, by what and among whom; says what is special about it. None without one.

    Args:
        trained: texts of training pairs; what belongs to one of them does not search.

    Raises:
        InputError: a bad file, column or link, or nothing that could search.
    """
    columns = columns_of_settings(config.duplicates, config.corpus_columns)
    if not config.corpus:
        return None
    reading = Reading(config.encoding, config.separator)
    if columns.duplicate_of or columns.cluster:
        corpus = corpus_of_tickets(config.corpus, columns, reading=reading, trained=trained)
    else:
        corpus = corpus_of_pairs(dev, read_texts(config.corpus, columns, reading), config.corpus, trained)
    counts = f"{corpus.facts['queries']:,} texts search among {corpus.facts['texts']:,}"
    for line in (counts, *remarks(corpus.facts)):
        console.print(f"{corpus.source}: {line}", markup=False)
    return corpus


def locate_model(name: str, texts: Sequence[str], seed: int) -> str:
    """The folder or hub name of the base model.

    TINY_MODEL is built in the cache where it is not there yet, its vocabulary from `texts`. Raises StorageError.
    """
    if name != TINY_MODEL:
        return name
    key = hashlib.sha256(json.dumps([seed, sorted(texts)]).encode()).hexdigest()[:16]
    folder = cache_dir() / f"{TINY_MODEL}-{key}"
    if not folder.exists():
        try:
            build_tiny_mpnet(folder, texts, seed=seed)
        except StorageError as error:
            if not Path(folder, "config.json").exists():  # else another rank was faster
                raise StorageError(f"{folder}: cannot build the tiny model there; set TRAINER_CACHE") from error
    return str(folder)
