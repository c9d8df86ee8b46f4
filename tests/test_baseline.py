"""Baseline files: small diffs, untouched rows, and errors that say what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kerneltune import baseline as baseline_module
from pytest_kerneltune.baseline import (
    SCHEMA,
    BaselineFile,
    baseline_path,
    device_slug,
    load_baseline,
    load_baselines,
    orphans,
    other_devices,
    prune_baselines,
    row_names,
    update_baselines,
    write_baselines,
)
from pytest_kerneltune.errors import StoreError
from pytest_kerneltune.record import Baseline, StoredSession

ROOT = Path(baseline_module.__file__).parents[1]
DEVICE = {"name": "NVIDIA H200", "compute_capability": "9.0"}
ROW = Baseline(
    config={"BLOCK": 128, "num_warps": 4},
    contract={"device": "NVIDIA H200", "clock": "cuda"},
    sessions=(
        StoredSession(
            latency_ms=1.25,
            yardsticks={"reference": 2.5},
            ratios={"reference": 0.5},
            noise=0.01,
            blocks=16,
            recorded={"date": "2026-11-01", "commit": "205d152f3852"},
        ),
    ),
)
ROW_OF_SCHEMA_1 = {
    "blocks": 16,
    "config": {"BLOCK": 128, "num_warps": 4},
    "contract": {"clock": "cuda", "device": "NVIDIA H200"},
    "latency_ms": 1.25,
    "noise": 0.01,
    "ratios": {"reference": 0.5},
    "recorded": {"commit": "205d152f3852", "date": "2026-11-01"},
    "yardsticks": {"reference": 2.5},
}

UPDATE = """
import json, sys
from pathlib import Path
from pytest_kerneltune.baseline import write_baselines
from pytest_kerneltune.record import Baseline

row = Baseline.from_json(json.loads(sys.argv[2]))
for name in sys.argv[3:]:
    write_baselines(Path(sys.argv[1]), {}, {name: row})
