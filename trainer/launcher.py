"""`accelerate launch` for the trainer: its exit codes and signals handed on, none of accelerate's own noise.

    python -m trainer.launcher [accelerate flags --] [trainer arguments]

Run as it is, `accelerate launch` turns every exit code into 1, adds a traceback and warnings of its own, dies of a
SIGTERM without telling the trainer, and starts one process on a CPU however many are asked for. Here one process is
not a child but takes the launcher's place (exec), so signals and the exit code need no help; several are started
by torch's elastic agent, on GPUs or (gloo) on the CPU, and every signal goes to each of them.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from trainer.errors import CheckpointError, InputError, NumericError, StorageError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

SCRIPT = str(Path(__file__).with_name("main.py"))
# Seconds that the others have to end when one rank has failed; a stopped one never does. Torch would wait 30.
GRACE_S = 3
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CAUSES = {error.exit_code for error in (InputError, NumericError, CheckpointError, StorageError)}


def split_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before the first `--` is accelerate's, what follows is the trainer's; without `--`, all of it."""
    if "--" not in arguments:
        return [], arguments
    cut = arguments.index("--")
    return arguments[:cut], arguments[cut + 1 :]


def machine_config() -> Path:
    """Where `accelerate config` leaves this machine's defaults (as in accelerate.commands.config.config_args)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return Path(os.environ.get("HF_HOME", cache / "huggingface")).expanduser() / "accelerate" / "default_config.yaml"


def exit_code(failures: Iterable[ProcessFailure]) -> int:
    """The code of the rank that failed first, as a shell would give it (128 + n after signal n).

    A rank that names a cause goes before those that only lost a peer by it and may be seen to end in the same second.
    """
    first = min(failures, key=lambda failure: (failure.exitcode not in CAUSES, failure.timestamp))
    if first.exitcode >= 0:
        return first.exitcode
    print(f"launch: a process (local rank {first.local_rank}) was ended by {first.signal_name()}", file=sys.stderr)
    return 128 - first.exitcode


def parse_flags(flags: list[str], trainer_arguments: list[str]) -> argparse.Namespace:
    """accelerate's own reading of its flags, with what would differ from a plain start filled in."""
    import torch
    from accelerate.commands.launch import launch_command_parser

    parser = launch_command_parser()
    parser.prog, parser.usage = "accelerate flags", argparse.SUPPRESS  # a slip in a flag is one line, not the manual
    args: argparse.Namespace = parser.parse_args([*flags, SCRIPT, *trainer_arguments])
    if args.training_script != SCRIPT:
        raise InputError(f"accelerate flags: {args.training_script!r} is no flag; only flags go before `--`")
    if args.config_file is None and (args.cpu or not machine_config().is_file()):
        if args.num_processes is None:
            many = args.multi_gpu or args.use_fsdp or args.use_deepspeed or args.use_megatron_lm
            args.num_processes = torch.accelerator.device_count() if many else 1
        if args.main_process_port is None and args.num_machines in (None, 1):
            args.main_process_port = 0  # any free one: two runs on a machine do not collide
        if args.num_cpu_threads_per_process is None and "OMP_NUM_THREADS" not in os.environ:
            local = max(1, args.num_processes // (args.num_machines or 1))
            args.num_cpu_threads_per_process = max(1, torch.get_num_threads() // local)  # accelerate would take 1
    args.signals_to_handle = ""  # ours: the elastic agent would lose the exit codes to its SignalException
    if args.log_dir is None and args.tee == "0":
        args.log_dir = os.devnull  # else each run leaves a folder in /tmp
    return args


def start_on_one_device(args: argparse.Namespace) -> None:
    """Stands in for accelerate's `simple_launcher`, which starts one process, waits for it, and hides how it ended."""
    from accelerate.commands.launch import multi_gpu_launcher
    from accelerate.utils import prepare_simple_launcher_cmd_env

    if args.num_processes > 1 and args.mpirun_hostfile is None:
        if not (args.cpu or args.use_cpu):
            raise InputError(f"accelerate flags: {args.num_processes} processes need --multi_gpu, or --cpu for the CPU")
        os.environ["ACCELERATE_USE_CPU"] = "true"
        multi_gpu_launcher(args)
        return
    command, environment = prepare_simple_launcher_cmd_env(args)
    os.execvpe(command[0], command, environment)


def forward(signum: int, frame: FrameType | None) -> None:
    """Hand a signal to every rank (each leads a session of its own, so none has it yet); before there are any, end."""
    import psutil

    ranks = psutil.Process().children()
    for rank in ranks:
        rank.send_signal(signum)
    if not ranks:
        raise SystemExit(128 + signum)


def launch(args: argparse.Namespace) -> int:
    """Run accelerate's launch command; return the trainer's exit code, unless the trainer took this process's place."""
    from subprocess import CalledProcessError

    from accelerate.commands import launch as accelerate
    from torch.distributed.elastic.multiprocessing.api import PContext
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    accelerate.simple_launcher = start_on_one_device
    close = PContext.close
    soon = lambda self, death_sig=None, timeout=GRACE_S: close(self, death_sig, GRACE_S)  # noqa: E731
    PContext.close = soon  # type: ignore[method-assign]
    for signum in SIGNALS:
        if signum != signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN:  # nohup ignores it for all of us
            signal.signal(signum, forward)
    try:
        accelerate.launch_command(args)
    except ChildFailedError as error:
        return exit_code(error.failures.values())
    except CalledProcessError as error:
        return error.returncode if error.returncode >= 0 else 128 - error.returncode
    except (ValueError, AssertionError, ImportError, OSError) as error:  # how accelerate refuses its flags
        raise InputError(f"accelerate: {error}") from error
    return 0


def main(arguments: list[str]) -> int:
    """Launch the trainer; return its exit code."""
    flags, trainer_arguments = split_flags(arguments)
    is_training = not trainer_arguments or trainer_arguments[0].startswith("-") or trainer_arguments[0] == "train"
    if not flags and not (is_training and machine_config().is_file()):
        # accelerate would start this very command, after seconds of imports; the others are for one process.
        os.execv(sys.executable, [sys.executable, SCRIPT, *trainer_arguments])
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)  # of accelerate and torch; the trainer's processes have their own
    try:
        return launch(parse_flags(flags, trainer_arguments))
    except InputError as error:
        print(f"launch: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
