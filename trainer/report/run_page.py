"""report.html: what a finished run shows a person, in one file that needs no network.

Everything comes from the files of the run's folder, so a report can be made again at any time. Texts are masked.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.evaluation.alerts import alerts_in_words
from trainer.evaluation.diagnostic import insufficient
from trainer.evaluation.metric_choice import (
    NO_NEGATIVES,
    TITLES,
    corpus_in_words,
    headline,
    on_in_words,
    picked_in_words,
)
from trainer.evaluation.prevalence import percent
from trainer.evaluation.verdict import Verdict, no_intervals
from trainer.report import plots
from trainer.report.record import Record, known_files, read_run
from trainer.report.templates import Lead, Picture, Section, Table, page
from trainer.system.console import clock_time
from trainer.system.files import write_file
from trainer.system.run_files import LINT, REPORT
from trainer.text.masking import mask_text

NO_LABELS = "there are no others, for the held-out pairs have no negatives"
STYLES = {Verdict.BETTER.value: "better", Verdict.NOT_BETTER.value: "not"}


def write_report(folder: Path, metrics: dict[str, Any] | None = None) -> Path:
    """Write the report of a finished run into its folder.

    Args:
        metrics: what metrics.json is going to hold, of a run that lacks this file alone.

    Raises:
        InputError: matplotlib is missing, or the folder holds no finished run.
        StorageError: the file system refused.
    """
    plots.require_matplotlib()
    path = folder / REPORT
    run = read_run(folder, metrics)
    with known_files(str(folder)):
        written = render_run(run).encode()  # half a surrogate pair is no text
    write_file(path, written)
    return path


def render_run(run: Record) -> str:
    """The page of one run."""
    metrics, judged, name = run.metrics, run.judged, run.folder.resolve().name
    lead, of_corpus = _lead(run), _corpus_note(run)
    by_dim = of_corpus if run.judged_on == "corpus" else [] if run.by_labels else [f"These pairs are {NO_NEGATIVES}."]
    notes = of_corpus + no_intervals(judged["undefined"], list(next(iter(judged["final"].values()))))
    diagnostic = "Adversarial diagnostic: positives across categories against negatives within one"
    silent = insufficient(judged["diagnostic"], judged["question"]["fewest"])
    pictures, worst = _pictures(run), run.scores["worst"]
    shown = f"{len(worst)} pairs most wrong" if run.by_labels else f"{len(worst)} positive pairs least alike"
    labelling = f"trainer label --pairs {shlex.quote(name)} --choose wrong --output labels.json"
    labelling = f"To have people label them, from the folder above the run's: {labelling}"
    sections = [
        Section("By dim", _main_table(judged, run.in_sample), by_dim),
        *_original_section(judged.get("original"), run.in_sample),
        Section(pictures=pictures),
        *([_search_section(run.search)] if run.search else []),
        Section(
            f"All figures on {_all_judged(run)}: before → after, 95 % of the difference", _all_table(judged), notes
        ),
        Section(diagnostic, notes=[silent]) if silent else Section(diagnostic, _diagnostic_table(judged)),
        Section(f"The {shown} at the largest dim, masked (no guarantee)", _worst_table(worst), [labelling]),
        _lint_section(run.lint),
        Section("Data and environment", _environment_table(run)),
    ]
    return page(f"{name}: {metrics['verdict']}", name, lead, sections)


def _lead(run: Record) -> Lead:
    """The run's own sentences, its verdict first (an older version has that alone), and how it was made."""
    metrics, judged = run.metrics, run.judged
    metric = judged["question"]["metric"]
    strong, *others = metrics.get("sentences") or [metrics["verdict"]]
    on = f"{judged['pairs']:d} {run.pairs} pairs"
    if run.search and run.judged_on == "corpus":
        on = corpus_in_words(run.search)
    how = [f"Judged beside the model that training began with, by {metric} on {on}."]
    how += [f"Strength of the update {metrics['strength']:.1f}, best after step {metrics['best_step'] - 1}."]
    if picked := picked_in_words(run.judged_on, len(metrics["evaluations"]), run.chose_after):
        how.append(f"{picked}.")
    if run.strength and run.strength.get("why"):
        how.append(run.strength["why"])
    return Lead(STYLES.get(metrics["verdict"], ""), strong, " ".join(others), [" ".join(how)])


def _corpus_note(run: Record) -> list[str]:
    """What the search figures are of, where that is not the judged pairs."""
    if not run.search:
        return []
    others = f"the others are of the {run.judged['pairs']:d} {run.pairs} pairs" if run.by_labels else NO_LABELS
    return [f"Search figures are of {corpus_in_words(run.search)}; {others}."]


def _all_judged(run: Record) -> str:
    if not run.search:
        return run.pairs
    return f"{run.pairs} and, of search, on the corpus" if run.by_labels else "the corpus"


