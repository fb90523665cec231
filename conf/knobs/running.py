"""Where a run lives and computes, how it is told, measured and served."""

from dataclasses import dataclass, field
from enum import Enum
from math import ceil
from pathlib import Path

from conf.errors import InputError
from conf.knobs.checks import positive, share


@dataclass(kw_only=True)
class Run:
    name: str = "default"  # the folder under `dir`
    dir: str = "runs"
    seed: int = 0  # below 2**32, which every library's generator takes
    rebuild: bool = False  # a stage whose config or inputs changed: false refuses, true sets the old one aside
    config: str = ""  # a YAML file of knobs, such as a sweep's best.yaml; words of the command line win over it
    faults: bool = False  # let FAULT=<point>:<count>:<action> in the environment hurt this run; for tests

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name or self.name in {".", ".."}:
            raise InputError(f"run.name={self.name!r} must be one folder name, without '/'")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"run.seed={self.seed} must lie in [0, 4294967295]; try run.seed={self.seed % 2**32}")
        if not self.dir:
            raise InputError("run.dir= names no folder; try run.dir=runs")
        if "://" in self.dir:
            raise InputError(
                f"run.dir={self.dir} is an address, and a run lives in a folder of a file system; mount it, and give "
                "that folder"
            )

    @property
    def folder(self) -> Path:
        return Path(self.dir).absolute() / self.name


class Suite(Enum):
    perplexity = "perplexity"  # loss, perplexity and bits per byte of text
    tasks = "tasks"  # loss, exact match, accuracy, BLEU and chrF of each task's samples
    rules = "rules"  # what the domain's rules say of answers to the run's held-out queries
    samples = "samples"  # an answer of each task, to look at


@dataclass(kw_only=True)
class Evaluate:
    """Held-out evaluation: `trainers.evaluate`, and the closing measurements of the stages that write a chat model."""

    model: str = ""  # a model folder; empty: the best of rl, hfft, cohft, chat, base in the run
    suites: list[Suite] = field(default_factory=list)  # perplexity, tasks, rules, samples; empty: all with data
    files: list[str] = field(default_factory=list)  # .txt or .jsonl for perplexity; empty: the run's held-out text
    tasks: list[str] = field(default_factory=list)  # .jsonl of samples as in sft.files; empty: the run's held-out ones
    out: str = ""  # a .json file for metrics and answers; empty: none
    prompts: int = 256  # queries to answer, of each task
    rows: int = 1024  # packed rows for perplexity
    max_new_tokens: int = 96
    temperature: float = 0.8  # 0: the likeliest token; the suite tasks always answers so
    top_p: float = 1.0
    timeout: float = 3600.0  # seconds; deadline of a stage's closing measurement

    def __post_init__(self) -> None:
        positive("evaluate", self, "prompts", "rows", "max_new_tokens", "timeout")
        if self.temperature < 0:
            raise InputError(f"evaluate.temperature={self.temperature} must not be negative")
        if not 0 < self.top_p <= 1:
            raise InputError(f"evaluate.top_p={self.top_p} must lie in (0, 1]")

    def measure(self) -> dict[str, float]:
        """The knobs that the closing measurement of a stage depends on, by their names in the tree."""
        names = "prompts rows max_new_tokens temperature top_p".split()
        return {f"evaluate.{name}": getattr(self, name) for name in names}


class Auth(Enum):
    auto = "auto"  # keys where there are any; without them only this machine may ask
    keys = "keys"  # every request needs one
    none = "none"  # nobody needs one, which only a loopback address allows


