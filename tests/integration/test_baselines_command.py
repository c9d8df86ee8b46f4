"""``python -m pytest_kerneltune baselines``, and git itself with its merge driver."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import pytest_kerneltune
from pytest_kerneltune.__main__ import main
from pytest_kerneltune.baseline import load_baselines, write_baselines
from pytest_kerneltune.record import Baseline, StoredSession

PACKAGE = Path(pytest_kerneltune.__file__).parents[1]
DEVICE = {"name": "NVIDIA H200"}
FILE = "perf/__kerneltune__/nvidia-h200/test_softmax.json"
ATTRIBUTES = "**/__kerneltune__/**/*.json merge=kerneltune\n"


def row(latency_ms: float, date: str = "2026-11-01", source: str = "", sessions: int = 1) -> Baseline:
    recorded = {"date": date, "commit": "205d152f3852"}
    ratios = {"reference": latency_ms / 2}
    session = StoredSession(latency_ms, {"reference": 2.0}, ratios, 0.01, 16, {"driver": "580"}, recorded)
    return Baseline({"B": 1}, {"gpu": "NVIDIA H200"}, (session,) * sessions, source)


class Repository:
    """A git repository with one baseline file."""

    def __init__(self, root: Path) -> None:
        self.root, self.file = root, root / FILE
        self.git("init", "-q", "-b", "main")
        for name, value in (("name", "a"), ("email", "a@b")):
            self.git("config", f"user.{name}", value)

    def git(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(self.root), *arguments]
        return subprocess.run(command, check=check, capture_output=True, text=True)

    def install_driver(self) -> None:
        python = f"env PYTHONPATH={shlex.quote(str(PACKAGE))} {shlex.quote(sys.executable)}"
        driver = f"{python} -m pytest_kerneltune baselines merge %O %A %B --path %P"
        self.git("config", "merge.kerneltune.driver", driver)
        (self.root / ".gitattributes").write_text(ATTRIBUTES)

    def commit(self, **rows: Baseline) -> None:
        write_baselines(self.file, DEVICE, rows)
        self.git("add", ".")
        self.git("commit", "-qm", "baselines")

    def branched(self, ours: dict[str, Baseline], theirs: dict[str, Baseline]) -> subprocess.CompletedProcess[str]:
        """What merging two branches comes to."""
        self.git("checkout", "-qb", "other")
        self.commit(**theirs)
        self.git("checkout", "-q", "main")
        self.commit(**ours)
        return self.git("merge", "other", "-m", "merged", check=False)

    @property
    def rows(self) -> dict[str, Baseline]:
        return dict(load_baselines(self.file).rows)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_with_the_driver_git_merges_rows_added_at_one_place(repository: Repository) -> None:
    repository.install_driver()
    repository.commit(k=row(1.0))
    run = repository.branched({"x": row(2.0), "k": row(1.0)}, {"y": row(3.0), "z": row(4.0)})
    assert run.returncode == 0, run.stdout + run.stderr
    assert repository.rows == {"k": row(1.0), "x": row(2.0), "y": row(3.0), "z": row(4.0)}


def test_with_the_driver_a_true_conflict_is_one_and_the_rest_is_merged(repository: Repository) -> None:
    repository.install_driver()
    repository.commit(k=row(1.0), l=row(1.0))
    theirs = {"k": row(3.0, source="t"), "l": row(5.0)}
    run = repository.branched({"k": row(2.0, source="s")}, theirs)
    assert run.returncode == 1
    assert f"{FILE}: both branches changed the row 'k', and source differ: it is kept as ours" in run.stderr
    assert "--update-baselines` for these kernels, then `git add perf/" in run.stderr
    assert repository.rows == {"k": row(2.0, source="s"), "l": row(5.0)}
    assert "UU " + FILE in repository.git("status", "--porcelain").stdout


@pytest.mark.parametrize("style", ["merge", "diff3"])
def test_without_the_driver_resolve_does_it(
    repository: Repository, style: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.git("config", "merge.conflictStyle", style)
    repository.commit(k=row(1.0, "2026-11-01"))
    ours = {"k": replace(row(1.0), sessions=(row(1.0).sessions[0], row(1.1, "2026-11-05").sessions[0])), "x": row(2.0)}
    theirs = {
        "k": replace(row(1.0), sessions=(row(1.0).sessions[0], row(1.2, "2026-11-03").sessions[0])),
        "y": row(3.0),
    }
    assert repository.branched(ours, theirs).returncode == 1
    monkeypatch.chdir(repository.root)
    assert main(["baselines", "list"]) == 1
    assert f"baselines resolve {FILE}`" in capsys.readouterr().err
    assert main(["baselines", "resolve", FILE]) == 0
    assert capsys.readouterr().out == f"{FILE}: 3 rows merged; `git add {FILE}`\n"
    assert [s.latency_ms for s in repository.rows["k"].sessions] == [1.0, 1.2, 1.1]
    assert (repository.rows["x"], repository.rows["y"]) == (row(2.0), row(3.0))
    repository.git("add", FILE)
    repository.git("commit", "-qm", "merged")
    assert main(["baselines", "resolve", FILE]) == 2
    assert f"{FILE} is in no unfinished merge" in capsys.readouterr().err


def test_files_that_both_branches_added_are_resolved_and_conflicts_named(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository.root / "README").touch()
    repository.git("add", ".")
    repository.git("commit", "-qm", "nothing")
    ours = {"k": row(1.0, source="s"), "x": row(2.0)}
    assert repository.branched(ours, {"k": row(1.5, source="t"), "y": row(3.0)}).returncode == 1
    assert main(["baselines", "resolve", str(repository.file)]) == 1
    said = capsys.readouterr()
    assert f"{repository.file}: both branches changed the row 'k', and source differ" in said.err
    assert said.out == ""
    assert repository.rows == {**ours, "y": row(3.0)}
    assert main(["baselines", "resolve", str(repository.file)]) == 1
    capsys.readouterr()
    write_baselines(repository.file, DEVICE, {"k": row(1.2, source="merged")})  # measured, as it said
    assert main(["baselines", "resolve", str(repository.file)]) == 2
    assert "holds no conflict markers, and what was changed in it since" in capsys.readouterr().err
    assert repository.rows["k"] == row(1.2, source="merged")


def test_a_file_that_one_branch_deleted_is_not_resolved(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    repository.commit(k=row(1.0))
    repository.git("checkout", "-qb", "other")
    repository.git("rm", "-q", FILE)
    repository.git("commit", "-qm", "gone")
    repository.git("checkout", "-q", "main")
    repository.commit(k=row(2.0))
    repository.git("merge", "other", check=False)
    assert main(["baselines", "resolve", str(repository.file)]) == 2
    assert "is deleted on one branch: keep it with `git add" in capsys.readouterr().err


def test_resolve_outside_a_repository_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baselines", "resolve", str(tmp_path / "test_a.json")]) == 2
    assert "not a git repository" in capsys.readouterr().err


def test_a_driver_given_what_is_no_baseline_file_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / name for name in ("base", "ours", "theirs")]
    for path, text in zip(paths, ("", '{"schema": 2, "device": {}, "kernels": {}}', '{"schema": 3}'), strict=True):
        path.write_text(text)
    assert main(["baselines", "merge", *map(str, paths), "--path", FILE]) == 2
    assert f"{FILE} (theirs) was written by a newer pytest-kerneltune" in capsys.readouterr().err
    assert '"schema": 2' in paths[1].read_text()
    assert main(["baselines", "merge", str(tmp_path / "none"), *map(str, paths[1:])]) == 2
    assert "none' is no file" in capsys.readouterr().err


# -- list, show, prune


def test_list_shows_every_row_and_what_is_odd_about_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    today = datetime.now(UTC).date()
    yesterday, long_ago = ((today - timedelta(days=days)).isoformat() for days in (1, 40))
    crept = replace(row(1.0), sessions=(row(1.0, long_ago).sessions[0], *row(1.05, yesterday, sessions=5).sessions))
    rows = {"softmax[n1024]": crept, "young": row(0.0401, today.isoformat())}
    write_baselines(tmp_path / FILE, DEVICE, rows)
    gone = tmp_path / "perf/__kerneltune__/nvidia-h200/test_gone.json"
    write_baselines(gone, DEVICE, {"old": row(2.0, long_ago)})
    broken = tmp_path / "other/__kerneltune__/x/test_b.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    (tmp_path / "perf/test_softmax.py").touch()
    assert main(["baselines", "list", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert f"{broken} is no baseline file" in said.err
    assert [" ".join(line.split()) for line in said.out.splitlines()] == [
        f"{gone} (NVIDIA H200), orphaned: there is no {tmp_path / 'perf/test_gone.py'}",
        "kernel latency sessions age commit creep",
        "old 2 ms 1 40 days 205d152f3852 young",
        f"{tmp_path / FILE} (NVIDIA H200)",
        "kernel latency sessions age commit creep",
        "softmax[n1024] 1.05 ms 6 1 day 205d152f3852 +5.0%",
        "young 40.1 us 1 today 205d152f3852 young",
    ]


def test_show_tells_a_row_and_its_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    past = {
        "verdict": "regressed",
        "latency": "40.1 us",
        "change": "+6.2%",
        "date": "2026-10-01",
        "over reference": "1",
    }
    write_baselines(tmp_path / FILE, DEVICE, {"k": replace(row(0.0426, source="abc"), past=(past,))})
    assert main(["baselines", "show", str(tmp_path / FILE), "k"]) == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "k",
        'config {"B": 1}',
        "source abc",
        "creep since the anchor -97.9%",
        "gpu NVIDIA H200",
        "",
        "1 session, oldest first:",
        "date commit latency over reference noise blocks driver",
        "2026-11-01 205d152f3852 42.6 us 0.0213 1% 16 580",
        "",
        "what it was before, oldest first:",
        "date latency change verdict over reference",
        "2026-10-01 40.1 us +6.2% regressed 1",
    ]
    assert main(["baselines", "show", str(tmp_path / FILE), "q"]) == 2
    assert "has no row 'q', but 'k'" in capsys.readouterr().err


@pytest.mark.parametrize("central", [False, True])
def test_prune_removes_files_of_test_modules_that_are_gone_when_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], central: bool
) -> None:
    home = tmp_path / ("baselines/h200/perf" if central else "perf/__kerneltune__/h200")
    for module in ("test_here", "test_gone"):
        write_baselines(home / f"{module}.json", DEVICE, {"k": row(1.0), "l": row(1.0)})
    (tmp_path / "perf").mkdir(exist_ok=True)
    (tmp_path / "perf/test_here.py").touch()
    command = ["baselines", "prune", str(tmp_path)]
    command += ["--baseline-dir", str(tmp_path / "baselines")] if central else []
    what = f"{home / 'test_gone.json'} (k, l): there is no {tmp_path / 'perf/test_gone.py'}"
    assert main(command) == 0
    assert capsys.readouterr().out == f"would remove {what}\nnothing is removed without --write\n"
    assert (home / "test_gone.json").exists()
    assert main([*command, "--write"]) == 0
    assert capsys.readouterr().out == f"removed {what}\n"
    assert [path.name for path in home.glob("*.json")] == ["test_here.json"]
    assert main(command) == 0
    assert capsys.readouterr().out == ""
    for module in ("test_a_broken", "test_old"):
        write_baselines(home / f"{module}.json", DEVICE, {"k": row(1.0)})
    (home / "test_a_broken.json").write_text("{")
    assert main([*command, "--write"]) == 1
    said = capsys.readouterr()
    assert "test_a_broken.json is no baseline file" in said.err
    assert (home / "test_a_broken.json").read_text() == "{"
    assert not (home / "test_old.json").exists()
