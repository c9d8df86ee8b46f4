"""What sort of work a kernel does, read off its names and source, and what that means for tuning.

A trait is found by a pattern in the kernel's name, its parameters' names and its source without comments. The advice
differs with the target: "triton" (Helion too), "cuda" and "c"; other kinds get the trait's meaning alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pytest_kerneltune.search.starts import STARTS

_WORK = frozenset({"matrix product", "attention", "stencil or convolution"})
_COMPUTE = _WORK | {
    "reduction",
    "running sums",
    "scan",
    "atomic updates",
    "transposition",
    "gather or scatter",
}

STREAMING = "elementwise or streaming"
_NO_REUSE = "no reuse was found in the source: if each element is touched once, memory bandwidth binds"


@dataclass(frozen=True)
class Trait:
    """A property of a kernel; ``absent`` names traits beside which it says nothing new."""

    name: str
    pattern: str
    meaning: str
    absent: frozenset[str] = frozenset()


_TRAITS = (
    Trait(
        "attention",
        r"(?:\b|_)(?:\w{0,40}attention|attn|\w{0,40}flash|sdpa|mha|mla)(?:\b|_)|\A(?s:(?>.*?tl\.dot\()(?>.*?tl\.(?:math\.)?exp2?\().*?tl\.dot\()",
        "two products with a running softmax between them: accumulator and scores compete for registers",
    ),
    Trait(
        "matrix product",
        r"tl\.dot(?:_scaled)?\(|hl\.dot|torch\.(?:matmul|addmm|bmm|mm)\b|wmma::|mma_sync|mma\.sync|wgmma|__dp4a"
        r"|(?:\b|_)\w{0,40}(?:gemm|matmul|gemv)\w{0,40}\b|(?:\b|_)(?:mm|bmm)(?:\b|_)|\bMDIMC\b"
        r"|\A(?s:(?=.*\bBLOCK_(?:SIZE_)?M\b)(?=.*\bBLOCK_(?:SIZE_)?N\b).*\bBLOCK_(?:SIZE_)?K\b)"
        r"|\w\s*\[[^\]=;]{0,200}\]\s*\+=\s*\w{1,40}\s*(?>\[\s*([^\]=;]{0,200}?)\s*\])\s*\*\s*\w{1,40}\s*\[(?!\s*\1\s*\])",
        "operand reuse decides: tile shape first, then depth of the reduction tile, then pipelining",
        absent=frozenset({"attention"}),
    ),
    Trait(
        "stencil or convolution",
        r"(?:\b|_)\w{0,40}(?:stencil|convol|convolve|blur|laplac|jacobi|hotspot)\w{0,40}\b|(?:\b|_)conv(?:[123]d)?(?:\b|_)"
        r"|\bfilter_(?:height|width)\b|\A(?s:(?=.*[a-z_)]\s?-\s?1\s?\]).*[a-z_)]\s?\+\s?1\s?\])",
        "neighbouring outputs share inputs: reuse in registers and shared memory (or cache) against the cost of the "
        "halo",
    ),
    Trait(
        "grouped or batched",
        r"(?:\b|_)(?:grouped|batched|bmm|moe)(?:\b|_)|\bgroup_(?:sizes?_ptr|offsets?|offs)\b|\bexpert_?ids?\b|\bnum_experts\b",
        "many problems in one launch: the size of one problem limits the useful tile, all of them together fill the "
        "GPU; ragged groups waste the part of a tile that goes past the group",
    ),
    Trait(
        "split reduction",
        r"(?:\b|_)(?:split|stream)_?k(?:\b|_)",
        "worth it only where the output has fewer tiles than the GPU has places for programs",
    ),
    Trait(
        "reduction",
        r"tl\.(?:sum|max|min|reduce|argmax|argmin)\(|__shfl_(?:down|xor)|(?:\b|_)(?:warp|block)_?reduce"
        r"|(?:\b|_)\w{0,40}(?:softmax|layer_?norm|rms_?norm|group_?norm|instance_?norm|logsumexp|cross_?entropy|reduction)\w{0,40}\b",
        "one result per row or block: how many elements a thread holds, and whether a row is read once, decide",
        absent=_WORK,
    ),
    Trait(
        "running sums",
        r"\b\w{0,40}(?:sum|total|acc|accum)\w{0,40}(?:\[[^\]]{0,200}\])*\s*\+=",
        "sums over a loop: what several results of one thread share of the inputs decides how many a thread should "
        "compute; several independent sums hide the latency of adding",
        absent=_WORK | {"reduction"},
    ),
    Trait(
        "scan",
        r"tl\.(?:cumsum|cumprod|associative_scan)\(|(?:\b|_)(?:prefix_?sum|cumsum|inclusive_?scan|exclusive_?scan)\w{0,40}\b",
        "dependent along one dimension: chunks per program trade parallelism against the carried state",
    ),
    Trait(
        "atomic updates",
        r"tl\.atomic_|\batomic(?:Add|Max|Min|CAS|Or|Exch)\b|__atomic_|__sync_fetch|(?:\b|_)histogram\w{0,40}\b",
        "two costs pull apart: contention on few addresses wants few, long programs that gather privately (registers, "
        "shared memory) and update once; hiding latency wants every warp slot filled. Recent GPUs take thousands of "
        "updates to one address in passing, so compare one to eight programs an SM with the most there can be",
    ),
    Trait(
        "gather or scatter",
        r"(?:\b|_)(?:gather|scatter|embedding|spmv|csr)\w{0,40}\b|\b\w{0,40}(?:idx|indices|index)_ptr\b"
        r"|\b[a-z]\w{0,40}\[\s*(?:\w{0,40}(?:idx|indices|col|perm)\w{0,40})\s*\[",
        "scattered addresses: whole lines of the contiguous dimension per index, many independent loads in flight "
        "(high occupancy, small programs)",
    ),
    Trait(
        "transposition",
        r"(?:\b|_)(?:\w{0,40}transpos\w{0,40}|permute\w{0,40})\b",
        "reads along one dimension, writes along another: square-ish tiles whose both sides span 64 to 128 bytes or "
        "more",
        absent=_WORK,
    ),
    Trait(
        "quantised operands",
        r"(?:\b|_)\w{0,40}(?:dequant|quant)\w{0,40}\b|\b(?:int4|w4a16|w8a8|fp8|e4m3|e5m2|mxfp[48])\w{0,40}\b|\b\w{0,40}scales?_ptr\b|dot_scaled|__dp4a"
        r"|>>\s*4\b|&\s*0x0?f\b",
        "unpacking and scaling takes registers and integer throughput beside the product: smaller tiles or more warps "
        "than for plain operands; the K tile must fit the groups of the scales",
    ),
    Trait(
        "persistent loop",
        r"tl\.num_programs\(|\b(?:NUM_SMS|NUM_PROGRAMS|PROGRAMS_PER_SM)\b|(?:\b|_)persistent(?:\b|_)|range\(\s*tl\.program_id"
        r"|\+=\s*(?:blockDim\.x\s*\*\s*gridDim\.x|gridDim\.x\s*\*\s*blockDim\.x)",
        "a program works through many tiles: the number of programs is SMs x resident programs, and loads of the next "
        "tile can overlap the work on this one",
    ),
    Trait(
        "transcendental functions",
        r"tl\.(?:math\.)?(?:exp2?|log2?|sin|cos|erf|sigmoid|tanh)\(|\b_*(?:exp2?|log2?|sin|cos|erf|tanh|pow)f?\s*\(",
        "special-function units (16 results per clock and SM on NVIDIA GPUs) may bind beside memory",
    ),
    Trait(
        "loop over loads",
        r"\A(?s:(?>.*?\bfor\s+\w+\s+in\s+(?:tl\.)?range\().*?tl\.load)",
        "num_stages acts on it where its loads feed tl.dot or tl.range is given it, and it runs more than a few times",
    ),
)


def found_traits(names: Iterable[str], source: str) -> list[Trait]:
    """The traits of a kernel, the deciding ones first."""
    text = " ".join(names) + "\n" + without_comments(source)
    found: list[Trait] = []
    for trait in _TRAITS:
        if not trait.absent & {t.name for t in found} and re.search(trait.pattern, text, re.IGNORECASE):
            found.append(trait)
    return found


def trait_lines(kind: str, names: Iterable[str], source: str) -> list[str]:
    """One line for each trait: what it is, what it means, and where there is one, what to start from."""
    found = found_traits(names, source)
    starts: Mapping[str, str] = STARTS.get("triton" if kind == "helion" else kind, {})
    lines = [f"{t.name}: {t.meaning}" + _start(starts, t.name) for t in found]
    if source and not _COMPUTE & {t.name for t in found}:
        lines.append(f"{STREAMING}: {_NO_REUSE}{_start(starts, STREAMING)}")
    return lines


def without_comments(source: str) -> str:
    """``source`` without comments and docstrings, whose words say little about what is done."""
    source = re.sub(r'"""(?s:.*?)(?:"""|\Z)|/\*(?s:.*?)(?:\*/|\Z)', " ", source)
    return re.sub(r"(?m)(?://|#(?!\s*(?:define|if|include|pragma|el|end|un))).*$", "", source)


def _start(starts: Mapping[str, str], name: str) -> str:
    return f". {starts[name]}" if name in starts else ""
