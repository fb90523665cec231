"""Steps in the order of the config, a user's own among them: what each let through, changed, rejected, and why."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from conf.errors import InputError
from conf.knobs.text import Corpus
from tests.trainers.clean.direct import collected
from trainers.clean.document import Document, Verdict
from trainers.clean.steps import chain, taken, versions

OWN = """
def short(block):
    return [document for document in block if len(document.text) < 20]


def shout(block):
    for document in block:
        document.change(document.text.upper(), "shouted")
    return block


def marks(block):
    for document in block:
        if "!" in document.text:
            document.reject("marks", document.text.count("!"), 0)
    return block


def broken(block):
    raise KeyError("x")
"""


def after(*texts: str, steps: list[str], **knobs: object) -> list[Document]:
    block = [Document(text, {"text": text, "n": [text]}) for text in texts]
    taken(chain(Corpus(steps=steps, **knobs)), block, "{text}")  # type: ignore[arg-type]
    return block


def test_text_is_mended_and_its_record_with_it() -> None:
    (one,) = after("ＡＢＣ１２３，\u200b天\u00ad地\ue000 ﬁne", steps=["unicode"])
    assert one.text == "ABC123，天地 fine" and one.record == {"text": one.text, "n": [one.text]}
    assert one.changes == {"unicode": 1}
    (page,) = after("<p>天&nbsp;地</p><script>x = 1</script>a &lt; b<br/>c < d", steps=["html"])
    assert page.text == "天 地\na < b\nc < d"
    framed, alone = after(
        "天地玄黄\n版权所有 翻印必究\n上一篇：甲 下一篇：乙\n宇宙洪荒", "All rights reserved", steps=["lines"]
    )
    assert framed.text == "天地玄黄\n宇宙洪荒" and framed.verdict is None
    assert alone.verdict == Verdict("lines", "nothing is left")
    joined = "a\u200db \u0646\u200c\u0647 \U0001f468\u200d\U0001f469"
    assert after(joined, steps=["unicode"])[0].text == "ab \u0646\u200c\u0647 \U0001f468\u200d\U0001f469"


def test_what_goes_is_counted_once_and_later_steps_do_not_see_it() -> None:
    text = "打电话给 13912345678 的人说：床前明月光，疑是地上霜。"
    block = [Document(text, {"text": text}), Document("短", {"text": "短"})]
    tallies = taken(chain(Corpus(steps=["rules", "pii"])), block, "{text}")
    assert block[0].text == "打电话给 [phone] 的人说：床前明月光，疑是地上霜。"
    assert block[0].record == {"text": block[0].text}
    assert block[1].verdict == Verdict("rules", "characters", 1.0, 16.0)
    first, second = tallies["rules"], tallies["pii"]
    assert (first.documents, first.kept, first.rejected) == (2, 1, {"characters": 1})
    assert (second.documents, second.kept, second.changed) == (1, 1, {"phone": 1})
    assert (first.characters, first.kept_characters) == (len(text) + 1, len(text))
    assert (second.characters, second.kept_characters) == (len(text), len(block[0].text))


def test_a_step_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_steps.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_steps", raising=False)  # another test's
    one, long, loud = after("abc", "abc" * 9, "stop!!", steps=["my_steps.short", "my_steps.marks", "my_steps.shout"])
    assert (one.text, one.record["text"], one.verdict) == ("ABC", "ABC", None)
    assert long.verdict == Verdict("my_steps.short", "left out")
    assert loud.verdict == Verdict("my_steps.marks", "marks", 2.0, 0.0)
    before = versions(Corpus(steps=["my_steps.short"]))["my_steps.short"]
    assert len(before) == 16
    with pytest.raises(InputError, match="corpus.steps: my_steps.broken: KeyError: 'x'"):
        after("a", steps=["my_steps.broken"])
    for steps, words in {
        "spel": "no step 'spel'; there are unicode, html, .*, pii, or your.module.function",
        "my_steps.none": "my_steps has no function none",
        "not_there.x": "not_there cannot be imported",
    }.items():
        with pytest.raises(InputError, match=words):
            chain(Corpus(steps=[steps]))


def test_what_holds_an_evaluation_sample_goes_and_the_sample_is_named(tmp_path: Path) -> None:
    questions = [
        f"Question {n} of the test: which of the following is the right answer to it, as far as you know?"
        for n in range(12)
    ]
    questions[4] += (
        " The river that flows through the capital of the oldest county of the north is named after a saint."
    )
    questions[5] = "唐代诗人李白生于哪一年，卒于哪一年，葬在什么地方？"
    questions[6] = "绿水青山就是金山银山。"  # shorter than a run, and counts whole
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps({"question": text, "n": [1]}) + "\n" for text in questions))
    texts = [
        "We know that The river that flows through the capital, of the OLDEST county of the north is old and the best.",
        "It is a phrase: which of the following is the right answer to it, as far as you know? Nobody knows the rest.",
        "有人问：唐代诗人李白生于哪一年，卒于哪一年？没有人知道。",
        "他们说绿水青山，就是金山银山，这句话大家都听过。",
        "唐代诗人杜甫生于哪一年，这是另外一个问题。",
    ]
    block = after(*texts, steps=[], against=[str(tmp_path / "eval.jsonl")])
    place = f"{tmp_path}/eval.jsonl"
    verdicts = [one.verdict and (one.verdict.step, one.verdict.rule, one.verdict.note) for one in block]
    assert verdicts == [
        ("against", "overlap", f"{place}:5"), None, ("against", "overlap", f"{place}:6"),
        ("against", "overlap", f"{place}:7"), None,
    ]  # fmt: skip
    assert block[0].verdict is not None and block[0].verdict.value == 3  # 15 words in common: three runs of 13


def test_the_ledger_has_every_record_and_the_row_that_holds_it(tmp_path: Path) -> None:
    poem = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"
    texts = [poem, "\u200b", "短", poem, poem.replace("霜", "雪") + "写信给 a@b.cn", poem + "甲", poem + "乙"]
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + "bad\n")
    cfg = Corpus(files=[str(file)], steps=["rules", "pii"], max_bad_fraction=0.5, val_fraction=0.2, test_fraction=0.2)
    found = collected(tmp_path, cfg)
    assert {name: found[name] for name in ("read", "kept", "duplicates", "empty", "rejected", "removed")} == {
        "read": 8, "kept": 4, "duplicates": 1, "empty": 1, "rejected": 1, "removed": 1,
    }  # fmt: skip
    lives = pq.read_table(tmp_path / "ledger-00000.parquet").to_pylist()
    assert [life["line"] for life in lives] == list(range(1, 9))
    assert [life["step"] for life in lives] == ["", "empty", "rules", "exact", "", "", "", "read"]
    assert (lives[2]["rule"], lives[2]["value"], lives[2]["limit"], lives[2]["start"]) == ("characters", 1, 16, "短")
    assert lives[3]["twin"] == 0 and json.loads(lives[4]["changes"]) == {"mail": 1}
    assert lives[7]["rule"].startswith("broken JSON") and lives[7]["offset"] == file.read_bytes().index(b"bad")
    for life in lives:
        if life["split"]:
            rows = pq.read_table(tmp_path / f"{life['split']}-00000.parquet").to_pylist()
            assert rows[life["row"]]["id"] == life["id"]
    kept = [
        row
        for split in ("train", "val", "test")
        for row in pq.read_table(tmp_path / f"{split}-00000.parquet").to_pylist()
    ]
    assert sorted(row["id"] for row in kept) == [0, 4, 5, 6]
    assert next(row for row in kept if row["id"] == 4)["record"].count("[mail]") == 1


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "what a step takes out is taken out of the record too",
        "trainers/clean/steps.py",
        "                if step.edit:\n",
        "                if False:\n",
        None,
    ),
    (
        "a document that went is not seen by later steps",
        "trainers/clean/steps.py",
        "there = [document for document in block if document.verdict is None]",
        "there = list(block)",
        None,
    ),
    (
        "the verdict names the step",
        "trainers/clean/steps.py",
        "document.verdict = replace(document.verdict, step=step.name)",
        "pass",
        None,
    ),
    (
        "a phrase of many evaluation samples is none of them",
        "trainers/clean/against.py",
        "    kept = counts < SHARED",
        "    kept = counts < np.inf",
        "test_what_holds_an_evaluation_sample_goes_and_the_sample_is_named",
    ),
    (
        "an evaluation sample that is short counts whole",
        "trainers/clean/against.py",
        "if size >= SHORTEST:",
        "if size == RUN:",
        "test_what_holds_an_evaluation_sample_goes_and_the_sample_is_named",
    ),
    (
        "the ledger names the row of the split",
        "trainers/clean/gather.py",
        "found[mine] = before[split] + np.cumsum(times) - times",
        "found[mine] = before[split]",
        "test_the_ledger_has_every_record_and_the_row_that_holds_it",
    ),
]
