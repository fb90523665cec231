"""A model as a judge, behind an endpoint or in a folder: asked about a query's answers under one principle at a time.

What is asked and what the replies decide is said in `votes`, how it is put into words in `prompts`.

A reply in another form than was asked for is asked for again, `judge.retries` times, and never guessed at: where one
is missing in the end, the query has no verdict under that principle.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cluster.progress import counter
from cluster.storage import sha256
from conf.errors import InputError
from conf.knobs.alignment import Compare, Judge
from conf.schema import Config
from moe.formats.checkpoints import weight_files
from moe.tasks.task import hashed
from rlhf.judges import endpoint, local, prompts
from rlhf.judges.opinions import Asked, Opinion
from rlhf.judges.replies import Lost, Question, Replies, Reply
from rlhf.judges.votes import Comparison, Unit, Vote, comparisons, counted, scores, votes

TOGETHER = (
    2048  # comparisons that are settled before the next: a judge that is no use is found out before all are asked
)
AGAIN = 0.5  # temperature at least, after a reply in another form: at 0 it would be the same once more

_SPEAKS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass
class Heard:
    """What came of all questions."""

    told: dict[Comparison, list[int]] = field(default_factory=dict)  # places of the texts, in the order shown
    missing: dict[Unit, str] = field(default_factory=dict)  # and why
    questions: int = 0
    unparsable: int = 0  # replies
    failures: Counter[str] = field(default_factory=Counter)  # requests that came to nothing, by what happened


def check(cfg: Config) -> None:
    """Raise `InputError` where the knobs do not say whom to ask, or the key is not there."""
    judge = cfg.judge
    if bool(judge.url) == bool(judge.folder):
        have = "both judge.url and judge.folder are" if judge.url else "neither judge.url nor judge.folder is"
        raise InputError(f"rank.judges has ai, and {have} given; give judge.url and judge.model, or judge.folder")
    if judge.compare is Compare.listwise and cfg.rank.answers > prompts.MOST:
        raise InputError(
            f"judge.compare=listwise shows at most {prompts.MOST} answers at once, and rank.answers="
            f"{cfg.rank.answers}; try judge.compare=pairwise"
        )
    if judge.url:
        endpoint.check(judge)
    elif not (Path(judge.folder) / "config.json").is_file():
        raise InputError(f"judge.folder={judge.folder}: no model here (config.json is missing)")


def who(cfg: Judge) -> dict[str, str]:
    """What tells this judge from others: where it is and its name there, or the digests of its folder's files."""
    return digests(Path(cfg.folder)) if cfg.folder else {"url": cfg.url, "model": cfg.model}


def digests(folder: Path) -> dict[str, str]:
    """Of the files of a model folder that its answers hang on."""
    spoken = [path for name in _SPEAKS if (path := folder / name).is_file()]
    return {path.name: sha256(path) for path in [*weight_files(folder), *spoken]}


