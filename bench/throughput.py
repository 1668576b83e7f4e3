"""Training steps on real tickets: this trainer, and sentence-transformers' own beside it, in one process.

A step embeds 64 labelled pairs (a ticket's title against its body), takes the Matryoshka loss at every dim, runs
backward into LoRA adapters on all attention projections, clips and updates. Both sides get the same texts in the same
batches, the same model, max length, precision and dropout; they take turns, block by block, so that a slow minute of
the machine hits both.

Share of peak (MFU): model FLOPs of the real tokens over the time of the step, divided by the fastest matrix product
measured here in the same precision. A token costs 2 FLOPs a weight of the layers forward and 2 more backward for the
gradient on activations; LoRA never computes the weight gradient of the frozen base, so that is not counted. Attention
adds 4 * E FLOPs a token and key forward and twice that backward. Padding counts for nothing.

    python bench/throughput.py --model minilm-l6 --encoder DIR --tickets tickets.csv --peer
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import environment, save_record
from transformers import AutoConfig, AutoModel, AutoTokenizer

from trainer.config import load_config
from trainer.console import console
from trainer.incidents import generate_pairs
from trainer.readers import Field, read_table
from trainer.run import Run

SHAPES: dict[str, dict[str, Any]] = {
    "mpnet-base": {"layers": 12, "max_length": 384},
    "mpnet-4": {"layers": 4, "max_length": 384},
    "minilm-l6": {"layers": 6, "max_length": 256},
}
"""mpnet-*: all-mpnet-base-v2's shape with random weights; minilm-l6: the encoder itself."""

PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {"precision": "fp32", "batch_size": 64},
    "h100": {"precision": "bf16", "batch_size": 64},
    "h200": {"precision": "bf16", "batch_size": 64},
    # 209 TFLOP/s of dense bf16 with fp32 accumulation by its data sheet; 40 % of that over 0.36 GFLOP a token of
    # mpnet-base under LoRA is 230,000 real tokens/s. 64 pairs of tickets need under 4 GB of its 32.
    "rtx5090": {"precision": "bf16", "batch_size": 64},
}


