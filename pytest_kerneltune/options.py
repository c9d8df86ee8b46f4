"""What can be set from the command line and the ini file: one table, and how each value is read.

pytest's parser is filled from ``OPTIONS`` and ``settings.py`` reads by it, so an option is one row here and one field
of ``Settings``. Values arrive as text from either place and are checked in the same way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.threshold import parse_latency, parse_threshold


@dataclass(frozen=True)
class Given:
    """A value as the user gave it: ``name`` says where, a relative path starts at ``base``.

    A ``secret`` value is never repeated in an error.
    """

    value: object
    name: str
    base: Path
    secret: bool = False

    @property
    def text(self) -> str:
        return str(self.value).strip()

    def rejected(self, wanted: str) -> UsageError:
        """The error to raise where the value is not ``wanted``."""
        return UsageError(f"{self.name}: {'the value' if self.secret else repr(self.text)} is not {wanted}")


Parse: TypeAlias = Callable[[Given], Any]
"""Reads a value; raises UsageError that names where it stands and what is allowed."""


def text(given: Given) -> str:
    return given.text


def one_of(*words: str) -> Parse:
    """Exactly one of ``words``."""

    def parse(given: Given) -> str:
        if given.text in words:
            return given.text
        raise given.rejected(f"one of {', '.join(words)}")

    return parse


def boolean(given: Given) -> bool:
    """True or false in any of the usual spellings."""
    word = given.text.lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise given.rejected("one of 1, true, yes, on, 0, false, no, off")


def whole_number(least: int) -> Parse:
    """An integer of at least ``least``."""

    def parse(given: Given) -> int:
        if not re.fullmatch(r"\d{1,18}", given.text) or int(given.text) < least:
            raise given.rejected(f"a whole number of at least {least}")
        return int(given.text)

    return parse


def seconds(given: Given) -> float:
    """A positive time in seconds; "2m" is 120."""
    match = re.fullmatch(r"(\d{1,9}\.?\d*|\.\d+)\s*([sm]?)", given.text)
    value = float(match[1]) * (60 if match[2] == "m" else 1) if match else 0.0
    if value <= 0:
        raise given.rejected("a positive time: 30 or 30s (seconds), 2m (minutes)")
    return value


def latency(given: Given) -> float:
    """A positive latency in ms; it is written with its unit, "40us", since a bare number could mean any."""
    return parse_latency(given.text, given.name)


def number(least: float, most: float) -> Parse:
    """A number from ``least`` to ``most``."""

    def parse(given: Given) -> float:
        if not re.fullmatch(r"\d{1,9}\.?\d{0,9}|\.\d{1,9}", given.text) or not least <= float(given.text) <= most:
            raise given.rejected(f"a number from {least:g} to {most:g}")
        return float(given.text)

    return parse


def names(given: Given) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in given.text.split(",") if name.strip())


def path(given: Given) -> Path:
    """An absolute path; ``~`` is the home directory."""
    if not given.text or "\0" in given.text:
        raise given.rejected("a path")
    try:
        return given.base / Path(given.text).expanduser()
    except RuntimeError:
        raise given.rejected("a path whose home directory is known") from None


def directory(given: Given) -> Path:
    """The path of a directory, which need not exist."""
    found = path(given)
    if found.exists() and not found.is_dir():
        raise given.rejected("a directory")
    return found


def file(given: Given) -> Path:
    """The path of a file, which need not exist."""
    found = path(given)
    if found.is_dir():
        raise given.rejected("a file: it is a directory")
    if found.exists() and not found.is_file():
        raise given.rejected("a regular file")
    return found


def directories_or_off(given: Given) -> tuple[Path, ...]:
    """Paths of directories, separated as in PATH; none for "off". A directory that exists may have the separator in
    its name."""
    return tuple(map(directory, _layers(given)))


def _layers(given: Given) -> list[Given]:
    if given.text == "off":
        return []
    if os.pathsep not in given.text or path(given).is_dir():
        return [given]
    parts = given.text.split(os.pathsep)
    if "off" in parts:
        raise given.rejected("off alone, or directories")
    return [replace(given, value=part) for part in parts]


def search(given: Given) -> str:
    """The name of a search, or "none"."""
    if given.text == "none":
        return "none"
    from pytest_kerneltune.search import DEFAULT_SEARCH, SEARCHES

    name = DEFAULT_SEARCH if given.text == "default" else given.text
    return str(one_of("none", *SEARCHES)(Given(name, given.name, given.base)))


def fallback(given: Given) -> str:
    """What takes the place of a language model that cannot be asked."""
    from pytest_kerneltune.search import FALLBACKS

    return str(one_of(*FALLBACKS)(given))


def second_stage(given: Given) -> str:
    """The name of a search that asks no language model."""
    from pytest_kerneltune.search import second_stages

    return str(one_of(*second_stages())(given))


def selections(given: Given) -> frozenset[str]:
    """Which baselines to write: names separated by commas."""
    words = [word.strip() for word in given.text.split(",")]
    for word in words:
        if word not in SELECTIONS:
            raise given.rejected(f"one or more of {', '.join(SELECTIONS)}, separated by commas")
    return frozenset(words)


def threshold(given: Given) -> float:
    return parse_threshold(given.text, given.name)


RUN_PLUGIN = "kerneltune-run"
"""Name under which the plugin registers the object that evaluates kernels."""

EFFORTS = ("none", "quick", "full")
POLICIES = ("warn", "fail")
SELECTIONS = ("all", "new", "improved", "regressed")


@dataclass(frozen=True)
class Option:
    """One setting: ini key ``name``, attribute ``name`` of ``Settings`` and, unless ``ini_only``, a command line flag.

    ``default`` is text, read like the user's, or a function of the environment that gives the value. ``bare`` is the
    text that the flag means without a value; without a ``metavar`` it takes none.
    """

    name: str
    help: str
    parse: Parse
    metavar: str = ""
    bare: str = ""
    default: str | Callable[[Mapping[str, str]], Any] | None = None
    ini_only: bool = False

    @property
    def flag(self) -> str:
        """``--`` and the name with dashes; empty where there is none."""
        return "" if self.ini_only else "--" + self.name.replace("_", "-")

    @property
    def ini_help(self) -> str:
        """The help text with the default."""
        return f"{self.help} (default: {self.default})" if isinstance(self.default, str) else self.help

    @property
    def arguments(self) -> dict[str, Any]:
        """What ``argparse`` needs besides the flag; an option that is not given is None."""
        common = {"dest": self.name, "default": None, "help": self.ini_help.replace("%", "%%")}
        if not self.metavar:
            return {**common, "action": "store_const", "const": self.bare}
        optional = {"nargs": "?", "const": self.bare} if self.bare else {}
        return {**common, "metavar": self.metavar, **optional}


def spelled_out(args: Sequence[str]) -> list[str]:
    """``args`` with the value of every bare option written after it.

    argparse would take the path in ``--autotune perf/`` for the option's value.
    """
    optional = {row.flag: row for row in OPTIONS if row.bare and row.metavar}
    result = list(args)
    for i, arg in enumerate(args):
        if arg == "--":
            break
        if arg in optional and not _is_value(optional[arg], args[i + 1 : i + 2]):
            result[i] = f"{arg}={optional[arg].bare}"
    return result


def _is_value(row: Option, following: Sequence[str]) -> bool:
    try:
        return bool(following and row.parse(Given(following[0], row.flag, Path())))
    except UsageError:
        return False


def in_ci(environ: Mapping[str, str]) -> bool:
    """Whether the variable CI says that this is a continuous-integration run."""
    return environ.get("CI", "").strip().lower() not in ("", "0", "false")


def worker_count(environ: Mapping[str, str]) -> int:
    """Number of xdist workers, this process among them; 1 without xdist."""
    count = environ.get("PYTEST_XDIST_WORKER_COUNT", "")
    return max(1, int(count)) if count.isdecimal() else 1


def default_cache_directories(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where the cache is unless the command line or ini file says otherwise: the layer that is written, then others.

    KERNELTUNE_CACHE_DIR, read as ``--autotune-cache`` is, else pytest-kerneltune in XDG_CACHE_HOME (where that is an
    absolute path, as its specification wants), else in ~/.cache.
    """
    if own := environment.get("KERNELTUNE_CACHE_DIR"):
        # What is no directory is told where it is needed: not every run needs a cache.
        return tuple(map(path, _layers(Given(own, "KERNELTUNE_CACHE_DIR", Path.cwd()))))
    return (_user_cache(environment) / "pytest-kerneltune",)


