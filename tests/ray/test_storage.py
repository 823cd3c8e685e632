"""Run folder and rows in a bucket of a local S3-compatible server."""

import json
import logging
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from rayswift.run.remote import Remote, checkpoints
from tests.ray.conftest import ROOT, sft, start

RUN = (
    "--num_workers", "1", "--device", "cpu", "--per_device_train_batch_size", "2", "--max_steps", "40",
    "--save_strategy", "steps", "--save_steps", "4", "--save_total_limit", "2",
)  # fmt: skip


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty bucket; this process and what it starts find its server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for every request
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT")).close()
    yield "s3://bucket"
    server.stop()


def test_a_killed_run_continues_from_its_bucket(bucket: str, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    url, scratch = f"{bucket}/runs/first", tmp_path / "scratch"
    remote = Remote(url)
    Remote(f"{bucket}/rows").put(ROOT / "examples" / "gsm8k", ["train.jsonl"])
    flags = (*tiny, *RUN, "--data.dataset", f"{bucket}/rows/train.jsonl", "--scratch_dir", str(scratch))
    run = start("sft", url, *flags)
    # Its log, not the server: asked all the time, that would have no time for the run.
    run.wait_for(lambda: any("uploaded" in log.read_text() for log in scratch.rglob("rank-0.log")), "the first upload")
    run.kill_driver()
    before = max(checkpoints(remote, remote.sizes())[0])
    assert before % 4 == 0
    out = sft(url, *flags, "--resume", "auto", "--num_workers", "0")
    assert f"fetching {url}/checkpoint-" in out
    assert "continuing" in out
    assert f"model: {url}/checkpoint-40; report: {url}/" in out
    assert list(checkpoints(remote, remote.sizes())[0]) == [36, 40]
    steps = [json.loads(line)["step"] for line in remote.read("metrics.jsonl").splitlines()]
    assert sorted(set(steps)) == list(range(1, 41))
    assert json.loads(remote.read("data/accounting.json"))["trained"] > 0
    # What the killed launch left is the only thing there.
    assert len(list(scratch.iterdir())) == 1


def test_no_such_bucket(bucket: str, tiny: tuple[str, ...]) -> None:
    out = sft("s3://elsewhere/run", *tiny, *RUN, code=2)
    *notes, error = out.splitlines()
    assert error.startswith(
        "error: train.output_dir = 's3://elsewhere/run' cannot be written: Bucket 'elsewhere' not found"
    )
    assert all("is given twice" in note for note in notes), notes  # the test's own flags