@dataclass(kw_only=True)
class Serve:
    model: str = ""  # a model folder; empty: the best of rl, hfft, cohft, chat in the run
    host: str = "127.0.0.1"
    port: int = 8000
    slots: int = 8  # answers decoded together
    max_new_tokens: int = 256  # an answer's default bound
    queue: int = 64  # waiting requests; more are refused with 503
    max_body_bytes: int = 2**20
    header_timeout: float = 10.0  # seconds for a request's headers to arrive; a connection that is slower is closed
    body_timeout: float = 30.0  # seconds for a request's body to arrive; one that is slower is refused with 408
    drain_timeout: float = 30.0  # seconds that running answers get to end once the server was asked to
    stream_seconds: float = 120.0  # that a stream can be taken up again after its reader left; 0: not at all
    stream_bytes: int = 2**24  # that such streams may hold; beyond them the one that was left first is forgotten
    replay_seconds: float = 60.0  # that a request whose replica died is asked of the next one; 0: the client is told
    hosts: list[str] = field(default_factory=list)  # host names of this server beside localhost; "*": any
    origins: list[str] = field(default_factory=list)  # of web pages that may ask: https://chat.example.org; "*": any
    auth: Auth = Auth.auto  # auto: keys where there are any, none on loopback without; keys; none
    keys: str = ""  # a file of API keys, a line each: <name> <key> [in_flight=<n>] [per_minute=<n>]
    keys_env: str = ""  # the environment variable that holds such lines, instead of a file
    key_in_flight: int = 0  # requests of one key at a time where its line says nothing; 0: any number
    key_per_minute: int = 0  # requests of one key in a minute where its line says nothing; 0: any number
    int8: bool = False  # weights in int8: a quarter of the memory
    bf16: bool = False  # weights in bf16: half of the memory, and on a CPU with the C kernels fewer bytes for a token

    def __post_init__(self) -> None:
        for knob in ("key_in_flight", "key_per_minute"):
            if (value := getattr(self, knob)) < 0:
                raise InputError(f"serve.{knob}={value} must not be negative")
        positive("serve", self, "slots", "max_new_tokens", "queue", "max_body_bytes", "header_timeout", "body_timeout")
        if self.int8 and self.bf16:
            raise InputError("serve.int8=true and serve.bf16=true: the weights can be one of them")
        for knob in ("drain_timeout", "stream_seconds", "stream_bytes", "replay_seconds"):
            if (value := getattr(self, knob)) < 0:
                raise InputError(f"serve.{knob}={value:g} must not be negative")
        if not 0 <= self.port <= 65535:
            raise InputError(f"serve.port={self.port} must lie in [0, 65535]")


@dataclass(kw_only=True)
class Promote:
    """`python -m serving.promote`: a new model on trial beside the one that is served."""

    model: str = ""  # the candidate's folder; empty: go on watching the trial that is under way
    share: float = 0.1  # of the conversations that are the candidate's
    votes: int = 100  # conversations of each model that people have judged, after which it is decided
    confidence: float = 0.95  # with which it must be worse to be rolled back before that
    tolerance: float = 0.05  # by how much less of its conversations may be liked
    stop: bool = False  # take back the trial that is under way

    def __post_init__(self) -> None:
        positive("promote", self, "votes")
        share("promote", self, "tolerance")
        for knob, low in (("share", 0.0), ("confidence", 0.5)):
            if not low < (value := getattr(self, knob)) < 1:
                raise InputError(f"promote.{knob}={value} must lie between {low:g} and 1")


