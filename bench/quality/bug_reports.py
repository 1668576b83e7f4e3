"""What bug reports teach an encoder by people's links, by their own titles and bodies, and by both.

Each of KINDS trains MODEL once a seed in one pass, by SETTINGS, and is judged beside what it began as: on the pairs of
DATA/pairs_dev.json, which people linked, by search among all reports of DATA/tickets.csv, and where --sts names a file
on general similarity. Dev picks nothing: nothing is evaluated before the end, and all of the update is taken. The
reports that search are of groups that no training pair is from. A figure of a kind is its mean over its seeds, and an
interval that of this mean: searches are averaged query by query, and pairs resample by resample.

    python -m bench.quality.bug_reports --model DIR --data DIR
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.quality.judging import PAIR_METRICS, STS, STS_SCALE, HeldOut, compare, pair_figures
from bench.records import ROOT, finish, make_parser
from trainer.config_file import load_config, to_tree
from trainer.data.pairs import PairTable, read_pairs
from trainer.data.run_data import load_data
from trainer.data.search_corpus import SearchCorpus
from trainer.data.ticket_corpus import corpus_of_tickets
from trainer.data.ticket_table import Columns
from trainer.evaluation.assessment import CHANGE, assess_search
from trainer.evaluation.bootstrap import RESAMPLES
from trainer.evaluation.scoring import pair_cosines
from trainer.evaluation.search import search
from trainer.evaluation.search_scores import BM25Scores
from trainer.evaluation.search_set import SearchSet, Values, task_of, words_of
from trainer.main import cli
from trainer.model.embedding import embed_cached, tokenize_sides
from trainer.model.loading import load_encoder
from trainer.system.console import console
from trainer.system.gpu import default_device
from trainer.system.run_files import METADATA
from trainer.training.loop import train

DIMS = (384, 256, 128, 64)
QUERIES = "pairs_part=dev"
CONFIG = ROOT / "configs" / "itsm_minilm.toml"
SETTINGS = (
    "curriculum.epochs=1",
    "optim.lr=5e-5",
    "loss.pair_weight=0.05",
    "eval.every=0",
    "eval.choose_strength=false",
    "model.principal_axes=false",  # whose gain `principal_axes.py` measures
)
TITLES = ("--sources", "title-body", "--leave-out-rows", QUERIES)
"""How pairs are built of the reports' titles and bodies; no link is read."""
KINDS: dict[str, tuple[str, ...]] = {
    "links": ("data.train={links}",),
    "titles": ("data.train={titles}", "data.limit=4096"),
    "both": ("data.sources=[{{path={links}}},{{path={titles},weight=0.25}}]",),
}
WORDS = "bm25+model"
"""System of the search by BM25 and an encoder together."""


class Reports(NamedTuple):
    """What encoders are judged on."""

    pairs: PairTable
    corpus: SearchCorpus
    words: BM25Scores
    """BM25 of the corpus."""
    general: PairTable | None
    """Pairs of general similarity."""


class Judged(NamedTuple):
    """What one encoder makes of them."""

    cosines: np.ndarray
    """[M, N] of the pairs."""
    found: Values
    """What each query found, by the encoder ("model") and by BM25 and it (WORDS)."""
    general: dict[str, float]
    """Spearman of general similarity by dim; empty without pairs of it."""


def settings_of_run(options: argparse.Namespace, kind: str, seed: int, folder: Path) -> list[str]:
    """What a run has on top of CONFIG, as --set takes it; its folder last."""
    files = {"links": options.data / "pairs_train.json", "titles": options.titles}
    paths = {name: json.dumps(str(path)) for name, path in files.items()}
    fixed = {"model.name": options.model, "data.dev": options.data / "pairs_dev.json"}
    settings = [f"{key}={json.dumps(str(path))}" for key, path in fixed.items()]
    settings += [f"train.seed={seed}", f"model.max_length={options.max_length}", *SETTINGS]
    return [*settings, *(setting.format(**paths) for setting in KINDS[kind]), f"output.dir={json.dumps(str(folder))}"]


