"""Packing, unpacked by real processes that share nothing with this one but the Python."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import pytest_kerneltune
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.packing import pack, unpack

ROOT = Path(pytest_kerneltune.__file__).parent.parent
CHILD = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pytest_kerneltune.packing import unpack; "
Import = Callable[..., ModuleType]


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Import:
    """Writes a module outside the package's path and imports it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write_and_import(name: str, text: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return import_module(name)

    return write_and_import


def in_child(data: bytes, expression: str) -> str:
    """What a fresh process prints for ``expression``, in which ``it`` is the unpacked object."""
    code = f"{CHILD}it = unpack(sys.stdin.buffer.read()); print({expression})"
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def test_a_closure_travels_and_imports_what_this_process_could(user_module: Import) -> None:
    helpers = user_module("packing_helpers", "def scale(x): return 10 * x\n")
    offset = 7
    data = pack(lambda x: helpers.scale(x) + offset)
    assert in_child(data, "it(2), sys.modules['packing_helpers'].scale(1)") == "27 10"


def test_modules_named_by_value_are_not_imported(user_module: Import, tmp_path: Path) -> None:
    test_file = user_module("packing_test_file", "FACTOR = 3\ndef inner(x): return FACTOR * x\nclass Box: size = 4\n")
    by_value = pack((test_file.inner, test_file.Box()), by_value=[test_file])
    by_reference = pack(test_file.inner)
    (tmp_path / "packing_test_file.py").unlink()
    expression = "it[0](5), it[1].size, 'packing_test_file' in sys.modules"
    assert in_child(by_value, expression) == "15 4 False"
    with pytest.raises(AssertionError, match=r"KernelError.*packing_test_file.*importable by name"):
        in_child(by_reference, "it(5)")


def checked(x: int) -> int:
    assert x > 1
    return x


def test_a_function_whose_asserts_pytest_rewrote_travels() -> None:
    assert in_child(pack(checked, by_value=[sys.modules[__name__]]), "it(5)") == "5"


def test_by_value_ends_with_the_packing(user_module: Import, tmp_path: Path) -> None:
    module = user_module("packing_twice", "def inner(x): return x\n")
    pack(module.inner, by_value=[module])
    data = pack(module.inner)
    (tmp_path / "packing_twice.py").write_text("def inner(x): return 'as on disk'\n")
    assert in_child(data, "it(1)") == "as on disk"


def test_functions_of_main_travel_by_value() -> None:
    code = (
        f"{CHILD}from pytest_kerneltune.packing import pack\nN = 5\ndef f(): return N\nsys.stdout.buffer.write(pack(f))"
    )
    data = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert in_child(data, "it()") == "5"


def test_a_request_travels_as_its_parameter(request: pytest.FixtureRequest) -> None:
    assert in_child(pack(lambda: request), "vars(it())") == "{'param': None}"


@pytest.fixture(params=[1024])
def sized(request: pytest.FixtureRequest) -> Callable[[], int]:
    return lambda: request.param * 2


def test_a_parametrised_request_travels_as_its_parameter(sized: Callable[[], int]) -> None:
    assert in_child(pack(sized), "it()") == "2048"


def test_an_array_stays_one_object() -> None:
    x = np.arange(6.0)
    data = pack({"args": (x, [x]), "reference": lambda: x})
    expression = "it['args'][0] is it['args'][1][0] is it['reference'](), it['reference']().sum()"
    assert in_child(data, expression) == "True 15.0"


BASE = np.arange(240, dtype=np.int16)


@pytest.mark.parametrize(
    "array",
    [
        BASE.reshape(4, 60),
        BASE.reshape(4, 60).T,
        BASE.reshape(4, 60)[1:, ::3],
        BASE[::-2],
        np.broadcast_to(BASE, (3, 240)),
        BASE[:0],
        np.array(5.0),
        np.ones(3, dtype=[("a", "i1"), ("b", "f8")])["b"],
        np.frombuffer(b"\0" + bytes(range(32)), np.uint8)[1:].view(np.int64),
    ],
)
def test_an_array_keeps_layout_and_alignment(array: Any) -> None:
    copy = unpack(pack(array))
    np.testing.assert_array_equal(copy, array)
    assert (copy.dtype, copy.shape, copy.strides) == (array.dtype, array.shape, array.strides)
    assert copy.ctypes.data % 64 == array.ctypes.data % 64
    assert not np.shares_memory(copy, array)


def test_arrays_of_objects_and_subclasses_travel_too() -> None:
    objects = np.array([{"a": 1}, None], dtype=object)
    masked = np.ma.masked_array([1, 2], mask=[True, False])
    assert unpack(pack(objects))[0] == {"a": 1}
    assert unpack(pack(masked)).sum() == 2


def test_a_tensor_travels_with_its_strides() -> None:
    torch = pytest.importorskip("torch")
    x = torch.arange(12).reshape(3, 4).T
    copy, again = unpack(pack((x, x)))
    assert copy is again
    assert (copy.tolist(), copy.stride()) == (x.tolist(), x.stride())


class Handle:
    """Something that a caller knows how to send."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.lock = threading.Lock()


class Grip(Handle):
    pass


LOCK = threading.Lock()


def test_reducers_are_asked_first_and_for_subclasses() -> None:
    handle = Grip(42)
    data = pack(lambda: handle, reducers={Handle: lambda h: (dict, ([("number", h.number)],))})
    assert in_child(data, "it()") == "{'number': 42}"


def kernel_with_a_lock(handle: Handle) -> Callable[[], int]:
    def run() -> int:
        return handle.number

    return run


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: kernel_with_a_lock(Handle(1)), "Handle.lock is a _thread.lock"),
        (lambda: {"guard": [threading.Lock()]}, "an item of a list is a _thread.lock"),
        (lambda: threading.Lock(), "it is a _thread.lock"),
        (lambda: lambda f=LOCK: f, "a default of .*<lambda> is a _thread.lock"),
    ],
)
def test_what_cannot_travel_is_named(make: Callable[[], Any], where: str) -> None:
    with pytest.raises(KernelError, match=where) as caught:
        pack(make())
    assert "cannot be sent to its worker" in str(caught.value)


def test_a_captured_variable_that_cannot_travel_is_named() -> None:
    events = (n for n in range(3))
    with pytest.raises(KernelError, match=r"'events', which .*<lambda> uses, is a builtins.generator"):
        pack(lambda: list(events))
