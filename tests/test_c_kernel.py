"""C kernels: compiled by the real compiler, launched for real; those that crash do so in a worker."""

from __future__ import annotations

import ctypes
import os
import resource
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_kerneltune import CKernel
from pytest_kerneltune.backends import Kernel
from pytest_kerneltune.backends.c import Compiler, compiler_arguments
from pytest_kerneltune.errors import KernelError, RemoteError, UsageError, WorkerCrash, WorkerError, WorkerTimeout
from pytest_kerneltune.launcher import Launcher, Workers
from pytest_kerneltune.station import Station
from pytest_kerneltune.worker import Reply, Service, Worker

AMPLE_S = 60.0
SCALE = """
void scale(const double *x, double *y, long n) {
    for (long i = 0; i < n; i++) y[i] = FACTOR * x[i];
}
"""


def built(kernel: CKernel, **config: Any) -> bytes:
    """The library of ``config``, compiled in this process."""
    task = kernel.compile_task(config)
    library: bytes = getattr(Compiler(*task.target_args), task.method)(*task.args).artifact
    return library


def check(kernel: CKernel, **config: Any) -> str | None:
    """How a launch in this process differs from the reference."""
    return Station(kernel.program(), kernel.clock).check(config, built(kernel, **config))


def restores(kernel: CKernel, **config: Any) -> bool:
    """Whether a right config shows that inputs must be restored."""
    program = kernel.program()
    assert Station(program, kernel.clock).check(config, built(kernel, **config)) is None
    return program.restores


@pytest.fixture
def data() -> tuple[Any, Any]:
    x = np.linspace(-1, 1, 100)
    return x, np.zeros_like(x)


@pytest.fixture
def scale(data: tuple[Any, Any]) -> CKernel:
    x, y = data
    return CKernel(SCALE, "scale", (x, y, len(x)), output=y, reference=lambda: 2 * x)


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(jobs=1)
    yield made
    made.close()


@pytest.fixture
def launch(workers: Workers) -> Callable[..., Reply]:
    """Checks a config in an isolated worker."""

    def launched(kernel: Kernel, timeout: float = AMPLE_S, **config: Any) -> Reply:
        assert isinstance(kernel, CKernel)
        launcher: Launcher = workers.launcher(kernel, ())
        return launcher.call("check", config, built(kernel, **config), timeout=timeout)

    return launched


def void(body: str, **arguments: Any) -> CKernel:
    return CKernel(f"#include <stdlib.h>\n#include <stdio.h>\nvoid f(void) {{ {body} }}", "f", **arguments)


# Describing


def test_a_kernel_says_what_it_is_in_the_same_words_every_time(scale: CKernel, data: tuple[Any, Any]) -> None:
    x, y = data
    again = CKernel(SCALE, "scale", (x.copy(), y.copy(), len(x)))
    assert scale.describe() == scale.describe() == again.describe()
    assert scale.describe().inputs == (
        "arg 0: pointer to float64[100]",
        "arg 1: pointer to float64[100]",
        "arg 2: int 100",
    )
    assert scale.describe() != CKernel(SCALE, "scale", (x, y, len(x)), flags=["-O1"]).describe()
    assert scale.describe() != CKernel(SCALE, "scale", (x, y, len(x)), compiler="c99").describe()


def test_a_structure_is_described_by_its_content() -> None:
    class Pair(ctypes.Structure):
        _fields_ = (("first", ctypes.c_int), ("second", ctypes.c_double))

    source = "struct pair { int a; double b; }; double f(struct pair p) { return p.a + p.b; }"

    def kernel(second: float) -> CKernel:
        return CKernel(source, "f", (Pair(1, second),), returns=float, reference=lambda: 1 + second)

    assert kernel(2.5).describe() == kernel(2.5).describe() != kernel(3.5).describe()
    assert check(kernel(2.5)) is None
    assert check(kernel(3.5)) is None


