"""A softmax in Helion, against PyTorch's: what can be tuned is Helion's to say, so the tunable gives no space.

Skipped without a CUDA GPU, and without helion (pip install 'pytest-kerneltune[helion]').
"""

from typing import Any

import pytest
from pytest_kerneltune import HelionKernel, TunedKernel, tunable

ROWS, COLUMNS = 16384, 1500


@tunable(threshold="3%")
def helion_softmax(gpu: Any) -> HelionKernel:
    pytest.importorskip("helion", reason="needs Helion: pip install 'pytest-kerneltune[helion]'")
    import torch

    from kernels.helion_softmax import softmax

    x = torch.randn(ROWS, COLUMNS, device=gpu, dtype=torch.float16)
    return HelionKernel(softmax, args=(x,), reference=lambda: torch.softmax(x, -1))


def test_helion_softmax(helion_softmax: TunedKernel) -> None:
    assert helion_softmax().shape == (ROWS, COLUMNS)
