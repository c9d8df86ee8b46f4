"""Families of kernels: who is related, in which order, and what is passed over."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_kerneltune.cache.family import Family, Member
from pytest_kerneltune.errors import StoreError

NAME = "fa" * 32
OWN = Member("00" * 32, "softmax[n1024-float16]", ("x: float16[4096, 1024]",))


def member(
    number: int, kernel: str = OWN.kernel, inputs: Sequence[str] = OWN.inputs, created: str = "2025-01-01"
) -> Member:
    return Member(f"{number:064x}", kernel, tuple(inputs), created)


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
    members = [member(n, f"softmax[n{n}-float16]", [f"x: float16[4096, {n}]"]) for n in sizes]
    assert order(family, members) == [1536, 512, 4096, 16, 100_000]


def test_names_alone_tell_how_near_kernels_without_inputs_are(family: Family) -> None:
    members = [member(n, f"sum[{n}]", ()) for n in (10, 1000, 90)]
    assert order(family, members, Member(OWN.fingerprint, "sum[100]", ())) == [90, 10, 1000]


def test_other_words_are_further_than_other_numbers(family: Family) -> None:
    bfloat = member(1, "softmax[n1024-bfloat16]", ["x: bfloat16[4096, 1024]"])
    far = member(2, "softmax[n99999-float16]", ["x: float16[4096, 99999]"])
    assert order(family, [bfloat, far]) == [2, 1]


def test_the_newest_of_equals_comes_first(family: Family) -> None:
    dates = ["2025-01-02T10:00:00+00:00", "2025-01-03T09:00:00+00:00", "2024-12-31T23:00:00+00:00"]
    assert order(family, [member(n, created=date) for n, date in enumerate(dates, 1)]) == [2, 1, 3]


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


def test_a_family_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "families").touch()
    family = Family(tmp_path, NAME)
    with pytest.raises(StoreError):
        family.add(member(1))
    assert family.alike(OWN) == []
