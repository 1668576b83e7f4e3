"""Do duplicates of bug reports come up? By words, by an encoder before and after training, and by both together.

An encoder is trained once a seed, in one pass over DATA/pairs_train.json, and judged twice beside what it began as: on
the pairs of DATA/pairs_dev.json, and by search among all reports of DATA/tickets.csv. Dev picks nothing: nothing is
evaluated before the end, and all of the update is taken. The reports that search are those of groups that no training
pair is from. A figure of the trained encoder is its mean over the seeds, and the interval is that of this mean: values
are averaged query by query, and for pairs resample by resample. Writes bench/results/NAME.json.

    python -m bench.quality.search --model DIR --data DIR
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.quality.judging import PAIR_METRICS, resampled
from bench.records import RESULTS, ROOT, environment, save_record
from trainer.config_file import load_config
from trainer.data.pairs import PairTable, read_pairs
from trainer.data.search_corpus import SearchCorpus
from trainer.data.ticket_corpus import corpus_of_tickets
from trainer.data.ticket_table import Columns
from trainer.evaluation.assessment import CHANGE, assess_search
from trainer.evaluation.bootstrap import RESAMPLES, interval
from trainer.evaluation.scoring import pair_cosines
from trainer.evaluation.search import search
from trainer.evaluation.search_set import SearchSet, task_of, words_of
from trainer.evaluation.verdict import decide
from trainer.model.embedding import embed_cached, tokenize_sides
from trainer.model.encoder import Encoder
from trainer.model.loading import load_encoder
from trainer.system.console import console
from trainer.training.loop import train

DIMS = (64, 384)
QUERIES = "pairs_part=dev"
CONFIG = ROOT / "configs" / "itsm_minilm.toml"
SETTINGS = {
    "model.max_length": 64,
    "curriculum.epochs": 1,
    "optim.lr": 1e-4,
    "eval.every": 0,
    "eval.choose_strength": "false",
}

ByDim = dict[str, dict[str, Any]]


def train_once(options: argparse.Namespace, seed: int, folder: Path) -> Path:
    """Train with a seed, unless the folder holds such a run. Returns the folder of the model."""
    if not (folder / "metrics.json").exists():
        paths = {"model.name": options.model, "output.dir": folder}
        paths |= {f"data.{part}": options.data / f"pairs_{part}.json" for part in ("train", "dev")}
        settings = {key: json.dumps(str(path)) for key, path in paths.items()} | SETTINGS | {"train.seed": seed}
        train(load_config(CONFIG, [f"{key}={value}" for key, value in settings.items()]), CONFIG.stem)
    return folder / "model"


def by_pairs(encoders: Mapping[str, Encoder], table: PairTable) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By encoder: values [pair metrics, M] on the pairs, and in resamples of groups of texts [pair metrics, M, B]."""
    cosines = []
    for name, encoder in encoders.items():
        rows = embed_cached(encoder, tokenize_sides(encoder, table.texts), description=f"Embedding pairs ({name})")
        cosines.append(pair_cosines(rows, table, DIMS))
    whole, samples = resampled(np.stack(cosines), table)
    return {name: (whole[:, i], samples[:, i]) for i, name in enumerate(encoders)}


def by_search(encoders: Mapping[str, Encoder], corpus: SearchCorpus) -> dict[str, dict[str, np.ndarray]]:
    """Values of every query [M, Q] by search metric: of BM25, of each encoder, and of both ("bm25+NAME")."""
    words = words_of(corpus)
    values = {"bm25": search(words, task_of(corpus), "Search by BM25")}
    for name, encoder in encoders.items():
        searched = SearchSet.build(corpus, encoder)
        rows = embed_cached(encoder, searched.tokens, description=f"Embedding reports ({name})")
        found = searched.search("model", rows, DIMS, words)
        values |= {name: found["model"], f"bm25+{name}": found["bm25+model"]}
    return values


