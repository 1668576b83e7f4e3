"""Training steps on real tickets: this trainer, and sentence-transformers' own beside it, in one process.

A step embeds 64 labelled pairs (a ticket's title against its body), takes the Matryoshka loss at every dim, runs
backward into LoRA adapters on all attention projections, clips and updates. Both sides get the same texts in the same
batches, the same model, max length, precision and dropout; they take turns, block by block, so that a slow minute of
the machine hits both. The first step of a block is not counted. The peer has malloc as its users have it; ours keeps
freed memory, as it does in a run.

Share of peak (MFU): FLOPs that the real tokens need over the time of the step, divided by the fastest matrix product
measured just before or after that step in the same precision (the clock of a shared machine drifts by a third).
A token costs 2 FLOPs a weight of the layers forward and 2 more backward for the gradient on activations; LoRA never
computes the weight gradient of the frozen base, nor the activations' gradient below the first adapters, so neither
counts. Adapters cost 6 FLOPs a weight. Attention adds 4 * E FLOPs a token and key forward and twice that backward.
Padding counts for nothing.

The split of a step is taken in steps of its own, with the device waited for at each border.

    python -m bench.speed.throughput --model minilm-l6 --encoder DIR --tickets tickets.csv --peer
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from bench.records import RESULTS, environment, save_record
from bench.workload import SHAPES, ticket_pairs, write_model
from trainer.config_file import load_config
from trainer.model.fast_layers import Linear
from trainer.system.console import console
from trainer.system.numerics import settle_numerics
from trainer.system.process import keep_freed_memory, tune_process
from trainer.system.processor import take_products
from trainer.training.setup import build_run, read_inputs
from trainer.training.step import Stepper, peak_memory

PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {"precision": "fp32", "batch_size": 64},
    "h100": {"precision": "bf16", "batch_size": 64},
    "h200": {"precision": "bf16", "batch_size": 64},
    # 209 TFLOP/s of dense bf16 with fp32 accumulation by its data sheet; 40 % of that over 0.36 GFLOP a token of
    # mpnet-base under LoRA is 230,000 real tokens/s. 64 pairs of tickets need under 4 GB of its 32.
    "rtx5090": {"precision": "bf16", "batch_size": 64},
}


def write_pairs(tickets: str | None, path: Path, count: int) -> Path:
    """Title-against-body pairs of tickets, all positive but the one negative that a run needs to have."""
    pairs = ticket_pairs(tickets, count)
    columns = {
        "texts1": [a for a, _ in pairs] + [pairs[0][0]],
        "texts2": [b for _, b in pairs] + [pairs[1][1]],
        "labels": [1] * len(pairs) + [0],
    }
    path.write_text(json.dumps(columns))
    return path


def matmul_peak(precision: str, device: torch.device) -> float:
    """The fastest large matrix product seen in a few tries, in FLOP/s: torch's own, or that of our linear layer."""
    size, tries = (8192, 12) if device.type == "cuda" else (1536, 6)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    layer = Linear(size, size, bias=False, device=device).requires_grad_(False)
    products = [lambda: a @ b, lambda: layer(a)]
    best = 0.0
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for product in products * tries:
            start = time.perf_counter()
            float(product()[0, 0])  # waits for the device
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def model_flops(model: Any, lengths: np.ndarray, lora_rank: int) -> float:
    """FLOPs of forward and backward over sequences of these lengths [N]; see the top of the file."""
    config = model.config
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    tokens = float(lengths.sum())
    frozen = layers * (4 * width * width + 2 * width * inner)
    unused = 3 * width * width  # query, key and value of the first layer: nothing below them is trained
    adapters = layers * 4 * 2 * lora_rank * width
    attention = layers * 4 * width * float((lengths.astype(np.float64) ** 2).sum())
    return (4 * frozen - 2 * unused + 6 * adapters) * tokens + 3 * attention


