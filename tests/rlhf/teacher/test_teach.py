"""A teacher behind a real server: what it says well is kept, and nothing of what is wrong, late or broken enters."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.run import open_stage
from conf.errors import InputError
from conf.knobs.alignment import Judge
from conf.knobs.running import Run
from conf.knobs.teacher import Teach
from conf.schema import Config
from rlhf.judges import endpoint
from rlhf.teacher import prompts, sifting, teach
from rlhf.teacher.prompts import Pair, parsed
from rlhf.teacher.sifting import Passage, Sieve, conversations, grounded

TOPICS = "Athens Bremen Cairo Delhi Essen Fez Genoa Hanoi Izmir Jaffa".split()
Answer = tuple[int, dict[str, Any] | str, float]  # status, body, seconds before it


def passage(topic: str) -> str:
    return (
        f"{topic} lies on a wide river that freezes in winter. The market of {topic} opens before dawn and sells wool. "
        f"Its oldest bridge was built by masons from the north."
    )


def good(topic: str) -> list[dict[str, Any]]:
    return [
        {"question": f"When does the market of {topic} open?", "answer": f"The market of {topic} opens before dawn.",
         "difficulty": 1},
        {"question": f"What does the market in {topic} sell at dawn?", "answer": f"The market of {topic} sells wool.",
         "difficulty": 2},
        {"question": f"Who made the oldest bridge of {topic}?", "answer": "It was built by masons from the north.",
         "difficulty": 3},
    ]  # fmt: skip


def completion(text: str, finish: str = "stop") -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}


class Server:
    """Answers as the script says, by the topic and how often it was asked about."""

    def __init__(self, script: Callable[[str, int], Answer]) -> None:
        self.asked: Counter[str] = Counter()
        server, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][0]["content"]
                topic = next(one for one in TOPICS if one in text)
                with lock:
                    server.asked[topic] += 1
                    times = server.asked[topic]
                status, answer, delay = script(topic, times)
                ended.wait(delay)
                content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    pass  # who asked has gone

            def log_message(self, *_: Any) -> None:
                pass

        ended = self._ended = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._ended.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Config, Server]]]:
    monkeypatch.setattr(endpoint, "BACK_OFF", 0.01)
    servers: list[Server] = []

    def made(script: Callable[[str, int], Answer], **knobs: Any) -> tuple[Config, Server]:
        servers.append(Server(script))
        cfg = Config(
            run=Run(name="r", dir=str(tmp_path)),
            judge=Judge(url=servers[-1].url, model="teacher", timeout=0.5, retries=2),
            teach=Teach(**{"least": 40, "questions": 3, **knobs}),
        )
        with open_stage(cfg, "corpus", reads=[], settings={}) as stage:
            if not stage.done:
                table = pa.table({"id": [10 + n for n in range(len(TOPICS))], "text": [*map(passage, TOPICS)]})
                pq.write_table(table, stage.folder / "train-00000.parquet")
                stage.finish({})
        return cfg, servers[-1]

    yield made
    for server in servers:
        server.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


WRONG = {  # topic: what comes first, and then for ever
    "Athens": "Sure! Here are three questions: 1. When? 2. Where? 3. Who?",
    "Bremen": json.dumps([*good("Bremen")[:2], {"question": "Who?", "answer": 7, "difficulty": 1}]),
    "Cairo": json.dumps(good("Cairo"))[:-9],
    "Delhi": json.dumps([{**one, "note": "x"} for one in good("Delhi")]),
}


def script(topic: str, times: int) -> Answer:
    if topic in WRONG:
        return 200, completion(WRONG[topic]), 0.0
    if topic == "Essen" and times == 1:
        return 200, completion("nonsense"), 0.0  # and then as it was asked
    if topic == "Fez" and times < 3:
        return 503, "busy", 0.0
    if topic == "Genoa":
        return 200, completion(json.dumps(good(topic))), 3.0  # never in time
    if topic == "Hanoi":
        made_up = {"question": "What do people in Hanoi eat?", "answer": "Most families cook rice with green mangoes.",
                   "difficulty": 1}  # fmt: skip
        return 200, completion(json.dumps([made_up, good(topic)[0], good(topic)[0]])), 0.0
    if topic == "Izmir":
        return 200, completion(json.dumps(good(topic)), "length"), 0.0
    return 200, completion("```json\n" + json.dumps(good(topic)) + "\n```"), 0.0


def test_a_real_server_teaches_and_nothing_wrong_enters(served: Callable[..., tuple[Config, Server]]) -> None:
    cfg, server = served(script, max_lost=0.7)
    metrics = teach.main(cfg)
    folder = cfg.run.folder / "taught"
    taught, gone = lines(folder / "samples.jsonl"), lines(folder / "rejects.jsonl")
    turns = {
        (turn["content"], answer["content"])
        for one in taught
        for turn, answer in zip(one["messages"][::2], one["messages"][1::2], strict=True)
    }
    assert turns == {(one["question"], one["answer"]) for t in ("Essen", "Fez", "Jaffa") for one in good(t)} | {
        (good("Hanoi")[0]["question"], good("Hanoi")[0]["answer"])
    }
    by_rule = Counter(line["rule"] for line in gone)
    assert by_rule == {"another form": 4, "no reply": 1, "cut off": 1, "not grounded": 1, "asked before": 1}
    assert metrics == {
        "passages": 10, "lost": 6, "unparsable": 3 * 5 + 1, "pairs": 12, "rejected": 2, "turns": 10,
        "samples": len(taught),
    }  # fmt: skip
    report = json.loads((folder / "report.json").read_text())
    assert report["failures"] == {"503": 2, "timeout": 3} and report["rejects"] == {
        "asked before": 1,
        "not grounded": 1,
    }
    assert metrics["pairs"] == metrics["turns"] + metrics["rejected"]  # nothing else went, or came
    assert {one["passage"]["record"] for one in taught} == {
        10 + TOPICS.index(t) for t in ("Essen", "Fez", "Hanoi", "Jaffa")
    }
    # again, with other bounds: only what has no reply yet is asked
    before = server.asked.copy()
    again = replace(cfg, run=replace(cfg.run, rebuild=True), teach=replace(cfg.teach, turns=1))
    assert teach.main(again)["samples"] == 10
    assert {topic for topic in TOPICS if server.asked[topic] > before[topic]} == {"Genoa"}


def test_a_teacher_of_no_use_ends_the_job_and_keeps_what_was_paid_for(
    served: Callable[..., tuple[Config, Server]],
) -> None:
    cfg, _ = served(lambda topic, _: (200, completion("no"), 0.0))
    with pytest.raises(InputError, match=r"2 of 10 passages have no usable reply|10 of 10 passages have no usable"):
        teach.main(cfg)
    assert len(lines(cfg.run.folder / "teacher" / "replies.jsonl")) == 30


def test_a_reply_counts_whole_or_not_at_all() -> None:
    pairs = good("Fez")
    assert parsed(json.dumps(pairs), 3) == [Pair(one["question"], one["answer"], one["difficulty"]) for one in pairs]
    for reply in (
        "", "[]", "{}", "null", json.dumps(pairs * 2), json.dumps([pairs[0], "x"]), "[" * 100_000,
        json.dumps([{**pairs[0], "difficulty": True}]), json.dumps([{**pairs[0], "difficulty": 6}]),
        json.dumps([{**pairs[0], "answer": " "}]), json.dumps([{**pairs[0], "answer": "\ud800"}]),
        '[{"question": "a", "question": "b", "answer": "c", "difficulty": 1}]',
    ):  # fmt: skip
        assert parsed(reply, 3) is None, reply[:60]


@pytest.mark.parametrize(
    ("pair", "rule"),
    [
        (Pair("Where?", "Athens lies on a wide river.", 1), "question too short"),
        (Pair("Where does Athens lie, please?", "River.", 1), "answer too short"),
        (Pair("雅典在什么地方?", "Athens lies on a wide river.", 1), "question in another writing"),
        (Pair("What does the passage say of wool?", "The market sells wool.", 1), "question speaks of the passage"),
        (Pair("Where does Athens lie, please?", "Athens lies on a wide river.", 5), "difficulty"),
        (Pair("Where does Athens lie, please?", "Athens is a modern harbour on an island.", 1), "not grounded"),
        (Pair("Tell me all about Athens, please?", passage("Athens"), 1), "answer is the passage"),
        (Pair("Where does Athens lie, please?", "Athens lies on a wide river.", 1), None),
    ],
)
def test_each_bound_has_its_reason(pair: Pair, rule: str | None) -> None:
    sieve = Sieve(Teach(hardest=4))
    gone = sieve.gone(pair, Passage(0, 0, passage("Athens")))
    assert (gone.rule if gone else None) == rule
    if rule is None:
        again = sieve.gone(replace(pair, question="where does ATHENS lie please"), Passage(1, 0, passage("Athens")))
        assert again and (again.rule, again.value) == ("asked before", 1.0)


def test_overlap_and_turns_by_hand() -> None:
    assert grounded("春眠不觉晓", "春眠不觉醒") == 3 / 4  # 春眠 眠不 不觉, and not 觉晓
    near, far = Pair("a b c", "d e f", 1), Pair("x y z", "u v w", 1)
    assert conversations([near, replace(near, answer="d e g"), far, far, far, far], Teach(turns=3)) == [
        [near, replace(near, answer="d e g")], [far, far, far], [far],
    ]  # fmt: skip


def test_passages_are_whole_sentences_of_the_document() -> None:
    text = " ".join(passage(topic) for topic in TOPICS)
    made = list(teach.cut(4, text, 100, 300))
    assert len(made) > 3
    for one in made:
        assert text[one.place : one.place + len(one.text)] == one.text and 100 <= len(one.text) <= 300
        assert one.text.endswith(".") and one.text[0].isupper()
    assert list(teach.cut(4, "Too short.", 100, 300)) == []
    assert prompts.question(made[0].text, 2).count(made[0].text) == 1
    assert sifting.sample([Pair("q", "a", 2)], made[0], 0)["passage"]["record"] == 4


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "an answer that the passage does not bear out is no sample",
        "rlhf/teacher/sifting.py",
        "< cfg.grounded:",
        "< 0:",
        "test_each_bound_has_its_reason",
    ),
    (
        "a teacher's reply that was cut off is not used",
        "rlhf/teacher/teach.py",
        "elif not reply.whole:",
        "elif False:",
        "test_a_real_server_teaches_and_nothing_wrong_enters",
    ),
    (
        "one wrong pair makes a teacher's reply none",
        "rlhf/teacher/prompts.py",
        "if all(pairs) else None",
        "if any(pairs) else None",
        "test_a_real_server_teaches_and_nothing_wrong_enters",
    ),
    (
        "no question is asked twice of a student",
        "rlhf/teacher/sifting.py",
        "        self._remember(pair.question)\n        return None",
        "        return None",
        "test_each_bound_has_its_reason",
    ),
]
