"""The terminal: what is typed is answered as the server would, and every command does what it says."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.feedback import Store, for_training
from conf.errors import InputError
from conf.knobs import running
from conf.schema import Config
from moe.generation.engine import Engine, Sampling, generate
from moe.text.chat import prompt_ids
from serving import chat
from serving.terminal import Left, Session
from tests.serving.conftest import Tiny
from trainers.files.samples import read_samples

GREEDY = Sampling(6, temperature=0.0)


@pytest.fixture
def session(tiny: Tiny, tmp_path: Path) -> Session:
    engine = Engine(tiny.model, 1, tiny.tokenizer.stop)
    store = Store(tmp_path / "feedback.sqlite3")
    return Session(engine, tiny.tokenizer, "tiny", "fp_1", ("helpful", "clear"), store, GREEDY)


def expected(tiny: Tiny, *messages: tuple[str, str], bound: int = 6) -> str:
    ids = prompt_ids(tiny.tokenizer, [{"role": role, "content": content} for role, content in messages])
    made = generate(tiny.model, [ids], [replace(GREEDY, max_new_tokens=bound)], stop=tiny.tokenizer.stop)[0]
    return tiny.tokenizer.decode(made.tokens)


def test_each_answer_goes_on_from_all_that_was_said(session: Session, tiny: Tiny) -> None:
    first = "".join(session.answer("你好"))
    assert first == expected(tiny, ("user", "你好"))
    session.do("/system 简短")
    second = "".join(session.answer("月"))
    talk = (("system", "简短"), ("user", "你好"), ("assistant", first), ("user", "月"))
    assert second == expected(tiny, *talk)
    session.do("/max_tokens 3")
    said, again = session.do("/retry")
    assert (said, again) == ("", "月")
    assert "".join(session.answer("月")) == expected(tiny, *talk, bound=3)
    session.do("/undo")
    assert session.turns == [{"role": "user", "content": "你好"}, {"role": "assistant", "content": first}]
    assert session.do("/new")[1] is None
    assert session.messages == [{"role": "system", "content": "简短"}]


def test_whoever_stops_an_answer_keeps_what_had_come(session: Session) -> None:
    session.do("/max_tokens 500")
    pieces = session.answer("你好")
    had = next(pieces) + next(pieces)
    pieces.close()
    assert session.turns[-1] == {"role": "assistant", "content": had}
    assert session.engine.idle  # and nothing goes on in secret
    assert "".join(session.answer("月"))


def test_votes_reach_the_store_and_the_conversation_a_file(session: Session, tmp_path: Path) -> None:
    answer = "".join(session.answer("你好"))
    session.do("/up clear")
    session.do("/better 你也好")
    up, better = (vote.said for vote in for_training(session.store.path))
    assert (up["kind"], up["principle"], up["messages"]) == ("up", "clear", [{"role": "user", "content": "你好"}])
    given = {"text": answer, "finished": False, "model": "tiny", "version": "fp_1"}
    assert up["answers"][0].items() >= given.items()
    assert up["answers"][0]["sampling"].items() >= {"temperature": 0.0, "max_tokens": 6}.items()
    assert (better["kind"], better["correction"]) == ("correction", "你也好")
    for _ in range(2):
        session.do(f"/save {tmp_path / 'own.jsonl'}")
    assert [len(sample.messages) for sample in read_samples(tmp_path / "own.jsonl")] == [2, 2]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/sing", "/sing is no command; /help lists them"),
        ("/temperature hot", "/temperature hot: give a number"),
        ("/temperature 3", "/temperature 3: must lie in \\[0, 2\\]"),
        ("/temperature nan", "must lie in"),
        ("/max_tokens 0", "must lie in \\[1, "),
        ("/seed -1", "give a whole number, or none"),
        ("/retry", "nothing has been answered yet"),
        ("/up", "nothing has been answered yet"),
        ("/up witty", "no such principle; there are helpful, clear"),
        ("/save", "nothing has been answered yet"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(session: Session, line: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        session.do(line)
    with pytest.raises(Left):
        session.do("/quit")


def test_the_command_talks_until_the_end_of_input(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["/temperature 0", "/seed 5", "你好", "/sing", "/up", "/help"])

    def typed(lines_: Callable[[], str]) -> Callable[[str], str]:
        def read(_: str) -> str:
            try:
                return lines_()
            except StopIteration:
                raise EOFError from None

        return read

    monkeypatch.setattr("builtins.input", typed(lambda: next(lines)))
    cfg = Config(
        run=running.Run(name="mine", dir=str(tmp_path)),
        serve=running.Serve(model=str(tiny.folder), max_new_tokens=6),
    )
    chat.main(cfg)
    said = capsys.readouterr().out
    assert said.startswith("tiny. /help says what can be done; Ctrl-D ends it.\ntemperature=0\nseed=5\n")
    assert f"\n{expected(tiny, ('user', '你好'))}\nerror: /sing is no command; /help lists them\nkept in " in said
    (vote,) = for_training(tmp_path / "mine" / "feedback.sqlite3")
    assert vote.said["answers"][0]["sampling"]["seed"] == 5
    assert vote.said["answers"][0]["version"].startswith("fp_")
    json.dumps(vote.said)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a stopped answer frees its slot",
        "serving/terminal.py",
        '            self.engine.cancel("answer")\n',
        "            pass\n",
        "test_whoever_stops_an_answer_keeps_what_had_come",
    ),
    (
        "an answer that was cut off is voted on as such",
        "serving/terminal.py",
        'self.finished = token.finish == "stop"',
        "self.finished = True",
        "test_votes_reach_the_store_and_the_conversation_a_file",
    ),
]
