"""The peer at its best: sentence-transformers' trainer and losses, and this trainer, from the same pairs and model.

Every kind of training has the same number of trials, one a peak rate, and is judged by its best one: a tenth of the
training pairs is held out for all alike, and chooses the rate, and within a run the best epoch (the peer) or the best
step and strength (ours). Ours and the best of the peer's (--finalists) are then trained with every seed. All are judged
by this project's code on the pairs of dev, with the 95 % interval of ours less the peer's over resamples of dev, of the
means over the seeds; and by sentence-transformers' InformationRetrievalEvaluator on a corpus, or on the texts of dev.

    mnrl                 positives with labelled negatives as hard negatives, MultipleNegativesRankingLoss
    cached_gist          the same, candidates that the untouched model finds nearer than the positive left out
    cached_gist_sharp    the same at its default temperature of 0.01
    online_contrastive   all labelled pairs, OnlineContrastiveLoss
    cosent               all labelled pairs, CoSENTLoss
    ours                 all labelled pairs, the config of this project

The peer's losses are taken at every Matryoshka dim. MarginMSE needs a teacher's scores, and there are none. With
--packed its transformer computes no padding, which changes no loss: that is checked first, dropout off, over the first
steps of every kind, and recorded. What is in the record is not run again.

    python -m bench.quality.side_by_side --model DIR --train pairs.json --dev dev.json --packed
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from bench.measuring import each_in_new_process, in_new_process
from bench.peer import LABELLED, LEFT_OUT, RANKING
from bench.quality.judging import compare, over_models
from bench.quality.peer_runs import OURS, largest_difference, run_once
from bench.quality_tables import peers
from bench.records import ROOT, add_at_once, environment, finish, make_parser
from trainer.data.pairs import read_pairs

CONFIG = ROOT / "configs" / "itsm_minilm.toml"
DIMS = (384, 256, 128, 64)
KINDS = (*RANKING, *LABELLED, OURS)
EQUAL = 1e-5  # share of a loss that it may differ by
Key = tuple[str, float, int]
"""Kind, peak rate and seed of a run."""


def open_record(options: argparse.Namespace) -> dict[str, Any]:
    """The record that is continued, or a new one. Exits where it was made of other data or with other settings."""
    same = ("rates", "epochs", "batch_size", "max_length", "precision", "limit", "packed", "set", "queries")
    settings: dict[str, Any] = {key: getattr(options, key) for key in same}
    settings |= {"model": Path(options.model).name, "config": options.config.name, "dims": list(options.dims)}
    settings |= {"corpus": bool(options.corpus)}
    train, dev = read_pairs(options.train), read_pairs(options.dev)
    data = {"train": train.fingerprint(), "train_rows": len(train), "dev": dev.fingerprint(), "dev_rows": len(dev)}
    path = options.results / f"{options.name}.json"
    new: dict[str, Any] = {"settings": settings, "data": data, "left_out": LEFT_OUT, "runs": [], "equality": {}}
    if not path.exists():
        return new
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for part in ("settings", "data"):
        if record[part] != new[part]:
            raise SystemExit(f"{path}: its {part} are others: choose another --name, or remove the record")
    return record


def scores_file(options: argparse.Namespace, kind: str, rate: float, seed: int) -> Path:
    """Where the dev cosines of a run are kept, beside the record for the intervals."""
    return options.keep / options.name / f"{kind}_{rate:g}_{seed}.npy"


def run_missing(options: argparse.Namespace, record: dict[str, Any], wanted: list[Key]) -> list[dict[str, Any]]:
    """Runs of the record, those made now that are not there."""
    runs = {(run["kind"], run["rate"], run["seed"]): run for run in record["runs"]}
    missing = {
        (kind, rate, seed): (kind, options, rate, seed)
        for kind, rate, seed in wanted
        if (kind, rate, seed) not in runs or not scores_file(options, kind, rate, seed).exists()
    }
    for key, outcome in each_in_new_process(run_once, missing, options.at_once):
        figures, cosines = outcome.result()
        scores = scores_file(options, *key)
        scores.parent.mkdir(parents=True, exist_ok=True)
        np.save(scores, cosines)
        runs[key] = dict(zip(("kind", "rate", "seed"), key, strict=True)) | {
            "commit": environment()["commit"],
            **figures,
        }
        record["runs"] = list(runs.values())
        finish(options, record)
        print("---- {}, peak rate {:g}, seed {}: done".format(*key), flush=True)
    return [runs[key] for key in wanted]


def finalists(options: argparse.Namespace, record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By kind: its best rate, means and spreads over its seeds, and the interval of ours less it. Trains what lacks."""
    dev, best = read_pairs(options.dev), dict[str, dict[str, Any]]()
    trials = [(kind, rate, options.seeds[0]) for kind in options.kinds for rate in options.rates]
    for trial in run_missing(options, record, trials):
        best[trial["kind"]] = max(best.get(trial["kind"], trial), trial, key=lambda run: run["held_out"])
    peers = sorted((kind for kind in best if kind != OURS), key=lambda kind: -best[kind]["held_out"])
    with_every_seed = (OURS, *peers[: options.finalists])
    wanted: dict[str, list[Key]] = {"untouched": [("untouched", 0.0, 0)]}
    for kind, trial in best.items():
        seeds = options.seeds if kind in with_every_seed else options.seeds[:1]
        wanted[kind] = [(kind, trial["rate"], seed) for seed in seeds]
    made = run_missing(options, record, [key for of_kind in wanted.values() for key in of_kind])
    runs = {kind: [run for run in made if run["kind"] == kind] for kind in wanted}
    cosines = {
        kind: np.stack([np.load(scores_file(options, kind, run["rate"], run["seed"])) for run in of_kind])
        for kind, of_kind in runs.items()
    }
    result = {}
    for kind, of_kind in runs.items():
        rate = best[kind]["rate"] if kind in best else None
        told: dict[str, Any] = {"rate": rate, "seeds": [run["seed"] for run in of_kind]}
        for part in ("dev", "search"):
            told[part] = over_models([run[part] for run in of_kind], mean_and_spread)
        if OURS in cosines and kind != OURS:
            told["ours_less_it"] = compare(cosines[kind], cosines[OURS], dev, options.dims)["gain"]
        result[kind] = told
    return result


