"""Compiled configs that wait for a device; those of equal code are one as far as timing goes."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import replace

from pytest_kerneltune.compilation import Compiled
from pytest_kerneltune.trial import Trial


class Ready:
    """A queue: what spills registers comes behind what does not, else first come, first served.

    Of configs whose compiled code is equal the first one is queued. The others, its twins, get the trial it had.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[bool, int, Compiled]] = []
        self._order, self._front = itertools.count(), itertools.count(-1, -1)
        self._twins: dict[str, list[Compiled]] = {}
        self._by_code: dict[str, Trial] = {}

    def __bool__(self) -> bool:
        return bool(self._heap)

    def add(self, compiled: Compiled) -> Trial | None:
        """Queue ``compiled``; or its trial, where another config of the same code has had one."""
        code = compiled.build.code
        if code in self._by_code:
            return _shared(self._by_code[code], compiled)
        if code in self._twins:
            self._twins[code].append(compiled)
            return None
        if code:
            self._twins[code] = []
        heapq.heappush(self._heap, (_spills(compiled), next(self._order), compiled))
        return None

    @property
    def first(self) -> Compiled:
        return self._heap[0][-1]

    def pop(self) -> Compiled:
        """Take the first; ``end`` or ``put_back`` is to follow."""
        return heapq.heappop(self._heap)[-1]

    def put_back(self, compiled: Compiled) -> None:
        """What was taken could not be timed for no fault of its own: it is the next one."""
        heapq.heappush(self._heap, (_spills(compiled), next(self._front), compiled))

    def end(self, compiled: Compiled, trial: Trial) -> list[Trial]:
        """``trial`` of what was taken, and those of its twins."""
        code = compiled.build.code
        if not code:
            return [trial]
        self._by_code[code] = trial
        return [trial, *(_shared(trial, twin) for twin in self._twins.pop(code, ()))]

    def clear(self) -> None:
        """Forget what is queued, twins included; not what was taken."""
        for *_, compiled in self._heap:
            self._twins.pop(compiled.build.code, None)
        self._heap.clear()

    def forget(self, compiled: Compiled) -> None:
        """What was taken will have no trial; nor will its twins."""
        self._twins.pop(compiled.build.code, None)


def _spills(compiled: Compiled) -> bool:
    return compiled.build.usage.get("stack_bytes", 0) > 0


def _shared(trial: Trial, compiled: Compiled) -> Trial:
    """The trial of a config whose code is that of ``trial``'s config."""
    log = f"the same compiled code as {dict(trial.config)}"
    return replace(trial, config=compiled.config, compile_s=compiled.seconds, measure_s=0.0, log=log)
