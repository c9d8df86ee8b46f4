"""What an expert would tell a newcomer about tuning a kind of kernel: the fixed texts of the prompts.

``KNOBS`` and ``HEURISTICS`` hold one text per kernel kind; ``workload`` reads traits and arithmetic off a kernel's
source and inputs. All of it is general knowledge: nothing here depends on the machine, and limits of particular GPUs
are quoted as such. The figures follow vendors' programming guides and what tuned Triton and C kernels commonly use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_TRITON_KNOBS = """\
- num_warps: one program instance runs on 32 x num_warps threads (64 x on AMD), and every tile is spread over them.
  Work out elements per thread = tile elements / threads. Memory-bound tiles do best with 8 to 32 (each thread then
  issues several 16-byte loads); accumulators of tl.dot with 32 to 128 float32 values. Below that, lanes idle and
  cross-warp reductions cost more than they gain; above it, registers spill.
- num_stages: how many iterations ahead the loads of a loop run. In a loop around tl.dot the operand tiles are buffered
  in shared memory: bytes ~ num_stages x (A tile + B tile). 3 or 4 suits large tiles, 4 or 5 small ones, 1 or 2 most
  loops without tl.dot and most AMD GPUs. A kernel without a loop over loads ignores it: leave it alone there.
- Tile sizes (BLOCK_M, BLOCK_N, BLOCK_SIZE, XBLOCK, ...): output elements per program. Bigger tiles reuse more data and
  issue fewer programs; smaller ones fill more SMs and cost fewer registers. Programs = product of ceil(size / tile).
- K tile (BLOCK_K and the like, the reduced dimension of tl.dot): 64 to 128 bytes of a row, so 32 or 64 for 16-bit
  types, 64 or 128 for 8-bit, 16 or 32 for float32. Doubling it halves the number of iterations and usually has to be
  paid for with fewer stages.
- GROUP_M / GROUP_SIZE_M: orders programs so that neighbours share operands in L2. 8 is the usual answer, 4 and 16 are
  worth a try, 1 switches it off and matters little when everything fits in L2.
- SPLIT_K and the like: cut the reduction over several programs where the output has fewer tiles than there are SMs;
  otherwise 1, since the partial sums cost traffic or atomics.
- Rows per program (ROWS, BLOCK_ROWS): 1 for long rows; 2 to 8 for short ones, so that every thread keeps 8 to 32
  elements. Raise num_warps with it.
- Chunk of a row in a looped reduction (BLOCK_N of a norm): 1024 to 4096 elements, or the whole padded row where that
  leaves at most 32 elements per thread; then the row is read once only.
- Persistent programs (NUM_PROGRAMS, PERSIST, programs per SM): a fixed grid that loops over tiles. Saves launch waves
  for many tiny tiles; for streaming kernels the plain grid is often as good, so try it, but do not bet on it.
- Loop unrolling, flattening, warp specialisation, eviction and cache hints: second-order. Set them on the best tiling,
  one at a time.
- maxnreg: caps registers per thread. Helps only where latency is not hidden for lack of resident warps; too low spills.
- num_ctas: cluster size; 1 unless the source is written for clusters.
- AMD only: waves_per_eu 0 to 4, matrix_instr_nonkdim 16 or 32, kpack 1 or 2.
- Limits: shared memory of one program at most 227 KiB (H100, H200, B200), 163 KiB (A100), 99 KiB (GeForce 30/40/50,
  L4, L40, A10), 64 KiB (most AMD); 255 registers per thread and 65536 per SM; tl.arange takes powers of two;
  tl.dot needs at least 16 along each dimension; one tensor holds at most 1048576 elements.
- A config over a limit fails and is wasted. Estimate shared memory and accumulators (tile elements / threads, twice
  that with an epilogue) before you propose a large tile; very large tiles with few warps also compile for minutes."""

_C_KNOBS = """\
- How a config reaches the compiler: a parameter NAME becomes the macro -DNAME=value (True is 1, False is 0, None leaves
  it undefined, a list is joined by commas); a value or name that begins with "-" is passed as a flag.
