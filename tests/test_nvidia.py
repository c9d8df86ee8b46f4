"""What nvidia-smi says of a GPU's state and of who uses it; it is a shell script here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pytest_kerneltune import nvidia
from pytest_kerneltune.gpu import cuda_available, cuda_device

UUID = "GPU-5d2c9b1e-8f64-1d0b-6c43-90a3c5d1f7aa"
VALUES = {
    "name": "NVIDIA H200",
    "uuid": UUID,
    "driver_version": "580.159.03",
    "clocks.sm": "1980",
    "clocks.max.sm": "1980",
    "power.limit": "700.00",
    "ecc.mode.current": "Enabled",
    "compute_mode": "Default",
    "mig.mode.current": "[N/A]",
    "clocks_event_reasons.active": "0x0000000000000001",
}
Smi = Callable[[Mapping[str, str], str], None]

_SCRIPT = """\
#!/usr/bin/env python3
import sys
values, guests = {values!r}, {guests!r}
query, _, names = sys.argv[1].partition("=")
with open({asked!r}, "a") as file:
    print(names, file=file)
if query == "--query-compute-apps":
    sys.exit(print(guests, end=""))
wrong = [name for name in names.split(",") if name not in values]
if wrong:
    print(f'Field "{{wrong[0]}}" is not a valid field to query.')
    sys.exit(2)
print(", ".join(values[name] for name in names.split(",")))
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """Installs an nvidia-smi that knows the given properties only, and lists the given processes."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def install(values: Mapping[str, str], guests: str = "") -> None:
        script = tmp_path / "nvidia-smi"
        script.write_text(_SCRIPT.format(values=dict(values), guests=guests, asked=str(tmp_path / "asked")))
        script.chmod(0o755)

    return install


def complete() -> dict[str, str]:
    return {name: VALUES.get(name, "[N/A]") for group in nvidia.STATE for name in group}


def known() -> dict[str, str]:
    return {name: value for name, value in VALUES.items() if value != "[N/A]"}


def test_a_driver_that_knows_every_property_is_asked_once(smi: Smi, tmp_path: Path) -> None:
    smi(complete(), "")
    assert nvidia.query_state(UUID) == known()
    assert len((tmp_path / "asked").read_text().splitlines()) == 1


@pytest.mark.parametrize("missing", [("power.default_limit",), ("mig.mode.current", "ecc.mode.current")])
def test_an_unknown_property_costs_only_its_group(smi: Smi, missing: tuple[str, ...]) -> None:
    smi({name: value for name, value in complete().items() if name not in missing}, "")
    lost = {name for group in nvidia.STATE for name in group if not set(group).isdisjoint(missing)}
    assert nvidia.query_state(UUID) == {name: value for name, value in known().items() if name not in lost}


def test_an_old_driver_s_reasons_have_the_present_name(smi: Smi) -> None:
    values = complete()
    values["clocks_throttle_reasons.active"] = values.pop("clocks_event_reasons.active")
    smi(values, "")
    assert nvidia.query_state(UUID) == known()


def test_an_nvidia_smi_that_fails_says_nothing(smi: Smi, tmp_path: Path) -> None:
    smi({}, "")
    assert nvidia.query_state(UUID) == {}
    assert nvidia.query_sample(UUID) is None
    assert len((tmp_path / "asked").read_text().splitlines()) == 4  # everything, the first group, two kinds of samples


def test_without_nvidia_smi_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not nvidia.smi_installed()
    assert nvidia.query_state(UUID) == {}
    assert nvidia.query_guests() is None
    assert nvidia.query_sample(UUID) is None


def test_processes_are_listed_with_their_gpus(smi: Smi) -> None:
    smi({}, f"{UUID}, 4242, /usr/bin/python3\nGPU-2, 77, train, v2\n[N/A], [N/A], [Not Found]\nNo processes found\n")
    assert nvidia.smi_installed()
    assert nvidia.query_guests() == [(UUID, 4242, "/usr/bin/python3"), ("GPU-2", 77, "train, v2")]


@pytest.mark.parametrize("name", [nvidia.SAMPLE[0], nvidia.SAMPLE_OLD[0]])
def test_a_sample_is_taken_by_the_name_that_the_driver_knows(smi: Smi, name: str) -> None:
    smi({name: "0x4", "clocks.sm": "1605", "power.draw": "698.12"}, "")
    assert nvidia.query_sample(UUID) == nvidia.Sample(4, 1605.0, 698.12)


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (0x0, []),
        (0x1, ["idle"]),
        (0x6, ["software power cap", "limited by the application clocks set"]),
        (0x44, ["hardware thermal slowdown", "software power cap"]),
        (0x8000, []),
    ],
)
def test_reasons_are_put_in_words_worst_first(reasons: int, words: list[str]) -> None:
    assert nvidia.reasons_in_words(reasons) == words


def test_the_driver_s_cuda_is_a_version_or_nothing() -> None:
    version = nvidia.cuda_of_driver()
    assert version == "" or all(part.isdigit() for part in version.split("."))
    assert version or cuda_available() is not None


@pytest.mark.gpu
def test_the_gpu_s_state_is_known() -> None:
    uuid = cuda_device().uuid
    state = nvidia.query_state(uuid)
    assert state["uuid"] == uuid
    assert float(state["clocks.max.sm"]) > 100
    assert float(state["power.limit"]) > 10
    int(state["clocks_event_reasons.active"], 16)
    assert nvidia.query_guests() is not None
    assert nvidia.query_sample(uuid) is not None
