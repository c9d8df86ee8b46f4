"""What goes on at once: compilers are real processes, the device is a launcher that answers at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_kerneltune import integer
from pytest_kerneltune.backends import CompileTask, Description, Kernel
from pytest_kerneltune.benchmark import Benchmark, Limits, Site
from pytest_kerneltune.compilation import Compilation
from pytest_kerneltune.errors import KernelError, RemoteError, WorkerTimeout
from pytest_kerneltune.launcher import Launcher, Workers
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Clock, Config, Status, Trial
from pytest_kerneltune.worker import Reply, Service, Worker

SPACE = ConfigSpace({"n": integer(0, 99)})
COMPILER = """
import time
from pytest_kerneltune.backends import Build

class Compiler:
    def compile(self, seconds, build):
        time.sleep(seconds)
        return Build(**build)
"""


class Known(Kernel):
    """A kernel on a GPU, config ``n`` of which compiles in ``seconds[n]`` s (0 by default) to ``builds[n]``."""

    kind = "known"
    isolated = True

    def __init__(
        self, seconds: Mapping[int, float] = {}, builds: Mapping[int, Any] = {}, broken: Sequence[int] = ()
    ) -> None:
        self.seconds, self.builds, self.broken = seconds, builds, broken

    @property
    def clock(self) -> Clock:
        return "cuda"

    def describe(self) -> Description:
        return Description(self.kind)

    def compile_task(self, config: Config) -> CompileTask:
        n = config["n"]
        if n in self.broken:
            raise KernelError("there is no code for that")
        build = {"artifact": n, **self.builds.get(n, {})}
        return CompileTask("known_compiler:Compiler", (), "compile", (self.seconds.get(n, 0.0), build))

    def program(self) -> Any:
        raise NotImplementedError

    def packed(self, by_value: Sequence[Any]) -> bytes:
        raise NotImplementedError

    def launch_env(self) -> Mapping[str, str]:
        return {}

    def __call__(self, config: Config, artifact: Any) -> Any:
        raise NotImplementedError


class Device(Launcher):
    """Reads ``n`` ms for the artifact ``n`` after some 10 ms; ``asked`` lists the artifacts as they were timed."""

    def __init__(self, broken: bool = False) -> None:
        self.asked: list[int] = []
        self.reply: Reply | None = None
        self.ready_at = 0.0
        self.broken = broken

    @property
    def busy(self) -> bool:
        return self.reply is not None

    @property
    def connection(self) -> None:
        return None

    @property
    def seconds_left(self) -> float:
        return 0.0

    def submit(self, method: str, *args: Any, timeout: float) -> None:
        self.ready_at = time.monotonic() + 0.01
        if method == "check_and_time":
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

    def make(kernel: Kernel, *devices: Device, compile_s: float = 60.0) -> Benchmark:
        made.append(Devices(*devices))
        sites = [Site({"place": str(place)}) for place in range(len(devices))]
        return Benchmark(kernel, SPACE, made[-1], Limits(compile_s=compile_s), sites)

    yield make
    for workers in made:
        workers.close()
    sys.modules.pop("known_compiler", None)


def ns(*values: int) -> list[Config]:
    return [{"n": n} for n in values]


def found(trials: Sequence[Trial]) -> list[int]:
    return [t.config["n"] for t in trials]


def test_what_compiles_for_long_comes_with_a_later_call(bench: Bench) -> None:
    device = Device()
    made = bench(Known(seconds={7: 3.0}), device)
    made.check({"n": 1})  # both compilers are up
    start = time.monotonic()
    first = made.measure(ns(7, 1, 2, 3), enough=3)
    assert found(first) == [1, 2, 3]
    assert found(made.measure(ns(4, 5), enough=1))[:1] == [4]
    assert time.monotonic() - start < 3.0
    rest = made.measure([])
    assert set(found(rest)) == {5, 7} or found(rest) == [7]
    assert device.asked[-1] == 7
    assert made.measure([]) == []


def test_without_enough_everything_is_answered_in_order_what_was_late_behind(bench: Bench) -> None:
    made = bench(Known(seconds={7: 1.0}), Device())
    made.check({"n": 1})
    assert found(made.measure(ns(7, 1), enough=1)) == [1]
    assert found(made.measure(ns(3, 2))) == [3, 2, 7]


def test_a_config_is_timed_while_others_compile(bench: Bench) -> None:
    made = bench(Known(seconds={7: 2.0}), Device())
    made.check({"n": 1})
    known: list[float] = []
    made.measure(ns(7, 1, 2), done=lambda _: known.append(time.monotonic()))
    assert known[-1] - known[0] > 1.0


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
            return super().poll() if time.monotonic() > start + 3.0 else None

    device = Late()
    made = bench(Known(builds={1: {"usage": {"stack_bytes": 64}}, 2: {"usage": {"stack_bytes": 0}}}), device)
    start = time.monotonic()
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


def test_a_compile_that_hangs_costs_its_own_slot(bench: Bench) -> None:
    made = bench(Known(seconds={7: 600.0}), Device(), compile_s=1.5)
    trials = made.measure(ns(7, *range(8, 20)))
    assert trials[0].status is Status.COMPILE_TIMEOUT
    assert all(t.ok for t in trials[1:])


def test_a_deadline_drops_what_still_compiles(bench: Bench) -> None:
    made = bench(Known(seconds={7: 600.0}), Device())
    made.check({"n": 1})
    assert found(made.measure(ns(7, 1), deadline=time.monotonic() + 1.0)) == [1]
    assert made.measure([]) == []


def test_configs_are_spread_over_devices_and_comparisons_stay_on_one(bench: Bench) -> None:
    first, second = Device(), Device()
    made = bench(Known(), first, second)
    assert made.check({"n": 1}).ok
    trials = made.measure(ns(*range(20)))
    assert sorted(first.asked + second.asked) == found(trials) == list(range(20))
    assert first.asked
    assert second.asked


def test_a_second_device_that_cannot_be_used_is_left_out(bench: Bench) -> None:
    first = Device()
    made = bench(Known(), first, Device(broken=True))
    assert len(made.measure(ns(*range(10)))) == 10
    assert len(first.asked) == 10


def test_a_first_device_that_cannot_be_used_is_an_error(bench: Bench) -> None:
    with pytest.raises(KernelError, match="the device is broken"):
        bench(Known(), Device(broken=True)).measure(ns(1))


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
