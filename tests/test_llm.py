"""Choosing a model, submitting to it, and the account of calls."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from pytest_kerneltune.errors import LLMError, LLMUnavailable
from pytest_kerneltune.llm import Account, Call, LanguageModel, LLMOptions, account, connect
from pytest_kerneltune.llm.answers import ENDLESS
from pytest_kerneltune.llm.providers import Answer
from pytest_kerneltune.llm.source import Write, ignore
from pytest_kerneltune.search import Message

HELLO = [Message("user", "Hello.")]
SECRET = "sk-very-secret"


class Source:
    """Answers with what it was given, word by word; an exception is raised, an event waited for."""

    def __init__(self, outcome: Answer | Exception | threading.Event) -> None:
        self.outcome = outcome
        self.deadlines: list[float | None] = []
        self.closed = False

    def ask(self, messages: Sequence[Message], deadline: float | None = None, write: Write = ignore) -> Answer:
        self.deadlines.append(deadline)
        if isinstance(self.outcome, threading.Event):
            write("begun")
            self.outcome.wait(10)
            return Answer("too late")
        if isinstance(self.outcome, Exception):
            raise self.outcome
        write(self.outcome.text)
        return self.outcome

    def close(self) -> None:
        self.closed = True


# Submitting


def test_an_answer_comes_through_the_future_and_into_the_account() -> None:
    source = Source(Answer("text", 70, 30, "cut off (length)"))
    model = LanguageModel("m", source, limit_s=30)
    assert model.submit(HELLO).result(5) == "text"
    (call,) = model.calls
    assert (call.tokens_in, call.tokens_out, call.outcome) == (70, 30, "cut off (length)")
    assert 0 <= call.seconds < 5
    assert not call.cached
    model.close()
    assert source.closed


def test_an_error_comes_through_the_future_and_into_the_account() -> None:
    model = LanguageModel("m", Source(LLMError("no credit")))
    with pytest.raises(LLMError, match="no credit"):
        model.submit(HELLO).result(5)
    assert [c.outcome for c in model.calls] == ["no credit"]
    unavailable = LanguageModel("m", Source(LLMUnavailable("no key")))
    with pytest.raises(LLMUnavailable, match="no key"):
        unavailable.submit(HELLO).result(5)


def test_an_unexpected_exception_fails_the_request_without_its_text() -> None:
    model = LanguageModel("m", Source(ValueError(f"bad {SECRET}")))
    with pytest.raises(LLMError) as failure:
        model.submit(HELLO).result(5)
    assert str(failure.value) == "m failed with ValueError"
    assert failure.value.__context__ is None


def test_pieces_can_be_read_before_the_reply_has_ended() -> None:
    release = threading.Event()
    model = LanguageModel("m", Source(release))
    reply = model.submit(HELLO)
    assert reply.read(0) == "begun"
    assert not reply.done()
    release.set()
    assert reply.result(5) == "too late"


class Endless(Source):
    """Writes for as long as more is wanted."""

    def ask(self, messages: Sequence[Message], deadline: float | None = None, write: Write = ignore) -> Answer:
        pieces = 1
        while write("and so on ") is not False:
            pieces += 1
        return Answer("and so on " * pieces, remark=ENDLESS)


def test_who_reads_an_endless_reply_can_end_it() -> None:
    model = LanguageModel("m", Endless(Answer("")))
    reply = model.submit(HELLO)
    assert reply.read(100).startswith("and so on")
    reply.enough()
    assert len(reply.result(20)) > 100
    assert [c.outcome for c in model.calls] == ["ok; the rest of an endless reply was not read"]


def test_a_request_that_hangs_fails_at_the_limit_and_blocks_nothing() -> None:
    release, before = threading.Event(), set(threading.enumerate())
    model = LanguageModel("m", Source(release), limit_s=-0.9)
    future = model.submit(HELLO)
    assert all(t.daemon for t in set(threading.enumerate()) - before)
    with pytest.raises(LLMError, match="m gave no reply within"):
        future.result(5)
    release.set()
    assert [c.outcome for c in model.calls] == [
        "m gave no reply within -0.9 s; KERNELTUNE_LLM_REQUEST_TIMEOUT_S sets the limit"
    ]


def test_a_port_hands_its_end_on_and_enforces_it(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    source = Source(release)
    model = LanguageModel("m", source, limit_s=600)

    class Passing(threading.Timer):
        """Its time is over as soon as the source has been asked."""

        def run(self) -> None:
            while not source.deadlines:
                time.sleep(0.01)
            self.function(*self.args, **self.kwargs)

    until = time.monotonic() + 400
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Timer", Passing)
        future = model.port(until)(HELLO)
    with pytest.raises(LLMError, match=r"m gave no reply within (1[5-9]\d|200) s; --autotune-budget sets the limit"):
        future.result(60)
    with pytest.raises(LLMError, match="m was not asked: no time is left for a reply; --autotune-budget sets the"):
        model.port(time.monotonic() - 0.1)(HELLO).result(0)
    (deadline,) = source.deadlines
    assert deadline is not None
    assert 150 < until - deadline <= 200, "half of the time is for what follows the request"
    release.set()
    assert model.port(float("inf"))(HELLO).result(5) == "too late"
    assert model.port(None)(HELLO).result(5) == "too late"
    assert [c.answered for c in model.calls] == [False, False, True, True]


def test_each_port_has_an_account_of_its_own() -> None:
    release = threading.Event()
    model = LanguageModel("m", Source(release))
    first, second = model.port(), model.port(time.monotonic() - 1)
    reply = first(HELLO)
    with pytest.raises(LLMError, match="no time is left"):
        second(HELLO).result(0)
    assert (first.pending, second.pending, model.pending) == (1, 0, 1)
    assert (first.calls, second.calls) == ([], model.calls)
    release.set()
    reply.result(5)
    assert [*second.calls, *first.calls] == model.calls


def test_requests_run_side_by_side() -> None:
    release = threading.Event()
    model = LanguageModel("m", Source(release))
    futures = [model.submit(HELLO) for _ in range(3)]
    assert not any(f.done() for f in futures)
    assert model.pending == 3
    release.set()
    assert [f.result(5) for f in futures] == ["too late"] * 3
    assert len(model.calls) == 3
    assert model.pending == 0


def test_closing_ends_what_is_under_way_as_unanswered() -> None:
    release = threading.Event()
    model = LanguageModel("m", Source(release), limit_s=600)
    future = model.submit(HELLO)
    assert future.read(0) == "begun"
    model.close()
    model.close()
    release.set()
    with pytest.raises(LLMError, match="m had not replied when the run ended"):
        future.result(0)
    with pytest.raises(LLMError, match="m was not asked: the run has ended"):
        model.submit(HELLO).result(0)
    assert model.pending == 0
    assert [c.answered for c in model.calls] == [False, False]


def test_who_is_told_of_a_reply_may_ask_at_once() -> None:
    model = LanguageModel("m", Source(Answer("text")))
    answers: Queue[str] = Queue()
    model.submit(HELLO).add_done_callback(lambda _: answers.put(model.submit(HELLO).result(5)))
    assert answers.get(timeout=5) == "text"


def test_an_answer_is_recorded_before_it_is_handed_on() -> None:
    seen: list[tuple[Sequence[Message], Answer]] = []

    def record(messages: Sequence[Message], answer: Answer) -> Answer:
        seen.append((messages, answer))
        if len(seen) > 1:
            raise ValueError(SECRET)
        return replace(answer, remark="recorded")

    model = LanguageModel("m", Source(Answer("text")), record=record)
    assert [model.submit(HELLO).result(5) for _ in range(2)] == ["text", "text"]
    assert seen == [(HELLO, Answer("text"))] * 2
    assert [c.outcome for c in model.calls] == ["recorded", "ok; not recorded (ValueError)"]


def test_the_account_sums_what_is_known() -> None:
    calls = [
        Call(1.0, 5, None, "ok", True),
        Call(0.5, 7, None, "ok", True),
        Call(2.0, None, None, "no credit", False),
        Call(0.0, None, None, "from the reply cache", True, cached=True),
    ]
    assert account(calls) == Account(4, 3, 1, 12, None, 3.5)
    assert account([]) == Account(0, 0, 0, None, None, 0)


FORGETFUL = """
import sys
from pytest_kerneltune.llm import LLMOptions, connect
from pytest_kerneltune.search import Message

