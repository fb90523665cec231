"""An update that is made again, alone, gives the numbers that the run logged."""

import shutil

import pytest

from conf.errors import InputError
from conf.schema import Config
from rlhf.graph import Graph
from rlhf.replay import main
from tests.rlhf.graphs import GRPO, PPO, Before, config

pytestmark = pytest.mark.ray


def told(before: Before, cfg: Config, step: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    cfg.run.dir, cfg.run.name, cfg.replay.step = str(before.chat.parent.parent), before.chat.parent.name, step
    main(cfg)
    return capsys.readouterr().out.splitlines()


def test_every_update_of_a_run_is_made_again_to_the_bit(
    of_ppo: Graph, before: Before, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, cfg = before.chat.parent / "rl", config(PPO)
    try:
        before.learn(of_ppo, cfg, folder)
        checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
        assert checkpoints == ["step-00000003", "step-00000004"]
        last = told(before, Config(), 0, capsys)  # the knobs of the run are in the record
        assert last[-1] == "step 4: all 11 numbers are the same, to the bit"
        names = {line.split()[0] for line in last[:-1]}
        assert {"actor/pg_loss", "actor/grad_norm", "critic/vf_loss", "critic/grad_norm"} < names
        third = told(before, Config(), 3, capsys)
        assert third[:2] == ["step 1 leads there", "step 2 leads there"]
        assert third[-1] == "step 3: all 11 numbers are the same, to the bit"
        shutil.rmtree(folder / "checkpoints")  # as a stage that is done
        assert told(before, Config(), 1, capsys)[-1] == "step 1: all 11 numbers are the same, to the bit"
        (folder / "iterations" / "step-00000002.parquet").unlink()
        with pytest.raises(
            InputError, match=r"^replay.step=4: from the state at 0 it takes steps 1-4, and .+ step 2; "
        ):
            told(before, Config(), 4, capsys)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_an_update_without_a_critic_is_made_again(
    of_grpo: Graph, before: Before, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = before.chat.parent / "rl"
    try:
        before.learn(of_grpo, config(GRPO), folder)
        lines = told(before, Config(), 2, capsys)
        assert lines[-1].startswith("step 2: all ") and not any(line.startswith("critic/") for line in lines)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


PLANTED = [  # promise, file, right code, bug, test
    (
        "an update is made again from the state before it",
        "rlhf/replay.py",
        "    for number in range(first + 1, step):\n        print",
        "    for number in range(first + 1, step - 1):\n        print",
        "test_every_update_of_a_run_is_made_again_to_the_bit",
    ),
]
