"""The data service as a run has it, the training left out: feed actor, Ray Data tasks, Ray Train workers that count."""

import json
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import ray

from rayswift.data.feed.client import ActorFeed
from rayswift.data.feed.feed import DRIVERS_ATTEMPT, Feed
from rayswift.data.feed.pipeline import stream_windows
from rayswift.data.sequence.global_batches import FeedPlan, Position
from rayswift.data.sequence.windows import Windows

WORKERS = 2
TIMEOUT_S = 120


def start_ray(num_cpus: int, **options: Any) -> None:
    """As `rayswift.cluster.connect.connect` does for a local run."""
    ray.init(
        num_cpus=num_cpus,
        resources={"rayswift_trainer": float(WORKERS)},
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        **options,
    )


def count(windows: Windows, plan: FeedPlan, work: Path, start: Position | None = None) -> dict[str, float]:
    """Run an epoch, or the rest of it, through two workers.

    Returns:
        tokens and seconds: of the second half of the steps, when what was made ahead while the workers started is
        used up; first_batch_s: the longest that a worker waited for its first batch.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    work.mkdir(parents=True, exist_ok=True)
    name = f"counted-{uuid.uuid4().hex[:8]}"
    feed = (
        ray.remote(Feed)
        .options(name=name, num_cpus=0, max_concurrency=2 * WORKERS + 4)
        .remote(windows, None, plan, str(work), stream_windows)
    )
    feed.begin.remote(DRIVERS_ATTEMPT, start or Position())
    trainer = DataParallelTrainer(
        partial(_count, name, start or Position(), str(work)),
        scaling_config=ScalingConfig(num_workers=WORKERS, resources_per_worker={"rayswift_trainer": 1.0, "CPU": 0.0}),
        run_config=RunConfig(name=name, storage_path=str(work / "ray")),
    )
    trainer.fit()
    ray.kill(feed)
    ranks = [json.loads((work / f"rank-{rank}.json").read_text()) for rank in range(WORKERS)]
    half = len(ranks[0]["times"]) // 2
    return {
        "tokens": sum(sum(rank["tokens"][half:]) for rank in ranks),
        "seconds": max(rank["times"][-1] for rank in ranks) - max(rank["times"][half - 1] for rank in ranks),
        "first_batch_s": max(rank["times"][0] - rank["began"] for rank in ranks),
    }


def _count(name: str, start: Position, work: str) -> None:
    import ray.train

    rank = ray.train.get_context().get_world_rank()
    feed = ActorFeed(name, rank, WORKERS, TIMEOUT_S)
    began = time.time()
    feed.begin(DRIVERS_ATTEMPT, start)
    times: list[float] = []
    tokens: list[int] = []
    last = False
    while not last:
        received = feed.next(start.step + len(times))
        times.append(time.time())
        tokens.append(sum(len(row.input_ids) for row in received.rows))
        last = received.last
    Path(work, f"rank-{rank}.json").write_text(json.dumps({"tokens": tokens, "times": times, "began": began}))
