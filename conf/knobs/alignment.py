"""Instruction tasks, rankings, and what learns from them: the reward model, HFFT, COHFT."""

import re
from dataclasses import dataclass, field
from enum import Enum
from math import inf, isfinite

from conf.errors import InputError
from conf.knobs.checks import positive, share, some_left
from conf.knobs.training import Fit, TooLong, Tune


@dataclass(kw_only=True)
class Tasks:
    """What the model is asked, and when an answer is good: the domain says so, a module of yours or of ours."""

    domain: str = "moe.tasks.general"  # or data.verse, or a module of your own (see moe/tasks/task.py)
    options: dict[str, float] = field(default_factory=dict)  # the domain's weights by name; unnamed keep its defaults
    queries: list[str] = field(default_factory=list)  # .jsonl, .json, datasets for rankings and RL; empty: the domain's
    per_task: dict[str, int] = field(default_factory=dict)  # at most so many training samples; unnamed: as it sees fit
    held_out: int = 256  # validation samples per task, of which nothing is trained on
    prompts: int = 2048  # queries for ranking and RL, apart from the SFT samples

    def __post_init__(self) -> None:
        positive("tasks", self, "held_out", "prompts")
        for name, count in self.per_task.items():
            if count < 0:
                raise InputError(f"tasks.per_task.{name}={count} must not be negative")
        for name, weight in self.options.items():
            if not isfinite(weight):
                raise InputError(f"tasks.options.{name}={weight} must be a number")


class RewardLoss(Enum):
    pairwise = "pairwise"  # Bradley-Terry on every two answers whose ranks differ (Ouyang et al. 2022)
    margin = "margin"  # pairwise, less the difference of the two answers' scores (Llama 2, Touvron et al. 2023)
    listwise = "listwise"  # Plackett-Luce on the whole ranking


@dataclass(kw_only=True)
class Reward(Fit):
    loss: RewardLoss = RewardLoss.pairwise
    principles: float = 0.5  # weight of the scores under single principles together, beside the total's 1; 0: no such
    files: list[str] = field(default_factory=list)  # own .jsonl, .json, datasets (trainers.files.rankings); or ranked
    max_bad_fraction: float = 0.0  # share of bad rankings set aside in reward/rejects.jsonl; above it the job stops
    steps: int = 100
    batch_rows: int = 8  # a row holds whole rankings
    lr_scale: float = 0.25
    row_length: int = 0  # 0: as long as the longest ranking
    held_out: float = 0.1  # share of the queries whose rankings only test the model

    def __post_init__(self) -> None:
        self.check("reward")
        if self.row_length < 0:
            raise InputError(f"reward.row_length={self.row_length} must not be negative")
        share("reward", self, "held_out", "max_bad_fraction")
        some_left("reward", self.held_out)
        if self.principles < 0:
            raise InputError(f"reward.principles={self.principles} must not be negative")


class Judges(Enum):
    rules = "rules"  # the domain's verdict
    ai = "ai"  # a model that is asked, see `judge`
    people = "people"  # people, of the sampled answers, on the labelling page or from a file, see `label`
    feedback = "feedback"  # people, of the answers that the server gave them: their conversations, beside the queries


class Compare(Enum):
    pairwise = "pairwise"  # two answers a question
    listwise = "listwise"  # all of them: fewer questions, which are harder


@dataclass(kw_only=True)
class Rank:
    """Several sampled answers a query, ranked under named principles by one judge or several."""

    prompts: int = 256
    answers: int = 4  # per query
    temperatures: list[float] = field(default_factory=lambda: [0.7, 1.0, 1.0, 1.3])  # cycled over the answers
    max_new_tokens: int = 96
    principles: list[str] = field(default_factory=list)  # of those that the domain scores; empty: all
    margin: float = 0.05  # two answers whose scores differ by less are tied: no pair
    judges: list[Judges] = field(
        default_factory=lambda: [Judges.rules]
    )  # rules, ai, people: their mean ranks; feedback
    weights: dict[str, float] = field(default_factory=dict)  # of a judge's scores in that mean; unnamed: 1
    labelled: float = 1.0  # share of the queries that people must have seen, where they judge; until then it waits
    feedback: str = ""  # the file of what people said; empty: the run's own, feedback.sqlite3
    actors: int = 2
    timeout: float = 600.0  # seconds; deadline of one remote call
    restarts: int = 2  # times that an actor which dies, hangs or fails is started again, between two that answer

    def __post_init__(self) -> None:
        positive("rank", self, "prompts", "max_new_tokens", "actors", "timeout")
        if self.restarts < 0:
            raise InputError(f"rank.restarts={self.restarts} must not be negative")
        share("rank", self, "labelled")
        if self.answers < 2:
            raise InputError(f"rank.answers={self.answers} must be at least 2: one answer has no rank")
        if len(set(self.principles)) == 1:
            raise InputError(f"rank.principles=[{self.principles[0]}] must name at least two, or none for all")
        if not self.temperatures or min(self.temperatures) <= 0:
            raise InputError(f"rank.temperatures={self.temperatures} must be one or more numbers above 0")
        if not self.judges or len(set(self.judges)) < len(self.judges):
            given = ",".join(judge.name for judge in self.judges)
            raise InputError(f"rank.judges=[{given}] must name one or more judges, each once; try [rules,ai]")
        for name, weight in self.weights.items():
            if not 0 < weight < inf:
                raise InputError(
                    f"rank.weights.{name}={weight} must be greater than 0; leave a judge out of rank.judges"
                )


