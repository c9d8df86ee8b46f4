"""What the usual parameters of each kind of kernel do, and how they are chosen: the fixed texts of the system message.

General knowledge only: nothing here depends on the kernel, its sizes or the machine. The figures follow vendors'
programming guides and what tuned Triton, CUDA and C kernels commonly use. What belongs to one sort of work (matrix
products, attention, ...) is in ``starts.py``, what belongs to one architecture in ``hardware.py``.
"""

from __future__ import annotations

_TRITON_KNOBS = """\
- Tile sizes (BLOCK_M, BLOCK_N, BLOCK_SIZE, XBLOCK, ...): output elements per program. Programs = product of
  ceil(size / tile). Bigger tiles reuse loaded data more and issue fewer programs; smaller ones fill more SMs and take
  fewer registers. A tile wider than the size computes padding: useful share = size / (ceil(size / tile) x tile).
- num_warps: one program runs on 32 x num_warps threads (64 x on AMD CDNA), and every tile is spread over them. Elements
  per thread = tile elements / threads. Streaming tiles do best at 8 to 32 elements per thread (16-byte loads, several
  in flight); sums of tl.dot at 64 to 128 float32 registers, 32 for small tiles, 256 only in tensor memory.
- num_stages: how many iterations of a loop are in flight (loads start num_stages - 1 ahead). Around tl.dot the operand
  tiles wait in shared memory: bytes = num_stages x (A tile + B tile) x element size (one stage less on capability 8.x
  and 12.x and on AMD), at most the limit per block; two programs share an SM only where both fit. 3 or 4 suits large
  tiles, 4 or 5 small ones. In loops without tl.dot the launch option does nothing on NVIDIA GPUs, unless the source
  hands it to tl.range(num_stages=...): then 1 to 4. A kernel whose loop runs once or twice, or that has none, ignores
  it: leave it at its default.
- K tile (BLOCK_K, the reduced dimension of tl.dot): 64 or 128 bytes of a row, that is 32 or 64 for 16-bit types, 64 or
  128 for 8-bit, 16 or 32 for float32. Doubling it halves the synchronisations and has to be paid with fewer stages.
- GROUP_M / GROUP_SIZE_M: orders programs so that neighbours share operands in L2: 8 is the usual answer, 4 and 16 close
  rivals, 1 switches it off. It gains where the operands exceed L2, and nothing where they fit.
- SPLIT_K and the like: cuts the reduction over several programs; for fewer output tiles than SMs (small M and N, long
  K). Aim at tiles x split = one to two times the SMs; otherwise 1, as partial sums cost traffic or atomics.
- Rows per program (ROWS, BLOCK_ROWS, XBLOCK of a reduction): 1 for long rows; 2 to 16 for short ones, so that every
  thread keeps 8 to 32 elements. num_warps grows with rows x width.
- Chunk of a looped reduction (BLOCK_N of a norm, RBLOCK): compare the whole padded row (at 32 elements per thread or
  less the row is read once and the loop vanishes; right for rows up to about 4096) with chunks of 1024 to 4096 (fewer
  registers, more programs resident, a second pass hits the caches; often better for longer rows). Neither wins always.
- Persistent grids (NUM_PROGRAMS, NUM_SMS, PROGRAMS_PER_SM): a fixed number of programs loop over the tiles. Right
  numbers are SMs x resident programs (1 for big tl.dot tiles; 2, 4, 8 or more for light ones, up to what registers and
  threads admit); too few leave SMs without enough loads in flight, while more than are resident only even out the load:
  for light bodies include the largest number. Gains where there are many short tiles to start, or where it lets loads
  of the next tile overlap the last one; the plain grid is its equal rival: try both.
- Loop unrolling, flattening, warp specialisation, eviction policies and cache modifiers: second-order, a few percent.
  evict_last on data read again, evict_first on data read once. Vary them on the best tilings.
- maxnreg: caps registers per thread; helps only where too few warps are resident to hide latency. num_ctas: 1 unless
  the source is written for clusters.
- AMD only: waves_per_eu 0 to 4, matrix_instr_nonkdim 16 or 32 and kpack 1 or 2 on CDNA; num_stages 1 or 2."""

_HELION_KNOBS = (
    """\
- Names in Helion: block_sizes = tile along each tiled dimension, in the order of the source; loop_orders = order of
  the grid's dimensions; l2_groupings = as GROUP_M (8, 4, 16, 1); flatten_loops = one dimension instead of several;
  reduction_loops = null for whole rows at once, a number for chunks of it; pid_type = "flat" is the plain grid, the
  "persistent_..." ones start SMs x num_sm_multiplier programs that loop over tiles; indexing = "pointer",
  "block_ptr", or "tensor_descriptor" for TMA on capability 9.0 and newer (large regular tiles); range_unroll_factors,
  range_num_stages, range_multi_buffers, range_flattens, range_warp_specializes = of the inner loops, 0 or null being
  the compiler's choice. What decides is block_sizes, num_warps, num_stages, then pid_type and indexing.
"""
    + _TRITON_KNOBS
)

