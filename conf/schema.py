"""The config tree: every knob of Conclave, plain dataclasses, validated where they are read.

One tree serves every job. A field is documented beside it, in `conf/knobs`; a value that cannot work raises
`InputError` with the knob, the value and what to do. Nothing here loads torch or ray, so a typo is refused at once.
"""

from dataclasses import dataclass, field

from conf.errors import InputError
from conf.knobs.alignment import Cohft, Hfft, Judge, Label, Rank, Reward, Tasks
from conf.knobs.checks import numbers
from conf.knobs.model import Adapt, Compute, Convert, Gpu, Model, Parent, Planner, Prune
from conf.knobs.reinforcement import Compare, Inspect, Ppo, Replay
from conf.knobs.running import Cluster, Evaluate, Pipeline, Promote, Run, Serve, Sweep, Tracker
from conf.knobs.teacher import Teach
from conf.knobs.text import Corpus, Forget, Proxy, Tokenizer, Tokens, Why
from conf.knobs.training import Checkpoints, Doctor, Optim, Pretrain, Sft, Spikes


@dataclass(kw_only=True)
class Config:
    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    compute: Compute = field(default_factory=Compute)
    parent: Parent = field(default_factory=Parent)
    convert: Convert = field(default_factory=Convert)
    adapt: Adapt = field(default_factory=Adapt)
    doctor: Doctor = field(default_factory=Doctor)
    spikes: Spikes = field(default_factory=Spikes)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    gpu: Gpu = field(default_factory=Gpu)
    plan: Planner = field(default_factory=Planner)
    corpus: Corpus = field(default_factory=Corpus)
    proxy: Proxy = field(default_factory=Proxy)
    why: Why = field(default_factory=Why)
    forget: Forget = field(default_factory=Forget)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    tokens: Tokens = field(default_factory=Tokens)
    tasks: Tasks = field(default_factory=Tasks)
    optim: Optim = field(default_factory=Optim.left_open)
    pretrain: Pretrain = field(default_factory=Pretrain)
    sft: Sft = field(default_factory=Sft)
    rank: Rank = field(default_factory=Rank)
    judge: Judge = field(default_factory=Judge)
    teach: Teach = field(default_factory=Teach)
    label: Label = field(default_factory=Label)
    reward: Reward = field(default_factory=Reward)
    hfft: Hfft = field(default_factory=Hfft)
    cohft: Cohft = field(default_factory=Cohft)
    ppo: Ppo = field(default_factory=Ppo.left_open)
    compare: Compare = field(default_factory=Compare)
    inspect: Inspect = field(default_factory=Inspect)
    replay: Replay = field(default_factory=Replay)
    evaluate: Evaluate = field(default_factory=Evaluate)
    prune: Prune = field(default_factory=Prune)
    serve: Serve = field(default_factory=Serve)
    promote: Promote = field(default_factory=Promote)
    cluster: Cluster = field(default_factory=Cluster)
    tracker: Tracker = field(default_factory=Tracker)
    pipeline: Pipeline = field(default_factory=Pipeline)
    sweep: Sweep = field(default_factory=Sweep)

    def __post_init__(self) -> None:
        numbers(self)
        self.optim = self.optim.settled(parent=bool(self.parent.model))
        self.ppo = self.ppo.settled(parent=bool(self.parent.model))
        if self.parent.model:  # whose own context counts, and is known once its files are read
            return
        for section, length in (("tokens", self.tokens), ("sft", self.sft)):
            if length.row_length > self.model.context:
                raise InputError(
                    f"{section}.row_length={length.row_length} must be at most model.context={self.model.context}"
                )
