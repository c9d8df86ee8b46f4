"""``python -m pytest_kerneltune cache``, on caches of real runs and on made ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pytest_kerneltune
from pytest_kerneltune.__main__ import main
from pytest_kerneltune.cache import Entry, Finalist, Run, Verification, document
from pytest_kerneltune.cache.family import Family, Member
from pytest_kerneltune.search import Effort
from pytest_kerneltune.trial import Status, Trial

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

PACKAGE = Path(pytest_kerneltune.__file__).parents[1]
FAMILY = "fa" * 32
EVIL = "evil\x1b[2J[n1]"
DAY = 86_400.0

KERNEL = """
@tunable(space=BLOCKS, params=[7], ids=["n7"])
def kernel(request):
    return lambda block: spin(MS / block)

def test_kernel(kernel): pass
"""

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a cache command in this process: exit status, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main(["cache", *map(str, arguments)])
        except SystemExit as exit_:
            status = int(str(exit_.code))
        return status, *capsys.readouterr()

    return run


def entry(number: int, kernel: str = "", device: str = "NVIDIA H200", **changes: Any) -> Entry:
    trials = (
        *(
            Trial({"x": x}, latency_ms=x + 1.0, samples_ms=(x + 1.0, x + 1.5), stage="s", at_s=float(x))
            for x in range(12)
        ),
        Trial({"x": 99}, Status.CRASH, reason="\x07 signal"),
        Trial({"x": 98}, Status.WRONG, reason="differs"),
    )
    origin = {"device": device, "host": "0a1b", "torch": "2.9"}
    run = Run("LFBOTreeSearch", Effort.FULL, 1, True, "2026-01-02T03:04:05+00:00", trials, 60.0, None, origin, "ab" * 8)
    verification = Verification(
        "2026-01-02T03:05:00+00:00", True, (Finalist({"x": 0}, (1.0,)), Finalist({"x": 1}, (2.0,)))
    )
    made = Entry(
        f"{number:02x}" * 32, kernel or f"kernel[n{number}]", (run,), {"x": 0}, FAMILY, ("float32 [4]",), verification
    )
    return replace(made, **changes)


def write(directory: Path, *entries: Entry, days: float = 0.0) -> list[Path]:
    paths = []
    for each in entries:
        path = directory / each.fingerprint[:2] / f"{each.fingerprint}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(document.rendered(each))
        Family(directory, each.family).add(Member(each.fingerprint, each.kernel, each.inputs))
        paths.append(aged(path, days))
    return paths


def aged(path: Path, days: float) -> Path:
    os.utime(path, (time.time() - days * DAY,) * 2)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three entries in the cache that commands look at by default."""
    directory = tmp_path / "cache"
    directory.mkdir()
    monkeypatch.setenv("KERNELTUNE_CACHE_DIR", str(directory))
    write(directory, entry(1), entry(2, EVIL), entry(3, "other[n1]", "AMD MI300X"))
    return directory


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that tunes the entry."""
    code = "import sys, time, pathlib; from pytest_kerneltune.disk import leases; "
    code += "lease = leases.take(pathlib.Path(sys.argv[1]))"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(); sys.stdout.flush(); time.sleep(60)", str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=PACKAGE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_tuned_kernel_is_listed_shown_and_carried_to_another_cache(
    suite: Suite, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.write("test_it.py", KERNEL)
    tuned = suite.run("--autotune=FiniteSearch").kernels["kernel[n7]"]
    status, out, err = command("list")
    assert (status, err) == (0, "")
    heading, row, total = out.splitlines()
    assert heading.split() == [
        "kernel",
        "device",
        "latency",
        "trials",
        "search",
        "ended",
        "size",
        "used",
        "fingerprint",
    ]
    assert row.split()[0] == "kernel[n7]"
    assert "FiniteSearch quick" in row or "FiniteSearch full" in row
    assert total.startswith(f"{suite.root / 'cache'}: 1 entry, ")
    ((shown,), listed) = json.loads(command("show", "kernel*", "--json")[1]), json.loads(command("list", "--json")[1])
    assert shown["winner"] == tuned["config"]
    assert listed["entries"][0]["fingerprint"] == shown["fingerprint"]
    assert command("verify")[:2] == (0, f"{suite.root / 'cache'}: 1 entry sound\n")
    assert command("export", suite.root / "trials.jsonl")[0] == 0
    monkeypatch.setenv("KERNELTUNE_CACHE_DIR", str(suite.root / "second"))
    assert command("import", suite.root / "trials.jsonl")[0] == 0
    hit = suite.run("--autotune=FiniteSearch").kernels["kernel[n7]"]
    assert (hit["config"], hit["search"]["source"]) == (tuned["config"], "cache")


def test_lists_choose_by_kernel_and_device_and_foreign_text_cannot_reach_the_terminal(
    cache: Path, command: Command
) -> None:
    (cache / "04").mkdir()
    (cache / "04" / f"{'04' * 32}.trials-{'ab' * 8}.jsonl").write_text("{}\n")
    (cache / "04" / f"{'04' * 32}.json.corrupt-1").write_text("x" * 2048)
    status, out, err = command("list")
    assert (status, err) == (0, "")
    assert out.isascii()
    assert out.replace("\n", "").isprintable()
    rows = {line.split()[0]: line for line in out.splitlines()[1:-1]}
    assert list(rows) == [r"evil\x1b[2J[n1]", "kernel[n1]", "other[n1]"]
    assert all(
        part in rows["other[n1]"] for part in ("AMD MI300X", "1 ms", "14 (2 failed)", "LFBOTreeSearch full", "0303")
    )
    assert "3 entries, 42 trials" in out
    assert "1 kernel with trials of interrupted searches only, 1 file set aside (2.0 KiB)" in out
    for arguments, found in (
        (("--device", "*MI300*"), ["other[n1]"]),
        (("--kernel", "kernel[n1]", "--kernel", "o*"), ["kernel[n1]", "other[n1]"]),
        (("--kernel", "k*", "--device", "AMD*"), []),
    ):
        listed = json.loads(command("list", "--json", *arguments)[1])
        assert sorted(each["kernel"] for each in listed["entries"]) == found
    (cache / "03" / f"{'03' * 32}.json").write_text("{\x1b")
    status, out, err = command("list")
    assert (status, len(out.splitlines())) == (1, 4)
    assert err.startswith(f"skipped {cache / '03'}")
    assert command("list", "--cache", cache / "none")[0] == 2
    assert "names no directory" in command("list", "--cache", "")[2]  # of a shell's variable that is not set


def test_an_entry_is_shown_with_all_that_is_known_of_it(cache: Path, command: Command) -> None:
    path = cache / "01" / f"{'01' * 32}.json"
    lines = [json.dumps(Trial({"x": 5}, latency_ms=9.0).to_json()), json.dumps(entry(1).trials[0].to_json())]
    (path.parent / f"{path.stem}.trials-{'cd' * 8}.jsonl").write_text("\n".join(lines))
    with holder(path) as process:
        status, out, err = command("show", "kernel[n1]")
        known = json.loads(command("show", "0101", "--json")[1])
        process.kill()
    assert (status, err) == (0, "")
    for part in (
        'winner        {"x": 0}, 1 ms',
        "its output checked; side by side: 1 ms against 2 ms",
        f"tuned now by  process {process.pid}\n",
        "finished, limited to 60 s",
        "10 ms    ",
        "1 crash",
        "1 wrong output",
        f"{path.stem}.trials-{'cd' * 8}.jsonl: 2 trials, 1 of them in no entry",
    ):
        assert part in out
    assert "11 ms" not in out, "the ten best only"
    assert (known[0]["fingerprint"], known[0]["tuned_by"]) == ("01" * 32, f"process {process.pid}")
    assert known[0]["failures"] == {"crash": 1, "wrong output": 1}
    assert "tuned now" not in command("show", "kernel[n1]")[1]
    assert command("show", "*[n1]")[1].count("fingerprint  ") == 3
    status, _, err = command("show", "nothing")
    assert status == 2
    assert "has no entry of 'nothing'" in err
    assert "\x1b" not in command("show", "0202")[1]


def test_verify_names_what_is_wrong_and_repairs_what_it_understands(cache: Path, command: Command) -> None:
    assert command("verify")[0] == 0
    one, two, three = (cache / n / f"{n * 32}.json" for n in ("01", "02", "03"))
    content = one.read_bytes()
    one.write_bytes(content.replace(b'"x": 3', b'"x": 4'))  # still JSON
    two.write_text(json.dumps({**json.loads(two.read_text()), "schema": 99}))
    three.unlink()
    os.mkfifo(three)
    names = {
        "stale lock": f"02/{'02' * 32}.json.lock",
        "temporary file": f"families/{FAMILY}/.kerneltune-{'0' * 16}.tmp",
        "set aside": f"01/{'01' * 32}.json.corrupt-7",
        "interrupted search": f"01/{'01' * 32}.trials.jsonl",
    }
    for name in names.values():
        (cache / name).write_text("")
        aged(cache / name, 1)
    foreign = [
        cache / "notes\x1b.txt",
        cache / "01" / "README",
        cache / "families" / "x",
        cache / "01" / f"{'02' * 9}.json",
    ]
    for path in foreign:
        path.write_text("mine")
    (cache / "families" / FAMILY / f"{'dd' * 32}.json").write_text("{}")
    before = sorted(cache.rglob("*"))
    status, out, _ = command("verify", "--json")
    found = {(each["kind"], each["path"]) for each in json.loads(out)["findings"]}
    pointers = {("pointer without entry", str(cache / "families" / FAMILY / f"{'dd' * 32}.json"))}
    assert found == {
        ("corrupt", str(one)),
        ("newer", str(two)),
        ("foreign", str(three)),
        *(("foreign", str(path)) for path in foreign),
        *((kind, str(cache / name)) for kind, name in names.items()),
        *pointers,
    }
    assert (status, sorted(cache.rglob("*"))) == (1, before)

    status, out, _ = command("verify", "--repair")
    assert (status, out.isascii()) == (0, True)
    gone = {cache / names["temporary file"], *(Path(path) for _, path in pointers), one}
    assert set(before) - set(cache.rglob("*")) == gone
    assert {path.name for path in set(cache.rglob("*")) - set(before)} == {f"{one.name}.corrupt-1"}
    assert all(path.read_text() == "mine" for path in foreign)
    assert command("verify")[0] == 0


def test_trials_go_from_process_to_process_and_import_says_what_became_of_them(cache: Path, tmp_path: Path) -> None:
    def python_m(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
        code = [sys.executable, "-m", "pytest_kerneltune", "cache", *map(str, arguments)]
        return subprocess.run(code, capture_output=True, check=False, cwd=PACKAGE, **options)

    exported = python_m("export", "--device", "NVIDIA*")
    lines = exported.stdout.splitlines()
    assert (exported.returncode, len(lines)) == (0, 28)
    second = tmp_path / "second"
    run = python_m("import", "-", "--cache", second, input=b"\n".join([*lines, b"{", *lines]))
    assert run.returncode == 1
    assert run.stdout.decode() == f"{second}: 2 entries added, 0 extended, 2 known already\n"
    assert run.stderr.decode().startswith("-: skipped line 29: ")
    for number in (1, 2):
        name = f"{number:02x}/{f'{number:02x}' * 32}.json"
        assert (second / name).read_bytes() == (cache / name).read_bytes()
    assert (second / "CACHEDIR.TAG").exists()


def test_caches_are_merged_and_what_is_tuned_meanwhile_is_named(cache: Path, tmp_path: Path, command: Command) -> None:
    other = tmp_path / "other"
    theirs = entry(1).runs[0]
    write(other, replace(entry(1), runs=(replace(theirs, token="cd" * 8, created="2026-02-02"),)), entry(9))
    (other / "09" / f"{'09' * 32}.trials-{'ef' * 8}.jsonl").write_text(json.dumps(Trial({"x": 3}).to_json()) + "\n")
    before = {path: path.read_bytes() for path in other.rglob("*.json*")}
    with holder(cache / "01" / f"{'01' * 32}.json") as process:
        status, out, err = command("merge", other, "--wait", 0)
        process.kill()
    assert (status, out.splitlines()) == (
        1,
        [f"{cache}: 1 entry added, 0 extended, 0 known already", "1 journal of interrupted searches copied"],
    )
    assert f"kernel[n1]: {cache}" in err
    assert f"locked by process {process.pid}" in err
    assert command("merge", other)[:2] == (0, f"{cache}: 0 entries added, 1 extended, 1 known already\n")
    assert command("merge", other)[:2] == (0, f"{cache}: 0 entries added, 0 extended, 2 known already\n")
    assert {path: path.read_bytes() for path in other.rglob("*.json*")} == before
    (known,) = json.loads(command("show", "0101", "--json")[1])
    assert [run["token"] for run in known["runs"]] == ["ab" * 8, "cd" * 8]
    for wrong in (cache, tmp_path / "none"):
        assert command("merge", wrong)[0] == 2


def test_prune_removes_by_age_size_kernel_and_device(cache: Path, command: Command) -> None:
    def left() -> list[str]:
        return sorted(path.parent.name for path in cache.glob("??/*.json"))

    for arguments in ((), ("--dry-run",), ("--set-aside", "--kernel", "x"), ("--older-than", "9"), ("--size", "-1")):
        assert command("prune", *arguments)[0] == 2
    for number in range(4, 9):
        write(cache, entry(number), days=number * 10)
    aged(write(cache, entry(9))[0], -400)
    aged(cache / "03" / f"{'03' * 32}.json", 1)
    status, out, _ = command("prune", "--older-than", "65d", "--dry-run")
    assert status == 0
    assert out.startswith(f"would remove kernel[n8] (NVIDIA H200) {'08' * 6}, 2.2 KiB, last used 80 d ago\n")
    assert out.splitlines()[-1].startswith("would remove 2 entries, ")
    assert len(left()) == 9
    assert command("prune", "--older-than", "65d")[1].splitlines()[-1] == "removed 2 entries, 4.4 KiB"
    assert command("prune", "--older-than", "1w", "--kernel", "kernel[n5]")[0] == 0
    assert left() == ["01", "02", "03", "04", "06", "09"]
    assert command("prune", "--device", "AMD*")[0] == 0
    assert command("prune", "--size", "7k")[0] == 0
    assert left() == ["01", "02", "09"]
    with holder(cache / "01" / f"{'01' * 32}.json") as process:
        status, out, err = command("prune", "--kernel", "*")
        process.kill()
    assert (status, left()) == (1, ["01"])
    assert f"stays: {cache / '01'}" in err
    assert r"evil\x1b[2J" in out
    assert [path.name for path in (cache / "families" / FAMILY).iterdir()] == [f"{'01' * 32}.json"]
    old, new = (cache / "01" / f"{'01' * 32}.json.corrupt-{n}" for n in (1, 2))
    for path, days in ((old, 9), (new, 1)):
        path.write_text("x")
        aged(path, days)
    assert command("prune", "--set-aside", "--older-than", "2d")[1].splitlines()[-1] == "removed 1 file, 1 byte"
    assert (old.exists(), new.exists(), left()) == (False, True, ["01"])


def test_what_has_no_end_or_is_no_cache_is_refused_in_one_line(cache: Path, tmp_path: Path, command: Command) -> None:
    status, _, err = command("import", "/dev/zero")
    assert (status, err) == (1, "cannot read /dev/zero: it is a device, not a file or a pipe\n")
    blocked = tmp_path / "blocked"
    blocked.write_text("mine")
    for arguments in (("import", os.devnull), ("merge", cache)):
        status, out, err = command(*arguments, "--cache", blocked)
        assert (status, out) == (2, "")
        assert err.endswith(f"error: {str(blocked)!r} is not a directory: name a cache by --cache\n")
    status, _, err = command("prune", "--size", "9" * 400)
    assert status == 2
    assert "is larger than any cache" in err
    status, _, err = command("export", tmp_path / "no\x1b[2J" / "trials.jsonl")
    assert status == 2
    assert "no\\x1b[2J/trials.jsonl: No such file" in err
    assert len(list(cache.glob("??/*.json"))) == 3
