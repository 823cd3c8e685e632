"""Which runs fit a cluster, and addresses without a head."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayswift.cluster.preflight import Ask, Resources, check_head_answers, describe, num_workers_that_fit
from rayswift.log import UserError

CPU_WORKER: Resources = {"CPU": 1.0}
GPU_WORKER: Resources = {"CPU": 1.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("worker", "nodes", "fitting"),
    [
        (CPU_WORKER, [], -1),
        (CPU_WORKER, [{"CPU": 1}], 0),  # Ray Data takes it
        (CPU_WORKER, [{"CPU": 1}, {"CPU": 1}], 1),
        (CPU_WORKER, [{"CPU": 5}], 4),
        (CPU_WORKER, [{"CPU": 64}], 4),
        (CPU_WORKER, [{"CPU": 0.5}, {"CPU": 0.5}, {"CPU": 0.5}], -1),  # no CPU is whole
        (GPU_WORKER, [{"CPU": 8}, {"CPU": 8}], 0),
        (GPU_WORKER, [{"CPU": 1, "GPU": 8}], 0),
        (GPU_WORKER, [{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 1}], 3),
        (GPU_WORKER, [{"CPU": 2, "GPU": 2}], 1),
        (GPU_WORKER, [{"CPU": 2, "GPU": 2}, {"CPU": 1}], 2),  # Ray Data on the node without GPUs
    ],
)
def test_workers_that_fit(worker: Resources, nodes: list[Resources], fitting: int) -> None:
    assert num_workers_that_fit(Ask(4, worker), nodes) == fitting


@given(
    st.integers(1, 4),
    st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 3), "GPU": st.integers(0, 2)}), max_size=4),
    st.sampled_from([CPU_WORKER, GPU_WORKER]),
)
def test_it_fits_when_a_placement_is_found(asked: int, nodes: list[Resources], worker: Resources) -> None:
    """Against trying every node for Ray Data's CPU, and filling the others with workers."""

    def slots(node: Resources) -> int:
        return int(min(node.get(name, 0) // amount for name, amount in worker.items()))

    def placed(data_node: int) -> bool:
        if nodes[data_node]["CPU"] < 1:
            return False
        left = [{**n, "CPU": n["CPU"] - (i == data_node)} for i, n in enumerate(nodes)]
        return sum(map(slots, left)) >= asked

    fits = num_workers_that_fit(Ask(asked, worker), nodes) >= asked
    assert fits == any(map(placed, range(len(nodes))))


def test_resources_in_words() -> None:
    assert describe({"CPU": 2.0, "GPU": 0.5, "node:10.0.0.1": 1.0, "memory": 1e9}) == "2 CPU + 0.5 GPU"
    assert describe({"CPU": 0.0}) == "nothing"
    assert str(Ask(2, GPU_WORKER)) == "2 worker(s) of 1 CPU + 1 GPU each, and 1 CPU for Ray Data"
    assert Ask(2, GPU_WORKER).bundles() == [GPU_WORKER, GPU_WORKER, {"CPU": 1.0}]


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://h:10001", "head", "10.0.0.1", ":6379", "h:²"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UserError, match="is not the host:port of a head node") as caught:
        check_head_answers(address)
    assert repr(address) in str(caught.value)


@pytest.mark.parametrize("port", ["closed", "99999"])
def test_an_address_where_nobody_listens(port: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound, and not listening
        address = f"127.0.0.1:{probe.getsockname()[1] if port == 'closed' else port}"
        begun = time.monotonic()
        with pytest.raises(UserError, match="no Ray cluster answers at") as caught:
            check_head_answers(address)
    assert address in str(caught.value)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("address", ["head..cluster:6379", f"{'x' * 64}:6379"])
def test_an_address_with_a_name_that_no_host_can_have(address: str) -> None:
    with pytest.raises(UserError, match=r"no Ray cluster answers at .*label"):
        check_head_answers(address)


class Dashboard(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


def test_an_address_of_another_service() -> None:
    """Ray itself would try to join it for more than five minutes."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="is not the head of a Ray cluster; name the --port"):
            check_head_answers(f"127.0.0.1:{server.server_port}")
        server.shutdown()


def test_an_address_of_a_server_of_grpc() -> None:
    server = pytest.importorskip("grpc").server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    check_head_answers(f"127.0.0.1:{port}")
    server.stop(None)


def test_an_address_where_somebody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_head_answers(f"127.0.0.1:{server.getsockname()[1]}")
