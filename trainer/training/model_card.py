"""The model card, and the table a run ends with; what they say of verdict and alerts comes from evaluation/."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from trainer.config import Config
from trainer.evaluation.alerts import alerts_in_words
from trainer.evaluation.metric_choice import BY_LABELS, TITLES, corpus_in_words, headline, judged_on, on_in_words
from trainer.evaluation.prevalence import percent
from trainer.system.console import console
from trainer.system.run_files import THRESHOLDS

NO_THRESHOLDS = (
    'There are no thresholds of "same problem": dev held positives alone. `trainer evaluate --dev` fits them on pairs '
    "of both labels."
)
UNTOUCHED = ": the export is the model that training began with"
"""What a strength of 0.0 is followed by."""


def print_summary(
    records: dict[str, dict[str, Any]],
    best_step: int,
    alpha: float,
    model: Path,
    sided: bool,
    alerts: dict[str, Any] | None = None,
    picked_on: str = "dev",
) -> None:
    """The end of a run: before, after and verdict at every dim of each held-out set, and how to use the model.

    Args:
        records: what was found on "dev" and, where there is one, "test"; the last one's verdict counts.
        picked_on: what has picked the model, "dev" or "corpus", where a search metric then is of the corpus throughout.
        alerts: what `alerts_on_training` counted.
    """
    # Sets of positives alone are all judged by the same search of the corpus: one table, with one title.
    for title, name in {_title(name, record, picked_on): name for name, record in records.items()}.items():
        _print_changes(title, name, records[name], picked_on)
    name, record = list(records.items())[-1]
    if "original" in record:
        title = _title(name, record["original"], picked_on, before="original")
        _print_changes(title, name, record["original"], picked_on)
    for sentence in record["sentences"]:
        console.print(sentence, markup=False)
    metric = record["question"]["metric"]
    how = f"best after step {best_step - 1}, strength {alpha:.1f}{'' if alpha else UNTOUCHED}"
    on = on_in_words("corpus" if picked_on == "corpus" else name)
    console.print(f"Verdict by {metric} on {on}: {record['verdict']} ({how}).", markup=False)
    for dim, entry in (records["dev"]["forgetting"] or {}).items():
        before, after = (entry["spearman"][when] for when in ("before", "after"))
        console.print(
            f"General similarity at {dim} dims, Spearman: {before:.4f} -> {after:.4f} ({after - before:+.4f})"
        )
    if "threshold" not in next(iter(records["dev"]["final"].values())):
        console.print(f"No {THRESHOLDS}: dev holds positives alone; trainer evaluate --dev fits and keeps them")
    if "model" in records["dev"]["thresholds"]:
        console.print(f"{_thresholds(records['dev'])}. {alerts_in_words(alerts)}", markup=False)
    if picked_on == "corpus":
        console.print("The corpus has also picked the model, so expect a little less on other tickets.")
    elif name == "dev":
        console.print("Dev has also picked the model, so expect a little less on other pairs; data.test would tell.")
    console.print(f"Model: {model}\n", markup=False)
    console.print(usage(model, min(record["final"], key=int), sided), markup=False)


def shown_metrics(record: dict[str, Any]) -> dict[str, str]:
    """The headings of what is shown of a held-out set, by metric: those that many ask for, and the run's own."""
    names = headline(next(iter(record["final"].values())), record["question"]["metric"])
    f1 = "F1 at dev's threshold" if record["question"]["dev"] else "best F1"
    return {name: f1 if name == "f1" else TITLES.get(name, name) for name in names}


def _title(name: str, record: dict[str, Any], picked_on: str, before: str = "baseline") -> str:
    """What a held-out set is judged on, as the title of its table."""
    judged = _judged_with_corpus(record, f"{name} pairs") if picked_on == "corpus" else f"{name} pairs"
    return f"{judged[0].upper()}{judged[1:]}: {before} -> final (difference)"


def _print_changes(title: str, name: str, record: dict[str, Any], picked_on: str) -> None:
    metric = record["question"]["metric"]
    table = Table(title=escape(title), title_justify="left")
    table.add_column("dim", justify="right")
    shown = shown_metrics(record)
    for heading in (*shown.values(), f"95 % of {shown[metric]}", "verdict"):
        table.add_column(heading, justify="right")
    for dim, after in record["final"].items():
        old = record["baseline"][dim]
        cells = (f"{old[key]:.4f} -> {after[key]:.4f} ({after[key] - old[key]:+.4f})" for key in shown)
        table.add_row(dim, *cells, _ends(record["intervals"]["difference"][dim][metric]), record["verdicts"][dim])
    console.print(table)
    if reason := record["undefined"].get(metric):
        on = on_in_words("corpus" if picked_on == "corpus" else name)
        console.print(f"No interval of {metric} on {on}: {reason}", markup=False)


def _by_dim(record: dict[str, Any], columns: dict[str, str]) -> list[str]:
    """Lines of a card's table: a row a dim; `columns` are metrics with their headings."""
    headings, metric = " | ".join(f"{title} before | after" for title in columns.values()), record["question"]["metric"]
    rows = [f"| dim | {headings} | 95 % of the difference | verdict |", f"|---:|{'---:|---:|' * len(columns)}---:|---|"]
    for dim, after in record["final"].items():
        cells = [f"{values[key]:.4f}" for key in columns for values in (record["baseline"][dim], after)]
        ends = _ends(record["intervals"]["difference"][dim][metric])
        rows.append(f"| {dim} | {' | '.join(cells)} | {ends} | {record['verdicts'][dim]} |")
    return [*rows, ""]


