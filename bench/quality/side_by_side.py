"""The same pairs, model, epochs, batch and learning rate through sentence-transformers, twice, and this trainer.

    notebook     every row a positive, labels ignored: what MultipleNegativesRankingLoss does when it is handed pairs
    documented   positives with their labelled negatives as hard negatives, as its documentation advises
    ours         labels honoured, phases in order

Every model is judged by the same code on the same held-out pairs. Writes bench/results/side_by_side.json.

    python -m bench.quality.side_by_side --model DIR --train pairs.json --dev dev.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.records import RESULTS, ROOT, environment, save_record
from trainer.config_file import load_config
from trainer.data.pairs import PairTable, read_pairs
from trainer.evaluation.pair_metrics import Metrics
from trainer.evaluation.scoring import PairSet, evaluate
from trainer.model.encoder import Encoder
from trainer.model.loading import load_encoder
from trainer.system.console import console
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


def train_peer(kind: str, table: PairTable, options: argparse.Namespace, folder: Path) -> Path:
    """Train with sentence-transformers' own trainer. Returns the folder of the model."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    model = SentenceTransformer(options.model, device="cuda" if torch.cuda.is_available() else "cpu")
    model.max_seq_length = options.max_length
    data = Dataset.from_dict(columns_for(kind, table))
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "out"),
        num_train_epochs=options.epochs,
        # Triples bring as many texts with two thirds of the rows: a batch of theirs holds the positives of one of ours.
        per_device_train_batch_size=options.batch_size if kind == "notebook" else options.batch_size // 2,
        learning_rate=options.lr,
        lr_scheduler_type="cosine",
        batch_sampler="no_duplicates" if kind == "documented" else "batch_sampler",
        warmup_steps=0.15,
        weight_decay=0.01,
        bf16=options.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        seed=0,
        save_strategy="no",
        report_to="none",
        logging_steps=10,
    )
    loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), matryoshka_dims=list(DIMS))
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss).train()
    model.save(str(folder / "model"))
    return folder / "model"


def train_ours(options: argparse.Namespace, folder: Path) -> Path:
    """Train with this trainer. Returns the folder of the model."""
    settings = {
        "model.name": f'"{options.model}"',
        "model.max_length": options.max_length,
        "data.train": f'"{options.train}"',
        "data.dev": f'"{options.dev}"',
        "data.allow_overlap": "true",
        "curriculum.epochs": options.epochs,
        "train.batch_size": options.batch_size,
        "train.precision": f'"{options.precision}"',
        "optim.lr": options.lr,
        "output.dir": f'"{folder}"',
    }
    config = load_config(CONFIG, [f"{key}={value}" for key, value in settings.items()])
    return train(config, "ours").folder / "model"


def judged(encoder: Encoder, dev: PairTable) -> Metrics:
    """Metrics in fp32 at every dim."""
    return evaluate(encoder, PairSet.build(dev, encoder), DIMS)


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    """Train and judge every kind; returns the record."""
    table, dev = read_pairs(options.train), read_pairs(options.dev)
    record: dict[str, Any] = {
        "environment": environment(),
        "settings": {key: getattr(options, key) for key in ("epochs", "batch_size", "lr", "max_length", "precision")},
        "data": {
            "train_rows": len(table),
            "dev_rows": len(dev),
            "train": table.fingerprint(),
            "dev": dev.fingerprint(),
        },
        "dev": {"untouched": judged(load_encoder(options.model, max_length=options.max_length), dev)},
        "seconds": {},
    }
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as scratch:
            start = time.perf_counter()
            folder = Path(scratch) / kind
            model = train_ours(options, folder) if kind == "ours" else train_peer(kind, table, options, folder)
            record["seconds"][kind] = round(time.perf_counter() - start, 1)
            record["dev"][kind] = judged(load_encoder(str(model), max_length=options.max_length), dev)
        save_record(options.name, record, options.results)  # what is done is not lost with what comes after
        for name, metrics in record["dev"].items():
            console.print(name, {dim: round(values["spearman"], 4) for dim, values in metrics.items()})
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the encoder to start from")
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--kinds", nargs="+", default=["notebook", "documented", "ours"])
    parser.add_argument("--name", default="side_by_side", help="name of the record")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    run_all(parser.parse_args())


if __name__ == "__main__":
    main()