@contextmanager
def timed(owner: Any, method: str, name: str, spent: dict[str, float]) -> Iterator[None]:
    """Add the seconds of every call of a method to `spent`."""
    real = getattr(owner, method)

    def stopwatch(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = real(*args, **kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - start
        return result

    setattr(owner, method, stopwatch)
    try:
        yield
    finally:
        setattr(owner, method, real)


def default_preset() -> str:
    """The preset of this machine."""
    if not torch.cuda.is_available():
        return "cpu"
    name = torch.cuda.get_device_name().lower()
    return "rtx5090" if "5090" in name else "h200" if "h200" in name else "h100"


class Ours:
    """This trainer's step, as the run makes it."""

    def __init__(self, options: argparse.Namespace, model: Path, pairs: Path, folder: Path, lora: bool = True) -> None:
        settings = {
            "model.name": json.dumps(str(model)),
            "model.max_length": options.max_length,
            "lora.enabled": json.dumps(lora),
            "lora.rank": 16,
            "lora.dropout": 0.0,
            "data.train": json.dumps(str(pairs)),
            "data.dev": json.dumps("incidents"),  # a run needs one; nothing here looks at it
            "curriculum.mode": json.dumps("mixed"),
            "curriculum.epochs": 50,
            "train.batch_size": options.batch_size,
            "train.precision": json.dumps(options.precision),
            "train.tokens_per_chunk": options.tokens_per_chunk,
            "loss.dims": json.dumps(options.dims),
        }
        config = folder / "throughput.toml"
        config.write_text("")
        resolved = load_config(config, [f"{key}={value}" for key, value in settings.items()])
        self.run = build_run(read_inputs(resolved, folder / "run", {}))
        self.run.encoder.train()
        self.stepper = Stepper(self.run)
        self.step = 0

    def block(self, steps: int, precision: str) -> list[dict[str, float]]:
        """Some steps, the next batch prepared while one runs, as in a run. What was measured of each."""
        samples = []
        device = self.run.device
        with self.in_precision(precision), ThreadPoolExecutor(1) as ahead:
            upcoming = ahead.submit(self.stepper.run.prepare, self.step)
            before = matmul_peak(precision, device)
            for _ in range(steps):
                start = time.perf_counter()
                batch = upcoming.result()
                ready = time.perf_counter()
                upcoming = ahead.submit(self.stepper.run.prepare, self.step + 1)
                self.stepper.train_step(self.step, batch)
                self.stepper.settle()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - start
                after = matmul_peak(precision, device)
                lengths = self.run.tokens.lengths[batch.layout.texts[0]]
                flops = model_flops(self.run.encoder.model, lengths, self.run.config.lora.rank)
                samples.append(
                    {
                        "seconds": seconds,
                        "waiting": ready - start,
                        "tokens": int(lengths.sum()),
                        "waste": batch.waste,
                        "flops": flops,
                        "peak_flops": max(before, after),
                        "share_of_peak": flops / seconds / max(before, after),
                    }
                )
                before = after
                self.step += 1
        return samples

    @contextmanager
    def in_precision(self, precision: str) -> Iterator[None]:
        """Steps as a run of this precision makes them: its autocast and its products."""
        usual = self.run
        if precision != usual.numerics.precision:
            self.stepper.run = replace(usual, numerics=settle_numerics(precision, usual.device))
        try:
            yield
        finally:
            self.stepper.run = usual
            take_products(usual.numerics.products)

    def split(self, steps: int, precision: str) -> list[dict[str, float]]:
        """Seconds of each part of some steps, each part waited for; not for the rate."""
        run, samples = self.run, []
        parts = {"encoder": (run.encoder, "forward"), "loss": (run.objective, "forward")}
        parts |= {"backward": (run.accelerator, "backward"), "optimizer": (run.optimizer, "step")}
        for _ in range(steps):
            batch, spent = self.stepper.run.prepare(self.step), {}
            with self.in_precision(precision), ExitStack() as stack:
                for name, (owner, method) in parts.items():
                    stack.enter_context(timed(owner, method, name, spent))
                start = time.perf_counter()
                self.stepper.train_step(self.step, batch)
                self.stepper.settle()
                spent["rest"] = time.perf_counter() - start - sum(spent.values())
            samples.append(spent)
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
        self.model = SentenceTransformer(
            str(model),
            device="cuda" if torch.cuda.is_available() else "cpu",
            model_kwargs={"attn_implementation": options.peer_attention},
        )
        taken = self.model[0].auto_model.config._attn_implementation
        assert taken == options.peer_attention, f"sentence-transformers took {taken} attention"
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
        pairs = write_pairs(options.tickets, folder / "pairs.json", options.pairs)
        ours = Ours(options, model, pairs, folder)
        ours.block(options.warmup, options.precision)
        memory = peak_memory(ours.run.device)  # before the peer takes some
        peer = Peer(options, model, folder) if options.peer else None
        mine: list[dict[str, float]] = []
        lowered: list[dict[str, float]] = []
        theirs: list[dict[str, float]] = []
        for _ in range(options.blocks):
            first = ours.step
            batches = [ours.texts(first + i) for i in range(options.steps + 1)]
            mine += ours.block(options.steps + 1, options.precision)[1:]
            if options.bf16:
                ours.step = first  # the same batches
                lowered += ours.block(options.steps + 1, "bf16")[1:]
            if peer:
                keep_freed_memory(False)
                theirs += peer.block(batches)[1:]
                keep_freed_memory(True)
        splits = ours.split(options.steps, options.precision)
    record: dict[str, Any] = {
        "environment": environment(),
        "settings": {
            key: value for key, value in vars(options).items() if key not in ("encoder", "tickets", "results")
        },
        "real_tickets": options.tickets is not None,
        "ours": mine,
        "splits": splits,
        "tokens_per_s": median(sample["tokens"] / sample["seconds"] for sample in mine),
        "pairs_per_s": median(options.batch_size / sample["seconds"] for sample in mine),
        "mfu": median(sample["share_of_peak"] for sample in mine),
        "peak_flops": max(sample["peak_flops"] for sample in mine),
        "waiting_share": median(sample["waiting"] / sample["seconds"] for sample in mine),
        "waste": median(sample["waste"] for sample in mine),
        "split": {name: median(split[name] / sum(split.values()) for split in splits) for name in splits[0]},
        "peak_memory": memory,
    }
    if lowered:
        paired = [a["seconds"] / b["seconds"] for a, b in zip(mine, lowered, strict=True)]
        record |= {"bf16": lowered, "bf16_ratio": median(paired), "bf16_ratios": paired}
    if theirs:
        paired = [b["seconds"] / a["seconds"] for a, b in zip(mine, theirs, strict=True)]
        record |= {"peer": theirs, "ratio": median(paired), "ratios": paired}
    return record


def figure(options: argparse.Namespace, record: dict[str, Any]) -> str:
    """What was measured, in one line to be pasted."""
    peer = f", {record['ratio']:.1f} x sentence-transformers ({options.peer_attention})" if "ratio" in record else ""
    hardware = record["environment"]["gpu"] or record["environment"]["processor"]
    return (
        f"throughput {options.model} {options.precision} batch {options.batch_size}: {record['tokens_per_s']:,.0f} "
        f"tokens/s{peer}, MFU {record['mfu']:.0%}, {hardware}".replace("%", " %")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="mpnet-4")
    parser.add_argument("--encoder", help="folder of all-MiniLM-L6-v2: the model, or just its tokenizer")
    parser.add_argument(
        "--tickets", help="CSV with short_description and description (default: made-up words of real tickets' lengths)"
    )
    parser.add_argument("--preset", choices=PRESETS, default=default_preset(), help="default: what is here")
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--tokens-per-chunk", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--dims", type=int, nargs="+")
    parser.add_argument("--peer", action="store_true", help="sentence-transformers beside it")
    parser.add_argument(
        "--peer-attention",
        choices=("eager", "sdpa", "flash_attention_2"),
        help="the peer's (default: the best that its model has without more packages: sdpa; MPNet has eager alone)",
    )
    parser.add_argument(
        "--bf16", action="store_true", help="our own bf16 steps beside those of fp32, on the same batches"
    )
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="steps a block")
    parser.add_argument("--name", help="name of the record")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    options = parser.parse_args()
    options.precision = options.precision or PRESETS[options.preset]["precision"]
    options.batch_size = options.batch_size or PRESETS[options.preset]["batch_size"]
    options.max_length = options.max_length or SHAPES[options.model]["max_length"]
    options.dims = options.dims or ([384, 256, 128, 64] if options.model == "minilm-l6" else [768, 512, 256, 128, 64])
    options.peer_attention = options.peer_attention or ("eager" if "mpnet" in options.model else "sdpa")
    tune_process()
    record = measure(options)
    console.print(
        f"{options.model} {options.precision}: {record['tokens_per_s']:,.0f} real tokens/s, "
        f"{record['pairs_per_s']:.2f} pairs/s, {record['mfu']:.1%} of {record['peak_flops'] / 1e9:,.0f} GFLOP/s"
        + (f", {record['ratio']:.2f} x sentence-transformers" if "ratio" in record else "")
        + (f", bf16 {record['bf16_ratio']:.2f} x fp32" if "bf16_ratio" in record else "")
        + f", waiting {record['waiting_share']:.2%}, peak memory {record['peak_memory'] / 2**30:.1f} GiB"
    )
    console.print(figure(options, record), markup=False)
    path = save_record(
        options.name or f"throughput_{options.model}_{options.precision}_{options.preset}", record, options.results
    )
    console.print(f"Record: {path}", markup=False)


if __name__ == "__main__":
    main()
