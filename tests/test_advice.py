"""What is said about a kernel's work: traits on real and made sources, and the arithmetic of shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_kerneltune.search import Subject
from pytest_kerneltune.search.advice import has_products, workload
from pytest_kerneltune.search.arithmetic import arrays, work
from pytest_kerneltune.search.hardware import hardware_lines, multiprocessors
from pytest_kerneltune.search.heuristics import heuristics
from pytest_kerneltune.search.knobs import knobs
from pytest_kerneltune.search.starts import STARTS
from pytest_kerneltune.search.traits import STREAMING, found_traits, trait_lines, without_comments

KERNELS = Path(__file__).parent.parent / "examples" / "kernels"

ADD = """\
@triton.jit
def add(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    # no matmul, no attention, no histogram here
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < n)
    tl.store(out_ptr + offsets, x + tl.load(y_ptr + offsets, mask=offsets < n), mask=offsets < n)
"""
ATTENTION = """\
@triton.jit
def fwd(Q, K, V, O, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    for start in range(0, n, BLOCK_N):
        s = tl.dot(q, tl.load(K + start))
        m = tl.maximum(m, tl.max(s, 1))
        p = tl.math.exp2(s - m[:, None])
        acc = tl.dot(p.to(v.dtype), tl.load(V + start), acc)
"""
GROUPED = """\
@triton.jit
def grouped_mm(a_ptr, b_ptr, c_ptr, group_offsets, NUM_SMS: tl.constexpr, BLOCK_M: tl.constexpr):
    for tile in range(tl.program_id(0), num_tiles, NUM_SMS):
        acc = tl.dot(tl.load(a_ptr), tl.load(b_ptr), acc)
"""
HISTOGRAM = """\
extern "C" __global__ void count(const int *values, int *bins, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x)
        atomicAdd(&bins[values[i]], 1);
}
"""
JACOBI = """\
void step(const float *restrict in, float *restrict out, long n) {
    for (long i = 1; i < n - 1; i++)
        for (long j = 1; j < n - 1; j++)
            out[i * n + j] = 0.25f * (in[i * n + j - 1] + in[i * n + j + 1] + in[i * n - n + j]);
}
"""
SPARSE = """\
void multiply(const long *row, const long *col, const float *value, const float *x, float *y, long n) {
    for (long i = 0; i < n; i++) {
        float sum = 0;
        for (long e = row[i]; e < row[i + 1]; e++)
            sum += value[e] * x[col[e]];
        y[i] = sum;
    }
}
"""
DEQUANTISE = """\
@triton.jit
def w4a16(a_ptr, b_ptr, scales_ptr, c_ptr, SPLIT_K: tl.constexpr):
    b = (tl.load(b_ptr) >> 4) & 0xF
    acc = tl.dot(tl.load(a_ptr), (b * tl.load(scales_ptr)).to(tl.float16))
    tl.atomic_add(c_ptr, acc)
