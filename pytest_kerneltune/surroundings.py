"""What kernels run on in this process: their devices, and the toolchain that belongs to their fingerprints."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_kerneltune.backends import Kernel
from pytest_kerneltune.gpu import DeviceInfo, cpu_device, cuda_device
from pytest_kerneltune.settings import Settings
from pytest_kerneltune.versions import toolchain


class Surroundings:
    """What the fixtures ask of a run, whether it measures kernels or exports them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._devices: dict[bool, DeviceInfo] = {}

    def device(self, kernel: Kernel) -> DeviceInfo:
        """The device that the kernel runs on."""
        on_gpu = kernel.clock == "cuda"
        if on_gpu not in self._devices:
            self._devices[on_gpu] = cuda_device() if on_gpu else cpu_device()
        return self._devices[on_gpu]

    def toolchain(self, kernel: Kernel) -> Mapping[str, str]:
        """The versions that belong to the kernel's fingerprint; none unless the settings are strict."""
        if not self.settings.autotune_strict:
            return {}
        return toolchain(kernel.kind, self.device(kernel).soft, getattr(kernel, "compiler", ""))
