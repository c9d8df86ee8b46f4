"""One cache for several hosts: who tunes is told by a lease, which holds where hosts share nothing but a directory.

A process of another host is one with a host name of its own, so that the ones here cannot ask whether it is alive. A
file system that another host sees elsewhere is one that is mounted twice.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from pytest_kerneltune.cache import Cache, Entry
from pytest_kerneltune.cache.document import parsed

ROOT = Path(__file__).parents[2]
FINGERPRINT = "a1" * 32
LEASE_S = 1.0
LONG_LEASE_S = 60.0  # of who is to keep it, though the machine may not let it run for a while

# Tunes a fingerprint with the trials of the given numbers; after those in ``pauses`` it waits until it is sent a line.
# At "disk" it is stopped while it waits for the disk to take its entry.
TUNE = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
from pytest_kerneltune.cache import Cache, Entry, Run
from pytest_kerneltune.search import Effort
from pytest_kerneltune.trial import Budget, Trial

directory, fingerprint, lease_s, wait_s, numbers, pauses = json.loads(sys.argv[1])

def say(*words):
    print(*words, flush=True)

def pause(when):
    if when in pauses:
        say("pauses", when)
        sys.stdin.readline()

def hang(descriptor, fsync=os.fsync):
    os.fsync = fsync
    say("pauses disk")
    os.kill(os.getpid(), signal.SIGSTOP)
    os.fsync(descriptor)

cache = Cache(Path(directory), lambda text: say("warning:", text), lease_s=lease_s, wait_s=wait_s)
with cache.flight(fingerprint, lambda owner: say("waits for", owner)) as flight:
    say("found", len(flight.entry.trials) if flight.entry else 0, "and", len(flight.interrupted))
    if flight.entry is None or not flight.entry.satisfies(Effort.FULL, Budget()):
        run = Run("RandomSearch", Effort.FULL, numbers[0], True, "2025-01-31T12:00:00")
        flight.begin(run)
        trials = tuple(Trial({"number": number}, latency_ms=1.0 + number) for number in numbers)
        for trial in trials:
            flight.record(trial)
            pause(trial.config["number"])
        if "disk" in pauses:
            os.fsync = hang
        entry = flight.entry or Entry(fingerprint, "kernel", (), None)
        flight.store(replace(entry, runs=(*entry.runs, replace(run, trials=trials)), winner=trials[0].config))
        say("tuned")
"""


