"""The driver's part of training: workers are started under Ray Train, and started again where they are lost."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import ray.data
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from cluster.checkpoints import newest_step
from cluster.progress import follow
from cluster.room import bundle, check_room
from cluster.stopping import deferred
from conf.errors import user_error
from trainers.loop.recipe import Plan
from trainers.rows.feed import STREAM_CPUS, IndexedFeed

RESTARTS = 3  # of the workers, in one command
_POLL = 0.5  # seconds


def train(plan: Plan, work: Callable[[dict[str, Any]], None]) -> None:
    """Have `work` train as planned on the cluster's workers, until its end or a signal's (see cluster.stopping).

    Workers that are lost are started again, up to `RESTARTS` times, from the newest checkpoint. What the user or a disk
    is to blame for would only happen again: it is raised at once.
    """
    cluster = plan.cluster
    asked = [bundle(cluster)] * cluster.workers + [{"CPU": STREAM_CPUS}]
    check_room(cluster, asked, f"stage {plan.stage}", less="cluster.workers or cluster.cpus_per_worker")
    many = f"{cluster.workers} worker{'s' if cluster.workers > 1 else ''}"
    with deferred(plan.checkpoints) as request, follow(plan.folder, plan.stage, plan.fit.steps) as seen:
        seen.begin(newest_step(plan.checkpoints), f"starting {many}")
        for left in reversed(range(RESTARTS + 1)):
            running = _aside(_trainer(plan, work).fit)
            while not wait([running], timeout=_POLL).done and not (request and seen.idle()):
                pass
            if request or not (error := running.exception()):
                break
            if not left or user_error(error):
                raise error
            step = newest_step(plan.checkpoints)
            seen.begin(step, f"a worker was lost ({_reason(error)}); starting {many} from step {step}")
        step = newest_step(plan.checkpoints)
        request.where = f"at step {step}; saved" if step else "before its first step"


def _aside(work: Callable[[], Any]) -> Future[Any]:
    """Do it in a thread that keeps nobody from ending: Ray Train would take this one's Ctrl-C for itself."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _trainer(plan: Plan, work: Callable[[dict[str, Any]], None]) -> TorchTrainer:
    cluster = plan.cluster
    return TorchTrainer(
        work,
        train_loop_config={"plan": plan},
        datasets={"train": ray.data.range(1)},  # the name of the stream; IndexedFeed makes the rows
        dataset_config=IndexedFeed(plan.course, seed=plan.seed, until=plan.until, checkpoints=plan.checkpoints),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers, use_gpu=cluster.gpus_per_worker > 0, resources_per_worker=bundle(cluster)
        ),
        run_config=RunConfig(
            name=f"ray-{time.time_ns()}",  # never an old snapshot of Ray's: our checkpoints say where to go on
            storage_path=str(plan.checkpoints.absolute()),
            failure_config=FailureConfig(max_failures=0),  # Ray would try again whatever the error
        ),
    )


def _reason(error: BaseException) -> str:
    """What happened to the first worker of which something is known, in a few words."""
    failures = getattr(error, "worker_failures", None) or {-1: error}
    rank, first = min(failures.items())
    first = getattr(first, "_base_exc", first)
    text = next((line.strip() for line in str(first).splitlines() if line.strip()), "")
    return f"{f'rank {rank}: ' if rank >= 0 else ''}{type(first).__name__}{': ' if text else ''}{text[:_TOLD]}"


_TOLD = 120  # characters
