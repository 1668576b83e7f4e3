"""Coverage-guided fuzzing of everything that reads a file: bytes in, a value or an error of the trainer's own out.

    python -m bench.reliability.fuzz [--seconds 60] [--reader NAME ...] [--save fuzz]     (extra `fuzz`; Linux)

libFuzzer, through atheris, changes the bytes and follows the branches of `trainer` and of Python's TOML reader. Each
reader has a process of its own. A finding is any other exception, a message of several lines, a call that takes more
than LIMIT_S of processor time, or the end of the process.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

LIMIT_S = 5.0
HANG_S = 900  # on the clock, after which libFuzzer ends a call; other work may stop the process for minutes
SHORTEST_LIMIT = 1024  # bytes; an input may be so long, or twice as long as the seeds
ROWS = [("vpn is down", "no vpn", "1", "1"), ("mail bounces", "Grüße, 日本", "0.5", "2"), ("a,b", 'c "d"', "true", "1")]
NAMES = ("text1", "text2", "label", "phase")
# What libFuzzer may put in.
WORDS = """ " "" , { } [ ] [[ ]] : = null true NaN Infinity -1e999 1e400 \\ud800 \\u0000 text1 texts1 label labels phase
number description step size sha256 values parameters identity best random/0/torch evaluation prompts lr loss"""
BYTES = ("\n", "\r\n", "\t", "\0", "\xff", "\xef\xbb\xbf", "9" * 400)
Reader = tuple[Callable[[bytes], object], list[bytes]]


def columns(names: tuple[str, ...], rows: list[tuple[str, ...]]) -> dict[str, list[str]]:
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def row_files(names: tuple[str, ...], rows: list[tuple[str, ...]], plurals: tuple[str, ...]) -> dict[str, bytes]:
    """The same rows in each format, by suffix."""

    def lines(cut: str) -> bytes:
        quoted = (
            '"' + cell.replace('"', '""') + '"' if {cut, '"'} & set(cell) else cell for row in rows for cell in row
        )
        cells = [*names, *quoted]
        return "".join(cut.join(cells[at : at + len(names)]) + "\n" for at in range(0, len(cells), len(names))).encode()

    whole = columns(plurals, rows)
    if "labels" in whole:
        whole |= {"labels": [1, 0.5, True], "phase_indicators": [1, 2, 1]}
    keys = [dict(zip(names, row, strict=True)) for row in zip(*whole.values(), strict=True)]
    return {
        ".json": json.dumps(whole).encode(),
        ".jsonl": "\n".join(map(json.dumps, keys)).encode(),
        ".csv": lines(","),
        ".tsv": lines("\t"),
    }


def file_readers(root: Path) -> dict[str, Reader]:
    """Readers of pairs, tickets and configs."""
    from trainer.config_file import load_config, resolve_config
    from trainer.data.pairs import read_pairs
    from trainer.data.ticket_table import Columns
    from trainer.data.tickets import Filter, load_tickets

    def from_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
        path = root / name

        def one(data: bytes) -> object:
            path.write_bytes(data)
            return read(path)

        return one

    pairs = row_files(NAMES, ROWS, ("texts1", "texts2", "labels", "phase_indicators"))
    found: dict[str, Reader] = {
        f"pairs{suffix}": (from_file(f"pairs{suffix}", read_pairs), [seed]) for suffix, seed in pairs.items()
    }
    squeezed = from_file("pairs.jsonl.gz", read_pairs)
    # Bytes as they are, or squeezed here: else no change would get past the checksum.
    found["pairs.jsonl.gz"] = (
        lambda data: squeezed(gzip.compress(data[1:], 1) if data[:1] == b"z" else data),
        [b"z" + pairs[".jsonl"], gzip.compress(pairs[".jsonl"])],
    )
    names = ("number", "short_description", "description", "assignment_group")
    rows = [("INC1", "vpn is down", "Hello,\nthe vpn is down again. From: a@b.de", "network"), ("2", "mail", "", "")]
    for suffix, seed in row_files(names, rows, names).items():
        read = from_file(f"tickets{suffix}", lambda path: load_tickets(path, Columns(), Filter(mask=True)))
        found[f"tickets{suffix}"] = (read, [seed])
    toml = Path(__file__).parents[2].joinpath("configs", "quickstart.toml").read_bytes()
    found["config"] = (from_file("run.toml", load_config), [toml, b'[data]\ntrain = "x"\n[loss]\ndims = [8, 4]\n'])
    found["setting"] = (
        lambda data: resolve_config({"data": {"train": "x"}}, data.decode("utf-8", "replace").split("\x01")),
        [b"train.seed=1\x01loss.dims=[8, 4]", b"optim.lr=1e-3\x01model.name=a b"],
    )
    return found


def in_place(path: Path, read: Callable[[], object], settle: Callable[[], object] = lambda: None) -> Reader:
    """A reader of a file among whole ones, which is spoilt for each call; `settle` fits the others to it."""
    seed = path.read_bytes() if path.exists() else b"{}"

    def one(data: bytes) -> object:
        path.write_bytes(data)
        settle()
        try:
            return read()
        finally:
            path.write_bytes(seed)

    return one, [seed, b"{}"]


def make_run(root: Path) -> Path:
    """The folder of a small run, finished in seconds where it is not there yet."""
    from trainer.main import cli

    if (root / "run").exists():
        return root / "run"
    config = Path(__file__).parents[2] / "configs" / "quickstart.toml"
    sets = ("curriculum.epochs=1", "loss.dims=[16]", "lora.enabled=false", "train.batch_size=64")
    assert cli(["--config", str(config), "--output-dir", str(root / "run"), *(f"--set={pair}" for pair in sets)]) == 0
    return root / "run"


def checkpoint_readers(run: Path) -> dict[str, Reader]:
    """A checkpoint whose manifest somebody made anew, so that only its content can tell; and the manifest itself."""
    import torch

    from trainer.checkpoint.identity import identity
    from trainer.checkpoint.sealed_folder import FILES, newest_checkpoint
    from trainer.config_file import load_config, to_tree
    from trainer.system.files import find_damage, write_manifest
    from trainer.training import resume

    place = newest_checkpoint(run / "checkpoints")
    parameters = {"w": torch.nn.Parameter(torch.zeros(2))}
    # The least that a resume asks for, of a run of one parameter.
    stub: Any = SimpleNamespace(
        folder=run,
        config=load_config(run / "config.toml"),
        fingerprints={},
        setting=dict,
        parameters=parameters,
        optimizer=SimpleNamespace(optimizer=torch.optim.AdamW(parameters.values())),
        accelerator=SimpleNamespace(scaler=None),
        is_main=False,
    )
    shrink_checkpoint(place, identity(to_tree(stub.config), {}, {}))

    def seal() -> None:
        (place / "manifest.json").unlink()
        write_manifest(place)

    seal()
    resume.resumed_state(stub, False)  # whole, it is taken
    found = {
        f"checkpoint {file}": in_place(place / file, lambda: resume.resumed_state(stub, False), seal) for file in FILES
    }
    return found | {"checkpoint manifest.json": in_place(place / "manifest.json", lambda: find_damage(place, FILES))}


def run_readers(root: Path) -> dict[str, Reader]:
    """Readers of what a run leaves behind."""
    from trainer.evaluation.thresholds import stored_thresholds
    from trainer.model.encoder import EmbeddingConditions
    from trainer.model.loading import load_encoder
    from trainer.report import run_page as report
    from trainer.training.log import open_log

    run = make_run(root)
    model, found = run / "model", checkpoint_readers(run)
    (model / "manifest.json").unlink(missing_ok=True)  # it would notice everything
    conditions = EmbeddingConditions(**json.loads((model / "thresholds.json").read_text())["model"])
    found["model thresholds.json"] = in_place(
        model / "thresholds.json", lambda: stored_thresholds(model, (16,), conditions)
    )
    own = ("config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer_config.json")
    for file in (*own, "config_sentence_transformers.json", "model.safetensors.index.json"):
        found[f"model {file}"] = in_place(model / file, lambda: load_encoder(str(model)))

    def resume_log() -> None:
        accelerator: Any = SimpleNamespace(is_main_process=True)
        with open_log(run, accelerator, 5, False):
            lines = (run / "log.jsonl").read_text().splitlines()
        assert all(json.loads(line)["step"] < 5 for line in lines), "a line of a later step was kept"

    found["log.jsonl"] = in_place(run / "log.jsonl", resume_log)
    report._pictures = lambda record: []  # a second for each call
    files = ("config.toml", "log.jsonl", "metrics.json", "scores.json", "plan.json", "training_metadata.json")
    for file in (*files, "lint.json", "strength.json"):
        found[f"report {file}"] = in_place(run / file, lambda: report.write_report(run))
    return found


def shrink_checkpoint(place: Path, same: dict[str, Any]) -> None:
    """Leave of a checkpoint what a run of one parameter would have, small enough to be fuzzed."""
    import torch
    from safetensors.torch import load_file, save_file

    kept = {name: value for name, value in load_file(place / "tensors.safetensors").items() if "random/" in name}
    kept |= {f"{kind}/w": torch.zeros(2) for kind in ("weight", "best", "optimizer/exp_avg", "optimizer/exp_avg_sq")}
    save_file({**kept, "optimizer/step/w": torch.tensor(1.0)}, place / "tensors.safetensors")
    state, metrics = json.loads((place / "state.json").read_text()), {"16": {"spearman": 0.5}}
    state |= {"parameters": ["w"], "identity": same, "evaluations": [], "baseline": metrics}
    state |= {"best": {"step": 1, "value": 0.5, "metrics": metrics}}
    (place / "state.json").write_text(json.dumps(state))


def fuzz(name: str, seconds: int, root: Path) -> None:
    """Fuzz one reader in this process, which libFuzzer then ends. Findings go to root/findings, one a line."""
    import atheris

    with atheris.instrument_imports(include=["trainer", "tomllib"]):
        from trainer import main  # noqa: F401  # and all below it
        from trainer.errors import TrainerError
        from trainer.system.console import console

        readers = file_readers(root)
        one, seeds = readers[name] if name in readers else run_readers(root)[name]
    console.quiet = True
    seen: set[str] = set()

    def note(error: str, data: bytes) -> None:
        place = [frame for frame in traceback.extract_tb(sys.exc_info()[2]) if "trainer" in Path(frame.filename).parts]
        where = f"{Path(place[-1].filename).name}:{place[-1].lineno}" if place else ""
        kind = f"{where} {error.partition(':')[0]}"
        if kind not in seen and len(seen) < 50:
            seen.add(kind)
            with (root / "findings").open("a") as file:
                file.write(json.dumps({"where": where, "error": error[:300], "input": repr(data[:300])}) + "\n")

    def call(data: bytes) -> None:
        start = time.process_time()
        try:
            one(data)
        except TrainerError as error:
            if "\n" in str(error):
                note(f"a message of several lines: {error}", data)
        except (Exception, SystemExit) as error:
            note(f"{type(error).__name__}: {error}", data)
        if (took := time.process_time() - start) > LIMIT_S:
            note(f"{took:.0f} s", data)

    (root / "corpus").mkdir()
    for number, seed in enumerate(seeds):
        (root / "corpus" / str(number)).write_bytes(seed)
    (root / "words").write_text("".join(f'"{escaped(word)}"\n' for word in (*WORDS.split(), *BYTES)))
    longest = max(SHORTEST_LIMIT, *(2 * len(seed) for seed in seeds))
    flags = {"max_total_time": seconds, "timeout": HANG_S, "max_len": longest, "rss_limit_mb": 0}
    flags |= {"dict": root / "words", "artifact_prefix": f"{root}/"}
    atheris.Setup(["fuzz", *(f"-{key}={value}" for key, value in flags.items()), str(root / "corpus")], call)
    atheris.Fuzz()


def escaped(word: str) -> str:
    """As libFuzzer's dictionaries want it."""
    return "".join(
        chr(byte) if byte < 128 and chr(byte).isalnum() else f"\\x{byte:02x}" for byte in word.encode("latin-1")
    )


