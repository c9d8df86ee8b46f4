"""Kernels of an older version: a process that runs pytest in its checkout exports them (``base_side.py``).

Each is asked for by name. The process is started once, for the test files that are known then, and killed with this
one, when it hangs, and by ``close``. What it prints goes to a file, whose last lines say why it failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any, Literal

from pytest_kerneltune.backends.exported import ExportedKernel
from pytest_kerneltune.basetree import BaseTree
from pytest_kerneltune.redirect import Places
from pytest_kerneltune.settings import LLMSettings, Settings, environment
from pytest_kerneltune.trial import Config
from pytest_kerneltune.worker import end_group

_BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[2]); from pytest_kerneltune.base_side import main; main()"
_NOT_HANDED_ON = ("PYTEST_ADDOPTS", "PYTEST_XDIST_", "PYTEST_CURRENT_TEST", "COV_CORE_", "PYTHONPATH")
STARTED, COLLECTED = "started", "collected"
"""What the process says for each test file that it turns to: its conftest files are loaded; it is imported itself."""

_TAIL_BYTES, _TAIL_LINES = 4_000, 4
_SCALARS = (bool, int, float, str, bytes, Path, type(None))


@dataclass(frozen=True)
class Counterpart:
    """A kernel as it was: exported for ``configs``, those of the asked ones that are in its space, and ``best``, the
    config that it would run with. ``fingerprint`` and ``inputs`` are those of its Workload. ``remarks`` say what of it
    is not as it was."""

    kernel: ExportedKernel
    fingerprint: str
    inputs: str
    best: Config
    best_source: Literal["baseline", "cache", "default"]
    configs: tuple[Config, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Absent:
    """Why there is no counterpart: the kernel was not there, or (``broken``) was, and could not be loaded."""

    reason: str
    broken: bool


@dataclass(frozen=True)
class Limits:
    """Seconds for starting pytest and importing the tests, and for exporting one kernel."""

    start_s: float = 300.0
    export_s: float = 120.0


@dataclass(frozen=True)
class Start:
    """What the process is told first. ``file`` is the test file to begin with, ``folder`` the working directory,
    ``scratch`` that of temporary files, ``path`` the ``sys.path``."""

    places: Places
    settings: Settings
    options: Mapping[str, Any]
    file: str
    folder: Path
    scratch: Path
    path: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """A kernel by file and name, the node id of a test that has it today, and configs that its own space may have."""

    file: str
    name: str
    test: str
    configs: tuple[Config, ...]

    @property
    def home(self) -> str:
        """The test file, relative to the root directory."""
        return self.test.partition("::")[0]

    @property
    def fixture(self) -> str:
        """The name by which tests ask for the kernel."""
        return self.name.partition("[")[0].rpartition(".")[2]


class _Lost(Exception):
    """The process ended or ``hangs``; the text says how, and what it printed last."""

    def __init__(self, text: str, hangs: bool = False) -> None:
        super().__init__(text)
        self.hangs = hangs


def options_of(config: Any) -> dict[str, Any]:
    """What a ``pytest.Config`` holds that the same tests need in a checkout, as plain values.

    ``values`` are those of all options that are not at their defaults, by their names in the program: of these, the
    checkout's conftest files get their own. The defaults are theirs.
    """
    option, defaults = config.option, _defaults(config)
    return {
        "plugins": [str(name) for name in option.plugins],
        "overrides": list(option.override_ini or ()),
        "warnings": list(getattr(option, "pythonwarnings", None) or ()),
        "import-mode": option.importmode,
        "assert": option.assertmode,
        "ini": str(config.inipath) if getattr(option, "inifilename", None) else "",
        "folder": str(config.invocation_params.dir),
        "values": {
            name: value
            for name, value in vars(option).items()
            if _is_plain(value) and not (name in defaults and defaults[name] == value)
        },
    }


def _defaults(config: Any) -> Mapping[str, Any]:
    """Of all options; empty where pytest cannot tell them: some option is required, say."""
    try:
        return dict(vars(config._parser.parse_known_args([])))
    except (Exception, SystemExit):
        return {}


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple, set):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, (*value, *value.values())))
    return isinstance(value, _SCALARS) and type(value).__module__ in ("builtins", "pathlib", "pathlib._local")


class BaseSide:
    """The older version's side of a comparison: one process for a tree, started when first needed."""

    def __init__(
        self, tree: BaseTree, settings: Settings, options: Mapping[str, Any], limits: Limits = Limits()
    ) -> None:
        """``settings`` are today's; ``options`` is what ``options_of`` made of today's ``pytest.Config``."""
        self.tree, self.settings, self._options, self._limits = tree, settings, options, limits
        self._process: _Process | None = None
        self._hopeless: dict[str, Absent] = {}

    def start(self, files: Sequence[str]) -> None:
        """Get ready for kernels of these test files (relative to the root directory); does not wait for it."""
        file = next((file for file in files if (self.tree.root_in_base / file).is_file()), None)
        if self._process is None and file is not None:
            self._process = _Process(self._told(file))

    def find(self, file: str, name: str, test: str, configs: Sequence[Config]) -> Counterpart | Absent:
        """The kernel ``name`` of ``file``, which the test with node id ``test`` has today, as it was.

        ``configs`` are wanted besides its own best one. Nothing is raised: what fails is Absent.
        """
        request = Request(file, name, test, tuple(dict(config) for config in configs))
        if not (self.tree.root_in_base / request.home).is_file():
            other = "" if request.file == request.home else self.tree.test_file(request.file, request.fixture)
            if not other:
                return Absent(f"there was no {request.home} at {self.tree.shown}", broken=False)
            request = replace(request, test=f"{other}::")
        if (known := self._known(request.home)) is not None:
            return known
        self.start([request.home])
        process = self._process
        assert process is not None
        try:
            process.turn_to(request, self._limits.start_s)
            answer: Counterpart | Absent = process.receive(self._limits.export_s)
        except _Lost as lost:
            return self._gave_up(process, request, lost)
        except BaseException:  # Ctrl-C, or an alarm of somebody's: nobody will ask for this answer
            self._end()
            raise
        return answer

    def close(self) -> None:
        """Kill the process, if there is one."""
        self._end()

    def _known(self, home: str) -> Absent | None:
        """Why nothing can be had of a test file, or of any."""
        return self._hopeless.get("") or self._hopeless.get(home)

    def _gave_up(self, process: _Process, request: Request, lost: _Lost) -> Absent:
        """End the process; what kept the file from being loaded would do so again, as would a conftest that hangs."""
        self._end()
        if process.is_collected:
            return Absent(f"{request.name} of {self.tree.shown} cannot be exported: {lost}", broken=True)
        answer = Absent(f"{request.home} of {self.tree.shown} cannot be loaded: {lost}", broken=True)
        self._hopeless["" if lost.hangs and not process.is_started else request.home] = answer
        return answer

    def _told(self, file: str) -> Start:
        tree, settings = self.tree, self.settings
        folder = tree.places.at_base(str(self._options.get("folder", "")) or settings.root)
        baselines = None if settings.baseline_dir is None else tree.places.in_checkout(settings.baseline_dir)
        own = replace(settings, root=tree.root_in_base, baseline_dir=baselines, llm=LLMSettings())
        ini = tree.places.at_base(given) if (given := self._options.get("ini")) else None
        return Start(
            tree.places,
            own,
            {**self._options, "ini": str(ini or "")},
            file,
            folder if folder is not None and folder.is_dir() else tree.root_in_base,
            tree.folder.parent / f"tmp-{os.getpid()}",
            tuple(tree.places.search_path(map(str, sys.path))),
        )

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None


