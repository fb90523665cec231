"""The evaluation of a model folder, on a model whose every number can be worked out by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.errors import InputError
from conf.knobs.model import Model
from conf.knobs.running import Evaluate, Run, Suite, Tracker, TrackerKind
from conf.knobs.text import Corpus, Txt
from conf.knobs.text import Tokenizer as TokenizerConfig
from conf.schema import Config
from moe.decoder import Decoder, new_decoder
from moe.formats import hugging_face
from moe.tasks.task import Sample
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from tests.cluster.tracking.wandb_file import written as wandb_written
from tests.moe.formats.foreign_models import foreign
from tests.moe.text.foreign_tokenizers import llama3
from trainers.evaluate import main
from trainers.rows.packing import document, pack
from trainers.rows.rows import Rows, write_rows
from trainers.suites import held_out, packed, task_metrics, windows

LINES = ["床前明月光，疑是地上霜。", "举头望明月，低头思故乡。", "白日依山尽，黄河入海流。"]
BITS = {"月": 1, "日": 2, "<|im_end|>": 3, "<|endoftext|>": 3}  # each token costs so much, whatever stands before it
CFG = Model(hidden_size=32, layers=1, heads=2, kv_heads=1, head_dim=16, experts=2, top_k=1, expert_size=32, context=64)
GREEDY = Evaluate(max_new_tokens=3, temperature=0.8)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(LINES * 4, TokenizerConfig(vocab_size=512))


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Decoder:
    """Always draws from the same four tokens: 月 1/2, 日 1/4, the end of an answer and that of a document 1/8 each."""
    model = new_decoder(CFG, tokenizer.padded_size, seed=1).eval()
    ids = {"<|im_end|>": tokenizer.im_end, "<|endoftext|>": tokenizer.eos}
    with torch.no_grad():
        model.model.embed_tokens.weight[:] = 1.0  # every position alike, so is every state
        state = model(torch.tensor([[0]]), torch.tensor([[1]])).states[0]
        direction = state / state.dot(state)
        model.lm_head.weight[:] = -60 * direction
        for text, bits in BITS.items():
            model.lm_head.weight[ids.get(text) or tokenizer.encode(text)[0]] = -bits * math.log(2) * direction
    return model


@pytest.fixture(scope="module")
def saved(model: Decoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "four"
    hugging_face.save(model, path, Defaults.of(tokenizer, chat=True))
    tokenizer.save(path)
    return path


def sample(
    answer: str, task: str = "moon", before: tuple[str, ...] = ("举头",), label: str | None = None, **fields: Any
) -> Sample:
    turns = [*before, answer]
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
    return Sample(id=f"{task}-{answer}", task=task, messages=messages, label=label, fields=fields)


def test_only_the_last_answer_and_its_end_are_measured(model: Decoder, tokenizer: Tokenizer) -> None:
    samples = [sample("月"), sample("月日", before=("举头", "思", "低头"))]  # 1 + 3 and 1 + 2 + 3 bits
    metrics, _ = task_metrics(model, tokenizer, samples, GREEDY)
    assert metrics["moon/loss"] == pytest.approx(10 * math.log(2) / 5, abs=1e-4)
    assert metrics["moon/bits_per_byte"] == pytest.approx((1 + 1 + 2) / 9, abs=1e-4)  # without the ends


def test_answers_are_the_likeliest_and_compared_with_the_reference(model: Decoder, tokenizer: Tokenizer) -> None:
    metrics, shown = task_metrics(model, tokenizer, [sample("月月月"), sample("月月日")], GREEDY)
    assert [one["answer"] for one in shown] == ["月月月", "月月月"]
    assert shown[1] == {
        "id": "moon-月月日", "task": "moon", "prompt": "举头", "reference": "月月日", "answer": "月月月",
    }  # fmt: skip
    assert metrics["moon/exact_match"] == 0.5
    # of 1-grams 5/6 are right, of 2-grams 3/4, of 3-grams 1/2
    assert metrics["moon/bleu"] == pytest.approx(100 * (5 / 6 * 3 / 4 * 1 / 2) ** (1 / 3))
    assert metrics["moon/chrf"] == pytest.approx(100 * (5 / 6 + 3 / 4 + 1 / 2) / 3)
    assert "moon/accuracy" not in metrics


def test_labelled_tasks_have_accuracy_and_no_overlap(model: Decoder, tokenizer: Tokenizer) -> None:
    samples = [sample("月", "guess", label="月"), sample("日", "guess", label="日"), sample("月月月", "poem")]
    metrics, _ = task_metrics(model, tokenizer, samples, GREEDY)
    assert (metrics["guess/accuracy"], metrics["guess/exact_match"]) == (0.5, 0.0)
    assert "guess/bleu" not in metrics
    assert metrics["macro/accuracy"] == 0.5  # of the tasks that have it
    assert metrics["macro/exact_match"] == 0.5  # (0 + 1) / 2
    assert metrics["macro/loss"] == pytest.approx((metrics["guess/loss"] + metrics["poem/loss"]) / 2)


@pytest.mark.parametrize(
    ("right", "other", "chosen"),
    [
        ("日", "月月月", 1.0),  # 2 + 3 bits against 3 + 3, though 2.5 a token against 1.5
        ("月月月", "月", 0.0),
        ("日", "月月", 0.0),  # 5 bits each: a tie is not right
    ],
)
def test_a_choice_is_right_if_it_is_the_most_probable_answer(
    model: Decoder, tokenizer: Tokenizer, right: str, other: str, chosen: float
) -> None:
    metrics, _ = task_metrics(model, tokenizer, [sample(right, choices=[other, right])], GREEDY)
    assert metrics["moon/choice_accuracy"] == chosen
    assert "moon/bleu" not in metrics


def test_samples_that_cannot_be_used_are_named(model: Decoder, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"sample moon-月: choices must be a list of answers, its last message among"):
        task_metrics(model, tokenizer, [sample("月", choices=["日", "霜"])], GREEDY)
    with pytest.raises(InputError, match=r"sample moon-月+: \d\d tokens are more than the model's context of 64"):
        task_metrics(model, tokenizer, [sample("月" * 60)], GREEDY)


def config(tmp_path: Path, **fields: Any) -> Config:
    evaluate = Evaluate(**({"max_new_tokens": 3} | fields))
    return Config(run=Run(dir=str(tmp_path), name="run"), evaluate=evaluate, corpus=Corpus(txt=Txt.paragraph))


def test_text_is_measured_as_documents(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("月日\n\n月", "utf-8")  # 1 + 2 + 3 and 1 + 3 bits with the end of each
    metrics = main(config(tmp_path, model=str(saved), files=[str(tmp_path / "*.txt")]))
    assert metrics == pytest.approx({"loss": 2 * math.log(2), "perplexity": 4.0, "bits_per_byte": 4 / 9}, rel=1e-4)
    (tmp_path / "b.jsonl").write_text('{"title": "月"}\n', "utf-8")
    with pytest.raises(InputError, match=r"b.jsonl:1: no text in field 'text'"):
        main(config(tmp_path, model=str(saved), files=[str(tmp_path / "b.jsonl")]))


def test_a_long_text_is_read_whole(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("月" * 200, "utf-8")  # in windows of 64
    metrics = main(config(tmp_path, model=str(saved), files=[str(tmp_path / "a.txt")]))
    assert metrics["loss"] == pytest.approx((200 + 3) * math.log(2) / 201, rel=1e-4)


def test_rows_of_the_run_or_its_text_where_the_model_has_other_pieces(
    model: Decoder, tokenizer: Tokenizer, saved: Path, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cfg = config(tmp_path, model=str(saved))
    documents = [document(tokenizer.encode("月日"), tokenizer.eos)] * 2
    for name, digest in (("mine", tokenizer.digest), ("other", "another")):
        written = tmp_path / name / "tokens" / "val"
        write_rows(written, pack(documents, 8), row_length=8, rows_per_shard=4, meta={"tokenizer": digest})
    cfg.run.name = "mine"
    whole = {"loss": 2 * math.log(2), "perplexity": 4.0, "bits_per_byte": 2 * (1 + 2) / 12}
    assert main(cfg) == pytest.approx(whole, rel=1e-4)
    rows = Rows(tmp_path / "mine" / "tokens" / "val")
    assert main(cfg) == pytest.approx(held_out(model, tokenizer, rows, limit=10), rel=1e-4)
    cfg.run.name = "other"
    with pytest.raises(InputError, match=r"made with tokenizer another, the model has .*; run trainers.tokens again"):
        held_out(model, tokenizer, Rows(tmp_path / "other" / "tokens" / "val"), limit=10)
    (tmp_path / "other" / "corpus").mkdir()
    pq.write_table(pa.table({"text": ["月", "日月"]}), tmp_path / "other" / "corpus" / "val-00000.parquet")
    assert main(cfg)["bits_per_byte"] == pytest.approx((1 + 2 + 1) / 9, rel=1e-4)


def test_every_window_begins_with_the_mark_that_the_family_puts_before_a_text() -> None:
    begun = Tokenizer(llama3().to_str().encode())
    (first,) = begun.opening
    text = "the cat sat on the hat, and the cat ran"
    whole = [*begun.encode(text), begun.eos]
    pieces = list(windows(text, begun, 8))
    assert len(pieces) > 2 and all(ids[0] == first and len(ids) <= 8 for ids, _ in pieces)
    targets = [index for ids, mask in pieces for index, one in zip(ids, mask, strict=True) if one]
    assert targets == whole  # each once, in its place
    assert all(
        ids[1:2] == [whole[sum(map(sum, (m for _, m in pieces[:n]))) - 1]] for n, (ids, _) in enumerate(pieces) if n
    )
    (batch,) = packed([text], begun, row_length=64, limit=4)
    assert batch["tokens"][0, : len(whole) + 1].tolist() == [first, *whole]
    assert int(batch["loss"].sum()) == len(whole)


def test_a_hugging_face_folder_of_another_family(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = foreign("llama", tmp_path / "llama")
    (tmp_path / "a.txt").write_text("the moon is bright", "utf-8")
    metrics = main(config(tmp_path, model=str(path), files=[str(tmp_path / "a.txt")]))
    pieces = Tokenizer.load(path)
    ids = torch.tensor([[pieces.eos, *pieces.encode("the moon is bright"), pieces.eos]])
    with torch.no_grad():
        read = AutoModelForCausalLM.from_pretrained(path)
        theirs, text = read(ids, labels=ids).loss, read(ids[:, :-1], labels=ids[:, :-1]).loss
    assert metrics["loss"] == pytest.approx(float(theirs), rel=1e-4)
    assert metrics["bits_per_byte"] == pytest.approx(float(text) * (ids.shape[1] - 2) / math.log(2) / 18, rel=1e-4)


def test_table_file_and_tracker_tell_the_same(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = tmp_path / "moon.jsonl"
    lines = [sample("月月月").line, {"instruction": "问", "output": "日", "label": "日", "task": "guess", "id": "g"}]
    tasks.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    out = tmp_path / "made" / "four.json"
    cfg = config(tmp_path, model=str(saved), tasks=[str(tasks)], out=str(out), temperature=0.0)
    cfg.tracker = Tracker(kind=TrackerKind.wandb)
    metrics = main(cfg)
    assert (metrics["moon/exact_match"], metrics["guess/accuracy"]) == (1.0, 0.0)
    written = json.loads(out.read_text("utf-8"))
    assert (written["model"], written["metrics"]) == (str(saved), metrics)
    assert [one["answer"] for one in written["answers"]["tasks"]] == ["月月月", "月月月"]
    run = wandb_written(tmp_path / "run" / "evaluate" / "four")
    assert (run.run.display_name, run.run.run_group) == ("run/evaluate/four", "run")
    assert {name: run.history[0][name] for name in metrics} == pytest.approx(metrics)
    assert run.summary["tables/task_answers/nrows"] == 2
    shown = capsys.readouterr().out
    assert "exact_match" in shown and "moon moon-月月月\n举头\n-> 月月月" in shown


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_missed_in_a_line(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("月", "utf-8")
    cfg = config(tmp_path, model=str(saved), files=[str(tmp_path / "a.txt")])
    cfg.cluster.gpus_per_worker = 1.0
    with pytest.raises(InputError, match=r"cluster.gpus_per_worker=1, and torch sees no GPU here; try 0"):
        main(cfg)


def test_a_suite_without_data_is_refused_if_named_and_left_out_if_not(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no data for the suite perplexity; give evaluate.files, or another run.name"):
        main(config(tmp_path, model=str(saved)))
    (tmp_path / "a.txt").write_text("月", "utf-8")
    fields: dict[str, Any] = {"model": str(saved), "files": [str(tmp_path / "a.txt")]}
    assert set(main(config(tmp_path, **fields))) == {"loss", "perplexity", "bits_per_byte"}
    with pytest.raises(InputError, match=r"no data for the suite tasks; give evaluate.tasks, or another run.name"):
        main(config(tmp_path, suites=[Suite.perplexity, Suite.tasks], **fields))


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a window of text begins as the model's texts do",
        "trainers/suites.py",
        "(ids,), before = tokenizer.encode_texts([text]), tokenizer.opening",
        "(ids,), before = tokenizer.encode_texts([text]), ()",
        "test_every_window_begins_with_the_mark_that_the_family_puts_before_a_text",
    ),
    (
        "a task's loss is of the answer alone",
        "moe/generation/answers.py",
        "starts=[len(prompt) for prompt in prompts]",
        "starts=[1 for prompt in prompts]",
        None,
    ),
    (
        "a choice is the whole answer, its end included",
        "moe/generation/answers.py",
        "[*prompt, *answer_ids(tokenizer, query.messages, [text])[0]]",
        "[*prompt, *answer_ids(tokenizer, query.messages, [text])[0][:-1]]",
        None,
    ),
    (
        "bits per byte are of text alone",
        "trainers/suites.py",
        "text_nats += float(loss.total) - float(marks)",
        "text_nats += float(loss.total)",
        "test_text_is_measured_as_documents",
    ),
    (
        "a task's bits per byte are without the end",
        "trainers/suites.py",
        "bits_per_byte(text_nats, sum",
        "bits_per_byte(nats, sum",
        "test_only_the_last_answer_and_its_end_are_measured",
    ),
    ("answers to tasks are greedy", "trainers/suites.py", "replace(cfg, temperature=0.0)", "cfg", None),
    (
        "held-out text is not what was learnt",
        "trainers/suites.py",
        'texts(run / "corpus", "val")',
        'texts(run / "corpus", "train")',
        None,
    ),
]
