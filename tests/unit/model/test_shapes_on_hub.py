"""Sizes of a model on the hub, before anything but headers is fetched; the hub is a server on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import prod
from pathlib import Path
from typing import Any

import pytest

from rayswift.cluster.layout import lay_out
from rayswift.config.load import load
from rayswift.config.model import ModelConfig
from rayswift.config.schema import SftConfig
from rayswift.launch.plan import describe, resolve
from rayswift.model.size import shapes

NAME, COMMIT = "org/tiny", "0" * 40
# Prints what `--dry_run` knows of the size, and the bytes that were fetched for it.
ASK = """
import json, sys
from rayswift.config.model import ModelConfig
from rayswift.model.size import shapes
try:
    found = shapes.find(ModelConfig(path=sys.argv[1]), "causal_lm")
    print(json.dumps({"config": found.config, "shapes": found.shapes}))
except OSError as error:
    print(json.dumps({"error": str(error)}))
"""


class Hub(ThreadingHTTPServer):
    """Files of one model, as `/NAME/resolve/main/FILE`, whole or in part."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sent = folder, 0
        super().__init__(("127.0.0.1", 0), Answers)


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        name = self.path.removeprefix(f"/{NAME}/resolve/main/")
        file = self.server.folder / name
        if name == self.path or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound" if name == self.path else "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = file.read_bytes()
        status, part = 200, self.headers.get("Range", "").removeprefix("bytes=")
        etag = hashlib.sha256(body).hexdigest()
        if part:
            begin, _, end = part.partition("-")
            status, body = 206, body[int(begin) : int(end) + 1]
        self.send_response(status)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)
            self.server.sent += len(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tiny_model_dir: Path) -> Iterator[Hub]:
    server = Hub(tiny_model_dir)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(name: str, home: Path, port: int, offline: str = "0") -> dict[str, Any]:
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home), "HF_HUB_OFFLINE": offline}
    done = subprocess.run(
        [sys.executable, "-c", ASK, name],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_a_hub_models_sizes_are_known_before_its_weights_are_fetched(
    hub: Hub, tiny_model_dir: Path, tmp_path: Path
) -> None:
    found = ask(NAME, tmp_path, hub.server_port)
    here = shapes.find(ModelConfig(path=str(tiny_model_dir)), "causal_lm")
    assert {name: tuple(shape) for name, shape in found["shapes"].items()} == here.shapes
    assert found["config"] == here.config
    weights = 4 * sum(prod(shape) for shape in here.shapes.values())
    assert 0 < hub.sent < weights / 10


def test_why_a_hub_model_is_unknown_is_said(hub: Hub, tmp_path: Path) -> None:
    assert ask("org/other", tmp_path, hub.server_port)["error"].startswith("the hub does not give org/other: ")
    offline = ask(NAME, tmp_path, hub.server_port, offline="1")["error"]
    assert offline == f"{NAME} is not a folder here, the hub's cache does not have it, and HF_HUB_OFFLINE is set"
    assert "neither a folder here nor a hub id" in ask("no/such/folder", tmp_path, hub.server_port)["error"]


def test_a_plan_without_sizes_says_that_its_stage_is_not_checked() -> None:
    config = load("sft", ["--model", NAME, "--dataset", "rows.jsonl", "--num_workers", "2", "--device", "cpu"]).config
    assert isinstance(config, SftConfig)
    text = describe(resolve(config, lay_out(config.cluster), None), 10, [])
    assert f"memory        not estimated, so whether ZeRO 0 fits is not checked: {NAME} is not a folder here" in text
