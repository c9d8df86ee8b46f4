"""A matrix product in C: tile sizes, loop order, unrolling and the compiler's optimisation level are tuned.

Run it with ``pytest examples/test_c_matmul.py --autotune``; any machine with a C compiler will do.
"""

from pathlib import Path

import numpy as np
from pytest_kerneltune import CKernel, TunedKernel, choice, permutation, power_of_two, tunable

SOURCE = Path(__file__).parent / "kernels" / "matmul.c"
N = 240


@tunable(
    space={
        # The kernel sees -DTILE_I=32. Where TILE_J x TILE_K is too big, it does not compile: one more failed trial.
        "TILE_I": power_of_two(16, 128),
        "TILE_J": power_of_two(16, 128),
        "TILE_K": power_of_two(16, 128),
        "ORDER": permutation(3),
        "UNROLL": choice(1, 2, 4, 8),
        "-O": choice(2, 3),  # a name that begins with a dash is a compiler flag: -O2 or -O3
    }
)
def matmul() -> CKernel:
    a, b = np.random.default_rng(0).standard_normal((2, N, N), dtype=np.float32)
    c = np.empty_like(a)
    return CKernel(SOURCE, "matmul", args=(a, b, c, N), output=c, reference=lambda: a @ b)


def test_matmul(matmul: TunedKernel) -> None:
    assert matmul().shape == (N, N)
