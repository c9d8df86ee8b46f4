"""Comparing outputs: every kind of value a kernel or a reference may return."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from pytest_kerneltune.backends.outputs import mismatch

NAN, INF = float("nan"), float("inf")


class Equal:
    """Compares by content, and raises where it meets something else."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __eq__(self, other: object) -> bool:
        return bool(self.content == other.content)  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (1, 1),
        (True, 1),
        (np.float32(0.1), 0.1),
        (0.0, -0.0),
        (NAN, NAN),
        (np.array([NAN, INF, -INF, 1]), np.array([NAN, INF, -INF, 1])),
        (np.full(3, NAN), np.full(3, NAN)),
        (np.full(3, 1e200), np.full(3, 1e200)),
        (np.array([]), np.array([])),
        ([], []),
        ([1.0, 2.0], (1.0, 2.0)),
        (np.array([1.0, 2.0]), [1.0, 2.0]),
        ([1.0, 2.0], np.array([1.0, 2.0])),
        (np.array([1, 2]), (np.array(1), np.array(2))),
        ((np.ones(2), 3), [np.ones(2), 3]),
        ({"a": np.ones(2), "b": [1]}, {"b": [1], "a": np.ones(2)}),
        (np.ones(3, np.uint8), np.ones(3, np.int64)),
        (np.ones(3, np.longdouble), np.ones(3)),
        (10**30, 10**30),
        (None, None),
        ("text", "text"),
        (b"bytes", b"bytes"),
        (np.array(["a", "b"]), np.array(["a", "b"])),
        (np.datetime64(1, "s"), np.datetime64(1, "s")),
        ({1, 2}, {2, 1}),
        (Equal(3), Equal(3)),
        ([[1], [1, 2]], [[1], [1, 2]]),
    ],
)
def test_equal_values_pass(actual: Any, expected: Any) -> None:
    assert mismatch(actual, expected) is None


