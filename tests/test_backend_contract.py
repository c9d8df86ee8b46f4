"""Our kinds of kernel under the contract that third parties' must pass, the Triton kind where there is a GPU."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest

from pytest_kerneltune import (
    CKernel,
    CudaKernel,
    HelionKernel,
    PythonKernel,
    TritonKernel,
    choice,
    integer,
    power_of_two,
)
from pytest_kerneltune.backends import KERNELS, Kernel
from pytest_kerneltune.contract_backend import BackendContract
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

SOURCE = """
void f(const double *x, double *y, long n) {
#if MODE == 2
    *(volatile int *)0 = 1;
#endif
    for (long i = 0; i < n; i++) y[i] = 2 * x[i] + (MODE == 1);
}
"""


CUDA_SOURCE = """
extern "C" __global__ void scale(const float *x, float *y, int n, float factor)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = factor * x[i];
}
"""


class TestCKernel(BackendContract):
    @pytest.fixture
    def kernel(self) -> Kernel:
        x = np.linspace(0, 1, 64)
        y = np.zeros_like(x)
        return CKernel(SOURCE, "f", (x, y, len(x)), output=y, reference=lambda: 2 * x)

    @pytest.fixture
    def space(self) -> ConfigSpace:
        return ConfigSpace({"MODE": integer(0, 2), "-O": integer(1, 3)})

    @pytest.fixture
    def wrong_config(self) -> Config:
        return {"MODE": 1, "-O": 1}

    @pytest.fixture
    def failing_config(self) -> Config:
        return {"MODE": 2, "-O": 1}


class TestCKernelInPlace(TestCKernel):
    @pytest.fixture
    def kernel(self) -> Kernel:
        x = np.random.default_rng(0).random(64)
        source = SOURCE.replace("const double *x, ", "").replace("2 * x[i]", "y[i] / 2")
        return CKernel(source, "f", (x, len(x)), output=x, reference=lambda: x / 2, clock="wall")


class TestPythonKernel(BackendContract):
    @pytest.fixture
    def kernel(self) -> Kernel:
        data = np.zeros(8)

        def run(n: int) -> Any:
            if n == 3:
                raise ValueError("three")
            data[:] += n
            return data

        return PythonKernel(run, reference=lambda: np.ones(8), setup=lambda: data.fill(0))

    @pytest.fixture
    def space(self) -> ConfigSpace:
        return ConfigSpace({"n": integer(1, 9)})

    @pytest.fixture
    def wrong_config(self) -> Config:
        return {"n": 2}

    @pytest.fixture
    def failing_config(self) -> Config:
        return {"n": 3}


if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator]
    def twice(x_ptr, y_ptr, n, BLOCK: tl.constexpr, BIAS: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y_ptr + at, 2 * tl.load(x_ptr + at, at < n) + BIAS, at < n)


@pytest.mark.gpu
class TestTritonKernel(BackendContract):
    @pytest.fixture
    def kernel(self) -> Kernel:
        import torch

        x = torch.randn(4000, device="cuda")
        y = torch.empty_like(x)
        grid = lambda c: (triton.cdiv(len(x), c["BLOCK"]),)  # noqa: E731 - as users write it
        return TritonKernel(twice, (x, y, len(x)), grid, output=y, reference=lambda: 2 * x)

    @pytest.fixture
    def space(self) -> ConfigSpace:
        blocks = choice(128, 512, 1000)  # the last is no power of two
        return ConfigSpace({"BLOCK": blocks, "BIAS": integer(0, 1), "num_warps": power_of_two(1, 8, default=4)})

    @pytest.fixture
    def wrong_config(self) -> Config:
        return {"BLOCK": 128, "BIAS": 1, "num_warps": 4}

    @pytest.fixture
    def failing_config(self) -> Config:
        return {"BLOCK": 1000, "BIAS": 0, "num_warps": 4}


@pytest.mark.gpu
class TestCudaKernel(BackendContract):
    @pytest.fixture
    def kernel(self) -> Kernel:
        pytest.importorskip("cupy", reason="needs cupy: pip install 'pytest-kerneltune[cuda]'")
        import torch

        source = CUDA_SOURCE.replace("factor * x[i]", "factor * x[CRASH ? i + (1ll << 40) : i] + BIAS")
        x = torch.randn(4000, device="cuda")
        y = torch.empty_like(x)
        grid = lambda c: -(-len(x) // c["BLOCK"])  # noqa: E731 - as users write it
        block = lambda c: c["BLOCK"]  # noqa: E731
        return CudaKernel(source, "scale", (x, y, len(x), 2.0), grid, block, output=y, reference=lambda: 2 * x)

    @pytest.fixture
    def space(self) -> ConfigSpace:
        blocks = power_of_two(64, 1024, default=256)
        return ConfigSpace(
            {"BLOCK": blocks, "BIAS": integer(0, 1), "CRASH": integer(0, 1), "-use_fast_math": choice(False, True)}
        )

    @pytest.fixture
    def wrong_config(self) -> Config:
        return {"BLOCK": 64, "BIAS": 1, "CRASH": 0, "-use_fast_math": False}

    @pytest.fixture
    def failing_config(self) -> Config:
        return {"BLOCK": 64, "BIAS": 0, "CRASH": 1, "-use_fast_math": False}


@pytest.mark.gpu
class TestHelionKernel(BackendContract):
    @pytest.fixture
    def kernel(self) -> Kernel:
        pytest.importorskip("helion", reason="needs helion: pip install 'pytest-kerneltune[helion]'")
        import torch

        x = torch.randn(512, 700, device="cuda")
        softmax = import_module("helion_kernels").softmax
        return HelionKernel(softmax, (x,), lambda: torch.softmax(x, -1))

    @pytest.fixture
    def space(self, kernel: Any) -> ConfigSpace:
        return kernel.space  # type: ignore[no-any-return]


def test_every_kind_is_under_the_contract() -> None:
    tested = {cls.__name__.removeprefix("Test") for cls in BackendContract.__subclasses__()}
    assert set(KERNELS) <= tested
