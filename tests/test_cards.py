"""Which cards a build of torch has code for, and what is kept of the cost of compiling."""

from __future__ import annotations

import pytest
import torch

from trainer.errors import InputError
from trainer.system import gpu

CUDA_12_6 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CUDA_12_8 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("arch_list", "capability", "runs"),
    [
        (CUDA_12_6, (8, 9), True),  # an RTX 4090 by sm_86
        (CUDA_12_6, (9, 0), True),
        (CUDA_12_6, (12, 0), False),  # an RTX 5090
        (CUDA_12_6, (10, 0), False),
        (CUDA_12_8, (12, 0), True),
        (CUDA_12_8, (12, 1), True),
        (CUDA_12_8, (10, 3), True),
        (CUDA_12_8, (11, 0), False),  # between two majors
        (CUDA_12_8, (7, 0), False),
        (["sm_86"], (8, 0), False),  # a lower minor
        (["sm_90", "compute_90"], (12, 0), True),  # the driver compiles PTX
        (["compute_120"], (9, 0), False),  # but not downwards
        (["sm_90a"], (9, 0), True),
        (["sm_100a"], (10, 3), False),  # that card alone
        (["compute_90a"], (10, 0), False),
        (["sm_100f"], (10, 3), True),  # the family
        (["compute_100f"], (10, 3), True),
        (["compute_100f"], (12, 0), False),
        (["gfx90a", "something"], (9, 0), False),
        ([], (9, 0), False),
    ],
)
def test_what_runs_on_which_card(arch_list, capability, runs):
    assert gpu.supports(arch_list, capability) is runs


def card(monkeypatch, capability, arch_list):
    """Make torch say that it sees such a card."""
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: arch_list)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "A CARD")


def test_a_card_without_code_is_one_line_with_the_fix(monkeypatch):
    card(monkeypatch, (12, 0), CUDA_12_6)
    with pytest.raises(
        InputError, match=r"A CARD has compute capability 12\.0.*sm_90 alone.*CUDA 12\.8 or newer"
    ) as caught:
        gpu.default_device()
    assert "\n" not in str(caught.value)
    card(monkeypatch, (6, 1), CUDA_12_8)
    with pytest.raises(InputError, match="older version"):
        gpu.require_code(torch.device("cuda"))


def test_other_devices_and_cards_with_code_pass(monkeypatch):
    gpu.require_code(torch.device("cpu"))
    card(monkeypatch, (8, 9), CUDA_12_6)
    assert gpu.default_device().type == "cuda"
    card(monkeypatch, (12, 0), [])  # a build that does not say
    gpu.require_code(torch.device("cuda"))
    card(monkeypatch, (9, 4), ["gfx942"])
    monkeypatch.setattr(torch.version, "cuda", None)  # ROCm
    gpu.require_code(torch.device("cuda"))
