"""Guides: an answer that must have a form gets only tokens that can lead to it. JSON schemas, by llguidance.

https://github.com/guidance-ai/llguidance (MIT): a parser of the schema's grammar says before each token which may come.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor

from conf.errors import InputError
from moe.text.tokenizer import Tokenizer

MAX_SCHEMA = 2**16  # characters
# Between the parts of a JSON text: nothing, a blank, or a line's end with blanks after it. Any number of them would let
# a model go on for ever.
_BLANK = r"(\n {0,40}| )?"
OPTIONS: Any = {
    "whitespace_flexible": True,
    "whitespace_pattern": _BLANK,
    "coerce_one_of": False,
    "lenient": False,
}
_EXPRESSIONS = ("pattern", "patternProperties")
_NAMES = ("properties", "$defs", "definitions", "dependentSchemas")  # what they hold is by name
_VALUES = ("enum", "const", "default", "examples")


class Grammar:
    """What answers must be, in llguidance's words; read once, for any number of answers."""

    def __init__(self, tokenizer: Tokenizer, grammar: str) -> None:
        """Raises `InputError` for a grammar that llguidance refuses."""
        self._library = _library(tokenizer)
        self._stop = tokenizer.stop
        self._begun = LLMatcher(self._library, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        first = self.guide()
        first.allowed()  # a grammar of which there is no text fails at its first token
        if wrong := self._begun.get_error() or first.error:
            raise InputError(" ".join(wrong.split())[:300])

    @classmethod
    def of_schema(cls, tokenizer: Tokenizer, schema: Mapping[str, Any]) -> "Grammar":
        """Answers are JSON that a JSON schema holds for. Raises `InputError` for one that is not supported."""
        text = checked(schema)
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=OPTIONS)
        except ValueError as error:
            raise InputError(" ".join(str(error).split())[:300]) from None
        return cls(tokenizer, grammar)

    @classmethod
    def of_lark(cls, tokenizer: Tokenizer, lark: str) -> "Grammar":
        """The same in llguidance's own notation, which no client writes."""
        return cls(tokenizer, LLMatcher.grammar_from_lark(lark))

    def guide(self, made: Sequence[int] = ()) -> "GrammarGuide":
        """Of one answer, which may have begun with the tokens `made`."""
        found = GrammarGuide(self._begun.deep_copy(), self._stop, self._library.vocab_size)
        for token in made:
            found.took(token)
        return found


class GrammarGuide:
    """Follows a grammar. Once it cannot (the parser has its own bounds) `error` says why, and the answer ends."""

    def __init__(self, matcher: LLMatcher, stop: tuple[int, ...], size: int) -> None:
        self._matcher, self._stop, self._size = matcher, stop, size
        self._words = torch.zeros((size + 31) // 32, dtype=torch.int32)  # a bit each
        self.error = ""

    def allowed(self) -> Tensor:
        if not self.error:
            self._matcher.unsafe_compute_mask_ptr(self._words.data_ptr(), 4 * self._words.numel())
            self._look()
        if self.error:
            ending = torch.zeros(self._size, dtype=torch.bool)
            ending[list(self._stop)] = True
            return ending
        bits = self._words.view(torch.uint8).unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)
        return (bits & 1).flatten()[: self._size].bool()

    def took(self, token: int) -> None:
        if not self.error and not self._matcher.is_stopped():
            self._matcher.consume_token(token)
            self._look()

    def _look(self) -> None:
        if self._matcher.is_error():
            self.error = " ".join(self._matcher.get_error().split())[:300]


def checked(schema: Mapping[str, Any]) -> str:
    """A schema as JSON. Raises `InputError` for one that is too long or has a regular expression: none is taken from a
    request."""
    text = json.dumps(schema)
    if len(text) > MAX_SCHEMA:
        raise InputError(f"the schema has {len(text)} characters and may have {MAX_SCHEMA}")
    _without_expressions(schema)
    return text


def _without_expressions(schema: Any) -> None:
    for key, value in schema.items() if isinstance(schema, Mapping) else enumerate(schema):
        if key in _EXPRESSIONS:
            raise InputError(f"{key}: regular expressions are not taken; use enum, format, minLength or maxLength")
        if key in _VALUES or not isinstance(value, Mapping | list):
            continue
        if key in _NAMES and isinstance(value, Mapping):
            for named in value.values():
                if isinstance(named, Mapping | list):
                    _without_expressions(named)
        else:
            _without_expressions(value)


class _Vocabulary:
    """A tokenizer as llguidance wants one. Any family's will do: what each id stands for in bytes is all it needs."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.stop[0]
        self.tokens = [tokenizer.bytes_of(index) for index in range(tokenizer.size)]
        self.special_token_ids = sorted(tokenizer.specials)

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


@lru_cache(maxsize=4)
def _library(tokenizer: Tokenizer) -> LLTokenizer:
    """Takes a second for a large vocabulary."""
    return LLTokenizer(_Vocabulary(tokenizer), eos_token=list(tokenizer.stop))
