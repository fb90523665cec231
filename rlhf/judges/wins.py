"""How often a model's answer is better than the chat model's, and whether who says so has been trained on.

A judge that a training used has been learnt to be pleased: what wins before it may be better or may flatter. So the
comparison takes one that no training used, where it is given one, and in any case says which stages used it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.agreement import key
from cluster.run import read_manifest
from cluster.storage import MANIFEST, Damaged
from conf.errors import InputError
from conf.knobs.reinforcement import Wins
from conf.schema import Config
from moe.tasks.task import Sample
from rlhf.judges import ai
from rlhf.judges.opinions import Asked

Answers = Sequence[Mapping[str, Any]]  # {"text", "finished"} for each query


@dataclass(frozen=True)
class Judge:
    """Who says which of two answers is better."""

    kind: Wins  # ai, reward or rules
    who: str
    trained: Mapping[str, str]  # {model: how its training used the judge}, of those that did

    @property
    def told(self) -> str:
        used = "; ".join(f"{model}: {how}" for model, how in self.trained.items())
        return f"wins are by {self.who}, which " + (f"training used ({used})" if used else "no training used")

    @property
    def line(self) -> dict[str, Any]:
        return asdict(self) | {"kind": self.kind.value, "told": self.told}


def judge_of(cfg: Config, folders: Mapping[str, Path]) -> Judge:
    """Who judges the models of `folders`. Raises `InputError` where it cannot be asked."""
    kind = cfg.compare.wins
    if kind is Wins.auto:
        kind = Wins.ai if cfg.judge.url or cfg.judge.folder else Wins.reward if cfg.compare.reward else Wins.rules
    if kind is Wins.ai:
        ai.check(cfg)
        who = f"the model {cfg.judge.model or cfg.judge.folder}"
    elif kind is Wins.reward:
        if not (Path(cfg.compare.reward) / "config.json").is_file():
            raise InputError(f"compare.reward={cfg.compare.reward}: no model here (config.json is missing)")
        who = f"the reward model {cfg.compare.reward}"
    else:
        who = f"the rules of {cfg.tasks.domain}"
    used = {name: how for name, folder in folders.items() if (how := ", ".join(uses(cfg, kind, folder)))}
    return Judge(kind, who, used)


def uses(cfg: Config, kind: Wins, folder: Path) -> list[str]:
    """How the training of the model in `folder` used the judge, as far as the manifests of its run say."""
    found = []
    for stage, manifest in ancestry(folder):
        knobs = manifest["config"]
        ranked_by = knobs.get("rank", {}).get("judges", ["rules"]) if stage == "ranked" else []
        if kind is Wins.rules:
            found += ["the reward has rules"] if knobs.get("ppo", {}).get("rewards", {}).get("rules") else []
            found += ["the rankings are by rules"] if "rules" in ranked_by else []
        elif kind is Wins.ai and "ai" in ranked_by:
            same = _asked(cfg.judge.url, cfg.judge.model, ai.who(cfg.judge)) == _asked(
                knobs["judge"]["url"], knobs["judge"]["model"], knobs["judge"].get("folder")
            )
            found += ["the rankings are by it"] if same else []
        elif kind is Wins.reward and stage == "reward" and _product(folder.parent / stage) == _of(cfg.compare.reward):
            found += ["the reward is by it"]
    return list(dict.fromkeys(found))


def ancestry(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(stage, manifest) of the stage in `folder` and of all that it was made from, as far as they are there."""
    seen, todo = set(), [folder]
    while todo:
        place = todo.pop()
        if place in seen:
            continue
        seen.add(place)
        try:
            manifest = read_manifest(place)
        except Damaged:
            continue
        yield manifest["stage"], manifest
        todo += [place.parent / name for name in manifest["inputs"]]


def better(own: Sequence[float], other: Sequence[float]) -> list[float]:
    """Of each query 1 where the own answer has more than the other, 0.5 where both have the same, 0 where less."""
    return [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(own, other, strict=True)]


def asked(
    queries: Sequence[Sample], own: Answers, other: Answers, principles: Sequence[str], cfg: Config
) -> tuple[dict[int, float], dict[str, float]]:
    """({number of a query: the share of the principles under which the AI judge calls the own answer better, a tie
    counting half}, what it took); queries without any verdict are left out. Both orders are asked about."""
    pairs = [Asked(query, [a, b]) for query, a, b in zip(queries, own, other, strict=True)]
    opinions, metrics = ai.opinions(pairs, principles, cfg)
    won = {
        number: sum(scores[0] for scores in opinion.scores.values()) / len(opinion.scores)
        for number, opinion in enumerate(opinions)
        if opinion.scores
    }
    return won, metrics


def identity(cfg: Config, judge: Judge) -> dict[str, Any]:
    """What the wins hang on, for the manifest."""
    if judge.kind is Wins.ai:
        knobs = {name: getattr(cfg.judge, name) for name in ("compare", "votes", "temperature", "max_new_tokens")}
        return {"wins": "ai", "judge": {**ai.who(cfg.judge), **knobs}, "principles": cfg.rank.principles}
    return {"wins": judge.kind.value, "reward": _of(cfg.compare.reward) if judge.kind is Wins.reward else ""}


def _of(folder: str) -> str:
    """What tells a model folder from others: the product of its stage, or the digests of its files."""
    place = Path(folder)
    return _product(place) or str(sorted(ai.digests(place).items()))


def _product(folder: Path) -> str:
    return key(folder) if (folder / MANIFEST).is_file() else ""


def _asked(url: str, model: str, folder: Any) -> tuple[Any, ...]:
    """Who was asked, by what a manifest says: its address and name, or the digests of its folder."""
    return (url, model) if url else (folder,)