def _judged_with_corpus(record: dict[str, Any], pairs: str) -> str:
    """What the shown figures are of where search was among a corpus: of the pairs too only where these have labels."""
    searched = corpus_in_words(record)
    by_labels = BY_LABELS in next(iter(record["final"].values()))
    return f"{pairs}, search figures of {searched}" if by_labels else searched


def _ends(interval: list[float] | list[None]) -> str:
    """An interval in words, "none" where it is undefined: NaN, or null as JSON has it."""
    low, high = interval
    return "none" if low is None or math.isnan(low) else f"{low:+.3f} to {high:+.3f}"


def usage(model: Path, dim: str, sided: bool) -> str:
    """Five lines of code that use the exported model as it was judged: prompts, length 1 after the cut.

    Args:
        sided: whether the two texts of a pair have prompts of their own.
    """
    first, second = ("_query", "_document") if sided else ("", "")
    return (
        "from sentence_transformers import SentenceTransformer\n"
        f'model = SentenceTransformer("{model}", truncate_dim={dim})\n'
        f'first = model.encode{first}(["vpn is down"], normalize_embeddings=True)\n'
        f'second = model.encode{second}(["cannot connect from home"], normalize_embeddings=True)\n'
        "print(model.similarity(first, second))  # cosines"
    )


def _thresholds(record: dict[str, Any]) -> str:
    kept = record["thresholds"]["model"]
    values = ", ".join(f"{value:.4f} at {dim} dims" for dim, value in kept["values"].items())
    share = percent(kept["positive_share"])
    return (
        f'Thresholds of "same problem" are cosines ({values}), fitted on dev, where {share} of the pairs are positive'
    )


def thresholds_in_words(record: dict[str, Any]) -> str:
    """What a person must know to use the thresholds that are kept beside the model."""
    fitted = record["thresholds"]["model"]["model"]
    prompts = "no prompts"
    if fitted["query_prompt"] or fitted["document_prompt"]:
        shown = " and ".join(json.dumps(fitted[f"{side}_prompt"], ensure_ascii=False) for side in ("query", "document"))
        prompts = f"the prompts {shown} before first and second texts (`encode_query`, `encode_document`)"
    return (
        f"{_thresholds(record)}, at {fitted['max_length']} tokens, with {prompts}; they are in `{THRESHOLDS}`. "
        "Embeddings cut to a dim are not of length 1: without `normalize_embeddings=True` a dot product is no cosine."
    )


def _sources_in_words(sources: Mapping[str, Mapping[str, Any]]) -> str:
    """How many rows of which files, without their folders."""
    return ", ".join(
        f"{counts['rows']:,} of {Path(source).name}"
        + (f" (weight {counts['weight']:g})" if counts["weight"] != 1 else "")
        for source, counts in sources.items()
    )


def model_card(
    config: Config,
    record: dict[str, Any],
    on: str,
    alpha: float,
    sources: Mapping[str, Mapping[str, Any]],
    has_thresholds: bool,
    sided: bool,
    alerts: dict[str, Any] | None = None,
) -> str:
    """README.md of the exported model: what it is, how it did, how to use it. It quotes no training text.

    Args:
        record: what was found on the held-out set `on`.
        sources: training file -> "rows" and "weight".
        has_thresholds: whether THRESHOLDS lies beside it.
        sided: whether the two texts of a pair have prompts of their own.
        alerts: what `alerts_on_training` counted.
    """
    metric, titles = record["question"]["metric"], shown_metrics(record)
    columns = {name: title for name, title in titles.items() if name != "f1" or metric == "f1"}
    judged = f"{record['pairs']} held-out pairs ({on})"
    if judged_on(metric, on, bool(config.data.corpus)) == "corpus":
        judged = _judged_with_corpus(record, judged)
    name, original = Path(config.model.name).name, []
    if "original" in record:
        name = Path(record["original"]["question"]["baseline"]).name
        original = [
            f"Beside the original, {name}, with its figures as those before:",
            "",
            *_by_dim(record["original"], columns),
        ]
    dims = ", ".join(map(str, config.loss.dims))
    done = "fine-tuned" if alpha else "not changed by fine-tuning"
    how = f"LoRA (rank {config.lora.rank})" if config.lora.enabled else "full fine-tuning"
    return "\n".join(
        [
            "---",
            "library_name: sentence-transformers",
            "pipeline_tag: sentence-similarity",
            "tags: [sentence-similarity, matryoshka]",
            "---",
            "",
            f"# {name}, {done} on labelled pairs",
            "",
            *(f"- {sentence}" for sentence in record["sentences"]),
            "",
            f"Trained by {how} with multiple-negatives ranking at the dims {dims}; strength of the update {alpha:.1f}"
            f"{'' if alpha else UNTOUCHED}. Training pairs: {_sources_in_words(sources)}.",
            f"Judged beside the model that training began with, by {metric} on {judged}:",
            "",
            *_by_dim(record, columns),
            *original,
            thresholds_in_words(record) if has_thresholds else NO_THRESHOLDS,
            "",
            *([alerts_in_words(alerts), ""] if alerts else []),
            "```python",
            usage(Path("path/to/model"), min(record["final"], key=int), sided),
            "```",
            "",
        ]
    )