def test_the_source_may_be_a_file_whose_includes_are_found_beside_it(tmp_path: Path) -> None:
    (tmp_path / "part.h").write_text("#define ANSWER 42\n")
    (tmp_path / "whole.c").write_text('#include "part.h"\nlong f(void) { return ANSWER; }\n')
    for path in (tmp_path / "whole.c", str(tmp_path / "whole.c")):
        kernel = CKernel(path, "f", returns=int, reference=lambda: 42)
        assert check(kernel) is None
        assert kernel.describe().directory == str(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"source": "missing.c"}, "cannot be read"),
        ({"function": "not a name"}, "name of a C function"),
        ({"returns": str}, "use int, float or None"),
        ({"clock": "sundial"}, "'thread' or 'wall'"),
        ({"flags": "-O3 -g"}, r"\['-O3', '-g'\]"),
        ({"reference": 3}, "must be callable"),
        ({"check": 3}, "must be callable"),
        ({"reference": lambda: 1}, "needs output="),
        ({"args": 3}, "must be a tuple"),
        ({"args": np.ones(3)}, "must be a tuple"),
        ({"args": ("text",)}, "argument 0 is a str"),
        ({"args": (1, None)}, "argument 1 is a NoneType"),
        ({"args": ([1, 2],)}, "argument 0 is a list"),
        ({"args": (2**63,)}, "more than a C long holds"),
        ({"args": (np.float16(1),)}, "argument 0 is a float16"),
        ({"args": (np.complex128(1),)}, "argument 0 is a complex128"),
        ({"args": (1j,)}, "argument 0 is a complex"),
        ({"args": (np.ones((4, 4))[:, 1],)}, "not C-contiguous"),
        ({"args": (np.ones((4, 4)).T,)}, "not C-contiguous"),
        ({"args": (np.array([object()]),)}, "Python objects"),
        ({"args": (np.ones(3),), "output": np.ones(3)}, "must be one of the arrays in args"),
        ({"args": (3,), "output": 3}, "must be one of the arrays in args"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        CKernel(**{"source": SCALE, "function": "scale", **arguments})


def test_an_output_that_overlaps_another_argument_is_refused() -> None:
    whole = np.zeros(100)
    first, second, third = whole[:50], whole[50:], whole[40:]
    with pytest.raises(UsageError, match="argument 0 overlaps the output, argument 1"):
        CKernel(SCALE, "scale", (first, third, 50), output=third)
    assert check(CKernel(SCALE, "scale", (first, second, 50), output=second, reference=lambda: first), FACTOR=1) is None


# Configs as compiler arguments


def test_a_config_becomes_compiler_arguments() -> None:
    config = {"TILE": 8, "FAST": True, "SLOW": False, "NONE": None, "EMPTY": "", "ORDER": (2, 0, 1), "RATE": 1.5}
    assert compiler_arguments(config) == ["-DTILE=8", "-DFAST=1", "-DSLOW=0", "-DORDER=2,0,1", "-DRATE=1.5"]
    assert compiler_arguments({"flags": "-O2 -fno-math-errno", "KIND": "float"}) == [
        "-O2",
        "-fno-math-errno",
        "-DKIND=float",
    ]
    assert compiler_arguments({"-funroll-loops": True, "-g": False, "-O": 2, "-x": None}) == ["-funroll-loops", "-O2"]


@pytest.mark.parametrize("name", ["num warps", "3D", "a-b", "é"])
def test_a_name_that_c_cannot_define_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a C macro"):
        compiler_arguments({name: 1})


def test_macros_reach_the_code(scale: CKernel) -> None:
    assert check(scale, FACTOR=2) is None
    wrong = check(scale, FACTOR=3)
    assert wrong is not None
    assert "100 of 100 elements differ" in wrong


# Compiling


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("void f(void) { undeclared = 1; }", "undeclared. undeclared"),
        ("void f(void) { ", "kernel.c:1"),
        ('_Static_assert(0, "tile too big"); void f(void) {}', "tile too big"),
        ('#error "this tile does not exist"', "this tile does not exist"),
        ('#include "no_such_file.h"', "no_such_file.h: No such file"),
        ("", None),
    ],
)
def test_a_compile_error_is_the_compilers_first_error_line(source: str, text: str | None) -> None:
    kernel = CKernel(source, "f")
    if text is None:  # an empty file compiles; its function is missed later
        assert built(kernel)
        return
    with pytest.raises(KernelError, match=text) as caught:
        built(kernel)
    assert "\n" not in str(caught.value)
    assert "/" not in str(caught.value).replace("no_such_file.h", "")


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("exit 3", "KernelError", "the compiler exited with 3"),
        ("kill -SEGV $$", "KernelError", "the compiler was killed by signal 11"),
        ("echo 'fatal error: no memory' >&2; exit 1", "KernelError", "fatal error: no memory"),
        ("printf 'caf\\351 error' >&2; exit 1", "KernelError", "caf\ufffd error"),
        ("exit 0", "KernelError", "left no library"),
    ],
)
def test_a_compiler_that_fails_in_its_own_way(tmp_path: Path, text: str, kind: str, message: str) -> None:
    kernel = CKernel(SCALE, "scale", compiler=script(tmp_path / "mycc", text))
    with pytest.raises(KernelError) as caught:
        built(kernel)
    assert type(caught.value).__name__ == kind
    assert message in str(caught.value)


