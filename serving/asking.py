"""From a request to answers under way: its prompt as token ids, whether there is room, how each answer is drawn."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from conf.errors import InputError
from moe.generation.engine import Sampling
from moe.generation.guides import OPTIONS, Grammar, checked
from moe.text.chat import answer_ids, knows_tools, prompt_ids
from moe.text.tokenizer import Tokenizer
from serving import schema
from serving.decoding import Answers, Busy, Died, TooMany
from serving.dialects import tools
from serving.dialects.strict import ApiError
from serving.failover.origin import Origin
from serving.replies import Served, unavailable
from serving.schema import ChatRequest, CompletionRequest

COLDEST = 1e-3  # temperatures below it are greedy: logits divided by less leave the range of float32


@dataclass(frozen=True)
class Names:
    """What an API calls the conversation and the bound of an answer: an error names the client's own field."""

    messages: str = "messages"
    bound: str = "max_tokens"
    form: str = "response_format"


async def chat(
    served: Served, request: ChatRequest, origin: Origin, names: Names = Names()
) -> tuple[list[int], Answers]:
    """(ids of the prompt, the answers to it). Raises `ApiError`."""
    prompt = await chat_prompt(served, request, names)
    room = served.context - len(prompt)
    bound = request.bound or min(served.max_new_tokens, max(1, room))
    _check_room(served, prompt, bound, names)
    # Off the loop as well: a large vocabulary, or a large schema, takes a second.
    grammar = await asyncio.to_thread(_grammar, served.tokenizer, request, names)
    return prompt, _submit(served, request, origin, [prompt], bound, grammar)


async def chat_prompt(served: Served, request: ChatRequest, names: Names = Names()) -> list[int]:
    """Ids of a chat's prompt. Raises `ApiError`."""
    check_model(served, request.model)
    # Off the loop: a long prompt takes seconds, and other streams must not stand still.
    return await asyncio.to_thread(_prompt, served.tokenizer, request, names)


async def completion(served: Served, request: CompletionRequest, origin: Origin) -> tuple[list[list[int]], Answers]:
    """(ids of each prompt, the answers to all). Raises `ApiError`."""
    check_model(served, request.model)
    prompts = await asyncio.to_thread(prompt_ids_of, served, request.prompts, "prompt")
    for prompt in prompts:
        _check_room(served, prompt, request.bound, Names(messages="prompt"))
    return prompts, _submit(served, request, origin, prompts, request.bound)


def check_model(served: Served, model: str) -> None:
    if model != served.name:
        text = f"model {model[:100]!r} is not served here; this server has {served.name!r}"
        raise ApiError(404, text, code="model_not_found", param="model")


def _prompt(tokenizer: Tokenizer, request: ChatRequest, names: Names) -> list[int]:
    messages = [message.plain() for message in request.messages]
    offered = [tool.offered() for tool in request.offered]
    if offered and not knows_tools(tokenizer):
        text = (
            "tools: this model's chat template knows none whose calls are written as <tool_call>{...}; leave them out"
        )
        raise ApiError(400, text, code="tools_not_supported", param="tools")
    try:
        if not request.continue_final_message:
            return prompt_ids(tokenizer, messages, offered)
        *before, begun = messages
        ids = [*prompt_ids(tokenizer, before, offered), *answer_ids(tokenizer, before, [begun["content"]])[0]]
        while ids[-1] in tokenizer.stop:  # the mark of the answer's end, which is yet to come
            ids.pop()
        return ids
    except RecursionError:
        text = "messages or tools are nested too deeply"
        raise ApiError(400, text, code="invalid_value", param=names.messages) from None
    except InputError as error:  # the model's template knows no such role, or no such order of them
        text = str(error).removeprefix(f"{tokenizer.form.where}: ")
        raise ApiError(400, text, code="invalid_value", param=names.messages) from None