@cache
def namespaces(*kinds: str) -> tuple[str, ...]:
    """The command in front of one to be run in namespaces of its own; skips the test where that is not allowed."""
    for command in (("unshare", *kinds), ("unshare", "--map-root-user", *kinds)):
        try:
            subprocess.run([*command, "true"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = str(getattr(error, "stderr", b"") or error)
        else:
            return command
    pytest.skip(f"a second host needs namespaces: {reason}")


def on_the_other_host() -> tuple[str, ...]:
    return (*namespaces("--uts"), "sh", "-c", 'hostname the-other-host && exec "$@"', "sh")


def mounted(directory: Path, place: Path) -> tuple[str, ...]:
    """The command in front of one that sees ``directory`` at ``place``, on the other host."""
    mount = f'hostname the-other-host && mount --bind {directory} {place} && exec "$@"'
    return (*namespaces("--uts", "--mount"), "sh", "-c", mount, "sh")


class Tuner:
    """A process that tunes, or waits and reads."""

    def __init__(self, command: tuple[str, ...], request: list[Any]) -> None:
        self._process = subprocess.Popen(
            [*command, sys.executable, "-c", TUNE, json.dumps(request)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []

    @property
    def pid(self) -> int:
        return self._process.pid

    def until(self, start: str) -> str:
        """Wait until it says a line that begins with ``start``, and return that."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(line.rstrip())
            if self.said[-1].startswith(start):
                return self.said[-1]
        pytest.fail(f"it never said {start!r}: {self.said}")

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def ended(self) -> list[str]:
        """All it said, now that it has come to its end."""
        assert self._process.stdout is not None
        self.said += self._process.stdout.read().splitlines()
        assert self._process.wait() == 0, self.said
        return self.said

    def has_stopped(self) -> None:
        """Wait until it has been stopped."""
        stat = Path(f"/proc/{self.pid}/stat")
        while (state := stat.read_text().rpartition(")")[2].split()[0]) != "T":
            assert state not in "ZX", self.said
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()  # which waits for it and closes the pipes


Start = Callable[..., Tuner]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def start(directory: Path) -> Iterator[Start]:
    """Starts a process with the trials that it makes; ``pauses`` are those after which it waits to be told to go on."""
    tuners: list[Tuner] = []

    def started(
        *numbers: int,
        command: tuple[str, ...] = (),
        at: Path = directory,
        wait_s: float | None = None,
        lease_s: float = LEASE_S,
        pauses: tuple[int | str, ...] = (),
    ) -> Tuner:
        tuners.append(Tuner(command, [str(at), FINGERPRINT, lease_s, wait_s, numbers, pauses]))
        return tuners[-1]

    yield started
    for tuner in tuners:
        tuner.kill()


def known(directory: Path) -> tuple[Entry | None, list[int]]:
    """The entry, which must be whole, and all trials that the cache keeps: in the entry or for the next search."""
    warned: list[str] = []
    with Cache(directory, warned.append, lease_s=LEASE_S).flight(FINGERPRINT) as flight:
        trials = [*(flight.entry.trials if flight.entry else ()), *flight.interrupted]
    assert warned == []
    path = directory / FINGERPRINT[:2] / f"{FINGERPRINT}.json"
    assert flight.entry is None or parsed(path.read_bytes()) == flight.entry
    assert list(directory.rglob("*.corrupt*")) == []
    return flight.entry, sorted(trial.config["number"] for trial in trials)


def test_of_two_hosts_one_process_tunes_and_all_others_read(start: Start, directory: Path) -> None:
    kept = partial(start, lease_s=LONG_LEASE_S)
    owner = kept(1, 2, 3, pauses=(3,))
    owner.until("pauses")
    others = [kept(9, command=on_the_other_host()), kept(9), kept(9, command=on_the_other_host())]
    waiting = [other.until("waits for") for other in others]
    assert waiting[1] == f"waits for process {owner.pid}"
    assert waiting[0] == waiting[2]
    assert waiting[0].startswith(f"waits for process {owner.pid} on ")
    owner.go_on()
    assert [other.ended()[1:] for other in others] == [["found 3 and 0"]] * 3
    assert owner.ended()[-1] == "tuned"
    assert known(directory)[1] == [1, 2, 3]


def test_an_owner_that_was_killed_on_the_other_host_is_replaced_after_its_lease(start: Start, directory: Path) -> None:
    owner = start(1, 2, pauses=(2,), command=on_the_other_host())
    owner.until("pauses")
    began = time.monotonic()  # before the heir looks at the lease, which it does for the whole length
    heir = start(3)
    assert " on the-other-host" in heir.until("waits for")
    owner.kill()
    assert heir.until("found") == "found 0 and 2"
    assert time.monotonic() - began > LEASE_S
    assert heir.ended()[-1] == "tuned"
    entry, numbers = known(directory)
    assert numbers == [1, 2, 3]
    assert entry is not None
    assert sorted(trial.config["number"] for trial in entry.trials) == [1, 2, 3]


def test_an_owner_that_was_stopped_is_replaced_and_nothing_is_lost(start: Start, directory: Path) -> None:
    """It goes on as soon as the heir is at work, and waits for the heir to store what it found."""
    owner = start(1, 2, pauses=(2,))
    owner.until("pauses")
    owner.send(signal.SIGSTOP)
    heir = start(3, 4, pauses=(4,))
    heir.until("waits for")
    assert heir.until("found") == "found 0 and 2"
    heir.until("pauses")
    owner.send(signal.SIGCONT)
    owner.go_on()
    heir.go_on()
    assert heir.ended()[-1] == owner.ended()[-1] == "tuned"
    entry, numbers = known(directory)
    assert numbers == [1, 2, 3, 4]
    assert entry is not None
    assert len(entry.trials) == 4
    assert entry.winner in ({"number": 1}, {"number": 3})


@pytest.mark.parametrize("ends_well", [True, False])
def test_an_owner_that_goes_on_after_its_heir_loses_nothing(start: Start, directory: Path, ends_well: bool) -> None:
    """The heir has stored, and removed the owner's journal, by the time the owner measures more."""
    owner = start(1, 2, 5, pauses=(2, 5), command=on_the_other_host())
    owner.until("pauses")
    owner.send(signal.SIGSTOP)
    assert start(3, 4).ended()[-1] == "tuned"
    owner.send(signal.SIGCONT)
    owner.go_on()
    owner.until("pauses")
    if ends_well:
        owner.go_on()
        assert owner.ended()[-1] == "tuned"
    else:
        owner.kill()
    entry, numbers = known(directory)
    assert numbers == [1, 2, 3, 4, 5]
    assert entry is not None
    assert len(entry.trials) == 4 + ends_well


def test_an_owner_that_hangs_while_it_writes_does_not_undo_what_its_heir_wrote(start: Start, directory: Path) -> None:
    owner = start(1, 2, pauses=("disk",))
    owner.until("pauses")
    owner.has_stopped()
    assert start(3, 4).ended()[-1] == "tuned"
    owner.send(signal.SIGCONT)
    assert owner.ended()[-1] == "tuned"
    entry, numbers = known(directory)
    assert numbers == [1, 2, 3, 4]
    assert entry is not None
    assert len(entry.trials) == 4


def test_who_has_waited_for_long_says_for_whom_and_goes_on_alone(start: Start, directory: Path) -> None:
    owner = start(1, lease_s=LONG_LEASE_S, pauses=(1,), command=on_the_other_host())
    owner.until("pauses")
    impatient = start(2, lease_s=LONG_LEASE_S, wait_s=0.3, pauses=(2,))
    told = impatient.until("warning:")
    assert " on the-other-host" in told
    assert "--autotune-wait" in told
    assert f"{FINGERPRINT}.json" in told
    impatient.until("pauses")
    assert Cache(directory, pytest.fail, lease_s=LEASE_S).lookup(FINGERPRINT) is None
    owner.go_on()
    impatient.go_on()
    assert owner.ended()[-1] == impatient.ended()[-1] == "tuned"
    entry, numbers = known(directory)
    assert numbers == [1, 2]
    assert entry is not None
    assert len(entry.trials) in (1, 2)  # the other is in a journal, where the lease was not free when it was stored


@pytest.mark.parametrize("way", ["a link", "another mount"])
def test_two_paths_to_one_cache_are_one_cache(start: Start, directory: Path, tmp_path: Path, way: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    command: tuple[str, ...] = ()
    directory.mkdir()
    if way == "a link":
        elsewhere.symlink_to(directory, target_is_directory=True)
    else:
        elsewhere.mkdir()
        command = mounted(directory, elsewhere)
    owner = start(1, 2, lease_s=LONG_LEASE_S, pauses=(2,))
    owner.until("pauses")
    other = start(3, lease_s=LONG_LEASE_S, at=elsewhere, command=command)
    assert f"process {owner.pid}" in other.until("waits for")
    owner.go_on()
    owner.ended()
    assert other.ended()[-1] == "found 2 and 0"
    assert known(directory)[1] == [1, 2]
