"""Coverage-guided fuzzing of everything that reads a file: bytes in, a value or an error of the trainer's own out.

    python -m bench.reliability.fuzz [--seconds 60] [--reader NAME ...]     (extra `fuzz`; Linux)

libFuzzer, through atheris, changes the bytes and follows the branches of `trainer` and of Python's TOML reader. Each
reader has a process of its own. A finding is any other exception, a message of several lines, a call that takes more
than LIMIT_S of processor time, or the end of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from bench.records import environment, finish, make_parser
from bench.reliability.fuzz_readers import file_readers, run_readers

LIMIT_S = 5.0
HANG_S = 900  # on the clock, after which libFuzzer ends a call; other work may stop the process for minutes
SHORTEST_LIMIT = 1024  # bytes; an input may be so long, or twice as long as the seeds
# What libFuzzer may put in.
WORDS = """ " "" , { } [ ] [[ ]] : = null true NaN Infinity -1e999 1e400 \\ud800 \\u0000 text1 texts1 label labels phase
number description step size sha256 values parameters identity best random/0/torch evaluation prompts lr loss"""
BYTES = ("\n", "\r\n", "\t", "\0", "\xff", "\xef\xbb\xbf", "9" * 400)


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
    flags: dict[str, object] = {"max_total_time": seconds, "timeout": HANG_S, "max_len": longest, "rss_limit_mb": 0}
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
    parser = make_parser(__doc__, "fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="of each reader (default 60)")
    parser.add_argument("--reader", action="append", help="this one only, added to the record; may be repeated")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        fuzz(options.child, options.seconds, options.folder)
    commit = environment()["commit"]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        names = [*file_readers(Path(folder)), *run_readers(Path(folder))]
        if unknown := set(options.reader or ()) - set(names):
            parser.error(f"no reader {', '.join(unknown)}; there are {', '.join(names)}")
        for name in options.reader or names:
            found = results[name] = campaign(name, options.seconds, Path(folder) / "run") | {"commit": commit}
            counts = f"{found['executions']:9,} calls {found.get('features', 0):6} features"
            print(f"{name:40} {counts} {len(found['findings']):3} findings")
            lines = [f"    {line['where']} {line['error']} {line['input']}\n" for line in found["findings"]]
            print("".join(lines), end="", flush=True)
    old, readers = options.results / f"{options.name}.json", results
    if options.reader and old.exists():
        readers = json.loads(old.read_text(encoding="utf-8"))["readers"] | results
    finish(options, {"limit_seconds": LIMIT_S, "readers": readers})
    return int(any(found["findings"] for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
