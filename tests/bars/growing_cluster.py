"""A cluster on this machine whose autoscaler adds nodes, which are processes, and removes idle ones."""

import json
from pathlib import Path

from ray.cluster_utils import FAKE_HEAD_NODE_ID

from cluster.local_cluster import LocalCluster
from tests.ray.conftest import ROOT

HEAD_TYPE = "ray.head.default"  # as the fake provider calls it, whatever the configuration says
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")


def growing_cluster(file: Path, node: dict[str, float], most_nodes: int) -> LocalCluster:
    """A head of one CPU.

    Args:
        file: The file for its configuration.
        node: The resources of an added node.
        most_nodes: The largest number of added nodes.
    """
    environment = {
        "PYTHONPATH": str(ROOT),
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    cluster = LocalCluster(num_cpus=1, environment=environment, head_flags=(f"--autoscaling-config={file}",))
    config = {
        "cluster_name": "growing",
        "max_workers": most_nodes,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": cluster.address,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "auth": {},
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "more": {"resources": node, "node_config": {}, "min_workers": 0, "max_workers": most_nodes},
        },
        "head_node_type": HEAD_TYPE,
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{name}_commands": [] for name in COMMANDS},
    }
    file.write_text(json.dumps(config))
    return cluster
