"""What compiled code uses of a GPU, and which share that is of what a block or a thread may use there.

Registers and stack are read in the cubin (``cubin.py``), which takes microseconds; cuobjdump, a part of Triton, is
asked where that fails.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pytest_kerneltune.backends import cubin as elf

THREADS = 1024
REGISTERS = 1 << 16  # of a block, from compute capability 7.0 on
_REGISTER_UNIT = 256  # registers are handed out in such amounts to a warp
_WARP = 32
_PARTITIONS = 4  # of a multiprocessor, each with a quarter of its registers: the fullest one decides
_CUOBJDUMP_LIMIT_S = 10.0


class Limits(NamedTuple):
    """What one block may use: bytes of shared memory, threads, registers."""

    shared_bytes: int
    threads: int = THREADS
    registers: int = REGISTERS


def demand(usage: Mapping[str, int], limits: Limits) -> tuple[float, str]:
    """The largest share of a limit that ``usage`` (see Trial) takes, and in one line what is too much ("": nothing)."""
    shares = {
        "shared memory": (usage.get("shared_bytes", 0), limits.shared_bytes, "bytes"),
        "threads": (usage.get("threads", 0), limits.threads, "threads"),
        "registers": (_block_registers(usage), limits.registers, "registers"),
    }
    name, (needed, limit, unit) = max(shares.items(), key=lambda item: item[1][0] / item[1][1])
    share = needed / limit
    return share, f"out of {name}: a block needs {needed} {unit}, the GPU has {limit}" if share > 1 else ""


def _block_registers(usage: Mapping[str, int]) -> int:
    a_warp = -(-usage.get("registers", 0) * _WARP // _REGISTER_UNIT) * _REGISTER_UNIT
    warps = -(-usage.get("threads", 0) // _WARP)
    return a_warp * -(-warps // _PARTITIONS) * _PARTITIONS


def code_usage(cubin: bytes, name: str, tool: Path) -> dict[str, int]:
    """ "registers" and "stack_bytes" of a thread of the kernel ``name`` in ``cubin``; {} where they cannot be read.

    ``tool`` is a cuobjdump, which need not exist.
    """
    found = elf.usage(cubin, name)
    return {key: found[key] for key in ("registers", "stack_bytes")} if found else _dumped(cubin, tool)


def _dumped(cubin: bytes, tool: Path) -> dict[str, int]:
    if not tool.exists():
        return {}
    with tempfile.NamedTemporaryFile(prefix="kerneltune-", suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_CUOBJDUMP_LIMIT_S)
        except (OSError, subprocess.TimeoutExpired):
            return {}
    found = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    return {"registers": int(found[1]), "stack_bytes": int(found[2])} if found else {}
