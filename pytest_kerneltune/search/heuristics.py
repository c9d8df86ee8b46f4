"""How an expert goes about each kind of kernel: the arithmetic to do before choosing. As general as ``knobs.py``."""

from __future__ import annotations

_GPU = """\
- Grid: count programs (blocks) for the candidate tiles. Waves = programs / (SMs x programs resident on one). Below one
  wave SMs idle: smaller tiles or a split reduction. Between one and four the last, partly filled wave costs
  ceil(waves) / waves: compare tile shapes by it (132 tiles on 132 SMs beat 136). Above some eight it stops mattering.
- Residents of an SM = the least of: warps the SM holds / warps of a program; registers of the SM / (threads x registers
  per thread, about the accumulators plus 30 to 60); shared memory of the SM / bytes of a program. Kernels with
  independent arithmetic per thread run well with 8 to 16 resident warps; those that wait for memory want 24 to 48, or
  many independent loads per thread: bytes in flight = latency x bandwidth, some 10 to 40 KiB an SM.
- Registers: 255 per thread at most, spilling shows as a sudden slowdown. Accumulator registers = tile elements /
  threads; with an epilogue or a second operand in registers stay below 128.
- Sizes that are no multiples of the tile: prefer the tile with the larger useful share; a masked tail costs up to a
  whole tile."""

_TRITON_HEURISTICS = (
    _GPU
    + """
- Memory-bound kernels: read each byte once, at 16 bytes a load along the contiguous dimension, with enough programs;
  tiles, warps and rows per program decide, and the best few configs lie within 2% of each other.
- Bound by arithmetic (tl.dot): large tiles with enough warps first, pipelining second, order of programs third.
- Limits: tl.arange takes powers of two; tl.dot needs 16 or more along K (32 for 8-bit types); along M and N small tiles
  are padded to 16 in recent Triton and refused in older; a tensor has at most 1048576 elements. Very large tiles with
  few warps compile for minutes and then spill: they count as failures."""
)

_CUDA_HEURISTICS = (
    _GPU
    + """
- Families to compare: wide and flat blocks (128x1, 64x2, 256x1) against squarer ones (32x4, 32x8, 16x16), each with
  little and with much work per thread: block shape and work per thread interact, so vary them together. With more work
  per thread, smaller blocks (64 to 128 threads) are often best; with little, 256.
- The tile of a block = block size x work per thread: keep it wide along the contiguous dimension (64 or more), and
  count what it loads besides its own results (halo): (tile_x + w - 1)(tile_y + h - 1) / (tile_x x tile_y).
- AMD: wavefronts of 64 (CDNA) or 32 (RDNA), 64 KiB of shared memory per block (CDNA 4: 160), smaller caches per unit:
  work per thread counts as much, and what wins on NVIDIA GPUs need not win here, so keep the batch broader.
- Limits: 1024 threads a block; 48 KiB of static shared memory; grid limits matter in y and z only."""
)

_C_HEURISTICS = """\
- Count first: operations, bytes of all arrays, and which cache level they fit. In L1 or L2: vectorisation, independent
  sums and loop overhead decide. In L3 or memory: reuse through tiles decides, then prefetching and streaming.
- Tune in this order: algorithm, loop order and innermost stride, register tile and unroll, cache tiles, flags.
- What the compiler can know matters as much as the arithmetic: trip counts that are constants vectorise without
  remainder loops; a variable inner trip count below two vectors is slow; aliasing or a carried sum blocks vectorising.
- Tiles that divide the problem's size avoid remainder loops. Tiny tiles are dominated by loop overhead; a tile as large
  as the loop itself switches the tiling off, often the best for small problems.
- Stencils and filters: whole contiguous rows, tile the outer dimensions only. Matrix products: keep the innermost loop
  on contiguous columns with a long tile, K tile 64 to 256, and the reused panel in L1 or L2.
- Compilers are fickle: parameters that look neutral (unroll, tile of an outer loop) may switch vectorisation on or off,
  so give every ordered parameter two or three values over the batch."""

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


def heuristics(kind: str) -> str:
    """Rules of thumb for a kernel kind."""
    return HEURISTICS.get(kind, _PYTHON_HEURISTICS)
