"""A Gaussian blur in C: the choice between two algorithms is a parameter like any other.

Run it with ``pytest examples/test_c_blur.py --autotune``; any machine with a C compiler will do.
"""

from pathlib import Path
from typing import Any

import numpy as np
from pytest_kerneltune import CKernel, TunedKernel, choice, power_of_two, tunable

SOURCE = Path(__file__).parent / "kernels" / "blur.c"
SIZE, RADIUS = 768, 3
TAPS = 2 * RADIUS + 1


@tunable(
    space={
        "TILE_Y": power_of_two(4, 64),
        "TILE_X": power_of_two(16, 512),
        "METHOD": choice("DIRECT", "SEPARABLE"),
        "INNER": choice("TAPS", "PIXELS"),
        "UNROLL": choice(1, 2, 4, 8),
    },
    # Only the separable method has a buffer on the stack: not more than 64 KiB. Costs nothing to check.
    where=lambda c: c["METHOD"] == "DIRECT" or (c["TILE_Y"] + 2 * RADIUS) * c["TILE_X"] * 4 <= 64 * 1024,
)
def blur() -> CKernel:
    image = np.random.default_rng(0).random((SIZE + 2 * RADIUS, SIZE + 2 * RADIUS), dtype=np.float32)
    bell = np.exp(-0.5 * np.linspace(-2, 2, TAPS) ** 2)
    weights = (bell / bell.sum()).astype(np.float32)
    blurred = np.empty((SIZE, SIZE), dtype=np.float32)

    def reference() -> Any:
        rows = sum(weights[t] * image[:, t : t + SIZE] for t in range(TAPS))
        return sum(weights[t] * rows[t : t + SIZE] for t in range(TAPS))

    return CKernel(SOURCE, "blur", args=(image, weights, blurred, SIZE, SIZE), output=blurred, reference=reference)


def test_blur(blur: TunedKernel) -> None:
    blurred = blur()
    assert blurred.min() >= 0
    assert blurred.max() <= 1 + 1e-5  # an average of pixels between 0 and 1
