"""An endpoint on this machine that answers by a script, and notes what it was asked."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from conf.knobs.alignment import Compare, Judge
from conf.knobs.running import Run
from conf.schema import Config
from moe.tasks.task import Sample
from rlhf.judges.opinions import Asked

_FENCED = re.compile(r"<(?:answer|回答) ([A-Z]) ([0-9a-f]{8})>\n(.*?)\n</(?:answer|回答) \1 \2>", re.DOTALL)


@dataclass(frozen=True)
class Said:
    """An answer of the server."""

    text: str = ""  # of a chat completion, where there is no body
    status: int = 200
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    after: float = 0.0  # seconds
    finish: str = "stop"
    drips: float = 0.0  # seconds between two bytes of the body


Script = Callable[[str, int], Said]  # (prompt, how often it has come, from 1)


@dataclass
class Server:
    url: str
    prompts: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    began: list[float] = field(default_factory=list)  # seconds
    most: int = 0  # at once
    now: int = 0

    def times(self, prompt: str) -> int:
        return self.prompts.count(prompt)


@contextmanager
def serving(script: Script, port: int = 0) -> Iterator[Server]:
    """A server on `port`, or a free one, until the block ends."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = asked["messages"][-1]["content"]
            with lock:
                server.prompts.append(prompt)
                server.bodies.append(asked)
                server.keys.append(self.headers.get("Authorization"))
                server.began.append(time.monotonic())
                times = server.times(prompt)
                server.now += 1
                server.most = max(server.most, server.now)
            said = script(prompt, times)
            time.sleep(said.after)
            body = said.body if said.body is not None else completion(said)
            with lock:  # before it is sent: who has it may ask on at once
                server.now -= 1
            with suppress(OSError):  # who asked may be gone
                self._send(said, body.encode())

        def _send(self, said: Said, body: bytes) -> None:
            self.send_response(said.status)
            for name, value in {"Content-Length": str(len(body)), **said.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for at in range(0, len(body), 1 if said.drips else len(body)):
                self.wfile.write(body[at : at + 1] if said.drips else body)
                self.wfile.flush()
                time.sleep(said.drips)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def completion(said: Said) -> str:
    message = {"role": "assistant", "content": said.text}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": said.finish}]})


def shown(prompt: str) -> dict[str, str]:
    """{letter: answer} of what a prompt asks about."""
    return {letter: text for letter, _, text in _FENCED.findall(prompt)}


def by_length(prompt: str, times: int = 1) -> Said:
    """A judge for whom the longer answer is the better one, whatever is asked."""
    lengths = {letter: len(text) for letter, text in shown(prompt).items()}
    if "JSON" in prompt:
        places = {letter: 1 + sum(other > own for other in lengths.values()) for letter, own in lengths.items()}
        return Said(f"By length.\n{json.dumps(places)}")
    a, b = lengths["A"], lengths["B"]
    return Said(f"By length.\n{'T' if a == b else 'A' if a > b else 'B'}")


def config(place: Path, url: str, **judge: Any) -> Config:
    """Of a run in `place` whose judge is asked at `url`, one question at a time."""
    knobs: dict[str, Any] = {"concurrency": 1, "timeout": 20.0, "retries": 2, "compare": Compare.pairwise} | judge
    return Config(run=Run(dir=str(place), name="r", seed=5), judge=Judge(url=url, model="m", **knobs))


def asked(*texts: str, query: str = "Say it.") -> Asked:
    sample = Sample(id=f"q-{query}", task="t", messages=[{"role": "user", "content": query}])
    return Asked(sample, [{"text": text, "finished": True} for text in texts])
