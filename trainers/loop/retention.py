"""What a trained parent keeps of what it knew: its loss on general text, before, while and after it is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Retention:
    rows: Mapping[str, Path]  # packed rows of each general text, by its name
    before: Mapping[str, float]  # nats per token of each, before step 1
    rise: float  # nats per token by which none is to rise

    def risen(self, values: Mapping[str, float]) -> dict[str, str]:
        """{"incident": what to do} where a text's "retention/<name>/loss" among `values` has risen by more than
        `rise`, else {}. Of several it names the worst."""
        rises = {name: values[f"retention/{name}/loss"] - before for name, before in self.before.items()}
        name = max(rises, key=lambda name: rises[name])
        if rises[name] <= self.rise:
            return {}
        before = self.before[name]
        return {
            "incident": f"the parent is forgetting: its loss on the general text {name} rose from {before:.3f} to "
            f"{before + rises[name]:.3f} nats per token; lower optim.lr, or mix in older text by pretrain.replay"
        }
