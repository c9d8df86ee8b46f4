"""The GPUs that this process may use, without importing torch or creating a CUDA context.

1. What CUDA_VISIBLE_DEVICES names is looked up in nvidia-smi's list. An index means nothing where GPUs of several names
   are ordered by CUDA's own idea of their speed (CUDA_DEVICE_ORDER unset), nor does a number where CUDA sees whole GPUs
   and parts of others (MIG): there, as without nvidia-smi, no device is known and everything runs as with one GPU.
2. Whoever is put on a device gets it by UUID, which means the same in every process and container.
3. A process sees one MIG device, however many it may use: it is put on another one by CUDA_VISIBLE_DEVICES only.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_kerneltune.nvidia import lineage, query_guests, run_smi

VISIBLE = "CUDA_VISIBLE_DEVICES"

_GPU = re.compile(r"GPU \d+: (?P<name>.+) \(UUID: (?P<uuid>[^)\s]+)\)")
_PART = re.compile(r"\s+MIG (?P<name>\S+)\s+Device\s+\d+: \(UUID: (?P<uuid>[^)\s]+)\)")


@dataclass(frozen=True)
class Device:
    """A GPU, or a MIG device of one.

    ``index`` is its number in this process, as in torch's "cuda:0" (of several MIG devices, only the first is there),
    ``uuid`` begins with "GPU-" or "MIG-", ``name`` is torch's; ``parent`` is the UUID of a MIG device's GPU.
    """

    index: int
    uuid: str
    name: str
    parent: str = ""


@dataclass(frozen=True)
class _Gpu:
    """A GPU in nvidia-smi's list with its MIG devices, each a UUID and a name."""

    uuid: str
    name: str
    parts: tuple[tuple[str, str], ...] = ()
    is_divided: bool = False

    def devices(self) -> list[Device]:
        if self.is_divided:
            return [Device(0, uuid, f"{self.name} MIG {name}", self.uuid) for uuid, name in self.parts]
        return [Device(0, self.uuid, self.name)]


def visible_devices(environ: Mapping[str, str]) -> list[Device]:
    """The devices that a process with this environment may use, in its own order; none where that is not known."""
    gpus = _listed()
    entries = environ.get(VISIBLE, ",".join(str(i) for i in range(len(gpus)))).split(",")
    is_ordered = len({gpu.name for gpu in gpus}) < 2 or environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if not is_ordered and not _kind(entries[0]):
        return []
    chosen = _named(gpus, entries)
    if any(device.parent for device in chosen) and not all(device.parent for device in chosen):
        return []
    return [replace(device, index=i) for i, device in enumerate(chosen)]


class Lookup:
    """The devices that a process with an environment may use, looked up in a thread: nvidia-smi may take seconds where
    no daemon keeps the driver awake, and for ever where the driver hangs.

    The thread does not keep the process from ending.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = dict(environ)
        self._found: tuple[list[Device], list[Device]] = ([], [])
        self._thread = threading.Thread(target=self._look, name="kerneltune-devices", daemon=True)
        self._thread.start()

    @property
    def visible(self) -> list[Device]:
        """As ``visible_devices``; waits for the answer."""
        self._thread.join()
        return self._found[0]

    @property
    def free(self) -> list[Device]:
        """Those of ``visible`` on which nobody else computed when they were looked up; waits for the answer."""
        self._thread.join()
        return self._found[1]

    def is_known(self, within_s: float = 0.0) -> bool:
        """Whether nobody needs to wait any more, at the latest ``within_s`` seconds from now."""
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def _look(self) -> None:
        devices = visible_devices(self._environ)
        self._found = devices, unoccupied(devices) if devices else []


def _named(gpus: Sequence[_Gpu], entries: Sequence[str]) -> list[Device]:
    """What the entries of CUDA_VISIBLE_DEVICES stand for: up to the first wrong one, nothing where one is repeated."""
    found: list[Device] = []
    kind = _kind(entries[0])
    for entry in entries:
        devices = _of_entry(gpus, entry.strip()) if _kind(entry) == kind else []
        if not devices:
            break
        if not {d.uuid for d in devices}.isdisjoint(d.uuid for d in found):
            return []
        found += devices
    return found


def _kind(entry: str) -> str:
    prefix = entry.strip()[:4]
    return prefix if prefix in ("GPU-", "MIG-") else ""


def _of_entry(gpus: Sequence[_Gpu], entry: str) -> list[Device]:
    if not _kind(entry):
        digits = re.match(r"\+?\d+", entry)  # as C's strtoul reads it
        return gpus[int(digits[0])].devices() if digits and int(digits[0]) < len(gpus) else []
    whole = [gpu.devices() for gpu in gpus if gpu.uuid.startswith(entry)]
    parts = [[device] for gpu in gpus for device in gpu.devices() if device.parent and device.uuid.startswith(entry)]
    found = whole + parts
    return found[0] if len(found) == 1 else []


def alike(devices: Sequence[Device], own: Device) -> list[Device]:
    """The devices that a kernel of ``own`` may be spread over, ``own`` first: those of its name (with MIG, of its
    profile too)."""
    return [own, *(device for device in devices if device.name == own.name and device.uuid != own.uuid)]


def unoccupied(devices: Sequence[Device]) -> list[Device]:
    """Those of ``devices`` on which, as far as nvidia-smi tells, nobody computes but this process and its children.

    To be asked before there are any: in a container a child cannot always be told from a stranger.
    """
    guests = query_guests() or ()
    occupied = {uuid for uuid, pid, _ in guests if os.getpid() not in lineage(pid)}
    return [device for device in devices if occupied.isdisjoint((device.uuid, device.parent))]


def device_of(devices: Sequence[Device], uuid: str) -> Device | None:
    """The device that torch knows by ``uuid``, which of a MIG device may be its GPU's, and with any prefix."""
    for device in devices:
        if uuid and _bare(uuid) in (_bare(device.uuid), _bare(device.parent)):
            return device
    return None


