"""What false negatives cost, and what `loss.guide_margin` gets back of it.

Of a tenth of the positives (people's duplicate links) the link is withheld. Both reports stay in the data, each as a
row of its own, its title against its body. Where the two rows share a batch, each body is a false negative of the
other's title. Batches of them are files of their own (`data.batches = "by_source"`), so that the rows of a link always
meet, or never. Arms, trained from the same model on the same other rows and judged on the same dev pairs:

    clean plain, clean guided    every link is there
    apart plain                  a tenth is not, and the rows of a link never meet: what the missing links alone cost
    met plain, met guided        they always meet

So "met plain" less "apart plain" is what false negatives cost, and "met guided" less "met plain" what is got back.
Writes bench/results/NAME.json after each arm; started again, it goes on with the arms that are not there.

    python -m bench.quality.false_negatives --model DIR --data DIR
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from bench.records import ROOT, finish, make_parser
from trainer.config_file import load_config
from trainer.training.loop import train

CONFIG = ROOT / "configs" / "itsm_minilm.toml"
ARMS = ("clean plain", "apart plain", "met plain", "met guided", "clean guided")
METRICS = ("spearman", "roc_auc")
DIMS = (384, 256, 128, 64)
NUMBERS = ("numbers1", "numbers2")  # of the reports

Row = tuple[str, str, int]  # two texts and their label


def withhold(
    pairs: dict[str, list[Any]], tickets: Path, share: float, multiple: int, seed: int
) -> tuple[list[Row], list[tuple[Row, Row]]]:
    """The rows without a share of the positives, and of each of these the title and body of both reports, as a row.

    Only reports that stand in no other positive are taken, so that nothing else tells of their link.

    Args:
        multiple: so many links are withheld, or twice, or three times as many.
    """
    with tickets.open(encoding="utf-8", newline="") as file:
        reports = {row["number"]: (row["short_description"], row["description"], 1) for row in csv.DictReader(file)}
    links = list(zip(pairs["numbers1"], pairs["numbers2"], strict=True))
    positives = [row for row, label in enumerate(pairs["labels"]) if label]
    times = Counter(number for row in positives for number in links[row])
    titles = Counter(title for title, *_ in reports.values())

    def is_alone(number: str) -> bool:
        title, body, _ = reports[number]
        return times[number] == 1 and titles[title] == 1 and bool(body.strip())

    alone = [row for row in positives if all(map(is_alone, links[row]))]
    count = min(round(share * len(positives)), len(alone)) // multiple * multiple
    if not count:
        raise SystemExit(f"{len(alone)} links can be withheld, fewer than a batch: lower --batch-size or --limit less")
    taken = np.random.default_rng(seed).choice(alone, count, replace=False).tolist()
    kept = sorted(set(range(len(links))) - set(taken))
    return rows_of(pairs, kept), [(reports[links[row][0]], reports[links[row][1]]) for row in taken]


def rows_of(pairs: dict[str, list[Any]], rows: list[int]) -> list[Row]:
    """Some rows of the columns of a pair file."""
    return [(pairs["texts1"][row], pairs["texts2"][row], pairs["labels"][row]) for row in rows]


def in_batches(links: list[tuple[Row, Row]], size: int, meet: bool) -> list[list[Row]]:
    """The rows of links as batches, in which the two of a link always meet, or never."""
    if meet:
        rows = [row for link in links for row in link]
    else:
        rows = [first for first, _ in links] + [second for _, second in links]
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def read_part(path: Path, rows: int) -> dict[str, list[Any]]:
    """Columns of a pair file; with `rows`, of so many of its rows, the same each time."""
    columns = json.loads(path.read_text(encoding="utf-8"))
    count = len(columns["labels"])
    chosen = sorted(np.random.default_rng(0).permutation(count)[: rows or count].tolist())
    return {name: [columns[name][row] for row in chosen] for name in ("texts1", "texts2", "labels", *NUMBERS)}


def train_arm(arm: str, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Dev metrics of an arm by dim, and what the log says was masked a query."""
    data, way = arm.split()
    pairs, dev = (
        read_part(options.data / f"pairs_{part}.json", rows)
        for part, rows in (("train", options.limit), ("dev", options.dev_rows))
    )
    rest, links = rows_of(pairs, list(range(len(pairs["labels"])))), list[tuple[Row, Row]]()
    if data != "clean":
        rest, links = withhold(pairs, options.data / "tickets.csv", options.share, options.batch_size, seed)
    files = [rows_of(dev, list(range(len(dev["labels"])))), rest, *in_batches(links, options.batch_size, data == "met")]
    paths = [folder / f"{number}.json" for number in range(len(files))]
    for path, rows in zip(paths, files, strict=True):
        columns = dict(zip(("texts1", "texts2", "labels"), map(list, zip(*rows, strict=True)), strict=True))
        path.write_text(json.dumps(columns), encoding="utf-8")
    settings = {
        "model.name": options.model,
        "model.max_length": options.max_length,
        "data.dev": str(paths[0]),
        "curriculum.mode": "mixed",
        "curriculum.epochs": options.epochs,
        "train.batch_size": options.batch_size,
        "train.seed": seed,
        "optim.lr": options.lr,
        "loss.dims": DIMS,
        "loss.pair_weight": options.pair_weight,
        "loss.guide_margin": options.margin if way == "guided" else -2.0,
        "eval.every": 0,
        "eval.choose_strength": False,
        "output.dir": str(folder / "run"),
    }
    sources = ", ".join(f"{{path = {json.dumps(str(path))}}}" for path in paths[1:])
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    overrides += [f"data.sources=[{sources}]", 'data.batches="by_source"']
    result = train(load_config(CONFIG, overrides))
    lines = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    masked = [line["false_negatives"] for line in lines if "false_negatives" in line]
    final = result.metrics["final"] if result.metrics else {}
    return {
        "dev": {dim: {name: values[name] for name in METRICS} for dim, values in final.items()},
        "rows": sum(map(len, files[1:])),
        "links_withheld": len(links),
        "steps": len(masked),
        "masked_a_query": float(np.mean(masked)),
    }


def main() -> None:
    parser = make_parser(__doc__, "false_negatives")
    parser.add_argument("--model", required=True, help="folder of the encoder to start from")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of pairs_train.json, pairs_dev.json, tickets.csv"
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument("--share", type=float, default=0.1, help="of the positives, that is withheld")
    parser.add_argument("--margin", type=float, default=0.0, help="loss.guide_margin of the guided arms")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--pair-weight", type=float, default=0.0)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--limit", type=int, default=0, help="training pairs; 0 takes all")
    parser.add_argument("--dev-rows", type=int, default=0, help="dev pairs; 0 takes all")
    options = parser.parse_args()
    measured = ("share", "margin", "epochs", "batch_size", "lr", "pair_weight", "max_length", "limit", "dev_rows")
    record: dict[str, Any] = {"settings": {name: getattr(options, name) for name in measured}, "arms": {}}
    path = options.results / f"{options.name}.json"
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if earlier["settings"] != record["settings"]:
            parser.error(f"{path} is of other settings: name another record with --name")
        record["arms"] = earlier["arms"]
    for seed in range(options.seeds):
        for arm in options.arms:
            of_seed = record["arms"].setdefault(arm, {})
            if str(seed) not in of_seed:
                with tempfile.TemporaryDirectory() as scratch:
                    of_seed[str(seed)] = train_arm(arm, seed, options, Path(scratch))
                finish(options, record)  # what is done is not lost with what comes after
            print(f"{arm}, seed {seed}: {json.dumps(of_seed[str(seed)])}", flush=True)


if __name__ == "__main__":
    main()
