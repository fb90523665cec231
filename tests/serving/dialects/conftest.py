"""The endpoint on a port, without Ray, for the clients of other APIs."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from conf.knobs.running import Serve
from moe.generation.engine import Engine, Token
from moe.text.tokenizer import Tokenizer
from serving.app import endpoint
from serving.decoding import DecodingThread
from serving.keys import Key
from serving.replies import Served
from tests.serving.conftest import CONTEXT, Tiny, listening

CLIENTS = Path(sys.prefix) / "clients"  # `make clients`


@contextmanager
def running(
    engine: Engine,
    tokenizer: Tokenizer,
    cfg: Serve = Serve(),  # noqa: B008
    keys: Sequence[Key] = (),
) -> Iterator[str]:
    """The address of an endpoint over the engine, called `tiny`; answers have 16 tokens where nobody says more."""
    decoding = DecodingThread(engine, waiting=6)
    app = endpoint(Served("tiny", tokenizer, decoding, CONTEXT, 16, version="fp_tiny"), cfg, keys)
    with listening(app) as port:
        yield f"http://127.0.0.1:{port}"


class Dying(Engine):
    """Fails with the fourth token of an answer."""

    def step(self) -> list[Token]:
        if self._active and len(self._active[0].answer) == 3:
            raise ArithmeticError("off")
        return super().step()


@pytest.fixture(scope="module")
def address(tiny: Tiny) -> Iterator[str]:
    with running(Engine(tiny.model, 2, tiny.tokenizer.stop), tiny.tokenizer) as found:
        yield found


@pytest.fixture(scope="session")
def anthropic() -> Any:
    """The library, skipped with the reason where it is not installed."""
    if not CLIENTS.is_dir():
        pytest.skip(f"anthropic's client is not in {CLIENTS}; run `make clients`")
    sys.path.append(str(CLIENTS))
    import anthropic

    return anthropic


def events(response: httpx.Response) -> list[tuple[str, Any]]:
    """(name, data) of each event of a stream, which are numbered."""
    found = [each.split("\n") for each in response.text.split("\n\n") if each]
    assert [lines[0] for lines in found] == [f"id: {number}" for number in range(len(found))]
    return [(name.removeprefix("event: "), json.loads(said.removeprefix("data: "))) for _, name, said in found]
