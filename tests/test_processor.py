"""What the processor is asked, what follows from the answers, and that every way to a product is right."""

from __future__ import annotations

import threading

import pytest
import torch

from trainer.model.attention import choose_attention
from trainer.model.packing import pack
from trainer.system import devices, numerics, processor
from trainer.system.numerics import settle_numerics, unmeasured_line
from trainer.system.transfer import to_device

pytestmark = pytest.mark.numbers

CPU, CUDA, METAL = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
FP32, BF16 = torch.float32, torch.bfloat16
EPS = {FP32: 2.0**-21, BF16: 2.0**-8}  # of a sum in fp32 whose terms may cancel; of rounding to nearest in bf16
ROUNDED_ONCE = 1.01 * EPS[BF16]
WAYS = [(FP32, "onednn"), (FP32, "torch"), (BF16, "onednn"), (BF16, "torch"), (BF16, "widened")]


@pytest.fixture(autouse=True)
def ask_again(monkeypatch):
    """Each test asks for itself, and what it was told is forgotten before the next."""
    monkeypatch.delenv(processor.SWITCH, raising=False)
    processor.forget()
    yield
    monkeypatch.undo()
    processor.forget()


def take(dtype, way):
    if not processor.works(way, dtype):
        pytest.skip(f"this processor has no {dtype} product by {way}")
    processor.take_products({name: way for name, known in processor.TYPES.items() if known == dtype})


def gap(found, expected, least=1.0):
    """Largest difference, as a share of the largest value where that is above the least."""
    return ((found.double() - expected).abs().max() / expected.abs().max().clamp(min=least)).item()


# ---- products


@pytest.mark.parametrize("stays", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("shape", [(1, 16, 1), (37, 24, 56), (130, 96, 17)], ids=str)
@pytest.mark.parametrize(("dtype", "way"), WAYS, ids=str)
def test_products_are_those_of_float64_within_rounding(dtype, way, shape, stays):
    take(dtype, way)
    rows, inner, outer = shape
    x, bias = torch.randn(rows, inner).to(dtype), torch.randn(outer).to(dtype)
    for weight in (torch.randn(outer, inner), torch.randn(inner, outer).T):
        prepared = processor.prepared(weight, dtype, stays)
        exact = x.double() @ weight.to(dtype).double().T
        found = processor.product(x, prepared), processor.product(x, prepared, bias)
        assert found[0].dtype == found[1].dtype == dtype
        assert gap(found[0], exact) <= 8 * EPS[dtype] and gap(found[1], exact + bias.double()) <= 8 * EPS[dtype]
    other = torch.randn(rows, outer).to(dtype)
    assert gap(processor.product_over_rows(other, x), other.double().T @ x.double()) <= 16 * EPS[dtype]


def test_the_comparison_can_fail():
    x, weight = torch.randn(37, 24), torch.randn(56, 24)
    assert gap(processor.product(x.bfloat16(), weight.bfloat16()), x.double() @ weight.double().T) > 8 * EPS[FP32]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_take_torchs_own_product(dtype):
    x, weight = torch.randn(5, 8).to(dtype), torch.randn(3, 8).to(dtype)
    assert torch.equal(processor.product(x, weight), torch.nn.functional.linear(x, weight))
    assert not processor.is_widened(x)


def test_other_devices_are_not_asked():
    x, weight = torch.empty(5, 8, dtype=BF16, device="meta"), torch.empty(3, 8, dtype=BF16, device="meta")
    assert processor.product(x, weight).shape == (5, 3) and processor.product_over_rows(x, x).shape == (8, 8)
    assert not processor.is_widened(x)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("masked", ["bias", "no bias"])
def test_widened_attention_rounds_only_its_result(dropout, masked):
    """Beside float64 under the same dropout; in bf16 throughout, scores and weights are rounded as well."""
    torch.manual_seed(1)
    heads, width, lengths = 2, 16, torch.tensor([9, 9, 8, 3]).numpy()
    batch = pack(torch.zeros(int(lengths.sum()), dtype=torch.long).numpy(), lengths)
    bias = torch.randn(1, heads, 9, 9) if masked == "bias" else None
    inputs = [torch.randn(batch.token_count, heads * width).to(BF16) for _ in range(3)]

    def attend(dtype):
        torch.manual_seed(0)
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in inputs]
        attention = choose_attention(batch, None if bias is None else bias.to(BF16).to(dtype), heads, dropout)
        with torch.autocast("cpu", BF16, enabled=dtype == BF16):
            out = attention(*leaves)
        return out, *torch.autograd.grad(out.sum(), leaves)

    exact = attend(torch.float64)
    take(BF16, "widened")
    widened = attend(BF16)
    assert all(tensor.dtype == BF16 for tensor in widened)
    assert largest_gap(widened, exact) <= ROUNDED_ONCE
    take(BF16, "torch")
    plain = largest_gap(attend(BF16), exact)
    assert plain < 0.1 and (plain > ROUNDED_ONCE or not dropout)  # negative control; some fused kernels sum in fp32