"""


def row(latency_ms: float) -> Baseline:
    return replace(ROW, sessions=(replace(ROW.sessions[0], latency_ms=latency_ms),))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return baseline_path(tmp_path / "__kerneltune__", device_slug("NVIDIA H200"), "test_softmax")


def write_raw(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


# -- names


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA H200", "nvidia-h200"),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "nvidia-a100-sxm4-80gb-mig-1g-10gb"),
        ("AMD EPYC 9654 (96-Core) @ 2.4GHz", "amd-epyc-9654-96-core-2-4ghz"),
        ("Intel(R) Xeon(R) Platinum 8468V CPU @ 2.10GHz", "intel-xeon-platinum-8468v-cpu-2-10ghz"),
        ("../..", "unnamed"),
        ("", "unnamed"),
    ],
)
def test_a_device_is_a_plain_directory_name(name: str, slug: str) -> None:
    assert device_slug(name) == slug


def test_one_file_per_device_and_module(tmp_path: Path) -> None:
    expected = tmp_path / "nvidia-h200" / "test_softmax.json"
    assert baseline_path(tmp_path, "nvidia-h200", "test_softmax") == expected


def test_other_devices_with_baselines_of_a_module_are_found(tmp_path: Path) -> None:
    assert other_devices(tmp_path / "none", "test_a", "mine") == []
    for slug, module in [("mine", "test_a"), ("z", "test_a"), ("b", "test_a"), ("c", "test_b")]:
        write_baselines(baseline_path(tmp_path, slug, module), DEVICE, {"k": ROW})
    (tmp_path / "a-file").touch()
    assert other_devices(tmp_path, "test_a", "mine") == ["b", "z"]
    assert other_devices(tmp_path, "test_a", "new") == ["b", "mine", "z"]


# -- reading and writing


def test_a_missing_file_holds_nothing(path: Path) -> None:
    assert load_baselines(path) == BaselineFile({}, {})
    assert not path.parent.exists()


def test_rows_are_read_as_they_were_written(path: Path) -> None:
    rows = {'odd "name" [ü\\n]\n': row(3.0), "softmax[n1024]": ROW}
    assert sorted(write_baselines(path, DEVICE, rows)) == sorted(rows)
    assert load_baselines(path) == BaselineFile(DEVICE, rows)


def test_the_layout(path: Path) -> None:
    """Sorted keys; a session is a line, and the last line of a row but one never changes."""
    write_baselines(path, {"name": "H200"}, {"b": ROW, "a": replace(row(2.0), past=({"latency": "1 ms"},))})
    text = path.read_bytes().decode()
    assert (
        text
        == """{
  "device": {
    "name": "H200"
  },
  "kernels": {
    "a": {
      "code": "",
      "source": "",
      "config": {
        "BLOCK": 128,
        "num_warps": 4
      },
      "contract": {
        "clock": "cuda",
        "device": "NVIDIA H200"
      },
      "past": [
        {"latency": "1 ms"}
      ],
      "sessions": [
        SESSION_OF_2.0
      ]
    },
    "b": {
      "code": "",
      "source": "",
      "config": {
        "BLOCK": 128,
        "num_warps": 4
      },
      "contract": {
        "clock": "cuda",
        "device": "NVIDIA H200"
      },
      "past": [],
      "sessions": [
        SESSION_OF_1.25
      ]
    }
  },
  "schema": 2
}
""".replace("SESSION_OF_2.0", session_line(2.0)).replace("SESSION_OF_1.25", session_line(1.25))
    )


def session_line(latency_ms: float) -> str:
    return (
        f'{{"blocks": 16, "environment": {{}}, "latency_ms": {latency_ms}, "noise": 0.01, "ratios": '
        '{"reference": 0.5}, "recorded": {"commit": "205d152f3852", "date": "2026-11-01"}, "yardsticks": '
        '{"reference": 2.5}}'
    )


def test_nothing_to_write_makes_nothing(path: Path) -> None:
    assert write_baselines(path, DEVICE, {}) == ()
    assert not path.parent.exists()


def test_unchanged_rows_do_not_rewrite_the_file(path: Path) -> None:
    write_raw(path, json.dumps({"schema": 1, "kernels": {"b": ROW.to_json(), "a": row(2.0).to_json()}, "device": {}}))
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert write_baselines(path, DEVICE, {"a": row(2.0), "b": ROW}) == ()
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_only_changed_rows_are_named_and_change_their_lines(path: Path) -> None:
    write_baselines(path, DEVICE, {"a": ROW, "b": ROW, "c": ROW})
    before = path.read_text().splitlines()
    assert write_baselines(path, DEVICE, {"b": row(9.5), "c": ROW}) == ("b",)
    after = path.read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert [(old.strip(), new.strip()) for old, new in changed] == [(session_line(1.25), session_line(9.5))]


def test_a_row_of_schema_1_is_read_and_kept_as_it_is_until_it_changes(path: Path) -> None:
    old = json.dumps(ROW_OF_SCHEMA_1, indent=2)
    write_raw(path, f'{{"schema": 1, "device": {{}}, "kernels": {{"a": {old}, "b": {old}}}}}')
    before = path.read_text()
    assert load_baselines(path).rows == {"a": ROW, "b": ROW}
    assert write_baselines(path, DEVICE, {"a": ROW, "b": ROW}) == ()
    assert path.read_text() == before
    assert write_baselines(path, DEVICE, {"b": row(2.0)}) == ("b",)
    assert f'"a": {old}' in path.read_text()
    assert load_baselines(path) == BaselineFile(DEVICE, {"a": ROW, "b": row(2.0)})
    assert json.loads(path.read_text())["schema"] == 2


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("__kerneltune__/*/*.json")), ids=lambda p: p.stem)
def test_the_files_of_the_examples_are_read(path: Path) -> None:
    rows = load_baselines(path).rows
    assert rows
    assert all(row.latency_ms > 0 and row.ratios["reference"] > 0 for row in rows.values())


def test_an_update_sees_the_row_that_is_there(path: Path) -> None:
    write_baselines(path, DEVICE, {"a": ROW, "broken": ROW})
    write_raw(path, path.read_text().replace('"broken": {', '"broken": {"odd": 1,'))
    seen: dict[str, Baseline | None] = {}

    def updated(name: str, old: Baseline | None) -> Baseline:
        seen[name] = old
        return old or row(2.0)

    names = ("a", "broken", "new")
    changed = update_baselines(path, DEVICE, {name: partial(updated, name) for name in names})
    assert seen == {"a": ROW, "broken": None, "new": None}
    assert changed == ("broken", "new")
    assert load_baselines(path).rows == {"a": ROW, "broken": row(2.0), "new": row(2.0)}


# -- rows of kernels that are gone


def test_orphans_are_named_after_a_complete_run_only() -> None:
    assert orphans(["b", "a", "c"], {"c", "other"}, complete=True) == ("a", "b")
    assert orphans(["b", "a", "c"], {"c"}, complete=False) == ()


def test_pruning_takes_rows_out_and_at_last_the_file(path: Path) -> None:
    raw = f'"b": {json.dumps(ROW_OF_SCHEMA_1)}'
    write_raw(path, f'{{"schema": 1, "device": {{}}, "kernels": {{"c": {{}},"a": "broken", {raw}}}}}')
    before = path.read_text()
    assert prune_baselines(path, ["absent"]) == ()
    assert prune_baselines(path, []) == ()
    assert path.read_text() == before
    assert prune_baselines(path, ["a", "absent", "c"]) == ("c", "a")
    assert raw in path.read_text()
    assert load_baselines(path).rows == {"b": ROW}
    assert prune_baselines(path, ["b"]) == ("b",)
    assert not path.exists()
    assert prune_baselines(path, ["b"]) == ()


def test_new_facts_of_the_device_come_with_a_changed_row(path: Path) -> None:
    write_baselines(path, DEVICE, {"a": ROW})
    write_baselines(path, {"name": "new"}, {"a": ROW})
    assert load_baselines(path).device == DEVICE
    write_baselines(path, {"name": "new"}, {"a": row(2.0)})
    assert load_baselines(path).device == {"name": "new"}


def test_members_of_the_file_that_are_not_ours_stay(path: Path) -> None:
    write_raw(path, '{"note":  [1,\t2], "schema":1, "device":{ }, "kernels":{}}')
    write_baselines(path, {}, {"a": ROW})
    assert '\n  "device":{ },\n' in path.read_text()
    assert '\n  "note":  [1,\t2],\n' in path.read_text()
    assert load_baselines(path).rows == {"a": ROW}


def test_a_malformed_row_that_is_not_updated_stays_and_one_that_is_gets_replaced(path: Path) -> None:
    write_raw(path, '{"schema": 1, "device": {}, "kernels": {"a": "broken", "b": {"broken":1}}}')
    write_baselines(path, {}, {"a": ROW})
    assert '\n    "b": {"broken":1}\n' in path.read_text()
    with pytest.raises(StoreError, match="'b'"):
        load_baselines(path)


# Any JSON, formatted anyhow, with rows in any order: what is not updated keeps its bytes.

numbers = st.floats(min_value=0.001, max_value=1000)
texts = st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2)
sessions = st.builds(
    StoredSession,
    latency_ms=numbers,
    yardsticks=st.just({"reference": 1.0}),
    ratios=st.just({"reference": 2.0}),
    noise=numbers,
    blocks=st.integers(1, 99),
    environment=texts,
    recorded=texts,
)
baselines = st.builds(
    Baseline,
    config=st.dictionaries(st.text(max_size=4), st.integers() | st.lists(st.integers(), max_size=3), max_size=3),
    contract=texts,
    sessions=st.lists(sessions, min_size=1, max_size=2).map(tuple),
    source=st.text(max_size=4),
    past=st.lists(texts, max_size=2).map(tuple),
)
kernel_names = st.sampled_from(["softmax", "soft\\max", 'a"b', "{", "}", "ü[1]", "], ", ""]) | st.text(max_size=6)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
spaces = st.sampled_from(["", " ", "\n", "\r\n", "\t", "  \n\n "])


@st.composite
def formatted_members(draw: st.DrawFn, names: st.SearchStrategy[str]) -> dict[str, str]:
    """Name to the text of a member of an object, from its name to its value's end."""
    members = {}
    for name, value in draw(st.dictionaries(names, anything | baselines.map(Baseline.to_json), max_size=5)).items():
        indent = draw(st.sampled_from([None, 0, 1, 4, "\t"]))
        ascii_only = draw(st.booleans())
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
        members[name] = f"{json.dumps(name, ensure_ascii=ascii_only)}{draw(spaces)}:{draw(spaces)}{text}"
    return members