def campaign(name: str, seconds: int, run: Path) -> dict[str, Any]:
    """Fuzz one reader in a process of its own, on a copy of a run. Returns its part of the record."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(run, root / "run")
        command = [sys.executable, "-m", "bench.reliability.fuzz", "--child", name]
        command += ["--seconds", str(seconds), "--folder", folder]
        environment = {**os.environ, "TRAINER_CACHE": folder}
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
        said = ended.stdout + ended.stderr
        (root / "findings").touch()
        findings = [json.loads(line) for line in (root / "findings").read_text().splitlines()]
    coverage = re.findall(r"cov: (\d+) ft: (\d+)", said)
    executed = re.search(r"Done (\d+) runs in (\d+) second", said)
    if ended.returncode or executed is None or not coverage:
        findings.append({"where": "", "error": f"the process ended with {ended.returncode}", "input": said[-500:]})
    runs, took = map(int, executed.groups()) if executed else (0, 1)
    features = {"branches": int(coverage[-1][0]), "features": int(coverage[-1][1])} if coverage else {}
    return {"seconds": took, "executions": runs, "per_second": round(runs / took), **features, "findings": findings}


def main() -> int:
    """Fuzz reader after reader, print the table, write the record; 1 where anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="of each reader (default 60)")
    parser.add_argument("--reader", action="append", metavar="NAME", help="this one only; may be repeated")
    parser.add_argument("--save", metavar="NAME", help="write bench/results/NAME.json, or add to it")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        fuzz(options.child, options.seconds, options.folder)
    from bench.records import RESULTS, environment, save_record

    here = environment()

    with tempfile.TemporaryDirectory() as folder:
        names = [*file_readers(Path(folder)), *run_readers(Path(folder))]
        if unknown := set(options.reader or ()) - set(names):
            parser.error(f"no reader {', '.join(unknown)}; there are {', '.join(names)}")
        results = {}
        for name in options.reader or names:
            found = results[name] = campaign(name, options.seconds, Path(folder) / "run")
            found["commit"] = here["commit"]
            counts = f"{found['executions']:9,} calls {found.get('features', 0):6} features"
            print(f"{name:40} {counts} {len(found['findings']):3} findings")
            lines = [f"    {line['where']} {line['error']} {line['input']}\n" for line in found["findings"]]
            print("".join(lines), end="", flush=True)
    record = {"environment": here, "limit_seconds": LIMIT_S, "readers": results}
    old = RESULTS / f"{options.save}.json"
    if options.save and old.exists():  # readers may be fuzzed one after the other
        record["readers"] = json.loads(old.read_text(encoding="utf-8"))["readers"] | results
    if options.save:
        print(save_record(options.save, record))
    return int(any(found["findings"] for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
