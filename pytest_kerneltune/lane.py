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
        self.reference_ms = 0.0
        """How long the reference takes; 0 where that is not known."""
        self.instrument: Mapping[str, Any] = {}
        """What was measured of the clock (``instrument.Instrument`` as JSON); empty where it was not."""
        self._turn = turn
        self._release: Release | None = None
        self._setting_up = ""
        self._steps: Sequence[str] = ()

    @property
    def busy(self) -> bool:
        """Whether something runs here, or waits for the lock to go on with setting up."""
        return self.launcher.busy or bool(self._setting_up)

    @property
    def waits_for_lock(self) -> bool:
        """Whether setting up goes on as soon as the device is free."""
        return bool(self._setting_up) and not self.launcher.busy

    def set_up(self, timed: bool, gauged: bool) -> None:
        """Start building the station, then running the reference: what nobody's timing feels needs no lock.

        ``timed`` says that configs will be timed, ``gauged`` that the clock itself is to be measured, too.
        """
        self._steps = [_BUILD, _EXPECT, *([_INSTRUMENT] if gauged else []), *([_REFERENCE] if timed else [])]
        self._setting_up = _BUILD
        self.launcher.submit(_BUILD, timeout=SET_UP_LIMIT_S)

    def submit(self, method: str, *args: Any, timeout: float, job: Compiled | None = None) -> bool:
        """Ask the station for ``method(*args)``; False where the device is in use by another process."""
        if (release := self._turn.take()) is None:
            return False
        self.job, self._release = job, release
        try:
            self.launcher.submit(method, *args, timeout=timeout)
        except BaseException:
            self.stop()
            raise
        return True

    def poll(self) -> Reply | None:
        """The reply to what was submitted, None while there is none. Raises KernelError where setting up failed."""
        if not self.launcher.busy:
            self._go_on()
            return None
        if (reply := self.launcher.poll()) is None:
            return None
        self._unlock()
        if not self._setting_up:
            return reply
        self._take_set_up(reply)
        return None

    def stop(self) -> None:
        """End what runs; the next request is served by a fresh process."""
        self.launcher.restart()
        self.job, self._setting_up = None, ""
        self._unlock()
        self.withdraw()

    def withdraw(self) -> None:
        """Let others have the device: nothing is to be run here for now."""
        if not self._setting_up:
            self._turn.withdraw()

    def _go_on(self) -> None:
        if self._setting_up:
            self.submit(self._setting_up, timeout=REFERENCE_LIMIT_S)

    def _take_set_up(self, reply: Reply) -> None:
        step, self._setting_up = self._setting_up, ""
        if reply.error is not None:
            raise KernelError(set_up_failure(reply.error))
        if step == _EXPECT:
            self.method = str(reply.value)
        elif step == _INSTRUMENT:
            self.instrument = reply.value
        elif step == _REFERENCE:
            self.reference_ms = float(reply.value)
        following = self._steps[self._steps.index(step) + 1 :]
        self.is_set_up = not following
        if following:
            self._setting_up = following[0]
            self._go_on()

    def _unlock(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()


def set_up_failure(error: WorkerError) -> str:
    """Why a kernel cannot be used at all."""
    hint = f"\n{error.log}" if error.log else ""
    return f"the kernel cannot be set up, or its reference failed: {error}{hint}"