@st.composite
def formatted_objects(draw: st.DrawFn, members: Mapping[str, str]) -> str:
    order = draw(st.permutations(sorted(members)))
    body = f"{draw(spaces)},{draw(spaces)}".join(members[name] for name in order)
    return "{" + draw(spaces) + body + draw(spaces) + "}"


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_update_keeps_the_bytes_of_every_other_row(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "any" / "test_any.json"
    rows = data.draw(formatted_members(kernel_names))
    others = data.draw(formatted_members(st.sampled_from(["note", "zone"])))
    kernels = data.draw(formatted_objects(rows))
    document = data.draw(
        formatted_objects(
            {"schema": '"schema":1', "device": '"device": {}', "kernels": f'"kernels": {kernels}', **others}
        )
    )
    names = kernel_names | st.sampled_from(sorted(rows)) if rows else kernel_names
    updates = data.draw(st.dictionaries(names, baselines, min_size=1, max_size=3))
    write_raw(path, document)

    changed = write_baselines(path, {"name": "H200"}, updates)

    text = path.read_bytes().decode()
    now = json.loads(text)
    assert set(changed) <= set(updates)
    assert set(now["kernels"]) == set(rows) | set(updates)
    for name, raw in rows.items():
        if name not in changed:
            assert raw in text
    assert all(raw in text for raw in others.values())
    assert all(now["kernels"][name] == json.loads(json.dumps(each.to_json())) for name, each in updates.items())
    if changed:
        assert list(now) == sorted(now)
        assert list(now["kernels"]) == sorted(now["kernels"])
        assert text.endswith("}\n")
    else:
        assert text == document
    assert write_baselines(path, {"name": "H200"}, updates) == ()
    assert path.read_bytes().decode() == text


# -- several at once


def test_rows_of_processes_that_write_at_once_all_arrive(path: Path) -> None:
    processes = []
    for worker in range(3):
        names = [f"kernel{worker}[{number}]" for number in range(8)]
        command = [sys.executable, "-c", UPDATE, str(path), json.dumps(ROW.to_json()), *names]
        processes.append(subprocess.Popen(command, cwd=ROOT))
    assert [process.wait() for process in processes] == [0] * 3
    assert len(load_baselines(path).rows) == 24


def test_an_update_whose_lease_was_lost_is_made_again_from_what_the_file_is_now(path: Path) -> None:
    """As a process does that was stopped for long: another took its lease, wrote, and is done."""
    seen = []

    def update(old: Baseline | None) -> Baseline:
        seen.append(old)
        if len(seen) == 1:
            path.with_name(f"{path.name}.lock").unlink()
            write_baselines(path, DEVICE, {"a": ROW, "b": ROW})
        return row(2.0)

    assert update_baselines(path, DEVICE, {"a": update}) == ("a",)
    assert seen == [None, ROW]
    assert load_baselines(path).rows == {"a": row(2.0), "b": ROW}


def test_git_does_not_see_the_lock(tmp_path: Path, path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    write_baselines(path, DEVICE, {"a": ROW})
    listed = ["git", "-C", str(tmp_path), "status", "--porcelain", "--untracked-files=all"]
    status = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
    assert status.split() == ["??", str(path.relative_to(tmp_path))]


def test_a_gitignore_that_was_there_stays(path: Path) -> None:
    write_raw(path.parent / ".gitignore", "mine\n")
    write_baselines(path, DEVICE, {"a": ROW})
    assert (path.parent / ".gitignore").read_text() == "mine\n"


# -- what cannot be read


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "Expecting value"),
        ('{"schema": 1', "delimiter"),
        ("[]", "not a JSON object"),
        ("{}", "'schema' is None"),
        ('{"schema": "1", "device": {}, "kernels": {}}', "'schema' is '1'"),
        ('{"schema": true, "device": {}, "kernels": {}}', "'schema' is True"),
        ('{"schema": 0, "device": {}, "kernels": {}}', "'schema' is 0"),
        ('{"schema": 1, "kernels": {}}', "'device'"),
        ('{"schema": 1, "device": {}}', "'kernels'"),
        ('{"schema": 1, "device": {}, "kernels": []}', "'kernels'"),
        ('{"schema": 1, "device": {}, "kernels": {"softmax": {}, "softmax": {}}}', "'softmax' stands in it twice"),
        ('{"schema": 1, "device": {}, "device": {}, "kernels": {}}', "'device' stands in it twice"),
        ('{"schema": 2, "device": {}, "kernels": {"softmax": {"latency_ms": 1', "delimiter"),
        ('{"schema": 2, "device": {"clock": NaN}, "kernels": {}}', "NaN is not JSON"),
    ],
)
def test_a_malformed_file_is_an_error_that_says_what_to_do(path: Path, text: str, complaint: str) -> None:
    write_raw(path, text)
    for use in (lambda: load_baselines(path), lambda: write_baselines(path, DEVICE, {"a": ROW})):
        with pytest.raises(StoreError) as caught:
            use()
        assert str(path) in str(caught.value)
        assert complaint in str(caught.value)
        assert "--update-baselines" in str(caught.value)
    assert path.read_text() == text


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_an_error_that_says_what_to_do(path: Path, make: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True)
    make(path)
    before = path.lstat()
    for use in (
        lambda: load_baselines(path),
        lambda: load_baseline(path, "a"),
        lambda: write_baselines(path, DEVICE, {"a": ROW}),
        lambda: prune_baselines(path, ["a"]),
    ):
        with pytest.raises(StoreError, match=r"test_softmax.json: it is a .*, not a regular .*--update-baselines"):
            use()
    assert path.lstat() == before


