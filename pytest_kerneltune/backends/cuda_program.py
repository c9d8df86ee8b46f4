"""CUDA kernels launched on their arguments, through the driver's API as cupy binds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pytest_kerneltune.backends.cuda_arguments import Parameters
from pytest_kerneltune.backends.cuda_compiler import Launch, Target
from pytest_kerneltune.backends.resources import Limits
from pytest_kerneltune.backends.tensor_program import TensorProgram
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.trial import Config

_SHARED_BYTES = 48 * 1024  # what every GPU gives a block
_ARCHITECTURE_FEATURES = 9  # from this compute capability on, "sm_90a" has instructions that "sm_90" lacks


class CudaProgram(TensorProgram):
    """Launches a CudaKernel on its arguments."""

    @property
    def arguments(self) -> list[Any]:
        """What the kernel is called with, cupy arrays as tensors."""
        return list(self._arguments)

    def _launcher(self, config: Config, artifact: Any) -> Callable[[], Any]:
        return self.launcher(artifact)

    def launcher(self, artifact: Mapping[str, Any]) -> Callable[[], None]:
        """A function that launches what was compiled on the current stream of torch."""
        import cupy
        import torch
        from cupy.cuda import driver, function

        parameters = Parameters(self._arguments, artifact["parameters"])
        launch: Launch = artifact["launch"]
        with cupy.cuda.Device(torch.cuda.current_device()):
            module = function.Module()
            module.load(artifact["cubin"])
            entry = module.get_function(artifact["name"])  # it keeps the module loaded
            if launch.shared_bytes:  # more than 48 KiB with what the kernel declares needs its leave
                attribute = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                driver.funcSetAttribute(entry.ptr, attribute, launch.shared_bytes)
        run, stream = driver.launchKernel, torch.cuda.current_stream
        how = (entry.ptr, *launch.grid, *launch.block, launch.shared_bytes)

        def launched() -> None:
            run(*how, stream().cuda_stream, parameters.address, 0)

        launched.kept = entry  # type: ignore[attr-defined] # what the numbers in `how` stand for
        return launched


def current_target() -> Target:
    """The current GPU; raises KernelError where there is none."""
    import torch

    try:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    except (RuntimeError, AssertionError) as error:
        raise KernelError(f"PyTorch finds no CUDA GPU to compile for: {error}") from None
    features = "a" if properties.major >= _ARCHITECTURE_FEATURES else ""
    shared = int(getattr(properties, "shared_memory_per_block_optin", _SHARED_BYTES))
    return Target(f"sm_{properties.major}{properties.minor}{features}", Limits(shared))
