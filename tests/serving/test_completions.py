"""Text completions over real HTTP, asked by the real `openai` client and, where it is installed, by lm-eval."""

import hashlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import APIStatusError, OpenAI

from conf.knobs.running import Serve
from moe.generation.engine import Answer, Engine, Sampling, generate
from serving.app import endpoint
from serving.decoding import DecodingThread
from serving.replies import Served
from serving.text import token_name
from tests.serving.conftest import CONTEXT, LINES, Tiny, listening

TEXT = "床前明月光，"
LM_EVAL = Path(sys.prefix) / "lm-eval"


@pytest.fixture(scope="module")
def address(tiny: Tiny) -> Iterator[str]:
    """The endpoint on a port, without Ray: 2 slots, 6 waiting."""
    stop = (tiny.tokenizer.im_end, tiny.tokenizer.eos)
    decoding = DecodingThread(Engine(tiny.model, 2, stop), waiting=6)
    app = endpoint(Served("tiny", tiny.tokenizer, decoding, CONTEXT, 16), Serve())
    with listening(app) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=600) as client:
        yield client


def ask(client: OpenAI, **fields: Any) -> Any:
    asked: dict[str, Any] = {"model": "tiny", "prompt": TEXT, "temperature": 0}
    return client.completions.create(**(asked | fields))


def directly(tiny: Tiny, prompt: list[int], sampling: Sampling) -> Answer:
    return generate(tiny.model, [prompt], [sampling], stop=(tiny.tokenizer.im_end, tiny.tokenizer.eos))[0]


