"""A cluster whose autoscaler adds nodes: the messages of a run that does not fit yet, and when it gives up.

About two minutes, and on Ray's fake node provider, so not part of the suite: pytest tests/bars/test_autoscaler.py
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local_cluster import LocalCluster
from tests.bars.growing_cluster import growing_cluster
from tests.ray.conftest import curve
from tests.ray.test_cluster import rayswift, working_dir

__all__ = ["working_dir"]


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head of one CPU, to which at most two nodes of one CPU are added."""
    with growing_cluster(tmp_path_factory.mktemp("autoscaler") / "config.json", {"CPU": 1}, 2) as cluster:
        yield cluster


def test_it_says_that_it_waits_and_goes_on(growing: LocalCluster, working_dir: Path, run_dir: Path) -> None:
    flags = ("--num_workers", "2", "--max_steps", "2", "--wait_for_nodes_s", "90")
    code, out = rayswift(growing.address, working_dir, run_dir, *flags)
    assert code == 0, out
    waits = out.index("waiting up to 90 s (cluster.wait_for_nodes_s) for 2 worker(s) of 1 CPU each, and 1 CPU for Ray")
    assert ": the autoscaler adds nodes, asked 2 worker(s)" in out
    assert "there 1 node(s) with 1 CPU: room for 0 of the 2 worker(s); lacking 2 x (1 CPU)" in out
    assert waits < out.index("the cluster has room after")
    assert sorted(curve(run_dir)) == [1, 2]


def test_more_than_the_autoscaler_may_add(growing: LocalCluster, working_dir: Path, run_dir: Path) -> None:
    code, out = rayswift(growing.address, working_dir, run_dir, "--num_workers", "4")
    assert code == 2, out
    assert "no autoscaler is there that may add enough" in out.splitlines()[-1]


def test_it_gives_up(growing: LocalCluster, working_dir: Path, run_dir: Path) -> None:
    deadline = time.monotonic() + 120
    while growing.count_processes("raylet") > 1:  # the nodes that ran before leave when they idle
        assert time.monotonic() < deadline
        time.sleep(1)
    code, out = rayswift(growing.address, working_dir, run_dir, "--num_workers", "2", "--wait_for_nodes_s", "0")
    assert code == 1, out
    assert "the Ray cluster had no room within cluster.wait_for_nodes_s = 0: asked 2 worker(s)" in out.splitlines()[-1]
