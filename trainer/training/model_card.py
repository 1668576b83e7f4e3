"""The model card, README.md of an exported model; what it says of verdict and alerts comes from evaluation/."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import __version__
from trainer.config import Config
from trainer.evaluation.alerts import alerts_in_words
from trainer.evaluation.assessment import GUARDED
from trainer.evaluation.metric_choice import BY_LABELS, TITLES, corpus_in_words, headline, picked_in_words
from trainer.evaluation.prevalence import percent
from trainer.evaluation.type_comparison import types_in_markdown
from trainer.evaluation.verdict import paired_verdict
from trainer.system.run_files import THRESHOLDS
from trainer.training.settled import changed_settings

NO_THRESHOLDS = (
    'There are no thresholds of "same problem": dev held positives alone. `trainer evaluate --dev` fits them on pairs '
    "of both labels."
)
UNTOUCHED = ": the export is the model that training began with"
"""What a strength of 0.0 is followed by."""


def judged_records(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The records of "dev" and, where there is one, "test", as metrics.json has them; the last one's verdict counts."""
    return {name: metrics[name] for name in ("dev", "test") if name in metrics}


def has_thresholds(metrics: Mapping[str, Any]) -> bool:
    """Whether THRESHOLDS lies beside the model: dev, if not of positives alone, has fitted them."""
    return "model" in metrics["dev"]["thresholds"]


def picked_by(config: Config, metrics: Mapping[str, Any]) -> str:
    """What `picked_in_words` says of a run."""
    chose_after = config.eval.choose_strength or "principal_axes" in metrics
    return picked_in_words(metrics["verdict_on"], len(metrics["evaluations"]), chose_after)


def shown_metrics(record: dict[str, Any]) -> dict[str, str]:
    """The headings of what is shown of a held-out set, by metric: those that many ask for, and the run's own."""
    names = headline(next(iter(record["final"].values())), record["question"]["metric"])
    f1 = "F1 at dev's threshold" if record["question"]["dev"] else "best F1"
    return {name: f1 if name == "f1" else TITLES.get(name, name) for name in names}


def _by_dim(record: dict[str, Any], columns: dict[str, str]) -> list[str]:
    """Lines of a card's table: a row a dim; `columns` are metrics with their headings."""
    headings, metric = " | ".join(f"{title} before | after" for title in columns.values()), record["question"]["metric"]
    rows = [f"| dim | {headings} | 95 % of the difference | verdict |", f"|---:|{'---:|---:|' * len(columns)}---:|---|"]
    for dim, after in record["final"].items():
        cells = [f"{values[key]:.4f}" for key in columns for values in (record["baseline"][dim], after)]
        ends = ends_in_words(record["intervals"]["difference"][dim][metric])
        rows.append(f"| {dim} | {' | '.join(cells)} | {ends} | {record['verdicts'][dim]} |")
    return [*rows, ""]


def judged_with_corpus(record: dict[str, Any], pairs: str) -> str:
    """What the shown figures are of where search was among a corpus: of the pairs too only where these have labels."""
    searched = corpus_in_words(record)
    by_labels = BY_LABELS in next(iter(record["final"].values()))
    return f"{pairs}, search figures of {searched}" if by_labels else searched


def ends_in_words(interval: list[float] | list[None]) -> str:
    """An interval in words, "none" where it is undefined: NaN, or null as JSON has it."""
    low, high = interval
    return "none" if low is None or math.isnan(low) else f"{low:+.3f} to {high:+.3f}"


def usage(model: Path, dim: int | str, sided: bool) -> str:
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


def fitted_in_words(record: dict[str, Any]) -> str:
    """The thresholds that dev was fitted with, at every dim, without a full stop."""
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
        f"{fitted_in_words(record)}, at {fitted['max_length']} tokens, with {prompts}; they are in `{THRESHOLDS}`. "
        "Embeddings cut to a dim are not of length 1: without `normalize_embeddings=True` a dot product is no cosine."
    )


def _sources_in_words(sources: Mapping[str, Mapping[str, Any]]) -> str:
    """How many rows of which files, without their folders."""
    return ", ".join(
        f"{counts['rows']:,} of {Path(source).name}"
        + (f" (weight {counts['weight']:g})" if counts["weight"] != 1 else "")
        for source, counts in sources.items()
    )