def opinions(asked: Sequence[Asked], principles: Sequence[str], cfg: Config) -> tuple[list[Opinion], dict[str, float]]:
    """One for each query, and what it took, as metrics. Replies are kept beside the run's stages. Raises `InputError`
    where more than `judge.max_missing` of the verdicts are missing, or nobody answers."""
    judge = cfg.judge
    replies = Replies(cfg.run.folder / "judge" / "replies.jsonl", str(sorted(who(judge).items())))
    ask = partial(local.ask, cfg=cfg) if judge.folder else partial(endpoint.ask, cfg=judge, seed=cfg.run.seed)
    texts = [list(dict.fromkeys(str(answer["text"]) for answer in each.answers)) for each in asked]
    units = [(number, name) for number in range(len(asked)) for name in principles]
    pairs = {unit: list(comparisons(unit, len(texts[unit[0]]), judge)) for unit in units}

    def question(one: Comparison, attempt: int) -> Question:
        number, principle = one.unit
        shown = [texts[number][text] for text in one.shown]
        return Question(
            prompts.question(asked[number].query, shown, principle, judge.compare, again=attempt > 0),
            temperature=max(judge.temperature, AGAIN) if attempt else judge.temperature,
            seed=hashed(cfg.run.seed, "judge", f"{one.vote}/{attempt}") >> 33,
            max_new_tokens=judge.max_new_tokens,
        )

    everything = [one for both in pairs.values() for pair in both for one in pair]
    heard = hear(everything, question, lambda questions: replies.answered(questions, ask), judge, len(units))
    cast = {
        unit: [vote for one, swapped in both for vote in votes(one, swapped, heard.told)]
        for unit, both in pairs.items()
        if unit not in heard.missing
    }
    found = []
    for number, each in enumerate(asked):
        places = [texts[number].index(answer["text"]) for answer in each.answers]
        under = {name: cast[number, name] for name in principles if (number, name) in cast}
        missing = {name: heard.missing[number, name] for name in principles if (number, name) in heard.missing}
        found.append(_opinion(places, under, missing, Path(judge.folder).name or judge.model))
    return found, {
        "ai/questions": float(heard.questions),
        "ai/unparsable": float(heard.unparsable),
        "ai/contradictions": float(sum(vote.contradicted for under in cast.values() for vote in under)),
        "ai/missing": float(len(heard.missing)),
        **{f"ai/failed/{kind}": float(times) for kind, times in sorted(heard.failures.items())},
    }


def hear(
    everything: Sequence[Comparison],
    question: Callable[[Comparison, int], Question],
    answered: Callable[[Iterable[Question]], Iterator[tuple[Question, Reply | Lost]]],
    cfg: Judge,
    verdicts: int,
) -> Heard:
    """Ask about all comparisons, and again about those whose reply had another form. `verdicts` are what there could
    be; raises `InputError` once more of them than `judge.max_missing` allows cannot be had."""
    heard = Heard()

    def miss(one: Comparison, why: str) -> None:
        heard.missing[one.unit] = why
        if len(heard.missing) > cfg.max_missing * verdicts:
            raise InputError(
                f"rank.judges: {len(heard.missing)} of {verdicts} verdicts of ai cannot be had, more than "
                f"judge.max_missing={cfg.max_missing:g} allows; of the last: {why}. Replies are kept: the same command "
                "asks only for the others"
            )

    def a_round(ones: Sequence[Comparison], attempt: int) -> list[Comparison]:
        """Ask once; those whose reply had another form are left."""
        about: dict[Question, list[Comparison]] = defaultdict(list)
        for one in ones:
            about[question(one, attempt)].append(one)
        left = []
        heard.questions += len(about)
        for asked, reply in answered(about):
            heard.failures.update(reply.failures)
            if isinstance(reply, Lost):
                for one in about[asked]:
                    miss(one, reply.why)
            elif reply.whole and (places := prompts.read(reply.text, len(about[asked][0].shown), cfg.compare)):
                heard.told |= dict.fromkeys(about[asked], places)
            else:
                heard.unparsable += 1
                left += about[asked]
                continue
            progress.advance(len(about[asked]))
        return left

    with counter("judged by ai", len(everything)) as progress:
        for at in range(0, len(everything), TOGETHER):
            left = list(everything[at : at + TOGETHER])
            for attempt in range(cfg.retries + 1):
                left = a_round(left, attempt)
            for one in left:
                miss(one, f"none of {cfg.retries + 1} replies had the form that was asked for")
    return heard


def _opinion(places: Sequence[int], cast: dict[str, list[Vote]], missing: dict[str, str], model: str) -> Opinion:
    """Of one query whose answers have the texts with the numbers `places`, by the votes under each principle."""
    why = [{"model": model, "votes": {name: counted(place, under) for name, under in cast.items()}} for place in places]
    return Opinion({name: scores(places, under) for name, under in cast.items()}, why, missing)
