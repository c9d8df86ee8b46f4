"""Plain callables as kernels, run in this process by the launcher that runs them for users."""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Literal

import numpy as np
import pytest

from pytest_kerneltune import CKernel, PythonKernel
from pytest_kerneltune.backends import Kernel, as_kernel
from pytest_kerneltune.errors import RemoteError, UsageError, WorkerTimeout
from pytest_kerneltune.launcher import LocalLauncher
from pytest_kerneltune.worker import Reply

AMPLE_S = 60.0


def check(kernel: PythonKernel, timeout: float = AMPLE_S, **config: Any) -> Reply:
    return LocalLauncher(kernel).call("check", config, None, timeout=timeout)


@pytest.fixture(autouse=True)
def no_alarm_is_left() -> Iterator[None]:
    yield
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


# What may be a kernel


@pytest.mark.parametrize("thing", [3, "text", None, [1], object(), np.ones(3)])
def test_what_cannot_be_called_is_no_kernel(thing: Any) -> None:
    with pytest.raises(UsageError, match="must return a callable or a kernel such as CKernel"):
        as_kernel(thing)


def test_a_callable_becomes_a_kernel_and_a_kernel_stays_one() -> None:
    class Scale:
        def __call__(self, n: int) -> int:
            return n

    for thing in (lambda n: n, Scale(), Scale().__call__, int):
        kernel = as_kernel(thing)
        assert isinstance(kernel, PythonKernel)
        assert kernel.run == thing
    for made in (PythonKernel(int), CKernel("void f(void) {}", "f")):
        assert as_kernel(made) is made
        assert isinstance(made, Kernel)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"run": 3}, "not int"),
        ({"reference": 3}, r"reference=\.\.\.\) must be callable, not 3"),
        ({"setup": "x"}, r"setup=\.\.\.\) must be callable"),
        ({"check": True}, r"check=\.\.\.\) must be callable"),
        ({"device": "tpu"}, r"device='tpu'\): use one of 'cpu', 'cuda'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        PythonKernel(**{"run": int, **arguments})


def test_what_a_kernel_is() -> None:
    def setup() -> None: ...

    kernel = PythonKernel(int, setup=setup)
    assert (kernel.kind, kernel.isolated, kernel.clock, kernel.compile_task({})) == ("python", False, "wall", None)
    assert PythonKernel(int, device="cuda").clock == "cuda"
    assert kernel.describe() == kernel.describe()
    assert kernel.describe().functions == (int, setup)
    assert kernel.describe() != PythonKernel(int, setup=setup, device="cuda").describe()
    assert kernel.launch_env() == {}
    assert isinstance(kernel.packed(()), bytes)


# Running and checking


def test_a_config_is_the_keywords_and_the_result_is_returned() -> None:
    calls: list[str] = []

    def run(a: int, b: int) -> tuple[int, int]:
        calls.append(f"{a}{b}")
        return a, b

    kernel = PythonKernel(run, setup=lambda: calls.append("setup"))
    assert kernel({"b": 2, "a": 1}, None) == (1, 2)
    assert calls == ["setup", "12"]


def test_right_and_wrong_results() -> None:
    kernel = PythonKernel(lambda n: np.full(3, float(n)), reference=lambda: np.ones(3))
    assert check(kernel, n=1).unwrap() is None
    assert "3 of 3 elements differ" in check(kernel, n=2).unwrap()


def test_a_wrong_shape_or_none_is_wrong() -> None:
    results = {"shape": np.ones(4), "none": None, "text": "ones", "nan": np.full(3, np.nan)}
    kernel = PythonKernel(lambda kind: results[kind], reference=lambda: np.ones(3))
    wrong = {kind: check(kernel, kind=kind).unwrap() for kind in results}
    assert all(wrong.values()), wrong


def test_tolerances_and_check_are_the_users() -> None:
    def near(actual: float, expected: float) -> bool:
        return abs(actual - expected) < 0.5

    assert check(PythonKernel(lambda: 1.1, reference=lambda: 1.0)).unwrap() is not None
    assert check(PythonKernel(lambda: 1.1, reference=lambda: 1.0, rtol=0.2)).unwrap() is None
    assert check(PythonKernel(lambda: 1.1, reference=lambda: 1.0, atol=0.2)).unwrap() is None
    assert check(PythonKernel(lambda: 1.1, reference=lambda: 1.0, check=near)).unwrap() is None
    assert check(PythonKernel(lambda: 1.6, reference=lambda: 1.0, check=near)).unwrap() is not None


def test_without_a_reference_or_with_one_to_be_timed_only_anything_is_right() -> None:
    assert check(PythonKernel(lambda: 3)).unwrap() is None
    assert check(PythonKernel(lambda: 3, reference=lambda: None)).unwrap() is None


def test_the_reference_s_result_is_kept_where_it_is_the_array_that_the_kernel_writes() -> None:
    buffer = np.zeros(3)

    def reference() -> Any:
        buffer[:] = 1
        return buffer

    def run(n: int) -> Any:
        buffer[:] = n
        return buffer

    kernel = PythonKernel(run, reference=reference)
    assert check(kernel, n=1).unwrap() is None
    assert check(kernel, n=2).unwrap() is not None


def test_a_result_that_cannot_be_copied_is_kept_itself() -> None:
    class Uncopyable:
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("no")

    one = Uncopyable()
    with pytest.raises(RuntimeError):
        copy.deepcopy(one)
    assert check(PythonKernel(lambda: one, reference=lambda: one)).unwrap() is None


def test_tensors_inside_a_graph_can_be_a_reference() -> None:
    torch = pytest.importorskip("torch")
    weights = torch.ones(4, requires_grad=True)
    kernel = PythonKernel(lambda n: weights.detach() * n, reference=lambda: (weights * 2,)[0])
    assert check(kernel, n=2).unwrap() is None
    assert check(kernel, n=3).unwrap() is not None


def test_setup_restores_inputs_before_each_launch_and_the_reference() -> None:
    data = np.array([3, 1, 2])
    seen: list[Any] = []

    def setup() -> None:
        data[:] = [3, 1, 2]

    def sort(kind: Literal["stable", "quicksort"]) -> Any:
        seen.append(data.tolist())
        data.sort(kind=kind)
        return data

    data.sort()
    kernel = PythonKernel(sort, reference=lambda: np.sort(data), setup=setup)
    reply = LocalLauncher(kernel).call("check_and_time", {"kind": "stable"}, None, float("inf"), timeout=AMPLE_S)
    wrong, readings = reply.unwrap()
    assert wrong is None
    assert len(readings) > 2
    assert seen == [[3, 1, 2]] * len(seen)


# Failing


@pytest.mark.parametrize("error", [ValueError("bad n"), MemoryError(), SystemExit(3), RecursionError("deep")])
def test_what_a_kernel_raises_fails_its_config_only(error: BaseException) -> None:
    def run(bad: bool) -> int:
        if bad:
            raise error
        return 1

    launcher = LocalLauncher(PythonKernel(run, reference=lambda: 1))
    reply = launcher.call("check", {"bad": True}, None, timeout=AMPLE_S)
    assert isinstance(reply.error, RemoteError)
    assert reply.error.kind == type(error).__name__
    assert "in run" in reply.log
    assert launcher.call("check", {"bad": False}, None, timeout=AMPLE_S).unwrap() is None


def test_a_config_that_does_not_fit_the_signature_is_such_a_failure() -> None:
    reply = check(PythonKernel(lambda n: n), m=3)
    assert isinstance(reply.error, RemoteError)
    assert reply.error.kind == "TypeError"


def test_an_interrupt_of_the_users_is_not_the_kernels_failure() -> None:
    def run() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(PythonKernel(run))


def test_a_skip_inside_a_kernel_skips_the_test() -> None:
    with pytest.raises(pytest.skip.Exception):
        check(PythonKernel(lambda: pytest.skip("not today")))


def test_a_reference_that_fails_says_so_whenever_it_is_needed() -> None:
    def reference() -> None:
        raise ZeroDivisionError("no reference")

    launcher = LocalLauncher(PythonKernel(int, reference=reference))
    for method, args in (("expect", ()), ("check", ({}, None))):
        reply = launcher.call(method, *args, timeout=AMPLE_S)
        assert isinstance(reply.error, RemoteError)
        assert reply.error.kind == "ZeroDivisionError"


# Hanging


def sleep() -> None:
    time.sleep(600)


def spin() -> None:
    while True:
        pass


def stubborn() -> None:
    """Catches whatever an Exception is."""
    while True:
        try:
            time.sleep(600)
        except Exception:
            continue


def bare() -> None:
    """Catches everything, twice."""
    for _ in range(2):
        with contextlib.suppress(BaseException):
            time.sleep(600)


@pytest.mark.parametrize("run", [sleep, spin, stubborn, bare])
def test_a_hang_is_interrupted(run: Callable[[], None]) -> None:
    def kernel(hang: bool) -> int:
        if hang:
            run()
        return 1

    launcher = LocalLauncher(PythonKernel(kernel, reference=lambda: 1))
    start = time.monotonic()
    reply = launcher.call("check", {"hang": True}, None, timeout=0.2)
    assert isinstance(reply.error, WorkerTimeout)
    assert time.monotonic() - start < 20
    assert launcher.call("check", {"hang": False}, None, timeout=AMPLE_S).unwrap() is None


def test_a_slow_reference_does_not_use_up_the_limit_of_the_first_config() -> None:
    left: list[float] = []

    def run() -> int:
        left.append(signal.getitimer(signal.ITIMER_REAL)[0])
        return 1

    launcher = LocalLauncher(PythonKernel(run, reference=run))
    for _ in range(2):
        left.clear()
        assert launcher.call("check", {}, None, timeout=AMPLE_S).unwrap() is None
        assert left[0] > AMPLE_S >= left[1] > 0
        launcher.restart()


def test_somebody_elses_alarm_is_left_alone() -> None:
    rang: list[int] = []

    def ring(number: int, _: FrameType | None) -> None:
        rang.append(number)

    signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        assert check(PythonKernel(lambda: time.sleep(0.4)), timeout=0.05).error is None
        assert rang == [signal.SIGALRM]
        assert check(PythonKernel(lambda: time.sleep(0.1)), timeout=0.05).error is None
        assert signal.getsignal(signal.SIGALRM) is ring
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_other_threads_run_without_an_alarm() -> None:
    replies: list[Reply] = []
    thread = threading.Thread(target=lambda: replies.append(check(PythonKernel(lambda: time.sleep(0.1)), timeout=0.05)))
    thread.start()
    thread.join()
    assert replies[0].error is None
