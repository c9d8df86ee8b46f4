"""Records a language model's replies to the prompts of the examples, for ``examples/llm_replies.json``.

1. ``python -m tests.benchmarks.record_replies prompts FOLDER -- examples`` runs pytest on the examples against a
   loopback server that speaks Anthropic Messages and proposes nothing; it leaves each kernel's prompt in FOLDER, as
   text to hand to a model and as messages. (The Triton kernels' prompts need a machine with a GPU.)
2. Put the model's whole answer to ``FOLDER/KERNEL.txt`` into ``FOLDER/KERNEL.reply``.
3. ``python -m tests.benchmarks.record_replies add FOLDER examples/llm_replies.json "MODEL"`` adds the exchanges.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pytest_kerneltune.llm.recorded import request_id
from pytest_kerneltune.llm.recording import add_exchange
from pytest_kerneltune.search import Message
from pytest_kerneltune.search.dialogue import kernel_name

_NOTHING = b'{"content": [{"type": "text", "text": "{\\"configs\\": []}"}], "stop_reason": "end_turn"}'


class Recorder(BaseHTTPRequestHandler):
    """Keeps what was asked, and proposes nothing: the search goes on without, at once."""

    folder = Path()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        messages = [
            Message("system", _text(body["system"])),
            *(Message(m["role"], _text(m["content"])) for m in body["messages"]),
        ]
        name = f"{kernel_name(messages)}-{request_id(messages)[:8]}"  # two kernels may have one name
        plain = [{"role": m.role, "content": m.content} for m in messages]
        (self.folder / f"{name}.json").write_text(json.dumps(plain, indent=1))
        (self.folder / f"{name}.txt").write_text("\n\n".join(m.content for m in messages))
        self.send_response(200)
        self.send_header("content-length", str(len(_NOTHING)))
        self.end_headers()
        self.wfile.write(_NOTHING)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def prompts(folder: Path, arguments: list[str]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    Recorder.folder = folder
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    model = {"PROVIDER": "anthropic", "API_BASE": f"http://127.0.0.1:{server.server_port}", "API_KEY": "none"}
    env = os.environ | {f"KERNELTUNE_LLM_{name}": value for name, value in model.items()} | {"NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "pytest", "--autotune=LLMGuidedSearch", "--autotune-configs=2"]
    done = subprocess.run([*command, "--autotune-cache=off", *arguments], env=env, check=False)
    server.shutdown()
    return done.returncode


def add(folder: Path, replies: Path, model: str) -> int:
    for reply in sorted(folder.glob("*.reply")):
        messages = [Message(**m) for m in json.loads(reply.with_suffix(".json").read_text())]
        add_exchange(replies, messages, reply.read_text(), model, kernel_name(messages))
        print(f"{reply.stem}: added")  # noqa: T201
    return 0


if __name__ == "__main__":
    _, verb, where, *rest = sys.argv
    sys.exit(prompts(Path(where), rest[1:]) if verb == "prompts" else add(Path(where), Path(rest[0]), rest[1]))