model = connect(LLMOptions(provider="chat", model="m", api_base=sys.argv[1]))
model.submit([Message("user", "Hello.")])
print(model.pending)
"""


def test_an_abandoned_request_does_not_hold_up_the_end_of_the_process(server: Server) -> None:
    server.hold = threading.Event()
    command = [sys.executable, "-c", FORGETFUL, server.base]
    # Far less than the request's time limit.
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (run.stdout, run.stderr) == ("1\n", "")
    server.hold.set()


# Choosing


KEYS = {"openai": "sk-o", "anthropic": "sk-ant-a"}


@pytest.mark.parametrize(
    ("options", "label"),
    [
        (LLMOptions(provider_keys=KEYS), "openai gpt-5.5"),
        (LLMOptions(provider_keys={"anthropic": "k"}), "anthropic claude-opus-5-5"),
        (LLMOptions(provider="anthropic", provider_keys=KEYS), "anthropic claude-opus-5-5"),
        (LLMOptions(model="claude-haiku-4-5", provider_keys=KEYS), "anthropic claude-haiku-4-5"),
        (LLMOptions(model="anthropic/claude-x", provider_keys=KEYS), "anthropic anthropic/claude-x"),
        (LLMOptions(model="o4-mini", provider_keys=KEYS), "openai o4-mini"),
        (LLMOptions(model="gpt-6", api_key="k"), "openai gpt-6"),
        (LLMOptions(api_key="sk-ant-api03-x", provider_keys={"openai": "k"}), "anthropic claude-opus-5-5"),
        (LLMOptions(api_key="sk-proj-x"), "openai gpt-5.5"),
        (LLMOptions(api_key="anything"), "openai gpt-5.5"),
        (LLMOptions(provider="Anthropic", provider_keys=KEYS), "anthropic claude-opus-5-5"),
        (LLMOptions(model="qwen", api_base="http://127.0.0.1:1"), "chat qwen"),
        (LLMOptions(model="m", api_key="k", api_base="http://gpu", allow_http=("gpu",)), "chat m"),
        (LLMOptions(model="qwen", api_key="EMPTY", api_base="http://127.0.0.1:1"), "chat qwen"),
        (LLMOptions(model="qwen", provider_bases={"ollama": "127.0.0.1:1"}), "ollama qwen"),
        (LLMOptions(model="qwen3:4b"), "ollama qwen3:4b"),
        (LLMOptions(provider="ollama", model="qwen"), "ollama qwen"),
        (LLMOptions(model="qwen", provider_keys={"openrouter": "k"}), "openrouter qwen"),
        (LLMOptions(model="anthropic/claude-x", api_key="sk-or-v1-x"), "openrouter anthropic/claude-x"),
        (LLMOptions(model="o4-mini", provider_keys={"openai": "k"}, provider_bases={"ollama": "h"}), "openai o4-mini"),
        (LLMOptions(provider_bases={"anthropic": "http://127.0.0.1:1"}), "anthropic claude-opus-5-5"),
    ],
)
def test_the_provider_follows_from_what_is_set(options: LLMOptions, label: str) -> None:
    model = connect(options)
    assert model.label == label
    model.close()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            LLMOptions(),
            "set OPENAI_API_KEY, ANTHROPIC_API_KEY, OPENROUTER_API_KEY or KERNELTUNE_LLM_API_KEY, or KERNEL",
        ),
        (LLMOptions(provider="ollama"), "no model is named for ollama: set KERNELTUNE_LLM_MODEL"),
        (LLMOptions(api_base="http://127.0.0.1:1"), "no model is named for chat: set KERNELTUNE_LLM_MODEL"),
        (LLMOptions(provider="chat", model="m"), "set KERNELTUNE_LLM_API_BASE"),
        (LLMOptions(provider="openrouter", model="m"), "set OPENROUTER_API_KEY or KERNELTUNE_LLM_API_KEY"),
        (LLMOptions(api_key="k", record="/proc/nowhere/x.json"), "/proc/nowhere/x.json (KERNELTUNE_LLM_RECORD)"),
        (LLMOptions(api_key="k", extra_headers=f"no header {SECRET}"), "KERNELTUNE_LLM_EXTRA_HEADERS"),
        (
            LLMOptions(model="claude-opus-5-5", provider_keys={"openai": "k"}),
            "no key for anthropic: set ANTHROPIC_API_KEY",
        ),
        (LLMOptions(provider="openai"), "set OPENAI_API_KEY or KERNELTUNE_LLM_API_KEY"),
        (LLMOptions(provider="nobody"), "unknown provider 'nobody': set KERNELTUNE_LLM_PROVIDER to one of openai,"),
        (LLMOptions(provider="recorded"), "KERNELTUNE_LLM_REPLIES"),
        (LLMOptions(provider=" Recorded", replies="/nowhere", record="/nowhere"), "KERNELTUNE_LLM_REPLIES"),
        (LLMOptions(api_key=f"{SECRET}\u00e9"), "non-ASCII"),
        (LLMOptions(api_key=SECRET, api_base="http://example.com"), "unencrypted to example.com"),
        (
            LLMOptions(provider="chat", model="m", api_base="http://example.com", extra_headers=f"X: {SECRET}"),
            "name example.com in KERNELTUNE_LLM_ALLOW_HTTP",
        ),
        (LLMOptions(api_key="k", ca_bundle="/nowhere/ca.pem"), "KERNELTUNE_LLM_CA_BUNDLE: the file /nowhere/ca.pem"),
    ],
)
def test_what_is_missing_is_said_in_one_line(options: LLMOptions, complaint: str) -> None:
    with pytest.raises(LLMUnavailable) as failure:
        connect(options)
    assert complaint in str(failure.value)
    assert "\n" not in str(failure.value)
    assert SECRET not in str(failure.value)


def test_options_come_from_settings_and_variables() -> None:
    given = {"model": "claude-x", "request_timeout_s": 7.0, "max_rounds": 3, "send_source": False}
    given |= {"reply_cache": True, "stream": False, "client_key_password": SECRET, "extra_headers": f"X: {SECRET}"}
    variables = {"ANTHROPIC_API_KEY": SECRET, "OLLAMA_HOST": "h:1", "OTHER": "x"}
    options = LLMOptions.from_settings(given, variables)
    assert (options.model, options.request_timeout_s, options.stream) == ("claude-x", 7.0, False)
    assert options.provider_keys == {"anthropic": SECRET}
    assert options.provider_bases == {"ollama": "h:1"}
    assert options.reply_cache == ""
    assert LLMOptions.from_settings(given, variables, "kept").reply_cache == "kept"
    assert SECRET not in repr(options)


def test_nothing_shows_the_key() -> None:
    model = connect(LLMOptions(api_key=SECRET))
    assert SECRET not in repr(model) + repr(vars(model)) + repr(model.port(1.0))
    with pytest.raises(TypeError):
        pickle.dumps(model)
    model.close()


# Over HTTP


class Server(ThreadingHTTPServer):
    """Answers in the formats of Chat Completions and of Ollama; what it was asked is in ``received``.

    Where ``hold`` is set, it waits for that before it answers, in a stream after each piece. With ``refuse`` it quotes
    the key in its refusal.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.hold: threading.Event | None = None
        self.refuse = False

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up, and failed handshakes, are part of the game."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.received.append((self.path, headers, body))
        if body.get("stream"):
            self.stream(["from", " chat"])
        elif self.server.refuse:
            self.send(401, {"error": {"message": f"bad key {headers.get('authorization')}"}})
        elif self.path == "/api/chat":
            message = {"role": "assistant", "content": "from Ollama"}
            self.send(200, {"message": message, "done": True, "done_reason": "stop"})
        else:
            choice = {"message": {"role": "assistant", "content": "from chat"}, "finish_reason": "stop"}
            self.send(200, {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 2}})

    def wait(self) -> None:
        if self.server.hold is not None:
            self.server.hold.wait(30)

    def stream(self, pieces: list[str]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for piece in pieces:
            choice = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
            self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
            self.wait()
        ending = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        self.wfile.write(f"data: {json.dumps(ending)}\n\ndata: [DONE]\n\n".encode())

    def send(self, status: int, payload: dict[str, Any]) -> None:
        self.wait()
        content = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Silent."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_server_of_ones_own_is_asked_as_the_options_say(server: Server) -> None:
    options = LLMOptions(
        model="qwen",
        api_key=SECRET,
        provider="chat",
        api_base=server.base,
        extra_headers='{"X-Team": "kernels"}',
        temperature=0.5,
        max_output_tokens=77,
        stream=False,
    )
    model = connect(options)
    assert model.submit(HELLO).result(20) == "from chat"
    assert [(c.tokens_in, c.tokens_out, c.outcome) for c in model.calls] == [(9, 2, "ok")]
    model.close()
    ((path, headers, body),) = server.received
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert headers["x-team"] == "kernels"
    assert (body["model"], body["temperature"]) == ("qwen", 0.5)
    assert 77 in body.values()


def test_a_reply_is_read_while_it_is_written(server: Server, tmp_path: Path) -> None:
    server.hold = threading.Event()
    options = LLMOptions(provider="chat", model="m", api_base=server.base, record=tmp_path / "r.json")
    model = connect(replace(options, reply_cache=tmp_path / "cache"))
    reply = model.submit(HELLO)
    assert reply.read(0) == "from"
    assert not reply.done()
    server.hold.set()
    assert reply.result(20) == "from chat"
    assert reply.read(4) == "from chat"
    assert [c.outcome for c in model.calls] == ["ok"]
    assert model.submit(HELLO).result(20) == "from chat"
    model.close()
    assert len(server.received) == 1


def test_ollama_needs_no_key(server: Server) -> None:
    base = server.base.removeprefix("http://")
    model = connect(LLMOptions(model="qwen", provider_bases={"ollama": base}, stream=False))
    assert model.submit(HELLO).result(20) == "from Ollama"
    model.close()
    ((_, headers, body),) = server.received
    assert "authorization" not in headers
    assert body["model"] == "qwen"


def test_a_run_is_recorded_cached_and_replayed(server: Server, tmp_path: Path) -> None:
    file, cache = tmp_path / "replies.json", tmp_path / "cache"
    options = LLMOptions(provider="chat", model="m", api_base=server.base, api_key=SECRET, record=file, stream=False)
    options = replace(options, reply_cache=cache, extra_headers=f"X-Token: {SECRET}")
    for cached in (False, True):
        file.unlink(missing_ok=True)
        model = connect(options)
        assert model.submit(HELLO).result(20) == "from chat"
        assert [c.cached for c in model.calls] == [cached]
        model.close()
        replaying = connect(LLMOptions(replies=file, reply_cache=cache))
        assert replaying.submit(HELLO).result(20) == "from chat"
        assert [(c.tokens_in, c.tokens_out, c.outcome) for c in replaying.calls] == [(None, None, "replayed")]
        replaying.close()
    assert len(server.received) == 1
    other = connect(replace(options, provider="", model="other", api_key="", replies=file))
    assert other.submit(HELLO).result(20) == "from chat"
    other.close()
    assert len(server.received) == 2
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 3
    assert not any(SECRET.encode() in content for content in written)


LEAKS = """
import os
import pytest
from pytest_kerneltune.llm import LLMOptions, connect
from pytest_kerneltune.search import Message


def options(**more):
    more["stream"] = False
    secrets = dict.fromkeys(("api_key", "client_key_password"), os.environ["SECRET"])
    return LLMOptions(provider="chat", model="m", extra_headers="X-Token: " + os.environ["SECRET"], **secrets, **more)


def test_refused():
    connect(options(api_base=os.environ["BASE"])).submit([Message("user", "Hello.")]).result(20)


def test_unencrypted():
    connect(options(api_base="http://192.0.2.1"))


def test_malformed():
    base = os.environ["BASE"]
    connect(LLMOptions(provider="chat", model="m", api_base=base, api_key=os.environ["SECRET"] + chr(233)))


def test_certificate():
    connect(options(api_base=os.environ["BASE"], client_cert=__file__))


def test_headers():
    base = os.environ["BASE"]
    connect(LLMOptions(provider="chat", model="m", api_base=base, extra_headers="no header " + os.environ["SECRET"]))
"""


def test_no_failure_shows_a_secret_to_who_reads_the_test_run(server: Server, tmp_path: Path) -> None:
    server.refuse = True
    (tmp_path / "test_leaks.py").write_text(LEAKS)
    xml = tmp_path / "junit.xml"
    flags = ["-vv", "--showlocals", "--tb=long", "--full-trace", "-p", "no:cacheprovider", f"--junitxml={xml}"]
    environment = {**os.environ, "SECRET": SECRET, "BASE": server.base}
    command = [sys.executable, "-m", "pytest", *flags, "test_leaks.py"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert "5 failed" in run.stdout
    assert run.stdout.count("LLMUnavailable: ") >= 4
    assert "401" in run.stdout
    assert SECRET not in run.stdout + run.stderr + xml.read_text()
