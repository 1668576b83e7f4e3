"""What false negatives cost, and what `loss.guide_margin` gets back of it.

Of a tenth of the positives (people's duplicate links) the link is withheld. Both reports stay in the data, each as a
row of its own, its title against its body, and the two rows always share a batch: each body is then a negative of the
other's title. Arms, each trained from the same model on the same other rows and judged on the same dev pairs:

    clean plain, clean guided         every link is there
    withheld plain, withheld guided   a tenth is not
    withheld known                    neither, but the mask knows it: what the missing links alone cost

Writes bench/results/NAME.json after each arm; started again, it goes on with the arms that are not there.

    python -m bench.quality.false_negatives --model DIR --data DIR
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from scipy import sparse

from bench.records import ROOT, finish, make_parser
from trainer.config_file import load_config
from trainer.data.curriculum import PhasedBatchSampler
from trainer.data.pairs import PairTable, positives_of
from trainer.training.loop import train

CONFIG = ROOT / "configs" / "itsm_minilm.toml"
ARMS = ("clean plain", "withheld plain", "withheld guided", "clean guided", "withheld known")
METRICS = ("spearman", "roc_auc")
DIMS = (384, 256, 128, 64)
COLUMNS = ("texts1", "texts2", "labels")

Links = list[tuple[tuple[str, str], tuple[str, str]]]
"""Title and body of both reports of each link that is withheld."""


class Meeting(PhasedBatchSampler):
    """Batches in which the rows of both reports of a link always meet."""

    def __init__(self, table: PairTable, *arguments: Any, links: Links, **options: Any) -> None:
        super().__init__(table, *arguments, **options)
        self.batches = [super(Meeting, self).__getitem__(step).copy() for step in range(len(self))]
        rows = {
            (table.texts[a], table.texts[b]): row
            for row, (a, b) in enumerate(zip(table.text1, table.text2, strict=True))
        }
        partners = {rows[first]: rows[second] for first, second in links}
        settled = {*partners, *partners.values()}
        for epoch in sorted(set(self.epochs)):
            steps = [step for step, of in enumerate(self.epochs) if of == epoch]
            at = {row: (step, place) for step in steps for place, row in enumerate(self.batches[step])}
            for first, second in partners.items():
                if first in at and second in at and at[first][0] != at[second][0]:
                    step, (other, place) = at[first][0], at[second]
                    free = next(i for i, row in enumerate(self.batches[step]) if row not in settled)
                    moved = self.batches[step][free]
                    self.batches[step][free], self.batches[other][place] = second, moved
                    at[second], at[moved] = (step, free), (other, place)

    def __getitem__(self, step: int) -> np.ndarray:  # type: ignore[override]
        return self.batches[step]

    def local(self, step: int, rank: int) -> np.ndarray:
        return self.batches[step][rank * self.batch_size : (rank + 1) * self.batch_size]


def with_links(table: PairTable, links: Links) -> sparse.csr_matrix:
    """The known positives of a table, and all texts of both reports of each link."""
    number = dict(zip(table.texts, table.canonical.tolist(), strict=True))
    pairs = [(number[a], number[b]) for first, second in links for a in first for b in second]
    rows, columns = np.array([*pairs, *((b, a) for a, b in pairs)]).T
    known = positives_of(table)
    return known + sparse.csr_matrix((np.ones(len(rows), bool), (rows, columns)), shape=known.shape)


def withhold(pairs: dict[str, list[Any]], tickets: Path, share: float, seed: int) -> tuple[dict[str, list[Any]], Links]:
    """The pairs without a share of their positives, whose reports become rows of title and body instead.

    Only links of reports that stand in no other positive are taken, so that nothing else tells of them.
    """
    with tickets.open(encoding="utf-8", newline="") as file:
        reports = {row["number"]: (row["short_description"], row["description"]) for row in csv.DictReader(file)}
    positives = [row for row, label in enumerate(pairs["labels"]) if label]
    numbers = {row: (pairs["numbers1"][row], pairs["numbers2"][row]) for row in positives}
    times = Counter(number for both in numbers.values() for number in both)
    titles = Counter(title for title, _ in reports.values())
    alone = [
        row
        for row, both in numbers.items()
        if all(times[one] == 1 and reports[one][1].strip() and titles[reports[one][0]] == 1 for one in both)
    ]
    count = min(round(share * len(positives)), len(alone))
    taken = np.random.default_rng(seed).choice(alone, count, replace=False).tolist()
    links = [(reports[numbers[row][0]], reports[numbers[row][1]]) for row in taken]
    kept = sorted(set(range(len(pairs["labels"]))) - set(taken))
    rows = [(pairs["texts1"][row], pairs["texts2"][row], pairs["labels"][row]) for row in kept]
    rows += [(title, body, 1) for link in links for title, body in link]
    return dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True)), links


def read_part(path: Path, rows: int, seed: int) -> dict[str, list[Any]]:
    """Columns of a pair file; with `rows`, of so many of its rows, drawn by the seed."""
    columns = json.loads(path.read_text(encoding="utf-8"))
    count = len(columns["labels"])
    chosen = sorted(np.random.default_rng(seed).permutation(count)[: rows or count].tolist())
    return {name: [columns[name][row] for row in chosen] for name in (*COLUMNS, "numbers1", "numbers2")}


def train_arm(arm: str, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Dev metrics of an arm by dim, and what the log says was masked a query."""
    pairs = read_part(options.data / "pairs_train.json", options.limit, 0)
    links: Links = []
    if arm.startswith("withheld"):
        pairs, links = withhold(pairs, options.data / "tickets.csv", options.share, seed)
    parts = {"train": pairs, "dev": read_part(options.data / "pairs_dev.json", options.dev_rows, 0)}
    for part, columns in parts.items():
        (folder / f"{part}.json").write_text(json.dumps({name: columns[name] for name in COLUMNS}), encoding="utf-8")
    settings = {
        "model.name": options.model,
        "model.max_length": options.max_length,
        **{f"data.{part}": str(folder / f"{part}.json") for part in parts},
        "curriculum.mode": "mixed",
        "curriculum.epochs": options.epochs,
        "train.batch_size": options.batch_size,
        "train.seed": seed,
        "optim.lr": options.lr,
        "loss.dims": DIMS,
        "loss.pair_weight": options.pair_weight,
        "loss.guide_margin": options.margin if arm.endswith("guided") else -2.0,
        "eval.every": 0,
        "eval.choose_strength": False,
        "output.dir": str(folder / "run"),
    }
    config = load_config(CONFIG, [f"{key}={json.dumps(value)}" for key, value in settings.items()])
    with ExitStack() as stack:
        for name, replacement in {
            "PhasedBatchSampler": partial(Meeting, links=links),
            **({"positives_of": partial(with_links, links=links)} if arm.endswith("known") else {}),
        }.items():
            stack.enter_context(patch(f"trainer.training.setup.{name}", replacement))
        result = train(config)
    lines = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    masked = [line["false_negatives"] for line in lines if "false_negatives" in line]
    final = result.metrics["final"] if result.metrics else {}
    return {
        "dev": {dim: {name: values[name] for name in METRICS} for dim, values in final.items()},
        "rows": len(pairs["labels"]),
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
