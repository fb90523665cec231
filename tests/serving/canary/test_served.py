"""A trial on the real Ray Serve, from the wish to the new incumbent, while others ask: nobody is refused."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from conf.schema import Config
from moe.decoder import new_decoder
from moe.formats import hugging_face
from moe.text.defaults import Defaults
from serving import promote
from serving.canary import trial as trials
from serving.canary.fleet import ServeFleet
from serving.canary.rollout import Rollout
from serving.models import version
from tests.serving.conftest import Tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def candidate(tiny: Tiny, tmp_path: Path) -> Path:
    other = new_decoder(tiny.model.cfg, tiny.tokenizer.padded_size, seed=4).eval()
    hugging_face.save(other, tmp_path / "next", Defaults.of(tiny.tokenizer, chat=True))
    return tmp_path / "next"


def test_a_candidate_is_tried_judged_and_takes_over(
    served_address: str, served_cfg: Config, tiny: Tiny, candidate: Path
) -> None:
    run, fleet = served_cfg.run.folder, ServeFleet(served_cfg, "tiny", ())
    old, new = version(tiny.folder), version(candidate)
    rollout = Rollout(run, fleet, old, "tiny", every=0.0)
    knobs = replace(served_cfg.promote, model=str(candidate), share=0.5, votes=6)
    trials.write(run, promote.wanted(replace(served_cfg, promote=knobs)))

    def ask(number: int, *more: str) -> Any:
        roles = ("user", "assistant")
        texts = [f"question {number}", *more]
        turns = [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]
        body = {"model": "tiny", "messages": turns, "max_tokens": 3, "temperature": 0}
        response = httpx.post(f"{served_address}/v1/chat/completions", json=body, timeout=600)
        assert response.status_code == 200, response.text
        return response.json()["system_fingerprint"]

    going = True

    def others() -> int:
        count = 0
        while going:
            ask(1000 + count)
            count += 1
        return count

    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(others)
        try:
            trial = rollout.look()
            assert trial and trial.state == "serving"
            time.sleep(1.0)  # every proxy has read of it
            asked = {number: ask(number) for number in range(24)}
            assert set(asked.values()) == {old, new}
            assert {number: ask(number, "x", "y") for number in asked} == asked  # each stays with its model
            for number, fingerprint in asked.items():
                vote = {
                    **{
                        "id": f"v{number}",
                        "conversation": f"c{number}",
                        "kind": "up" if fingerprint == new else "down",
                    },
                    "messages": [{"role": "user", "content": f"question {number}"}],
                    "answers": [{"text": "x", "version": fingerprint}],
                }
                assert httpx.post(f"{served_address}/v1/feedback", json=vote, timeout=60).status_code == 201
            while trial and not trial.over:
                trial = rollout.look()
            assert trial and (trial.state, rollout.version) == ("promoted", new)
            assert {ask(number) for number in range(24)} == {new}
        finally:
            going = False
            fleet.switch(tiny.folder)  # for the tests after this one
            trials.path(run).unlink()
        assert beside.result() > 0  # and none of them failed
    assert ask(0) == old
