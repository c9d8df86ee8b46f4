"""What an architecture means for tuning, by the words in which its facts are given.

From NVIDIA's tuning guides and white papers, Triton's documentation and AMD's optimisation guides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_NVIDIA_TRITON: Mapping[str, str] = {
    "7": (
        "no asynchronous copies, so recent Triton pipelines nothing and num_stages 1 or 2 will do; 16-bit products in "
        "float16 only, tiles up to 128x128 with 4 or 8 warps; bfloat16 is emulated and slow"
    ),
    "8.0": (
        "asynchronous copies into up to 163 KiB per block: 3 to 5 stages; products of 128x128 tiles with 4 warps, "
        "128x256 with 8, K tile 32 or 64"
    ),
    "8.6": (
        "99 KiB of shared memory per block and 48 warps per SM: 128x128 with K tile 32 and 3 or 4 stages, or K tile "
        "64 and 2 or 3; few units for float64; L2 is small (up to 6 MiB), so the order of programs counts"
    ),
    "8.9": (
        "99 KiB of shared memory per block and 48 warps per SM: 128x128 with K tile 32 and 3 or 4 stages, 128x256 "
        "with 8 warps; a large L2 (up to 96 MiB) makes up for modest bandwidth"
    ),
    "9.0": (
        "warp-group products (wgmma): a group of 4 warps computes 64 rows at a time, so each group wants an M tile of "
        "64 or more (4 warps for 64 or 128 rows, 8 warps for 128 or 256) and N of 128 or 256; operands come straight "
        "from shared memory, up to 227 KiB per block: K tile 64 and 3 or 4 stages for 128x256; smaller tiles do not "
        "reach the peak. TMA is used only where the source uses tensor descriptors"
    ),
    "10": (
        "tensor-core products accumulate in tensor memory, not in registers: 128x256 and 128x128 tiles, K tile 64 "
        "(128 for 8-bit), 4 or 8 warps, 3 or 4 stages and up to 227 KiB of shared memory; warp specialisation and "
        "tensor descriptors pay where the source has them"
    ),
    "12": (
        "no wgmma and no tensor memory: products as on Ada, 99 KiB of shared memory per block, 48 warps per SM: "
        "128x128 with K tile 32 or 64, 2 to 4 stages, 4 or 8 warps"
    ),
}

_NVIDIA_CUDA: Mapping[str, str] = {
    "7": "64 FP32 lanes per SM beside integer units; L1 and shared memory share 96 to 128 KiB",
    "8.0": "64 FP32 lanes per SM, 2048 threads per SM, 163 KiB of shared memory per block if asked for dynamically",
    "8.6": (
        "128 FP32 lanes per SM (half of them shared with integer arithmetic, so index arithmetic costs FP32 rate), "
        "1536 threads and 16 blocks per SM, so blocks of 96 threads and more can fill it"
    ),
    "8.9": "128 FP32 lanes per SM, 1536 threads and 24 blocks per SM, large L2",
    "9.0": "128 FP32 lanes per SM, 2048 threads and 32 blocks per SM, 227 KiB of shared memory per block if asked for",
    "10": "128 FP32 lanes per SM, 2048 threads and 32 blocks per SM",
    "12": "128 FP32 lanes per SM, 1536 threads per SM, large L2",
}

_WAVES_OF_64 = (
    "wavefronts of 64 threads, 4 vector units of 16 lanes per compute unit, so at least 4 wavefronts (256 threads) a "
    "compute unit"
)
# By how the architecture's name begins (a pattern); the first that fits counts.
_AMD: Mapping[str, str] = {
    "gfx90[0-79c]": (
        f"GCN: {_WAVES_OF_64}, 64 KiB of shared memory (LDS) per block, 256 registers per lane and unit in all; block "
        "sizes that are multiples of 64; no matrix instructions"
    ),
    "gfx950": (
        f"CDNA 4: {_WAVES_OF_64}, 160 KiB of shared memory (LDS) per block, 512 registers per lane and unit in all; "
        "block sizes that are multiples of 64; matrix instructions (MFMA) of 16x16 or 32x32"
    ),
    "gfx9": (
        f"CDNA: {_WAVES_OF_64}, 64 KiB of shared memory (LDS) per block, 512 registers per lane and unit in all; block "
        "sizes that are multiples of 64; matrix instructions (MFMA) of 16x16 or 32x32"
    ),
    "gfx101": (
        "RDNA 1: wavefronts of 32, dual compute units, 64 KiB of shared memory per block, up to 1024 threads and 256 "
        "registers per thread; no matrix instructions; up to 4 MiB of L2 and no cache behind it; blocks of 64 to 256"
    ),
    "gfx103": (
        "RDNA 2: wavefronts of 32, dual compute units, 64 KiB of shared memory per block, up to 1024 threads and 256 "
        "registers per thread; no matrix instructions; a few MiB of L2 behind a larger Infinity Cache; blocks of 64 "
        "to 256"
    ),
    "gfx11": (
        "RDNA 3: wavefronts of 32, dual-issue FP32, 64 KiB of shared memory per block, WMMA matrix instructions of "
        "16x16; blocks of 64 to 256 threads"
    ),
    "gfx120": "RDNA 4: wavefronts of 32, 64 KiB of shared memory per block, WMMA matrix instructions of 16x16",
}

_AMD_TRITON = (
    "num_stages 1 or 2; 4 or 8 warps; M and N tiles of 64 to 256 for products (matrix_instr_nonkdim, which has to "
    "divide them, is for MFMA only), K tile 32 or 64"
)

_CPU: Mapping[str, str] = {
    "avx512f": (
        "32 vector registers of 16 floats (8 doubles); gcc often uses half that width unless -mprefer-vector-width=512"
    ),
    "avx2": "16 vector registers of 8 floats (4 doubles)",
    "asimd": "32 vector registers of 4 floats (2 doubles)",
}


def hardware_lines(kind: str, facts: Sequence[str], has_products: bool = True) -> list[str]:
    """The facts, and what the architecture means for a kernel of ``kind``, with or without matrix products."""
    text = "\n".join(facts)
    meaning = _amd(kind, text) or _nvidia(kind, text, has_products) or _cpu(text)
    return [*facts, *([meaning] if meaning else [])]


def multiprocessors(facts: Sequence[str]) -> int:
    """How many SMs or compute units the facts name; 0 where they name none."""
    found = re.search(r"\b(\d+) (?:SMs|compute units)\b", "\n".join(facts))
    return int(found[1]) if found else 0


def _nvidia(kind: str, text: str, has_products: bool) -> str:
    found = re.search(r"compute capability (\d+)\.(\d)", text)
    if found is None or kind not in {"triton", "helion", "cuda"}:
        return ""
    table = _NVIDIA_TRITON if kind != "cuda" and has_products else _NVIDIA_CUDA
    words = table.get(f"{found[1]}.{found[2]}") or table.get(found[1], "")
    return words and f"compute capability {found[1]}.{found[2]} means: {words}"


def _amd(kind: str, text: str) -> str:
    found = re.search(r"\b(gfx(?:9|1\d)[0-9a-f]{2})\b", text)
    if found is None:
        return ""
    words = next((words for prefix, words in _AMD.items() if re.match(prefix, found[1])), "")
    triton = f"; Triton: {_AMD_TRITON}" if kind in {"triton", "helion"} else ""
    return words and f"{found[1]} means: {words}{triton}"


def _cpu(text: str) -> str:
    flags = re.search(r"vector instructions: (.*)", text)
    words = next((words for flag, words in _CPU.items() if flags and flag in flags[1].split()), "")
    return words and f"vectors: {words}"