def mean_and_spread(values: list[float]) -> list[float]:
    """[mean, standard deviation] of a figure over seeds; of one seed [mean]."""
    return [mean(values), stdev(values)] if len(values) > 1 else values


def main() -> None:
    parser = make_parser(__doc__, "peers")
    parser.add_argument("--model", required=True, help="folder of the encoder to start from")
    parser.add_argument("--train", required=True, metavar="FILE")
    parser.add_argument("--dev", required=True, metavar="FILE", help="judged; chooses nothing")
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-5, 5e-5, 1e-4, 2e-4], help="the trials")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of the best trial")
    text = "kinds of the peer that are trained with every seed, the others with the first (default: all)"
    parser.add_argument("--finalists", type=int, default=len(KINDS), metavar="N", help=text)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--config", type=Path, default=CONFIG, help="of this trainer (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="likewise")
    parser.add_argument("--dims", type=int, nargs="+", default=list(DIMS))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--limit", type=int, default=0, help="train on a sample of so many pairs")
    parser.add_argument("--packed", action="store_true", help="the peer's transformer without padding")
    parser.add_argument("--corpus", metavar="TICKETS", help="searched (default: the texts of dev)")
    parser.add_argument("--queries", default="pairs_part=dev", help="tickets that search (default: %(default)s)")
    parser.add_argument("--keep", type=Path, default=ROOT / "runs", help="folder for the scores of dev")
    add_at_once(parser)
    options = parser.parse_args()
    options.dims = tuple(options.dims)
    record = open_record(options)
    if options.packed:
        for kind in (kind for kind in options.kinds if kind not in (OURS, *record["equality"])):
            record["equality"][kind] = in_new_process(largest_difference, kind, options)
            if not record["equality"][kind] <= EQUAL:
                raise SystemExit(f"{kind}: losses with --packed are others by {record['equality'][kind]:.1e} of them")
    record["finalists"] = finalists(options, record)
    finish(options, record)
    print("\n".join(peers(record)))


if __name__ == "__main__":
    main()
