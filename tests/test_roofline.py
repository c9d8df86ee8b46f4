"""Which roof binds a kernel and how low its latency can be, from a device's facts and its inputs' shapes."""

from __future__ import annotations

import math

import pytest

from pytest_kerneltune.gpu import cpu_device
from pytest_kerneltune.search import Subject
from pytest_kerneltune.search.peaks import (
    amd_facts,
    arithmetic,
    bandwidth,
    bandwidth_facts,
    cpu_facts,
    flop_per_clock,
    nvidia_facts,
    resident_facts,
)
from pytest_kerneltune.search.roofline import Roof, distance, roof, roof_lines

H200 = (
    "NVIDIA H200: compute capability 9.0, 132 SMs, 140 GiB",
    *bandwidth_facts(6016, 3201),
    *nvidia_facts("NVIDIA H200", "9.0", 132, 1980),
)
CPU = ("AMD EPYC: 2 logical cores", "caches: L1d 48K, L1i 32K, L2 1024K, L3 32768K", *cpu_facts({"avx2", "fma"}))
N = 4096
PRODUCT = tuple(f"{name}: bfloat16[{N}, {N}], strides ({N}, 1)" for name in "abc")
DOT = "acc = tl.dot(tl.load(a), tl.load(b), acc)"


def subject(kind: str, source: str, inputs: tuple[str, ...], hardware: tuple[str, ...] = H200) -> Subject:
    return Subject("kernel", kind, source, inputs, hardware=hardware)


# Rates


@pytest.mark.parametrize(
    ("name", "capability", "sms", "mhz", "kind", "tflops"),
    [
        # What the makers' data sheets say, at the clocks they quote.
        ("Tesla V100-SXM2-16GB", "7.0", 80, 1530, "FP16 tensor", 125),
        ("Tesla T4", "7.5", 40, 1590, "FP16 tensor", 65),
        ("NVIDIA A100-SXM4-40GB", "8.0", 108, 1410, "BF16 tensor", 312),
        ("NVIDIA A100-SXM4-40GB", "8.0", 108, 1410, "TF32 tensor", 156),
        ("NVIDIA A100-SXM4-40GB", "8.0", 108, 1410, "FP64", 9.7),
        ("NVIDIA GeForce RTX 3090", "8.6", 82, 1695, "FP32", 35.6),
        ("NVIDIA GeForce RTX 3090", "8.6", 82, 1695, "FP16 tensor", 71),
        ("NVIDIA A40", "8.6", 84, 1740, "FP16 tensor", 149.7),
        ("NVIDIA L4", "8.9", 58, 2040, "FP16 tensor", 121),
        ("NVIDIA L40S", "8.9", 142, 2520, "FP8 tensor", 733),
        ("NVIDIA GeForce RTX 4090", "8.9", 128, 2520, "FP16 tensor", 165.2),
        ("NVIDIA H100 80GB HBM3", "9.0", 132, 1830, "FP16 tensor", 989),
        ("NVIDIA H200", "9.0", 132, 1980, "FP32", 67),
        ("NVIDIA B200", "10.0", 148, 1850, "BF16 tensor", 2250),
        ("NVIDIA GeForce RTX 5090", "12.0", 170, 2407, "FP16 tensor", 209.5),
    ],
)
def test_rates_agree_with_data_sheets(
    name: str, capability: str, sms: int, mhz: float, kind: str, tflops: float
) -> None:
    assert arithmetic(nvidia_facts(name, capability, sms, mhz))[kind] == pytest.approx(tflops, rel=0.02)


@pytest.mark.parametrize(
    ("bits", "mhz", "gb_per_s"),
    [(5120, 1215, 1555), (384, 9751, 936), (6016, 3201, 4800), (192, 6251, 300), (512, 14001, 1792)],
)
def test_bandwidth_agrees_with_data_sheets(bits: int, mhz: float, gb_per_s: float) -> None:
    assert bandwidth(bandwidth_facts(bits, mhz)) == pytest.approx(gb_per_s, rel=0.01)


