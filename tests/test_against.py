"""The process of an older version: what it is started with, and what is said when it fails, hangs or dies."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module, invalidate_caches
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pytest_kerneltune.against import Absent, BaseSide, Counterpart, Limits, options_of
from pytest_kerneltune.basetree import BaseTree
from pytest_kerneltune.redirect import Places, Redirect
from pytest_kerneltune.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))
Repository = import_module("repositories").Repository
PRELUDE = """\
import os, sys, threading, time
from pathlib import Path
import pytest
from pytest_kerneltune import choice, tunable
SPACE = {"block": choice(1, 2)}

@tunable(space=SPACE)
def good():
    return lambda block: block

def test_good(good): ...
"""
Open = Callable[..., BaseSide]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens the base side of a repository whose only version consists of ``files``."""
    closing: list[Any] = []

    def open_side(files: dict[str, str], start_s: float = 60.0, export_s: float = 60.0) -> BaseSide:
        repository = Repository(tmp_path / "project")
        repository.commit({name: PRELUDE + text if "test_" in name else text for name, text in files.items()})
        tree = BaseTree.at_merge_base(repository.root, "HEAD")
        environ = {"KERNELTUNE_CACHE_DIR": str(tmp_path / "cache")}
        settings = Settings.from_sources(lambda _: None, lambda _: None, environ, repository.root)
        options = {"plugins": [], "folder": str(repository.root), "ini": "", "values": {}}
        side = BaseSide(tree, settings, options, Limits(start_s, export_s))
        closing.extend((side, tree))
        return side

    yield open_side
    for each in closing:
        each.close()


def ask(side: BaseSide, name: str, file: str = "test_it.py") -> Counterpart | Absent:
    return side.find(file, name, f"{file}::test_{name}", [])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


FAILING = """\
@tunable(space=SPACE)
def raising():
    raise RuntimeError("no such luck")

@tunable(space=SPACE)
def skipped():
    pytest.skip("no time")

LOCK = threading.Lock()

@tunable(space=SPACE)
def locked():
    return lambda block: LOCK.locked()

@tunable(space=SPACE)
def importing():
    def run(block):
        import helpers
        return helpers.VALUE
    return run

@tunable(space=SPACE)
def computed():
    return lambda block: __import__("help" + "ers").VALUE

@tunable(space=SPACE)
def dying():
    print("about to die", flush=True)
    os._exit(3)

@tunable(space=SPACE)
def hanging():
    time.sleep(1000)

def test_raising(raising): ...
def test_skipped(skipped): ...
def test_locked(locked): ...
def test_importing(importing): ...
def test_computed(computed): ...
def test_dying(dying): ...
def test_hanging(hanging): ...
def test_gone(good): ...
"""


def test_one_kernel_that_fails_keeps_no_other_from_being_exported(opened: Open) -> None:
    side = opened({"test_it.py": FAILING, "helpers.py": "VALUE = 1\n"}, export_s=3.0)
    answers = {}
    for name in ("raising", "skipped", "locked", "importing", "computed", "gone", "dying", "hanging"):
        answer = ask(side, name)
        assert isinstance(answer, Absent)
        answers[name] = answer
        assert isinstance(ask(side, "good"), Counterpart)
    assert {name for name, answer in answers.items() if not answer.broken} == {"gone"}
    assert "RuntimeError: no such luck" in answers["raising"].reason
    assert "is skipped there" in answers["skipped"].reason
    assert "no time" in answers["skipped"].reason
    assert "'LOCK', which" in answers["locked"].reason
    assert "imports helpers when it runs: import it at the top of its file" in answers["importing"].reason
    assert answers["computed"].reason.endswith("<lambda> imports by a computed name: import at the top of its file")
    assert "exited with status 3: " in answers["dying"].reason
    assert "about to die" in answers["dying"].reason
    assert "no answer within 3 s" in answers["hanging"].reason


def test_a_kernel_of_a_conftest_file_is_found_though_its_test_has_moved(opened: Open) -> None:
    shared = PRELUDE.replace("good", "shared").rpartition("def test_shared")[0]
    side = opened(
        {"perf/conftest.py": shared, "perf/test_one.py": "", "perf/test_two.py": "def test_it(shared): ...\n"}
    )
    answer = side.find("perf/conftest.py", "shared", "perf/test_new.py::test_it", [])
    assert isinstance(answer, Counterpart)
    answer = side.find("perf/conftest.py", "other", "perf/test_new.py::test_it", [])
    assert isinstance(answer, Absent)
    assert not answer.broken
    assert answer.reason.startswith("there was no perf/test_new.py at ")


def test_tests_that_cannot_be_loaded_are_broken(opened: Open) -> None:
    side = opened(
        {"test_it.py": "", "test_bad.py": "import no_such_module\n", "test_slow.py": "time.sleep(1000)\n"}, 6.0
    )
    bad = ask(side, "good", "test_bad.py")
    assert isinstance(bad, Absent)
    assert bad.broken
    assert "No module named 'no_such_module'" in bad.reason
    assert isinstance(ask(side, "good"), Counterpart)
    for _ in range(2):  # the second time it is known
        began = time.monotonic()
        slow = ask(side, "good", "test_slow.py")
        assert isinstance(slow, Absent)
        assert slow.reason.startswith("test_slow.py of ")
        assert slow.reason.endswith(" cannot be loaded: no answer within 6 s")
    assert time.monotonic() - began < 6.0
    assert isinstance(ask(side, "good"), Counterpart)


