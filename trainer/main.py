"""The command line: which command runs, and the exit code. `trainer [train]`, and the others of `COMMANDS`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Started as a file (`accelerate launch trainer/main.py`), Python puts trainer/ itself first on the path, where its
    # modules would hide others of the same name. What belongs there is the folder above.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import os
import re
import select
import signal
import warnings
from collections.abc import Callable, Sequence

from trainer.config import setting_keys
from trainer.errors import InputError, Stopped, StorageError, TrainerError
from trainer.evaluation.command import evaluate_parser, run_evaluate
from trainer.evaluation.promote_command import promote_parser, run_promote
from trainer.labelling.command import label_parser, run_label
from trainer.lint.command import lint_parser, run_lint
from trainer.mining.command import build_pairs_parser, run_build_pairs
from trainer.report.command import report_parser, run_report
from trainer.search.command import (
    duplicates_parser,
    index_parser,
    run_duplicates,
    run_index,
    run_search,
    search_parser,
)
from trainer.serving.command import export_parser, run_export
from trainer.system.failures import is_out_of_memory, is_peer_lost
from trainer.system.process import tune_process
from trainer.system.signals import NUMBERS
from trainer.training.command import run_train, train_parser
from trainer.training.push_command import push_parser, run_push
from trainer.training.settings_command import run_settings, settings_parser


def cli(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, do the work, return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = "train"
    if arguments and not arguments[0].startswith("-"):
        command = arguments.pop(0)
    try:
        if command not in COMMANDS:
            raise InputError(f"unknown command {command!r}; use one of {', '.join(COMMANDS)}")
        make_parser, work = COMMANDS[command]
        options = make_parser().parse_args(arguments)
        tune_process()
        # Of a card that torch has no code for, in many lines; `require_code` says it in one.
        warnings.filterwarnings("ignore", message=r"\s*(Found GPU\d|.* with CUDA capability sm_)")
        work(options)
        sys.stdout.flush()  # here, where an error is told in a line
    except TrainerError as error:
        message = in_words_of(command, str(error))
        # Bad input and a signal are the same on every rank of a machine: one of them says so.
        if os.environ.get("LOCAL_RANK", "0") == "0" or not isinstance(error, InputError | Stopped):
            report(message)
        return error.exit_code
    except OSError as error:
        if isinstance(error, BrokenPipeError) and reader_has_left():
            return 0
        report(error)
        return StorageError.exit_code
    except (RuntimeError, MemoryError) as error:
        if is_peer_lost(error):
            # Of gloo's message, without its source lines and advice.
            cause = str(error).splitlines()[0].split("] ", 1)[-1].split(". ")[0]
            report(
                "another process of this run died, or did not answer within train.timeout; the first message says why "
                f"({cause})"
            )
            return TrainerError.exit_code  # of no cause's own: the launcher prefers the rank that has one
        if not is_out_of_memory(error):
            raise
        report(f"out of memory: {MORE_MEMORY[command]}")
        return InputError.exit_code
    return 0


def main() -> None:
    """The whole life of a process: the command line's work, then an end that no signal disturbs."""
    try:
        code = cli()
    except KeyboardInterrupt:  # of a command that has nothing to save
        report("interrupted")
        code = 128 + signal.SIGINT
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def in_words_of(command: str, message: str) -> str:
    """A message with the settings of training by the names that a command has for them.

    What loads a model or reads pairs is the same for all commands, and names settings. Other commands than `train` have
    options instead, or nothing of the kind, and then the message says whose setting it is.
    """
    if command in ("train", "settings"):
        return message
    message = message.replace("model.name = ", "model ")
    if "data.columns" in OPTIONS.get(command, {}):  # as a shell takes them: --columns "text1=Title" "label=same"
        message = re.sub(
            r'data\.columns = \[("(?:[^"\\]|\\.)*"(?:, "(?:[^"\\]|\\.)*")*)\]',
            lambda columns: "data.columns " + columns[1].replace('", "', '" "'),
            message,
        )

    def named(match: re.Match[str]) -> str:
        return OPTIONS.get(command, {}).get(match[0], f"{match[0]} (a setting of trainer train)")

    keys = "|".join(map(re.escape, setting_keys()))
    return re.sub(rf"(?<![\w./-])(?<!--set )({keys})(?![\w/-]|\.\w)", named, message)


def reader_has_left() -> bool:
    """Whether nobody reads standard output any more, as after `| head`; what is not written yet is dropped then."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # which leaves errors alone
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
    return True


def report(error: object) -> None:
    """Print an error as one line."""
    print(f"error: {error}".replace("\n", " "), file=sys.stderr)


COMMANDS: dict[str, tuple[Callable[[], argparse.ArgumentParser], Callable[[argparse.Namespace], None]]] = {
    "train": (train_parser, run_train),
    "evaluate": (evaluate_parser, run_evaluate),
    "promote": (promote_parser, run_promote),
    "lint": (lint_parser, run_lint),
    "label": (label_parser, run_label),
    "build-pairs": (build_pairs_parser, run_build_pairs),
    "report": (report_parser, run_report),
    "index": (index_parser, run_index),
    "search": (search_parser, run_search),
    "duplicates": (duplicates_parser, run_duplicates),
    "push": (push_parser, run_push),
    "export": (export_parser, run_export),
    "settings": (settings_parser, run_settings),
}


READ = {"data.encoding": "--encoding", "data.separator": "--separator"}
JUDGED = READ | {
    "data.columns": "--columns",
    "data.label_scale": "--label-scale",
    "data.positive_threshold": "--positive-threshold",
}
# Of a command, by the setting of training that they stand for.
OPTIONS = {
    "evaluate": JUDGED,
    "promote": JUDGED | {"data.allow_overlap": "--allow-overlap"},
    "lint": JUDGED,
    "label": JUDGED,
    "export": JUDGED,
    "build-pairs": READ,
    "index": READ,
    "search": READ,
}
ON_CPU = "; where a GPU is full, CUDA_VISIBLE_DEVICES= keeps to the CPU"
MORE_MEMORY = {  # what to do where it runs out
    "train": "set train.tokens_per_chunk, to 16384 first and lower while it still runs out",
    "evaluate": "judge a part of the pairs or tickets" + ON_CPU,
    "promote": "judge on a part of the pairs or tickets" + ON_CPU,
    "lint": "look at a part of the pairs, or leave out --model" + ON_CPU,
    "label": "give fewer pairs or tickets, or leave out --model" + ON_CPU,
    "build-pairs": "give fewer tickets, lower --sizes and --max-words, or leave out --model" + ON_CPU,
    "report": "compare fewer runs",
    "index": "cut embeddings with --dims" + ON_CPU,
    "search": "search for fewer --tickets at a time" + ON_CPU,
    "duplicates": "take a higher --threshold" + ON_CPU,
    "push": "end other programs",
    "export": "judge by fewer --pairs, or end other programs",
    "settings": "end other programs",
}


if __name__ == "__main__":
    main()
