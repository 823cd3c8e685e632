"""Messages about problems of nodes; and which nodes answer."""

import socket
from pathlib import Path

from rayswift.cluster.machine import network_environment
from rayswift.cluster.nodes import Seen, answers, complaints, silent

ADDRESSES = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3"}
FINE = Seen(True, (), ())


def test_a_node_that_nobody_reaches_is_the_one_to_blame() -> None:
    cut = Seen(True, (), ("c",))
    (line,) = complaints(Path("/run"), ADDRESSES, {"a": cut, "b": cut, "c": FINE})
    assert line.startswith("nodes of the Ray cluster cannot be reached: 10.0.0.3 from any other; ")
    (line,) = complaints(Path("/run"), ADDRESSES, {"a": cut, "b": FINE, "c": FINE})
    assert line.startswith("nodes of the Ray cluster cannot be reached: 10.0.0.3 from 10.0.0.1; ")
    assert complaints(Path("/run"), ADDRESSES, dict.fromkeys(ADDRESSES, FINE)) == []


def test_what_a_node_does_not_see_is_named_with_its_field() -> None:
    found = {"a": FINE, "b": Seen(False, ("model.path = 'tiny'",), ()), "c": Seen(True, ("model.path = 'tiny'",), ())}
    shared, model = complaints(Path("/run"), ADDRESSES, found)
    assert shared.startswith("the run folder /run is not shared: node(s) 10.0.0.2 ")
    assert model.startswith("model.path = 'tiny' is not there on node(s) 10.0.0.2, 10.0.0.3 of the Ray cluster; ")


def test_who_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        nodes = [{"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": each} for each in (port, 1)]
        assert answers("127.0.0.1", port)
        assert silent(nodes) == [nodes[1]]


def test_the_interface_is_the_one_that_holds_the_nodes_address() -> None:
    interfaces = {"lo": ["127.0.0.1", "::1"], "eth0": ["192.168.0.7"], "ib0": ["10.0.0.2", "fe80::1"]}
    assert network_environment("10.0.0.2", interfaces, {}) == {
        "GLOO_SOCKET_IFNAME": "ib0",
        "TP_SOCKET_IFNAME": "ib0",
        "NCCL_SOCKET_IFNAME": "=ib0",  # the whole name, not what begins so
        "VLLM_HOST_IP": "10.0.0.2",
    }
    found = network_environment("10.0.0.2", interfaces, {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "^lo"})
    assert found.keys() == {"TP_SOCKET_IFNAME", "VLLM_HOST_IP"}
    assert network_environment("172.16.0.9", interfaces, {}) == {}  # behind address translation