def test_products_of_amd_are_known_by_name() -> None:
    assert bandwidth(amd_facts("AMD Instinct MI250X")) == 1638
    assert arithmetic(amd_facts("AMD Instinct MI250X/MI250"))["FP16 matrix"] == 191.5
    assert bandwidth(amd_facts("AMD Instinct MI300X")) == 5300
    assert bandwidth(amd_facts("AMD Radeon Pro W6600")) == 224


def test_what_is_not_known_is_not_said() -> None:
    assert bandwidth_facts(0, 3201) == bandwidth_facts(384, 0) == []
    assert nvidia_facts("GeForce GTX 1080", "6.1", 20, 1733) == nvidia_facts("NVIDIA H200", "9.0", 132, 0) == []
    assert amd_facts("AMD Radeon VII") == cpu_facts({"sse4_2"}) == resident_facts(0, 0, 0) == []
    assert resident_facts(2048, 32, 0) == ["per multiprocessor: at most 2048 threads (64 warps of 32)"]
    assert (bandwidth([]), arithmetic(["peak"]), flop_per_clock(H200)) == (0, {}, 0)


def test_every_rate_is_called_an_estimate() -> None:
    lines = [*H200[1:], *amd_facts("MI210"), *CPU[2:], *cpu_device().facts[3:]]
    assert [line for line in lines if "estimated" not in line] == []


@pytest.mark.parametrize(
    ("flags", "rate"), [({"avx512f", "fma"}, 64), ({"avx2", "fma"}, 32), ({"asimd"}, 16), (set(), 0)]
)
def test_a_core_s_rate_follows_its_widest_vectors(flags: set[str], rate: int) -> None:
    assert flop_per_clock(cpu_facts(flags)) == rate


# Roofs


def test_a_large_product_is_bound_by_arithmetic() -> None:
    bounds = roof(subject("triton", DOT, PRODUCT))
    assert (bounds.bytes, bounds.flop, bounds.kind) == (3 * 2 * N * N, 2 * N**3, "BF16 tensor")
    assert bounds.arithmetic_s == pytest.approx(2 * N**3 / 1.07e15, rel=0.01)
    assert bounds.memory_s == pytest.approx(3 * 2 * N * N / 4.81e12, rel=0.01)
    assert bounds.least_s == bounds.arithmetic_s
    lines = roof_lines(subject("triton", DOT, PRODUCT))
    assert "arithmetic binds" in lines[-1]
    assert "(BF16 tensor)" in lines[1]


def test_a_product_with_few_rows_is_bound_by_memory() -> None:
    few = subject("triton", DOT, ("a: float16[16, 4096]", "b: float16[4096, 4096]", "c: float16[16, 4096]"))
    assert "memory bandwidth binds if" in roof_lines(few)[2]


def test_close_roofs_are_named() -> None:
    near = subject("triton", DOT, ("a: float16[256, 4096]", "b: float16[4096, 4096]", "c: float16[256, 4096]"))
    assert "the roofs are close" in roof_lines(near)[-1]


@pytest.mark.parametrize(
    ("kind", "source", "inputs", "expected"),
    [
        ("triton", DOT, "float16", "FP16 tensor"),
        ("helion", "acc = hl.dot(a, b)", "bfloat16", "BF16 tensor"),
        ("triton", DOT, "float32", "TF32 tensor"),
        ("triton", DOT.replace("acc)", "acc, allow_tf32=False)"), "float32", "FP32"),
        ("triton", DOT.replace("acc)", 'acc, input_precision="ieee")'), "float32", "FP32"),
        ("triton", DOT, "int8", "INT8 tensor"),
        ("triton", DOT, "float8_e4m3fn", "FP8 tensor"),
        ("triton", DOT, "float64", "FP64"),
        ("cuda", "void gemm() { c[i] += a[i] * b[i]; }", "float32", "FP32"),
        ("cuda", "wmma::mma_sync(c, a, b, c);", "float16", "FP16 tensor"),
        ("triton", "tl.store(y, tl.load(x) + 1)", "float16", "FP32"),
    ],
)
def test_the_arithmetic_that_counts_follows_types_and_code(kind: str, source: str, inputs: str, expected: str) -> None:
    assert roof(subject(kind, source, tuple(f"{n}: {inputs}[64, 64]" for n in "abc"))).kind == expected


