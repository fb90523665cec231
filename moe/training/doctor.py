"""The router's doctor: measures how each layer routes, and says when one has collapsed and what helps.

It judges from logged metrics alone: a continued run, which has its log back, judges as if it had never stopped.

Letters: L layers, E experts, k experts per token.
"""

from collections.abc import Iterable, Mapping
from math import log

import torch
from torch import Tensor

from conf.knobs.model import Model
from conf.knobs.training import Doctor as Settings
from conf.knobs.training import Optim

EVERYWHERE = -1  # the place of an illness that is the layer's and no single expert's


def router_metrics(load: Tensor, balance: Tensor, z: Tensor, entropy: Tensor, *, top_k: int) -> dict[str, float]:
    """The metrics `moe/<layer>/...` of a step. load [L, E] shares of the assignments; balance, z, entropy [L].

    `load_max` is the busiest expert's load over the mean; `dead` counts the experts without a token; `entropy` is the
    load's, 1 when it is even and 0 when the same k experts take every token; `token_entropy` is the mean entropy of one
    token's distribution, in nats; `balance` is 1 when the load is even, and less only if the router cheats: it puts
    probability on experts that it does not choose.
    """
    experts = load.shape[1]
    spread = torch.special.entr(load.double()).sum(1)
    scaled = (spread - log(top_k)) / log(experts / top_k) if experts > top_k else torch.ones_like(spread)
    columns = {
        "load_max": load.amax(1) * experts,
        "dead": (load == 0).sum(1),
        "entropy": scaled,
        "token_entropy": entropy,
        "balance": balance,
        "z": z,
    }
    values = {f"moe/{at}/{name}": v for name, column in columns.items() for at, v in enumerate(column.tolist())}
    for layer, shares in enumerate(load.tolist()):
        values |= {f"moe/{layer}/load/{expert}": share for expert, share in enumerate(shares)}
    return values


class Doctor:
    """Reads a run's metrics line by line and tells an illness once: when it has lasted `window` steps, and again only
    if the layer was well in between. `history` are the lines before the first one it will examine."""

    def __init__(self, cfg: Settings, model: Model, optim: Optim, history: Iterable[Mapping[str, float]] = ()) -> None:
        self.cfg, self.model, self.optim = cfg, model, optim
        # No expert gets more than all tokens, which is E/k of its share; with a small E/k, nearly that is a collapse.
        self._max_load = min(cfg.max_load, 1 + 0.9 * (model.experts / model.top_k - 1))
        self._since: dict[tuple[int, str, int], int] = {}  # (layer, illness, place): the step it was first seen at
        self._told: set[tuple[int, str, int]] = set()
        for line in history:
            self.examine(line, int(line["step"]))

    def examine(self, values: Mapping[str, float], step: int) -> dict[str, str]:
        """The alarms that a step's metrics give rise to, as {"moe/<layer>/alarm/<illness>": text}."""
        if "moe/0/load_max" not in values:  # a line of another kind
            return {}
        ill = {(layer, *found) for layer in range(self.model.layers) for found in self._illnesses(layer, values)}
        self._since = {which: self._since.get(which, step) for which in sorted(ill)}
        lasting = {which for which, since in self._since.items() if step - since + 1 >= self.cfg.window}
        new = lasting - self._told
        self._told = lasting
        return {
            f"moe/{layer}/alarm/{illness}": self._text(
                layer, illness, sorted(place for *of, place in new if of == [layer, illness]), values, step
            )
            for layer, illness in sorted({(layer, illness) for layer, illness, _ in new})
        }

    def _illnesses(self, layer: int, values: Mapping[str, float]) -> Iterable[tuple[str, int]]:
        of = f"moe/{layer}/"
        if self.model.experts > self.model.top_k and values[of + "load_max"] > self._max_load:
            yield "load", EVERYWHERE
        if values[of + "entropy"] < self.cfg.min_entropy:
            yield "entropy", EVERYWHERE
        if values[of + "balance"] < self.cfg.min_balance:
            yield "balance", EVERYWHERE
        yield from (("dead", e) for e in range(self.model.experts) if values[f"{of}load/{e}"] == 0)

    def _text(self, layer: int, illness: str, places: list[int], values: Mapping[str, float], step: int) -> str:
        of = f"moe/{layer}/"
        steps = step - min(self._since[layer, illness, place] for place in places) + 1
        coef, lr, warmup = self.model.balance_coef, self.optim.lr, self.optim.warmup
        raise_coef = f"model.balance_coef (now {coef:g}) to {2 * coef or 0.01:g}"
        lower_lr = f"optim.lr (now {lr:g}) to {lr / 2:g}"
        if illness == "load":
            busiest = max(range(self.model.experts), key=lambda e: values[f"{of}load/{e}"])
            sign = f"expert {busiest} takes {values[of + 'load_max']:.1f}x its share"
            remedy = f"raise {raise_coef}, or lower {lower_lr}"
        elif illness == "dead":
            names = ", ".join(map(str, places))
            sign = f"expert {names} gets no token" if len(places) == 1 else f"experts {names} get no token"
            remedy = f"raise {raise_coef}, or optim.warmup (now {warmup:g}) to {min(1.0, 2 * warmup or 0.02):g}"
        elif illness == "entropy":
            sign = f"the load's entropy is {values[of + 'entropy']:.2f}, where 1 is even,"
            remedy = f"lower {lower_lr}, or raise {raise_coef}"
        else:
            sign = f"the balance loss is {values[of + 'balance']:.2f}, below its floor of 1,"
            remedy = f"lower model.balance_coef (now {coef:g}) to {coef / 2:g}, or give a step more batch_rows"
        return f"layer {layer}: {sign} for {steps} steps: {remedy}"
