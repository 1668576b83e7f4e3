"""The same pairs, model, epochs, batch and learning rate through sentence-transformers, twice, and this trainer.

    notebook     every row a positive, labels ignored: what MultipleNegativesRankingLoss does when it is handed pairs
    documented   positives with their labelled negatives as hard negatives, as its documentation advises
    ours         labels honoured, phases in order

Every model is judged by the same code on the same held-out pairs.

    python -m bench.quality.side_by_side --model DIR --train pairs.json --dev dev.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from bench.measuring import clocked
from bench.records import ROOT, finish, make_parser
from trainer.config_file import load_config
from trainer.data.pairs import PairTable, read_pairs
from trainer.evaluation.scoring import PairSet, evaluate
from trainer.model.loading import load_encoder
from trainer.training.loop import train

CONFIG = ROOT / "configs" / "itsm_minilm.toml"
DIMS = (384, 256, 128, 64)


def columns_for(kind: str, table: PairTable) -> dict[str, list[str]]:
    """The columns that sentence-transformers is trained on."""
    texts, first, second, label = table.texts, table.text1, table.text2, table.label
    if kind == "notebook":
        return {"anchor": [texts[i] for i in first], "positive": [texts[i] for i in second]}
    negatives: dict[int, list[int]] = {}
    for row in range(len(table)):
        if not label[row]:
            negatives.setdefault(int(first[row]), []).append(int(second[row]))
    rows = [row for row in range(len(table)) if label[row] and negatives.get(int(first[row]))]
    return {
        "anchor": [texts[first[row]] for row in rows],
        "positive": [texts[second[row]] for row in rows],
        "negative": [texts[negatives[int(first[row])].pop()] for row in rows],
    }


def train_theirs(kind: str, options: argparse.Namespace, folder: Path) -> Path:
    """Train with sentence-transformers' own trainer. Returns the folder of the model."""
    from bench.peer import load_peer, train_peer

    model = load_peer(options.model, options.max_length)
    train_peer(
        model,
        columns_for(kind, read_pairs(options.train)),
        DIMS,
        folder / "out",
        num_train_epochs=options.epochs,
        # Triples bring as many texts with two thirds of the rows: a batch of theirs holds the positives of one of ours.
        per_device_train_batch_size=options.batch_size if kind == "notebook" else options.batch_size // 2,
        learning_rate=options.lr,
        lr_scheduler_type="cosine",
        batch_sampler="no_duplicates" if kind == "documented" else "batch_sampler",
        warmup_steps=0.15,
        bf16=options.precision == "bf16",
        seed=0,
        logging_steps=10,
    )
    model.save(str(folder / "model"))
    return folder / "model"


def train_ours(kind: str, options: argparse.Namespace, folder: Path) -> Path:
    """Train with this trainer. Returns the folder of the model."""
    settings = {
        "model.name": options.model,
        "model.max_length": options.max_length,
        "data.train": options.train,
        "data.dev": options.dev,
        "curriculum.epochs": options.epochs,
        "train.batch_size": options.batch_size,
        "train.precision": options.precision,
        "optim.lr": options.lr,
        "output.dir": str(folder),
    }
    config = load_config(CONFIG, [f"{key}={json.dumps(value)}" for key, value in settings.items()])
    return train(config, kind).folder / "model"


KINDS = {"notebook": train_theirs, "documented": train_theirs, "ours": train_ours}


def main() -> None:
    parser = make_parser(__doc__, "side_by_side")
    parser.add_argument("--model", required=True, help="folder of the encoder to start from")
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    table, dev = read_pairs(options.train), read_pairs(options.dev)
    record: dict[str, Any] = {
        "settings": {key: getattr(options, key) for key in ("epochs", "batch_size", "lr", "max_length", "precision")},
        "data": {f"{name}_rows": len(each) for name, each in (("train", table), ("dev", dev))},
        "dev": {},
        "seconds": {},
    }
    record["data"] |= {"train": table.fingerprint(), "dev": dev.fingerprint()}
    for kind in ("untouched", *options.kinds):
        with tempfile.TemporaryDirectory() as scratch:
            model = options.model
            if kind in KINDS:
                with clocked() as took:
                    model = KINDS[kind](kind, options, Path(scratch) / kind)
                record["seconds"][kind] = round(took["seconds"], 1)
            encoder = load_encoder(str(model), max_length=options.max_length)
            metrics = record["dev"][kind] = evaluate(encoder, PairSet.build(dev, encoder), DIMS)
        print(kind, {dim: round(values["spearman"], 4) for dim, values in metrics.items()}, flush=True)
        finish(options, record)  # what is done is not lost with what comes after


if __name__ == "__main__":
    main()
