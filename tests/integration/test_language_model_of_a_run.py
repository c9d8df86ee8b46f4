"""What a run does with a language model, against a server on loopback: account, records, caches, fallbacks, secrets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

KERNEL = """
@tunable(space={"x": integer(0, 99), "block": choice(1, 2, 4)})
def kernel():
    return lambda x, block: spin(MS / 4 * (1 + abs(x - 70) / 10 + (5 - block)))

def test_kernel(kernel): pass
"""
KEY, TEAM = "sk-never-to-be-seen-0123456789", "team-token-never-to-be-seen"
REPLY = '{"configs": [{"x": 70, "block": 4}, {"x": 71, "block": 4}, {"x": "many", "block": 4}]}'
POOR_REPLY = '{"configs": [{"x": 3}, {"x": "a"}, {"x": "b"}, {"y": 1}]}'
GUIDED = "--autotune=LLMGuidedSearch"


class Server(ThreadingHTTPServer):
    """Speaks Chat Completions: streams ``reply``, or answers ``status`` with what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.reply = 200, REPLY
        self.received: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.received.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.server.headers.append({k.lower(): v for k, v in self.headers.items()})
        if self.server.status != 200:
            self._send(json.dumps({"error": {"message": f"no, {self.headers['authorization']}"}}), "application/json")
            return
        text = self.server.reply
        chunks: list[dict[str, Any]] = [
            {"choices": [{"delta": {"content": piece}}]} for piece in (text[:30], text[30:])
        ]
        chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        chunks.append({"choices": [], "usage": {"prompt_tokens": 1200, "completion_tokens": 34}})
        lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        self._send(f"{lines}data: [DONE]\n\n", "text/event-stream")

    def _send(self, text: str, kind: str) -> None:
        self.send_response(self.server.status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, suite: Suite) -> Iterator[Server]:
    suite.write("test_it.py", KERNEL)
    with Server() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        for name, value in (
            ("PROVIDER", "chat"),
            ("MODEL", "local-model"),
            ("API_BASE", server.address),
            ("API_KEY", KEY),
            ("EXTRA_HEADERS", f"x-team: {TEAM}"),
        ):
            monkeypatch.setenv(f"KERNELTUNE_LLM_{name}", value)
        yield server
        server.shutdown()
        thread.join()


def skipped(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("language model skipped: ")]


def test_the_account_is_in_the_summary_and_in_the_report(suite: Suite, server: Server) -> None:
    run = suite.run(GUIDED)
    assert run.outcomes == {"passed": 1}
    model = run.kernels["kernel"]["search"]["model"]
    assert {key: model[key] for key in ("label", "calls", "cached", "failed", "tokens_in", "tokens_out")} == {
        "label": "chat local-model",
        "calls": 1,
        "cached": 0,
        "failed": 0,
        "tokens_in": 1200,
        "tokens_out": 34,
    }
    assert (model["proposed"], model["valid"], model["new"]) == (3, 2, 2)
    assert model["found_winner"] is True
    assert model["among_fastest"] == 2
    assert server.headers[0]["x-team"] == TEAM
    (said,) = [line for line in run.out.splitlines() if line.startswith("kernel: chat local-model: ")]
    assert "1 call, 1,200 tokens in, 34 tokens out" in said
    assert "3 configs proposed, 2 valid, 2 new" in said
    assert said.endswith("fastest, the tuned config is its own")


def test_a_reply_that_is_mostly_unusable_is_a_warning(suite: Suite, server: Server) -> None:
    server.reply = POOR_REPLY
    run = suite.run(GUIDED)
    assert "3 of the 4 configs it proposed could not be used" in run.out


def test_a_second_run_asks_nothing(suite: Suite, server: Server) -> None:
    first = suite.run(GUIDED)
    server.status = 500
    again = suite.run(GUIDED, "--autotune-force")
    assert len(server.received) == 1
    model = again.kernels["kernel"]["search"]["model"]
    assert (model["calls"], model["cached"], model["tokens_in"], model["new"]) == (1, 1, None, 2)
    assert first.outcomes == again.outcomes == {"passed": 1}


def test_a_model_that_fails_for_every_kernel_is_not_asked_for_all_of_them(suite: Suite, server: Server) -> None:
    server.status = 401
    names = "abcde"
    suite.write("test_it.py", "".join(KERNEL.replace("kernel", name) for name in names))
    run = suite.run(GUIDED, "--autotune-configs=3")
    assert run.outcomes == {"passed": len(names)}
    assert len(server.received) == 2
    assert any("not asked again after it failed for 2 kernels" in line for line in skipped(run.out))


def test_of_few_configs_most_are_the_models(suite: Suite, server: Server) -> None:
    server.reply = json.dumps({"configs": [{"x": x, "block": 4} for x in range(60, 75)]})
    run = suite.run(GUIDED, "--autotune-configs=8")
    stages = [trial.get("stage") for trial in run.kernels["kernel"]["trials"]]
    assert len(stages) == 8
    assert stages.count("language model") >= 5


