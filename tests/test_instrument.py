"""What a clock can measure: the step of made-up readings, and this machine's clocks."""

from __future__ import annotations

import json
import pickle
import random
import struct
from collections.abc import Sequence
from typing import Any

import pytest

from pytest_kerneltune.instrument import Instrument, granularity
from pytest_kerneltune.trial import Clock

MADE_UP = Instrument("cuda", "events", 0.032, 1.5, 2.0, 4.25, 104.0, 101.5, 1980.0, 1980.0)


def as_float32(value: float) -> float:
    """As CUDA's elapsed time arrives, which is in ms."""
    return float(1e3 * struct.unpack("f", struct.pack("f", value / 1e3))[0])


# The step of readings


@pytest.mark.parametrize("step_us", [0.001, 0.032, 0.0370370, 0.5, 1.024, 15_625.0])
@pytest.mark.parametrize("ticks", [range(40, 60), (22, 25, 27), (44, 44, 45, 44), (40, 42, 46, 9000, 9003)])
def test_the_step_is_found_from_multiples_of_it(step_us: float, ticks: Sequence[int]) -> None:
    assert granularity([tick * step_us for tick in ticks]) == pytest.approx(step_us, rel=1e-3)


@pytest.mark.parametrize("step_us", [0.032, 1.024])
def test_single_precision_does_not_hide_the_step(step_us: float) -> None:
    rng = random.Random(0)
    ticks = [rng.choice((50, 51, 52, 53, 3125, 3126, 3130, 6300, 6301)) for _ in range(100)]
    assert granularity([as_float32(tick * step_us) for tick in ticks]) == pytest.approx(step_us, rel=1e-2)


@pytest.mark.parametrize("readings", [[], [1.5], [1.5, 1.5, 1.5]])
def test_equal_readings_tell_no_step(readings: Sequence[float]) -> None:
    assert granularity(readings) == 0


# What is known of a clock


def test_an_instrument_survives_json_and_pickling() -> None:
    text = json.dumps(MADE_UP.to_json(), allow_nan=False)
    assert Instrument.from_json(json.loads(text)) == MADE_UP
    assert pickle.loads(pickle.dumps(MADE_UP)) == MADE_UP


@pytest.mark.parametrize("change", [{"clock": "sundial"}, {"resolution_us": "fine"}, {"warm_us": None}])
def test_what_is_no_instrument_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Instrument.from_json(MADE_UP.to_json() | change)


def test_a_missing_field_is_refused() -> None:
    data = MADE_UP.to_json()
    del data["empty_us"]
    with pytest.raises(KeyError):
        Instrument.from_json(data)


def test_what_follows_from_the_readings() -> None:
    assert MADE_UP.ramp == pytest.approx(104.0 / 101.5)
    assert MADE_UP.shortest_us(0.01) == pytest.approx(3.2)


@pytest.mark.parametrize("clock", ["wall", "thread"])
def test_this_machine_s_host_clocks_are_measured(clock: Clock) -> None:
    instrument = Instrument.for_clock(clock)
    assert instrument.clock == clock
    assert 0 < instrument.resolution_us < 1e5
    assert instrument.empty_us >= 0
    assert instrument.reading_cost_us > 0
    assert 0 < instrument.launch_overhead_us < instrument.warm_us
    assert instrument.sm_mhz == instrument.sm_max_mhz == 0


@pytest.mark.gpu
def test_a_gpu_is_measured_as_an_instrument() -> None:
    instrument = Instrument.for_clock("cuda")
    assert "cuda-events" in instrument.method
    assert 0 < instrument.resolution_us <= 2
    assert 0 < instrument.empty_us < 20
    assert 0 < instrument.launch_overhead_us < 1000
    assert 0.5 < instrument.ramp < 20
    assert 100 < instrument.sm_mhz < 5000