@pytest.mark.parametrize("value", ["null", "[]", "{}", "1", '{"latency_ms": 1}'])
def test_a_malformed_row_is_no_other_kernel_s_concern(path: Path, value: str) -> None:
    write_raw(
        path, f'{{"schema": 2, "device": {{}}, "kernels": {{"bad": {value}, "good": {json.dumps(ROW.to_json())}}}}}'
    )
    assert load_baseline(path, "good") == ROW
    assert load_baseline(path, "none") is None
    assert row_names(path) == ("bad", "good")
    with pytest.raises(StoreError, match="'bad' is malformed"):
        load_baseline(path, "bad")


@pytest.mark.parametrize("value", ["null", "[]", "{}", "1", '{"latency_ms": 1}'])
def test_a_malformed_row_is_an_error_that_names_it(path: Path, value: str) -> None:
    good = json.dumps(ROW.to_json())
    write_raw(path, f'{{"schema": 1, "device": {{}}, "kernels": {{"good": {good}, "softmax[n1024]": {value}}}}}')
    with pytest.raises(StoreError) as caught:
        load_baselines(path)
    assert str(path) in str(caught.value)
    assert "'softmax[n1024]'" in str(caught.value)
    assert "delete it and run `pytest --autotune=none --update-baselines`" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('"latency_ms": 1.25', '"latency_ms": 0', "latency_ms must be a finite number > 0, not 0"),
        ('"latency_ms": 1.25', '"latency_ms": NaN', "latency_ms must be a finite number > 0, not nan"),
        ('"latency_ms": 1.25', '"latency_ms": 1e999', "latency_ms must be a finite number > 0, not inf"),
        ('"latency_ms": 1.25', '"latency_ms": "1.25"', "latency_ms must be a finite number > 0, not '1.25'"),
        ('"latency_ms": 1.25, ', "", "session lacks latency_ms"),
        ('"noise": 0.01', '"noise": -0.01', "noise must be a finite number >= 0, not -0.01"),
        ('"blocks": 16', '"blocks": 1.5', "blocks must be a positive integer, not 1.5"),
        ('{"reference": 0.5}', '{"reference": 0}', "ratios.reference must be a finite number > 0, not 0"),
        ('{"reference": 0.5}', '{"copy": 0.5}', "ratios must name the same yardsticks as yardsticks"),
        ('"past": []', '"past": {}', "past must be a list, not {}"),
        ('"past": []', '"past": [1]', "past must be an object, not 1"),
        ('"source": ""', '"source": 1', "source must be a string, not 1"),
        ('"source": ""', '"sauce": ""', "baseline has the unknown sauce"),
        ('"blocks": 16', '"blocks": 16, "blocks": 17', "'blocks' stands in it twice"),
    ],
)
def test_what_a_hand_broke_is_named_with_its_row(path: Path, old: str, new: str, complaint: str) -> None:
    write_baselines(path, DEVICE, {"good": row(3.0), "softmax[n1024]": ROW})
    head, row_text = path.read_text().rsplit('"softmax[n1024]"', 1)
    assert old in row_text
    write_raw(path, f'{head}"softmax[n1024]"{row_text.replace(old, new)}')
    with pytest.raises(StoreError) as caught:
        load_baselines(path)
    assert str(path) in str(caught.value)
    assert f"'softmax[n1024]' is malformed: {complaint}; " in str(caught.value)
    assert "restore it from version control" in str(caught.value)