def write_model(shape: str, encoder: str, folder: Path) -> Path:
    """The model that both sides train, as a folder."""
    if shape == "minilm-l6":
        return Path(encoder)
    config = AutoConfig.for_model(
        "mpnet", vocab_size=30527, num_hidden_layers=SHAPES[shape]["layers"], max_position_embeddings=514
    )
    torch.manual_seed(0)
    AutoModel.from_config(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    return folder


def write_pairs(tickets: str | None, folder: Path, count: int) -> Path:
    """Title-against-body pairs of tickets, all positive but a few negatives, which a run needs to have."""
    path = folder / "pairs.json"
    if tickets is None:
        path.write_text(json.dumps(generate_pairs(count, 0, "train")))
        return path
    fields = (Field("short_description", "short_descriptions"), Field("description", "descriptions"))
    columns = read_table(tickets, fields).columns
    titles, bodies = columns["short_description"], columns["description"]
    chosen: dict[str, str] = {}
    for title, body in zip(titles, bodies, strict=True):
        if title.strip() and body.strip() and title.strip() != body.strip():
            chosen.setdefault(title, body)
    pairs = list(chosen.items())
    order = np.random.default_rng(0).permutation(len(pairs))[:count]
    pairs = [pairs[i] for i in order]
    path.write_text(
        json.dumps(
            {
                "texts1": [a for a, _ in pairs] + [pairs[0][0]],
                "texts2": [b for _, b in pairs] + [pairs[1][1]],
                "labels": [1] * len(pairs) + [0],
            }
        )
    )
    return path


def matmul_peak(precision: str, device: torch.device) -> float:
    """The fastest large matrix product seen in a few tries, in FLOP/s."""
    size = 8192 if device.type == "cuda" else 1536
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(12):
        start = time.perf_counter()
        c = a @ b
        float(c.flatten()[0])  # waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def model_flops(model: Any, lengths: np.ndarray) -> float:
    """FLOPs of forward and backward over sequences of these lengths [N]; see the top of the file."""
    config = model.config
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    weights = layers * (4 * width * width + 2 * width * inner)
    attention = layers * 4 * width * float((lengths.astype(np.float64) ** 2).sum())
    return 4 * weights * float(lengths.sum()) + 3 * attention


class Ours:
    """This trainer's step, as the run makes it."""

    def __init__(self, options: argparse.Namespace, model: Path, pairs: Path, folder: Path) -> None:
        settings = {
            "model.name": json.dumps(str(model)),
            "model.max_length": options.max_length,
            "lora.rank": 16,
            "lora.dropout": 0.0,
            "data.train": json.dumps(str(pairs)),
            "data.dev": json.dumps(str(pairs)),
            "data.allow_overlap": "true",
            "curriculum.mode": json.dumps("mixed"),
            "curriculum.epochs": 50,
            "train.batch_size": options.batch_size,
            "train.precision": json.dumps(options.precision),
            "train.tokens_per_chunk": options.tokens_per_chunk,
            "loss.dims": json.dumps(options.dims),
        }
        config = folder / "throughput.toml"
        config.write_text("")
        self.run = Run(load_config(config, [f"{key}={value}" for key, value in settings.items()]), folder / "run")
        self.run.add_trainables()
        self.run.encoder.train()
        self.step = 0

    def block(self, steps: int) -> list[dict[str, float]]:
        """Seconds, real tokens and FLOPs of each of some steps."""
        samples = []
        for _ in range(steps):
            start = time.perf_counter()
            batch = self.run.prepare(self.step)
            ready = time.perf_counter()
            logged = self.run.train_step(self.step, batch)
            end = time.perf_counter()
            lengths = self.run.tokens.lengths[batch.layout.texts[0]]
            flops = model_flops(self.run.encoder.model, lengths)
            samples.append(
                {"seconds": end - start, "collate": ready - start, "tokens": logged["tokens"], "flops": flops}
            )
            self.step += 1
        return samples

    def texts(self, step: int) -> list[tuple[str, str]]:
        """The pairs of a step, as text."""
        table = self.run.data.train
        rows = self.run.sampler[step]
        return [(table.texts[table.text1[row]], table.texts[table.text2[row]]) for row in rows]


class Peer:
    """sentence-transformers' trainer over the very batches that ours gets."""

    def __init__(self, options: argparse.Namespace, model: Path, folder: Path) -> None:
        from peft import LoraConfig
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

        self.options, self.folder = options, folder
        self.model = SentenceTransformer(str(model), device="cuda" if torch.cuda.is_available() else "cpu")
        self.model.max_seq_length = options.max_length
        targets = (
            ["q", "k", "v", "o"] if "mpnet" in options.model else ["query", "key", "value", "attention.output.dense"]
        )
        self.model.add_adapter(LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets))
        self.loss = MatryoshkaLoss(
            self.model, MultipleNegativesRankingLoss(self.model), matryoshka_dims=list(options.dims)
        )

    def block(self, batches: list[list[tuple[str, str]]]) -> list[dict[str, float]]:
        """Seconds of each step over the given batches of pairs."""
        from datasets import Dataset
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
        from torch.utils.data import SequentialSampler
        from transformers import TrainerCallback

        times: list[float] = []

        class Stopwatch(TrainerCallback):
            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                self.start = time.perf_counter()

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - self.start)

        class InOrder(SentenceTransformerTrainer):
            def get_batch_sampler(self, dataset: Any, batch_size: int, drop_last: bool, **_: Any) -> Any:
                from torch.utils.data import BatchSampler

                return BatchSampler(SequentialSampler(dataset), batch_size, drop_last)

        pairs = [pair for batch in batches for pair in batch]
        data = Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [b for _, b in pairs]})
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(self.folder / "peer"),
            per_device_train_batch_size=self.options.batch_size,
            max_steps=len(batches),
            bf16=self.options.precision == "bf16",
            use_cpu=not torch.cuda.is_available(),
            learning_rate=5e-6,
            weight_decay=0.01,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
        )
        InOrder(model=self.model, args=arguments, train_dataset=data, loss=self.loss, callbacks=[Stopwatch()]).train()
        return [{"seconds": seconds} for seconds in times]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Interleave blocks of both sides; returns the record."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = write_model(options.model, options.encoder, folder / "model")
        pairs = write_pairs(options.tickets, folder, options.pairs)
        ours = Ours(options, model, pairs, folder)
        peer = Peer(options, model, folder) if options.peer else None
        peaks = [matmul_peak(options.precision, ours.run.device)]
        ours.block(options.warmup)
        mine: list[dict[str, float]] = []
        theirs: list[dict[str, float]] = []
        for _ in range(options.blocks):
            batches = [ours.texts(ours.step + i) for i in range(options.steps)]
            mine += ours.block(options.steps)
            peaks.append(matmul_peak(options.precision, ours.run.device))
            if peer:
                theirs += peer.block(batches)
    rate = statistics.median(sample["tokens"] / sample["seconds"] for sample in mine)
    record: dict[str, Any] = {
        "environment": environment(),
        "settings": {key: value for key, value in vars(options).items() if key not in ("encoder", "tickets")},
        "real_tickets": options.tickets is not None,
        "ours": mine,
        "peak_flops": max(peaks),
        "peaks": peaks,
        "tokens_per_s": rate,
        "pairs_per_s": statistics.median(options.batch_size / sample["seconds"] for sample in mine),
        "mfu": statistics.median(sample["flops"] / sample["seconds"] for sample in mine) / max(peaks),
        "collate_share": statistics.median(sample["collate"] / sample["seconds"] for sample in mine),
    }
    if theirs:
        paired = [b["seconds"] / a["seconds"] for a, b in zip(mine, theirs, strict=True)]
        record |= {"peer": theirs, "ratio": statistics.median(paired), "ratios": paired}
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="mpnet-4")
    parser.add_argument("--encoder", required=True, help="folder of all-MiniLM-L6-v2: the model, or just its tokenizer")
    parser.add_argument("--tickets", help="CSV with short_description and description (default: generated pairs)")
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--tokens-per-chunk", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--dims", type=int, nargs="+")
    parser.add_argument("--peer", action="store_true", help="sentence-transformers beside it")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="steps a block")
    parser.add_argument("--name", help="name of the record")
    options = parser.parse_args()
    options.precision = options.precision or PRESETS[options.preset]["precision"]
    options.batch_size = options.batch_size or PRESETS[options.preset]["batch_size"]
    options.max_length = options.max_length or SHAPES[options.model]["max_length"]
    options.dims = options.dims or ([384, 256, 128, 64] if options.model == "minilm-l6" else [768, 512, 256, 128, 64])
    record = measure(options)
    console.print(
        f"{options.model} {options.precision}: {record['tokens_per_s']:,.0f} real tokens/s, "
        f"{record['pairs_per_s']:.2f} pairs/s, {record['mfu']:.1%} of {record['peak_flops'] / 1e9:,.0f} GFLOP/s"
        + (f", {record['ratio']:.2f} x sentence-transformers" if "ratio" in record else "")
    )
    path = save_record(options.name or f"throughput_{options.model}_{options.precision}_{options.preset}", record)
    console.print(f"Record: {path}", markup=False)


if __name__ == "__main__":
    main()
