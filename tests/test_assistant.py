"""data/assistant is what its topics make, its checks know which answers keep a form, its preset goes the whole way."""

import json
from collections import Counter
from pathlib import Path

import pytest

from cluster.pipeline import main
from cluster.run import read_manifest
from conf.entry import compose
from moe.formats import hugging_face
from moe.tasks.checks import broken, read_checks
from moe.tasks.measure import read_task_file
from tests.assistant import FOLDER, forms, write
from tests.moe.formats.foreign_models import foreign


def test_the_files_are_what_the_topics_make(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("instructions", "queries"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (FOLDER / f"{name}.jsonl").read_bytes(), (
            "python -m tests.assistant data/assistant"
        )


def test_every_form_is_kept_by_the_one_answer_and_not_by_the_other() -> None:
    for topic in map(json.loads, (FOLDER / "topics.jsonl").read_text("utf-8").splitlines()):
        for task, prompt, checks, kept, other in forms(topic):
            read_checks(checks)
            assert not any(broken(check, kept) for check in checks), (prompt, kept)
            assert any(broken(check, other) for check in checks), (task, prompt, other)


def test_samples_and_queries_have_no_question_in_common() -> None:
    samples, queries = (
        [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("instructions", "queries")
    )
    assert (len(samples), len(queries)) == (392, 280)
    assert not {sample["instruction"] for sample in samples} & {query["prompt"] for query in queries}
    tasks = Counter(sample["task"] for sample in samples)
    assert len(tasks) == 14 and min(tasks.values()) == 28


@pytest.mark.ray
@pytest.mark.slow
def test_the_preset_goes_the_whole_way_at_a_small_size(ray_cluster: None, tmp_path: Path) -> None:
    """As `make demo-assistant`, from a parent of two layers that knows nothing."""
    parent = foreign("llama", tmp_path / "parent")
    config = json.loads((parent / "config.json").read_text("utf-8"))
    (parent / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}), "utf-8")
    main(compose(["preset=assistant", f"run.dir={tmp_path}", f"parent.model={parent}", *SMALL.split()]))
    run = tmp_path / "assistant"
    shape = hugging_face.load_config(run / "rl")
    assert (shape.experts, shape.top_k) == (2, 1)
    asked, measured = (
        {query.prompt for query in read_task_file(run / "tasks" / f"{name}.jsonl")}
        for name in ("prompts", "test_prompts")
    )
    assert len(asked) == 245 and len(measured) == 35 and not asked & measured
    told = {stage: read_manifest(run / stage)["metrics"] for stage in ("chat", "ranked", "reward", "rl", "compared")}
    assert told["ranked"]["answers"] == 128 and told["reward"]["score_std"] > 0
    assert 0 <= told["rl"]["checks_ok"] <= 1 and "kl_per_answer" in told["rl"]
    chats = json.loads((run / "compared" / "samples.json").read_text("utf-8"))
    assert len(chats) >= 3 and all({"prompt", "chat", "rl"} <= chat.keys() for chat in chats)


SMALL = (
    "sft.steps=2 sft.save_every=2 sft.eval_every=2 sft.row_length=320 rank.prompts=32 rank.max_new_tokens=12 "
    "reward.steps=2 reward.eval_every=2 ppo.iterations=1 ppo.prompts=2 ppo.samples=4 ppo.max_new_tokens=12 "
    "evaluate.prompts=4 evaluate.rows=2 evaluate.max_new_tokens=12"
)

PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a form that a query asks for can be checked",
        "moe/tasks/checks.py",
        'LANGUAGES = {"en": "latin", "zh": "han"}',
        'LANGUAGES = {"en": "han", "zh": "latin"}',
        "test_every_form_is_kept_by_the_one_answer_and_not_by_the_other",
    ),
]
