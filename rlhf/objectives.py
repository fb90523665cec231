"""What learner and critic minimise, as objectives of the one training step; the mathematics is in `rlhf.losses`."""

from torch import Tensor

from conf.knobs.reinforcement import KlEstimate, KlIn, Ppo
from moe.decoder import Decoder, Hidden
from moe.training.objectives import Batch as Columns
from moe.training.objectives import Loss, Objective
from rlhf.forward import logprobs_of, token_logprobs, values_of
from rlhf.losses import distance, policy_loss, value_loss
from rlhf.messages import Batch


def policy_objective(cfg: Ppo, again: Batch | None) -> Objective:
    """The clipped surrogate, the distance from the chat model where `ppo.kl_in=loss` says so, and the loss of the
    samples that are learnt `again`."""

    estimate = KlEstimate.k3 if cfg.kl_estimate is KlEstimate.auto else cfg.kl_estimate

    def loss(model: Decoder, batch: Columns) -> Loss:
        new, entropy, hidden = logprobs_of(
            model, batch["tokens"], batch["segments"], batch["loss"], batch.get("routes")
        )
        chosen = batch["loss"].bool()
        old, reference = batch["logprobs"][chosen], batch["reference"][chosen]
        made = policy_loss(new, old, batch["advantages"][chosen], cfg.clip, cfg.dual_clip)
        count = new.shape[0]
        total = made.loss
        sums = {
            "actor/pg_loss": total,
            "actor/pg_clipfrac": made.clipped,
            "actor/ppo_kl": made.kl,
            "actor/entropy": entropy.sum(),
        }
        if cfg.kl_in is KlIn.loss:
            apart = distance(new, reference, estimate).sum()
            sums["actor/kl_loss"] = apart
            total = total + cfg.kl_coef * apart
        if cfg.dual_clip:
            sums["actor/pg_clipfrac_lower"] = made.bounded
        if cfg.entropy_coef:
            total = total - cfg.entropy_coef * entropy.sum()
        if again is not None:
            replayed = -token_logprobs(model, again)[0].mean() * count
            sums["actor/replay_loss"] = replayed
            total = total + cfg.replay_weight * replayed
        return _told(total, count, hidden, sums)

    names = ["actor/pg_loss", "actor/pg_clipfrac", "actor/ppo_kl", "actor/entropy"]
    names += ["actor/pg_clipfrac_lower"] * bool(cfg.dual_clip)
    names += ["actor/kl_loss"] * (cfg.kl_in is KlIn.loss) + ["actor/replay_loss"] * (again is not None)
    return Objective("token", _answer_tokens, loss, tuple(names))


def value_objective(cfg: Ppo) -> Objective:
    """The critic's squared error, clipped about its values before the update."""

    def loss(model: Decoder, batch: Columns) -> Loss:
        new, hidden = values_of(model, batch["tokens"], batch["segments"], batch["loss"])
        chosen = batch["loss"].bool()
        total = value_loss(new, batch["values"][chosen], batch["returns"][chosen], cfg.value_clip)
        return _told(total, new.shape[0], hidden, {"critic/vf_loss": total})

    return Objective("token", _answer_tokens, loss, ("critic/vf_loss",))


def _answer_tokens(batch: Columns) -> int:
    return int(batch["loss"].sum())


def _told(total: Tensor, count: int, hidden: Hidden, sums: dict[str, Tensor]) -> Loss:
    none = total.new_zeros(())
    return Loss(total, count, none, none, hidden, {name: value.detach() for name, value in sums.items()})