class _Process:
    """The process: begins at once, answers in order."""

    def __init__(self, start: Start) -> None:
        self._log = tempfile.TemporaryFile(prefix="kerneltune-")  # noqa: SIM115 - lives as long as the process
        self._connection, theirs = Pipe()
        self._file, self.is_started, self.is_collected = start.file, False, False
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, str(theirs.fileno()), json.dumps([str(p) for p in sys.path])],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=_environment(start.places),
                cwd=start.folder,
            )
        self.kill = weakref.finalize(self, end_group, self._process, os.getpid(), self._connection, self._log)
        with contextlib.suppress(OSError):  # it died: receive says how
            self._connection.send_bytes(pickle.dumps(start))

    def turn_to(self, request: Request, limit_s: float) -> None:
        """Ask for a kernel, and wait until its test file is imported, at most so long for each step; raises _Lost."""
        with contextlib.suppress(OSError):  # it died: receive says how
            self._connection.send_bytes(pickle.dumps(request))
        while not (self.is_collected and self._file == request.home):
            if self.is_collected:
                self._file, self.is_started, self.is_collected = request.home, False, False
            message = self.receive(limit_s)
            self.is_started, self.is_collected = True, message == COLLECTED

    def receive(self, limit_s: float) -> Any:
        """The next message; raises _Lost."""
        try:
            if not self._connection.poll(limit_s):
                raise _Lost(f"no answer within {limit_s:.3g} s{self._printed()}", hangs=True)
            return pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2.0)
            raise _Lost(f"{_ending(self._process.poll())}{self._printed()}") from None
        except (pickle.UnpicklingError, ImportError, AttributeError) as error:
            raise _Lost(f"its answer cannot be read: {error}") from None

    def _printed(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _TAIL_BYTES))
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines()]
        tail = " | ".join([line for line in lines if line][-_TAIL_LINES:])
        return f": {tail}" if tail else ""


def _ending(status: int | None) -> str:
    if status is None:
        return "it closed its pipe"
    return f"it was killed by signal {-status}" if status < 0 else f"it exited with status {status}"


def _environment(places: Places) -> dict[str, str]:
    given = environment()
    kept = {name: value for name, value in given.items() if not name.startswith(_NOT_HANDED_ON)}
    if not (path := given.get("PYTHONPATH")):
        return kept
    return {**kept, "PYTHONPATH": os.pathsep.join(places.search_path(path.split(os.pathsep)))}
