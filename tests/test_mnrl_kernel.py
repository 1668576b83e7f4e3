"""Both implementations beside the plain definition. The kernels run in Triton's interpreter (see conftest.py), or on a
GPU where there is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_loss import listed

from trainer import loss
from trainer.loss import kernel_available, matryoshka_mnrl

pytest.importorskip("triton", reason="needs the package triton (extra `test`, on Linux)")

from trainer import fused

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EXACT = torch.float32 if DEVICE.type == "cuda" else torch.float64  # a GPU's kernels have no float64
CHECKOUT = Path(__file__).resolve().parent.parent
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}
ROWS = ("queries", "candidates")
UNIT = fused.ROWS // 16  # a GPU's tiles are so much larger than the interpreter's


@pytest.fixture(params=["tiles", "kernels", "kernels in many pieces"])
def implementation(request, monkeypatch):
    """Small problems in one piece as large ones never are, and in as many as they are."""
    pieces = request.param == "kernels in many pieces"
    monkeypatch.setattr(fused, "WORKSPACE_BYTES", 1 if pieces else 2**25)
    monkeypatch.setattr(fused, "MASK_BYTES", 1 if pieces else 2**28)
    monkeypatch.setattr(fused, "PROGRAMS", 512 if pieces else 1)
    return "tiled" if request.param == "tiles" else "triton"


def problem(queries, candidates, width, masked=0.0, seed=0):
    """Rows, targets and mask in float64, as keyword arguments."""
    torch.manual_seed(seed)
    rows = {"queries": torch.randn(queries * UNIT, width), "candidates": torch.randn(candidates * UNIT, width)}
    rows = {name: tensor.double().to(DEVICE) for name, tensor in rows.items()}
    targets = torch.randint(candidates * UNIT, (queries * UNIT,), device=DEVICE)
    mask = torch.rand(queries * UNIT, candidates * UNIT, device=DEVICE) < masked
    mask.scatter_(1, targets[:, None], False)
    return rows | {"targets": targets, "mask": mask if masked else None}


def plain(queries, candidates, targets, mask, dims, scale):
    """The definition: each prefix on its own."""
    losses = []
    for dim in dims:
        logits = scale * F.normalize(queries[:, :dim], eps=1e-300) @ F.normalize(candidates[:, :dim], eps=1e-300).T
        losses.append(F.cross_entropy(logits if mask is None else logits.masked_fill(mask, -torch.inf), targets))
    return torch.stack(losses)


def results(given, dims, scale, implementation=None, dtype=torch.float64):
    """Losses by dim, and the gradients of their weighted sum: of queries, candidates and scale."""
    rows = [given[name].to(dtype).requires_grad_() for name in ROWS]
    scale = torch.tensor(scale, dtype=torch.promote_types(dtype, torch.float32), device=DEVICE, requires_grad=True)
    mask, others = given["mask"], {"targets": given["targets"], "dims": dims, "scale": scale}
    weights = torch.linspace(0.5, 2.0, len(dims), dtype=scale.dtype, device=DEVICE)
    if implementation is None:
        by_dim = plain(*rows, mask=mask, **others)
        total = (weights * by_dim).sum()
    else:
        others |= {"weights": weights.tolist(), "tile": (13, 7), "implementation": implementation}
        others["excluded"] = None if mask is None else listed(mask)
        total, by_dim = matryoshka_mnrl(*rows, **others)
    gradients = torch.autograd.grad(total, [*rows, scale])
    assert [g.dtype for g in gradients] == [dtype, dtype, scale.dtype]
    return by_dim.detach(), *gradients


def distance(mine, theirs, lengths=(1.0, 1.0)):
    """The largest difference of any result, as a share of the largest entry of what it should be."""
    units = (1.0, *lengths, 1.0)
    pairs = [(a.double() * by, b.double() * by) for a, b, by in zip(mine, theirs, units, strict=True)]
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item() for a, b in pairs)


CASES = {
    "one query, one dim": (problem(1, 3, 8), [8], 20.0),
    "fewer queries, odd dims": (problem(5, 9, 40, masked=0.3, seed=1), [3, 7, 40], 20.0),
    "more queries than candidates": (problem(35, 6, 24, masked=0.2, seed=2), [24, 9], 5.0),
    "dims in any order, not the whole width": (problem(17, 33, 50, seed=3), [16, 47, 2, 32], 20.0),
    "scale 200": (problem(18, 37, 33, masked=0.5, seed=4), [33, 16], 200.0),
    "whole tiles": (problem(32, 16, 64, masked=0.1, seed=5), [64, 32, 16], 20.0),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_definition(implementation, case):
    assert distance(results(*CASES[case], implementation, EXACT), results(*CASES[case])) < TOLERANCE[EXACT]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_are_close(implementation, dtype):
    given = problem(21, 40, 48, masked=0.3, seed=6)
    given |= {name: given[name].to(dtype).double() for name in ROWS}
    mine = results(given, [48, 32, 7], 20.0, implementation, dtype)
    theirs = results(given, [48, 32, 7], 20.0)
    assert distance(mine, theirs) < TOLERANCE[dtype]
    # Only the gradient is rounded to bf16.
    torch.testing.assert_close(mine[0].double(), theirs[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("change", ["mask", "targets", "scale", "dims"])
def test_a_wrong_input_is_seen(change):
    given, dims, scale = CASES["fewer queries, odd dims"]
    right = results(given, dims, scale)
    changed = {
        "mask": ({**given, "mask": None}, dims, scale),
        "targets": ({**given, "targets": (given["targets"] + 1) % (9 * UNIT)}, dims, scale),
        "scale": (given, dims, scale * 1.001),
        "dims": (given, [3, 8, 40], scale),
    }[change]
    assert distance(results(*changed, "triton", EXACT), right) > 10 * TOLERANCE[EXACT]


def test_huge_and_tiny_rows_are_exact(implementation):
    given = problem(19, 34, 40, masked=0.2, seed=7)
    lengths = [10.0 ** torch.empty(len(given[n]), 1).uniform_(-30, 30).double().to(DEVICE) for n in ROWS]
    given |= {name: (given[name] * by).float().double() for name, by in zip(ROWS, lengths, strict=True)}
    mine = results(given, [40, 16, 5], 20.0, implementation, torch.float32)
    assert distance(mine, results(given, [40, 16, 5], 20.0), lengths) < 1e-5


def test_zero_vectors_have_cosine_0_and_no_gradient(implementation):
    given = problem(18, 20, 24, seed=8)
    given["targets"] = torch.arange(18 * UNIT, device=DEVICE)
    given["queries"][2] = 0
    given["queries"][3, :8] = 0  # zero for the smaller dim alone
    given["candidates"][[5, 19]] = 0
    by_dim, d_queries, d_candidates, d_scale = results(given, [24, 8], 20.0, implementation, EXACT)
    assert all(torch.isfinite(result).all() for result in (by_dim, d_queries, d_candidates, d_scale))
    assert d_queries[2].abs().max() == 0 and d_candidates[[5, 19]].abs().max() == 0
    assert d_queries[3, :8].abs().max() > 0  # the larger dim still pulls
    torch.testing.assert_close(by_dim.double(), plain(**given, dims=[24, 8], scale=20.0), rtol=1e-5, atol=0)


def test_a_row_with_one_candidate_left_has_loss_and_gradient_0(implementation):
    given = problem(17, 20, 24, seed=9)
    given["mask"] = torch.ones(17 * UNIT, 20 * UNIT, dtype=torch.bool, device=DEVICE)
    by_dim, *gradients = results(given, [24, 8], 200.0, implementation, EXACT)
    assert by_dim.abs().max() == 0 and all(gradient.abs().max() == 0 for gradient in gradients)


def test_inputs_may_lie_in_memory_in_any_way(implementation):
    given = problem(10, 12, 24, masked=0.3, seed=10)
    turned = given | {name: given[name].T.contiguous().T for name in (*ROWS, "mask")}
    theirs = results(given, [24, 8], 20.0)
    assert distance(results(turned, [24, 8], 20.0, implementation, EXACT), theirs) < TOLERANCE[EXACT]


def test_gradients_are_the_same_where_backward_runs_under_autocast():
    given = problem(10, 12, 24, seed=11)
    rows = [given[name].float().requires_grad_() for name in ROWS]
    gradients = []
    for enabled in (False, True):
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=enabled):
            total, _ = matryoshka_mnrl(*rows, dims=[24, 8], implementation="triton")
            gradients.append(torch.autograd.grad(total, rows))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def test_no_matrix_of_queries_by_candidates_is_kept():
    saved = []
    given = problem(40, 50, 8, seed=12)
    rows = [given[name].to(EXACT).requires_grad_() for name in ROWS]
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda t: t):
        matryoshka_mnrl(*rows, dims=[8, 4], implementation="triton")
    assert saved and max(saved) <= 50 * UNIT * 8


def test_which_implementation_is_taken(monkeypatch):
    rows = torch.empty(2048, 8, dtype=torch.float32, device="meta")
    assert kernel_available(DEVICE) and not kernel_available(rows.device)
    gpu = type("Rows", (), {"device": torch.device("cuda"), "dtype": torch.float32, "__len__": lambda self: 2048})()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        assert loss._with_kernels("auto", gpu, gpu)
        assert not loss._with_kernels("tiled", gpu, gpu)
        assert not loss._with_kernels("auto", gpu, range(8))  # small
        gpu.dtype = torch.float64
        assert not loss._with_kernels("auto", gpu, gpu)
    assert not loss._with_kernels("auto", rows, rows)
    for name in ("triton", "fastest"):
        with pytest.raises(ValueError, match=r"kernels|fastest"):
            loss._with_kernels(name, rows, rows)


def test_nothing_needs_triton_where_no_kernel_is_taken():
    program = """