def largest_gap(found, expected):
    return max(gap(*pair, least=0) for pair in zip(found, expected, strict=True))


# ---- what is asked


def broken(*_):
    raise RuntimeError("needs avx512bw")


def wrong(x, weight, bias, *_):
    return torch.nn.functional.linear(x, weight, bias) * 1.05  # more than four roundings of bf16


@pytest.mark.parametrize("operator", [broken, wrong])
def test_a_product_that_fails_or_is_wrong_is_not_taken(operator, monkeypatch):
    if not processor.works("onednn", FP32):
        pytest.skip("torch was built without oneDNN's operators")
    processor.forget()
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", operator)
    assert processor.product_way(FP32) == "torch" and processor.product_way(BF16) in ("torch", "widened")
    assert not processor.packs(FP32)
    x, weight = torch.randn(5, 8), torch.randn(3, 8)
    assert torch.equal(processor.product(x, processor.prepared(weight, FP32, True)), x @ weight.T)


def test_a_weight_that_cannot_be_packed_is_multiplied_as_it_is(monkeypatch):
    """As in bf16 without AVX-512, where oneDNN refuses to pack."""
    take(FP32, "onednn")
    assert processor.prepared(torch.randn(3, 8), FP32, True).is_mkldnn
    processor.forget()
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", broken)
    take(FP32, "onednn")
    weight = torch.randn(3, 8)
    assert processor.prepared(weight, FP32, True) is weight


def test_without_the_operators_torch_multiplies(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert processor.product_way(FP32) == "torch"
    monkeypatch.setattr(processor.platform, "machine", lambda: "arm64")
    assert not processor.has_bf16_instructions() and processor.product_way(BF16) == "widened"


def test_the_switch_leaves_onednn_out(monkeypatch):
    monkeypatch.setenv("TRAINER_ONEDNN", "off")
    assert processor.product_way(FP32) == "torch" and not processor.works("onednn", BF16)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", broken)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", broken)
    for dtype in (FP32, BF16):
        processor.product(torch.ones(2, 8, dtype=dtype), processor.prepared(torch.ones(3, 8), dtype, True))


@pytest.mark.parametrize(
    ("onednn", "torchs", "taken"), [(1.0, 0.8, "onednn"), (1.0, 0.6, "torch"), (0.1, 1.0, "onednn")]
)
def test_a_later_way_must_be_faster_by_a_margin(onednn, torchs, taken, monkeypatch):
    monkeypatch.setattr(processor, "works", lambda way, dtype: way != "widened")
    monkeypatch.setattr(
        processor, "seconds", lambda ways: tuple({"onednn": onednn, "torch": torchs}[way] for way, _ in ways)
    )
    assert processor.product_way(FP32) == taken