def code_directory(environment: Mapping[str, str]) -> Path:
    """Where compiled code is kept that is no other tool's: a directory of the user's own, wherever the cache is.

    A cache may be shared with others, and code is executed.
    """
    return _user_cache(environment) / "pytest-kerneltune-code"


def _user_cache(environment: Mapping[str, str]) -> Path:
    shared = Path(environment.get("XDG_CACHE_HOME", ""))
    home = Path(environment.get("HOME") or Path.home())
    return shared if shared.is_absolute() else home / ".cache"


def default_cache_directory(environment: Mapping[str, str]) -> Path:
    """The first of :func:`default_cache_directories`; raises UsageError where the cache is off."""
    if found := default_cache_directories(environment):
        return found[0]
    raise UsageError("KERNELTUNE_CACHE_DIR is off: name the cache's directory by --cache")


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _default_jobs(environ: Mapping[str, str]) -> int:
    return max(1, available_cores() // worker_count(environ))


def _verdict_policy(kind: str, meaning: str) -> Option:
    name = f"{kind}_verdict"
    return Option(
        name, f"whether a kernel that is {meaning} warns or fails", one_of(*POLICIES), default="warn", ini_only=True
    )


OPTIONS = (
    Option(
        "autotune",
        "tune the kernels of performance tests with the search ALGORITHM (bare: the default search; a wrong name is "
        "answered with all names), then time and judge them; none: time and judge the best known config",
        search,
        metavar="ALGORITHM",
        bare="default",
    ),
    Option(
        "autotune_effort", "how much a search tries", one_of(*EFFORTS), "{" + ",".join(EFFORTS) + "}", default="quick"
    ),
    Option("autotune_budget", "stop searching a kernel after this wall time (30, 30s or 2m)", seconds, "SECONDS"),
    Option("autotune_configs", "stop searching a kernel after this many configs", whole_number(1), "N"),
    Option(
        "autotune_target", "stop searching a kernel once a config is as fast as this (40us, 0.04ms)", latency, "LATENCY"
    ),
    Option("autotune_seed", "seed of every search", whole_number(0), "N", default="0"),
    Option(
        "autotune_cache",
        "where tuned configs are kept, or off; behind a colon, a cache that is only read (default: "
        "KERNELTUNE_CACHE_DIR, else in the user's cache directory)",
        directories_or_off,
        metavar="DIR[:SHARED]",
        default=default_cache_directories,
    ),
    Option(
        "autotune_wait",
        "how long to wait for another process that tunes the same kernel, before tuning it here as well",
        seconds,
        metavar="SECONDS",
        default="30m",
    ),
    Option(
        "autotune_strict",
        "tune anew for another version of torch, Triton, driver or compiler",
        boolean,
        bare="yes",
        default="no",
    ),
    Option(
        "autotune_cache_limit",
        "MiB that the cache may grow to before what was not used for the longest time goes; 0 is no limit",
        whole_number(0),
        default="1024",
        ini_only=True,
    ),
    Option("autotune_force", "tune again what the cache holds", boolean, bare="yes", default="no"),
    Option("autotune_json", "write everything this run found out to a JSON file", file, "PATH"),
    Option(
        "baseline_dir", "where baselines are kept (default: __kerneltune__ beside each test file)", directory, "DIR"
    ),
    Option(
        "update_baselines",
        "write what the tests that ran measured as their baselines (bare: all; or new, improved, regressed, separated "
        "by commas)",
        selections,
        metavar="WHICH",
        bare="all",
        default=lambda _: frozenset(),
    ),
    Option(
        "missing_baseline",
        "whether a kernel without a baseline warns or fails (default: fail where the variable CI is set, else warn)",
        one_of(*POLICIES),
        metavar="{" + ",".join(POLICIES) + "}",
        default=lambda environ: "fail" if in_ci(environ) else "warn",
    ),
    Option(
        "against",
        "judge each kernel side by side with itself at the merge base with GITREF, in place of its stored baseline",
        text,
        metavar="GITREF",
    ),
    Option("perf_threshold", "how much slower than its baseline a kernel may be", threshold, "PCT", default="3%"),
    Option(
        "gate_self_test",
        "for each kernel, print how often the gate is right about it: DECISIONS on the kernel as it is, and slowed on "
        "purpose",
        whole_number(5),
        metavar="DECISIONS",
        bare="20",
    ),
    Option(
        "prune_baselines",
        "remove the baselines of kernels that are gone from test files that ran completely",
        boolean,
        bare="yes",
        default="no",
    ),
    _verdict_policy("noisy", "too noisy to judge"),
    _verdict_policy("invalid", "disturbed while it was timed"),
    _verdict_policy("incomparable", "timed in another way than its baseline"),
    Option("compile_timeout", "seconds that compiling a config may take", seconds, default="60", ini_only=True),
    Option("run_timeout", "seconds that the first run of a config may take", seconds, default="30", ini_only=True),
    Option(
        "compile_jobs",
        "configs compiled at once (default: the available cores, shared among xdist workers)",
        whole_number(1),
        default=_default_jobs,
        ini_only=True,
    ),
    Option("kerneltune_llm_provider", "provider of the language model", text, ini_only=True),
    Option("kerneltune_llm_model", "name of the language model", text, ini_only=True),
    Option(
        "kerneltune_llm_fallback",
        "what to do where the language model cannot be asked: seeds (go on with what there is), random (random configs "
        "for the round that failed), pattern (a pattern search for all rounds left) or error (the test fails)",
        fallback,
        ini_only=True,
    ),
    Option("kerneltune_llm_replies", "file of recorded replies to use as the language model", file, ini_only=True),
    Option(
        "kerneltune_llm_second_stage",
        "search that goes on in LLMSeededSearch after its round with the language model: any that asks no model itself "
        "(default: the default search)",
        second_stage,
        ini_only=True,
    ),
)
