"""Comparing what a kernel computed with what its reference computed, on the host."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

_TOLERANCE = {8: 0.125, 16: 1e-2, 32: 1e-4}  # bits of the coarsest floating type -> relative tolerance
_FINE = 1e-5  # double precision and beyond
_NUMERIC = "biufc"  # numpy's kinds


def mismatch(actual: Any, expected: Any, rtol: float | None = None, atol: float | None = None) -> str | None:
    """How ``actual`` differs from ``expected``; None if it does not.

    Sequences and mappings are compared item by item, numbers and arrays (numpy, torch) by shape and within
    ``atol + rtol * |expected|`` for floats, exactly for everything else. NaN equals NaN only.
    """
    if isinstance(expected, Mapping):
        if not isinstance(actual, Mapping) or set(actual) != set(expected):
            return f"returned {_short(actual)}, expected the keys {sorted(map(str, expected))}"
        return _first((f"[{k!r}]", mismatch(actual[k], expected[k], rtol, atol)) for k in expected)
    if isinstance(expected, list | tuple) and not (hasattr(actual, "shape") or _are_numbers(expected)):
        if not isinstance(actual, list | tuple) or len(actual) != len(expected):
            return f"returned {_short(actual)}, expected {len(expected)} items"
        pairs = enumerate(zip(actual, expected, strict=True))
        return _first((f"[{i}]", mismatch(a, e, rtol, atol)) for i, (a, e) in pairs)
    try:
        got, want = _host_array(actual), _host_array(expected)
    except (TypeError, ValueError):  # ragged lists
        return None if _equal(actual, expected) else _unequal(actual, expected)
    if not (got.dtype.kind in _NUMERIC and want.dtype.kind in _NUMERIC):
        return None if _equal(actual, expected) else _unequal(actual, expected)
    if got.shape != want.shape:
        return f"has shape {got.shape}, expected {want.shape}"
    types = [bits for bits in (_float_bits(actual, got), _float_bits(expected, want)) if bits]
    if not types:
        return _report(got, want, got != want, "")
    return _float_mismatch(got, want, _TOLERANCE.get(min(types), _FINE) if rtol is None else rtol, atol)


def kept(value: Any) -> Any:
    """A copy of what a reference returned: it may be the very array that the kernel writes next."""
    if hasattr(value, "detach"):  # a torch tensor: those inside a graph refuse to be copied
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(map(kept, value))
    try:
        return copy.deepcopy(value)
    except Exception:  # an object's own copying may raise anything; one that can't be copied is kept itself
        return value


def _are_numbers(items: Sequence[Any]) -> bool:
    return all(type(item) in (bool, int, float, complex) for item in items)


def _float_mismatch(got: Any, want: Any, rtol: float, atol: float | None) -> str | None:
    import numpy as np

    got, want = (a.astype(np.result_type(a.dtype, float)) for a in (got, want))
    # An absolute tolerance in proportion to the data, since sums that cancel have no small relative error.
    atol = rtol * _root_mean_square(want) if atol is None else atol
    close = np.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True)
    return _report(got, want, ~close, f" by more than rtol={rtol:g}, atol={atol:.3g}")


def _root_mean_square(values: Any) -> float:
    import numpy as np

    sizes = np.abs(values[np.isfinite(values)])
    largest = float(sizes.max()) if sizes.size else 0.0
    return largest * float(np.sqrt(np.mean(np.square(sizes / largest)))) if largest else 0.0


def _report(got: Any, want: Any, wrong: Any, tolerance: str) -> str | None:
    import numpy as np

    if not wrong.any():
        return None
    where = tuple(int(i) for i in np.argwhere(wrong)[0])
    first = f"first at {where}: {got[where]!s}, expected {want[where]!s}"
    return f"{int(wrong.sum())} of {wrong.size} elements differ{tolerance}; {first}"


def _host_array(value: Any) -> Any:
    import numpy as np

    if hasattr(value, "detach"):  # a torch tensor
        value = value.detach().cpu()
        return (value.float() if _is_narrow(value) else value).numpy()
    return np.asarray(value)


def _is_narrow(tensor: Any) -> bool:
    """Whether numpy has no twin of the tensor's type."""
    return str(tensor.dtype).startswith(("torch.bfloat16", "torch.float8"))


def _float_bits(value: Any, array: Any) -> int:
    """Bits of the floating type that ``value``, on the host ``array``, is made of; 0 where it is of no such type."""
    if hasattr(value, "detach") and _is_narrow(value):
        return 8 * int(value.element_size())
    if array.dtype.kind not in "fc":
        return 0
    return 8 * int(array.dtype.itemsize) // (2 if array.dtype.kind == "c" else 1)


def _equal(actual: Any, expected: Any) -> bool:
    import numpy as np

    try:
        return bool(np.all(actual == expected))
    except Exception:  # the == of somebody's class may raise anything
        return False


def _unequal(actual: Any, expected: Any) -> str:
    return f"returned {_short(actual)}, expected {_short(expected)}"


def _first(found: Any) -> str | None:
    return next((f"{where} {text}" for where, text in found if text is not None), None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