def parent_uuid(uuid: str) -> str:
    """The UUID of the GPU that has the clocks of the device ``uuid``: its own, unless it is a MIG device."""
    for gpu in _listed():
        if _bare(uuid) in [_bare(part) for part, _ in gpu.parts]:
            return gpu.uuid
    return uuid


def _bare(uuid: str) -> str:
    return uuid[4:] if _kind(uuid) else uuid


def pinned(devices: Sequence[Device], position: int, chosen: Device) -> dict[str, str]:
    """The variables of a process in which "cuda:``position``" is ``chosen``, one of ``devices``.

    At position 0 the process sees nothing else; elsewhere it sees all ``devices``, ``chosen`` in exchange for the one
    at that place, so that the other numbers keep their meaning as far as possible. Of MIG devices only one is seen.
    """
    uuids = [device.uuid for device in devices]
    if position == 0 or chosen.parent:
        return {VISIBLE: chosen.uuid}
    other = uuids.index(chosen.uuid)
    uuids[position], uuids[other] = uuids[other], uuids[position]
    return {VISIBLE: ",".join(uuids)}


def of_xdist_worker(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that give an xdist worker a device of its own, where there are several: gwK gets number K modulo
    their count, of those that are like the first. None for a process that is no worker, has one device, or has begun to
    use CUDA, which reads its variables only once."""
    number = re.fullmatch(r"gw(\d+)", environ.get("PYTEST_XDIST_WORKER", ""))
    cuda = sys.modules.get("torch.cuda")
    if number is None or (cuda is not None and cuda.is_initialized()):
        return {}
    devices = visible_devices(environ)
    candidates = alike(devices, devices[0]) if len(devices) > 1 else []
    return pinned(devices, 0, candidates[int(number[1]) % len(candidates)]) if candidates else {}


def _listed() -> list[_Gpu]:
    gpus: list[_Gpu] = []
    for line in (run_smi("-L") or "").splitlines():
        if found := _GPU.match(line):
            gpus.append(_Gpu(found["uuid"], found["name"]))
        elif gpus and (found := _PART.match(line)):
            parts = (*gpus[-1].parts, (found["uuid"], found["name"]))
            gpus[-1] = _Gpu(gpus[-1].uuid, gpus[-1].name, parts, is_divided=True)
    if len(gpus) < 2:
        return gpus
    # A GPU that is divided into nothing yet cannot be told from a whole one by the list.
    modes = run_smi("--query-gpu=uuid,mig.mode.current", "--format=csv,noheader") or ""
    divided = {line.partition(",")[0].strip() for line in modes.splitlines() if line.endswith("Enabled")}
    return [_Gpu(gpu.uuid, gpu.name, gpu.parts, gpu.is_divided or gpu.uuid in divided) for gpu in gpus]