_C_KNOBS = """\
- How a config reaches the compiler: a parameter NAME becomes the macro -DNAME=value (True is 1, False is 0, None leaves
  it undefined, a list is joined by commas); a value or name that begins with "-" is passed as a flag.
- Loop order: the innermost loop should walk memory with stride one in what it reads and writes, and carry no dependence
  (a sum into one scalar vectorises only with -ffast-math or several accumulators). For row-major C += A * B, i-k-j and
  k-i-j vectorise over j and beat i-j-k by several times. Loops whose index leaves the largest operand unchanged go
  outside. This is the first-order parameter where it exists.
- Cache tiles (TILE, BLOCK, MC/KC/NC, ...): what one tile touches (every array, times the element size) should take
  about half of a cache: of L1d for the innermost level, of L2 for the next. The contiguous dimension gets the longest
  tile (128 elements or more, or all of it), so that vector loops run long; the reused outer dimensions get the small
  ones. Where everything fits L2 as it is, tiles cost overhead and large ones win. Row strides that are large powers of
  two collide in cache sets; packing cures that.
- Register tiles (MR, NR, UNROLL_I, ...): rows x vectors of sums kept in registers, for reuse and to hide the latency of
  fused multiply-add (4 to 5 cycles x 2 units = 8 to 10 independent sums). Known float32 shapes: 6x16 and 4x24 (AVX2, 16
  registers), 14x32, 8x32 and 6x64 (AVX-512, 32 registers), 8x12 and 8x8 (NEON, 32 registers).
- UNROLL: the compiler unrolls and vectorises at -O3 by itself; forcing 2 to 8 helps short inner loops and sums with
  several accumulators; on a vectorised long loop it matters little. A short loop with a constant trip count (filter
  taps) is best unrolled fully: by a factor at or above its trip count, or left to the compiler; "#pragma GCC unroll 1"
  forbids that, too. Past 8 code size and spills grow.
- Vector width: 4 / 8 / 16 floats for SSE or NEON / AVX2 / AVX-512, half for doubles; twice the width is a cheap form of
  unrolling. The widest is not always the fastest on short or unaligned rows.
- -O2 or -O3: -O3 vectorises and unrolls more (gcc before 12 vectorises at -O3 only). Usually -O3; try -O2 on the best.
  -ffast-math reorders sums (and may change results beyond the tolerance). -funroll-loops,
  -mprefer-vector-width=512 and prefetch distances are second-order.
- Algorithm switches (METHOD, VARIANT, ...): count operations and passes over memory of each; the one with fewer
  operations wins unless its extra passes leave the cache. Never bet on one only.
- Threads and schedules: one thread per physical core for arithmetic, fewer for pure memory traffic; static schedules
  for even work, dynamic with chunks of many iterations for uneven work."""

_CUDA_KNOBS = """\
- Thread block (block_size_x, block_size_y, ...): threads = their product, a multiple of 32 (of 64 on AMD CDNA), 128 to
  256 in most optima, 64 or 512 at times, at most 1024. x runs over the contiguous index: 16 is the least for coalesced
  access, 32 to 128 usual. Values that are no powers of two count fully if the product is a multiple of the warp.
- Work per thread (tile_size_x, tile_size_y, WPT, items per thread): results a thread computes. It divides the cost of
  shared operands, index arithmetic and loop control by the tile, and costs registers and parallelism. Compute-heavy
  kernels want 4 to 16 results a thread in all (products up to 64), streaming ones 1 to 4. Tiles along the direction in
  which inputs are shared pay most; along x they must stay coalesced (threads interleaved, not adjacent items).
- tile_stride or interleaving: 1 (items a block apart) keeps neighbouring threads on neighbouring addresses; 0 (adjacent
  items) allows vector loads and reuse in registers but spreads a warp's accesses.
- Vector width (VW, vector types): 8 or 16 bytes a load and thread are best where the layout allows; the width has to
  divide the per-thread tile.
- Shared memory (use_shmem, SA, SB, CACHE_A, ...): pays where a block reads the same data many times (wide filters,
  products). Bytes per block decide how many blocks are resident. Small stencils are often as fast through L1.
- use_padding: an extra column against bank conflicts: helps where the threads of a warp span several rows of the
  shared array (x below 32, or a row length that is a multiple of 32 read down a column); else it is neutral.
- read_only / __ldg / texture: helps data read through L1 (no shared memory) on older GPUs; automatic on many kernels:
  within noise. Constant memory suits values that all threads read at the same time (filters).
- Unroll factors: full unrolling of short fixed loops is best; partial unrolling matters for long ones (2 to 8). 0 may
  mean "as the compiler likes", 1 "not at all": read the source.
- Names of GEMM generators: MWG, NWG, KWG = tile of a block; MDIMC, NDIMC = threads along M and N, so a thread computes
  (MWG / MDIMC) x (NWG / NDIMC) sums; MDIMA, NDIMB = shape of the threads while loading A and B; KWI = unrolling of K;
  VWM, VWN = vector widths; STRM, STRN = strided instead of adjacent; SA, SB = operand in shared memory.
- Split or grid-stride factors (blocks per SM, SPLIT): resident blocks x SMs, or a small multiple of it."""

_PYTHON_KNOBS = """\
- Nothing is known about what the parameters do beyond their names, their values and the source: read what each one
  changes there, and treat the rest as a black box with some order in its numbers.
- If the function starts kernels on a GPU, sizes named BLOCK, TILE, num_warps and the like mean what they usually mean
  there: tile per block, threads per block, depth of prefetching."""

KNOBS = {"triton": _TRITON_KNOBS, "helion": _HELION_KNOBS, "c": _C_KNOBS, "cuda": _CUDA_KNOBS}
"""Kernel kind to what its usual parameters do."""

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
