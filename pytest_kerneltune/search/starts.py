"""Where tuning of one sort of work usually ends: families to start from, by kernel kind and trait.

They are what libraries, tutorials and published tuning results commonly show, over several generations of GPUs; which
of them wins depends on sizes and hardware.
"""

from __future__ import annotations

from collections.abc import Mapping

_TRITON = {
    "matrix product": (
        "Families as (M tile, N tile, K tile, warps, stages) for 16-bit operands: (128, 256, 64, 8, 3 or 4) and (256, "
        "128, 64, 8, 3 or 4) for large problems on data-centre GPUs; (128, 128, 64, 4 or 8, 3 to 5) and (128, 128, "
        "32, 4 or 8, 4 or 5); (64, 256, 32 or 64, 4 or 8, 3 or 4) and its transpose; (128, 64, 64, 4, 4), (64, 128, "
        "64, 4, 4) and (64, 64, 64, 4, 4 or 5) where large tiles leave SMs idle. 8-bit operands: double the K tile; "
        "float32: halve it, and prefer 64x64 to 128x128. Few rows (M <= 64): M tile 16 to 64, N tile 32 to 128, K "
        "tile 64 to 256, 4 warps, 4 to 6 stages: that is a problem of memory bandwidth, so programs x stages must "
        "keep enough bytes in flight. An epilogue that loads a tile more (bias, residual, gate) costs registers: also "
        "try one size smaller"
    ),
    "attention": (
        "Families as (query tile, key tile, warps, stages): (128, 64, 4 or 8, 2 to 4), (128, 128, 8, 2 or 3), (128, "
        "32, 4, 3 or 4), (64, 64, 4, 2 to 4), (64, 128, 4, 2 or 3); wide heads (128 and more) with 8 warps or smaller "
        "key tiles, since accumulator = query tile x head size floats and scores = query tile x key tile; short "
        "sequences or few heads: query tile 64 or 32 to fill the SMs; one query (decoding): key tile 64 to 256 and "
        "splits over keys"
    ),
    "reduction": (
        "Start from one row per program with the whole row in registers: elements per thread = rows x padded width / "
        "(32 x warps) between 8 and 32: widths of 1024 to 2048 with 2 to 8 warps, 4096 to 8192 with 8 to 16, beyond "
        "with 16 to 32; below 1024 columns several rows per program (2 to 16) at 1 to 4 warps. Rivals: twice and half "
        "the warps, and two or four rows per program with as many warps more. Where the row can be looped over, give "
        "chunks of 1024 to 4096 at 4 and 8 warps as many configs as the full row: past 4096 columns either may win. "
        "Reductions within one warp need no shared memory; more warps cost a barrier each"
    ),
    "scan": "Chunks of 64 to 256 along the scan; 4 warps; more parallelism across the other dimensions",
    "stencil or convolution": (
        "Contiguous dimension widest (64 to 512), the others 1 to 16; 4 or 8 warps; 512 to 4096 elements a program; as "
        "an implicit product take the families of matrix products"
    ),
    "transposition": (
        "Tiles 32x32, 64x64, 64x32, 32x64, 128x32 and 128x64 with 4 or 8 warps; narrow types want the larger ones"
    ),
    "gather or scatter": "One or few indices per program with whole rows (up to 1024 elements) at 1 to 4 warps",
    "atomic updates": "Blocks of 1024 to 8192 elements at 4 or 8 warps, both with few programs and with very many",
    "quantised operands": (
        "With few rows of activations: M tile 16 to 64, N tile 64 to 128, K tile 64 to 256, 4 warps, 3 to 5 stages, "
        "split of K if there is one"
    ),
    "elementwise or streaming": (
        "1024 to 8192 elements a program, 8 to 32 per thread: (1024, 4 warps), (2048, 4 or 8), (4096, 8), (8192, 16) "
        "are near one another; the extremes lose"
    ),
}

_CUDA = {
    "matrix product": (
        "Without tensor cores: block tile 64x64 to 128x128, 64 to 256 threads, 4x4 to 8x8 sums per thread (8x8 at "
        "large sizes), K tile 8 to 32, both operands in shared memory, vector width 2 or 4 (float32) with the widths "
        "dividing the per-thread tile. Asymmetric families (128x64, 64x128 with 8x16, 16x8 or 16x16 threads; 8x8 "
        "threads with 64x64) are close rivals; loading shapes MDIMA, NDIMB usually equal to MDIMC, NDIMC or 8 to 32 "
        "at full coalescing. Turning shared memory off for one operand wins at times where caches are large. Check "
        "every divisibility rule of the constraint for each config"
    ),
    "stencil or convolution": (
        "Wide filters (from about 5x5 on) are bound by multiply-adds and the loads that feed them: 4 to 16 outputs "
        "per thread in registers (1x4, 2x2, 2x4, 4x2, 1x8, 3x3, 4x4), blocks of 64 to 256 threads (16x4, 16x8, "
        "16x16, 32x2, 32x4, 32x8, 64x2, 64x4, 128x1, 128x2), tile plus halo within shared memory. A larger block "
        "tile wastes less on the halo but leaves fewer blocks resident. Outputs along y mostly reuse more than "
        "along x; where outputs lie a block apart along x, x tiles stay coalesced. Vary work per thread in x and in "
        "y separately, and with and without shared memory. Unrolled fully, a filter has more than taps x outputs "
        "instructions of 16 bytes: thousands of them overflow the instruction cache (some 128 KiB), so moderate "
        "tiles belong in the batch, too. Small stencils: one or two outputs along the streaming direction, wide "
        "flat blocks, memory bound"
    ),
    "running sums": (
        "Results of one thread should share what they load: 2 to 8 along the direction in which the inputs are the "
        "same or overlap, 1 to 4 along the other; 64 to 256 threads; the contiguous index across 16 or more "
        "neighbouring threads if the space allows it, else several adjacent items a thread; long unpredictable loops "
        "want many resident warps"
    ),
    "reduction": (
        "One block a row of 128 to 512 threads with 4 to 16 elements each and vector loads, or one warp per short "
        "row; several independent sums per thread hide latency"
    ),
    "transposition": (
        "32x32 tiles with a padded column, 32x8 threads (4 elements a thread); 64-wide tiles for small types"
    ),
    "elementwise or streaming": "128 to 256 threads, 16 bytes a load, 1 to 4 loads a thread, full waves of blocks",
    "gather or scatter": "128 to 256 threads, one warp per row of 32 or more elements, read-only loads",
}

_C = {
    "matrix product": (
        "Innermost loop over contiguous columns (stride one in output and one operand), the reused scalar outside: "
        "i-k-j or k-i-j; tiles: columns long (128 or all), K 64 to 256, rows 32 to 128 or enough for the packed panel "
        "to stay in L1; -O3"
    ),
    "stencil or convolution": (
        "Vectorise over pixels of a row, not over taps, unless the taps' loop unrolls fully; separable filters as two "
        "passes through a small buffer need 2k instead of k^2 operations per pixel; rows of 128 pixels and more, 8 to "
        "64 rows a tile so that the buffer stays in L1 or L2"
    ),
    "reduction": "4 to 8 independent vector sums; long contiguous runs",
    "transposition": "Blocks of 8 to 64 on a side that fit L1 together; small inner kernels of one vector's width",
    "elementwise or streaming": "Vectorised contiguous loops; tiles bring nothing; prefetching is the hardware's",
}

STARTS: Mapping[str, Mapping[str, str]] = {"triton": _TRITON, "cuda": _CUDA, "c": _C}
"""Kernel kind to trait to the families to start from."""