def _grammar(tokenizer: Tokenizer, request: ChatRequest, names: Names) -> Grammar | None:
    """What the answers must be. Raises `ApiError` for a schema that is not supported."""
    form, must = request.response_format, request.must_call
    schema = form.schema_of_answers if form else None
    try:
        for tool in request.offered if must or schema is not None else []:
            checked(tool.function.parameters or {})
        if must or (request.offered and schema is not None):
            if schema is not None:
                checked(schema)
            return Grammar.of_lark(tokenizer, tools.grammar(must or request.offered, OPTIONS, schema))
        return None if schema is None else Grammar.of_schema(tokenizer, schema)
    except InputError as error:
        named = f" {form.json_schema.name!r}" if form and form.json_schema else ""
        name = "tools" if must else names.form
        text = f"{name}: the schema{named} is not supported: {error}"
        raise ApiError(400, text, code="invalid_schema", param=name) from None


def prompt_ids_of(served: Served, prompts: Sequence[str | list[int]], param: str) -> list[list[int]]:
    """Ids of texts, or of what are ids already. Raises `ApiError` for one that is empty or beyond the context."""
    found = [_ids(served.tokenizer, prompt, param) for prompt in prompts]
    for ids in found:
        if len(ids) > served.context:
            text = f"{param} has {len(ids)} tokens: more than the model's context of {served.context}; shorten it"
            raise ApiError(400, text, code="context_length_exceeded", param=param)
    return found


def _ids(tokenizer: Tokenizer, prompt: str | list[int], param: str) -> list[int]:
    """Text is only ever text, and begins as the model's texts do; a client that means `<|im_end|>` sends its id."""
    if isinstance(prompt, list):
        ids = prompt
    else:
        ids = [*tokenizer.opening, *tokenizer.encode_texts([prompt])[0]] if prompt else []
    if not ids:
        raise ApiError(400, f"{param} is empty; it must have a token", code="invalid_value", param=param)
    if max(ids) >= tokenizer.size:
        text = f"{param}: {max(ids)} is no token id of this model, which has {tokenizer.size}"
        raise ApiError(400, text, code="invalid_value", param=param)
    return ids


def _check_room(served: Served, prompt: list[int], bound: int, names: Names) -> None:
    room = served.context - len(prompt)
    if bound > room:
        text = (
            f"the prompt has {len(prompt)} tokens and {names.bound}={bound}, together {len(prompt) + bound}: "
            f"more than the model's context of {served.context}; shorten the {names.messages}"
        )
        text += f" or ask for {names.bound}={room} at most" if room > 0 else ""
        raise ApiError(400, text, code="context_length_exceeded", param=names.messages if room < 1 else names.bound)


def _submit(
    served: Served,
    request: schema.Request,
    origin: Origin,
    prompts: list[list[int]],
    bound: int,
    grammar: Grammar | None = None,
) -> Answers:
    """`request.n` answers to each prompt, none where a prompt is only to be scored."""
    biases = tuple(sorted((int(token), bias) for token, bias in (request.logit_bias or {}).items()))
    if biases and biases[-1][0] >= served.tokenizer.size:
        text = f"logit_bias: {biases[-1][0]} is no token id of this model, which has {served.tokenizer.size}"
        raise ApiError(400, text, code="invalid_value", param="logit_bias")
    temperature = 1.0 if request.temperature is None else request.temperature
    seed = origin.seed if request.seed is None else request.seed
    samplings = [
        Sampling(
            max_new_tokens=bound,
            temperature=temperature if temperature >= COLDEST else 0.0,
            top_p=request.top_p or 1.0,
            top_k=request.top_k or 0,
            seed=_seed(seed, index),
            min_p=request.min_p or 0.0,
            repetition_penalty=request.repetition_penalty or 1.0,
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            logit_bias=biases,
        )
        for index in range(request.n or 1)
    ]
    try:
        asked = [(prompt, each) for prompt in prompts for each in samplings] if bound else []
        return served.decoding.submit(asked, grammar)
    except TooMany as error:
        param = "n" if len(prompts) == 1 else "prompt"
        raise ApiError(400, str(error), code="too_many_answers", param=param) from None
    except (Busy, Died) as error:
        raise unavailable(error) from None


def _seed(seed: int, index: int) -> int:
    """Of the index-th answer: a request with the next seed shares none. The first is that of a request for one."""
    if not index:
        return seed % 2**64
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:8])
