"""Small tokenizers in the forms in which other families publish theirs."""

import json
from collections.abc import Callable

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from moe.text.families import BYTES, LETTERS

TEXTS = ["the cat and the hat sat, the cat ran; user assistant system 2024\n"] * 6 + ["我们在中国，一个中国。"] * 3
LLAMA3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def special(name: str) -> AddedToken:
    return AddedToken(name, special=True, normalized=False)


def byte_level(
    splitter: pre_tokenizers.PreTokenizer, alphabet: list[str], first: list[str], *, ignore_merges: bool = False
) -> tokenizers.Tokenizer:
    learnt = tokenizers.Tokenizer(models.BPE())
    learnt.pre_tokenizer = splitter
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=sorted(alphabet),
        special_tokens=[special(name) for name in first],
        show_progress=False,
    )
    learnt.train_from_iterator(TEXTS, trainer)
    learnt.decoder = decoders.ByteLevel()
    learnt.model.ignore_merges = ignore_merges
    return learnt


def smollm() -> tokenizers.Tokenizer:
    """Digits alone, then GPT-2's words; the marks come first, and bytes of rare characters have no piece."""
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    rare = {LETTERS[byte] for byte in (0x04, 0x1D, 0xC0, 0xF1, 0xFF)}
    alphabet = [letter for letter in pre_tokenizers.ByteLevel.alphabet() if letter not in rare]
    return byte_level(splitter, alphabet, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"])


def qwen() -> tokenizers.Tokenizer:
    """NFC, and after the pieces the marks and <think>, which is not special."""
    words = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    splitter = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made = byte_level(splitter, [*LETTERS], [])
    made.normalizer = normalizers.NFC()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.add_special_tokens([special("<|endoftext|>"), special("<|im_start|>"), special("<|im_end|>")])
    made.add_tokens([AddedToken("<think>", normalized=False, special=False)])
    return made


def llama3() -> tokenizers.Tokenizer:
    """Whole words before merges, marks of its own after the pieces, and one put before every text."""
    words = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    splitter = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made = byte_level(splitter, [*LETTERS], [], ignore_merges=True)
    made.add_special_tokens([special("<|begin_of_text|>"), special("<|end_of_text|>"), special("<|eot_id|>")])
    start = ("<|begin_of_text|>", made.token_to_id("<|begin_of_text|>"))
    made.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[start])
    return made


def llama2(*, metaspace: bool = False) -> tokenizers.Tokenizer:
    """Characters with byte fallback, a space spelled as U+2581 and put before every text; no marks of a chat."""
    learnt = tokenizers.Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    english = [text for text in TEXTS if text.isascii()]
    learnt.train_from_iterator(english, trainers.BpeTrainer(vocab_size=70, show_progress=False))
    known = learnt.get_vocab()
    pieces = sorted(known, key=known.__getitem__)
    merges = [(left, right) for left, right in json.loads(learnt.to_str())["model"]["merges"]]
    vocabulary = {piece: index for index, piece in enumerate(["<unk>", "<s>", "</s>", *BYTES, *pieces, *"中<>", "s>"])}
    merges += [("s", ">"), ("<", "s>")]  # some files have merges that lead to their marks
    made = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if metaspace:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([special("<unk>"), special("<s>"), special("</s>")])
    start = ("<s>", 1)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[start])
    made.enable_truncation(16)
    return made


def mistral() -> tokenizers.Tokenizer:
    return llama2(metaspace=True)


FAMILIES: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "smollm": smollm,
    "qwen": qwen,
    "llama3": llama3,
    "llama2": llama2,
    "mistral": mistral,
}