def test_a_missing_compiler_is_named() -> None:
    with pytest.raises(KernelError, match="no C compiler called 'no-such-cc'"):
        built(CKernel(SCALE, "scale", compiler="no-such-cc"))


def compiled_in_worker(kernel: CKernel, timeout: float, **config: Any) -> Reply:
    task = kernel.compile_task(config)
    worker = Worker()
    try:
        return worker.call(Service(task.target, task.target_args), task.method, *task.args, timeout=timeout)
    finally:
        worker.close()


def test_a_compiler_that_hangs_is_killed_with_all_that_it_started(
    tmp_path: Path, advance: Callable[[float], None]
) -> None:
    note = tmp_path / "pids"
    text = (
        f"sleep 600 & first=$!\nsh -c 'sleep 600; true' & echo $$ $first $! > {note}.part\nmv {note}.part {note}\nwait"
    )
    task = CKernel(SCALE, "scale", compiler=script(tmp_path / "mycc", text)).compile_task({})
    worker = Worker()
    worker.submit(Service(task.target, task.target_args), task.method, *task.args, timeout=AMPLE_S)
    try:
        while not note.exists():
            assert worker.poll() is None
            time.sleep(0.01)
        advance(AMPLE_S)
        reply = worker.poll()
    finally:
        worker.close()
    assert reply is not None
    assert isinstance(reply.error, WorkerTimeout)
    pids = note.read_text().split()
    assert len(pids) == 3
    until = time.monotonic() + 60
    while (left := [pid for pid in pids if running(pid)]) and time.monotonic() < until:
        time.sleep(0.02)
    assert left == []


def running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_compiler_that_prints_for_ever_ends_with_the_limit(tmp_path: Path) -> None:
    kernel = CKernel(SCALE, "scale", compiler=script(tmp_path / "mycc", "while :; do echo nonsense; done"))
    reply = compiled_in_worker(kernel, 0.5)
    assert isinstance(reply.error, WorkerTimeout)


def test_warnings_are_kept_as_the_log() -> None:
    kernel = CKernel("void f(void) { int unused; }", "f", flags=["-Wall"])
    reply = compiled_in_worker(kernel, AMPLE_S)
    assert reply.error is None
    assert "unused" in reply.log


# Checking


