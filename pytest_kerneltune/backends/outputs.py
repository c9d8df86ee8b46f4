"""Comparing what a kernel computed with what its reference computed, on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RTOL = 1e-5
"""Default relative tolerance for double precision; narrower types get their own."""

_NARROW = {2: 1e-2, 4: 1e-4}  # item size in bytes -> tolerance, for float16/bfloat16 and float32


def mismatch(actual: Any, expected: Any, rtol: float | None = None, atol: float | None = None) -> str | None:
    """How ``actual`` differs from ``expected``; None if it does not.

    Sequences and mappings are compared item by item, numbers and arrays (numpy, torch) by shape and within
    ``atol + rtol * |expected|`` for floats, exactly for everything else. NaN equals NaN only.
    """
    if isinstance(expected, Mapping):
        if not isinstance(actual, Mapping) or set(actual) != set(expected):
            return f"returned {_short(actual)}, expected the keys {sorted(map(str, expected))}"
        return _first((f"[{k!r}]", mismatch(actual[k], expected[k], rtol, atol)) for k in expected)
    if isinstance(expected, list | tuple):
        if not isinstance(actual, list | tuple) or len(actual) != len(expected):
            return f"returned {_short(actual)}, expected {len(expected)} items"
        pairs = enumerate(zip(actual, expected, strict=True))
        return _first((f"[{i}]", mismatch(a, e, rtol, atol)) for i, (a, e) in pairs)
    if expected is None or isinstance(expected, str | bytes):
        return None if actual == expected else f"returned {_short(actual)}, expected {_short(expected)}"
    return _array_mismatch(actual, expected, rtol, atol)


def _array_mismatch(actual: Any, expected: Any, rtol: float | None, atol: float | None) -> str | None:
    import numpy as np

    got, want = _host_array(actual), _host_array(expected)
    if got.dtype == object or want.dtype == object:
        return None if bool(np.all(actual == expected)) else f"returned {_short(actual)}, expected {_short(expected)}"
    if got.shape != want.shape:
        return f"has shape {got.shape}, expected {want.shape}"
    if not (np.issubdtype(want.dtype, np.inexact) or np.issubdtype(got.dtype, np.inexact)):
        wrong = got != want
        return f"{int(wrong.sum())} of {wrong.size} elements differ" if wrong.any() else None
    coarse = min(got.dtype.itemsize, want.dtype.itemsize)
    rtol = _NARROW.get(coarse, RTOL) if rtol is None else rtol
    # An absolute tolerance in proportion to the data, since sums that cancel have no small relative error.
    scale = float(np.sqrt(np.mean(np.square(np.abs(want[np.isfinite(want)].astype(float)))))) if want.size else 0.0
    atol = rtol * (scale if np.isfinite(scale) else 0.0) if atol is None else atol
    wrong = ~np.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True)
    if not wrong.any():
        return None
    where = tuple(int(i) for i in np.argwhere(wrong)[0])
    worst = f"first at {where}: {got[where]!s}, expected {want[where]!s}"
    return f"{int(wrong.sum())} of {wrong.size} elements differ by more than rtol={rtol:g}, atol={atol:.3g}; {worst}"


def _host_array(value: Any) -> Any:
    import numpy as np

    if hasattr(value, "detach"):  # a torch tensor; bfloat16 has no numpy twin
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        return value.numpy()
    return np.asarray(value)


def _first(found: Any) -> str | None:
    return next((f"{where} {text}" for where, text in found if text is not None), None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