def judge(encoders: Mapping[str, Encoder], data: Path) -> dict[str, Any]:
    """Figures and intervals by system and dim. Encoders are "baseline" and the trained ones, by their seeds."""
    table, corpus = read_pairs(data / "pairs_dev.json"), corpus_of_reports(data)
    seeds = [name for name in encoders if name != "baseline"]
    pairs, searched = by_pairs(encoders, table), by_search(encoders, corpus)
    pairs["model"] = _mean([pairs[seed][0] for seed in seeds]), _mean([pairs[seed][1] for seed in seeds])
    base, model = pairs["baseline"], pairs["model"]
    pairs["model less baseline"] = model[0] - base[0], model[1] - base[1]
    systems = {name: searched[name] for name in ("bm25", "baseline", "bm25+baseline")}
    for prefix in ("", "bm25+"):
        trained = [searched[f"{prefix}{seed}"] for seed in seeds]
        systems[f"{prefix}model"] = {metric: _mean([each[metric] for each in trained]) for metric in trained[0]}
    found = assess_search(systems, corpus.clusters, DIMS, texts=len(corpus.texts), source="the corpus")
    metrics: dict[str, ByDim] = dict(found.metrics)
    metrics["model less baseline"] = {
        dim: {name: value - metrics["baseline"][dim][name] for name, value in at.items()}
        for dim, at in metrics["model"].items()
    }
    intervals: dict[str, ByDim] = dict(found.intervals)
    intervals["model less baseline"] = intervals.pop(CHANGE)
    for name in ("baseline", "model", "model less baseline"):
        metrics[name] = _merged(metrics[name], pairs[name][0])
        intervals[name] = _merged(intervals[name], interval(pairs[name][1]))
    of_seeds = {
        seed: _merged(_by_dim({name: each.mean(axis=1) for name, each in searched[seed].items()}), pairs[seed][0])
        for seed in seeds
    }
    facts = {"pairs": len(table), **corpus.facts, "clusters": found.groups["count"]}
    said = decide(found, "map@100").sentences
    return {"sentences": said, "metrics": metrics, "intervals": intervals, "seeds": of_seeds, "facts": facts}


def corpus_of_reports(data: Path) -> SearchCorpus:
    """All reports, of which those search that no training pair is from."""
    return corpus_of_tickets(str(data / "tickets.csv"), Columns(duplicate_of="duplicate_of"), QUERIES, None)


def _mean(values: Sequence[np.ndarray]) -> np.ndarray:
    return np.mean(np.stack(values), axis=0)


def _by_dim(figures: Mapping[str, np.ndarray]) -> ByDim:
    return {str(dim): {name: each[m].tolist() for name, each in figures.items()} for m, dim in enumerate(DIMS)}


def _merged(by_search: ByDim, pair_figures: np.ndarray) -> ByDim:
    """Figures by search and those on pairs [pair metrics, M, ...] together, by dim."""
    of_pairs = _by_dim(dict(zip(PAIR_METRICS, pair_figures, strict=True)))
    return {dim: {**of_pairs[dim], **by_search[dim]} for dim in of_pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the encoder to start from")
    parser.add_argument("--data", required=True, type=Path, help="folder of pairs and reports")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a text where encoders are judged")
    parser.add_argument("--keep", type=Path, help="folder for the runs; those there are not made again")
    parser.add_argument("--name", default="bugs", help="name of the record")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = options.keep or Path(scratch)
        folders = {"baseline": options.model}
        folders |= {str(seed): str(train_once(options, seed, runs / f"seed-{seed}")) for seed in options.seeds}
        lengths = {"max_length": options.max_length, "announce": False}
        encoders = {name: load_encoder(folder, **lengths) for name, folder in folders.items()}
        found = judge(encoders, options.data)
    settings = {"model": Path(options.model).name, "max_length": options.max_length, "resamples": RESAMPLES}
    settings |= {"training": SETTINGS, "config": CONFIG.name, "queries": QUERIES}
    for sentence in found["sentences"]:
        console.print(sentence, markup=False)
    path = save_record(options.name, {"environment": environment(), "settings": settings, **found}, options.results)
    console.print(f"Record: {path}", markup=False)


if __name__ == "__main__":
    main()
