"""Runs over three hosts with separate addresses, whose own names resolve to 127.0.1.1: see `cluster/local_hosts.py`.

The other cases are in tests/bars/test_hosts.py.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local_hosts import LocalHosts
from tests.on_hosts import ENVIRONMENT, GRPO, SFT, make_project, rayswift, skip_without_hosts
from tests.ray.conftest import TIMEOUT_S, curve


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the hosts share, with a project in it."""
    skip_without_hosts()
    folder = tmp_path_factory.mktemp("shared")
    make_project(folder / "project")
    return folder


# A rank that joins a group by gloo and adds up the ranks.
RANK = """
import os, socket, sys
from datetime import timedelta
import torch, torch.distributed as dist
from rayswift.cluster.connect import interfaces, network_environment
os.environ.update(network_environment(sys.argv[1], interfaces(), os.environ))
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
total = torch.tensor([float(os.environ["RANK"])])
dist.all_reduce(total)
print(socket.gethostbyname(socket.gethostname()), total.item(), flush=True)
"""


def test_gloo_connects_hosts_whose_names_resolve_to_loopback() -> None:
    skip_without_hosts()
    with LocalHosts(3, environment=ENVIRONMENT, with_ray=False) as hosts:
        group = {"MASTER_ADDR": hosts[0].address, "MASTER_PORT": "29500", "WORLD_SIZE": "3"}
        ranks = [
            hosts[rank].start([sys.executable, "-c", RANK, hosts[rank].address], "/", {**group, "RANK": str(rank)})
            for rank in range(3)
        ]
        for rank in ranks:  # left to itself, gloo takes 127.0.1.1, and connects to nobody
            assert "127.0.1.1 3.0" in rank.communicate(timeout=TIMEOUT_S)[0]


def test_a_fenced_and_a_cut_host_do_not_answer() -> None:
    skip_without_hosts()
    ask = "import sys; from rayswift.cluster.nodes import answers; print(answers(sys.argv[1], 9000, timeout_s=1.0))"
    listen = "import socket, time; s = socket.create_server(('', 9000)); print('up', flush=True); time.sleep(100)"
    with LocalHosts(2, environment=ENVIRONMENT, with_ray=False) as hosts:
        servers = [hosts[number].start([sys.executable, "-c", listen]) for number in range(2)]
        for server in servers:
            assert server.stdout is not None
            assert server.stdout.readline() == "up\n"

        def answer(by: int, to: int) -> str:
            return hosts[by].run(sys.executable, "-c", ask, hosts[to].address).strip()

        assert (answer(0, 1), answer(1, 0)) == ("True", "True")
        hosts[1].fence()
        assert (answer(0, 1), answer(1, 0)) == ("False", "True")
        hosts[1].mend()
        hosts[1].degrade("20mbit", "50ms", 5.0)
        assert answer(0, 1) == "True"
        hosts[1].mend()
        hosts[1].cut()
        assert (answer(0, 1), answer(1, 0)) == ("False", "False")


@pytest.fixture(scope="module")
def hosts(shared: Path) -> Iterator[LocalHosts]:
    """A head with two CPUs, two hosts with one; engines go to the last."""
    with LocalHosts(3, (2, 1, 1), {2: {"engine": 1}}, [shared], dashboard=False, environment=ENVIRONMENT) as hosts:
        yield hosts


def test_zero_2_on_three_hosts_by_relative_paths_from_a_worker_node(hosts: LocalHosts, shared: Path) -> None:
    flags = ("--num_workers", "3", "--zero_stage", "2", "--max_steps", "3", "--output_dir", "../sft")
    command = rayswift(hosts, 1, shared / "project", [*SFT, *flags])
    assert command.wait() == 0
    assert sorted(curve(shared / "sft")) == [1, 2, 3]


def test_grpo_with_trainer_and_engine_on_different_hosts(hosts: LocalHosts, shared: Path) -> None:
    flags = ("--num_workers", "1", "--num_engines", "1", "--engine_resources", '{"engine": 1}')
    command = rayswift(hosts, 0, shared / "project", [*GRPO, *flags, "--max_steps", "2", "--output_dir", "../grpo"])
    assert command.wait() == 0
    assert sorted(curve(shared / "grpo", "reward")) == [1, 2]