def test_a_conftest_that_fails_is_shown_with_its_last_lines(opened: Open) -> None:
    side = opened({"conftest.py": "raise ValueError('what a conftest')\n", "test_it.py": ""})
    for _ in range(2):
        answer = ask(side, "good")
        assert isinstance(answer, Absent)
        assert answer.broken
        assert "what a conftest" in answer.reason


def waited_for(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20.0
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


STARTING = """\
import pickle, sys, time
from pytest_kerneltune.against import BaseSide
side = BaseSide(*pickle.load(sys.stdin.buffer))
side.start(["test_it.py"])
time.sleep(1000)
"""


def test_the_process_is_killed_when_it_is_closed_and_with_its_parent(opened: Open, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    text = f"import os, time\nopen({str(note)!r}, 'w').write(str(os.getpid()))\ntime.sleep(1000)\n"
    side = opened({"conftest.py": text, "test_it.py": ""})
    side.start(["no_such_file.py", "test_it.py"])
    assert waited_for(lambda: note.exists() and note.read_text() != "")
    pid = int(note.read_text())
    assert is_alive(pid)
    assert os.getsid(pid) == pid
    side.close()
    assert not is_alive(pid)
    side.close()
    note.unlink()
    with subprocess.Popen([sys.executable, "-c", STARTING], stdin=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        pickle.dump((replace(side.tree, owned=None), side.settings, {}), parent.stdin)
        parent.stdin.flush()
        assert waited_for(lambda: note.exists() and note.read_text() != "")
        parent.kill()
    assert waited_for(lambda: not is_alive(int(note.read_text())))


def test_options_are_taken_from_today_s_run(pytester: pytest.Pytester) -> None:
    option = "parser.addoption({!r}, type=int, default=3)"
    options_text = "; ".join(option.format(name) for name in ("--size", "--depth"))
    pytester.makeconftest(f"def pytest_addoption(parser): {options_text}")
    pytester.makeini("[pytest]\naddopts = -p no:doctest\n")
    config = pytester.parseconfigure("--size=7", "-o", "xfail_strict=true", "--import-mode=importlib", "-W", "error")
    options = options_of(config)
    assert options["values"]["size"] == 7
    assert "depth" not in options["values"]  # the default is that of the version that is asked
    assert "no:doctest" in options["plugins"]
    assert (options["overrides"], options["warnings"]) == (["xfail_strict=true"], ["error"])
    assert (options["import-mode"], options["ini"], options["folder"]) == ("importlib", "", str(pytester.path))


# Imports


class Hook(MetaPathFinder):
    """The import hook of an editable install: knows the places of some modules."""

    def __init__(self, places: dict[str, Path]) -> None:
        self._places = places

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        place = self._places.get(fullname)
        if place is None:
            return None
        inner = [str(place.parent)] if place.name == "__init__.py" else None
        return spec_from_file_location(fullname, place, submodule_search_locations=inner)


def test_modules_are_those_of_then_however_they_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top, base = (tmp_path / "today").resolve(), (tmp_path / "base").resolve()
    tracked: tuple[str, ...] = (
        "hooked.py",
        "grown/__init__.py",
        "added.py",
        "pack/__init__.py",
        "pack/added.py",
        "space/old.py",
        "new/a.py",
    )
    copied = ("pure/__init__.py", "pure/added.py")
    tracked = (*tracked, *(f"src/{file}" for file in copied), "src/late.py")
    installed = tmp_path / "site-packages"
    written = {
        installed: (*copied, "pure/built.py", "other/__init__.py", "late.py"),
        top: (*tracked, "built.py", "pack/built.py", ".venv/installed.py"),
        base: ("hooked.py", "grown.py", "pack/__init__.py", "pack/old.py", "space/old.py", "src/pure/__init__.py"),
    }
    for folder, files in written.items():
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(f"HOME = {folder.name!r}\n")
    places = Places(top, base, frozenset(tracked))
    monkeypatch.setattr(
        sys, "path", places.search_path([str(top), str(top / ".venv"), str(top / "new"), *sys.path, str(installed)])
    )
    assert sys.path[:2] == [str(base), str(top / ".venv")]
    hook = Hook({"hooked": top / "hooked.py", "grown": top / "grown/__init__.py", "added": top / "added.py"})
    monkeypatch.setattr(sys, "meta_path", [hook, *sys.meta_path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (top / f"fast{EXTENSION_SUFFIXES[0]}").touch()
    redirect = Redirect(places)
    redirect.put_first()
    invalidate_caches()
    homes = {"hooked": "base", "grown": "base", "built": "today", "pack": "base", "pack.old": "base"}
    homes |= {"pack.built": "today", "space.old": "base", "installed": "today"}
    homes |= {"pure": "base", "pure.built": "site-packages", "other": "site-packages"}
    assert {name: import_module(name).HOME for name in homes} == homes
    assert redirect.remarks(pickle.dumps("fast")) == ()
    assert find_spec("fast") is not None
    assert redirect.remarks(pickle.dumps("fast"))[0].startswith("the extension module fast is today's in both versions")
    assert redirect.remarks(pickle.dumps("faster")) == ()
    for name in ("added", "pack.added", "new.a", "a", "pure.added", "late"):
        with pytest.raises(ModuleNotFoundError):
            import_module(name)
    found = find_spec("pytest_kerneltune")
    assert found is not None
    assert found.origin == import_module("pytest_kerneltune").__file__
