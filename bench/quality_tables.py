"""Tables of what training gains and costs, from the records of bench/quality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import mean, stdev
from typing import Any

from bench.markdown import change, table

PAIR_METRICS = {"spearman": "Spearman", "roc_auc": "ROC-AUC"}
STS = "sts_spearman"


def real_run(record: dict[str, Any]) -> list[str]:
    """Dev and STS figures of a `real_run.py` record, which has both, a row a dim."""
    headings = ["dim", "dev Spearman", "dev ROC-AUC", "dev best F1", "STS-b dev Spearman"]
    dev, sts = record["dev"], record["sts"]
    rows = []
    for dim, after in dev["final"].items():
        before = dev["baseline"][dim]
        cells = [change(before[key], after[key]) for key in ("spearman", "roc_auc", "f1")]
        rows.append([dim, *cells, change(*(sts[key][dim]["spearman"] for key in ("baseline", "final")))])
    chosen = f"{' / '.join(dict.fromkeys(dev['verdict']))} on dev, with strength {_strengths(record)}, which dev chose"
    took = f"{record['steps']} steps in {record['training_seconds']:.0f} s"
    return table(headings, rows, record, f"{_means(record)}{chosen}; {took}", left=0)


def _means(record: dict[str, Any]) -> str:
    """That the figures of a `real_run.py` record are means, and how far those after training spread at most."""
    seeds, dev = len(record["seeds"]), record["dev"]
    if seeds == 1:
        return ""
    spreads = [of["spearman"] for of in dev["spread"].values()]
    return f"means over {seeds} seeds, whose dev Spearman has a standard deviation of at most {max(spreads):.4f}; "


def _strengths(record: dict[str, Any]) -> str:
    """What share of the update the runs of a `real_run.py` record took."""
    lowest, highest = min(record["dev"]["strength"]), max(record["dev"]["strength"])
    return f"{lowest:.1f}" if lowest == highest else f"{lowest:.1f} to {highest:.1f}"


def reference_in_short(*records: dict[str, Any]) -> list[str]:
    """As `reference_model`, of Spearman alone, with sure gains in bold in place of their intervals."""
    return reference_model(*records, metrics={"spearman": "Spearman"}, intervals=False)


def reference_model(
    *records: dict[str, Any], metrics: Mapping[str, str] = PAIR_METRICS, intervals: bool = True
) -> list[str]:
    """Kept-back pairs before and after several `real_run.py` runs of one model, a row a run, file and metric.

    Args:
        metrics: name -> title of those that are shown.
        intervals: whether each gain's stands beside it; else it is in bold where it is surely above 0.
    """
    dims = list(records[0]["dev"]["final"])
    rows, told = [], []
    for record in records:
        config = record["config"]
        way = "LoRA" if config["lora"]["enabled"] else "all weights"
        name = f"{way}, {config['optim']['lr']:.0e}"
        for pairs, test in record["tests"].items():
            for metric, title in metrics.items():
                cells = []
                for dim in dims:
                    low, high = test["gain"][dim][metric]
                    before, after = (test[when][dim][metric] for when in ("before", "after"))
                    if intervals:
                        cells.append(f"{before:.4f} → {after:.4f} ({low:+.4f}, {high:+.4f})")
                    else:
                        mark = "**" if low > 0 else ""
                        cells.append(f"{before:.3f} → {mark}{after:.3f}{mark}")
                rows.append([name, f"{pairs} ({test['pairs']})", title, *cells])
        cut = "" if record["steps"] == record["planned_steps"] else f" of {record['planned_steps']}"
        threads = f"{record['threads']} thread{'s' if record['threads'] > 1 else ''}"
        seconds = record["training_seconds"]
        took = (
            f"{seconds / 60:.0f} minutes of {threads}" if record["trained_on"] == "cpu" else f"{seconds:.0f} s of a GPU"
        )
        seeds = len(record["seeds"])
        told.append(
            f"{name}: {record['steps']}{cut} steps of {config['train']['batch_size']} pairs in "
            f"{took}, max length {record['max_length']}, strength {_strengths(record)}, "
            + (f"mean of {seeds} seeds" if seeds > 1 else "one seed")
        )
    marks = (
        "in brackets the 95 % interval of the gain, paired" if intervals else "in bold: surely better (95 %, paired)"
    )
    said = f"{marks}; {'; '.join(told)}"
    return table(
        ["trained, peak rate", "kept-back pairs", "", *(f"{dim} dims" for dim in dims)], rows, records[0], said, left=3
    )


def peers(record: dict[str, Any]) -> list[str]:
    """Dev figures of each kind of training at its best rate, a row a kind, of a `side_by_side.py` record."""
    names = {
        "untouched": "untouched model",
        "mnrl": "MNRL with hard negatives",
        "cached_gist": "CachedGIST, temperature 0.05",
        "cached_gist_sharp": "CachedGIST, temperature 0.01",
        "online_contrastive": "OnlineContrastive",
        "cosent": "CoSENT",
        "ours": "this trainer",
    }
    by_kind, settings = record["finalists"], record["settings"]
    dims, rows = list(map(str, settings["dims"])), []
    for kind, name in ((kind, name) for kind, name in names.items() if kind in by_kind):
        of_kind = by_kind[kind]
        gains = of_kind.get("ours_less_it")
        cells = []
        for dim in dims:
            shown = " ± ".join(f"{value:.4f}" for value in of_kind["dev"][dim]["spearman"])
            ends = "" if gains is None else " ({:+.4f}, {:+.4f})".format(*gains[dim]["spearman"])
            cells.append(shown + ends)
        rate = "" if of_kind["rate"] is None else f"{of_kind['rate']:.0e}"
        last = of_kind["dev"][dims[0]]["roc_auc"][0], of_kind["search"][dims[0]]["mrr@10"][0]
        rows.append([name, rate, *cells, *(f"{value:.4f}" for value in last)])
    counts = [len(of_kind["seeds"]) for kind, of_kind in by_kind.items() if kind != "untouched"]
    seeds, one = max(counts), " (one where none is shown)" if min(counts) == 1 < max(counts) else ""
    epochs = f"{settings['epochs']} epoch{'s' if settings['epochs'] > 1 else ''}"
    limit = f"{settings['limit']:,} training pairs, " if settings["limit"] else ""
    said = (
        f"held-out Spearman, mean ± standard deviation over {seeds} seeds{one}, in "
        f"brackets the 95 % interval of ours less it; best of {len(settings['rates'])} rates, "
        f"{limit}{epochs}, batch {settings['batch_size']}, max length {settings['max_length']}, "
        f"{settings['precision']}; {settings['model']}; MarginMSE is left out: it {record['left_out']['margin_mse']}"
    )
    if record["equality"]:
        most = max(record["equality"].values())
        said += f"; the peer computes no padding, which changes its losses by a share of at most {most:.0e}"
    headings = ["trained by", "rate", *(f"{dim} dims" for dim in dims), f"ROC-AUC at {dims[0]}", f"MRR@10 at {dims[0]}"]
    return table(headings, rows, record, said)


BUGS = {"roc_auc": "ROC-AUC", "spearman": "Spearman", "success@10": "success@10", "map@100": "MAP@100"}
KINDS = {"untouched": "nothing", "links": "links", "titles": "titles and bodies", "both": "both"}
DIFFERENCES = {"untouched": "untouched", "bm25+untouched": "BM25 and untouched", "links": "links"}


def bugs(record: dict[str, Any]) -> list[str]:
    """Pairs and search of duplicate reports, a row a kind of training and dim."""
    kinds, facts, settings = record["kinds"], record["facts"], record["settings"]
    dims = list(kinds["untouched"]["figures"])
    rows: list[list[object]] = []
    for kind, of_kind in kinds.items():
        for dim in dims:
            at, ends = of_kind["figures"][dim], of_kind.get("gains", {}).get("untouched", {}).get(dim)
            cells = [f"{at[name]:.3f}" if ends is None else _with_interval(at[name], ends[name]) for name in BUGS]
            general = f"{at[STS]:.4f}" if STS in at else ""
            rows.append([KINDS[kind], dim, *cells, f"{at['bm25+success@10']:.3f}", general])
    seeds = {KINDS[kind]: of_kind["seeds"] for kind, of_kind in kinds.items() if "seeds" in of_kind}
    spreads = [
        f"{kind}, seeds {', '.join(of_seeds)}: "
        + " / ".join(f"{at[dims[0]]['roc_auc']:.4f}" for at in of_seeds.values())
        for kind, of_seeds in seeds.items()
    ]
    said = (
        f"{settings['model']}, {settings['max_length']} tokens a text; {facts['pairs']} dev pairs, "
        f"{facts['queries']} queries of {facts['clusters']} clusters among {facts['texts']:,} reports; in brackets the "
        f"95 % interval of the gain, paired, {settings['resamples']:,} resamples; means over seeds, whose ROC-AUC "
        f"at {dims[0]} dims is {'; '.join(spreads)}; BM25 alone has a success@10 of "
        f"{record['bm25']['success@10']:.3f}"
    )
    headings = ["trained on", "dims", *BUGS.values(), "success@10 with BM25", "STS-b Spearman"]
    return table(headings, rows, record, said)


def bugs_gains(record: dict[str, Any]) -> list[str]:
    """What each kind of training gains over others in `bugs`: 95 % intervals, a row a comparison and dim."""
    rows = [
        [f"{KINDS[kind]} less {DIFFERENCES[other]}", dim, *(_ends(ends[name]) if name in ends else "" for name in BUGS)]
        for kind, of_kind in record["kinds"].items()
        for other, by_dim in of_kind.get("gains", {}).items()
        if other != "untouched"
        for dim, ends in by_dim.items()
    ]
    return table(["gain of", "dims", *BUGS.values()], rows, record, "95 % intervals, paired, of means over the seeds")


def index_types(record: dict[str, Any]) -> list[str]:
    """Embeddings of an index by dims and type, a row each."""
    settings, facts = record["settings"], record["facts"]
    said = (
        f"{settings['model']}, {settings['max_length']} tokens a text; {facts['queries']} queries among "
        f"{facts['texts']:,} reports"
    )
    rows = [
        [row["dims"], row["type"], f"{row['bytes']:,}", f"{row['success@10']:.4f}", f"{row['recall@10']:.4f}"]
        for row in record["rows"]
    ]
    return table(["dims", "type", "bytes a ticket", "success@10", "recall@10"], rows, record, said, left=0)


def axes(record: dict[str, Any]) -> list[str]:
    """Models as they were trained and turned onto principal axes, a row a dim: figures before and after."""
    settings, figures = record["settings"], record["figures"]
    names = {"roc_auc": "ROC-AUC", "success@10": "success@10", "sts_spearman": "STS-b Spearman"}

    def cell(turn: str, dim: str, name: str) -> str:
        of = figures[turn][dim].get(name)
        return (
            "" if of is None else f"{of['mean']:.3f}" + (f" ± {of['spread']:.3f}" if of["spread"] is not None else "")
        )

    turns = {"none": "as trained", "0": "turned"}
    turns |= {share: f"turned, {float(share):.0%} general" for share in figures if share not in turns}
    rows = [
        [turns[turn], dim, *(cell(turn, dim, name) for name in names)]
        for turn, by_dim in figures.items()
        for dim in by_dim
    ]
    said = (
        f"mean ± standard deviation over {settings['models']} models, one a seed; axes of {settings['texts']:,} texts; "
        f"{settings['max_length']} tokens a text"
    )
    return table(["embeddings", "dims", *names.values()], rows, record, said)


def _with_interval(value: float, ends: list[float]) -> str:
    return f"{value:.3f} {_ends(ends)}"


def _ends(ends: list[float]) -> str:
    return f"({ends[0]:+.3f}, {ends[1]:+.3f})"


def screen(record: dict[str, Any]) -> list[str]:
    """Cells of a `screen.py` record, a row a cell and data: differences from the untouched model and the plain cell."""
    runs = {(run["data"], run["cell"], run["seed"]): run["trained"] for run in record["runs"]}
    figures, rows = _screened_figures(record), []
    for data, untouched in record["untouched"].items():
        for cell in record["cells"]:
            seeds = sorted(seed for of_data, of_cell, seed in runs if (of_data, of_cell) == (data, cell))
            if not seeds:  # not run yet, or failed
                continue
            cells = []
            for dim, metric in figures:
                at = {seed: runs[data, cell, seed][dim].get(metric) for seed in seeds}
                plain = {seed: runs.get((data, record["plain"], seed)) for seed in seeds}
                if None in at.values():
                    cells.append("")
                    continue
                shown = _mean_and_spread(value - untouched[dim][metric] for value in at.values())
                paired = [at[seed] - other[dim][metric] for seed, other in plain.items() if other is not None]
                cells.append(f"{shown} ({_mean_and_spread(paired)})" if paired and cell != record["plain"] else shown)
            rows.append([data, cell, len(seeds), *cells])
    titles = {"spearman": "Spearman", "roc_auc": "ROC-AUC", "sts_spearman": "STS-b Spearman"}
    settings = record["settings"]
    said = (
        f"difference from the untouched model, in brackets from the cell {record['plain']}, seed by seed; means and "
        f"standard deviations over the seeds; {settings['model']}, {settings['config']}"
    )
    said += f" with {', '.join(settings['set'])}" if settings["set"] else ""
    said += f", max length {settings['max_length']}"
    for name, of in (("limit", "training"), ("dev_rows", "dev")):
        said += f", a sample of {settings[name]:,} {of} pairs" if settings[name] else ""
    headings = ["data", "cell", "seeds", *(f"{titles.get(metric, metric)} at {dim}" for dim, metric in figures)]
    return table(headings, rows, record, said, left=2)


def false_negatives(record: dict[str, Any]) -> list[str]:
    """Dev figures of each arm of a `false_negatives.py` record, a row an arm."""
    arms, settings = record["arms"], record["settings"]
    told = {
        "clean plain": "every link is there",
        "apart plain": "links withheld, their rows never meet",
        "met plain": "links withheld, their rows always meet",
        "met guided": "the same, likely false negatives masked",
        "clean guided": "every link is there, likely false negatives masked",
    }
    dims = list(next(iter(next(iter(arms.values())).values()))["dev"])
    shown = [(dim, metric) for metric in PAIR_METRICS for dim in (dims[0], dims[-1])]
    rows = []
    for arm, by_seed in arms.items():
        runs = list(by_seed.values())
        masked = f"{mean(run['masked_a_query'] for run in runs):.2f}"
        figures = (_mean_and_spread((run["dev"][dim][metric] for run in runs), sign="") for dim, metric in shown)
        rows.append([told[arm], masked, *figures])
    seeds, passes = max(map(len, arms.values())), settings["epochs"]
    withheld = max(run["links_withheld"] for by_seed in arms.values() for run in by_seed.values())
    said = (
        f"{withheld} links withheld; {seeds} seed{'s' * (seeds > 1)}; {passes} pass{'es' * (passes > 1)}, batch "
        f"{settings['batch_size']}, max length {settings['max_length']}, peak rate {settings['lr']:.0e}, ranking term "
        f"{settings['pair_weight']:g}; masked with guide_margin {settings['margin']:g}"
    )
    headings = ["training pairs", "masked a query", *(f"{PAIR_METRICS[metric]} at {dim}" for dim, metric in shown)]
    return table(headings, rows, record, said)


def _screened_figures(record: dict[str, Any]) -> list[tuple[str, str]]:
    """(dim, metric) of each column: every metric that some data has, at the largest and the smallest dim."""
    by_data = list(record["untouched"].values())
    dims = sorted(by_data[0], key=int)
    metrics = {metric: None for of_data in by_data for metric in of_data[dims[0]]}
    return [(dim, metric) for metric in metrics for dim in dict.fromkeys((dims[-1], dims[0]))]


def _mean_and_spread(values: Iterable[float], sign: str = "+") -> str:
    """Mean of figures and, of several, their standard deviation; with the mean's sign, as of differences."""
    several = list(values)
    spread = f" ± {stdev(several):.4f}" if len(several) > 1 else ""
    return f"{mean(several):{sign}.4f}{spread}"
