"""NVIDIA's management library, called directly: what nvidia-smi says takes it 50 ms, and this some microseconds.

Where the library is missing, or does not know or refuses a call, nothing is known and nothing is raised.
"""

# Names, structures and codes are those of nvml.h (NVML API Reference Guide). A structure's layout never changes under
# a name: new ones come with new functions (..._v2, ..._v3).

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Self

from pytest_kerneltune.nvidia import GpuProcess, Sample

LIBRARY = "libnvidia-ml.so.1"

_TOO_SMALL = 7  # NVML_ERROR_INSUFFICIENT_SIZE
_NOTHING_NEW = 6  # NVML_ERROR_NOT_FOUND: no process did anything in the time asked for
_SM_CLOCK = 1
_UNCORRECTED, _SINCE_BOOT = 1, 0
_NO_PART = 0xFFFFFFFF
_ROOM = 128  # processes, at first
_NAME_LENGTH = 256
_REASONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
_PROCESSES = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2")


class _Process(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_uint),
        ("memory", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


class _Use(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_uint),
        ("time_us", ctypes.c_ulonglong),
        ("sm", ctypes.c_uint),
        ("memory", ctypes.c_uint),
        ("encoder", ctypes.c_uint),
        ("decoder", ctypes.c_uint),
    ]


class _Utilisation(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class NvmlGpu:
    """A GPU as the library sees it; a question without an answer gives None."""

    def __init__(self, library: ctypes.CDLL, device: ctypes.c_void_p) -> None:
        self._library, self._device = library, device

    @classmethod
    def open(cls, uuid: str, library: str = LIBRARY) -> Self | None:
        """The GPU ``uuid`` ("": the first one); None where it cannot be asked."""
        if (loaded := _loaded(library)) is None:
            return None
        device = ctypes.c_void_p()
        try:
            if uuid:
                status = loaded.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(device))
            else:
                status = loaded.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device))
        except AttributeError:
            return None
        return cls(loaded, device) if status == 0 else None

    def sample(self) -> Sample | None:
        """Clock event reasons, SM clock and power now; None where the reasons are not known."""
        for name in _REASONS:
            if (reasons := self._number(name, ctypes.c_ulonglong)) is not None:
                clock = self._number("nvmlDeviceGetClockInfo", ctypes.c_uint, _SM_CLOCK)
                milliwatts = self._number("nvmlDeviceGetPowerUsage", ctypes.c_uint)
                return Sample(
                    reasons,
                    None if clock is None else float(clock),
                    None if milliwatts is None else milliwatts / 1e3,
                )
        return None

    def processes(self) -> list[GpuProcess] | None:
        """The processes that compute on the GPU, or hold it to do so."""
        for name in _PROCESSES:
            if (rows := self._rows(name, _Process)) is not None:
                return [GpuProcess(row.pid, self._name(row.pid), _part(row.gpu_instance)) for row in rows]
        return None

    def use(self, since_us: int) -> dict[int, int] | None:
        """Process id to the highest percentage of time in which it had work on the GPU, in the driver's samples taken
        after ``since_us`` (microseconds since 1970); who did nothing is left out."""
        rows = self._rows("nvmlDeviceGetProcessUtilization", _Use, ctypes.c_ulonglong(since_us), count_last=False)
        if rows is None:
            return None
        found: dict[int, int] = {}
        for row in rows:
            if row.time_us > since_us and row.sm:
                found[row.pid] = max(found.get(row.pid, 0), row.sm)
        return found

    def utilisation(self) -> int | None:
        """Percentage of time in which the GPU had work of anybody's, in the last sixth of a second to a second."""
        value = _Utilisation()
        return int(value.gpu) if self._succeeds("nvmlDeviceGetUtilizationRates", ctypes.byref(value)) else None

    def uncorrected_errors(self) -> int | None:
        """Memory errors since the driver was loaded that were seen and could not be corrected."""
        return self._number("nvmlDeviceGetTotalEccErrors", ctypes.c_ulonglong, _UNCORRECTED, _SINCE_BOOT)

    def _number(self, name: str, kind: type[Any], *arguments: int) -> int | None:
        value = kind()
        return int(value.value) if self._succeeds(name, *arguments, ctypes.byref(value)) else None

    def _succeeds(self, name: str, *arguments: Any) -> bool:
        return self._status(name, *arguments) == 0

    def _status(self, name: str, *arguments: Any) -> int:
        try:
            status = getattr(self._library, name)(self._device, *arguments)
        except AttributeError:
            return -1
        return int(status)

    def _rows(self, name: str, kind: type[Any], *more: Any, count_last: bool = True) -> list[Any] | None:
        """What a function writes that takes room for rows and their number, whichever it takes first."""
        room = _ROOM
        for _ in range(3):  # processes may come while they are asked for
            count, rows = ctypes.c_uint(room), (kind * room)()
            where = (ctypes.byref(count), rows) if count_last else (rows, ctypes.byref(count))
            status = self._status(name, *where, *more)
            if status == 0:
                return list(rows[: min(room, count.value)])
            if status == _NOTHING_NEW:
                return []
            if status != _TOO_SMALL:
                return None
            room = 2 * max(room, count.value)
        return None

    def _name(self, pid: int) -> str:
        buffer = ctypes.create_string_buffer(_NAME_LENGTH)
        try:
            status = self._library.nvmlSystemGetProcessName(ctypes.c_uint(pid), buffer, ctypes.c_uint(_NAME_LENGTH))
        except AttributeError:
            return ""
        return buffer.value.decode(errors="replace") if status == 0 else ""


@cache
def _loaded(library: str) -> ctypes.CDLL | None:
    """The library, ready to be asked; it stays so until this process ends."""
    try:
        loaded = ctypes.CDLL(library)
        return loaded if loaded.nvmlInit_v2() == 0 else None
    except (OSError, AttributeError):
        return None


def _part(gpu_instance: int) -> int | None:
    return None if gpu_instance == _NO_PART else gpu_instance
