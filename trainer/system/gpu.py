"""Which GPU there is, and whether this torch has code for it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable

import torch

from trainer.errors import InputError


def supports(arch_list: Iterable[str], capability: tuple[int, int]) -> bool:
    """Whether a build with code for these architectures runs on a card of this capability.

    Machine code (`sm_86`) runs on cards of its major version from its minor version on, so that a card of 8.9 needs no
    sm_89. PTX (`compute_90`) is compiled by the driver for any card that is not older. A name in "a" (`sm_90a`) is for
    that very card alone; a name in "f" (`sm_100f`) for cards of its family, which share the major version.

    Args:
        arch_list: names as of `torch.cuda.get_arch_list()`; those of other makers are passed over.
    """
    for name in arch_list:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if match is None:
            continue
        kind, major, minor, suffix = match.groups()
        code = (int(major), int(minor))
        if suffix == "a":
            runs = code == capability
        elif kind == "compute" and not suffix:
            runs = code <= capability
        else:
            runs = code[0] == capability[0] and code[1] <= capability[1]
        if runs:
            return True
    return False


def require_code(device: torch.device) -> None:
    """Check that this build of torch has code for a GPU. Any other device passes, and so do other makers' GPUs.

    Raises:
        InputError: it has none; the first product on the card would fail.
    """
    if device.type != "cuda" or torch.version.cuda is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says in ten lines what is said here in one
        capability, arch_list = torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
    if arch_list and not supports(arch_list, capability):
        major, minor = capability
        cuda = "12.8 or newer" if major >= 10 else "an older version, such as 12.6"
        raise InputError(
            f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, and this torch "
            f"{torch.__version__} has code for {', '.join(arch_list)} alone: install a torch built for CUDA {cuda}, by "
            "the command that pytorch.org gives for it, or keep to the CPU with CUDA_VISIBLE_DEVICES="
        )


def compute_fp32_in_full() -> None:
    """Turn off what rounds the factors of products in fp32: TF32 on a GPU, bf16 on a CPU.

    NVIDIA's containers, notebooks and accelerate's settings of a compiler turn it on for a whole process. Embeddings
    are then off by 1e-4, more than a reloaded model may differ from the one in memory.
    """
    torch.set_float32_matmul_precision("highest")


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU; fp32 is computed in full. Raises InputError as `require_code` does."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    require_code(device)
    compute_fp32_in_full()
    return device