def softmax(tiny: Tiny, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [T, V] of what follows each of the ids."""
    tokens = torch.tensor([ids])
    with torch.no_grad():
        return tiny.model.logits(tiny.model(tokens, torch.ones_like(tokens)).states).log_softmax(-1)


def test_text_goes_on_as_it_is_without_a_chat(client: OpenAI, tiny: Tiny) -> None:
    expected = directly(tiny, tiny.tokenizer.encode(TEXT), Sampling(16, temperature=0))
    reply = ask(client)
    assert reply.choices[0].text == tiny.tokenizer.decode(expected.tokens)
    assert (reply.object, reply.choices[0].finish_reason, reply.choices[0].logprobs) == (
        "text_completion", "length", None,
    )  # fmt: skip
    prompt = len(tiny.tokenizer.encode(TEXT))
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (prompt, 16)
    assert ask(client, echo=True).choices[0].text == TEXT + reply.choices[0].text


def test_every_form_of_prompt(client: OpenAI, tiny: Tiny) -> None:
    ids = [tiny.tokenizer.encode(line) for line in LINES[:3]]
    alone = [ask(client, prompt=line, max_tokens=6).choices[0].text for line in LINES[:3]]
    for prompt in (LINES[:3], ids):
        reply = ask(client, prompt=prompt, max_tokens=6)
        assert [(choice.index, choice.text) for choice in reply.choices] == list(enumerate(alone))
        assert reply.usage.prompt_tokens == sum(map(len, ids))
    assert ask(client, prompt=ids[1], max_tokens=6).choices[0].text == alone[1]
    two = ask(client, prompt=LINES[:2], max_tokens=6, n=2, seed=5, temperature=1.0).choices
    other = int.from_bytes(hashlib.sha256(b"5:1").digest()[:8])  # the second answer's own seed
    for index, choice in enumerate(two):
        sampling = Sampling(6, seed=(5, other)[index % 2])
        assert choice.text == tiny.tokenizer.decode(directly(tiny, ids[index // 2], sampling).tokens)


def test_text_is_only_text_and_ids_may_be_marks(client: OpenAI, tiny: Tiny) -> None:
    mark = ask(client, prompt=[tiny.tokenizer.im_end], max_tokens=0, echo=True, logprobs=0)
    assert (mark.choices[0].text, mark.choices[0].logprobs.tokens) == ("", ["<|im_end|>"])
    typed = ask(client, prompt="<|im_end|>", max_tokens=0, echo=True)
    assert typed.choices[0].text == "<|im_end|>"
    assert typed.usage.prompt_tokens == len(tiny.tokenizer.encode("<|im_end|>")) > 1


@pytest.mark.parametrize("max_tokens", [0, 1, 4])
def test_echoed_logprobs_are_those_of_each_token_after_the_ones_before_it(
    client: OpenAI, tiny: Tiny, max_tokens: int
) -> None:
    ids = tiny.tokenizer.encode(TEXT)
    choice = ask(client, echo=True, logprobs=2, max_tokens=max_tokens).choices[0]
    made = directly(tiny, ids, Sampling(max_tokens, temperature=0)) if max_tokens else Answer([], [], "length")
    whole = ids + made.tokens
    expected = softmax(tiny, whole)
    got = choice.logprobs
    assert got.tokens == [token_name(tiny.tokenizer, token) for token in whole]
    assert "".join(got.tokens) == choice.text
    assert got.token_logprobs[0] is None and got.top_logprobs[0] is None
    assert got.token_logprobs[1:] == pytest.approx([float(expected[n, t]) for n, t in enumerate(whole[1:])], abs=1e-4)
    assert got.token_logprobs[len(ids) :] == pytest.approx(made.logprobs, abs=1e-4)
    for place, likely in enumerate(got.top_logprobs[1:]):
        values, best = expected[place].topk(2)
        named = {
            token_name(tiny.tokenizer, int(token)): float(value) for token, value in zip(best, values, strict=True)
        }
        assert likely == pytest.approx(named | {got.tokens[place + 1]: got.token_logprobs[place + 1]}, abs=1e-4)
    assert got.text_offset == [sum(map(len, got.tokens[:n])) for n in range(len(whole))]
    assert choice.finish_reason == "length"


def test_logprobs_without_echo_are_of_the_answer_alone_and_of_the_whole_softmax(client: OpenAI, tiny: Tiny) -> None:
    ids = tiny.tokenizer.encode(TEXT)
    drawn = directly(tiny, ids, Sampling(6, temperature=2.0, seed=3)).tokens
    got = ask(client, logprobs=0, max_tokens=6, temperature=2.0, seed=3).choices[0].logprobs
    expected = softmax(tiny, ids + drawn)[len(ids) - 1 : -1].gather(1, torch.tensor(drawn).unsqueeze(1)).squeeze(1)
    assert got.token_logprobs == pytest.approx(expected.tolist(), abs=1e-4)
    assert [list(likely.values()) for likely in got.top_logprobs] == [[value] for value in got.token_logprobs]
    assert got.text_offset[0] == 0


def test_a_greedy_token_has_exactly_the_highest_value(client: OpenAI) -> None:
    got = ask(client, logprobs=1, max_tokens=8).choices[0].logprobs
    assert all(
        value == max(likely.values()) for value, likely in zip(got.token_logprobs, got.top_logprobs, strict=True)
    )


def test_tokens_have_names_of_their_own(tiny: Tiny) -> None:
    tokenizer = tiny.tokenizer
    names = [token_name(tokenizer, index) for index in range(tokenizer.padded_size)]
    assert len(set(names)) == len(names)
    assert names[tokenizer.encode("月")[0]] == "月"
    assert names[tokenizer.byte_id(0xE6)] == "bytes:\\xe6"
    assert names[tokenizer.im_end] == "<|im_end|>"
    assert names[tokenizer.padded_size - 1] == f"token_id:{tokenizer.padded_size - 1}"


@pytest.mark.parametrize(
    "fields", [{"max_tokens": 20}, {"max_tokens": 5, "echo": True}, {"max_tokens": 0, "echo": True}]
)
def test_a_stream_is_the_plain_completion_in_pieces(client: OpenAI, fields: dict[str, Any]) -> None:
    plain = ask(client, **fields)
    chunks = list(ask(client, **fields, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == plain.choices[0].text
    finishes = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert finishes == [None] * (len(finishes) - 1) + ["length"]
    assert chunks[-1].usage == plain.usage


def test_a_stop_string_ends_the_completion(client: OpenAI) -> None:
    whole = ask(client, max_tokens=20).choices[0].text
    reply = ask(client, max_tokens=20, stop=whole[8:10]).choices[0]
    assert (reply.text, reply.finish_reason) == (whole[: whole.index(whole[8:10])], "stop")


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"prompt": ""}, 400, "prompt is empty"),
        ({"prompt": []}, 400, "prompt=[]"),
        ({"prompt": [1, "月"]}, 400, "prompt[1]='月'"),
        ({"prompt": [[1, 2], []]}, 400, "prompt[1]"),
        ({"prompt": [1, -1]}, 400, "prompt[1]=-1"),
        ({"prompt": [1, 4000]}, 400, "4000 is no token id"),
        ({"prompt": ["月"] * 257}, 400, "prompt"),
        ({"prompt": "月" * CONTEXT}, 400, f"context of {CONTEXT}; shorten the prompt"),
        ({"prompt": "月" * CONTEXT, "max_tokens": 0}, 200, ""),
        ({"prompt": "月" * (CONTEXT + 1), "max_tokens": 0}, 400, f"context of {CONTEXT}"),
        ({"logprobs": 6}, 400, "logprobs=6"),
        ({"logprobs": 1, "stream": True}, 400, "logprobs=1 needs stream=false"),
        ({"max_tokens": -1}, 400, "max_tokens=-1"),
        ({"best_of": 3}, 400, "best_of=3 is not supported"),
        ({"suffix": "完"}, 400, "suffix='完' is not supported"),
        ({"prompt": ["月"] * 9}, 400, "ask for 8 at most"),
        ({"model": "gpt-4o"}, 404, "'tiny'"),
    ],
)
def test_what_is_refused(client: OpenAI, fields: dict[str, Any], status: int, named: str) -> None:
    if status == 200:
        assert ask(client, **fields).choices[0].text == ""
        return
    with pytest.raises(APIStatusError) as caught:
        ask(client, **fields)
    assert caught.value.status_code == status
    assert named in caught.value.message


def test_a_client_that_leaves_while_its_text_is_scored_harms_nobody(address: str, client: OpenAI) -> None:
    body = {"model": "tiny", "prompt": ["月" * CONTEXT] * 64, "max_tokens": 0, "echo": True, "logprobs": 1}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/v1/completions", json=body, timeout=httpx.Timeout(30, read=0.2))
    assert ask(client, max_tokens=3).usage.completion_tokens == 3
    assert ask(client, max_tokens=0, echo=True, logprobs=0).choices[0].logprobs.tokens[0] == "床"


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> Any:
    if not LM_EVAL.is_dir():
        pytest.skip(f"lm-eval is not in {LM_EVAL}; run `make lm-eval`")
    monkeypatch.setattr(sys, "path", [*sys.path, str(LM_EVAL)])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import lm_eval

    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks the machine for seconds
    return lm_eval


@pytest.mark.slow
def test_lm_eval_finds_the_same_in_the_folder_and_through_the_endpoint(
    tiny: Tiny, address: str, lm_eval: Any, tmp_path: Path
) -> None:
    from lm_eval.tasks import TaskManager

    documents: list[dict[str, Any]] = [
        {"question": "床前明月光，", "choices": ["疑是地上霜。", "低头思故乡。"], "answer": 0},
        {"question": "白日依山尽，", "choices": ["更上一层楼。", "黄河入海流。"], "answer": 1},
    ]
    data = tmp_path / "lines.jsonl"
    data.write_text("".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents), "utf-8")
    task = {
        "task": "lines",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "lines.yaml").write_text(json.dumps(task, ensure_ascii=False), "utf-8")  # JSON is YAML
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    ways = {
        "hf": f"pretrained={tiny.folder},device=cpu,dtype=float32",
        "local-completions": (
            f"model=tiny,base_url={address}/v1/completions,tokenizer={tiny.folder},max_length={CONTEXT},"
            "num_concurrent=1,max_retries=1"
        ),
    }
    for way, arguments in ways.items():
        found = lm_eval.simple_evaluate(
            model=way,
            model_args=arguments,
            tasks=["lines"],
            task_manager=tasks,
            log_samples=True,
            batch_size=2,
            bootstrap_iters=0,
        )
        right = 0
        for document, sample in zip(documents, found["samples"]["lines"], strict=True):
            ours = [logprob(tiny, document["question"], text) for text in document["choices"]]
            theirs = [float(value) for value, _ in sample["filtered_resps"]]
            assert theirs == pytest.approx(ours, abs=1e-3), way
            right += ours.index(max(ours)) == document["answer"]
        assert found["results"]["lines"]["acc,none"] == right / 2


def logprob(tiny: Tiny, before: str, text: str) -> float:
    start, ids = len(tiny.tokenizer.encode(before)), tiny.tokenizer.encode(before + text)
    every = softmax(tiny, ids)
    return math.fsum(float(every[place - 1, ids[place]]) for place in range(start, len(ids)))


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "echoed log-probs stand beside their own tokens",
        "serving/replies.py",
        "[None, *scores.logprobs][hidden:]",
        "[*scores.logprobs, None][hidden:]",
        None,
    ),
]