def _pictures(run: Record) -> list[Picture]:
    scores, judged = run.scores, run.judged
    metric = judged["question"]["metric"]
    drawn = [
        (
            plots.draw_dims({"after": judged}, metric),
            f"{metric} on {on_in_words(run.judged_on)} against the dim, with 95 % intervals",
        ),
        (plots.draw_loss(run.steps, run.plan["phases"]), "Loss and learning rate by step, phases as bands"),
    ]
    if run.by_labels:
        labels, before, after = scores["labels"], scores["baseline"], scores["final"]
        frozen = scores["thresholds"]["final"]
        fitted = f"fitted where {percent(judged['thresholds']['model']['positive_share'])} are positive"
        histograms = plots.draw_histograms(labels, before, after, frozen)
        threshold = plots.draw_threshold(labels, after, frozen)
        drawn += [
            (histograms, f"Cosines of positive and negative pairs; the threshold was {fitted}"),
            (plots.draw_roc(labels, before, after), "ROC curves, before and after"),
            (threshold, f"Where the frozen threshold, {fitted}, stands on these pairs"),
        ]
    if run.strength:
        grey = ", on grey what was ruled out" if run.strength.get("ruled_out") else ""
        chosen = f"Metric by strength of the update; the line is what was chosen{grey}"
        drawn.append((plots.draw_strength(run.strength), chosen))
    return [Picture(*each) for each in drawn]


def _original_section(judged: Mapping[str, Any] | None, in_sample: bool) -> list[Section]:
    if judged is None:
        return []
    name = Path(judged["question"]["baseline"]).name
    return [Section(f"By dim, beside the original, {name}: {judged['verdict']}", _main_table(judged, in_sample))]


def _main_table(judged: Mapping[str, Any], in_sample: bool) -> Table:
    metric = judged["question"]["metric"]
    names = headline(next(iter(judged["final"].values())), metric)
    titles = {name: TITLES.get(name, name) + " (in-sample)" * (name == "f1" and in_sample) for name in names}
    rows = []
    for dim in judged["final"]:
        changes = [change(judged, dim, name) for name in titles]
        rows.append([dim, judged["verdicts"][dim], *changes, _interval(judged["intervals"]["difference"][dim][metric])])
    headings = ["dims", "verdict", *titles.values(), f"{TITLES.get(metric, metric)} difference, 95 %"]
    return Table(headings, rows, numbers=range(len(headings)))


def _search_section(search: Mapping[str, Any]) -> Section:
    """What every system found in the run's corpus."""
    names = {"bm25": "BM25", "baseline": "before", "final": "after"}
    names |= {"bm25+baseline": "BM25 and before", "bm25+final": "BM25 and after"}
    shown, rows = ("success@5", "success@10", "map@100"), []
    for system in (name for name in names if name in search):
        for dim, values in search[system].items():
            ends = search["intervals"][system][dim]
            cells = [f"{_number(values[name])} {_interval(ends[name], '')}" for name in shown]
            rows.append([names[system], dim, *cells])
    title = f"Search among {search['texts']:,} texts of {Path(search['source']).name}, {search['queries']:,} queries"
    return Section(title, Table(["searched by", "dims", *shown], rows, numbers=range(1, 5)))


def _all_table(judged: Mapping[str, Any]) -> Table:
    names = list(next(iter(judged["final"].values())))
    ends = judged["intervals"]["difference"]
    rows = [
        [name, *(f"{change(judged, dim, name)}\n{_interval(ends[dim].get(name))}" for dim in judged["final"])]
        for name in names
    ]
    headings = ["metric", *(f"{dim} dims" for dim in judged["final"])]
    return Table(headings, rows, numbers=range(1, len(headings)))


def _diagnostic_table(judged: Mapping[str, Any]) -> Table:
    rows = []
    for dim, entry in judged["diagnostic"].items():
        values = [_number(entry[system][name]) for system in ("baseline", "model") for name in ("roc_auc", "f1")]
        rows.append([dim, entry["status"], f"{entry['positives']} / {entry['negatives']}", *values])
    headings = ["dims", "status", "positives / negatives", "ROC-AUC before", "F1 before", "ROC-AUC after", "F1 after"]
    return Table(headings, rows, numbers=(0, 2, 3, 4, 5, 6))


def _worst_table(worst: Sequence[Mapping[str, Any]]) -> Table:
    several = len({pair.get("file") for pair in worst}) > 1
    # Masked when they were written, and once more: the file may have been made otherwise.
    rows = [
        [
            f"{pair['row']} of {Path(pair['file']).name}" if several else str(pair["row"]),
            "positive" if pair["label"] else "negative",
            f"{pair['baseline']:.3f} → {pair['final']:.3f}",
            *map(mask_text, pair["texts"]),
        ]
        for pair in worst
    ]
    return Table(["row", "label", "cosine", "text 1", "text 2"], rows, numbers=(0, 2), texts=(3, 4))