def test_a_row_without_sessions_is_malformed(path: Path) -> None:
    empty = json.dumps({**ROW.to_json(), "sessions": []})
    write_raw(path, f'{{"schema": 2, "device": {{}}, "kernels": {{"a": {empty}}}}}')
    with pytest.raises(StoreError, match="'a' is malformed: sessions must be a list of at least one"):
        load_baselines(path)


@pytest.mark.parametrize("style", ["merge", "diff3"])
def test_conflict_markers_are_called_that(path: Path, tmp_path: Path, style: str) -> None:
    """Markers as git itself writes them, from two branches that both changed a row."""

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", f"merge.conflictStyle={style}")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, check=False)

    def commit(latency_ms: float) -> None:
        write_baselines(path, DEVICE, {"a": ROW, "b": row(latency_ms)})
        git("add", ".")
        git("commit", "-m", "baselines")

    git("init", "-q", "-b", "one")
    commit(1.0)
    git("checkout", "-b", "two")
    commit(2.0)
    git("checkout", "one")
    commit(3.0)
    git("merge", "two")
    assert "<<<<<<<" in path.read_text()
    line = path.read_text().splitlines().index("<<<<<<< HEAD") + 1
    with pytest.raises(StoreError, match=rf"holds conflict markers \(line {line}\): run .*{path}.*finish the merge"):
        load_baselines(path)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"a": 2.0}, {"b": 3.0}),
        ({"new": 2.0}, {"c": 3.0}),
        ({"new": 2.0}, {"0": 3.0}),
        ({"0": 2.0}, {"a": 3.0}),
        ({"bb": 2.0, "c": 4.0}, {"b": 3.0}),
        ({"c": None}, {"b": 3.0}),
        ({"a": None}, {"b": 3.0}),
    ],
    ids=str,
)
def test_changes_of_different_rows_merge_as_text(
    path: Path, tmp_path: Path, one: dict[str, float | None], two: dict[str, float | None]
) -> None:
    """None: the row is removed."""

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, check=True)

    def commit(latencies: Mapping[str, float | None]) -> None:
        rows = {name: row(ms) for name, ms in latencies.items() if ms is not None}
        write_baselines(path, DEVICE, {name: replace(each, source=str(each.latency_ms)) for name, each in rows.items()})
        prune_baselines(path, latencies.keys() - rows)
        git("add", ".")
        git("commit", "-m", "baselines")

    base = {"a": 1.25, "b": 1.25, "c": 1.25}
    git("init", "-q", "-b", "one")
    commit(base)
    git("checkout", "-b", "two")
    commit(two)
    git("checkout", "one")
    commit(one)
    git("merge", "two", "-m", "merged")
    wanted = {name: ms for name, ms in {**base, **one, **two}.items() if ms is not None}
    assert {name: each.latency_ms for name, each in load_baselines(path).rows.items()} == wanted