def test_every_kind_of_argument_arrives() -> None:
    source = """
    #include <stdbool.h>
    #include <stdint.h>
    double f(long i, double d, float s, int8_t small, uint64_t big, bool yes, int ct, const float *x, const int16_t *k,
             double *out) {
        out[0] = i; out[1] = d; out[2] = s; out[3] = small; out[4] = big == UINT64_MAX; out[5] = yes; out[6] = ct;
        out[7] = x[1]; out[8] = k[2];
        return i + d;
    }
    """
    out = np.zeros(9)
    args = (
        -7,
        2.5,
        np.float32(1.25),
        np.int8(-3),
        np.uint64(2**64 - 1),
        True,
        ctypes.c_int(9),
        np.array([1, 2], np.float32),
        np.array([1, 2, -3], np.int16),
        out,
    )
    expected = np.array([-7, 2.5, 1.25, -3, 1, 1, 9, 2, -3])
    kernel = CKernel(source, "f", args, output=out, returns=float, reference=lambda: (expected, -4.5))
    assert check(kernel) is None
    assert kernel({}, built(kernel)) == -4.5
    assert out.tolist() == expected.tolist()


def test_calling_a_kernel_fills_the_users_own_arrays(scale: CKernel, data: tuple[Any, Any]) -> None:
    x, y = data
    returned = scale({"FACTOR": 2}, built(scale, FACTOR=2))
    assert returned is y
    assert np.array_equal(y, 2 * x)


def test_what_a_call_returns() -> None:
    x, y = np.zeros(2), np.zeros(2)
    source = "long f(double *x, double *y) { x[0] = 1; y[0] = 2; return 3; }"
    library = built(CKernel(source, "f", (x, y)))
    assert CKernel(source, "f", (x, y))({}, library) is None
    assert CKernel(source, "f", (x, y), output=[x])({}, library) is x
    both = CKernel(source, "f", (x, y), output=(x, y))({}, library)
    assert both[0] is x
    assert both[1] is y
    assert CKernel(source, "f", (x, y), returns=int)({}, library) == 3


def test_checking_leaves_the_users_arrays_alone(scale: CKernel, data: tuple[Any, Any]) -> None:
    assert check(scale, FACTOR=2) is None
    assert not data[1].any()


@pytest.mark.parametrize("index", [-1, "n", "n + 500"])
def test_writing_outside_an_array_is_wrong_even_where_the_output_is_right(index: int | str) -> None:
    source = f"void f(double *y, long n) {{ for (long i = 0; i < n; i++) y[i] = 1; y[{index}] = 1; }}"
    y = np.zeros(10)
    kernel = CKernel(source, "f", (y, 10), output=y, reference=lambda: np.ones(10))
    program = kernel.program()
    station = Station(program, "thread")
    assert station.check({}, built(kernel)) == "reaches outside argument 0"
    fine = CKernel(source.replace(f"y[{index}] = 1;", ""), "f", (y, 10))
    assert station.check({}, built(fine)) is None


@pytest.mark.parametrize(
    ("body", "text"),
    [("y[i] = 0.0 / 0.0", "nan"), ("y[i] = 1 / 0.0", "inf"), ("if (i < 9) y[i] = 1", "1 of 10 elements")],
)
def test_wrong_values_are_found(body: str, text: str) -> None:
    y = np.zeros(10)
    source = f"void f(double *y, long n) {{ for (long i = 0; i < n; i++) {body}; }}"
    wrong = check(CKernel(source, "f", (y, 10), output=y, reference=lambda: np.ones(10)))
    assert wrong is not None
    assert text in wrong


def test_a_kernel_that_does_nothing_does_not_pass_for_what_the_reference_left_in_the_output() -> None:
    x, y = np.arange(10.0), np.zeros(10)
    kernel = CKernel("void f(double *x, double *y) {}", "f", (x, y), output=y, reference=lambda: np.add(x, 1, out=y))
    station = Station(kernel.program(), "thread")
    for _ in range(2):  # the reference has run by the second time, too
        assert station.check({}, built(kernel)) is not None


