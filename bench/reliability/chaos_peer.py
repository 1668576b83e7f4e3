"""The kills and the spoilt files of `chaos.py`, against Hugging Face's Trainer beside this one.

    python -m bench.reliability.chaos_peer [--kills 25]

The same tiny random-weight MPNet with its dropout on, the same pairs, batch, learning rate, terms of the loss, steps
between checkpoints and number of checkpoints kept, full determinism on. After its death a run is continued as the
documentation says, with `resume_from_checkpoint=True`, and begun anew only where the Trainer itself says that there is
no checkpoint. A case kills both trainers at the same share of their undisturbed time and resumes each once. What
differs: the Trainer draws its own batches, masks nothing in the loss, and makes no evaluation.

A resume may end as undisturbed, end differently, or be refused; one that is refused is tried again without its newest
checkpoint, as a person would. A spoilt file is noticed where the resume fails or says any line that an undisturbed
resume does not.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from bench.records import finish
from bench.reliability.chaos import campaign, chaos_parser
from bench.reliability.chaos_cases import SPOILS, Result, corruptions, finish_run, make_targets, spoil, targets
from bench.reliability.chaos_runs import SETTINGS, Bench, Strike, fork, prepare, run, run_undisturbed, wait
from trainer.checkpoint.sealed_folder import KEEP
from trainer.loss.cosent import pairwise_ranking
from trainer.loss.matryoshka import matryoshka_mnrl
from trainer.system.files import write_file

OURS = "full"
ANEW = "No valid checkpoint found"
SAME = "as undisturbed"
OUTCOME = "outcome.json"


@dataclass
class PeerBench(Bench):
    """The peer's undisturbed run beside ours."""

    outcome: dict[str, Any] = field(default_factory=dict)
    usual: list[str] = field(default_factory=list)  # what an undisturbed resume says
    interrupted: Path = Path()


# ---- the peer


class Tuned(transformers.Trainer):
    """Mean pooling and the loss of this project's runs."""

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        tokens = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        real = inputs["attention_mask"][:, :, None].to(tokens.dtype)
        first, second = ((tokens * real).sum(1) / real.sum(1)).chunk(2)
        positive, dims = inputs["positive"], SETTINGS["loss.dims"]
        candidates = torch.cat([second[positive], second[~positive]])
        total = matryoshka_mnrl(first[positive], candidates, dims=dims)[0]
        return total + SETTINGS["loss.pair_weight"] * pairwise_ranking(first, second, positive, dims=dims)[0]


class StopAfter(TrainerCallback):
    """End the run in order once the checkpoint of a step is written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def fine_tune(root: Path, folder: Path, resume: bool, stop: int) -> None:
    """The peer's whole process; its last act is to write down what came out."""
    transformers.logging.set_verbosity_warning()  # as it comes; loading our encoder has turned it down
    tokenizer = transformers.AutoTokenizer.from_pretrained(root / "model")
    columns = json.loads((root / "train.json").read_text())
    rows = list(zip(columns["texts1"], columns["texts2"], columns["labels"], strict=True))
    # A positive and a negative are drawn together, so that no batch lacks either.
    drawn = list(zip(*([row for row in rows if row[2] == label] for label in (1, 0)), strict=True))

    def collate(items: Sequence[Sequence[tuple[str, str, int]]]) -> dict[str, Tensor]:
        pairs = [pair for item in items for pair in item]
        texts = [pair[side] for side in (0, 1) for pair in pairs]
        encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return {**encoded, "positive": torch.tensor([pair[2] == 1 for pair in pairs])}

    trainer = Tuned(
        model=transformers.AutoModel.from_pretrained(root / "model", add_pooling_layer=False),
        args=TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=SETTINGS["curriculum.epochs"],
            per_device_train_batch_size=SETTINGS["train.batch_size"],
            learning_rate=SETTINGS["optim.lr"],
            save_steps=SETTINGS["checkpoint.every"],
            save_total_limit=KEEP,
            logging_steps=1,
            full_determinism=True,
            remove_unused_columns=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=drawn,
        data_collator=collate,
        callbacks=[StopAfter(stop)] if stop else [],
    )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train(resume_from_checkpoint=resume)
    except ValueError as error:
        if not str(error).startswith(ANEW):
            raise
        print(ANEW, flush=True)
        trainer.train()
    if not stop:
        trainer.save_model(str(folder / "model"))
        weights = (folder / "model" / "model.safetensors").read_bytes()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        outcome = {"weights": hashlib.sha256(weights).hexdigest(), "losses": losses, "steps": trainer.state.global_step}
        write_file(folder / OUTCOME, json.dumps(outcome))


def run_peer(
    bench: Bench, folder: Path, *, resume: bool = False, stop: int = 0, strike: Strike | None = None
) -> tuple[int, list[str]]:
    """A process of the peer, from start to end. Returns its exit code (minus the signal) and the lines it said."""
    (code,), said = wait([fork(folder, partial(fine_tune, bench.root, folder, resume, stop))], folder, strike)
    return code, said.replace(str(folder), "RUN").splitlines()