def _lint_section(record: Mapping[str, Any] | None) -> Section:
    """What lint.json holds; a run without a data check has none."""
    if record is None:
        return Section("Lint", notes=[f"No {LINT} in the run folder."])
    rows = []
    for finding in record["findings"]:
        examples = ("rows " + ", ".join(map(str, finding["rows"]))) if finding["rows"] else ""
        file = Path(finding["source"]).name
        rows.append([finding["severity"], file, finding["name"], finding["message"], examples, finding["fix"]])
    headings = ["severity", "file", "finding", "numbers", "examples", "fix"]
    notes = [f"Note: {note}" for note in record["notes"]]
    return Section(
        "Lint", Table(headings, rows, texts=(3, 5)) if rows else None, notes if rows else ["Nothing found.", *notes]
    )


def _environment_table(run: Record) -> Table:
    judged, metadata, config = run.judged, run.metadata, run.config
    rates = run.plan["learning_rates"]
    forgotten = run.metrics["dev"]["forgetting"]
    planned = f" of {len(rates)}" if metadata["steps"] < len(rates) else ""
    data = {f"data.{key}": config["data"][key] for key in ("train", "dev", "test", "corpus") if config["data"].get(key)}
    shown = {name: f"{one['rows']} rows, weight {one['weight']:g}" for name, one in metadata.get("sources", {}).items()}
    rows = {
        "base model": config["model"]["name"],
        **data,
        **({"data.sources": shown} if config["data"].get("sources") else {}),
        "rows": metadata["rows"],
        "texts shared between the parts": metadata["overlapping_texts"],
        **_drawn(run),
        **({"highest Spearman reachable": _number(judged["spearman_ceiling"])} if run.by_labels else {}),
        "thresholds": judged["thresholds_from"]["model"] if run.by_labels else "none: these pairs have no negatives",
        **({"alerts": said} if (said := alerts_in_words(run.metrics.get("alerts_on_training_texts"))) else {}),
        **({"general similarity, Spearman": _changes(forgotten)} if forgotten else {}),
        **({"strengths ruled out": _spans(run.strength)} if run.strength and run.strength.get("ruled_out") else {}),
        "trained values": f"{metadata['trained_count']:,} of {metadata['model']['parameters']:,}",
        "learning rate": f"up to {max(rates):.2g}, {rates[-1]:.2g} at the end",
        "epochs": ", ".join(f"{phase['epochs']} of phase {phase['name']}" for phase in run.plan["phases"]),
        "batch size": f"{config['train']['batch_size']} pairs a process",
        "processes": metadata["processes"],
        "steps": f"{metadata['steps']}{planned} in {clock_time(metadata['seconds'])}",
        **({"date": metadata["date"]} if "date" in metadata else {}),
        "precision": metadata["precision"],
        "device": f"{metadata['device']}, {metadata['encoder_path']}",
        "versions": metadata["versions"],
        "fingerprints": {name: value[:16] for name, value in metadata["fingerprints"].items()},
    }
    return Table(["what", "value"], [[name, _words(value)] for name, value in rows.items()], texts=(1,))


def _drawn(run: Record) -> dict[str, str]:
    """What was judged, and the groups of it that the intervals were drawn from."""
    judged, search = run.judged, run.search
    groups = f"{judged['groups']['count']} {judged['groups']['kind']}"
    queries = f"{judged['queries']} among {judged['texts']} texts"
    if search is None:
        return {"judged pairs, drawn as": f"{judged['pairs']}; {groups}", "queries": queries}
    pairs = {"judged pairs, drawn as": f"{judged['pairs']}; {groups}"} if run.by_labels else {}
    drawn = search.get("groups", {"count": search["queries"], "kind": "queries"})
    queries = f"{corpus_in_words(search)}; {drawn['count']} {drawn['kind']}"
    return pairs | {"queries of the corpus, drawn as": queries}


def _spans(strength: Mapping[str, Any]) -> str:
    """The strengths that were ruled out, by reason."""
    reasons: dict[str, list[str]] = {}
    for alpha, reason in strength["ruled_out"].items():
        reasons.setdefault(reason, []).append(alpha)
    return "; ".join(f"{', '.join(alphas)}: {reason}" for reason, alphas in reasons.items())


def _changes(forgotten: Mapping[str, Any]) -> dict[str, str]:
    """Spearman on the forgetting set, before and after, by dim."""
    values = {dim: metrics["spearman"] for dim, metrics in forgotten.items()}
    return {f"{dim} dims:": f"{_number(x['before'])} → {_number(x['after'])}" for dim, x in values.items()}


def _words(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def change(judged: Mapping[str, Any], dim: str, name: str) -> str:
    """A metric at a dim before and after training: "0.8123 → 0.8391"."""
    return f"{_number(judged['baseline'][dim][name])} → {_number(judged['final'][dim][name])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(ends: Sequence[float | None] | None, sign: str = "+") -> str:
    return "" if ends is None or None in ends else f"({ends[0]:{sign}.3f}, {ends[1]:{sign}.3f})"