def fit_dims(record: dict[str, Any]) -> list[str]:
    """The dims at which the model surely lost nothing to what training began with: the paired interval of the metric
    does not reach below 0, and none of GUARDED is surely worse."""
    metric, differences = record["question"]["metric"], record["intervals"]["difference"]
    lost = {dim for _, dim in record.get("surely_worse", [])}
    return [dim for dim in record["final"] if dim not in lost and _not_below_0(differences[dim][metric])]


def smallest_fit_dim(record: dict[str, Any]) -> str:
    """The smallest of `fit_dims`, or the largest dim where there are none."""
    return min(fit_dims(record), key=int, default=max(record["final"], key=int))


def _not_below_0(ends: list[float] | list[None]) -> bool:
    return ends[0] is not None and ends[0] >= 0  # NaN is neither


@dataclass(frozen=True)
class CardFacts:
    """What a card says of a run beside its settings and its judgement."""

    sources: Mapping[str, Mapping[str, Any]]
    """Training file -> "rows" and "weight"."""
    date: str
    """When the model was made."""
    max_length: int
    """Tokens of a text."""
    licence: str
    """Of the base model, by its short name; "" where its folder states none."""
    sided: bool
    """Whether the two texts of a pair have prompts of their own."""
    steps: int
    planned_steps: int
    """More than `steps` where the run ended early."""


def licence_in(folder: Path) -> str:
    """The licence that the card of a model's folder states at its head; "" where it states none."""
    try:
        head = (folder / "README.md").read_text(encoding="utf-8", errors="replace").split("\n---")[0]
    except OSError:
        return ""
    found = re.search(r"^license:\s*[\"']?([\w.-]+)", head, re.MULTILINE) if head.startswith("---") else None
    return found[1] if found else ""