@pytest.mark.parametrize(
    ("actual", "expected", "text"),
    [
        (2, 1, "1 of 1 elements differ"),
        (np.array([1, 2, 4]), np.array([1, 2, 3]), r"1 of 3 elements differ; first at \(2,\): 4, expected 3"),
        (np.array([1.0, NAN]), np.array([1.0, 2.0]), r"first at \(1,\): nan, expected 2.0"),
        (np.array([1.0, 2.0]), np.array([1.0, NAN]), "expected nan"),
        (np.array([INF]), np.array([-INF]), "expected -inf"),
        (np.array([INF]), np.array([1e300]), "inf, expected 1e"),
        (np.ones(3), np.ones(4), r"has shape \(3,\), expected \(4,\)"),
        (np.ones((3, 1)), np.ones(3), "has shape"),
        (np.float64(1), np.ones(1), r"has shape \(\), expected \(1,\)"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "has shape"),
        ([np.ones(2)], [np.ones(2), np.ones(2)], "expected 2 items"),
        ([np.ones(2), np.ones(2)], [np.ones(2), np.zeros(2)], r"^\[1\] 2 of 2"),
        (7, [np.ones(2)], "returned 7, expected 1 items"),
        ({"a": 1}, {"a": 1, "b": 2}, r"expected the keys \['a', 'b'\]"),
        ({"a": 1}, {"a": 2}, r"^\['a'\] 1 of 1"),
        (3, {"a": 2}, "expected the keys"),
        (None, np.ones(3), "returned None"),
        (None, [1.0], "returned None"),
        (np.ones(3), None, "expected None"),
        ("text", np.ones(3), "returned 'text'"),
        ("1", 1.0, "returned '1'"),
        ({"a": 1}, np.ones(3), "returned {'a': 1}"),
        ([[1], [1, 2]], np.ones(3), r"returned \[\[1\], \[1, 2\]\]"),
        (object(), np.ones(3), "returned <object"),
        (Equal(3), Equal(4), "returned <"),
        (3, Equal(3), "returned 3"),
        (np.array([1, None]), np.array([1, None, None]), "returned array"),
        (10**30, 10**30 + 1, "expected 1000"),
        ("x" * 300, "y" * 300, r"x{10}\.\.\., expected"),
        ({1}, {2}, r"returned \{1\}"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_different_values_are_told_apart(actual: Any, expected: Any, text: str) -> None:
    found = mismatch(actual, expected)
    assert found is not None
    assert re.search(text, found), found
    assert len(found) < 300


@pytest.mark.parametrize(
    ("dtype", "passes", "fails"),
    [
        (np.float16, 5e-3, 5e-2),
        (np.float32, 5e-5, 5e-4),
        (np.float64, 5e-6, 5e-5),
        (np.complex64, 5e-5, 5e-4),
        (np.complex128, 5e-6, 5e-5),
    ],
)
@pytest.mark.parametrize("reference", [True, False])
def test_the_tolerance_is_that_of_the_coarser_type(dtype: Any, passes: float, fails: float, reference: bool) -> None:
    fine = np.linspace(1, 2, 50)
    values = [(fine * (1 + off)).astype(dtype) for off in (passes, fails)]
    found = [mismatch(fine, v) if reference else mismatch(v, fine) for v in values]
    assert found[0] is None
    assert found[1] is not None


def test_an_integer_type_does_not_widen_the_tolerance() -> None:
    assert mismatch(np.array([100, 201], np.int16), np.array([100.0, 200.0])) is not None
    assert mismatch(np.array([100, -56], np.int8), np.array([100.0, -56.0])) is None


def test_sums_that_cancel_are_judged_by_the_scale_of_the_data_and_zeros_do_not_pass_for_it() -> None:
    expected = np.array([1000.0, -1000.0, 1e-9], np.float32)
    assert mismatch(np.array([1000.0, -1000.0, 0.01], np.float32), expected) is None
    assert mismatch(np.array([1000.0, -1000.0, 1.0], np.float32), expected) is not None
    assert mismatch(np.zeros(5), np.full(5, 1e-30)) is not None
    assert mismatch(np.full(5, 1e-30), np.zeros(5)) is not None


def test_the_users_tolerances_win() -> None:
    assert mismatch([1.0, 2.0], [1.1, 2.1], rtol=0.2) is None
    assert mismatch([1.0, 2.0], [1.1, 2.1], atol=0.2) is None
    assert mismatch([1.0, 2.0], [1.1, 2.1], rtol=0.0, atol=0.05) is not None
    assert mismatch(np.float32(1) + np.float32(1e-6), 1.0, rtol=0.0, atol=0.0) is not None
    assert mismatch({"a": [1.0]}, {"a": [1.1]}, rtol=0.2) is None


@pytest.mark.filterwarnings("error")
def test_large_narrow_values_do_not_overflow_in_the_comparison() -> None:
    assert mismatch(np.array([60000.0, 1], np.float16), np.array([-60000.0, 1], np.float16)) is not None
    assert mismatch(np.array([INF, 1]), np.array([INF, 1])) is None


def test_a_long_list_is_compared_as_an_array() -> None:
    numbers = [float(i) for i in range(200_000)]
    assert mismatch(list(numbers), numbers) is None
    found = mismatch([*numbers[:-1], 0.0], numbers)
    assert found is not None
    assert "1 of 200000" in found


def test_torch_tensors_of_every_floating_type() -> None:
    torch = pytest.importorskip("torch")
    fine = torch.linspace(1, 2, 64)
    for name, passes, fails in (("bfloat16", 5e-3, 5e-2), ("float16", 5e-3, 5e-2), ("float8_e4m3fn", 0.05, 0.5)):
        dtype = getattr(torch, name)
        assert mismatch((fine * (1 + passes)).to(dtype), fine.to(dtype)) is None, name
        assert mismatch((fine * (1 + fails)).to(dtype), fine.to(dtype)) is not None, name
        assert mismatch((fine * (1 + fails)).to(dtype), fine) is not None, name
    assert mismatch((fine * (1 + 5e-4)), fine) is not None
    assert mismatch(torch.ones(3, requires_grad=True) * 2, np.full(3, 2.0)) is None
    assert mismatch((torch.ones(2), torch.arange(3)), [np.ones(2), np.arange(3)]) is None
    assert mismatch(torch.ones(2), np.ones(3)) == "has shape (2,), expected (3,)"
