"""The cache against a plain dictionary under random operations, kills and bad files; a kill before each system call.

Who is killed is a real process that uses the cache and ends itself just before the n-th of its system calls that change
a file or a directory. It says on a pipe which trials it was about to record and which it had recorded.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pytest_kerneltune.cache import Cache, Entry, Flight, Run, TuningCache
from pytest_kerneltune.cache.document import parsed
from pytest_kerneltune.cache.exchange import exported, imported
from pytest_kerneltune.cache.joining import Joining
from pytest_kerneltune.cache.layers import LayeredCache
from pytest_kerneltune.search import Effort
from pytest_kerneltune.trial import Budget, Trial

ROOT = Path(__file__).parents[1]
FINGERPRINTS = ("a1" * 32, "a1" + "b2" * 31)
LEASE_S = 0.3  # one that was killed while it made its marker is waited for as long

# Reads requests, one a line; each is carried out by a process of its own, which may end itself in the midst of it.
MORTALS = """
import json, os, signal, sys
from pathlib import Path
from tests.test_cache_machine import tune
from pytest_kerneltune.cache import Cache

def say(*words):
    os.write(1, (" ".join(words) + "\\n").encode())

CHANGES = {"open", "write", "flush", "truncate", "ftruncate", "fsync", "close", "rename", "replace", "unlink", "remove",
           "link", "symlink", "mkdir", "rmdir", "chmod", "fchmod", "utime"}

def is_change(function):
    home = function.__module__ or type(getattr(function, "__self__", None)).__module__
    return home in ("posix", "_io", "io") and function.__name__ in CHANGES

def end_before_change(number):
    left = number
    def profile(frame, event, function):
        nonlocal left
        if event == "c_call" and is_change(function):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(profile)

def serve(directory, fingerprint, names, call, lease_s):
    cache = Cache(Path(directory), lambda text: say("warning", text), lease_s=lease_s)
    end_before_change(call)
    tune(cache, fingerprint, names, say)

cache = Cache(Path(sys.argv[1]), print)
with cache.flight("c3" * 32):  # imports what a flight imports
    pass
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        serve(**json.loads(line))
        say("survived")
        os._exit(0)
    os.waitpid(pid, 0)
    say("end")
"""


def silent(*words: str) -> None:
    pass


def trial(name: str) -> Trial:
    return Trial({"name": name, "tile": (8, 16)}, latency_ms=1.0 + len(name), samples_ms=(1.0, 1.5))


def names_of(trials: tuple[Trial, ...]) -> list[str]:
    return [each.config["name"] for each in trials]


def record(flight: Flight, names: list[str], say: Any = silent) -> Run:
    """Record trials, as a search that has not ended."""
    run = Run("RandomSearch", Effort.FULL, 0, True, "2025-01-31T12:00:00", origin={"host": "abc"})
    flight.begin(run)
    for name in names:
        say("before", name)
        flight.record(trial(name))
        say("after", name)
    return replace(run, trials=tuple(map(trial, names)))


def tune(cache: TuningCache, fingerprint: str, names: list[str], say: Any = silent) -> None:
    """A search that comes to its end; its first trial wins."""
    with cache.flight(fingerprint) as flight:
        run = record(flight, names, say)
        entry = flight.entry or Entry(fingerprint, "kernel", (), None)
        say("storing")
        flight.store(replace(entry, runs=(*entry.runs, run), winner=run.trials[0].config))
        say("stored")


@dataclass
class Death:
    """What a process said before it was killed."""

    before: set[str] = field(default_factory=set)
    after: set[str] = field(default_factory=set)
    words: set[str] = field(default_factory=set)


class Mortals:
    """Processes that die."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", MORTALS, str(directory)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tune(self, directory: Path, fingerprint: str, names: list[str], call: int) -> Death:
        """Let a process tune that ends before its ``call``-th system call that changes something."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"directory": str(directory), "fingerprint": fingerprint, "names": names, "call": call}
        self._process.stdin.write(json.dumps({**request, "lease_s": LEASE_S}) + "\n")
        self._process.stdin.flush()
        death = Death()
        while (line := self._process.stdout.readline()) != "end\n":
            assert line, "the processes' parent has died"
            word, _, rest = line.rstrip().partition(" ")
            {"before": death.before, "after": death.after}.get(word, death.words).add(rest or word)
        return death

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def mortals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mortals]:
    found = Mortals(tmp_path_factory.mktemp("mortals"))
    yield found
    found.close()


def test_a_kill_before_any_system_call_loses_at_most_the_trial_in_flight(mortals: Mortals, tmp_path: Path) -> None:
    """There is an entry with one trial and a killed search's journal with another; the victim adds two and stores."""
    prepared = tmp_path / "prepared"
    cache = Cache(prepared, pytest.fail)
    tune(cache, FINGERPRINTS[0], ["stored"])
    with cache.flight(FINGERPRINTS[0]) as flight:
        record(flight, ["interrupted"])
    deaths = 0
    while True:
        directory = tmp_path / f"killed-{deaths}"
        shutil.copytree(prepared, directory)
        death = mortals.tune(directory, FINGERPRINTS[0], ["one", "two"], deaths + 1)
        with Cache(directory, pytest.fail, lease_s=LEASE_S).flight(FINGERPRINTS[0]) as flight:
            assert flight.entry is not None
            found = [*names_of(flight.entry.trials), *names_of(flight.interrupted)]
        assert death.after | {"stored", "interrupted"} <= set(found) <= death.before | {"stored", "interrupted"}
        assert len(found) == len(set(found))
        assert len(death.before - death.after) <= 1
        if "stored" in death.words:
            assert flight.interrupted == ()
        shutil.rmtree(directory)
        if "survived" in death.words:
            break
        deaths += 1
    assert deaths > 30