@pytest.mark.parametrize(
    ("instructions", "bf16", "native"), [(True, 0.5, True), (True, 1.1, False), (False, 0.5, False)]
)
def test_bf16_is_native_by_instructions_and_measurement(instructions, bf16, native, monkeypatch):
    """The flags of a processor say nothing of ONEDNN_MAX_CPU_ISA; the clock does."""
    monkeypatch.setattr(processor, "has_bf16_instructions", lambda: instructions)
    monkeypatch.setattr(processor, "works", lambda way, dtype: True)
    took = {("widened", BF16): 9.0, ("onednn", BF16): bf16, ("torch", BF16): bf16}
    monkeypatch.setattr(processor, "seconds", lambda ways: tuple(took.get(way, 1.0) for way in ways))
    assert processor.multiplies_bf16() == native


def test_asking_changes_no_random_state_and_no_number_of_threads():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.autocast("cpu", BF16):
        processor.product_way(FP32), processor.product_way(BF16), processor.bf16_slowdown()
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert all(way in ("onednn", "torch", "widened") for way in map(processor.product_way, (FP32, BF16)))


def test_threads_that_ask_at_once_are_told_the_same(monkeypatch):
    answers, measured, start = [], [], threading.Barrier(4)

    def seconds(ways):
        measured.append(ways)
        return (1.0, 0.1) if len(measured) == 1 else (0.1, 1.0)

    monkeypatch.setattr(processor, "works", lambda way, dtype: way != "widened")
    monkeypatch.setattr(processor, "seconds", seconds)

    def ask():
        start.wait()
        answers.append(processor.product_way(FP32))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert answers == ["torch"] * 4 and len(measured) == 1


def test_a_way_that_does_not_work_cannot_be_taken():
    for name, way in (("fp32", "widened"), ("bf16", "sorcery")):
        with pytest.raises(ValueError, match=f"{name} by {way}"):
            processor.take_products({name: way})


def test_the_least_time_counts_but_for_the_first():
    now, durations = [0.0], iter([9.0, 3.0, 1.0, 2.0, 4.0, 5.0])

    def act():
        now[0] += next(durations)

    assert processor.fastest_times([act], lambda: now[0]) == (1.0,)
    assert next(durations, None) is None  # each was tried TRIES times after the first


# ---- what a run settles on