def test_a_newer_file_is_neither_read_nor_written(path: Path) -> None:
    text = json.dumps({"schema": SCHEMA + 1, "anything": "else"})
    write_raw(path, text)
    with pytest.raises(StoreError, match=r"test_softmax.json .*newer.*upgrade"):
        load_baselines(path)
    with pytest.raises(StoreError, match=r"test_softmax.json .*newer.*upgrade"):
        write_baselines(path, DEVICE, {"a": ROW})
    assert path.read_text() == text


def test_a_device_that_is_no_json_changes_nothing(path: Path) -> None:
    write_baselines(path, DEVICE, {"a": ROW})
    before = path.read_bytes()
    facts: dict[str, Any] = {"clock": float("nan")}
    with pytest.raises(StoreError, match=r"'device'.*test_softmax.json"):
        write_baselines(path, facts, {"a": row(2.0)})
    assert path.read_bytes() == before


def test_a_row_that_is_no_json_changes_nothing(path: Path) -> None:
    write_baselines(path, DEVICE, {"a": ROW})
    before = path.read_bytes()
    for value in (float("inf"), {1}):
        with pytest.raises(StoreError, match=r"cannot write 'a' to .*test_softmax.json"):
            write_baselines(path, DEVICE, {"a": replace(ROW, config={"B": value})})
    assert path.read_bytes() == before


def test_a_directory_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file"):
        write_baselines(tmp_path / "file" / "test_a.json", DEVICE, {"a": ROW})