- Cache tiles (TILE, BLOCK, MC/KC/NC, ...): the data one tile touches should fit in a cache with room to spare: about
  half of L1 (32 to 48 KiB) for the innermost level, half of L2 (256 KiB to 2 MiB a core) for the next. Count every
  array the tile touches, times the element size. Avoid row strides that are large powers of two: they collide in sets.
- Register tiles (MR, NR, UNROLL_I, ...): rows x vectors of accumulators held in registers. 16 vector registers with
  AVX2 and 32 with AVX-512 or NEON bound the product; 8 to 12 (AVX2) or 16 to 28 (AVX-512) accumulators hide the
  latency of fused multiply-add. 6x16 and 4x24 (AVX2), 8x32 and 14x32 (AVX-512), 8x12 (NEON) are known float32 shapes.
- UNROLL: 2 to 8 exposes enough independent work; a sum needs several accumulators for it to help. Past that, code size
  and spills grow while nothing is gained.
- Loop order: the innermost loop should walk memory with stride one in the arrays it reads and writes; loops whose
  index leaves the largest operand unchanged go outside. For row-major C += A*B, i-k-j (or a tiled form) beats i-j-k.
- Vector width: 4 / 8 / 16 floats for SSE or NEON / AVX2 / AVX-512, half of that for doubles; twice the width is a
  cheap form of unrolling. The widest is not always the fastest on short or unaligned rows.
- -O2 against -O3: -O3 vectorises and unrolls more; try both on the best tiling. -ffast-math lets the compiler
  reorder sums and is what makes plain reductions vectorise (it may change results beyond the tolerance).
  -funroll-loops, -fno-tree-vectorize, -mprefer-vector-width=512 and prefetch distances are second-order.
- Threads and schedules: one thread per physical core for compute, fewer for pure memory traffic."""

_CUDA_KNOBS = """\
- Thread block (block_size_x, block_size_y, ...): threads per block = their product, a multiple of 32 (of 64 on AMD),
  128 to 512 as a rule, at most 1024. x should be at least 16 to 32 where neighbouring threads read neighbouring data.
- Work per thread (tile_size_x, tile_size_y, VW*, ...): results each thread computes. 2 to 8 in all raises reuse and
  hides latency; beyond that registers spill or too few blocks remain. Prefer the direction that reuses loaded data.
- Vector width: loads of 8 or 16 bytes a thread are best where alignment allows.
- Shared memory (use_shmem, SA, SB, ...): pays off where threads of a block read the same data several times; padding
  removes bank conflicts of column accesses. Recent GPUs' caches often serve stencils as well without it.
- Read-only loads, constant memory, unroll factors: second-order; set them on the best shape, one at a time.
- Limits: 1024 threads a block, 255 registers a thread, 48 KiB of static shared memory."""

_PYTHON_KNOBS = """\
- Nothing is known about what the parameters do beyond their names, their values and the source: read what each one
  changes there, and treat the rest as a black box with some order in its numbers."""

KNOBS = {"triton": _TRITON_KNOBS, "helion": _TRITON_KNOBS, "c": _C_KNOBS, "cuda": _CUDA_KNOBS}
"""Kernel kind to what its usual parameters do."""

_TRITON_HEURISTICS = """\
- Large dense tl.dot in 16-bit types: start from (M, N, K, warps, stages) = (128, 256, 64, 8, 3 or 4), its transpose
  (256, 128, 64, 8, 3 or 4), (128, 128, 64, 4 or 8, 3 or 4), (128, 128, 32, 4, 4 or 5), (64, 256, 64, 4 or 8, 4),
  (128, 64, 64, 4, 4) and (64, 64, 64, 4, 4). Small M: 16 or 32 rows, N 64 to 128, K 128, 4 warps, 4 or 5 stages.
- Waves = programs / SMs. Below 1 the GPU idles: shrink tiles or split the reduction. Just above a whole number the last
  wave is nearly empty: another tile shape may fix it. Far above 4 it stops mattering.
