"""What goes on at once: compilers are real processes, the device is a launcher that answers at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from pytest_kerneltune import integer
from pytest_kerneltune.backends import CompileTask, Description, Kernel
from pytest_kerneltune.benchmark import Benchmark, Limits, Site
from pytest_kerneltune.compilation import Compilation
from pytest_kerneltune.errors import KernelError, RemoteError, UsageError, WorkerTimeout
from pytest_kerneltune.launcher import Launcher, Workers
from pytest_kerneltune.locking import try_lock
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Clock, Config, Status, Trial
from pytest_kerneltune.turns import DeviceTurn
from pytest_kerneltune.worker import Reply, Service, Worker

SPACE = ConfigSpace({"n": integer(0, 99)})
COMPILER = """
import time
from contextlib import nullcontext
from pathlib import Path
from pytest_kerneltune.backends import Build
from pytest_kerneltune.backends.claims import claimed

class Compiler:
    def compile(self, seconds, build, key):
        with claimed(key) if key else nullcontext():
            while isinstance(seconds, Path) and not seconds.exists():
                time.sleep(0.01)
            time.sleep(0 if isinstance(seconds, Path) else seconds)
        return Build(**build)
"""


class Known(Kernel):
    """A kernel on a GPU, config ``n`` of which compiles to ``builds[n]`` in ``seconds[n]`` s (0 by default), or until
    there is the file ``seconds[n]``.

    Configs of equal ``keys[n]`` have the same code.
    """

    kind = "known"
    isolated = True

    def __init__(
        self,
        seconds: Mapping[int, float | Path] = {},
        builds: Mapping[int, Any] = {},
        broken: Sequence[int] = (),
        misused: Sequence[int] = (),
        clock: Clock = "cuda",
        keys: Mapping[int, str] = {},
    ) -> None:
        self.keys = keys
        self.seconds, self.builds, self.broken, self.misused = seconds, builds, broken, misused
        self.chosen_clock = clock

    @property
    def clock(self) -> Clock:
        return self.chosen_clock

    def describe(self) -> Description:
        return Description(self.kind)

    def compile_task(self, config: Config) -> CompileTask:
        n = config["n"]
        if n in self.broken:
            raise KernelError("there is no code for that")
        if n in self.misused:
            raise UsageError("that cannot be written in this language")
        build = {"artifact": n, **self.builds.get(n, {})}
        arguments = (self.seconds.get(n, 0.0), build, self.keys.get(n, ""))
        return CompileTask("known_compiler:Compiler", (), "compile", arguments)

    def program(self) -> Any:
        raise NotImplementedError

    def packed(self, by_value: Sequence[Any]) -> bytes:
        raise NotImplementedError

    def launch_env(self) -> Mapping[str, str]:
        return {}

    def __call__(self, config: Config, artifact: Any) -> Any:
        raise NotImplementedError


class Device(Launcher):
    """Reads ``n`` ms for the artifact ``n`` after some 10 ms; ``asked`` lists the artifacts as they were timed.

    From its ``lost_after``-th config on the reference cannot be run again, ``times`` times.
    """

    def __init__(self, broken: bool = False, lost_after: int = 999, times: int = 999, compare_s: float = 0.01) -> None:
        self.asked: list[int] = []
        self.reply: Reply | None = None
        self.ready_at, self.was_used = 0.0, False
        self.broken, self.lost_after, self.times, self.compare_s = broken, lost_after, times, compare_s
        self.compared: list[tuple[float, float]] = []
        self.silent, self._never_closed = Pipe()

    @property
    def busy(self) -> bool:
        return self.reply is not None

    @property
    def connection(self) -> Connection:
        return self.silent

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.ready_at - time.monotonic())

    def submit(self, method: str, *args: Any, timeout: float) -> None:
        start, self.was_used = time.monotonic(), True
        self.ready_at = start + (self.compare_s if method == "compare" else 0.01)
        if method == "compare":
            self.compared.append((start, self.ready_at))
            self.reply = Reply({name: [1.0] * args[2] for name in args[0]})
        elif method == "check_and_time" and len(self.asked) >= self.lost_after and self.times:
            self.times -= 1
            self.reply = Reply(error=RemoteError("RuntimeError", "the device fell off the bus", ""), is_begun=False)
        elif method == "check_and_time":
            self.asked.append(args[1])
            self.reply = Reply((None, [float(args[1])] * 3), seconds=0.01)
        elif self.broken:
            self.reply = Reply(error=RemoteError("RuntimeError", "the device is broken", ""))
        else:
            self.reply = Reply({"expect": "a clock", "reference_ms": 0.0}.get(method))

    def poll(self) -> Reply | None:
        if time.monotonic() < self.ready_at:
            return None
        reply, self.reply = self.reply, None
        return reply

    def restart(self) -> None:
        self.reply = None


class Devices(Workers):
    """Real compile workers, and a device a site."""

    def __init__(self, *devices: Device, jobs: int = 2) -> None:
        super().__init__(jobs=jobs)
        self.devices = list(devices)

    def launcher(self, kernel: Kernel, modules: Any, env: Mapping[str, str] = {}) -> Launcher:
        return self.devices[int(env.get("place", 0))]


Bench = Callable[..., Benchmark]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    (tmp_path / "known_compiler.py").write_text(COMPILER)
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[Workers] = []

    def make(kernel: Kernel, *devices: Device, compile_s: float = 60.0, sites: Sequence[Site] = ()) -> Benchmark:
        made.append(Devices(*devices))
        sites = sites or [Site({"place": str(place)}) for place in range(len(devices))]
        return Benchmark(kernel, SPACE, made[-1], Limits(compile_s=compile_s), sites)

    yield make
    for workers in made:
        workers.close()
    sys.modules.pop("known_compiler", None)


def ns(*values: int) -> list[Config]:
    return [{"n": n} for n in values]


def found(trials: Sequence[Trial]) -> list[int]:
    return [t.config["n"] for t in trials]


def test_what_compiles_for_long_comes_with_a_later_call(bench: Bench, tmp_path: Path) -> None:
    device = Device()
    made = bench(Known(seconds={7: tmp_path / "go"}), device)
    first = made.measure(ns(7, 1, 2, 3), enough=3)
    assert found(first) == [1, 2, 3]
    assert found(made.measure(ns(4, 5), enough=1))[:1] == [4]
    (tmp_path / "go").touch()
    rest = made.measure([])
    assert set(found(rest)) == {5, 7} or found(rest) == [7]
    assert device.asked[-1] == 7
    assert made.measure([]) == []


def test_without_enough_everything_is_answered_in_order_what_was_late_behind(bench: Bench, tmp_path: Path) -> None:
    made = bench(Known(seconds={7: tmp_path / "go"}), Device())
    assert found(made.measure(ns(7, 1), enough=1)) == [1]
    (tmp_path / "go").touch()
    assert found(made.measure(ns(3, 2))) == [3, 2, 7]


def test_a_config_is_timed_while_others_compile(bench: Bench, tmp_path: Path) -> None:
    made = bench(Known(seconds={7: tmp_path / "go"}), Device())
    known: list[int] = []

    def done(trial: Trial) -> None:
        known.append(trial.config["n"])
        if len(known) == 2:
            (tmp_path / "go").touch()

    assert all(trial.ok for trial in made.measure(ns(7, 1, 2), done=done))
    assert known == [1, 2, 7]


def test_identical_code_is_timed_once(bench: Bench) -> None:
    device = Device()
    builds = {1: {"code": "same"}, 2: {"code": "same"}, 3: {"code": "other"}}
    made = bench(Known(builds=builds), device)
    trials = made.measure(ns(1, 2, 3, 4))
    assert len(device.asked) == 3
    latencies = {t.config["n"]: t.latency_ms for t in trials}
    assert latencies[1] == latencies[2]
    assert (latencies[3], latencies[4]) == (3.0, 4.0)
    assert sum("the same compiled code as" in t.log for t in trials) == 1
    (again,) = made.measure(ns(2))
    assert again.latency_ms == latencies[1]
    assert len(device.asked) == 3


def test_what_spills_waits_behind_what_does_not(bench: Bench) -> None:
    """While the device is not there yet, all of them are compiled."""

    class Late(Device):
        def poll(self) -> Reply | None:
            return super().poll() if len(made.account.compiling) == 3 else None

    device = Late()
    made = bench(Known(builds={1: {"usage": {"stack_bytes": 64}}, 2: {"usage": {"stack_bytes": 0}}}), device)
    trials = made.measure(ns(1, 2, 3))
    assert device.asked[-1] == 1
    assert trials[0].usage == {"stack_bytes": 64}


def test_what_the_device_would_refuse_is_never_launched(bench: Bench) -> None:
    device = Device()
    build = {
        "artifact": None,
        "demand": 1.2,
        "refused": "needs 278528 bytes of shared memory, of which there are 232448",
    }
    made = bench(Known(builds={1: build, 2: {"demand": 0.5}}), device)
    refused, right = made.measure(ns(1, 2))
    assert (refused.status, refused.reason, refused.demand) == (Status.OUT_OF_RESOURCES, build["refused"], 1.2)
    assert (right.status, right.demand) == (Status.OK, 0.5)
    assert device.asked == [2]


def test_a_config_without_code_fails_alone(bench: Bench) -> None:
    made = bench(Known(broken=[1]), Device())
    none, right = made.measure(ns(1, 2))
    assert (none.status, none.reason) == (Status.COMPILE_ERROR, "there is no code for that")
    assert right.ok


def test_a_compile_that_hangs_costs_its_own_slot(bench: Bench, advance: Callable[[float], None]) -> None:
    made = bench(Known(seconds={7: 600.0}), Device())
    known: list[Trial] = []

    def done(trial: Trial) -> None:
        known.append(trial)
        if len(known) == 12:
            advance(60.0)

    trials = made.measure(ns(7, *range(8, 20)), done=done)
    assert trials[0].status is Status.COMPILE_TIMEOUT
    assert all(t.ok for t in trials[1:])


def test_what_one_worker_compiles_does_not_occupy_another(bench: Bench, tmp_path: Path) -> None:
    """Config 2 has the code of 1: its turn goes to 3 meanwhile."""
    made = bench(Known(seconds={1: tmp_path / "go", 2: tmp_path / "go"}, keys={1: "ab", 2: "ab"}), Device())
    order: list[int] = []

    def done(trial: Trial) -> None:
        order.append(trial.config["n"])
        (tmp_path / "go").touch()

    made.measure(ns(1, 2, 3), done=done)
    assert order in ([3, 1, 2], [3, 2, 1])  # by which of them was begun with


def test_code_that_a_worker_was_killed_over_is_given_up_at_once(bench: Bench, advance: Callable[[float], None]) -> None:
    hanging = range(1, 8)
    made = bench(Known(seconds=dict.fromkeys(hanging, 600.0), keys=dict.fromkeys(hanging, "ab")), Device())
    trials = made.measure(ns(*hanging, 8), done=lambda trial: advance(60.0 * trial.ok))
    assert {t.status for t in trials[:-1]} == {Status.COMPILE_TIMEOUT}
    assert trials[-1].ok
    assert sum("killed while it compiled the same code" in t.reason for t in trials) == 6


def test_a_deadline_drops_what_still_compiles(bench: Bench, advance: Callable[[float], None]) -> None:
    made = bench(Known(seconds={7: 600.0}), Device())
    deadline = time.monotonic() + 50.0
    assert found(made.measure(ns(7, 1), deadline=deadline, done=lambda _: advance(50.0))) == [1]
    assert made.measure([]) == []


def test_configs_are_spread_over_devices_and_comparisons_stay_on_one(bench: Bench) -> None:
    first, second = Device(), Device()
    made = bench(Known(), first, second)
    assert made.check({"n": 1}).ok
    trials = made.measure(ns(*range(20)))
    assert sorted(first.asked + second.asked) == found(trials) == list(range(20))
    assert first.asked
    assert second.asked


def test_what_is_under_way_is_timed_elsewhere_while_one_device_compares(bench: Bench) -> None:
    class Comparing(Device):
        """Compares until the other device has timed something, or for a minute."""

        def poll(self) -> Reply | None:
            goes_on = self.compared and len(second.asked) == known and time.monotonic() < self.ready_at + 60.0
            return None if goes_on else super().poll()

    first, second, known = Comparing(), Device(), 0
    made = bench(Known(seconds=dict.fromkeys(range(10, 14), 0.4)), first, second)
    made.measure(ns(*range(8)))
    early = made.measure(ns(*range(10, 14), 9), enough=1)
    known = len(second.asked)
    made.compare({"a": {"n": 1}}, False, 1)
    assert len(second.asked) > known
    assert len(early) + len(made.measure([])) == 5


def test_other_devices_get_ready_before_there_is_anything_to_time(bench: Bench) -> None:
    first, second = Device(), Device()
    made = bench(Known(), first, second)
    made.start()
    assert not second.was_used
    made.spread()
    assert second.was_used


def test_a_second_device_that_cannot_be_used_is_left_out(bench: Bench) -> None:
    first = Device()
    made = bench(Known(), first, Device(broken=True))
    assert len(made.measure(ns(*range(10)))) == 10
    assert len(first.asked) == 10


def test_a_first_device_that_cannot_be_used_is_an_error(bench: Bench) -> None:
    with pytest.raises(KernelError, match="the device is broken"):
        bench(Known(), Device(broken=True)).measure(ns(1))


def test_a_second_device_that_is_lost_on_the_way_costs_no_config(bench: Bench) -> None:
    first, second = Device(), Device(lost_after=2)
    trials = bench(Known(), first, second).measure(ns(*range(12)))
    assert found(trials) == list(range(12))
    assert all(t.ok for t in trials)
    assert len(second.asked) == 2


def test_the_only_device_is_tried_some_times_before_it_is_given_up(bench: Bench) -> None:
    assert all(t.ok for t in bench(Known(), Device(lost_after=2, times=2)).measure(ns(1, 2, 3, 4)))
    with pytest.raises(KernelError, match="fell off the bus"):
        bench(Known(), Device(lost_after=2)).measure(ns(1, 2, 3, 4))


def test_twins_of_what_is_dropped_are_dropped_and_can_be_asked_for_again(bench: Bench) -> None:
    class Absent(Device):
        def poll(self) -> Reply | None:
            return super().poll() if time.monotonic() > there_at else None

    builds = {1: {"code": "same"}, 2: {"code": "same"}}
    made = bench(Known(builds=builds), Absent())
    there_at = time.monotonic() + 600.0
    assert made.measure(ns(1, 2), deadline=time.monotonic() + 2.0) == []
    there_at = 0.0
    assert [t.latency_ms for t in made.measure(ns(2, 1))] == [2.0, 2.0]


def test_what_is_timed_when_a_fresh_process_is_wanted_is_timed_again(bench: Bench) -> None:
    made = bench(Known(builds={2: {"code": "same"}, 3: {"code": "same"}}), Device())
    known = found(made.measure(ns(1, 2, 3, 4), enough=1))
    made.restart()
    assert sorted(known + found(made.measure([]))) == [1, 2, 3, 4]


def test_an_error_of_the_user_leaves_nothing_under_way(bench: Bench) -> None:
    made = bench(Known(misused=[5]), Device())
    with pytest.raises(UsageError):
        made.measure(ns(1, 2, 5))
    assert made.measure([]) == []


def test_a_closed_bench_leaves_the_compilers_to_others_and_can_go_on(bench: Bench) -> None:
    made = bench(Known(seconds={7: 600.0}), Device())
    made.check({"n": 1})
    made.measure(ns(7, 1), enough=1)
    made.close()
    assert found(made.measure(ns(1, 2))) == [1, 2]


def test_who_was_cut_short_in_a_search_gets_its_time_when_it_is_checked(bench: Bench, tmp_path: Path) -> None:
    made = bench(Known(seconds={5: tmp_path / "go"}), Device())
    assert made.measure(ns(5), compile_s=0.3)[0].status is Status.COMPILE_TIMEOUT
    assert made.measure(ns(5))[0].status is Status.COMPILE_TIMEOUT
    (tmp_path / "go").touch()
    assert made.check({"n": 5}).ok
    assert made.measure(ns(5))[0].ok


def test_what_had_all_its_time_is_not_compiled_again(bench: Bench) -> None:
    made = bench(Known(seconds={5: 600.0}), Device(), compile_s=1.0)
    assert made.check({"n": 5}).status is Status.COMPILE_TIMEOUT
    assert made.check({"n": 5}).status is Status.COMPILE_TIMEOUT
    assert len(made.account.compiling) == 1


def test_on_host_clocks_nothing_compiles_while_configs_are_compared(bench: Bench) -> None:
    device = Device(compare_s=0.3)
    made = bench(Known(dict.fromkeys(range(20), 0.1), clock="thread"), device)
    made.measure(ns(*range(12)), enough=8)
    made.compare({"a": {"n": 0}, "b": {"n": 1}}, False, 2)
    rest = made.measure([])
    assert len(rest) == 4
    ((began, ended),) = device.compared
    assert not any(start < ended and end > began for start, end in made.account.compiling)


def test_waiting_costs_no_cpu_time(bench: Bench) -> None:
    """A failure is known and a config waits for the device while it compares and a compile hangs."""
    device = Device(compare_s=1.5)
    refused = {"artifact": None, "refused": "too large"}
    made = bench(Known(seconds={7: 600.0, 2: 0.1, 3: 0.1}, builds={2: refused}), device)
    made.check({"n": 1})
    made.measure(ns(7, 1, 2, 3), enough=1)
    start = time.process_time()
    made.compare({"a": {"n": 1}}, False, 2)
    assert time.process_time() - start < 0.3
    assert sorted(found(made.measure([], enough=2))) == [2, 3]


def test_who_has_to_wait_for_a_device_leaves_the_line_when_nobody_asks_any_more(bench: Bench, tmp_path: Path) -> None:
    kept = try_lock("gpu", tmp_path)
    made = bench(Known(), Device(), sites=[Site({}, DeviceTurn("gpu", tmp_path))])
    assert made.measure(ns(1), deadline=time.monotonic() + 1.0) == []
    place = try_lock("gpu next", tmp_path)
    assert place is not None
    place()
    assert kept is not None
    kept()
    assert made.measure(ns(1))[0].ok


# The limit of a compile


class Instant(Worker):
    """Replies at once, as if the compile had taken so many seconds; more than the limit is a timeout."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.limits: list[float] = []

    def submit(self, service: Service, method: str, *args: Any, timeout: float) -> None:
        self.seconds = args[0]
        self.limits.append(timeout)

    def poll(self) -> Reply | None:
        limit = self.limits[-1]
        if self.seconds > limit:
            return Reply(error=WorkerTimeout("killed"), seconds=limit)
        return Reply(1, seconds=self.seconds)


class OneCompiler(Workers):
    def __init__(self) -> None:
        super().__init__(jobs=1)
        self.worker = Instant()

    def compilers(self) -> list[Worker]:
        return [self.worker]


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [
        ([], 60.0),
        ([1.0] * 9, 60.0),  # too few to tell
        ([0.5] * 20, 6.0),
        ([5.0] * 20, 30.0),
        ([30.0] * 20, 60.0),
        ([100.0] * 3, 10.0),  # hopeless
        ([100.0] * 3 + [1.0], 60.0),
        ([2.0] * 10 + [100.0] * 10, 12.0),  # however many hang
    ],
)
def test_the_limit_follows_what_this_kernels_compiles_take(seconds: list[float], limit: float) -> None:
    kernel = Known(seconds=dict(enumerate(seconds)))
    compilation = Compilation(kernel, SPACE, OneCompiler(), 60.0)
    for n in range(len(seconds)):
        compilation.add({"n": n})
        compilation.feed(1)
        assert len(compilation.collect()) == 1
    assert compilation.limit_s == pytest.approx(limit)