def model_card(config: Config, metrics: Mapping[str, Any], facts: CardFacts) -> str:
    """README.md of the exported model: what it is, how it did, how to use it. It quotes no training text.

    Args:
        metrics: what metrics.json holds.
    """
    pairs, record = list(judged_records(metrics).items())[-1]
    alerts, types = metrics.get("alerts_on_training_texts"), metrics.get("index_types")
    name, done = _base_name(config, record), "fine-tuned" if metrics["strength"] else "not changed by fine-tuning"
    parts = [
        _head(config, facts),
        [f"# {name}, {done} on labelled pairs"],
        [f"- {sentence}" for sentence in record["sentences"]],
        _training(config, metrics["strength"], facts),
        _judgement(config, record, pairs, metrics["verdict_on"]),
        [thresholds_in_words(record) if has_thresholds(metrics) else NO_THRESHOLDS],
        [alerts_in_words(alerts)] if alerts else [],
        _axes(metrics),
        _forgetting(metrics["dev"]["forgetting"]),
        ["## Fewer dims, fewer bytes", "", *types_in_markdown(types)] if types else [],
        _use(record, facts.sided),
        _limits(config, facts, picked_by(config, metrics)),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _base_name(config: Config, record: dict[str, Any]) -> str:
    """The name of the model at the beginning of the chain of runs."""
    original = record["original"]["question"]["baseline"] if "original" in record else config.model.name
    return Path(original).name


def _head(config: Config, facts: CardFacts) -> list[str]:
    """What a hub reads."""
    lines = ["library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    lines.append("tags: [sentence-similarity, matryoshka]")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", config.model.name) and not Path(config.model.name).exists():
        lines.append(f"base_model: {config.model.name}")
    return ["---", *lines, *([f"license: {facts.licence}"] if facts.licence else []), "---"]


def _training(config: Config, alpha: float, facts: CardFacts) -> list[str]:
    """How the model was made, of what, and what others may do with it."""
    how = f"LoRA (rank {config.lora.rank})" if config.lora.enabled else "full fine-tuning"
    dims = ", ".join(map(str, config.loss.dims))
    shown = {
        key: value
        for key, value in changed_settings(config).items()
        if not key.startswith(("data.", "output.", "log.", "checkpoint.", "model.name", "model.original"))
    }
    early = f" It ended early, after {facts.steps:,} of {facts.planned_steps:,} planned steps."
    settings = f" Settings beside the defaults: {', '.join(f'{key} = {each}' for key, each in shown.items())}."
    base = Path(config.model.name).name
    licence = f"{facts.licence}, as the folder of {base} says" if facts.licence else f"that of {base}"
    return [
        f"Trained by {how} with multiple-negatives ranking at the dims {dims}; strength of the update {alpha:.1f}"
        f"{'' if alpha else UNTOUCHED}. Training pairs: {_sources_in_words(facts.sources)}. Made on {facts.date} by "
        f"trainer {__version__}.{early if facts.steps < facts.planned_steps else ''}"
        f"{settings if shown else ''} Licence: {licence}; the training pairs may ask for more."
    ]


def _judgement(config: Config, record: dict[str, Any], pairs: str, on: str) -> list[str]:
    """The tables beside the model that training began with and beside the original, and the verdicts of both kinds.

    Args:
        pairs: the held-out set that the record is of.
        on: what the verdict goes by, as `judged_on` says it.
    """
    metric, titles = record["question"]["metric"], shown_metrics(record)
    columns = {name: title for name, title in titles.items() if name != "f1" or metric == "f1"}
    judged = f"{record['pairs']} held-out pairs ({pairs})"
    if on == "corpus":
        judged = judged_with_corpus(record, judged)
    lines = [f"Judged beside the model that training began with, by {metric} on {judged}:", ""]
    lines += [*_by_dim(record, columns), *_verdicts(record)]
    if "original" in record:
        name = _base_name(config, record)
        lines += ["", f"Beside the original, {name}, with its figures as those before:", ""]
        lines += [*_by_dim(record["original"], columns), *_verdicts(record["original"])]
    return lines


def _verdicts(record: dict[str, Any]) -> list[str]:
    """The verdicts by pairs and by search at each dim, whichever of them decides."""
    lines = []
    for kind, metric in (("pairs", "spearman"), ("search", GUARDED[1])):
        dims: dict[str, list[str]] = {}
        for dim, ends in record["intervals"]["difference"].items():
            if metric in ends and ends_in_words(ends[metric]) != "none":
                dims.setdefault(paired_verdict(*ends[metric]), []).append(dim)
        if dims:
            said = "; ".join(f"{verdict} at {', '.join(at)} dims" for verdict, at in dims.items())
            lines.append(f"- By {kind} ({TITLES.get(metric, metric)}): {said}.")
    return lines


def _axes(metrics: Mapping[str, Any]) -> list[str]:
    """What the Dense module is for, where the embeddings were turned."""
    axes = metrics.get("principal_axes")
    if not axes or not axes["turned"]:
        return []
    others = f" ({axes['forgetting_share']:.0%} by texts of the forgetting set)" if axes["forgetting_share"] else ""
    return [
        f"Its Dense module turns embeddings onto the principal axes of {axes['texts']:,} training texts{others}, so "
        "that the first dims hold the most: whoever pools the hidden states without it gets the same cosines at the "
        "full width, and others at fewer dims."
    ]


def _forgetting(forgetting: Mapping[str, Any] | None) -> list[str]:
    """What training cost elsewhere."""
    said = [
        f"{values['before']:.4f} -> {values['after']:.4f} at {dim} dims (95 % of the difference "
        f"{ends_in_words(values['difference'])})"
        for dim, entry in (forgetting or {}).items()
        for values in [entry["spearman"]]
    ]
    return [f"General similarity, Spearman before -> after: {'; '.join(said)}."] if said else []


def _use(record: dict[str, Any], sided: bool) -> list[str]:
    """How to load the model, at the smallest dim that lost nothing."""
    dim = smallest_fit_dim(record)
    dims = sorted(map(int, record["final"]), reverse=True)
    reason = "the smallest at which it surely lost nothing to the model that training began with"
    if not fit_dims(record):
        reason = "the largest, since at none it is sure that nothing was lost"
    others = f"; `truncate_dim` may be any of {', '.join(map(str, dims))}"
    return [
        f"At {dim} dims, {reason}{others}:",
        "",
        "```python",
        usage(Path("path/to/model"), int(dim), sided),
        "```",
    ]


def _limits(config: Config, facts: CardFacts, picked: str) -> list[str]:
    """What a reader must not take the figures for; `picked` is what `picked_by` says."""
    return [
        "## Limits",
        "",
        f"- Texts are cut at {facts.max_length} tokens.",
        f"- Cut to less than {min(config.loss.dims)} dims it was neither trained nor judged.",
        *([f"- {picked}."] if picked else []),
        "- Of other languages, teams or kinds of text than the pairs above these figures say nothing.",
        "- A cosine is no probability. A threshold is for its dim, and for a like share of positives.",
    ]
