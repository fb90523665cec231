"""What crosses between the actors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moe.formats import hugging_face
from rlhf.messages import Key, Response, Weights, pad
from tests.rlhf.tiny import decoder, random_batch, save_chat

TWO = [
    Response(Key(4, "q", 0, version=4), [5, 6], [7, 8, 9], [-1.0, -2.0, -3.0], True),
    Response(Key(4, "q", 1, version=4), [5], [7], [-0.5], False),
]


def test_rows_are_prompt_answer_padding() -> None:
    batch = pad(TWO)
    assert batch.version == 4
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9], [5, 7, 0, 0, 0]]
    assert batch.segments.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch.mask.tolist() == [[0, 0, 1, 1, 1], [0, 1, 0, 0, 0]]
    assert batch.logprobs.tolist() == [[0, 0, -1, -2, -3], [0, -0.5, 0, 0, 0]]
    assert batch.columns["loss"] is batch.mask


def test_some_rows_are_as_wide_as_they_need() -> None:
    short = pad(TWO).rows(torch.tensor([1]))
    assert short.tokens.tolist() == [[5, 7]] and short.mask.tolist() == [[0, 1]] and short.version == 4
    turned = pad(TWO).rows(torch.tensor([1, 0]))
    assert turned.tokens.tolist() == [[5, 7, 0, 0, 0], [5, 6, 7, 8, 9]]


def test_answers_of_several_versions_do_not_mix() -> None:
    stale = replace(TWO[1], key=replace(TWO[1].key, version=3))
    with pytest.raises(AssertionError, match=r"several policy versions: \[3, 4\]"):
        pad([TWO[0], stale])


def test_a_seed_is_a_function_of_run_iteration_query_and_sample() -> None:
    key = Key(2, "q7", 1, version=2)
    assert key.seed(5) == replace(key, version=9).seed(5)  # an answer asked for again is the same answer
    others = [key.seed(6), replace(key, iteration=3).seed(5), replace(key, query="q8").seed(5)]
    others += [replace(key, sample=2).seed(5), replace(key, query="7q").seed(5)]
    assert len({key.seed(5), *others}) == 6
    assert all(0 <= seed < 2**63 for seed in (key.seed(5), *others))
    assert Key(0, "春", 0, version=0).seed(0) != Key(0, "秋", 0, version=0).seed(0)


@pytest.mark.parametrize("qk_norm", [True, False], ids=["qwen3_moe", "mixtral"])
def test_weights_go_by_the_names_of_a_hugging_face_folder(qk_norm: bool, tmp_path: Path) -> None:
    chat = save_chat(tmp_path, qk_norm=qk_norm)
    model = hugging_face.load(chat)
    sent = Weights.of(3, hugging_face.to_disk(model))
    assert (
        sent.version == 3
        and sent.flat.dtype == np.float32
        and len(sent.flat) == sum(p.numel() for p in model.parameters())
    )
    named = dict(sent.named())
    stored = hugging_face.read_tensors(chat)
    assert set(named) == set(stored)
    assert all(torch.equal(named[name], tensor) for name, tensor in stored.items())
    other = hugging_face.load(chat)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    hugging_face.from_disk(named, other, "sent")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_weights_that_were_sent_may_be_read_only_and_are_copied() -> None:
    sent = Weights.of(0, hugging_face.to_disk(decoder()))
    sent.flat.flags.writeable = False  # as Ray gives it
    first = next(sent.named())[1]
    before = sent.flat[0].item()
    first.add_(1.0)
    assert sent.flat[0].item() == before


def test_a_batch_in_parts_is_the_batch() -> None:
    batch = random_batch(6)
    assert torch.equal(batch.rows(torch.arange(6)).tokens, batch.tokens)


def test_weights_that_arrive_with_other_bits_are_refused() -> None:
    sent = Weights.of(4, hugging_face.to_disk(decoder()))
    flat = sent.flat.copy()
    flat.view(np.uint32)[17] ^= 1  # the last bit of one number
    with pytest.raises(ValueError, match=r"^the weights of version 4 are not those that were sent: other bits$"):
        dict(replace(sent, flat=flat).named())


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "an answer that is asked for again is the same",
        "rlhf/messages.py",
        "words = [run_seed, self.iteration, self.sample,",
        "words = [run_seed, self.iteration, self.version, self.sample,",
        "test_a_seed_is_a_function_of_run_iteration_query_and_sample",
    ),
    (
        "every iteration throws dice of its own",
        "rlhf/messages.py",
        "words = [run_seed, self.iteration, self.sample,",
        "words = [run_seed, self.sample,",
        "test_a_seed_is_a_function_of_run_iteration_query_and_sample",
    ),
    (
        "answers of several policies do not mix",
        "rlhf/messages.py",
        "assert len(versions) == 1, f",
        "assert versions, f",
        "test_answers_of_several_versions_do_not_mix",
    ),
    (
        "only an answer's tokens are learnt",
        "rlhf/messages.py",
        "mask[row, start:stop] = 1",
        "mask[row, :stop] = 1",
        "test_rows_are_prompt_answer_padding",
    ),
    (
        "what was sent is not written into",
        "rlhf/messages.py",
        "copy = self.flat.copy()",
        "copy = self.flat",
        "test_weights_that_were_sent_may_be_read_only_and_are_copied",
    ),
    (
        "weights that were damaged on the way are not taken",
        "rlhf/messages.py",
        "if _bits(copy) != self.bits:",
        "if len(copy) != len(self.flat):",
        "test_weights_that_arrive_with_other_bits_are_refused",
    ),
]
