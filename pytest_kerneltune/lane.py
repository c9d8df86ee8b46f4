"""One device's lane: the launcher that checks and times configs there, one after the other, under the device's lock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_kerneltune.compilation import Compiled
from pytest_kerneltune.errors import KernelError, WorkerError
from pytest_kerneltune.launcher import REFERENCE_LIMIT_S, Launcher
from pytest_kerneltune.turns import Release, Turn
from pytest_kerneltune.worker import Reply

SET_UP_LIMIT_S = 300.0
_BUILD, _EXPECT, _INSTRUMENT, _REFERENCE = "healthy", "expect", "instrument", "reference_ms"
"""What a station is asked until configs can be timed."""


class Lane:
    """A launcher and its device's lock. ``job`` is the config that it times (None: something else, or nothing)."""

    def __init__(self, launcher: Launcher, turn: Turn) -> None:
        self.launcher = launcher
        self.job: Compiled | None = None
        self.answer: Reply | None = None
        """The reply to what was asked without a job, until it is taken."""
        self.is_set_up = False
        self.method = ""
        """What the station's clock is, in words."""
        self.reference_s = 0.0
        """How long running the reference for the first time took."""
        self.reference_ms = 0.0
        """How long the reference takes; 0 where that is not known."""
        self.instrument: Mapping[str, Any] = {}
        """What was measured of the clock (``instrument.Instrument`` as JSON); empty where it was not."""
        self.failures = 0
        """How often running, one after the other, a new process could not be set up as the first one was."""
        self._turn = turn
        self._release: Release | None = None
        self._setting_up = ""
        self._steps: Sequence[str] = ()

    @property
    def busy(self) -> bool:
        """Whether something runs here, or waits for the lock to go on with setting up."""
        return self.launcher.busy or bool(self._setting_up)

    @property
    def waits(self) -> bool:
        """Whether the next step of setting up has not begun."""
        return bool(self._setting_up) and not self.launcher.busy

    @property
    def needs_quiet(self) -> bool:
        """Whether that step measures a clock, which is not to be disturbed."""
        return self._setting_up in (_INSTRUMENT, _REFERENCE)

    def set_up(self, timed: bool, gauged: bool) -> None:
        """Start building the station, then running the reference: what nobody's timing feels needs no lock.

        ``timed`` says that configs will be timed, ``gauged`` that the clock itself is to be measured, too.
        """
        self._steps = [_BUILD, _EXPECT, *([_INSTRUMENT] if gauged else []), *([_REFERENCE] if timed else [])]
        self._setting_up = _BUILD
        self._start(_BUILD, timeout=SET_UP_LIMIT_S)

    def submit(self, method: str, *args: Any, timeout: float, job: Compiled | None = None) -> bool:
        """Ask the station for ``method(*args)``; False where the device is in use by another process."""
        if (release := self._turn.take()) is None:
            return False
        self.job, self.answer, self._release = job, None, release
        self._start(method, *args, timeout=timeout)
        return True

    def poll(self, is_quiet: bool = True) -> Reply | None:
        """The reply to what was submitted, None while there is none. Raises KernelError where setting up failed.

        Only where it ``is_quiet`` does setting up go on with what measures a clock.
        """
        if not self.launcher.busy:
            self._go_on(is_quiet)
            return None
        if (reply := self.launcher.poll()) is None:
            return None
        self._unlock()
        if not self._setting_up:
            return reply
        self._take_set_up(reply)
        self._go_on(is_quiet)
        return None

    def stop(self) -> None:
        """End what runs; the next request is served by a fresh process."""
        self.launcher.restart()
        self.job, self.answer, self._setting_up = None, None, ""
        self._unlock()
        self.withdraw()

    def withdraw(self) -> None:
        """Let others have the device: nothing is to be run here for now."""
        self._turn.withdraw()

    def _start(self, method: str, *args: Any, timeout: float) -> None:
        try:
            self.launcher.submit(method, *args, timeout=timeout)
        except BaseException:
            self.stop()
            raise

    def _go_on(self, is_quiet: bool) -> None:
        if self._setting_up and (is_quiet or not self.needs_quiet):
            self.submit(self._setting_up, timeout=REFERENCE_LIMIT_S)

    def _take_set_up(self, reply: Reply) -> None:
        step, self._setting_up = self._setting_up, ""
        if reply.error is not None:
            raise KernelError(set_up_failure(reply.error))
        if step == _EXPECT:
            self.method, self.reference_s = str(reply.value), reply.seconds
        elif step == _INSTRUMENT:
            self.instrument = reply.value
        elif step == _REFERENCE:
            self.reference_ms = float(reply.value)
        following = self._steps[self._steps.index(step) + 1 :]
        self.is_set_up = not following
        self._setting_up = following[0] if following else ""

    def _unlock(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()


def set_up_failure(error: WorkerError) -> str:
    """Why a kernel cannot be used at all."""
    hint = f"\n{error.log}" if error.log else ""
    return f"the kernel cannot be set up, or its reference failed: {error}{hint}"
