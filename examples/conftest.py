"""Shared by the examples: what a test on a GPU requests first, so that it is skipped where there is none."""

from typing import Any

import pytest


@pytest.fixture(scope="session")
def gpu() -> Any:
    """The CUDA device."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'pytest-kerneltune[triton]'")
    pytest.importorskip("triton", reason="needs Triton: pip install 'pytest-kerneltune[triton]'")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return torch.device("cuda")