def test_several_outputs_and_a_returned_value_are_compared_in_order() -> None:
    x, y = np.zeros(3), np.zeros(3)
    source = "long f(double *x, double *y) { for (int i = 0; i < 3; i++) { x[i] = 1; y[i] = 2; } return V; }"
    kernel = CKernel(
        source, "f", (x, y), output=[x, y], returns=int, reference=lambda: (np.full(3, 1.0), [2.0] * 3, -5)
    )
    assert check(kernel, V=-5) is None
    wrong = check(kernel, V=6)
    assert wrong is not None
    assert wrong.startswith("[2] ")


def test_tolerances_and_check_are_the_users() -> None:
    y = np.zeros(4)
    source = "void f(double *y) { for (int i = 0; i < 4; i++) y[i] = 3 - i; }"
    expected = np.array([3.1, 2.1, 1.1, 0.1])
    assert check(CKernel(source, "f", (y,), output=y, reference=lambda: expected)) is not None
    assert check(CKernel(source, "f", (y,), output=y, reference=lambda: expected, atol=0.2)) is None
    seen: list[Any] = []

    def same_set(actual: Any, wanted: Any) -> bool:
        seen.append((actual.tolist(), wanted))
        return bool(sorted(actual.tolist()) == wanted)

    kernel = CKernel(source, "f", (y,), output=y, reference=lambda: [0, 1, 2, 3], check=same_set)
    assert check(kernel) is None
    assert seen[0] == ([3, 2, 1, 0], [0, 1, 2, 3])
    kernel = CKernel(source, "f", (y,), output=y, reference=lambda: [0, 1, 2, 4], check=same_set)
    assert check(kernel) == "is wrong: check= returned False"


def test_a_reference_that_returns_none_is_told_so() -> None:
    y = np.zeros(4)
    kernel = CKernel("void f(double *y) {}", "f", (y,), output=y, reference=lambda: None)
    with pytest.raises(KernelError, match="returned None"):
        check(kernel)


def test_without_a_reference_anything_that_runs_is_right(data: tuple[Any, Any]) -> None:
    assert check(CKernel(SCALE, "scale", (*data, 100), output=data[1]), FACTOR=9) is None


# Restoring between launches

SORT = """
void f(int *x, long n) {
    for (long i = 1; i < n; i++)
        for (long j = i; j > 0 && x[j - 1] > x[j]; j--) { int t = x[j]; x[j] = x[j - 1]; x[j - 1] = t; }
}
"""


def numbers() -> Any:
    return np.random.default_rng(0).permutation(200).astype(np.int32)


def test_a_pure_kernel_need_not_be_restored(scale: CKernel) -> None:
    assert restores(scale, FACTOR=2) is False


@pytest.mark.parametrize("garbage", [True, False])
def test_what_the_output_held_before_does_not_make_a_pure_kernel_impure(data: tuple[Any, Any], garbage: bool) -> None:
    x, _ = data
    y = np.random.default_rng(0).random(100) if garbage else np.full(100, np.nan)
    assert restores(CKernel(SCALE, "scale", (x, y, 100), output=y, reference=lambda: 2 * x), FACTOR=2) is False


@pytest.mark.parametrize(
    ("source", "reference"),
    [
        (SORT, np.sort),
        ("void f(int *x, long n) { for (long i = 0; i < n; i++) x[i] += 1; }", lambda x: x + 1),
        (
            "void f(int *x, long n) { for (long i = 0; i < n; i++) x[i] = x[i] > 9; }",
            lambda x: (x > 9).astype(np.int32),
        ),
        ("void f(int *x, long n) { if (n) x[0] = 7; }", lambda x: np.concatenate([[7], x[1:]])),
    ],
)
@pytest.mark.parametrize("has_reference", [True, False])
def test_a_kernel_in_place_must_be_restored(source: str, reference: Callable[[Any], Any], has_reference: bool) -> None:
    x = numbers()
    kernel = CKernel(source, "f", (x, len(x)), output=x, reference=(lambda: reference(x)) if has_reference else None)
    assert restores(kernel) is True