"""
TRANSPOSE = """\
extern "C" __global__ void transpose(const float *in, float *out) {
    __shared__ float tile[32][33];
    tile[threadIdx.y][threadIdx.x] = in[y * width + x];
    __syncthreads();
    out[x * height + y] = tile[threadIdx.x][threadIdx.y];
}
"""
SCAN = "y = tl.cumsum(tl.load(x_ptr + offsets), axis=0)"
FILTER = """\
extern "C" __global__ void apply(const float *input, float *output) {
    for (int i = 0; i < filter_height; i++)
        for (int j = 0; j < filter_width; j++)
            sum += input[(y + i) * pitch + x + j] * d_filter[i * filter_width + j];
}
"""


def traits(source: str, *names: str) -> list[str]:
    return [t.name for t in found_traits(names, source)]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("matmul.py", ["matrix product", "loop over loads"]),
        ("softmax.py", ["reduction", "persistent loop", "transcendental functions", "loop over loads"]),
        ("layer_norm.py", ["reduction", "loop over loads"]),
        ("matmul.c", ["matrix product"]),
        ("blur.c", ["stencil or convolution"]),
    ],
)
def test_the_examples_kernels_are_recognised(file: str, expected: list[str]) -> None:
    assert traits(KERNELS.joinpath(file).read_text()) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (ADD, []),
        (ATTENTION, ["attention", "transcendental functions", "loop over loads"]),
        (GROUPED, ["matrix product", "grouped or batched", "persistent loop", "loop over loads"]),
        (HISTOGRAM, ["atomic updates", "persistent loop"]),
        (JACOBI, ["stencil or convolution"]),
        (SPARSE, ["running sums", "gather or scatter"]),
        (DEQUANTISE, ["matrix product", "split reduction", "atomic updates", "quantised operands"]),
        (TRANSPOSE, ["transposition"]),
        (SCAN, ["scan"]),
        (FILTER, ["stencil or convolution"]),
    ],
)
def test_traits_of_unlike_kernels(source: str, expected: list[str]) -> None:
    assert traits(source) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["matmul[n4096]"], ["matrix product"]),
        (["fused_softmax"], ["reduction"]),
        (["flash_attention"], ["attention"]),
        (["kernel", "MWG", "NWG", "MDIMC"], ["matrix product"]),
        (["conv2d"], ["stencil or convolution"]),
        (["kernel", "BLOCK_SIZE_K", "BLOCK_SIZE_M", "BLOCK_SIZE_N"], ["matrix product"]),
        (["kernel", "BLOCK_I", "BLOCK_J", "BLOCK_K"], []),
        (["conversion", "summary", "format"], []),
        (["GROUP_M", "BLOCK_M", "num_warps"], []),
    ],
)
def test_names_alone_tell_something_where_the_source_is_withheld(names: list[str], expected: list[str]) -> None:
    assert traits("", *names) == expected


@pytest.mark.parametrize(
    ("source", "is_product"),
    [
        ("c[i * n + j] += a[i * n + k] * b[k * n + j];", True),
        ("y[i] += a[i * n + j] * x[j];", True),
        ("y[i] += a[i] * x[i];", False),
        ("y[i] += a[ i ] * x[i ];", False),
        ("y[i * n + j] += a[i * n + j] * x[i * n + j];", False),
    ],
)
def test_products_of_equal_indices_are_elementwise(source: str, is_product: bool) -> None:
    assert ("matrix product" in traits(source)) == is_product


def test_loops_unrolled_by_the_compiler_are_not_pipelined() -> None:
    assert traits("for i in tl.range(0, n):\n    x = tl.load(p + i)") == ["loop over loads"]
    assert traits("for i in tl.static_range(0, 4):\n    x = tl.load(p + i)") == []


def test_comments_say_nothing_about_the_work() -> None:
    assert "matmul" not in without_comments(ADD)
    assert without_comments("a /* b */ c // d\n#define E 1\n") == "a   c \n#define E 1\n"


@pytest.mark.parametrize("piece", ["a", "_", "[", "/* ", "a[i-1] ", "tl.dot( ", "for x in range(", "acc[", '""" '])
def test_odd_text_is_looked_through_in_little_time(piece: str) -> None:
    """A pattern that backtracks takes minutes over these."""
    assert isinstance(found_traits(["k"], piece * (60_000 // len(piece))), list)


def test_a_kernel_without_a_deciding_trait_is_streaming() -> None:
    assert [line.partition(":")[0] for line in trait_lines("triton", ["add"], ADD)] == [STREAMING]
    assert trait_lines("triton", ["add"], "") == []


def test_streaming_is_a_condition_where_nothing_was_found() -> None:
    bodies = "for (int j = 0; j < n; j++) f.x += weight(p[i], p[j]);"
    (line,) = trait_lines("cuda", ["nbody"], bodies)
    assert "if each element is touched once, memory bandwidth binds" in line


@pytest.mark.parametrize("kind", ["triton", "cuda", "c"])
def test_every_start_belongs_to_a_trait(kind: str) -> None:
    sources = [ADD, ATTENTION, GROUPED, HISTOGRAM, JACOBI, SPARSE, DEQUANTISE, TRANSPOSE, SCAN, "tl.max(x)"]
    named = {name for source in sources for name in traits(source)} | {STREAMING}
    assert set(STARTS[kind]) <= named


def test_the_advice_differs_with_the_kind() -> None:
    lines = {kind: trait_lines(kind, ["matmul"], "") for kind in ("triton", "helion", "cuda", "c", "python")}
    assert lines["triton"] == lines["helion"]
    assert len({tuple(found) for found in lines.values()}) == 4
    assert all(knobs(kind) and heuristics(kind) for kind in lines)


# Arrays and operations


def test_arrays_are_read_from_the_lines_of_all_kinds() -> None:
    lines = (
        "arg 0 x_ptr: bfloat16[4096, 8192], strides (8192, 1)",
        "arg 1: pointer to float32[240, 240]",
        "q: float8_e4m3fn[8, 64, 128]",
        "arg 4 rows: int 4096",
        "pair: (float32[2, 3], int 4)",
        "arg 6 eps: float 1e-05",
    )
    found = arrays(lines)
    assert [(a.shape, a.kind, a.bits) for a in found] == [
        ((4096, 8192), "bfloat", 16),
        ((240, 240), "float", 32),
        ((8, 64, 128), "float", 8),
        ((2, 3), "float", 32),
    ]
    assert (found[0].bytes, found[2].bytes) == (2**26, 2**16)


@pytest.mark.parametrize(
    ("trait", "inputs", "flop"),
    [
        ("matrix product", ("f16[64, 32]", "f16[32, 16]", "f16[64, 16]"), 2 * 64 * 32 * 16),
        ("matrix product", ("f16[64, 32]", "f16[16, 32]", "f16[64, 16]"), 2 * 64 * 32 * 16),
        ("matrix product", ("f16[5, 64, 32]", "f16[5, 32, 16]", "f16[5, 64, 16]"), 5 * 2 * 64 * 32 * 16),
        ("matrix product", ("f16[64, 32]", "f16[31, 16]", "f16[64, 16]"), 0),
        ("attention", ("f16[2, 8, 128, 64]",) * 4, 4 * 2 * 8 * 128 * 128 * 64),
        ("attention", ("f16[16, 1, 64]", "f16[16, 256, 64]", "f16[16, 256, 64]", "f16[16, 1, 64]"), 4 * 16 * 256 * 64),
        ("stencil or convolution", ("f32[78, 78]", "f32[15, 15]", "f32[64, 64]"), 2 * 64 * 64 * 225),
        ("stencil or convolution", ("f32[70, 70]", "f32[7]", "f32[64, 64]"), 2 * 64 * 64 * 14),
        (
            "stencil or convolution",
            ("f16[2, 3, 34, 34]", "f16[8, 3, 3, 3]", "f16[2, 8, 32, 32]"),
            2 * 2 * 8 * 1024 * 27,
        ),
        ("reduction", ("f16[64, 32]", "f16[32, 16]", "f16[64, 16]"), 0),
    ],
)
def test_operations_are_counted_where_shapes_leave_one_reading(
    trait: str, inputs: tuple[str, ...], flop: float
) -> None:
    assert work({trait}, arrays(inputs)).flop == flop


def test_an_addition_of_squares_is_no_product() -> None:
    inputs = ("x: float16[64, 64]", "y: float16[64, 64]", "out: float16[64, 64]")
    assert not any("GFLOP" in line for line in workload(Subject("add", "triton", ADD, inputs), ()))
    assert any("GFLOP" in line for line in workload(Subject("matmul", "triton", "", inputs), ()))


def test_squares_are_no_product_where_the_source_is_withheld() -> None:
    inputs = ("x: float16[64, 64]", "y: float16[64, 64]", "out: float16[64, 64]")
    assert not any("GFLOP" in line for line in workload(Subject("add", "triton", "", inputs), ()))
    by_parameters = workload(Subject("k", "triton", "", inputs), ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    assert any("GFLOP" in line for line in by_parameters)


def test_awkward_sizes_are_named_and_borders_are_not() -> None:
    lines = workload(Subject("k", "triton", ADD, ("x: float32[1500, 8192]",)), ())
    assert "size 1500: a single power-of-two tile over it is 2048 wide (27% of it idle)" in lines[-1]
    assert "no multiple of 16" in lines[-1]
    assert "8192" not in lines[-1]
    border = workload(Subject("k", "cuda", ADD, ("x: float32[4110, 4110]", "y: float32[4096, 4096]")), ())
    assert not any(line.startswith("size") for line in border)
    short = workload(Subject("k", "cuda", ADD, ("x: float32[100, 4096]",)), ())
    assert short[-1].startswith("size 100: useful share of tiles of 32: 78%, 64: 78%")


# Hardware


@pytest.mark.parametrize(
    ("kind", "fact", "word"),
    [
        ("triton", "X: compute capability 9.0, 132 SMs, 140 GiB", "wgmma"),
        ("triton", "X: compute capability 8.6, 82 SMs", "99 KiB"),
        ("triton", "X: compute capability 7.5, 40 SMs", "num_stages 1 or 2"),
        ("cuda", "X: compute capability 8.6, 82 SMs", "1536 threads"),
        ("cuda", "X: architecture gfx90a, 110 compute units", "wavefronts of 64"),
        ("triton", "X: architecture gfx942, 304 compute units", "matrix_instr_nonkdim"),
        ("cuda", "X: architecture gfx1032, 28 compute units", "RDNA 2: wavefronts of 32"),
        ("cuda", "X: architecture gfx1010, 40 compute units", "RDNA 1: wavefronts of 32"),
        ("cuda", "X: architecture gfx1201, 64 compute units", "RDNA 4"),
        ("triton", "X: architecture gfx950, 256 compute units", "160 KiB"),
        ("triton", "X: architecture gfx942, 304 compute units", "64 KiB"),
        ("cuda", "X: architecture gfx906, 60 compute units", "no matrix instructions"),
        ("cuda", "X: architecture gfx908, 120 compute units", "MFMA"),
        ("triton", "X: compute capability 7.5, 40 SMs", "pipelines nothing"),
        ("c", "vector instructions: avx avx2 fma avx512f", "16 floats"),
        ("c", "vector instructions: avx avx2 fma", "8 floats"),
    ],
)
def test_an_architecture_is_explained(kind: str, fact: str, word: str) -> None:
    lines = hardware_lines(kind, [fact])
    assert lines[0] == fact
    assert word in lines[1]


def test_tensor_cores_are_explained_to_products_only() -> None:
    facts = ["X: compute capability 9.0, 132 SMs, 140 GiB"]
    assert "wgmma" not in hardware_lines("triton", facts, has_products=False)[1]
    assert has_products(Subject("matmul", "triton", ""), ())
    assert has_products(Subject("something", "triton", ""), ())
    assert not has_products(Subject("add", "triton", ADD), ())


def test_unknown_hardware_is_left_as_it_is() -> None:
    assert hardware_lines("triton", ["X: compute capability 6.1, 20 SMs"]) == ["X: compute capability 6.1, 20 SMs"]
    assert hardware_lines("c", []) == []
    assert [multiprocessors([f]) for f in ("A: 132 SMs, 1 GiB", "B: 110 compute units", "C")] == [132, 110, 0]
