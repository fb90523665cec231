"""A stage that learns nothing: its held-out loss is what its knobs say. For the tests of a sweep."""

import json
import os
import time

from cluster.run import open_stage
from conf.entry import job
from conf.errors import InputError
from conf.schema import Config


@job
def main(cfg: Config) -> None:
    """Read the tokens stage; a learning rate above 1 is refused, one of 0.5 crashes."""
    with open_stage(cfg, "base", reads=["tokens"], settings={"optim": cfg.optim, "pretrain": cfg.pretrain}) as stage:
        if stage.done:
            return
        if cfg.optim.lr > 1:
            raise InputError(f"{stage.folder.parent}: optim.lr={cfg.optim.lr} diverged; try run.name={cfg.run.name}")
        (stage.folder / "attempts").open("a").write("once more\n")
        for step in range(1, cfg.pretrain.steps + 1):
            with open(stage.folder / "metrics.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps({"step": step, "val/loss": cfg.optim.lr * 10 + 1 / step}) + "\n")
            if cfg.optim.lr == 0.5:
                os._exit(7)
            time.sleep(cfg.evaluate.timeout)
        stage.finish({"loss": cfg.optim.lr * 10})


if __name__ == "__main__":
    main()