def test_a_kernel_that_adds_to_zeros_must_be_restored() -> None:
    y = np.zeros(10)
    source = "void f(double *y) { for (int i = 0; i < 10; i++) y[i] += 1; }"
    assert restores(CKernel(source, "f", (y,), output=y, reference=lambda: np.ones(10))) is True


def test_a_kernel_that_changes_its_inputs_must_be_restored() -> None:
    x, y = np.ones(10), np.zeros(10)
    source = "void f(double *x, double *y) { for (int i = 0; i < 10; i++) { y[i] = x[i]; if (TOUCH) x[i] = 3; } }"
    kernel = CKernel(source, "f", (x, y), output=y, reference=lambda: np.ones(10))
    assert restores(kernel, TOUCH=0) is False
    assert restores(kernel, TOUCH=1) is True


def test_an_index_in_place_is_not_replaced_by_one_that_could_crash(launch: Callable[..., Reply]) -> None:
    """To see whether it reads its output, a kernel gets values there that it could have got; not its own results."""
    x = np.array([3, 1, 2, 0], np.int32)
    source = "void f(int *x, int *h) { for (int i = 0; i < 4; i++) x[i] = h[x[i]]; }"
    table = np.array([1 << 30, -(1 << 30), 1 << 29, 3], np.int32)
    kernel = CKernel(source, "f", (x, table), output=x, reference=lambda: table[x])
    assert launch(kernel).unwrap() is None


def test_the_sort_that_is_timed_always_has_something_to_sort() -> None:
    """A launch on sorted data would be hundreds of times quicker."""
    x = np.arange(2000, 0, -1, dtype=np.int32)
    kernel = CKernel(SORT, "f", (x, len(x)), output=x, reference=lambda: np.sort(x))
    ordered = np.sort(x)
    quick = CKernel(SORT, "f", (ordered, len(x)), output=ordered, reference=lambda: np.sort(x))
    library = built(kernel)
    station = Station(kernel.program(), "thread")
    wrong, readings = station.check_and_time({}, library, float("inf"))
    _, trivial = Station(quick.program(), "thread").check_and_time({}, library, float("inf"))
    assert wrong is None
    assert min(readings) > 10 * min(trivial)
    blocks = Station(kernel.program(), "thread").compare({"a": ({}, library)}, True, 3)  # a fresh process's way
    assert min(blocks["a"]) > 10 * min(trivial)


def test_a_reference_in_place_computes_from_the_first_content_each_time() -> None:
    x = numbers()
    seen: list[int] = []

    def reference() -> Any:
        seen.append(int(x[0]))
        x.sort()
        return x

    kernel = CKernel(SORT, "f", (x, len(x)), output=x, reference=reference)
    library = built(kernel)
    station = Station(kernel.program(), "thread")
    assert station.check({}, library) is None
    station.compare({"a": ({}, library)}, True, 2)
    assert len(seen) > 3
    assert set(seen) == {int(numbers()[0])}


def test_one_array_passed_twice_stays_one_array() -> None:
    x = np.arange(10.0)
    source = "void f(const double *x, double *y) { for (int i = 0; i < 10; i++) y[i] = x[i] + 1; }"
    kernel = CKernel(source, "f", (x, x), output=x, reference=lambda: np.arange(10.0) + 1)
    assert restores(kernel) is True


def test_empty_arrays_and_no_arguments_work() -> None:
    empty = np.zeros(0)
    assert check(CKernel("void f(double *x) {}", "f", (empty,), output=empty, reference=lambda: np.zeros(0))) is None
    assert check(CKernel("void f(void) {}", "f")) is None


# In the worker


