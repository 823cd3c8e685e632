"""Runs over three hosts of their own addresses, whose own names resolve to 127.0.1.1: see `cluster/local_hosts.py`.

The other cases are in tests/bars/test_hosts.py.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local_hosts import LocalHosts
from tests.on_hosts import ENVIRONMENT, GRPO, SFT, make_project, rayswift, skip_without_hosts
from tests.ray.conftest import curve


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the hosts share, with a project in it."""
    skip_without_hosts()
    folder = tmp_path_factory.mktemp("shared")
    make_project(folder / "project")
    return folder


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
