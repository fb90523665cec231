"""Whatever is sent to whichever route: the server never fails at it, and what it refuses has an error's shape."""

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import integers, lists, one_of
from pydantic import BaseModel

from cluster.people.labels import FILE, Item, Labels
from conf.knobs.running import Run
from conf.schema import Config
from moe.generation.engine import Engine, Sampling
from serving import labels, votes
from serving.app import endpoint
from serving.canary import trial as trials
from serving.canary.trial import Trial
from serving.decoding import DecodingThread
from serving.dialects.embeddings import EmbeddingsRequest
from serving.dialects.messages import CountRequest, MessagesRequest
from serving.dialects.responses import ResponsesRequest
from serving.models import version
from serving.replies import Served
from serving.schema import ChatRequest, CompletionRequest
from tests.serving.canary.house import House
from tests.serving.conftest import CONTEXT, Tiny, listening
from tests.serving.dialects.conftest import CLIENTS

CASES = 1000
HELLO = [{"role": "user", "content": "x"}]
BODIES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {  # of every POST: its model, and one that is accepted
    "/v1/chat/completions": (ChatRequest, {"model": "tiny", "messages": HELLO}),
    "/v1/completions": (CompletionRequest, {"model": "tiny", "prompt": "x"}),
    "/v1/embeddings": (EmbeddingsRequest, {"model": "tiny", "input": ["x", "y"]}),
    "/v1/feedback": (
        votes.Ballot,
        {"id": "v", "conversation": "c", "kind": "up", "messages": HELLO, "answers": [{"text": "y"}]},
    ),
    "/v1/labels/{name}": (
        labels.Said,
        {"ranks": {"clear": [{"number": 0, "place": 1}, {"number": 1, "place": 0}]}, "skipped": False},
    ),
    "/v1/messages": (MessagesRequest, {"model": "tiny", "messages": HELLO, "max_tokens": 3}),
    "/v1/messages/count_tokens": (CountRequest, {"model": "tiny", "messages": HELLO}),
    "/v1/responses": (ResponsesRequest, {"model": "tiny", "input": "x"}),
}
ITEM = Item(HELLO, ("y", "z"), ("clear",))  # which awaits ranks


class Brief(Engine):
    """Ends each answer with its third token at the latest."""

    def add(self, request: str, prompt: list[int], sampling: Sampling, guide: Any = None) -> None:
        super().add(request, prompt, replace(sampling, max_new_tokens=min(sampling.max_new_tokens, 3)), guide)


def described(app: FastAPI) -> dict[str, Any]:
    """All routes as OpenAPI, with the bodies that they parse themselves."""
    spec = app.openapi()
    components = spec.setdefault("components", {}).setdefault("schemas", {})
    for path, methods in spec["paths"].items():
        if path == "/v1/labels/{name}":
            for method in methods.values():
                method["parameters"][0]["schema"] = {"enum": [ITEM.id]}
        if "post" not in methods:
            continue
        body, name = BODIES[path][0], BODIES[path][0].__module__.replace(".", "_") + "_"
        made = body.model_json_schema(ref_template=f"#/components/schemas/{name}{{model}}")
        components |= {name + each: found for each, found in made.pop("$defs", {}).items()}
        properties = made["properties"]
        if "model" in properties:
            properties["model"] = {"enum": ["tiny"]}  # or nearly all would be refused for its name
        methods["post"]["requestBody"] = {"required": True, "content": {"application/json": {"schema": made}}}
    return spec


@pytest.fixture(scope="module")
def app(tiny: Tiny) -> Iterator[FastAPI]:
    decoding = DecodingThread(Engine(tiny.model, 1, tiny.tokenizer.stop), waiting=1)
    with closing(decoding):
        yield endpoint(Served("tiny", tiny.tokenizer, decoding, CONTEXT, 16), Config().serve)


def test_every_route_is_described(app: FastAPI) -> None:
    paths = described(app)["paths"]
    assert BODIES.keys() == {path for path, methods in paths.items() if "post" in methods}
    assert {"/v1/models", "/v1/models/{model}", "/v1/stream/{name}", "/healthz", "/metrics", "/"} < paths.keys()


@pytest.fixture
def schemathesis() -> Iterator[Any]:
    """The library, skipped with the reason where it is not installed."""
    if not (CLIENTS / "schemathesis").is_dir():
        pytest.skip(f"schemathesis is not in {CLIENTS}; run `make clients`")
    sys.path.append(str(CLIENTS))
    import schemathesis

    yield schemathesis
    sys.path.remove(str(CLIENTS))


@pytest.mark.slow
def test_nothing_that_schemathesis_sends_makes_the_server_fail(
    schemathesis: Any, app: FastAPI, tiny: Tiny, tmp_path: Path
) -> None:
    """What the schemas allow and what they do not, while a candidate has half of the conversations."""
    modes = schemathesis.GenerationMode
    cfg = Config(run=Run(name="r", dir=str(tmp_path)))
    house = House(cfg, tiny.folder, Brief)
    house.begin(tiny.folder)
    which = Trial(str(tiny.folder), version(tiny.folder), "", 0.5, 80, 0.95, 0.05, asked=1.0, state="serving")
    trials.write(cfg.run.folder, which)
    Labels(cfg.run.folder / FILE).ask("rank", [ITEM])
    schema = schemathesis.openapi.from_dict(described(app))
    operations = [found.ok() for found in schema.get_all_operations()]
    posts = sum(each.method == "post" for each in operations)
    few = 10  # cases of a route without a body
    many = -(-int(0.9 * CASES) // posts)
    statuses: list[int] = []
    with closing(house), listening(house.door, lifespan="off") as port:
        for operation in operations:
            ways = list(modes) if operation.method == "post" else [modes.POSITIVE]
            how = {"max_examples": many if operation.method == "post" else few, "phases": (Phase.generate,)}

            @settings(**how, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))  # type: ignore[arg-type]
            @given(one_of(*(operation.as_strategy(generation_mode=mode) for mode in ways)), lists(integers(0, 40)))
            def sent(case: Any, picked: list[int]) -> None:
                if picked and isinstance(case.body, dict) and case.body:  # few of its fields, in a body that is good
                    names, good = sorted(case.body), BODIES[case.operation.path][1]
                    changed = {names[number % len(names)] for number in picked}
                    case.body = good | {name: case.body[name] for name in changed}
                    if "conversation" in good:
                        case.body |= {"id": f"v{len(statuses)}"} if "id" not in changed else {}
                response = case.call(base_url=f"http://127.0.0.1:{port}", timeout=60)
                statuses.append(response.status_code)
                assert response.status_code < 500, (case.as_curl_command(), response.text)
                if response.status_code >= 400:
                    assert set(response.json()["error"]) >= {"type", "message"}

            sent()
    told = {status: statuses.count(status) for status in sorted(set(statuses))}
    print(f"{len(statuses)} cases of {len(operations)} routes: {told}")
    assert len(statuses) >= CASES and told.get(200, 0) >= CASES // 10  # not all were refused


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "no route is left out where the server is sent whatever a client may send",
        "serving/dialects/embeddings.py",
        '@router.post("/v1/embeddings")',
        '@router.post("/v1/embedding")',
        "test_every_route_is_described",
    ),
]