@pytest.fixture
def limited_stack() -> Iterator[None]:
    """New processes have a stack of the usual size, which may be without a limit here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    usual = 8 << 20 if soft == resource.RLIM_INFINITY else min(soft, 8 << 20)
    resource.setrlimit(resource.RLIMIT_STACK, (usual, hard))
    yield
    resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


def test_a_kernel_crosses_into_its_worker(launch: Callable[..., Reply], data: tuple[Any, Any]) -> None:
    x, y = data
    kernel = CKernel(SCALE, "scale", (x, y, 100), output=y, reference=lambda: 2 * x)
    assert launch(kernel, FACTOR=2).unwrap() is None
    assert "elements differ" in launch(kernel, FACTOR=1).unwrap()


@pytest.mark.parametrize(
    ("body", "how"),
    [
        ("*(volatile int *)0 = 1;", "SIGSEGV"),
        ("abort();", "SIGABRT"),
        ("exit(3);", "status 3"),
        ("_Exit(0);", "status 0"),
        ("volatile int zero = 0; volatile int x = 7 / zero; (void)x;", "SIGFPE"),
        ("volatile char big[64 << 20]; for (long i = 0; i < 64 << 20; i += 512) big[i] = 1;", "SIGSEGV"),
        ("free((void *)16);", "SIG"),
    ],
)
@pytest.mark.usefixtures("limited_stack")
def test_a_crash_fails_the_config_and_not_the_next(launch: Callable[..., Reply], body: str, how: str) -> None:
    error = launch(void(f"if (BAD) {{ {body} }}"), BAD=1).error
    assert isinstance(error, WorkerCrash)
    assert how in str(error)
    assert launch(void(f"if (BAD) {{ {body} }}"), BAD=0).unwrap() is None


@pytest.mark.parametrize("body", ['for (;;) { __asm__ volatile (""); }', 'for (;;) puts("and on");'])
def test_a_hang_is_ended_by_the_limit(launch: Callable[..., Reply], body: str) -> None:
    start = time.monotonic()
    assert isinstance(launch(void(body), timeout=0.5).error, WorkerTimeout)
    assert time.monotonic() - start < 20
    assert launch(void("")).unwrap() is None


@pytest.mark.parametrize(
    ("source", "function", "text"),
    [
        ("void g(void) {}", "f", "undefined symbol: f"),
        ("static void f(void) {}", "f", "undefined symbol: f"),
        ("void missing(void); void f(void) { missing(); }", "f", "missing"),
    ],
)
def test_a_function_that_is_not_there(launch: Callable[..., Reply], source: str, function: str, text: str) -> None:
    reply = launch(CKernel(source, function, flags=["-O0"]))
    assert isinstance(reply.error, WorkerError)
    assert text in f"{reply.error} {reply.log}"


def test_an_artifact_that_is_no_library_is_an_error(workers: Workers) -> None:
    error = workers.launcher(void(""), ()).call("check", {}, b"not a library", timeout=AMPLE_S).error
    assert isinstance(error, RemoteError)
    assert "the compiled library" in str(error)


def test_the_thread_clock_keeps_libraries_of_the_reference_to_one_thread(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def reference() -> int:
        return int(os.environ.get("OMP_NUM_THREADS", 0))

    source = "long f(void) { return 1; }"
    for clock in ("thread", "wall"):
        kernel = CKernel(source, "f", returns=int, reference=reference, clock=clock)
        reply = workers.launcher(kernel, ()).call("check", {}, built(kernel), timeout=AMPLE_S)
        assert (reply.unwrap() is None) == (clock == "thread")


def test_the_same_library_works_under_another_python_process(scale: CKernel, tmp_path: Path) -> None:
    """An artifact is plain bytes: what a compile worker made is what a launch worker loads."""
    path = tmp_path / "library.so"
    path.write_bytes(built(scale, FACTOR=2))
    code = f"import ctypes; ctypes.CDLL({str(path)!r}).scale"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