@pytest.fixture
def machine(monkeypatch):
    """machine(bf16 on the CPU, capability of the GPU): a pretended one."""

    def pretend(native=False, capability=(9, 0)):
        monkeypatch.setattr(numerics, "has_bf16_instructions", lambda: native)
        monkeypatch.setattr(numerics, "multiplies_bf16", lambda: native)
        monkeypatch.setattr(numerics, "bf16_slowdown", lambda: 0.5 if native else 36.0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return pretend


@pytest.mark.parametrize(
    ("asked", "device", "native", "capability", "taken", "said"),
    [
        ("auto", CPU, False, None, "fp32", "no instructions for bf16"),
        ("auto", CPU, True, None, "bf16", "0.50 of the time"),
        ("auto", CUDA, False, (9, 0), "bf16", "capability 9.0"),
        ("auto", CUDA, False, (8, 0), "bf16", "capability 8.0"),
        ("auto", CUDA, True, (7, 5), "fp32", "emulates"),
        ("auto", METAL, True, None, "fp32", "mps"),
        ("bf16", CPU, False, None, "bf16", "36.0 times as long"),
        ("bf16", CPU, True, None, "bf16", "as train.precision says"),
        ("fp32", CPU, True, None, "fp32", "as train.precision says"),
        ("fp16", CUDA, False, (9, 0), "fp16", "as train.precision says"),
    ],
)
def test_which_precision_is_taken_and_why(asked, device, native, capability, taken, said, machine):
    machine(native, capability)
    settled = settle_numerics(asked, device)
    assert settled.precision == taken and said in str(settled)
    on_cpu = {"fp32", "bf16"} if taken == "bf16" else {"fp32"}
    assert set(settled.products) == (on_cpu if device == CPU else set())
    assert settled.conditions()["train.precision"] == taken


def test_products_that_instructions_do_not_speed_up_are_named(monkeypatch):
    monkeypatch.setattr(numerics, "has_bf16_instructions", lambda: True)
    monkeypatch.setattr(numerics, "multiplies_bf16", lambda: False)
    assert "no faster than in fp32" in settle_numerics("auto", CPU).reason


@pytest.mark.parametrize(
    ("saved", "native", "taken"),
    [("fp32", True, "fp32"), ("bf16", True, "bf16"), ("bf16", False, "fp32"), ("fp32", False, "fp32")],
)
def test_a_resumed_run_takes_its_precision_again_where_it_is_to_be_had(saved, native, taken, machine):
    machine(native)
    assert settle_numerics("auto", CPU, {"train.precision": saved}).precision == taken


def test_a_resumed_run_takes_its_products_again_where_they_work():
    for way in ("torch", "onednn"):
        if processor.works(way, FP32):
            saved = {"train.precision": "fp32", "products": {"fp32": way}}
            assert settle_numerics("auto", CPU, saved).conditions() == saved
            assert processor.product_way(FP32) == way


@pytest.mark.parametrize("products", [{"fp32": "gone"}, {"fp32": []}, [], None, {"bf16": "torch"}], ids=str)
def test_what_no_processor_wrote_is_not_taken(products, machine):
    machine(native=False)
    settled = settle_numerics("auto", CPU, {"train.precision": ["fp32"], "products": products})
    assert settled.conditions() == settle_numerics("auto", CPU).conditions()


def test_all_ranks_take_what_the_first_chose_or_what_works_anywhere(monkeypatch, machine):
    machine(native=True)
    first = numerics.Numerics("fp32", {"fp32": "torch"}, "of the first rank")
    monkeypatch.setattr(numerics, "share_object", lambda own: first)
    assert settle_numerics("auto", CPU) == first and processor.product_way(FP32) == "torch"
    monkeypatch.undo()
    machine(native=True)
    monkeypatch.setattr(numerics, "gather_objects", lambda can: [can, False])
    settled = settle_numerics("auto", CPU)
    assert (settled.precision, settled.products) == ("fp32", {"fp32": "torch"})
    settled = settle_numerics("bf16", CPU)
    assert (settled.precision, settled.products) == ("bf16", {"fp32": "torch", "bf16": "widened"})


@pytest.mark.parametrize(("asked", "dtype"), [("fp32", FP32), ("bf16", BF16)])
def test_the_context_of_the_forward(asked, dtype):
    with settle_numerics(asked, CPU).autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


# ---- other devices


def test_a_device_that_is_neither_is_said_to_be_unmeasured_with_the_way_around():
    assert unmeasured_line(CPU) is None and unmeasured_line(CUDA) is None
    line = unmeasured_line(METAL)
    assert "mps" in line and "ACCELERATE_USE_CPU=true" in line and "\n" not in line
    assert devices.widest_float(METAL) == FP32 and devices.widest_float(CUDA) == torch.float64


def test_the_random_state_of_any_device_is_taken_and_put_back(monkeypatch):
    calls = []

    class Module:
        @staticmethod
        def get_rng_state():
            return torch.tensor([7], dtype=torch.uint8)

        @staticmethod
        def set_rng_state(state):
            calls.append(state)

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: METAL)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: {"mps": Module}[kind])
    states = devices.random_states()
    first = torch.randn(4)
    devices.set_random_states(states)
    assert [state.tolist() for state in calls] == [[7]] and torch.equal(torch.randn(4), first)
    devices.set_random_states({"torch": states["torch"]})  # saved where there was no such device
    assert len(calls) == 1


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_attention_in_groups_runs_on_a_device_of_any_kind(dropout):
    elsewhere = torch.device("meta")
    batch = to_device(pack(torch.zeros(20, dtype=torch.long).numpy(), torch.tensor([9, 8, 3]).numpy()), elsewhere)
    inputs = [torch.empty(20, 16, device=elsewhere) for _ in range(3)]
    attend = choose_attention(batch, None, 4, dropout)
    assert attend(*inputs).shape == (20, 16) and attend(*inputs).device == elsewhere
