"""The files that `train.push_to_hub` publishes, on a local server with the hub's protocol."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from rayswift.config.load import to_yaml
from rayswift.log import UserError
from rayswift.run import checkpoint, continuation
from rayswift.run import folder as run_folder
from rayswift.run.hub import HubPushes
from tests.unit.run.test_run_folder import config_of, save

TOKEN = "hf_" + "s" * 20


class FakeHub(ThreadingHTTPServer):
    """Keeps the files of every commit; `refuses`: answers 403 to commits; `answers` cleared: does not answer them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.commits = 0
        self.refuses = False
        self.tokens: set[str | None] = set()
        self.answers = threading.Event()
        self.answers.set()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def _answer(self, code: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self._answer(200, {"id": "me/model", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            return self._answer(200, {"url": f"http://127.0.0.1:{self.server.server_port}/me/model"})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(content)["files"]
            ]
            return self._answer(200, {"files": files})
        self.server.answers.wait()
        if "/commit/" in self.path and not self.server.refuses:
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.server.commits += 1
            return self._answer(
                200, {"commitOid": "1" * 40, "commitUrl": f"https://huggingface.co/me/model/commit/{'1' * 40}"}
            )
        return self._answer(403, {"error": "forbidden"})

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server = FakeHub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.answers.set()
    server.shutdown()


def pushes_to(hub: FakeHub, run_dir: Path, *flags: str, limit_s: float = 60) -> HubPushes:
    config = config_of(
        run_dir, "--push_to_hub", "true", "--hub_model_id", "me/model", "--train.hub_token", TOKEN, *flags
    )
    api = HfApi(endpoint=f"http://127.0.0.1:{hub.server_port}", token=TOKEN)
    pushes = HubPushes(config.train, "run", limit_s, api)
    pushes.open()
    return pushes


def saved(run_dir: Path, step: int) -> Path:
    folder = save(run_dir, step, sealed=False)
    files = (
        "model.safetensors", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "1_Pooling/config.json", "training_args.bin", "scheduler.pt", "rng_state.pth", "global_step3/optim.pt",
        "README.md", "head_config.json", "modeling_own.py",
    )  # fmt: skip
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{name} of {step}")
    (folder / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}]')
    checkpoint.write_manifest(folder, step, 1, 0)
    return folder


MODEL = {
    "config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "modules.json", "1_Pooling/config.json", "head_config.json", "modeling_own.py",
}  # fmt: skip


def test_only_the_models_files_go_up(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    before = {path.name for path in tmp_path.iterdir()}
    pushes = pushes_to(hub, tmp_path)
    pushes.start(saved(tmp_path, 3))
    pushes.finish(saved(tmp_path, 6))
    assert set(hub.files) == MODEL
    assert hub.files["model.safetensors"] == b"model.safetensors of 6"
    assert hub.commits == 2
    assert hub.tokens == {f"Bearer {TOKEN}"}
    left = {path.name for path in tmp_path.iterdir()} - before
    assert left == {"fingerprint.json", "checkpoint-3", "checkpoint-6"}, "nothing that looks like a model"


@pytest.mark.parametrize(
    ("strategy", "commits", "more"),
    [
        ("end", 1, None),
        ("every_save", 2, None),
        ("checkpoint", 4, "last-checkpoint"),
        ("all_checkpoints", 4, "checkpoint-3"),
    ],
)
def test_strategies(hub: FakeHub, tmp_path: Path, strategy: str, commits: int, more: str | None) -> None:
    pushes = pushes_to(hub, tmp_path, "--hub_strategy", strategy, "--hub_always_push", "true")
    for step in (3, 6):
        pushes.start(saved(tmp_path, step))
    pushes.finish(tmp_path / "checkpoint-6")
    assert hub.commits == commits
    assert {name for name in hub.files if "/" not in name or name.startswith("1_")} == MODEL
    if more:
        assert f"{more}/optimizer.pt" in hub.files
    assert not any(TOKEN.encode() in content for content in hub.files.values())


def test_a_push_that_fails_ends_the_run_last(hub: FakeHub, tmp_path: Path) -> None:
    pushes = pushes_to(hub, tmp_path)
    hub.refuses = True
    pushes.start(saved(tmp_path, 3))
    with pytest.raises(UserError, match=r"checkpoint-6 could not be pushed to me/model: .*403") as caught:
        pushes.finish(saved(tmp_path, 6))
    assert caught.value.exit_code == 1
    assert str(tmp_path / "checkpoint-6") in str(caught.value)


def test_a_hub_that_does_not_answer_is_not_waited_for_without_limit(hub: FakeHub, tmp_path: Path) -> None:
    pushes = pushes_to(hub, tmp_path, limit_s=0.2)
    hub.answers.clear()
    pushes.start(saved(tmp_path, 3))
    with pytest.raises(UserError, match=r"not done within cluster\.storage_timeout_s = 0\.2; the model is complete in"):
        pushes.finish(saved(tmp_path, 6))


def test_the_best_model_is_pushed_last(hub: FakeHub, tmp_path: Path) -> None:
    """With `load_best_model_at_end` the repository ends with what the run calls its result."""
    config = config_of(tmp_path, "--load_best_model_at_end", "true", "--data.eval", "e.jsonl")
    for step in (3, 6):
        saved(tmp_path, step)
    pushes = pushes_to(hub, tmp_path)
    pushes.start(tmp_path / "checkpoint-6")
    best = run_folder.result_of(tmp_path, config.train, 3)
    assert best == tmp_path / "checkpoint-3"
    pushes.finish(best)
    assert hub.files["model.safetensors"] == b"model.safetensors of 3"
    assert run_folder.result_of(tmp_path, config.train, 9) == tmp_path / "checkpoint-6", "without the best, the newest"


def test_the_token_is_never_written(tmp_path: Path) -> None:
    config = config_of(tmp_path, "--push_to_hub", "true", "--train.hub_token", TOKEN)
    assert config.train.trl_extra["hub_token"] == TOKEN
    assert "hub_token" not in to_yaml(config)
    run_folder.write_record(tmp_path, config, {})
    assert not any(TOKEN in path.read_text() for path in tmp_path.iterdir())
    was = config_of(tmp_path).model_dump(mode="json")
    assert TOKEN not in str(continuation.differences(config, was))
