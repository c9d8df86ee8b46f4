"""The source of a kernel: its functions with every function, class and constant that they reach.

Rules:
1. The user's own code is followed, through globals, attributes of modules, closures, defaults, decorators and imports
   inside functions. The standard library, installed packages and this package count by qualified name only, except
   the installed package that a kernel itself comes from.
2. Constants count by value, arrays by type, dtype and shape, other objects of other people's classes by type. A
   variable that the kernel itself rebinds is state, not a constant.
3. Names of files and modules, line numbers, layout, comments and docstrings do not count, nor does the checkout's
   directory in a constant made from ``__file__``: a kernel has one digest whatever directory, import mode or Python
   version it is read in. Only code without a readable source is told apart by its bytecode.

A kernel's fingerprint takes five more (``kernel_digest``):
4. A module's variable of which nothing but type and shape counts (an array, somebody's object) counts by how the module
   makes it (``origins.py``). What is in an array of at most 64 KiB counts where no statement shows how it is made, or
   where one reads it from a file. A closure's variable is an input, which its content does not make another.
5. An array counts with its layout; a container with every item; a path, a pattern and the like by value; the user's own
   subclass of a plain type with its methods.
6. What differs between two machines of a kind, or two runs, does not count: a device's number, a path of a temporary
   file, where the user's home and installed packages are, an address (a large integer in a file that asks for
   addresses).
7. Nor does what the kernel's code changes as it runs, wherever it is read: a module's variable or an attribute that it
   sets, a container that one function both looks up and fills (a memo) or that the kernel itself fills. That counts by
   how the module makes it. What decorators change (a register) is there before, and counts as it is. What an object
   keeps in itself counts, except cached properties: a builder's methods and a counter's look alike.
8. A class counts with the values that its variables have, an Enum with its members', a function with its attributes, a
   module in a container with all its functions, a network of torch's with its layers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pytest_kerneltune.source.reach import Unit, Walk

TEXT_LIMIT = 20_000
"""The most characters of source that a prompt gets."""


def source_closure(functions: Sequence[Any]) -> list[Unit]:
    """Everything of the user's that ``functions`` reach, themselves first, then the nearest first."""
    return Walk(functions).units


def source_digest(functions: Sequence[Any]) -> str:
    """A sha256 hex digest of all that ``functions`` reach, by the first three rules above.

    A function may be a plain function or lambda, a method, class, ``functools.partial``, callable object, or a
    wrapper that keeps what it wraps as ``fn`` or ``__wrapped__`` (as Triton's JIT functions do).
    """
    return _digest(Walk(functions))


def kernel_digest(functions: Sequence[Any]) -> str:
    """As ``source_digest``, by all the rules; raises UsageError where ``functions`` reach too much to be told apart."""
    return _digest(Walk(functions, thorough=True))


def _digest(walk: Walk) -> str:
    content = [walk.roots, [(unit.code, unit.reads) for unit in walk.units]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def source_text(functions: Sequence[Any], limit: int = TEXT_LIMIT) -> str:
    """The source of ``functions`` as written, then the constants that they and what they call read, then the latter.

    At most about ``limit`` characters: what does not fit is left out, the farthest first, with a remark.
    """
    units = source_closure(functions)
    texts = list(dict.fromkeys(unit.text for unit in units if unit.text))
    constants = "\n".join(dict.fromkeys(line for unit in units for line in unit.constants))
    kept: list[str] = []
    for part in filter(None, (*texts[:1], constants, *texts[1:])):
        if kept and len(part) > limit - sum(map(len, kept)):
            return "\n\n".join([*kept, "# (more is left out)"])
        kept.append(clip(part, limit))
    return "\n\n".join(kept)


def clip(text: str, limit: int = TEXT_LIMIT) -> str:
    """``text``, cut at a line's end before ``limit`` characters, with a remark, where it is longer."""
    return text if len(text) <= limit else text[:limit].rpartition("\n")[0] + "\n... (cut)"
