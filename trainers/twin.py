"""Pretrain a dense twin of the run's model: what a mixture of experts is worth beside what it costs.

The twin has one MLP as wide as the experts that a token of the mixture passes through: as many active parameters, up to
the router's, and as many operations a token. It sees the same rows in the same steps with the same seed and settings;
`cluster.report` draws both against tokens, operations and time.
"""

from conf.entry import early, job

early(__name__)


from dataclasses import replace

from conf.errors import InputError
from conf.knobs.model import Model
from conf.schema import Config
from trainers.pretrain import pretrain
from trainers.pretrain import reads as reads


def check(cfg: Config) -> None:
    """Raise `InputError` for a twin of what did not begin with random weights."""
    if cfg.parent.model:
        raise InputError(
            f"parent.model={cfg.parent.model}: a twin begins with random weights, as the model beside it must; "
            "leave parent.model empty, or the stage twin out of pipeline.stages"
        )


@job
def main(cfg: Config) -> dict[str, float]:
    """Read the tokens stage, write the dense model; returns what `trainers.pretrain` does."""
    check(cfg)
    return pretrain(replace(cfg, model=dense(cfg.model)), "twin")


def dense(model: Model) -> Model:
    """The same model without a choice of experts, nor losses that guide it."""
    return replace(
        model, experts=1, top_k=1, expert_size=model.top_k * model.expert_size, balance_coef=0.0, z_coef=0.0, jitter=0.0
    )


if __name__ == "__main__":
    main()