V100 = tuple(nvidia_facts("Tesla V100-SXM2-16GB", "7.0", 80, 1530))
T4 = tuple(nvidia_facts("Tesla T4", "7.5", 40, 1590))
A100 = tuple(nvidia_facts("NVIDIA A100-SXM4-40GB", "8.0", 108, 1410))
XF32 = DOT.replace("acc)", 'acc, input_precision="tf32")')


@pytest.mark.parametrize(
    ("hardware", "source", "inputs", "expected"),
    [
        (V100, DOT, "float32", "FP32"),
        (V100, DOT, "bfloat16", "FP32"),
        (V100, DOT, "int8", "FP32"),
        (V100, DOT, "float16", "FP16 tensor"),
        (T4, DOT, "bfloat16", "FP32"),
        (T4, DOT, "float32", "FP32"),
        (T4, DOT, "int8", "INT8 tensor"),
        (A100, DOT, "float8_e4m3fn", "FP16 tensor"),
        (amd_facts("MI300X"), DOT, "bfloat16", "BF16 matrix"),
        (amd_facts("MI300X"), DOT, "float32", "FP32 matrix"),
        (amd_facts("MI300X"), XF32, "float32", "TF32 matrix"),
        (amd_facts("MI300X"), DOT, "int8", "INT8 matrix"),
        (amd_facts("MI250X"), DOT, "float32", "FP32 matrix"),
        (amd_facts("MI250X"), XF32, "float32", "FP32 matrix"),
        (amd_facts("MI100"), DOT, "bfloat16", "BF16 matrix"),
        (amd_facts("W6600"), DOT, "float32", "FP32"),
    ],
)
def test_units_that_lack_a_type_do_not_lend_it_another_s_rate(
    hardware: tuple[str, ...], source: str, inputs: str, expected: str
) -> None:
    square = tuple(f"{n}: {inputs}[64, 64]" for n in "abc")
    assert roof(subject("triton", source, square, hardware)).kind == expected


def test_without_operations_the_bound_is_conditional() -> None:
    lines = roof_lines(subject("triton", "tl.store(y, tl.exp(tl.load(x)))", PRODUCT[:2]))
    assert "bandwidth roof: 64 MiB at 4814 GB/s take 13.94 us (estimated" in lines[0]
    assert "KiB of loads have to be in flight per multiprocessor (estimated" in lines[1]
    assert "memory bandwidth binds unless the source does more than about 13.9 operations per byte" in lines[2]


def test_a_processor_s_caches_and_core_bound_c() -> None:
    product = subject("c", "void matmul() {}", tuple(f"pointer to float32[240, 240], {n}" for n in "abc"), CPU)
    product = Subject("matmul", "c", product.source, product.inputs, hardware=CPU)
    lines = roof_lines(product)
    assert lines[0] == "the arrays hold 675 KiB: they fit L2"
    assert "0.02765 GFLOP at 96 GFLOPS take 288 us (estimated" in lines[1]
    large = Subject("copy", "c", "void copy() {}", ("pointer to float64[4096, 4096]",), hardware=CPU)
    assert roof_lines(large) == ["the arrays hold 128 MiB: they exceed all caches: memory traffic counts"]


def test_little_knowledge_gives_few_lines() -> None:
    assert roof_lines(Subject()) == []
    assert roof_lines(subject("triton", DOT, PRODUCT, ())) == []
    assert roof_lines(subject("python", "", ("n: int 4",))) == []
    only_memory = roof_lines(subject("triton", DOT, PRODUCT, H200[:2]))
    assert len(only_memory) == 2
    assert all("TFLOPS" not in line for line in only_memory)


def test_the_distance_names_the_roof_that_binds() -> None:
    bounds = Roof(bytes=10**9, flop=10**12, bandwidth=1000, kind="FP32", rate=10)
    assert math.isclose(bounds.least_s, 0.1)
    assert distance(bounds, 200.0) == "2 x the estimated arithmetic roof of 1e+05 us"
    assert distance(Roof(bytes=10**9, bandwidth=1000), 1.5) == "1.5 x the estimated bandwidth roof of 1000 us"
    assert distance(Roof(), 1.0) == ""
