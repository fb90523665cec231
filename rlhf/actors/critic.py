"""The critic actor: a value for the state before each token of an answer, and its learning."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cluster import fault
from conf.knobs.model import Precision
from conf.knobs.reinforcement import Ppo
from conf.knobs.running import Cluster
from moe.formats import hugging_face
from rlhf.actors.ranks import together
from rlhf.actors.trained import Trained
from rlhf.forward import answer_scores, slices, spread, token_values
from rlhf.losses import explained_variance
from rlhf.messages import Batch
from rlhf.objectives import value_objective


class Critic(Trained):
    def __init__(
        self,
        folder: Path,
        cfg: Ppo,
        precision: Precision,
        seed: int,
        threads: int,
        device: str = "cpu",
        cluster: Cluster | None = None,
    ) -> None:
        """It begins as the reward model, or as the chat model where there is none."""
        scalar = hugging_face.load_scalar(folder, seed=seed)
        with torch.no_grad():
            scalar.score.weight.zero_()  # it starts by expecting nothing
        super().__init__(scalar, cfg.critic_lr, cfg, precision, seed, threads, device, cluster)

    @together
    @torch.no_grad()  # FSDP2 cannot train on what inference mode has gathered
    def values(self, batch: Batch) -> Tensor:
        """[B, T]"""
        fault.at("critic.values")
        said = self._of_each(slices(batch), partial(token_values, self.model))
        return spread(torch.cat(said), batch.mask)

    @together
    @torch.no_grad()
    def edges(self, batch: Batch) -> Tensor:
        """What it expects after the last token of each row [B]."""
        fault.at("critic.values")
        return torch.cat(self._of_each(slices(batch), partial(answer_scores, self.model))).float().cpu()

    @together
    def update(self, batch: Batch, values: Tensor, returns: Tensor) -> dict[str, float]:
        """One PPO iteration of the value model; `values` are those before it."""
        self._begin(batch)
        objective = value_objective(self.cfg)
        stats = self._learn("critic", batch, {"values": values, "returns": returns}, lambda number: objective)
        self.version += 1
        chosen = batch.mask.bool()
        return stats | {"critic/vf_explained_var": explained_variance(values[chosen], returns[chosen])}