import sys
sys.modules["triton"] = None
import torch
from trainer.loss import matryoshka_mnrl
assert torch.isfinite(matryoshka_mnrl(torch.randn(4, 8), torch.randn(4, 8), dims=[8, 4])[0])
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=CHECKOUT)


COMPILATION = """
from itertools import product
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from trainer import mnrl_kernel

ROWS = ("a", "c", "suffixes", "others")
POINTERS = ("a_factors", "c_factors", "log_sums", "means", "target_logits", "upstream", "column_sums", "gradient")

def compiled(kernel, rows, masked, turned, capability):
    config = kernel.configs[1]
    constants = {"EDGES": (0, 64, 128, 256, 512, 768), "OPERAND": triton.language.dtype(rows), **config.kwargs}
    constants |= {} if masked else {"mask": None}
    constants |= {"stride_row" if turned else "stride_column": 1}
    names = kernel.fn.arg_names
    kinds = dict.fromkeys(names, "i32") | dict.fromkeys(ROWS, f"*{rows}") | dict.fromkeys(POINTERS, "*fp32")
    kinds |= {"targets": "*i64", "mask": "*i1"} | dict.fromkeys(constants, "constexpr")
    aligned = [name for name in names if name.startswith("stride") or kinds[name].startswith("*")]
    source = ASTSource(
        kernel.fn,
        {name: kinds[name] for name in names},
        {(names.index(name),): value for name, value in constants.items() if name in names},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned if name not in constants},
    )
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

for rows, flag in product(("bf16", "fp32"), (False, True)):
    kernels = [compiled(kernel, rows, flag, False, 90) for kernel in (mnrl_kernel.forward, mnrl_kernel.slopes)]
    kernels.append(compiled(mnrl_kernel.products, rows, False, flag, 90))
    for kernel in kernels:
        assert "wgmma" in kernel.asm["ptx"] and kernel.metadata.shared <= 227 * 1024, (kernel.name, rows)
"""


def test_the_kernels_compile_for_a_gpu_that_is_not_here(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    subprocess.run([sys.executable, "-c", COMPILATION], check=True, cwd=CHECKOUT)
