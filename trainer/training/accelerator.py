"""The accelerator of a run: processes, device, fp16 loss scaling and trackers."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

from trainer.config import Config
from trainer.errors import InputError
from trainer.training.tracking import make_trackers


def make_accelerator(config: Config, folder: Path) -> Accelerator:
    """The accelerator of a run, with the loss scaling of fp16 where that is asked for and the trackers asked for."""
    precision = "fp16" if config.train.precision == "fp16" else "no"  # bf16 is of `Inputs.autocast` alone
    trackers = make_trackers(config, folder) or None  # of [] accelerate warns
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=config.train.timeout))
    # One setting for the whole process is accelerate's idea: a second run would get the first one's precision. The
    # process group stays.
    AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            # Without it accelerate takes a number from the environment, and divides every gradient by it.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            log_with=trackers,
            project_dir=str(folder),
            kwargs_handlers=[patience],
        )
    except ValueError as error:
        raise InputError(f"train.precision = {config.train.precision}: {error}".replace("\n", " ")) from error
    if precision == "fp16" and accelerator.device.type == "cpu":  # accelerate takes it, and leaves out the loss scaling
        raise InputError('train.precision = fp16: needs a GPU; use "fp32", or "bf16" where the CPU has it')
    return accelerator