def train_once(options: argparse.Namespace, kind: str, seed: int, folder: Path) -> str:
    """Train a kind with a seed, unless the folder holds that very run. Returns the model's folder."""
    settings = settings_of_run(options, kind, seed, folder)
    config = load_config(CONFIG, settings)
    if not (folder / "metrics.json").exists():
        train(config, CONFIG.stem)
        return str(folder / "model")
    kept, wanted = to_tree(load_config(folder / "config.toml")), to_tree(config)
    for setting in settings[:-1]:
        section, key = setting.partition("=")[0].split(".")
        if by_name(kept[section][key]) != by_name(wanted[section][key]):
            raise SystemExit(f"{folder}: a run with another {section}.{key}: choose another --keep, or remove it")
    data = load_data(config.data, seed)
    fingerprints = json.loads((folder / METADATA).read_text(encoding="utf-8"))["fingerprints"]
    if (data.train.fingerprint(), data.dev.fingerprint()) != (fingerprints["train_data"], fingerprints["dev_data"]):
        raise SystemExit(f"{folder}: a run on other data: choose another --keep, or remove it")
    return str(folder / "model")


def by_name(value: Any) -> Any:
    """A setting with files by their names alone: folders may have been moved."""
    if isinstance(value, dict):
        return {key: by_name(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [by_name(each) for each in value]
    return Path(value).name if isinstance(value, str) else value


def judge(folder: str, max_length: int, reports: Reports, name: str) -> Judged:
    """Judge an encoder. Its embeddings are kept in the cache, so that this can be done again at once."""
    encoder = load_encoder(folder, max_length=max_length, announce=False).to(default_device())

    def cosines_of(pairs: PairTable) -> np.ndarray:
        rows = embed_cached(encoder, tokenize_sides(encoder, pairs.texts), description=f"Embedding pairs ({name})")
        return pair_cosines(rows, pairs, DIMS)

    general: dict[str, float] = {}
    if sts := reports.general:
        general = {dim: metrics["spearman"] for dim, metrics in pair_figures(cosines_of(sts), sts, DIMS).items()}
    searched = SearchSet.build(reports.corpus, encoder)
    rows = embed_cached(encoder, searched.tokens, description=f"Embedding reports ({name})")
    return Judged(cosines_of(reports.pairs), searched.search("model", rows, DIMS, reports.words), general)


def figures(models: Sequence[Judged], table: PairTable) -> dict[str, dict[str, float]]:
    """Means over models of one kind, by dim: of pairs, of search, of search with BM25 ("bm25+..."), and of STS."""
    by_model = [pair_figures(model.cosines, table, DIMS) for model in models]
    result: dict[str, dict[str, float]] = {}
    for m, dim in enumerate(map(str, DIMS)):
        result[dim] = {name: float(np.mean([each[dim][name] for each in by_model])) for name in PAIR_METRICS}
        for prefix, system in (("", "model"), ("bm25+", WORDS)):
            for name, values in mean_found(models, system).items():
                result[dim][prefix + name] = float(values[m].mean())
        if all(model.general for model in models):
            result[dim][STS] = float(np.mean([model.general[dim] for model in models]))
    return result


def gains(
    after: Sequence[Judged], before: Sequence[Judged], table: PairTable, clusters: np.ndarray, system: str = "model"
) -> dict[str, dict[str, list[float]]]:
    """95 % intervals by dim and metric of one kind's figures less another's, paired; of search alone by a system.

    Args:
        system: what searches with the models of `before`.
    """
    searches = {"model": mean_found(after, "model"), "baseline": mean_found(before, system)}
    found = assess_search(searches, clusters, DIMS, texts=0, source="").intervals[CHANGE]
    if system != "model":
        return found
    cosines_before, cosines_after = (np.stack([model.cosines for model in models]) for models in (before, after))
    pairs = compare(cosines_before, cosines_after, table, DIMS)["gain"]
    return {dim: pairs[dim] | found[dim] for dim in pairs}


def mean_found(models: Sequence[Judged], system: str) -> dict[str, np.ndarray]:
    """[M, Q] by search metric: the mean of several models for each query."""
    values = [model.found[system] for model in models]
    return {name: np.mean([each[name] for each in values], axis=0) for name in values[0]}


def measure(
    models: Mapping[str, Sequence[Judged]], reports: Reports, seeds: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """The record of "untouched" and the trained kinds: figures, gains over others, and figures of each seed."""
    table, corpus = reports.pairs, reports.corpus
    words = search(reports.words, task_of(corpus), "Search by BM25")
    kinds: dict[str, Any] = {}
    for kind, of_kind in models.items():
        kinds[kind] = {"figures": figures(of_kind, table)}
        if kind != "untouched":
            over = {"untouched": gains(of_kind, models["untouched"], table, corpus.clusters)}
            over["bm25+untouched"] = gains(of_kind, models["untouched"], table, corpus.clusters, WORDS)
            if kind == "both" and "links" in models:
                over["links"] = gains(of_kind, models["links"], table, corpus.clusters)
            of_seeds = {str(seed): figures([model], table) for seed, model in zip(seeds[kind], of_kind, strict=True)}
            kinds[kind] |= {"gains": over, "seeds": of_seeds}
    facts = {"pairs": len(table), **corpus.facts, "clusters": len(np.unique(corpus.clusters))}
    return {"bm25": {name: float(values.mean()) for name, values in words.items()}, "kinds": kinds, "facts": facts}


def corpus_of_reports(data: Path) -> SearchCorpus:
    """All reports, of which those search that no training pair is from."""
    return corpus_of_tickets(str(data / "tickets.csv"), Columns(duplicate_of="duplicate_of"), QUERIES, None)


def build_titles(options: argparse.Namespace, folder: Path) -> Path:
    """Pairs of titles and bodies, built unless they are there. Returns the file of training pairs."""
    if not (folder / "train.json").exists():
        tickets = ("--tickets", str(options.data / "tickets.csv"), "--output", str(folder))
        if code := cli(["build-pairs", *tickets, *TITLES]):
            raise SystemExit(code)
    return folder / "train.json"


def main() -> None:
    parser = make_parser(__doc__, "bugs")
    parser.add_argument("--model", required=True, help="folder of the encoder to start from")
    parser.add_argument("--data", required=True, type=Path, help="folder of pairs and reports")
    parser.add_argument("--sts", metavar="FILE", help="general similarity, judged as well")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    text = "other seeds for a kind"
    parser.add_argument("--seeds-of", nargs="+", action="append", default=[], metavar=("KIND", "SEED"), help=text)
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a text, in training and judging")
    parser.add_argument("--keep", type=Path, help="folder for the runs; those there are not made again")
    options = parser.parse_args()
    seeds = dict.fromkeys(options.kinds, options.seeds)
    seeds |= {kind: list(map(int, others)) for kind, *others in options.seeds_of}
    if unknown := seeds.keys() - set(options.kinds):
        parser.error(f"--seeds-of {min(unknown)}: is none of --kinds {' '.join(options.kinds)}")
    corpus = corpus_of_reports(options.data)
    general = HeldOut(options.sts, scale=STS_SCALE).read_pairs() if options.sts else None
    reports = Reports(read_pairs(options.data / "pairs_dev.json"), corpus, words_of(corpus), general)
    with tempfile.TemporaryDirectory() as scratch:
        runs = options.keep or Path(scratch)
        options.titles = build_titles(options, runs / "titles")
        models = {"untouched": [judge(options.model, options.max_length, reports, "untouched")]}
        for kind in options.kinds:
            folders = {seed: train_once(options, kind, seed, runs / f"{kind}-{seed}") for seed in seeds[kind]}
            models[kind] = [
                judge(folder, options.max_length, reports, f"{kind}, seed {seed}") for seed, folder in folders.items()
            ]
    settings = {"model": Path(options.model).name, "max_length": options.max_length, "resamples": RESAMPLES}
    settings |= {"training": SETTINGS, "kinds": KINDS, "titles": TITLES, "config": CONFIG.name}
    record = {"settings": settings, **measure(models, reports, seeds)}
    for kind, of_kind in record["kinds"].items():
        at = of_kind["figures"][str(DIMS[0])]
        console.print(f"{kind}: ROC-AUC {at['roc_auc']:.4f}, success@10 {at['success@10']:.4f}", markup=False)
    finish(options, record)


if __name__ == "__main__":
    main()