@dataclass
class Known:
    """What the cache should know of a fingerprint.

    ``entry`` are the names of the entry's trials, ``loose`` those of searches that stored nothing, ``rest`` those of an
    entry that is gone: a search that was killed before it removed its journal may have left some. ``winner`` is None
    where it depends on the clock. ``hidden`` is the kind of thing that stands in the entry's place and is not to be
    touched, "" for none.
    """

    entry: set[str] = field(default_factory=set)
    loose: set[str] = field(default_factory=set)
    rest: set[str] = field(default_factory=set)
    winner: str | None = None
    hidden: str = ""

    def store(self, names: list[str]) -> None:
        if self.hidden:
            self.loose |= set(names)
        else:
            self.entry |= self.loose | set(names)
            self.loose, self.winner = set(), names[0]

    def forget_entry(self) -> None:
        self.entry, self.rest, self.winner = set(), self.entry, None


fingerprints = st.sampled_from(FINGERPRINTS)
amounts = st.integers(1, 3)
_WORTHLESS = (
    b"",
    b"\0" * 100,
    b"[]",
    b"hello",
    b'{"schema": 2}',
    b"[" * 100_000,
    b"\xff\xfe",
    b'{"schema": 1, "x": 1e999}',
)


class CacheMachine(RuleBasedStateMachine):
    """Each rule is a step that users, processes or disks may make; the cache must know what the dictionary knows."""

    mortals: Mortals

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="kerneltune-machine-"))
        self.directory = self.place / "cache"
        self.warned: list[str] = []
        self.cache = self.another()
        self.known = {fingerprint: Known() for fingerprint in FINGERPRINTS}
        self.apart = {fingerprint: Known() for fingerprint in FINGERPRINTS}
        self.aside: dict[Path, bytes] = {}
        self.made = 0

    def another(self) -> Cache:
        return Cache(self.directory, self.warned.append, lease_s=LEASE_S)

    def layered(self) -> LayeredCache:
        """Reads the cache, and writes one of its own."""
        own = Cache(self.place / "apart", pytest.fail, lease_s=LEASE_S)
        return LayeredCache([own, Cache(self.directory, self.warned.append, writable=False)])

    def together(self, fingerprint: str) -> Known:
        """What the layered cache knows."""
        below, own = self.known[fingerprint], self.apart[fingerprint]
        return Known(own.entry | below.entry, own.loose)

    def new_names(self, number: int) -> list[str]:
        self.made += number
        return [f"t{self.made - n}" for n in range(number)]

    @contextmanager
    def flight(self, cache: Cache, fingerprint: str) -> Iterator[Flight]:
        """A turn, which must find what is known."""
        with cache.flight(fingerprint) as flight:
            known, found = self.known[fingerprint], names_of(flight.interrupted)
            self.compare(flight.entry, known)
            assert len(found) == len(set(found))
            assert known.loose <= set(found) <= known.loose | known.rest
            known.loose, known.rest = set(found), set()
            yield flight

    def compare(self, entry: Entry | None, known: Known) -> None:
        if known.hidden or not known.entry:
            assert entry is None
        else:
            assert entry is not None
            assert sorted(names_of(entry.trials)) == sorted(known.entry)
            assert entry.winner is not None
            assert entry.winner["name"] in ({known.winner} if known.winner else known.entry)
            assert entry.satisfies(Effort.FULL, Budget())
            assert all(each == trial(each.config["name"]) for each in entry.trials)

    # -- what users do

    @rule(fingerprint=fingerprints, number=amounts, fresh=st.booleans())
    def tune(self, fingerprint: str, number: int, fresh: bool) -> None:
        names = self.new_names(number)
        tune(self.another() if fresh else self.cache, fingerprint, names)
        self.known[fingerprint].store(names)

    @rule(fingerprint=fingerprints, number=amounts)
    def interrupt(self, fingerprint: str, number: int) -> None:
        names = self.new_names(number)
        with suppress(KeyboardInterrupt), self.flight(self.cache, fingerprint) as flight:
            record(flight, names)
            raise KeyboardInterrupt
        self.known[fingerprint].loose |= set(names)

    @rule(fingerprint=fingerprints, number=amounts)
    def tune_beside_another(self, fingerprint: str, number: int) -> None:
        """One that does not wait records its trials beside one that stores."""
        names, others = self.new_names(number), self.new_names(1)
        impatient: list[str] = []
        with self.flight(self.cache, fingerprint) as flight:
            run = record(flight, names)
            with Cache(self.directory, impatient.append, wait_s=0, lease_s=LEASE_S).flight(fingerprint) as other:
                record(other, others)
            entry = flight.entry or Entry(fingerprint, "kernel", (), None)
            flight.store(replace(entry, runs=(*entry.runs, run), winner=run.trials[0].config))
        assert impatient
        assert f"process {os.getpid()}" in impatient[0]
        self.known[fingerprint].store(names)
        self.known[fingerprint].loose |= set(others)

    @rule(fingerprint=fingerprints, number=amounts)
    def tune_apart(self, fingerprint: str, number: int) -> None:
        """One who is not trusted: nothing that it does is seen by others."""
        names = self.new_names(number)
        before = {path: path.read_bytes() for path in self.directory.rglob("*") if path.is_file()}
        tune(self.layered(), fingerprint, names)
        known = self.together(fingerprint)
        self.apart[fingerprint] = Known(known.entry | known.loose | set(names))
        assert {path: path.read_bytes() for path in self.directory.rglob("*") if path.is_file()} == before

    @rule(fingerprint=fingerprints)
    def import_what_was_made_apart(self, fingerprint: str) -> None:
        self.directory.mkdir(exist_ok=True)
        entry = self.layered().lookup(fingerprint)
        if entry is None:
            return
        lines = "\n".join(exported(entry)).encode()
        assert list(imported(BytesIO(lines), pytest.fail)) == [entry]
        known = self.known[fingerprint]
        refused: list[str] = []
        joining = Joining(self.directory, refused.append, pytest.fail, wait_s=0.0)
        joining.add(entry)
        assert len(refused) == bool(known.hidden)
        if not known.hidden and (new := set(names_of(entry.trials)) - known.entry):
            known.entry |= new
            known.loose -= new
            known.winner = None

    # -- what happens to processes and disks

    @rule(fingerprint=fingerprints, number=amounts, call=st.integers(1, 60))
    def kill(self, fingerprint: str, number: int, call: int) -> None:
        names = self.new_names(number)
        known = self.known[fingerprint]
        death = self.mortals.tune(self.directory, fingerprint, names, call)
        with self.another().flight(fingerprint) as flight:
            entry = set(names_of(flight.entry.trials)) if flight.entry else set()
            loose = set(names_of(flight.interrupted))
        assert death.after <= (entry | loose) & set(names) <= death.before
        if entry == known.entry:
            assert known.hidden or "stored" not in death.words
            assert known.loose <= loose
        else:
            assert "storing" in death.words
            known.store(names)
        known.loose = loose

    def journals(self, fingerprint: str) -> list[Path]:
        return sorted(self.path(fingerprint).parent.glob(f"{fingerprint}.trials*.jsonl"))

    def path(self, fingerprint: str) -> Path:
        return self.cache.path(fingerprint)

    @precondition(lambda self: any(known.entry and not known.hidden for known in self.known.values()))
    @rule(
        data=st.data(),
        how=st.sampled_from([*_WORTHLESS, "cut", "zeroed byte", "another's"]),
        by=st.sampled_from(["lookup", "turn", "another's lookup"]),
    )
    def spoil(self, data: st.DataObject, how: Any, by: str) -> None:
        fingerprint = data.draw(st.sampled_from([f for f, k in self.known.items() if k.entry and not k.hidden]))
        path = self.path(fingerprint)
        content = path.read_bytes()
        at = data.draw(st.integers(0, len(content) - 1))
        if how == "cut":
            content = content[:at]
        elif how == "zeroed byte":
            content = content[:at] + b"\0" + content[at + 1 :]
        else:
            content = content.replace(fingerprint.encode(), b"d4" * 32) if how == "another's" else how
        path.write_bytes(content)
        self.known[fingerprint].forget_entry()
        self.warned.clear()
        if by != "turn":
            assert (self.cache if by == "lookup" else self.another()).lookup(fingerprint) is None
        with self.flight(self.cache, fingerprint):
            pass
        assert len(self.warned) == 1
        assert f"{path} is corrupt" in self.warned[0]
        aside = path.with_name(self.warned.pop().rpartition(" ")[2])
        assert aside not in self.aside
        self.aside[aside] = content

    @rule(fingerprint=fingerprints, how=st.sampled_from(["newer", "directory", "fifo"]))
    def hide(self, fingerprint: str, how: str) -> None:
        """Something that this version does not understand takes the entry's place."""
        path, known = self.path(fingerprint), self.known[fingerprint]
        if known.hidden:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if how == "newer":
            path.write_text('{"schema": 99, "fingerprint": "later versions know"}')
        elif how == "directory":
            (path / "thing").mkdir(parents=True)
        else:
            os.mkfifo(path)
        known.forget_entry()
        known.hidden = how
        with self.flight(self.another(), fingerprint):
            pass

    @precondition(lambda self: any(known.hidden for known in self.known.values()))
    @rule()
    def unhide(self) -> None:
        for fingerprint, known in self.known.items():
            path = self.path(fingerprint)
            if known.hidden == "directory":
                assert (path / "thing").is_dir()
                shutil.rmtree(path)
            elif known.hidden:
                assert known.hidden == "fifo" or "later versions know" in path.read_text()
                path.unlink()
            known.hidden = ""

    @precondition(lambda self: any(known.loose for known in self.known.values()))
    @rule(junk=st.sampled_from([b'{"config": {"na', b"\0\0\0", b"\n\n[]\n", b'{"config": 1, "status": "ok"}\n']))
    def tear(self, junk: bytes) -> None:
        """A journal ends as one whose writer died, or whose disk did."""
        for fingerprint in FINGERPRINTS:
            for path in self.journals(fingerprint)[-1:]:
                with path.open("ab") as file:
                    file.write(junk)

    @rule()
    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.known = {fingerprint: Known() for fingerprint in FINGERPRINTS}
        self.aside.clear()

    @rule(fingerprint=fingerprints)
    def remove_during_a_search(self, fingerprint: str) -> None:
        """What the search knows, it stores: its own trials and what it found."""
        names, known = self.new_names(3), self.known[fingerprint]
        with self.flight(self.cache, fingerprint) as flight:
            record(flight, names[:1])
            self.remove()
            run = record(flight, names[1:])
            entry = flight.entry or Entry(fingerprint, "kernel", (), None)
            run = replace(run, trials=tuple(map(trial, names)))
            flight.store(replace(entry, runs=(*entry.runs, run), winner=run.trials[0].config))
        if known.hidden:
            known.forget_entry()
            known.loose = set(names)
            known.hidden = ""
        else:
            known.store(names)
        self.known[fingerprint] = known

    # -- what is always so

    @invariant()
    def finds_what_is_known(self) -> None:
        for fingerprint, known in self.known.items():
            for cache in (self.cache, self.another()):
                self.compare(cache.lookup(fingerprint), known)
            self.compare(self.layered().lookup(fingerprint), self.together(fingerprint))

    @invariant()
    def says_nothing_without_a_reason(self) -> None:
        for text in self.warned:
            assert "newer pytest-kerneltune" in text or any(f"{f}.json" in text for f in FINGERPRINTS)
        assert not any("corrupt" in text for text in self.warned)
        if not any(known.hidden for known in self.known.values()):
            self.warned.clear()
        assert len(self.warned) <= 200

    @invariant()
    def keeps_what_was_set_aside(self) -> None:
        assert {path: path.read_bytes() for path in self.directory.rglob("*.corrupt*")} == self.aside

    @invariant()
    def has_whole_entries_only(self) -> None:
        for fingerprint, known in self.known.items():
            if known.entry and not known.hidden:
                assert parsed(self.path(fingerprint).read_bytes()).fingerprint == fingerprint

    def teardown(self) -> None:
        shutil.rmtree(self.place)


def test_the_cache_knows_what_a_dictionary_knows(mortals: Mortals) -> None:
    CacheMachine.mortals = mortals
    settings_ = settings(deadline=None, max_examples=25, stateful_step_count=20, derandomize=True)
    run_state_machine_as_test(CacheMachine, settings=settings_)
