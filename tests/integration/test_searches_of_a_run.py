"""Searches by their names, those with a language model against a server on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

KERNELS = """
@tunable(space={"x": integer(0, 99), "block": choice(1, 2, 4)})
def kernel():
    return lambda x, block: spin(MS * (1 + abs(x - 70) / 10 + (5 - block)))

@tunable(space={"x": integer(0, 99), "block": choice(1, 2, 4)})
def other():
    return lambda x, block: spin(MS * (1 + abs(x - 70) / 10 + (5 - block)))

def test_kernel(kernel): log("x", kernel.config["x"])
def test_other(other): pass
"""
KEY = "sk-never-to-be-seen-0123456789"
REPLY = '{"configs": [{"x": 70, "block": 4}, {"x": 71, "block": 4}, {"x": "many", "block": 4}]}'


class Server(ThreadingHTTPServer):
    """Answers every question with ``status`` and REPLY."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 200
        self.received: list[dict[str, Any]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.received.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        message = {"type": "message", "content": [{"type": "output_text", "text": REPLY}]}
        answer = json.dumps({"status": "completed", "output": [message]}).encode()
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, suite: Suite) -> Iterator[Server]:  # noqa: ARG001 - it clears first
    with Server() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("KERNELTUNE_LLM_PROVIDER", "openai")
        monkeypatch.setenv("KERNELTUNE_LLM_API_BASE", server.address)
        monkeypatch.setenv("KERNELTUNE_LLM_API_KEY", KEY)
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["RandomSearch", "LFBOTreeSearch"])
def test_a_search_finds_a_good_config(suite: Suite, name: str) -> None:
    suite.write("test_it.py", KERNELS)
    run = suite.run(f"--autotune={name}", "--autotune-configs=12", "test_it.py::test_kernel")
    assert run.outcomes == {"passed": 1}
    kernel = run.kernels["kernel"]
    assert kernel["search"]["algorithm"] == name
    assert kernel["search"]["attempts"] == 12
    tried = {trial["latency_ms"] for trial in kernel["trials"]}
    assert kernel["latency_ms"] < 2 * min(tried)
    assert kernel["latency_ms"] < max(tried) / 2


@pytest.mark.parametrize("name", ["LLMGuidedSearch", "LLMSeededLFBOTreeSearch"])
def test_without_a_key_the_search_goes_on_and_says_what_to_set(suite: Suite, name: str) -> None:
    suite.write("test_it.py", KERNELS)
    run = suite.run(f"--autotune={name}", "--autotune-configs=3")
    assert run.outcomes == {"passed": 2}
    assert run.ret == 0
    said = [line for line in run.out.splitlines() if "no language model is set up" in line]
    assert len(said) == 1
    assert "OPENAI_API_KEY" in said[0]
    assert "KERNELTUNE_LLM_API_KEY" in said[0]
    assert "(2 kernels)" in said[0]
    assert run.kernels["other"]["search"]["attempts"] == 3


def test_a_model_is_asked_and_its_configs_are_measured(suite: Suite, server: Server) -> None:
    suite.write("test_it.py", KERNELS)
    run = suite.run("--autotune=LLMGuidedSearch", "-vv", "test_it.py::test_kernel")
    assert run.outcomes == {"passed": 1}
    kernel = run.kernels["kernel"]
    assert len(server.received) == 1
    assert "def kernel" in json.dumps(server.received) or "spin" in json.dumps(server.received)
    assert kernel["config"] in ({"x": 70, "block": 4}, {"x": 71, "block": 4})
    proposed = [trial["config"] for trial in kernel["trials"] if trial["stage"] == "language model"]
    assert proposed == [{"x": 70, "block": 4}, {"x": 71, "block": 4}]
    assert "3 proposed, 2 valid, 2 new" in json.dumps(kernel["search"]["stages"])
    assert KEY not in run.out + run.err
    written = [p.read_text() for p in suite.root.rglob("*") if p.is_file()]
    assert not any(KEY in text for text in written)


def test_a_server_that_refuses_is_one_line(suite: Suite, server: Server) -> None:
    server.status = 401
    suite.write("test_it.py", KERNELS)
    run = suite.run("--autotune=LLMGuidedSearch", "test_it.py::test_kernel")
    assert run.outcomes == {"passed": 1}
    said = [line for line in run.out.splitlines() if line.startswith("language model skipped: ")]
    assert len(said) == 1
    assert "401" in said[0]
    assert KEY not in run.out
    assert run.kernels["kernel"]["search"]["attempts"] > 1


def test_source_stays_here_where_that_is_wanted(suite: Suite, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELTUNE_LLM_SEND_SOURCE", "0")
    suite.write("test_it.py", KERNELS)
    run = suite.run("--autotune=LLMGuidedSearch", "test_it.py::test_kernel")
    assert run.outcomes == {"passed": 1}
    assert len(server.received) == 1
    assert "abs(x - 70)" not in json.dumps(server.received)


def test_a_broken_setting_of_the_model_is_a_usage_error_only_where_searching(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.write("test_it.py", KERNELS)
    monkeypatch.setenv("KERNELTUNE_LLM_REQUEST_TIMEOUT_S", "soon")
    assert suite.run("test_it.py::test_kernel").ret == 0
    run = suite.run("--autotune=LLMGuidedSearch")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: KERNELTUNE_LLM_REQUEST_TIMEOUT_S: " in run.err
    assert "soon" not in run.err
