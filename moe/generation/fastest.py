"""Which way computes a model's rows the fastest: in C, by CUDA graphs, or by torch."""

from moe.decoder import Decoder
from moe.generation.graphs import ByGraph
from moe.generation.rows import ByC, ByTorch, Rows, step_of


def rows_of(model: Decoder, slots: int) -> Rows:
    """For at most so many rows."""
    step = step_of(model)
    if step.takes():
        return ByC(model, step)
    return ByGraph(model, slots) if model.device.type == "cuda" else ByTorch(model, slots)
