"""Connects a process with the other ranks: the variables of `torchrun`, a free port, the process group."""

import os
import socket
from datetime import timedelta

from rayswift.train.spec import RunSpec, Worker


def join_process_group(spec: RunSpec, worker: Worker) -> None:
    """Connect this process with the other ranks; a collective that exceeds the timeout raises an error."""
    import torch
    import torch.distributed as dist

    layout, timeout = spec.layout, timedelta(seconds=spec.config.cluster.timeout_s)
    torch.set_num_threads(layout.threads_per_worker)
    if layout.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "gloo" if layout.device == "cpu" else "nccl"
    interface = os.environ.get("GLOO_SOCKET_IFNAME" if backend == "gloo" else "NCCL_SOCKET_IFNAME", "").strip("=")
    worker.at(f"connects to the other ranks ({backend} on {interface or 'any interface'})")
    if spec.config.cluster.uses_deepspeed:
        import deepspeed
        import deepspeed.ops

        # A shared-memory all-reduce for inference: compiled for half a minute at the first run, and not used here.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # Before the arguments and the model: `zero.Init` would see a world of one.
        deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)
    elif worker.size > 1:
        dist.init_process_group(backend, timeout=timeout)


def rank_environment(rank: int, size: int, local_rank: int, local_size: int, host: str, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_size),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