@dataclass(kw_only=True)
class Cluster:
    workers: int = 1  # Ray Train workers
    threads: int = 0  # torch threads of a worker; 0: the machine's cores / workers, and cores - 1 where it serves
    cpus_per_worker: float = 0.5  # logical CPUs that a worker or actor asks Ray for
    gpus_per_worker: float = 0.0
    start_timeout: float = 600.0  # seconds for an actor of ranked or rl to be there, its model loaded
    wait: float = 0.0  # seconds to wait for nodes where the cluster has too few; 0: such a stage ends at once
    deterministic: bool = False  # bitwise the same result for any number of workers that divides `slots`
    slots: int = 4  # parts of a batch, a power of two, whose gradients are added in one fixed order
    shard: bool = False  # split weights, gradients and optimizer over the workers (FSDP2)
    expert_parallel: int = 1  # workers over which the experts of a layer are spread
    gpus: int = 0  # for moe.plan: all GPUs of the cluster; 0: workers x gpus_per_worker
    object_store_mb: int = 512
    worker_logs: bool = False  # print the logs of remote workers
    temp_dir: str = ""  # Ray's session folder; empty: Ray's default

    @property
    def device(self) -> str:
        """Where workers and actors compute."""
        return "cuda" if self.gpus_per_worker else "cpu"

    def __post_init__(self) -> None:
        positive("cluster", self, "workers", "cpus_per_worker", "object_store_mb", "start_timeout")
        for knob in ("threads", "wait"):
            if (value := getattr(self, knob)) < 0:
                raise InputError(f"cluster.{knob}={value:g} must not be negative")
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise InputError(f"cluster.gpus_per_worker={self.gpus_per_worker:g} must be whole GPUs, or a part of one")
        positive("cluster", self, "expert_parallel", "slots")
        if self.slots & (self.slots - 1):
            raise InputError(f"cluster.slots={self.slots} must be a power of two; try {1 << self.slots.bit_length()}")
        if self.deterministic and self.slots % self.workers:
            raise InputError(
                f"cluster.workers={self.workers} must divide cluster.slots={self.slots} when cluster.deterministic=true"
            )
        if self.deterministic and (self.shard or self.expert_parallel > 1):
            raise InputError(
                "cluster.deterministic=true adds whole gradients in a fixed order; it needs cluster.shard=false and "
                "cluster.expert_parallel=1"
            )
        if self.workers % self.expert_parallel:
            raise InputError(
                f"cluster.workers={self.workers} must divide by cluster.expert_parallel={self.expert_parallel}; "
                f"try cluster.workers={ceil(self.workers / self.expert_parallel) * self.expert_parallel}"
            )


class TrackerKind(Enum):
    none = "none"
    wandb = "wandb"


class WandbMode(Enum):
    online = "online"
    offline = "offline"


@dataclass(kw_only=True)
class Tracker:
    """metrics.jsonl is always written; `tracker=wandb` also sends it to Weights & Biases."""

    kind: TrackerKind = TrackerKind.none
    project: str = "conclave"
    entity: str = ""
    mode: WandbMode = WandbMode.offline
    timeout: float = 10.0  # seconds for W&B's first answer; without one the stage is kept offline
    finish_timeout: float = 30.0  # seconds for W&B to take the rest of a stage that has ended
    rows: int = 64  # samples in each table of answers, rankings or tasks; 0: no tables
    samples: int = 4  # answers of a PPO iteration that are kept in metrics.jsonl to look at; 0: none
    heat_every: int = 1  # logs between the router's heat maps; 0: none
    upload: bool = False  # send a finished model's files, too; otherwise only their names and digests

    def __post_init__(self) -> None:
        positive("tracker", self, "timeout", "finish_timeout")
        for name in ("rows", "samples", "heat_every"):
            if getattr(self, name) < 0:
                raise InputError(f"tracker.{name}={getattr(self, name)} must not be negative")


@dataclass(kw_only=True)
class Pipeline:
    stages: list[str] = field(
        default_factory=lambda: "corpus tokenizer tokens tasks base chat ranked reward rl report".split()
    )
    samples: int = 3  # sample chats shown at the end

    def __post_init__(self) -> None:
        if not self.stages:
            raise InputError("pipeline.stages=[] names no stage; try pipeline.stages=[base]")


class SweepStop(Enum):
    none = "none"
    median = "median"  # end a job whose held-out measure is worse than the median of the others at the same step


@dataclass(kw_only=True)
class Sweep:
    """`python -m trainers.pretrain -m optim.lr=1e-3,2e-3`: one stage with several values of its knobs, on the inputs
    that the run has."""

    concurrent: int = 0  # jobs at a time; 0: as many as the machine's cores, or the cluster's GPUs, hold
    stop: SweepStop = SweepStop.median  # which jobs end early: none, median (of at least two others)
    grace: float = 0.25  # share of its steps that a job gets in any case

    def __post_init__(self) -> None:
        if self.concurrent < 0:
            raise InputError(f"sweep.concurrent={self.concurrent} must not be negative")
        share("sweep", self, "grace")