def newest(folder: Path) -> Path:
    """The peer's newest checkpoint."""
    return max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def ending(bench: PeerBench, folder: Path) -> str:
    """How a finished run of the peer compares with the undisturbed one."""
    found = json.loads((folder / OUTCOME).read_text())
    different = [key for key in bench.outcome if found[key] != bench.outcome[key]]
    return f"differs in {', '.join(different)}" if different else SAME


def prepare_peer(root: Path, jobs: int) -> tuple[PeerBench, dict[str, Any]]:
    """Both undisturbed runs, and what stopping the peer in order at each of its checkpoints does."""
    bench = PeerBench(**vars(prepare(root, jobs)))
    folders = run_undisturbed(
        bench, "peer", jobs, lambda folder: [fork(folder, partial(fine_tune, root, folder, False, 0))]
    )
    outcomes = [json.loads((folder / OUTCOME).read_text()) for folder in folders]
    bench.outcome = outcomes[0]
    found = {"runs": len(outcomes), "same": sum(outcome == bench.outcome for outcome in outcomes)}
    stops = {}
    for step in range(SETTINGS["checkpoint.every"], bench.outcome["steps"], SETTINGS["checkpoint.every"]):
        folder = bench.folder()
        run_peer(bench, folder, stop=step)
        if step == bench.outcome["steps"] // 4 * 2:  # near the middle: for files of it to be spoilt
            bench.interrupted = Path(shutil.copytree(folder, bench.folder()))
        code, said = run_peer(bench, folder, resume=True)
        bench.usual += said
        stops[step] = ending(bench, folder) if code == 0 else f"refused: {said[-1]}"
    return bench, {"undisturbed": found, "stopped_in_order": stops}


# ---- cases


def kills(bench: PeerBench, folder: Path, number: int, rng: random.Random) -> Result:
    """Kill both trainers at the same share of their time, and resume each once."""
    share, problem, wrong = rng.random(), "", ""
    codes, _ = run(bench, OURS, folder, strike=(share * bench.seconds[OURS], signal.SIGKILL, 0))
    if codes != [0]:
        problem = finish_run(bench, OURS, folder)
    counted = [f"ours: {problem or SAME}"]
    folder, delay = folder.with_name("peer"), share * bench.seconds["peer"]
    code, _ = run_peer(bench, folder, strike=(delay, signal.SIGKILL, 0))
    said: list[str] = []
    if not (folder / OUTCOME).exists():
        code, said = run_peer(bench, folder, resume=True)
    if ANEW in said:
        counted.append("peer: had no checkpoint, began anew")
    if code == 70:
        held = sorted(path.name for path in newest(folder).iterdir())
        wrong = f"resume refused, newest checkpoint held {held}: {said[-1]}"
        shutil.rmtree(newest(folder))
        code, _ = run_peer(bench, folder, resume=True)
        how = ending(bench, folder) if code == 0 else "refused again"
        counted += ["peer: refused", f"peer: then, by hand, {how}"]
    else:
        how = ending(bench, folder)
        counted.append(f"peer: {how}")
        wrong = how if how != SAME else ""
    return Result(counted, wrong and f"killed after {delay:.2f} s: {wrong}")


def spoilt(bench: PeerBench, folder: Path, number: int, rng: random.Random) -> Result:
    """Spoil a file of the peer's newest checkpoint and resume."""
    files = sorted(newest(bench.interrupted).iterdir())
    source, how = files[number // len(SPOILS)], SPOILS[number % len(SPOILS)]
    shutil.copytree(bench.interrupted, folder)
    spoil(newest(folder) / source.name, how, rng)
    code, said = run_peer(bench, folder, resume=True)
    noticed = code != 0 or any(line not in bench.usual for line in said)
    result = "refused" if code else ending(bench, folder)
    wrong = f"{how} of {source.name}: unnoticed, {result}" if not noticed and result != SAME else ""
    return Result([f"{'noticed' if noticed else 'unnoticed'}, {result}"], wrong)


def main() -> None:
    """Run everything, print it, write the record."""
    options = chaos_parser(__doc__, "chaos_peer", kills=25).parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        bench, found = prepare_peer(Path(scratch), options.jobs)
        print(json.dumps(found, indent=2), flush=True)
        make_targets(bench)
        checkpoint_files = sum("checkpoints" in path.parts for path, _ in targets(bench))
        peer_files = len(SPOILS) * len(list(newest(bench.interrupted).iterdir()))
        found["kills"] = campaign(kills, bench, options.kills, options)
        found["spoilt_ours"] = campaign(corruptions, bench, checkpoint_files, options)
        found["spoilt_peer"] = campaign(spoilt, bench, peer_files, options)
    record = {"seed": options.seed, "jobs": options.jobs, "seconds": round(time.monotonic() - start, 1)}
    finish(options, record | {"undisturbed_seconds": bench.seconds, **found})


if __name__ == "__main__":
    main()
