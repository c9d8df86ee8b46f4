"""Programs on tensors, with Python functions on the CPU in the place of compiled kernels: what they may write."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from pytest_kerneltune.backends.tensor_arguments import Comparison, checked_outputs  # noqa: E402
from pytest_kerneltune.backends.tensor_packing import TensorReducer  # noqa: E402
from pytest_kerneltune.backends.tensor_program import TensorProgram  # noqa: E402
from pytest_kerneltune.errors import KernelError, UsageError  # noqa: E402
from pytest_kerneltune.packing import pack, unpack  # noqa: E402
from pytest_kerneltune.worker import Service, Worker  # noqa: E402

HERE = sys.modules[__name__]
EXACT = Comparison(None, None, None, one=True)


class Program(TensorProgram):
    """Its configs are keywords of a Python function of the arguments."""

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any], *others: Any, **named: Any) -> None:
        super().__init__(arguments, *others, **named)
        self.function = function

    def _launcher(self, config: Mapping[str, Any], artifact: Any) -> Callable[[], Any]:
        return partial(self.function, *self._arguments, **config)


def in_worker(program: Program) -> Any:
    """The program as a worker process gets it."""
    return unpack(program.packed([HERE], {}))


def checked(program: Any, **config: Any) -> str | None:
    program.expect()
    launch = program.prepare(config, None)
    program.reset()
    found: str | None = program.mismatch(launch())
    return found


def doubling(function: Callable[..., Any], *more: Any, n: int = 8, **named: Any) -> Any:
    x, y = torch.arange(1.0, n + 1), torch.zeros(n)
    return in_worker(Program(function, (x, y, *more), (y,), lambda: x * 2, EXACT, **named))


def poke(tensor: Any, offset: int, value: int = 0, count: int = 1) -> None:
    ctypes.memset(tensor.data_ptr() + offset, value, count)


# Beyond the ends


def twice_and_beyond(x: Any, y: Any, at: int | None = None, count: int = 1) -> None:
    y.copy_(x * 2)
    if at is not None:
        poke(y, at, count=count)


@pytest.mark.parametrize(
    ("at", "count", "text"),
    [
        (32, 1, "1 bytes from 0 bytes after its end"),
        (40, 16, "16 bytes from 8 bytes after its end"),
        (-1, 1, "1 bytes up to 0 bytes before its start"),
        (-100, 4, "4 bytes up to 96 bytes before its start"),
        (32 + 4095, 1, "1 bytes from 4095 bytes after its end"),
    ],
)
def test_a_config_that_writes_beyond_its_output_is_wrong(at: int, count: int, text: str) -> None:
    program = doubling(twice_and_beyond, names=("x", "the output y"))
    assert checked(program) is None
    assert checked(program, at=at, count=count) == f"overwrites memory outside the output y: {text}"
    assert checked(program) is None


@pytest.mark.parametrize("n", [7, 8])  # whose ends are, and are not, those of 8-byte words
@pytest.mark.parametrize("at", [0, 1, 4000, -1, -4000])
def test_every_guard_byte_counts(n: int, at: int) -> None:
    program = doubling(twice_and_beyond, n=n)
    assert checked(program) is None
    assert "overwrites memory outside argument 1: 1 bytes" in str(checked(program, at=at if at < 0 else 4 * n + at))


def test_beyond_an_input_is_outside_too() -> None:
    def stray(x: Any, y: Any, far: bool) -> None:
        y.copy_(x * 2)
        poke(x, 32 if far else 0, value=int(far))  # 0.0 there loses nothing but its lowest byte, which is 0

    program = doubling(stray)
    wrong = checked(program, far=True)
    assert wrong is not None
    assert "outside argument 0: 1 bytes from 0 bytes after" in wrong


def test_a_copy_beyond_the_ends_of_both_arrays_shows() -> None:
    def copy(x: Any, y: Any, count: int) -> None:
        ctypes.memmove(y.data_ptr(), x.data_ptr(), count)

    x, y = torch.arange(8.0), torch.zeros(8)
    program = in_worker(Program(copy, (x, y), (y,), lambda: x, EXACT))
    assert checked(program, count=32) is None
    assert "16 bytes from 0 bytes after its end" in str(checked(program, count=48))


def test_what_is_read_beyond_the_end_shows_in_the_output() -> None:
    def total(x: Any, y: Any, count: int) -> None:
        y.fill_(sum((ctypes.c_float * count).from_address(x.data_ptr())))

    x, y = torch.ones(8), torch.zeros(1)
    program = in_worker(Program(total, (x, y), (y,), lambda: x.sum().reshape(1), EXACT))
    assert checked(program, count=8) is None
    assert "1 of 1 elements differ" in str(checked(program, count=9))


def test_the_memory_of_a_worker_s_tensors_is_as_large_and_as_aligned_as_the_user_s() -> None:
    def nothing(x: Any, y: Any) -> None:
        pass

    base = torch.arange(100.0)
    program = in_worker(Program(nothing, (base[3:7], base), (), None, EXACT))
    view, whole = program._arguments
    assert whole.untyped_storage().nbytes() == 400
    assert whole.data_ptr() % 64 == 0
    assert view.data_ptr() == whole.data_ptr() + 12
    assert torch.equal(whole, base)
    assert torch.equal(view, base[3:7])


def test_writes_far_away_are_found_and_repaired() -> None:
    def far(x: Any, y: Any, hit: str = "") -> None:
        y.copy_(x * 2)
        if hit == "first":
            next(iter(program._found.first.first.values()))[0] = 77
        if hit == "expected":
            program._found.expected[0][0] = 77

    program = doubling(far)
    program.function = far  # with this test's program in sight
    assert checked(program) is None
    for hit in ("first", "expected"):
        assert checked(program, hit=hit) == "overwrites memory far from its arguments"
        assert checked(program) is None


def test_a_check_may_work_in_place() -> None:
    def near(actual: Any, expected: Any) -> bool:
        return bool(expected.sub_(actual).abs().max() < 0.5)

    x, y = torch.arange(1.0, 9.0), torch.zeros(8)
    program = in_worker(Program(add_or_store, (x, y), (y,), lambda: x * 2, Comparison(None, None, near, one=True)))
    assert [checked(program, parts=1), checked(program, parts=1)] == [None, None]
    assert checked(program, parts=1, reach=7) == "is wrong: check= returned False"


def test_a_program_that_ran_here_travels_without_what_it_found() -> None:
    x, y = torch.arange(1.0, 9.0), torch.zeros(8)
    program = Program(twice_then, (x, y), (y,), lambda: x * 2, EXACT)
    assert checked(program, clobber=True) is None
    program.reset()
    copy = in_worker(program)
    assert checked(copy) is None
    assert "argument 0 changed" in str(checked(copy, clobber=True))


def test_a_station_in_a_worker_process_finds_a_config_out_and_goes_on() -> None:
    x, y = torch.arange(1.0, 9.0), torch.zeros(8)
    data = Program(twice_and_beyond, (x, y), (y,), lambda: x * 2, EXACT).packed([HERE], {})
    station = Service("pytest_kerneltune.station:Station", (data, "wall"))
    worker = Worker()
    try:
        replies = [worker.call(station, "check", config, None, timeout=60.0) for config in ({}, {"at": 32}, {})]
    finally:
        worker.close()
    found = [reply.unwrap() for reply in replies]
    assert found == [None, "overwrites memory outside argument 1: 1 bytes from 0 bytes after its end", None]


# Beside views


def test_bytes_of_the_output_s_storage_outside_its_view_are_not_the_kernel_s() -> None:
    def rows(_: Any, y: Any, width: int) -> None:
        y.as_strided((2, width), (4, 1), 1).copy_(torch.ones(2, width))

    buffer = torch.zeros(10)
    y = buffer[1:9].view(2, 4)[:, :3]
    program = in_worker(Program(rows, (torch.zeros(1), y), (y,), lambda: torch.ones(2, 3), EXACT))
    assert checked(program, width=3) is None
    wrong = checked(program, width=4)
    assert wrong is not None
    assert "outside argument 1: " in wrong
    assert "of the storage that it is a view of" in wrong
    assert program.restores is False


def test_an_output_that_is_part_of_an_argument_leaves_the_rest_to_the_kernel() -> None:
    def both(buffer: Any) -> None:
        buffer.copy_(torch.arange(8.0) + 1)

    buffer = torch.zeros(8)
    program = in_worker(Program(both, (buffer,), (buffer[:4],), lambda: torch.arange(4.0) + 1, EXACT))
    assert checked(program) is None
    assert checked(program) is None


def test_input_and_output_in_one_storage_are_told_apart() -> None:
    def halves(x: Any, y: Any, clobber: bool) -> None:
        y.copy_(x * 2)
        if clobber:
            x.zero_()

    buffer = torch.arange(8.0)
    x, y = buffer[:4], buffer[4:]
    program = in_worker(Program(halves, (x, y), (y,), lambda: x * 2, EXACT))
    assert checked(program, clobber=False) is None
    assert "changed, which an earlier right config leaves alone" in str(checked(program, clobber=True))


def test_expanded_and_empty_arguments_do_no_harm() -> None:
    def fill(row: Any, _: Any, y: Any) -> None:
        y.copy_(row)

    row, nothing, y = torch.arange(4.0).expand(3, 4), torch.empty(0), torch.zeros(3, 4)
    program = in_worker(Program(fill, (row, nothing, y), (y,), lambda: row, EXACT))
    assert checked(program) is None


# Inputs


def twice_then(x: Any, y: Any, workspace: Any = None, clobber: bool = False, parts: int = 1) -> None:
    y.copy_(x * 2)
    if clobber:
        x.zero_()
    if parts > 1:
        workspace += 1


def test_a_config_that_changes_an_input_which_others_leave_alone_is_wrong() -> None:
    program = doubling(twice_then, names=("x_ptr", "y_ptr"))
    assert checked(program) is None
    wrong = checked(program, clobber=True)
    assert wrong == "is right, but x_ptr changed, which an earlier right config leaves alone"
    assert checked(program) is None
    assert program.restores is False


def test_a_kernel_that_always_changes_its_inputs_is_right_and_restored() -> None:
    program = doubling(twice_then)
    assert [checked(program, clobber=True), checked(program, clobber=True)] == [None, None]
    assert program.restores is True


def test_the_first_config_answers_for_an_input_that_later_ones_leave_alone() -> None:
    program = doubling(twice_then)
    assert checked(program, clobber=True) is None
    assert checked(program) is None
    assert "argument 0 changed" in str(checked(program, clobber=True))


def test_a_workspace_may_be_used_by_some_configs_only() -> None:
    program = doubling(twice_then, torch.zeros(3))
    assert checked(program) is None
    assert program.restores is False
    assert checked(program, parts=4) is None
    assert program.restores is True
    assert checked(program) is None


# Outputs that are added to


def add_or_store(x: Any, y: Any, parts: int, reach: int = 8) -> None:
    if parts == 1:
        y[:reach] = x[:reach] * 2
        return
    for _ in range(parts):
        y += x * 2 / parts


@pytest.mark.parametrize("order", [(1, 4, 1, 2), (4, 1, 2), (2, 4)])
def test_configs_that_store_and_configs_that_add_are_both_right(order: tuple[int, ...]) -> None:
    program = doubling(add_or_store)
    assert [checked(program, parts=parts) for parts in order] == [None] * len(order)
    assert program.restores is True
    assert "1 of 8 elements differ" in str(checked(program, parts=1, reach=7))


def test_an_output_that_holds_the_answer_already_excuses_nothing() -> None:
    x = torch.arange(1.0, 9.0)
    y = x * 2
    program = in_worker(Program(add_or_store, (x, y), (y,), lambda: x * 2, EXACT))
    assert checked(program, parts=1) is None
    assert "elements differ" in str(checked(program, parts=1, reach=7))
    assert "elements differ" in str(checked(program, parts=2))


def test_a_kernel_in_place_has_its_output_s_first_content_each_time() -> None:
    def scale(x: Any) -> None:
        x *= 2

    x = torch.arange(1.0, 9.0)
    program = in_worker(Program(scale, (x,), (x,), lambda: x * 2, EXACT))
    assert [checked(program), checked(program)] == [None, None]
    assert program.restores is True


def test_indices_in_place_are_never_filled_with_others() -> None:
    def follow(table: Any, x: Any) -> None:
        assert x.min() >= 0
        x.copy_(table[x])

    table, x = torch.arange(8).flip(0), torch.arange(0, 8, 2)
    program = in_worker(Program(follow, (table, x), (x,), lambda: table[x], EXACT))
    assert [checked(program), checked(program)] == [None, None]
    assert program.restores is True


def test_integers_that_are_only_written_are_spoilt() -> None:
    def count(x: Any, y: Any, reach: int = 8) -> None:
        y[:reach] = x[:reach].to(torch.int32)

    x = torch.arange(8.0)
    y = x.to(torch.int32)
    program = in_worker(Program(count, (x, y), (y,), lambda: x.to(torch.int32), EXACT))
    assert checked(program) is None
    assert "1 of 8 elements differ" in str(checked(program, reach=7))


FLOATS = ["float16", "bfloat16", "float32", "float64", "complex64"]
FLOATS += ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
WHOLE = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]


def all_but(x: Any, y: Any, left: int = -1) -> None:
    for i in range(len(y)):
        if i != left:
            y[i] = x[i]


@pytest.mark.parametrize("name", FLOATS + WHOLE)
def test_what_a_config_leaves_out_shows_in_outputs_of_any_type(name: str) -> None:
    x = torch.arange(1.0, 9.0).to(getattr(torch, name))
    program = in_worker(Program(all_but, (x, y := x.clone()), (y,), lambda: x, EXACT))
    assert checked(program) is None
    assert "1 of 8 elements differ" in str(checked(program, left=7))


def test_what_a_config_leaves_out_shows_where_nan_is_expected() -> None:
    x, y = torch.tensor([1.0, float("nan"), 3.0]), torch.zeros(3)
    program = in_worker(Program(all_but, (x, y), (y,), lambda: x, EXACT))
    assert checked(program) is None
    assert "1 of 3 elements differ" in str(checked(program, left=1))
    assert "1 of 3 elements differ" in str(checked(program, left=0))


def test_integers_of_other_types_are_compared_by_value() -> None:
    x, y = torch.tensor([1, 65535], dtype=torch.uint16), torch.zeros(2, dtype=torch.uint16)
    for expected, text in (([1, 65535], "None"), ([1, -1], "1 of 2 elements differ")):
        program = in_worker(Program(all_but, (x, y), (y,), lambda e=expected: torch.tensor(e), EXACT))
        assert text in str(checked(program))


def test_an_expanded_output_is_written_once() -> None:
    def write(x: Any, y: Any) -> None:
        y[0] = x

    for dtype in (torch.float32, torch.int32):
        x, y = torch.tensor(3, dtype=dtype), torch.zeros(1, dtype=dtype).expand(4)
        program = in_worker(Program(write, (x, y), (y,), lambda x=x: x.expand(4), EXACT))
        assert [checked(program), checked(program)] == [None, None]


@pytest.mark.parametrize("kind", [torch.nn.Parameter, torch.Tensor.requires_grad_])
def test_what_requires_a_gradient_has_guards_and_shares_its_memory(kind: Callable[[Any], Any]) -> None:
    def transposed(weight: Any, y: Any, at: int | None = None) -> None:
        y.copy_(weight.detach().T)
        if at is not None:
            poke(weight, at)

    weight, y = kind(torch.arange(8.0).view(2, 4)), torch.zeros(4, 2)
    program = in_worker(Program(transposed, (weight, y), (y,), lambda: weight.T, EXACT))
    assert checked(program) is None
    assert "outside argument 0: 1 bytes from 0 bytes after its end" in str(checked(program, at=32))
    assert "argument 0 changed" in str(checked(program, at=30))
    loaded = unpack(pack([weight, weight.detach()[1]], [], {torch.Tensor: TensorReducer()}))
    assert type(loaded[0]) is type(weight)
    assert loaded[0].requires_grad
    assert loaded[1].data_ptr() == loaded[0].data_ptr() + 16


def test_a_conjugated_view_keeps_its_values() -> None:
    x, y = torch.tensor([1 + 2j]).conj(), torch.zeros(1, dtype=torch.complex64)
    program = in_worker(Program(all_but, (x, y), (y,), lambda: torch.tensor([1 - 2j]), EXACT))
    assert checked(program) is None


def test_an_output_may_require_a_gradient() -> None:
    x, y = torch.ones(4), torch.zeros(4, requires_grad=True)
    program = in_worker(Program(lambda x, y: y.data.copy_(x), (x, y), (y,), lambda: x, EXACT))
    assert [checked(program), checked(program)] == [None, None]


def test_a_reference_that_works_in_place_computes_the_same_each_time() -> None:
    def scale(x: Any) -> None:
        x *= 2

    x = torch.arange(1.0, 9.0)
    program = in_worker(Program(scale, (x,), (x,), lambda: x.mul_(2), EXACT))
    assert [checked(program), checked(program)] == [None, None]


# Kernels that return what they compute


def returning(function: Callable[..., Any], reference: Callable[[Any], Any]) -> Any:
    x = torch.arange(1.0, 9.0)
    return in_worker(Program(function, (x,), (), lambda: reference(x), EXACT))


def test_what_a_reference_changes_is_restored_before_each_launch() -> None:
    x, y = torch.arange(1.0, 9.0), torch.zeros(8)
    program = in_worker(Program(twice_then, (x, y), (y,), lambda: x.mul_(2).clone(), EXACT))
    program.expect()
    assert program.restores is True
    harmless = in_worker(Program(twice_then, (x, y), (y,), lambda: torch.mul(x, 2, out=y), EXACT))
    harmless.expect()
    assert harmless.restores is False


def test_the_reference_multiplies_as_precisely_as_in_the_user_s_process() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        x = torch.zeros(8)
        packed = Program(twice_then, (x, x), (x,), lambda: x, EXACT).packed([HERE], {})
        torch.set_float32_matmul_precision("highest")
        unpack(packed)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_what_a_launch_returns_is_compared_where_nothing_is_an_output() -> None:
    def twice(x: Any, bias: int = 0) -> Any:
        return x * 2 + bias

    program = returning(twice, lambda x: x * 2)
    assert checked(program) is None
    assert "8 of 8 elements differ" in str(checked(program, bias=9))
    assert program.restores is False


def test_several_returned_tensors_are_named_by_their_place() -> None:
    def both(x: Any, bias: int = 0) -> Any:
        return x * 2, x + bias

    program = returning(both, lambda x: (x * 2, x))
    assert checked(program) is None
    assert str(checked(program, bias=9)).startswith("[1] 8 of 8 elements differ")


def test_a_launch_that_returns_too_little_is_wrong() -> None:
    def odd(_: Any, result: Any = None) -> Any:
        return result

    program = returning(odd, lambda x: x * 2)
    assert checked(program) == "is None, expected a tensor"
    assert checked(program, result=(1, 2)) == "is 2 values, expected 1"


def test_a_returned_result_is_wrong_in_the_memory_that_the_next_launch_may_get() -> None:
    results = []

    def twice(x: Any) -> Any:
        results.append(x * 2)
        return results[-1]

    program = returning(twice, lambda x: x * 2)
    program.function = twice  # with this test's list
    assert checked(program) is None
    assert results[0].isnan().all()


def test_a_reference_that_returns_nothing_is_an_error() -> None:
    with pytest.raises(KernelError, match="returned None"):
        returning(lambda x: x, lambda _: None).expect()


def test_a_reference_that_returns_no_tensor_is_an_error() -> None:
    with pytest.raises(KernelError, match="reference= returned a str that cannot be compared"):
        Program(twice_then, (torch.zeros(2),) * 2, (torch.zeros(2),), lambda: "two", EXACT).expect()


def test_without_a_reference_only_writes_outside_are_wrong() -> None:
    x, y = torch.arange(1.0, 9.0), torch.zeros(8)
    program = in_worker(Program(twice_and_beyond, (x, y), (y,), None, EXACT))
    assert checked(program) is None
    assert "outside argument 1" in str(checked(program, at=32))


def test_an_output_must_be_an_argument_whatever_the_kernel_s_class() -> None:
    with pytest.raises(UsageError, match=r"SomeKernel\(output=\.\.\.\) must be a tensor in args"):
        checked_outputs("SomeKernel", torch.zeros(3), [torch.zeros(3)], None)
