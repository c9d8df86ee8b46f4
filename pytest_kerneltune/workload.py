"""A kernel at fixed inputs, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from pytest_kerneltune.backends import Description, Kernel
from pytest_kerneltune.search import Subject
from pytest_kerneltune.source import clip, kernel_digest, source_text
from pytest_kerneltune.source.csource import c_source_digest_text
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config

_SCHEMA = 2
"""Part of every fingerprint: raise it where the meaning of one changes."""


@dataclass(frozen=True, eq=False)
class Workload:
    """One kernel at one parameter set: what is tuned, measured and judged.

    ``name`` is the tunable's with its parameters ("softmax[n1024]"), ``file`` the file it belongs to, relative to the
    root directory, with slashes. ``configs`` are the user's known-good configs, made canonical here (SpaceError where
    one does not fit). ``threshold`` is a fraction and ``target_ms`` a latency that is good enough, None the
    session's. ``device_key`` holds what tells devices apart, ``device_name`` is for people; ``toolchain`` holds the
    versions that make another kernel (``versions.toolchain``) where they shall, and nothing elsewhere. Functions of
    ``modules`` travel by value. ``test`` is the node id of the test that asked first.
    """

    name: str
    file: str
    kernel: Kernel
    space: ConfigSpace
    configs: tuple[Config, ...] = ()
    threshold: float | None = None
    target_ms: float | None = None
    device_name: str = ""
    device_key: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[ModuleType, ...] = ()
    test: str = ""
    toolchain: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "configs", tuple(self.space.canonical(config) for config in self.configs))

    @property
    def id(self) -> str:
        return f"{self.file}::{self.name}"

    @cached_property
    def description(self) -> Description:
        """What the kernel says it is, when first asked."""
        return self.kernel.describe()

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 hex digest of what makes the kernel another one.

        That is its source with all it reaches, how it is launched, inputs, facts, space, constraint, device, toolchain,
        its name and the file's stem. Equal for the same kernel on two machines of one kind: directories do not count,
        nor do ``configs``, ``threshold`` and ``target_ms``, which change what is tried first, how it is judged and what
        is enough, nor the reference. Raises UsageError where the kernel's functions reach too much to be told apart.
        """
        what, where = self.description, self.space.where
        constraint = () if where is None else (where,)
        content = {
            "schema": _SCHEMA,
            "name": self._stem_and(self.name),
            "kind": what.kind,
            "clock": self.kernel.clock,
            "roots": [len(what.functions), len(what.launchers), len(constraint)],
            "code": kernel_digest((*what.functions, *what.launchers, *constraint)),
            "source": c_source_digest_text(what.source, Path(what.directory) if what.directory else None),
            "inputs": what.inputs,
            "facts": what.facts,
            "space": self.space.describe(),
            "defaults": {name: p.default for name, p in self.space.parameters.items()},
            "device": dict(self.device_key),
        }
        return _digest({**content, "toolchain": dict(self.toolchain)} if self.toolchain else content)

    @cached_property
    def family(self) -> str:
        """A sha256 hex digest that this kernel shares with itself at other parameters, before an edit, elsewhere.

        Of the file's stem and the name without its parameters; of no device.
        """
        return _digest({"name": self._stem_and(self.name.partition("[")[0])})

    def _stem_and(self, name: str) -> str:
        return f"{PurePosixPath(self.file).stem}::{name}"

    @cached_property
    def inputs_digest(self) -> str:
        """A sha256 hex digest of the inputs alone: measurements of different inputs are never compared."""
        return _digest(self.description.inputs)

    def subject(self, hardware: Sequence[str], send_source: bool) -> Subject:
        """What a prompt may say about this kernel; without ``send_source`` neither kernel's nor constraint's source."""
        what, where = self.description, self.space.where
        python = source_text((*what.functions, *what.launchers))
        source = "\n\n".join(text for text in (clip(what.source), python) if text)
        return Subject(
            name=self.name,
            kind=what.kind,
            source=source if send_source else "",
            inputs=what.inputs,
            facts=what.facts,
            constraint=source_text([where]) if send_source and where is not None else "",
            hardware=tuple(hardware),
        )


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
