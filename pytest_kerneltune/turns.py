"""A device's lock that the processes which want it get in turn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias

from pytest_kerneltune.locking import try_lock

Release: TypeAlias = Callable[[], None]
"""Gives a lock back."""


class Turn(Protocol):
    """Who may use a device next. Nothing here waits."""

    def take(self) -> Release | None:
        """Take the device if it is free; None while another uses it: then one is in line for it."""

    def withdraw(self) -> None:
        """Leave the line."""


class DeviceTurn:
    """The lock of a device, and a second one that is the place at the head of the line.

    Whoever wants the device takes that place first and keeps it until the device is free. So a process that times one
    config after the other can't have the device again before one that waits for it. Both locks end with their owner.
    """

    def __init__(self, device: str, folder: Path | None = None) -> None:
        """``device`` and ``folder`` are those of ``locking.try_lock``."""
        self._device, self._folder = device, folder
        self._place: Release | None = None

    def take(self) -> Release | None:
        self._place = self._place or try_lock(f"{self._device} next", self._folder)
        if self._place is None:
            return None
        release = try_lock(self._device, self._folder)
        if release is not None:
            self.withdraw()
        return release

    def withdraw(self) -> None:
        if self._place is not None:
            self._place()
            self._place = None


class Unshared:
    """A device that nobody else uses."""

    def take(self) -> Release:
        return lambda: None

    def withdraw(self) -> None:
        pass
