"""Families of kernels: who is related, in which order, and what is passed over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_kerneltune.cache.family import Family, Member, by_likeness
from pytest_kerneltune.errors import StoreError

NAME = "fa" * 32
H200 = "NVIDIA H200"
OWN = Member("00" * 32, "softmax[n1024-float16]", ("x: float16[4096, 1024]",), device=H200)


def member(
    number: int,
    kernel: str = OWN.kernel,
    inputs: Sequence[str] = OWN.inputs,
    created: str = "2025-01-01",
    device: str = H200,
) -> Member:
    return Member(f"{number:064x}", kernel, tuple(inputs), created, device)


def sized(number: int, width: int, device: str = H200) -> Member:
    """The kernel at another width."""
    return member(number, f"softmax[n{width}-float16]", [f"x: float16[4096, {width}]"], device=device)


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return Family(tmp_path, NAME)


def folder(root: Path) -> Path:
    return root / "families" / NAME


def order(family: Family, members: Sequence[Member], own: Member = OWN) -> list[int]:
    """The numbers of ``members``, once added, as they are alike to ``own``."""
    for each in members:
        family.add(each)
    return [int(m.fingerprint, 16) for m in family.alike(own)]


def test_members_are_found_as_they_were_added(family: Family) -> None:
    members = [member(1), member(2, "softmax", ()), member(3, "softmax[ü]", ["", "two\nlines"])]
    for each in members:
        family.add(each)
    found = {m.fingerprint: m for m in family.alike(OWN)}
    assert [found[m.fingerprint].kernel for m in members] == [m.kernel for m in members]
    assert found[members[0].fingerprint] == members[0]
    assert found[members[1].fingerprint] == members[1]


def test_one_is_no_relative_of_its_own(family: Family) -> None:
    assert order(family, [member(0), member(1)]) == [1]


def test_a_family_without_members_makes_nothing(family: Family, tmp_path: Path) -> None:
    assert family.alike(OWN) == []
    assert list(tmp_path.iterdir()) == []


def test_an_edit_comes_before_other_inputs(family: Family) -> None:
    near = member(1, "softmax[n1025-float16]", ["x: float16[4096, 1025]"], "2025-02-02")
    assert order(family, [near, member(2, created="2020-01-01")]) == [2, 1]


def test_among_other_inputs_the_nearest_by_orders_of_magnitude_comes_first(family: Family) -> None:
    sizes = [16, 100_000, 512, 4096, 1536]
    assert order(family, [sized(n, n) for n in sizes]) == [1536, 512, 4096, 16, 100_000]


def test_names_alone_tell_how_near_kernels_without_inputs_are(family: Family) -> None:
    members = [member(n, f"sum[{n}]", ()) for n in (10, 1000, 90)]
    assert order(family, members, Member(OWN.fingerprint, "sum[100]", (), device=H200)) == [90, 10, 1000]


def test_other_words_are_further_than_other_numbers(family: Family) -> None:
    bfloat = member(1, "softmax[n1024-bfloat16]", ["x: bfloat16[4096, 1024]"])
    far = member(2, "softmax[n99999-float16]", ["x: float16[4096, 99999]"])
    assert order(family, [bfloat, far]) == [2, 1]


def test_the_newest_of_equals_comes_first(family: Family) -> None:
    dates = ["2025-01-02T10:00:00+00:00", "2025-01-03T09:00:00+00:00", "2024-12-31T23:00:00+00:00"]
    assert order(family, [member(n, created=date) for n, date in enumerate(dates, 1)]) == [2, 1, 3]


def test_the_same_device_comes_first_then_the_same_maker_then_others(family: Family) -> None:
    others = [
        member(7, device="Some accelerator"),
        member(6, device="AMD Instinct MI300X"),
        sized(5, 4096, "NVIDIA H100 80GB HBM3"),
        member(4, device="NVIDIA A100-SXM4-80GB"),
        member(3, device="NVIDIA H100 80GB HBM3"),
        member(2, "softmax[n99999-bfloat16]", ["x: bfloat16[4096, 99999]"]),
        sized(1, 1 << 20),
    ]
    assert order(family, others)[:5] == [1, 2, 3, 4, 5]
    assert set(order(family, [])[5:]) == {6, 7}


def test_older_names_of_a_maker_are_the_same_makers(family: Family) -> None:
    devices = ["AMD Radeon PRO W6600", "GeForce RTX 2080 Ti", "Radeon RX 7900 XTX"]
    own = member(0, device="NVIDIA GeForce RTX 3090")
    assert order(family, [member(n, device=name) for n, name in enumerate(devices, 1)], own)[0] == 2
    names = ["AMD EPYC 9654 96-Core Processor", "12th Gen Intel(R) Core(TM) i7-12700"]
    own = member(0, device="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz")
    assert order(family, [member(n, device=name) for n, name in enumerate(names, 4)], own) == [5, 4]


def test_processors_and_gpus_say_nothing_about_each_other(family: Family) -> None:
    processors = ["AMD EPYC 9654 96-Core Processor", "AMD Ryzen 7 5800U with Radeon Graphics", "aarch64"]
    gpus = ["AMD Instinct MI300X", "NVIDIA H100 80GB HBM3", "Tesla V100-SXM2-16GB", "AMD Radeon Graphics"]
    members = [member(n, device=name) for n, name in enumerate([*processors, *gpus, ""], 1)]
    assert sorted(order(family, members)) == [4, 5, 6, 7, 8]
    for processor in processors:
        found = order(family, [], member(0, device=processor))
        assert sorted(found) == [1, 2, 3, 8]
        assert found[0] == 1 + processors.index(processor)


def test_pointers_of_earlier_versions_name_no_device(family: Family, tmp_path: Path) -> None:
    family.add(member(1, device="NVIDIA A100-SXM4-80GB"))
    content = {"kernel": OWN.kernel, "inputs": list(OWN.inputs), "created": "2025-01-01"}
    (folder(tmp_path) / f"{2:064x}.json").write_text(json.dumps(content))
    found = family.alike(OWN)
    assert [(int(m.fingerprint, 16), m.device) for m in found] == [(1, "NVIDIA A100-SXM4-80GB"), (2, "")]


def test_members_of_several_caches_are_put_in_one_order() -> None:
    near, far, foreign = sized(1, 2048), sized(2, 1 << 20), member(3, device="AMD Instinct MI300X")
    for members in ([foreign, far, near], [near, foreign, OWN, far]):
        assert by_likeness(OWN, members) == [near, far, foreign]


def test_a_date_in_the_future_is_not_the_newest(family: Family) -> None:
    dates = ["2199-01-01T00:00:00+00:00", "2025-01-03T09:00:00+00:00", "yesterday", "2025-01-04T09:00:00+00:00"]
    assert order(family, [member(n, created=date) for n, date in enumerate(dates, 1)])[:2] == [4, 2]


def test_texts_of_any_length_are_stored_small_and_read(family: Family, tmp_path: Path) -> None:
    long = "\N{GRINNING FACE}" * 100_000
    family.add(member(1, f"k[{long}", [long, long], device=long))
    family.add(member(2, "k", ["\n" * 100_000, "", *[""] * 10_000]))
    assert sorted(order(family, [])) == [1, 2]
    assert all(path.stat().st_size <= 1 << 16 for path in folder(tmp_path).iterdir())
    itself = Member(OWN.fingerprint, f"k[{long}", (long, long), device=long)
    assert order(family, [member(3, "k", [long])], itself)[0] == 1


def test_numbers_beyond_reason_are_no_trouble(family: Family) -> None:
    names = ["k[0]", f"k[{'9' * 500}]", "k[1-2-3]", f"k[{'x' * 10_000}]", "k"]
    members = [member(n, name, [name] * 50) for n, name in enumerate(names, 1)]
    assert sorted(order(family, members)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "5",
        '{"kernel": "k"}',
        '{"kernel": 1, "inputs": [], "created": ""}',
        '{"kernel": "k", "inputs": [1], "created": ""}',
        '{"kernel": "k", "inputs": 3, "created": ""}',
        '{"kernel": "k", "inputs": [], "created": null}',
        '{"kernel": "k", "inputs": [], "created": "", "device": 1}',
        '{"kernel": "k", "inputs": [], "created": "", "device": ["NVIDIA H200"]}',
        "[" * 9999,
        " " * 100_000,
    ],
)
def test_what_is_no_member_is_passed_over(family: Family, tmp_path: Path, content: str) -> None:
    family.add(member(1))
    (folder(tmp_path) / f"{2:064x}.json").write_text(content)
    assert order(family, []) == [1]


@pytest.mark.parametrize("name", ["../../../etc.json", "xyz.json", f"{2:064x}.txt", f"{2:064x}", f"{2:064x}.json.lock"])
def test_only_what_is_called_as_an_entry_is_a_member(family: Family, tmp_path: Path, name: str) -> None:
    family.add(member(1))
    content = (folder(tmp_path) / f"{1:064x}.json").read_text()
    (folder(tmp_path) / Path(name).name).write_text(content)
    assert order(family, []) == [1]


def test_links_and_pipes_are_passed_over(family: Family, tmp_path: Path) -> None:
    family.add(member(1))
    (folder(tmp_path) / f"{2:064x}.json").symlink_to(folder(tmp_path) / f"{1:064x}.json")
    os.mkfifo(folder(tmp_path) / f"{3:064x}.json")
    (folder(tmp_path) / f"{4:064x}.json").mkdir()
    assert order(family, []) == [1]


@pytest.mark.parametrize("linked", ["families", f"families/{NAME}"])
def test_a_folder_that_is_a_link_is_neither_read_nor_written(tmp_path: Path, linked: str) -> None:
    elsewhere = Family(tmp_path / "elsewhere", NAME)
    elsewhere.add(member(1))
    link = tmp_path / "cache" / linked
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "elsewhere" / linked)
    family = Family(tmp_path / "cache", NAME)
    assert family.alike(OWN) == []
    with pytest.raises(StoreError, match="is a link"):
        family.add(member(2))
    assert len(elsewhere.alike(OWN)) == 1


def test_a_link_in_place_of_a_member_is_not_written_through(family: Family, tmp_path: Path) -> None:
    family.add(member(1))
    (precious := tmp_path / "precious").write_text("mine")
    (folder(tmp_path) / f"{2:064x}.json").symlink_to(precious)
    with pytest.raises(StoreError, match=r"0002\.json"):
        family.add(member(2))
    assert precious.read_text() == "mine"


def test_only_fingerprints_are_members(family: Family, tmp_path: Path) -> None:
    for name in ("", "../../elsewhere", "abc", "ABCD"):
        with pytest.raises(ValueError, match="no fingerprint"):
            family.add(Member(name, "k", ()))
    assert list(tmp_path.iterdir()) == []


def test_a_family_is_called_as_a_fingerprint_is(tmp_path: Path) -> None:
    for name in ("", "..", "../../etc", "ABCD", "g" * 64):
        with pytest.raises(ValueError, match="no family"):
            Family(tmp_path, name)


def test_of_a_large_family_the_newest_members_are_looked_at(family: Family, tmp_path: Path) -> None:
    folder(tmp_path).mkdir(parents=True)
    content: dict[str, Any] = {"kernel": OWN.kernel, "inputs": list(OWN.inputs), "created": "2025-01-01"}
    for number in range(1, 521):
        path = folder(tmp_path) / f"{number:064x}.json"
        path.write_text(json.dumps(content))
        os.utime(path, ns=(number, number))
    assert sorted(order(family, [])) == list(range(21, 521))


def test_files_from_the_future_hide_no_others(family: Family, tmp_path: Path) -> None:
    for number in range(1, 4):
        family.add(member(number))
    content = (folder(tmp_path) / f"{1:064x}.json").read_text()
    far = time.time_ns() + 10**9 * 86_400 * 365
    for number in range(4, 524):
        path = folder(tmp_path) / f"{number:064x}.json"
        path.write_text(content)
        os.utime(path, ns=(far + number, far + number))
    found = order(family, [])
    assert len(found) == 500
    assert {1, 2, 3, 523} < set(found)


def test_members_may_go_while_they_are_looked_at(family: Family, tmp_path: Path) -> None:
    family.add(member(1))
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for number in range(2, 12):
                family.add(member(number))
            for number in range(2, 12):
                (folder(tmp_path) / f"{number:064x}.json").unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        looks = [order(family, []) for _ in range(30)]
    finally:
        stop.set()
        thread.join()
    assert all(1 in found and set(found) <= set(range(1, 12)) for found in looks)


def test_what_is_made_has_the_permissions_of_the_shared_directory(tmp_path: Path) -> None:
    (shared := tmp_path / "shared").mkdir()
    shared.chmod(0o770)
    Family(shared, NAME).add(member(1))
    made = [shared / "families", folder(shared), folder(shared) / f"{1:064x}.json"]
    assert [path.stat().st_mode & 0o777 for path in made] == [0o770, 0o770, 0o660]


_AS_NOBODY = """
import os, sys
from pathlib import Path
from pytest_kerneltune.cache.family import Family, Member
family, own = Family(Path("."), sys.argv[1]), Member("00" * 32, "k", ())
family.alike(own)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print(sorted(int(m.fingerprint, 16) for m in family.alike(own)))
"""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become somebody else")
def test_what_one_may_not_read_is_passed_over(family: Family, tmp_path: Path) -> None:
    for number in (1, 2):
        family.add(member(number, device=""))
        (folder(tmp_path) / f"{number:064x}.json").chmod(0o644 if number == 1 else 0o600)
    for path in (tmp_path, tmp_path / "families", folder(tmp_path)):
        path.chmod(0o755)

    def seen() -> str:
        command = [sys.executable, "-c", _AS_NOBODY, NAME]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    assert seen() == "[1]"
    folder(tmp_path).chmod(0o700)
    assert seen() == "[]"


def test_a_family_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "families").touch()
    family = Family(tmp_path, NAME)
    with pytest.raises(StoreError):
        family.add(member(1))
    assert family.alike(OWN) == []