@dataclass(kw_only=True)
class Label:
    """`rlhf.judges.label`: what awaits people's ranks, and the ranks, as JSONL for other tools and from them."""

    files: list[str] = field(default_factory=list)  # .jsonl to take in: queries that await ranks, or ranks of them
    out: str = ""  # a .jsonl file to write all of them into


@dataclass(kw_only=True)
class Judge:
    """The model that is asked where `rank.judges` has ai: behind an OpenAI-compatible endpoint, or in a folder."""

    url: str = ""  # of the endpoint's API, such as http://127.0.0.1:8000/v1
    model: str = ""  # the name that it has there
    key_env: str = ""  # the environment variable that holds the key; empty: none is sent
    folder: str = ""  # or a model folder, which a worker of the run opens
    compare: Compare = Compare.pairwise
    votes: int = 1  # times that each question is asked in each order; more than half of the votes decide
    temperature: float = 0.0
    max_new_tokens: int = 512  # of a reply, with the thoughts before its last line
    retries: int = 3  # times that a question is asked again, after a reply in another form as after no reply
    concurrency: int = 4  # requests at once
    per_minute: float = 0.0  # requests at most; 0: as many as are answered
    timeout: float = 120.0  # seconds that an endpoint has for a reply
    max_missing: float = 0.1  # share of the verdicts that may be missing in the end; above it the job stops

    def __post_init__(self) -> None:
        positive("judge", self, "votes", "max_new_tokens", "concurrency", "timeout")
        share("judge", self, "max_missing")
        for name in ("temperature", "retries", "per_minute"):
            if not 0 <= getattr(self, name) < inf:
                raise InputError(f"judge.{name}={getattr(self, name)} must not be negative")
        if self.key_env and not re.fullmatch(r"[A-Za-z_]\w*", self.key_env, re.ASCII):  # not shown: it may be the key
            raise InputError("judge.key_env must be the name of an environment variable, such as OPENAI_API_KEY")
        if self.votes > 1 and not self.temperature:
            raise InputError(
                f"judge.votes={self.votes} at judge.temperature=0 would be {self.votes} times the same; "
                "try judge.temperature=0.7"
            )


@dataclass(kw_only=True)
class Preferred(Tune):
    """What HFFT and COHFT have in common: they tune the chat model on rankings, without a reward model."""

    files: list[str] = field(default_factory=list)  # own .jsonl, .json, datasets (trainers.files.rankings); or ranked
    max_bad_fraction: float = 0.0  # share of bad rankings set aside in <stage>/rejects.jsonl; above it the job stops
    at_least: float = 0.0  # queries whose best answer has a lower total are left out; one without a total is kept
    steps: int = 60
    batch_rows: int = 8
    lr_scale: float = 0.1
    row_length: int = 0  # 0: as long as the longest, as far as the model's context goes
    too_long: TooLong = TooLong.drop
    held_out: float = 0.1  # share of the queries whose rankings only test the model
    eval_every: int = 30

    def check_rankings(self, name: str) -> None:
        self.check(name)
        share(name, self, "replay", "held_out", "max_bad_fraction")
        some_left(name, self.held_out)
        if self.row_length < 0:
            raise InputError(f"{name}.row_length={self.row_length} must not be negative; 0 fits the longest")
        if not isfinite(self.at_least):
            raise InputError(f"{name}.at_least={self.at_least} must be a number, in the rankings' totals")


@dataclass(kw_only=True)
class Hfft(Preferred):
    """Fine-tune on the best answer of each query (RAFT, Dong et al. 2023; Llama 2, Touvron et al. 2023)."""

    def __post_init__(self) -> None:
        self.check_rankings("hfft")


@dataclass(kw_only=True)
class Phrases:
    """What is said before an answer in a chain of hindsight; `{principle}` stands for a principle's name."""

    good: str = "A good answer:"
    worse: str = "A worse answer:"
    more: str = "A more {principle} answer:"
    less: str = "A less {principle} answer:"
    names: dict[str, str] = field(default_factory=dict)  # of principles, where another word is said for one

    @classmethod
    def chinese(cls) -> "Phrases":
        names = {"harmless": "无害", "helpful": "有帮助", "truthful": "真实", "fluent": "流畅", "clear": "清楚"}
        return cls(
            good="好的回答：",
            worse="较差的回答：",
            more="更{principle}的回答：",
            less="不够{principle}的回答：",
            names=names,
        )

    def check(self, prefix: str) -> None:
        for name in ("good", "worse", "more", "less"):
            said = getattr(self, name)
            if not said.strip():
                raise InputError(f"{prefix}.{name}={said!r} must say something: it tells what answer comes next")
            if name in ("more", "less") and "{principle}" not in said:
                raise InputError(f"{prefix}.{name}={said!r} must have {{principle}} where its name shall stand")
        for one, other in (("good", "worse"), ("more", "less")):
            if getattr(self, one) == getattr(self, other):
                raise InputError(f"{prefix}.{one}={getattr(self, one)!r} must differ from {prefix}.{other}")


@dataclass(kw_only=True)
class Cohft(Preferred):
    """Chain of hindsight (Liu et al. 2023): a good and a worse answer in one conversation, each after its phrase."""

    plain: float = 0.5  # share of the rows (replay left out) that are a query and its best answer, without a phrase
    mask: float = 0.05  # at most so large a share of a chain's earlier answer is hidden from what is learnt after it
    en: Phrases = field(default_factory=Phrases)
    zh: Phrases = field(default_factory=Phrases.chinese)  # for queries mostly of Han characters

    def __post_init__(self) -> None:
        self.check_rankings("cohft")
        share("cohft", self, "plain", "mask")
        self.en.check("cohft.en")
        self.zh.check("cohft.zh")
