"""A tiny model with a tokenizer, and the real endpoint over it."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn

from conf.knobs import running
from conf.knobs.model import Model
from conf.knobs.text import Tokenizer as Vocabulary
from conf.schema import Config
from moe.decoder import Decoder, new_decoder
from moe.formats import hugging_face as model_folder
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer

LINES = ["床前明月光，疑是地上霜。", "举头望明月，低头思故乡。", "白日依山尽，黄河入海流。", "欲穷千里目，更上一层楼。"]
CONTEXT = 1024


@dataclass(frozen=True)
class Tiny:
    folder: Path
    model: Decoder
    tokenizer: Tokenizer


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A random model whose folder is called `tiny`; its answers are noise, but always the same noise."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    tokenizer = Tokenizer.train(LINES * 4, Vocabulary(vocab_size=512))
    cfg = Model(
        hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, experts=4, top_k=2, expert_size=32,
        context=CONTEXT, init_std=0.5,
    )  # fmt: skip
    model = new_decoder(cfg, tokenizer.padded_size, seed=3).eval()
    # Zero logits for what is no text by itself: a greedy answer is readable and never ends before its bound.
    mute = [*sorted(tokenizer.byte_ids), *range(tokenizer.size, tokenizer.padded_size)]
    mute += [tokenizer.pad, tokenizer.eos, tokenizer.im_start, tokenizer.im_end]
    with torch.no_grad():
        model.lm_head.weight[mute] = 0
    model_folder.save(model, folder, Defaults.of(tokenizer, chat=True))
    return Tiny(folder, model, tokenizer)


@contextmanager
def listening(app: Any, **how: Any) -> Iterator[int]:
    """The port on which an ASGI app listens, without Ray."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", **how))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


def data(event: str) -> Any:
    """What a server-sent event carries."""
    [line] = [line for line in event.split("\n") if line.startswith("data: ")]
    return json.loads(line.removeprefix("data: "))


def until_closed(each: socket.socket, seconds: float = 60.0) -> bytes:
    """What comes until the other side closes; "still open" if it does not."""
    each.settimeout(seconds)
    try:
        return b"".join(iter(lambda: each.recv(4096), b""))
    except TimeoutError:  # a planted bug's test shall be red, not out of time
        return b"still open"


@pytest.fixture(scope="session")
def served_cfg(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Of the real Ray Serve app over `tiny`: 2 slots, 2 waiting."""
    return Config(
        run=running.Run(name="served", dir=str(tmp_path_factory.mktemp("runs"))),
        serve=running.Serve(
            model=str(tiny.folder),
            port=0,
            slots=2,
            queue=2,
            max_new_tokens=100,
            max_body_bytes=20_000,
            body_timeout=5.0,
        ),
        cluster=running.Cluster(threads=1),
    )


@pytest.fixture(scope="session")
def served_address(ray_cluster: None, served_cfg: Config) -> Iterator[str]:
    """The address of that app."""
    from ray import serve

    from serving.serve import start

    address, name = start(served_cfg)
    assert name == "tiny"
    yield address
    serve.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from tests.serving.page.browsers import opened  # which imports this file

    with opened() as found:
        yield found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "feedback.sqlite3"


@pytest.fixture(scope="module")
def address(browser: Any, tiny: Tiny, store: Path) -> Iterator[str]:
    from tests.serving.page.browsers import served

    with served(tiny, store) as found:
        yield found


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """Open, in a browser that has never been here; whatever fails on it fails the test."""
    from tests.serving.page.browsers import until

    context = browser.new_context(locale="en-GB")
    context.set_default_timeout(60_000)
    tab = context.new_page()
    failures: list[str] = []
    tab.on("pageerror", lambda error: failures.append(str(error)))
    tab.goto(address)
    until(tab, "document.querySelector('#model').textContent === 'tiny'")
    yield tab
    context.close()
    assert failures == []