- Attention-like kernels: query tile 64 or 128, key tile 32 to 128, 4 warps (8 for 128 x 128 or wide heads), 2 to 4
  stages; the accumulator is query tile x head size.
- Row-wise reductions (softmax, norms): 4 or 8 warps for rows of 1024 to 8192 elements, 1 or 2 for shorter ones, 16 for
  longer ones.
- Elementwise kernels: 512 to 4096 elements a program at 4 or 8 warps; they are bound by memory bandwidth, and all that
  is to be gained is full 16-byte loads and enough programs.
- Stencils and gathers: keep the contiguous dimension widest (64 or more) and the others small."""

_C_HEURISTICS = """\
- Decide first what bounds the kernel: arithmetic per byte of the working set tells whether cache tiling (memory) or
  register tiling and vectorisation (arithmetic) comes first.
- Tune in this order: loop order and innermost stride, register tile and unroll, cache tiles, flags, prefetching.
- Tiles that divide the problem size avoid remainder loops; where none does, larger tiles waste relatively less.
- Tiny tiles are dominated by loop overhead; tiles past L2 bring nothing over no tiling.
- Stencils: full contiguous rows, tile the outer dimensions only. Matrix products: tile all three loops, and keep the
  innermost contiguous."""

_CUDA_HEURISTICS = """\
- At least four warps per scheduler's worth of resident threads, or a few warps with much independent work each.
- Compare families: wide and flat blocks (128x1, 64x2) against square ones (16x16), few results a thread against many.
- Enough blocks for several waves over all SMs, and sizes that divide the problem."""

_PYTHON_HEURISTICS = """\
- Spread over the whole space first: low, middle and high of every ordered parameter, every value of the unordered ones.
- Batch, block and chunk sizes usually have one best region: bracket it in factors of two or four.
- Thread and worker counts do best near the number of cores, or well below it where memory is the bottleneck."""

HEURISTICS = {
    "triton": _TRITON_HEURISTICS,
    "helion": _TRITON_HEURISTICS,
    "c": _C_HEURISTICS,
    "cuda": _CUDA_HEURISTICS,
}
"""Kernel kind to rules of thumb for choosing."""

_LANGUAGES = {
    "triton": "a Triton kernel",
    "helion": "a Helion kernel (compiled to Triton)",
    "c": "a C kernel",
    "cuda": "a CUDA C++ kernel",
}


def language(kind: str) -> str:
    """A kernel kind in words, "a Triton kernel"."""
    return _LANGUAGES.get(kind, "a Python function")


def knobs(kind: str) -> str:
    """What the usual parameters of a kernel kind do."""
    return KNOBS.get(kind, _PYTHON_KNOBS)


def heuristics(kind: str) -> str:
    """Rules of thumb for a kernel kind."""
    return HEURISTICS.get(kind, _PYTHON_HEURISTICS)


@dataclass(frozen=True)
class _Trait:
    """A property of a kernel that its source gives away, and what it means for tuning."""

    name: str
    pattern: str
    meaning: str


_TRAITS = (
    _Trait(
        "matrix product",
        r"tl\.dot|hl\.dot|torch\.(?:matmul|addmm)|mma_sync|\b\w*(?:gemm|matmul)\w*\b|\+=\s*\w+\[[^\]=;]*\]\s*\*\s*\w+\[",
        "operand reuse decides: tile shape first, then depth of the reduction tile, then pipelining",
    ),
    _Trait(
        "attention",
        r"\b\w*(?:attention|attn|flash)\w*\b|tl\.dot(?s:.*)tl\.(?:math\.)?exp2?\b(?s:.*)tl\.dot",
        "two products with a running softmax between them: the accumulator and the scores compete for registers",
    ),
    _Trait(
        "reduction",
        r"tl\.(?:sum|max|min|reduce|argmax|argmin|cumsum|associative_scan)\b|\b\w*(?:softmax|[lsn]_?norm|normalize|logsumexp)\w*\b|\brsqrt|\bsum\s*\+=",
        "one output per row or block: elements per thread and the number of cross-thread steps decide",
    ),
    _Trait(
        "transcendental functions",
        r"tl\.(?:math\.)?(?:exp2?|log2?|sin|cos|erf|sigmoid|tanh)\b|\b(?:exp|log|sin|cos|erf|tanh)f?\s*\(",
        "special-function throughput may bound it beside memory",
    ),
    _Trait(
        "stencil or convolution",
        r"\b\w*(?:stencil|convolution|conv\dd?|blur|laplac|jacobi)\w*\b|\[\s*\w+\s*[-+]\s*1\s*\]",
        "neighbouring outputs share inputs: long contiguous runs, small tiles across them",
    ),
    _Trait(
        "atomic updates",
        r"tl\.atomic_|\batomicAdd|__atomic_|__sync_fetch",
        "contention grows with the number of programs that hit one address",
    ),
    _Trait(
        "loop pipelined by the compiler",
        r"tl\.range\(|for\s+\w+\s+in\s+(?:tl\.)?(?:static_)?range\((?s:.*)tl\.load",
        "num_stages acts on it",
    ),
)
_STREAMING = "elementwise or streaming"
_COMPUTE = {"matrix product", "attention", "reduction", "stencil or convolution"}

_SHAPE = re.compile(r"[\[(]\s*(\d+(?:\s*,\s*\d+)*)\s*,?\s*[\])]")
_TYPE = re.compile(r"\b(?:bfloat|float|fp|bf|uint|int|complex|[fiu])(8|16|32|64|128)")


def workload(name: str, source: str, inputs: Sequence[str]) -> list[str]:
    """What the source and the inputs of a kernel say about its work, one line each; may be empty."""
    return [*_trait_lines(name, source), *_size_lines(inputs)]


def _trait_lines(name: str, source: str) -> list[str]:
    text = f"{name}\n{source}"
    found = [t for t in _TRAITS if re.search(t.pattern, text, re.IGNORECASE)]
    lines = [f"{t.name}: {t.meaning}" for t in found]
    if source and not _COMPUTE & {t.name for t in found}:
        lines.append(f"{_STREAMING}: each element is touched once, so memory bandwidth is the bound")
    return lines


def _size_lines(inputs: Sequence[str]) -> list[str]:
    arrays = [a for a in map(_array, inputs) if a is not None]
    if not arrays:
        return []
    total = sum(math.prod(shape) * size for shape, size in arrays)
    lines = [f"the arrays hold {_bytes(total)} in all; reading or writing each byte once is the least traffic"]
    lines += _product_lines(arrays, total)
    sizes = sorted({n for shape, _ in arrays for n in shape if n > 2})
    return lines + [_padding(n) for n in sizes if n & (n - 1)][:8]


def _array(line: str) -> tuple[list[int], int] | None:
    """Shape and bytes per element of an input that is described as an array."""
    shape, kind = _SHAPE.search(line), _TYPE.search(line)
    return None if shape is None or kind is None else ([int(n) for n in shape[1].split(",")], int(kind[1]) // 8)


def _product_lines(arrays: Sequence[tuple[list[int], int]], total: int) -> list[str]:
    """The arithmetic of a matrix product where three arrays have its shapes."""
    flat = [shape for shape, _ in arrays if len(shape) == 2]
    for (m, k), (k2, n) in pairwise(flat):
        if k == k2 and [m, n] in flat[2:]:
            work, tiles = 2 * m * n * k, math.ceil(m / 128) * math.ceil(n / 128)
            lines = f"as a product of {m}x{k} and {k}x{n}: {work / 1e9:.4g} GFLOP, {work / total:.4g} FLOP per byte"
            return [f"{lines} of the arrays; {tiles} output tiles of 128x128"]
    return []


def _padding(n: int) -> str:
    above = 1 << n.bit_length()
    return (
        f"size {n}: a single power-of-two tile over it is {above} wide ({1 - n / above:.0%} of it idle); "
        f"the largest power of two that divides it is {n & -n}"
    )


def _bytes(n: int) -> str:
    return f"{n / 2**20:.4g} MiB" if n >= 2**20 else f"{n / 2**10:.4g} KiB"
