"""Interleaved timing, and bench.json: [{"name", "unit", "ours", "peer", "peer_name", "ceiling", "ratio", "peers"}].

Whatever is compared goes by turns within one process, with the same threads and allocator; medians count.
`peer` is the best of `peers`; `ceiling` is what the machine's matrix products alone would give, or 0.

With `CONCLAVE_BENCH_TOY=<file>` everything is so small that it takes seconds and says nothing, and the results go to
that file: so the ordinary tests see that each benchmark still runs (tests/bench/test_smoke.py).
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import TypeVar

TOY = os.environ.get("CONCLAVE_BENCH_TOY", "")
RESULTS = Path(TOY or Path(__file__).parents[2] / "bench.json")
T = TypeVar("T")


def sized(real: T, toy: T) -> T:
    """A benchmark's size, or what stands for it where it only has to run."""
    return toy if TOY else real


def rates(runs: Mapping[str, Callable[[], object]], amounts: Mapping[str, float], *, rounds: int) -> dict[str, float]:
    """Medians of each run's amount per second, over rounds in which each goes once."""
    return {name: amounts[name] / taken for name, taken in seconds(runs, rounds=rounds).items()}


def seconds(
    runs: Mapping[str, Callable[[], object]], *, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Medians of each run's time by a clock, such as the processor's, which does not count who else is at work."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run()
            taken[name].append(clock() - start)
    return {name: median(of_run) for name, of_run in taken.items()}


def record(name: str, unit: str, ours: float, peers: Mapping[str, float], *, ceiling: float = 0.0) -> None:
    """Put a result into bench.json, in place of an earlier one of this name, and print it. More is better."""
    best = max(peers, key=lambda peer: peers[peer])
    line = {
        "name": name,
        "unit": unit,
        "ours": ours,
        "peer": peers[best],
        "peer_name": best,
        "ceiling": ceiling,
        "ratio": ours / peers[best],
        "peers": dict(peers),
    }
    lines = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    RESULTS.write_text(json.dumps([*(old for old in lines if old["name"] != name), line], indent=1) + "\n")
    of_ceiling = f"  {ours / ceiling:.2f} of the ceiling" if ceiling else ""
    others = ", ".join(f"{peer} {rate:,.5g}" for peer, rate in peers.items())
    print(f"\n{name:<24} {ours:9,.5g} {unit}  {ours / peers[best]:.2f}x the best of: {others}{of_ceiling}")
