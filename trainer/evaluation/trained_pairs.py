"""What a model was trained on and picked by, as far as the run that it lies in still tells."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from trainer.config_file import load_config
from trainer.data.pairs import PairTable
from trainer.data.run_data import RunData, pairs_of_run, read_corpus
from trainer.data.search_corpus import rows_with_text
from trainer.data.split import check_overlap
from trainer.errors import InputError
from trainer.evaluation.metric_choice import judged_on, picked_in_words
from trainer.system.console import console
from trainer.system.run_files import ADAPTER, CONFIG, METADATA, METRICS, MODEL, STRENGTH


def data_of_chain(model: str) -> list[RunData]:
    """The pairs of the run that a model's folder lies in, and of the runs before it that its training went on from."""
    found, folders = list[RunData](), set[Path]()
    while Path(model).is_dir() and (folder := _run_of(model)) not in folders:
        folders.add(folder)
        if (data := data_of_model(model)) is None:
            break  # which has been said
        found.append(data)
        model = load_config(folder / CONFIG).model.name
        if Path(model).is_dir() and not (_run_of(model) / METADATA).is_file():
            break  # a pretrained model's folder
        if Path(model).name in (MODEL, ADAPTER) and not Path(model).is_dir():
            console.print(f"{folder}: it went on from {model}, which is gone: its pairs cannot be told", markup=False)
    return found


def seen_by_earlier_runs(model: str, held_out: Mapping[str, PairTable], allowed: float) -> dict[str, int]:
    """How many texts of "dev" and "test" the runs that a model came of were trained on, where some are; says so.

    Args:
        allowed: the share of test's pairs that may hold one. Those of dev, which only chooses, are not limited: pairs
            that people label again have mostly been trained on.

    Raises InputError where more of test do.
    """
    seen = dict[str, int]()
    if not (_run_of(model) / METADATA).is_file():
        return seen
    for earlier in data_of_chain(model):
        for name, table in held_out.items():
            try:
                shared = check_overlap(earlier.train, table, allowed if name == "test" else 1)
            except InputError as error:
                raise InputError(f"model.name = {model} was trained on what this run is judged by: {error}") from None
            if shared:
                key = f"{name} and earlier runs"
                seen[key] = max(shared, seen.get(key, 0))
                known = f"{shared} of its texts are in {earlier.train.source}, which model.name was trained on"
                console.print(f"{name} ({table.source}): {known}; expect less on other texts", markup=False)
    return seen


def data_of_model(model: str) -> RunData | None:
    """The pairs of the run that a model's folder lies in, read again.

    None where they are not known, which is said: the folder is no run's, or its files are not what it was trained on.
    None of a model that is no folder.
    """
    if not Path(model).is_dir():
        return None
    metadata = _run_of(model) / METADATA
    known: RunData | None = None
    with _what_cannot_be_told(model, "trained on"):
        if not metadata.is_file():
            raise InputError("it lies in no folder of a run")
        fingerprint = json.loads(metadata.read_bytes())["fingerprints"]["train_data"]
        data = pairs_of_run(metadata.parent)
        if data.train.fingerprint() != fingerprint:
            raise InputError(f"{data.train.source} has changed since")
        known = data
    return known


def picked_by(model: str, data: RunData, judged: Sequence[str]) -> str:
    """A sentence where step or strength of a model were picked by texts that it is judged by; "" where they were not.

    Args:
        data: that of the model's run.
        judged: the texts of the judged pairs, or those that search.
    """
    run, count, picked = _run_of(model), 0, ""
    with _what_cannot_be_told(model, "picked by"):
        config = load_config(run / CONFIG)
        on = judged_on(config.eval.metric, "dev", bool(config.data.corpus))
        metrics = json.loads((run / METRICS).read_bytes())
        chose_after = (run / STRENGTH).is_file() or "principal_axes" in metrics
        picked = picked_in_words(on, len(metrics["evaluations"]), chose_after)
        texts = data.dev.texts
        if picked and on == "corpus" and (corpus := read_corpus(config.data, data.dev, data.train.texts)):
            texts = [corpus.texts[query] for query in corpus.queries]
        count = len(rows_with_text(range(len(judged)), [[text] for text in judged], texts)) if picked else 0
    return f"{picked}: {count} of the {len(judged)} judged texts are among those that picked {model}" if count else ""


def _run_of(model: str) -> Path:
    return Path(model).resolve().parent


@contextmanager
def _what_cannot_be_told(model: str, how: str) -> Iterator[None]:
    """Say so where a run's files do not tell whether a model was trained on, or picked by, what it is judged by."""
    try:
        yield
        return
    except InputError as error:
        why = str(error)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        why = f"a file in {_run_of(model)} is missing, damaged or of another version"
    console.print(f"{model}: whether it was {how} what it is judged by cannot be told: {why}", markup=False)
