"""The pool on a cluster whose autoscaler adds nodes: it grows while the trainer waits for rollouts, and shrinks again.

About two minutes, on Ray's fake node provider and with simulated engines: pytest tests/bars/test_rollout_autoscaler.py
"""

import json
import subprocess
import sys
from pathlib import Path

from tests.bars.growing_cluster import growing_cluster
from tests.ray.conftest import ROOT


def test_nodes_join_for_a_starving_trainer_and_leave_when_it_is_fed(tmp_path: Path) -> None:
    with growing_cluster(tmp_path / "config.json", {"CPU": 1, "rollout": 1}, most_nodes=3) as cluster:
        done = subprocess.run(
            [sys.executable, "-m", "tests.bars.rollout_growth", cluster.address],
            cwd=ROOT,
            env=cluster.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    print(results)  # noqa: T201
    nodes = results["nodes"]
    assert nodes[0] == 1
    assert max(nodes) == 4  # the head, and one for each of the most engines
    assert nodes[-1] == 1  # after the pool had closed
    assert (results["most_engines"], results["engines_at_the_end"]) == (3, 1)
    # The nodes of engines that were not needed any more left while the run went on.
    assert 2 in nodes[nodes.index(4) :]
    assert results["lost"] == 0  # every round had all its completions, or the run would have failed
