"""The contract of kernel kinds: what a ``backends.Kernel`` must do wherever it is compiled, packed and launched.

A kind of your own passes the contract that ours pass when a class like this is collected by pytest::

    from pytest_kerneltune.testing import BackendContract

    class TestMyKernel(BackendContract):
        @pytest.fixture
        def kernel(self):
            return MyKernel(...)                  # small, and with a reference

        @pytest.fixture
        def space(self):
            return ConfigSpace({"TILE": integer(1, 4)})

        @pytest.fixture
        def wrong_config(self):                   # where there is one
            return {"TILE": 3}
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Iterator
from importlib import import_module

import pytest

from pytest_kerneltune.backends import Description, Kernel, as_kernel
from pytest_kerneltune.benchmark import Benchmark, Limits
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Status
from pytest_kerneltune.worker import Service, Worker

_LIMIT_S = 120.0


class BackendContract:
    """Tests of one kind of kernel. Override ``kernel`` and ``space``; ``right_config`` is the space's default unless
    overridden too, and what is asked of wrong and failing configs is skipped where there is none."""

    @pytest.fixture
    def kernel(self) -> Kernel:
        pytest.fail("override the fixture kernel")

    @pytest.fixture
    def space(self) -> ConfigSpace:
        pytest.fail("override the fixture space")

    @pytest.fixture
    def right_config(self, space: ConfigSpace) -> Config:
        return space.default

    @pytest.fixture
    def wrong_config(self) -> Config | None:
        """A config that runs, and whose output is wrong."""
        return None

    @pytest.fixture
    def failing_config(self) -> Config | None:
        """A config that can't be compiled, raises, crashes or hangs."""
        return None

    @pytest.fixture
    def workers(self) -> Iterator[Workers]:
        made = Workers(jobs=1)
        yield made
        made.close()

    @pytest.fixture
    def bench(self, kernel: Kernel, space: ConfigSpace, workers: Workers) -> Benchmark:
        made = Benchmark(kernel, space, workers, Limits(compile_s=_LIMIT_S, run_s=10.0))
        made.start()
        return made

    def test_is_a_kernel_of_known_clock(self, kernel: Kernel) -> None:
        assert as_kernel(kernel) is kernel
        assert kernel.clock in ("wall", "thread", "cuda")
        assert isinstance(kernel.isolated, bool)
        assert kernel.kind

    def test_describes_itself_the_same_each_time_and_in_one_line_each(self, kernel: Kernel) -> None:
        first, second = kernel.describe(), kernel.describe()
        assert isinstance(first, Description)
        assert first == second
        assert first.kind == kernel.kind
        assert first.functions or first.source
        assert not [text for text in (*first.inputs, *first.facts) if "\n" in text or " at 0x" in text]

    def test_compiles_in_another_process(self, kernel: Kernel, right_config: Config) -> None:
        task = kernel.compile_task(right_config)
        if task is None:
            pytest.skip("nothing is compiled")
        assert pickle.loads(pickle.dumps(task)) == task
        assert task == kernel.compile_task(dict(right_config))
        module, name = task.target.split(":")
        assert hasattr(getattr(import_module(module), name), task.method)
        worker = Worker()
        try:
            reply = worker.call(Service(task.target, task.target_args), task.method, *task.args, timeout=_LIMIT_S)
        finally:
            worker.close()
        assert pickle.loads(pickle.dumps(reply.unwrap())) is not None

    def test_all_configs_are_compiled_by_one_service(self, kernel: Kernel, space: ConfigSpace) -> None:
        """One object in the compile worker, built once, not one a config."""
        tasks = [kernel.compile_task(config) for config in (space.default, *space.neighbours(space.default))]
        targets = [(task.target, task.target_args) for task in tasks if task is not None]
        assert all(target == targets[0] for target in targets)

    def test_names_the_environment_of_its_worker_in_text(self, kernel: Kernel) -> None:
        assert all(isinstance(text, str) for pair in kernel.launch_env().items() for text in pair)

    def test_is_packed_for_a_fresh_process_if_isolated(self, kernel: Kernel, workers: Workers) -> None:
        assert isinstance(kernel.packed(()), bytes)
        if not kernel.isolated:
            return
        assert workers.launcher(kernel, ()).call("expect", timeout=_LIMIT_S).unwrap()

    def test_a_right_config_is_checked_and_timed(self, bench: Benchmark, right_config: Config) -> None:
        assert bench.check(right_config).status is Status.OK
        (trial,) = bench.measure([right_config])
        assert trial.status is Status.OK
        assert 0 < trial.latency_ms < math.inf
        assert len(trial.samples_ms) > 1

    def test_a_wrong_config_is_noticed_and_spoils_nothing(
        self, bench: Benchmark, right_config: Config, wrong_config: Config | None
    ) -> None:
        if wrong_config is None:
            pytest.skip("no config is wrong")
        for config, status in ((right_config, Status.OK), (wrong_config, Status.WRONG)) * 2:
            trial = bench.check(config)
            assert trial.status is status
            assert bool(trial.reason) == (status is Status.WRONG)

    def test_a_failing_config_is_survived(
        self, bench: Benchmark, right_config: Config, failing_config: Config | None
    ) -> None:
        if failing_config is None:
            pytest.skip("no config fails")
        trials = bench.measure([failing_config, right_config])
        assert [t.ok for t in trials] == [False, True]
        assert trials[0].reason

    def test_stays_right_after_many_launches(self, bench: Benchmark, right_config: Config) -> None:
        """Whether its inputs are brought back: what is timed changes nothing that is checked later."""
        for _ in range(2):
            assert bench.measure([right_config])[0].status is Status.OK
        values = bench.compare({"a": right_config, "b": right_config}, True, 2)
        assert {len(v) for v in values.values()} == {2}
        assert min(map(min, values.values())) > 0
        assert bench.check(right_config).status is Status.OK

    def test_survives_a_restart(self, bench: Benchmark, right_config: Config) -> None:
        assert bench.check(right_config).ok
        bench.restart()
        assert bench.check(right_config).ok
        assert set(bench.compare({"a": right_config}, False, 1)) == {"a"}

    def test_is_called_by_the_user(self, kernel: Kernel, bench: Benchmark, right_config: Config) -> None:
        artifact = bench.artifact(right_config)
        first, second = kernel(right_config, artifact), kernel(right_config, artifact)
        assert type(first) is type(second)

    def test_measuring_leaves_no_worker_busy(self, bench: Benchmark, workers: Workers, space: ConfigSpace) -> None:
        configs = [space.default, *space.neighbours(space.default)][:3]
        bench.measure(configs, deadline=time.monotonic() + 0.01)
        assert not any(worker.busy for worker in workers.compilers())
        assert bench.check(configs[0]).status is not None
