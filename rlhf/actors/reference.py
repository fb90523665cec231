"""The reference actor: the chat model as it was, what the KL tether is tied to. Stateless."""

from pathlib import Path

import torch
from torch import Tensor

from cluster import fault
from moe.formats import hugging_face
from rlhf.forward import slices, spread, token_logprobs
from rlhf.messages import Batch


class Reference:
    def __init__(self, folder: Path, threads: int, device: str = "cpu") -> None:
        torch.set_num_threads(threads)
        self.model = hugging_face.load(folder).to(device)

    @torch.inference_mode()
    def logprobs(self, batch: Batch) -> Tensor:
        """[B, T]"""
        fault.at("reference.logprobs")
        return spread(torch.cat([token_logprobs(self.model, part)[0] for part in slices(batch)]), batch.mask)
