"""Training steps on real tickets: this trainer, and sentence-transformers' own beside it, in one process.

A step embeds 64 labelled pairs (a ticket's title against its body), takes the Matryoshka loss at every dim, runs
backward into LoRA adapters on all attention projections, clips and updates. Both sides get the same texts in the same
batches, the same model, max length, precision and dropout; they take turns, block by block, so that a slow minute of
the machine hits both. The first step of a block is not counted. The peer has malloc as its users have it; ours keeps
freed memory, as it does in a run.

Share of peak (MFU): FLOPs that the real tokens need (`flops.py` says which) over the time of the step, divided by the
fastest matrix product measured just before or after that step in the same precision (the clock of a shared machine
drifts by a third). The split of a step is taken in steps of its own, with the device waited for at each border.

    python -m bench.speed.throughput --model minilm-l6 --encoder DIR --tickets tickets.csv --peer
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.measuring import clocked, summed, wait_for_gpu
from bench.records import finish, make_parser, settings_of
from bench.speed.flops import matmul_peak, model_flops
from bench.speed.steps import build_steps, run_config, update
from bench.workload import SHAPES, add_workload, write_workload
from trainer.system.numerics import settle_numerics
from trainer.system.process import keep_freed_memory, tune_process
from trainer.system.processor import take_products
from trainer.training import step as training_step
from trainer.training.step import peak_memory

GPU = torch.cuda.is_available()


class Ours:
    """This trainer's step, as the run makes it."""

    def __init__(self, options: argparse.Namespace, model: Path, pairs: Path, folder: Path) -> None:
        train = {"batch_size": options.batch_size, "precision": options.precision}
        config = run_config(options.model, model, pairs, lora={"rank": 16, "dropout": 0.0}, train=train)
        self.stepper = build_steps(config, folder / "run")
        self.run = self.stepper.run
        self.step = 0

    def block(self, steps: int, precision: str) -> list[dict[str, float]]:
        """Some steps, the next batch prepared while one runs, as in a run. What was measured of each."""
        samples = []
        with self.in_precision(precision), ThreadPoolExecutor(1) as ahead:
            upcoming = ahead.submit(self.stepper.run.prepare, self.step)
            before = matmul_peak(precision, self.run.device)
            for _ in range(steps):
                with clocked() as took:
                    start = time.perf_counter()
                    batch = upcoming.result()
                    waiting = time.perf_counter() - start
                    upcoming = ahead.submit(self.stepper.run.prepare, self.step + 1)
                    self.stepper.train_step(self.step, batch)
                    self.stepper.settle()
                seconds, after = took["seconds"], matmul_peak(precision, self.run.device)
                lengths = self.run.tokens.lengths[batch.layout.texts[0]]
                flops = model_flops(self.run.encoder.model, lengths, self.run.config.lora.rank)
                sample = {"seconds": seconds, "waiting": waiting, "tokens": int(lengths.sum()), "waste": batch.waste}
                sample |= {"flops": flops, "peak_flops": max(before, after)}
                samples.append(sample | {"share_of_peak": flops / seconds / sample["peak_flops"]})
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

    def split(self, steps: int) -> list[dict[str, float]]:
        """Seconds of each part of some steps, each part waited for; not for the rate."""
        run, samples = self.run, []
        parts: dict[str, tuple[Any, str]] = {"encoder": (run.encoder, "forward"), "loss": (training_step, "batch_loss")}
        parts |= {"backward": (run.accelerator, "backward"), "optimizer": (run.optimizer, "step")}
        for _ in range(steps):
            batch, spent = run.prepare(self.step), dict[str, float]()
            with ExitStack() as stack:
                for name, (owner, method) in parts.items():
                    stack.enter_context(summed(owner, method, name, spent))
                seconds = update(self.stepper, self.step, batch)
            samples.append(spent | {"rest": seconds - sum(spent.values())})
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

        from bench.peer import load_peer

        self.options, self.folder = options, folder
        self.model = load_peer(
            model, SHAPES[options.model].max_length, model_kwargs={"attn_implementation": options.peer_attention}
        )
        transformer: Any = self.model[0]
        taken = transformer.auto_model.config._attn_implementation
        assert taken == options.peer_attention, f"sentence-transformers took {taken} attention"
        mpnet = "mpnet" in options.model
        targets = ["q", "k", "v", "o"] if mpnet else ["query", "key", "value", "attention.output.dense"]
        self.model.add_adapter(LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets))

    def block(self, batches: list[list[tuple[str, str]]]) -> list[dict[str, float]]:
        """Seconds of each step over the given batches of pairs."""
        from torch.utils.data import BatchSampler, SequentialSampler
        from transformers import TrainerCallback

        from bench.peer import loss_of, train_peer

        times: list[float] = []

        class Stopwatch(TrainerCallback):
            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                self.start = time.perf_counter()

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                wait_for_gpu()
                times.append(time.perf_counter() - self.start)

        first, second = (list(side) for side in zip(*(pair for batch in batches for pair in batch), strict=True))
        train_peer(
            self.model,
            {"pairs": {"anchor": first, "positive": second}},
            loss_of("mnrl", self.model, None, SHAPES[self.options.model].dims),
            self.folder / "peer",
            callbacks=[Stopwatch()],
            batch_sampler=lambda data, batch_size, drop_last, **_: BatchSampler(
                SequentialSampler(data), batch_size, drop_last
            ),
            per_device_train_batch_size=self.options.batch_size,
            max_steps=len(batches),
            bf16=self.options.precision == "bf16",
            learning_rate=5e-6,
            disable_tqdm=True,
            logging_strategy="no",
        )
        return [{"seconds": seconds} for seconds in times]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Interleave blocks of both sides; returns the record."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, pairs = write_workload(options, folder, options.pairs)
        ours = Ours(options, model, pairs, folder)
        ours.block(options.warmup, options.precision)
        memory = peak_memory(ours.run.device)  # before the peer takes some
        peer = Peer(options, model, folder) if options.peer else None
        samples: dict[str, list[dict[str, float]]] = {"ours": [], "bf16": [], "peer": []}
        for _ in range(options.blocks):
            first = ours.step
            batches = [ours.texts(first + i) for i in range(options.steps + 1)]
            samples["ours"] += ours.block(options.steps + 1, options.precision)[1:]
            if options.bf16:
                ours.step = first  # the same batches
                samples["bf16"] += ours.block(options.steps + 1, "bf16")[1:]
            if peer:
                keep_freed_memory(False)
                samples["peer"] += peer.block(batches)[1:]
                keep_freed_memory(True)
        splits = ours.split(options.steps)
    mine = samples["ours"]
    record: dict[str, Any] = {
        "settings": {**settings_of(options), "max_length": SHAPES[options.model].max_length},
        "real_tickets": options.tickets is not None,
        **{kind: of_kind for kind, of_kind in samples.items() if of_kind},
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
    # How many times the seconds of the slower one are those of the faster, step by step.
    for kind, ratio, slower, faster in (("bf16", "bf16_ratio", "ours", "bf16"), ("peer", "ratio", "peer", "ours")):
        if samples[kind]:
            both = zip(samples[slower], samples[faster], strict=True)
            paired = [slow["seconds"] / fast["seconds"] for slow, fast in both]
            record |= {ratio: median(paired), f"{ratio}s": paired}
    return record


def main() -> None:
    parser = make_parser(__doc__, "throughput_MODEL_PRECISION_DEVICE")
    add_workload(parser, "mpnet-4")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16" if GPU else "fp32")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--peer", action="store_true", help="sentence-transformers beside it")
    parser.add_argument(
        "--peer-attention",
        choices=("eager", "sdpa", "flash_attention_2"),
        help="the peer's (default: the best that its model has without more packages: sdpa; MPNet has eager alone)",
    )
    parser.add_argument("--bf16", action="store_true", help="our own bf16 steps beside them, on the same batches")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="steps a block")
    options = parser.parse_args()
    options.peer_attention = options.peer_attention or ("eager" if "mpnet" in options.model else "sdpa")
    if options.name == parser.get_default("name"):
        options.name = f"throughput_{options.model}_{options.precision}_{'cuda' if GPU else 'cpu'}"
    tune_process()
    record = measure(options)
    peer = f", {record['ratio']:.1f} x sentence-transformers ({options.peer_attention})" if options.peer else ""
    bf16 = f", bf16 {record['bf16_ratio']:.2f} x as fast" if options.bf16 else ""
    hardware = torch.cuda.get_device_name() if GPU else "CPU"
    print(
        f"throughput {options.model} {options.precision} batch {options.batch_size}: {record['tokens_per_s']:,.0f} "
        f"tokens/s, {record['pairs_per_s']:.2f} pairs/s{peer}{bf16}, MFU {record['mfu']:.1%} of "
        f"{record['peak_flops'] / 1e9:,.0f} GFLOP/s, waiting {record['waiting_share']:.2%}, peak memory "
        f"{record['peak_memory'] / 2**30:.1f} GiB, {hardware}".replace("%", " %")
    )
    finish(options, record)


if __name__ == "__main__":
    main()