@pytest.mark.parametrize("reply", ['{"configs": []}', "I am sorry, I cannot do that."])
def test_a_reply_of_no_use_is_said_and_counts_as_none(
    suite: Suite, server: Server, monkeypatch: pytest.MonkeyPatch, reply: str
) -> None:
    monkeypatch.setenv("KERNELTUNE_LLM_FALLBACK", "random")
    server.reply = reply
    run = suite.run(GUIDED)
    assert "language model: nothing in its reply could be used; random configs took its place" in run.out
    assert "no configs proposed" in run.out
    server.reply = REPLY
    again = suite.run(GUIDED)
    assert "language model not asked: the cache holds" in again.out
    forced = suite.run(GUIDED, "--autotune-force")
    assert forced.kernels["kernel"]["search"]["model"]["new"] == 2


def test_the_reply_cache_can_be_off(suite: Suite, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELTUNE_LLM_REPLY_CACHE", "off")
    for _ in range(2):
        suite.run(GUIDED, "--autotune-force")
    assert len(server.received) == 2


def test_what_is_recorded_replays_without_server_and_key(
    suite: Suite, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = suite.root / "made" / "exchanges.json"
    monkeypatch.setenv("KERNELTUNE_LLM_RECORD", str(file))
    suite.run(GUIDED)
    for name in ("RECORD", "PROVIDER", "MODEL", "API_BASE", "API_KEY", "EXTRA_HEADERS"):
        monkeypatch.delenv(f"KERNELTUNE_LLM_{name}")
    monkeypatch.setenv("KERNELTUNE_LLM_REPLIES", str(file))
    run = suite.run(GUIDED, "--autotune-force")
    assert run.outcomes == {"passed": 1}
    assert len(server.received) == 1
    assert run.kernels["kernel"]["search"]["model"]["new"] == 2
    assert not skipped(run.out)


@pytest.mark.parametrize(
    ("fallback", "words", "stage"),
    [
        ("seeds", "the search went on without it", None),
        ("random", "random configs took its place", "fallback"),
        ("pattern", "a pattern search took its place", "fallback"),
    ],
)
def test_a_fallback_takes_the_place_of_a_model_that_fails(
    suite: Suite, server: Server, monkeypatch: pytest.MonkeyPatch, fallback: str, words: str, stage: str | None
) -> None:
    server.status = 401
    monkeypatch.setenv("KERNELTUNE_LLM_FALLBACK", fallback)
    run = suite.run(GUIDED)
    assert run.outcomes == {"passed": 1}
    (said,) = skipped(run.out)
    assert "401" in said
    assert words in said
    stages = {trial.get("stage") for trial in run.kernels["kernel"]["trials"]}
    assert "language model" not in stages
    assert stage is None or stage in stages
    assert run.kernels["kernel"]["search"]["model"]["failed"] == 1


@pytest.mark.parametrize("key", [KEY, ""])
def test_a_model_that_fails_fails_the_test_where_that_is_wanted(
    suite: Suite, server: Server, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    server.status = 401
    suite.write("pytest.ini", "[pytest]\nkerneltune_llm_fallback = error\n")
    if not key:
        for name in ("PROVIDER", "MODEL", "API_BASE", "API_KEY"):
            monkeypatch.delenv(f"KERNELTUNE_LLM_{name}")
    run = suite.run(GUIDED)
    assert run.outcomes == {"failed": 1}
    assert run.verdicts == {"kernel": "failed"}
    assert "language model" in run.kernels["kernel"]["verdict"]["summary"]
    assert ("401" if key else "no language model is set up") in run.out
    search = run.kernels["kernel"]["search"]
    if key:
        assert (search["model"]["calls"], search["model"]["failed"]) == (1, 1)
        assert search["attempts"] == len(run.kernels["kernel"]["trials"]) > 1


def test_a_cached_result_of_a_search_without_the_model_says_so(suite: Suite, server: Server) -> None:
    server.status = 401
    suite.run(GUIDED)
    server.status = 200
    run = suite.run(GUIDED)
    assert "cache hit" in run.out
    assert "language model not asked: the cache holds this kernel's result of a search without one" in run.out
    forced = suite.run(GUIDED, "--autotune-force")
    again = suite.run(GUIDED)
    assert "not asked" not in forced.out + again.out


def test_a_target_latency_ends_the_search(suite: Suite, server: Server) -> None:
    run = suite.run(GUIDED, "--autotune-target=10s")
    assert run.kernels["kernel"]["search"]["stopped"].startswith("target latency")
    assert "language model" not in {trial.get("stage") for trial in run.kernels["kernel"]["trials"]}
    assert "cache hit" in suite.run(GUIDED, "--autotune-target=10s").out
    whole = suite.run(GUIDED)
    assert "cache hit" not in whole.out
    assert whole.kernels["kernel"]["search"]["model"]["new"] == 2
    assert server.received


def test_secrets_are_written_nowhere(suite: Suite, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELTUNE_LLM_RECORD", str(suite.root / "exchanges.json"))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(suite.root / "summary.md"))
    suite.write("pytest.ini", "[pytest]\nkerneltune_llm_fallback = error\n")
    outputs = []
    for server.status in (200, 401):
        run = suite.run(GUIDED, "--autotune-force", "-vv", "--showlocals", "--tb=long", "-ra", "--junitxml=junit.xml")
        monkeypatch.setenv("KERNELTUNE_LLM_REPLY_CACHE", "off")
        outputs.append(run.out + run.err)
    assert "refused the key" in outputs[1]
    written = [p.read_text(errors="replace") for p in suite.root.rglob("*") if p.is_file()]
    assert len(written) > 5
    for secret in (KEY, TEAM):
        assert not any(secret in text for text in [*outputs, *written])
