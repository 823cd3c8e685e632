"""A run folder behind a URL: uploads and their order, downloads, refusals."""

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rayswift.log import UserError, logger
from rayswift.run import checkpoint
from rayswift.run import remote as storage
from rayswift.run.remote import Remote, Uploads, checkpoints, pull, push, withdraw_result, working_copy


@pytest.fixture(params=["pyarrow", "fsspec"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty place behind a URL."""
    if request.param == "pyarrow":
        yield f"file://{tmp_path}/bucket/run"
        return
    from fsspec.implementations.memory import MemoryFileSystem

    yield "memory://bucket/run"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def save(run_dir: Path, step: int, sealed: bool = True, best: int | None = None) -> None:
    folder = run_dir / f"checkpoint-{step}"
    state = json.dumps({"best_global_step": best})
    write(folder, {"model.safetensors": "w" * step, "optim/rank-0.pt": "o", "trainer_state.json": state})
    if sealed:
        checkpoint.write_manifest(folder, step, 1, 0)


RECORD = {"fingerprint.json": "{}", "config.yaml": "a: 1", "logs/rank-0.log": "x", "data/quarantine.jsonl": "q"}
LEFT_HERE = {
    "ray/state": "r",
    "data/train/0.index.npy": "i",
    "result.json.partial": "p",
    ".shared-1": "",
    "logs/rank-0.note": "n",
}


def names_of(remote: Remote) -> set[str]:
    return {name for name in remote.sizes() if not name.endswith("/")}


def test_a_run_goes_up_and_comes_back(url: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, RECORD | LEFT_HERE)
    save(here, 10)
    save(here, 20, best=10)
    save(here, 30, sealed=False)
    remote = Remote(url)
    push(remote, here)
    saved = {f"checkpoint-{n}/{f}" for n in (10, 20) for f in checkpoint_files()}
    assert names_of(remote) == {*RECORD, *saved}
    pull(remote, there, "auto")
    assert checkpoint.newest(there) == dataclasses.replace(
        checkpoint.newest(here) or pytest.fail(), path=there / "checkpoint-20"
    )
    assert checkpoint.read_complete(there / "checkpoint-10")  # the best
    assert all((there / name).read_text() == text for name, text in RECORD.items())


def checkpoint_files() -> set[str]:
    return {"model.safetensors", "optim/rank-0.pt", "trainer_state.json", "manifest.json"}


def test_only_the_newest_comes_back(url: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, RECORD)
    for step in (10, 9, 100):
        save(here, step)
    push(Remote(url), here)
    pull(Remote(url), there, "auto")
    assert [saved.step for saved in checkpoint.find_all(there)] == [100]


def test_retention(url: str, tmp_path: Path) -> None:
    write(tmp_path / "here", RECORD)
    for step in (1, 2, 3, 4):
        save(tmp_path / "here", step)
    remote = Remote(url)
    push(remote, tmp_path / "here", limit=2, best_step=1)
    assert list(checkpoints(remote, remote.sizes())[0]) == [1, 3, 4]
    assert not [name for name in names_of(remote) if name.startswith("checkpoint-2/")]


def test_the_manifest_goes_up_last(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "here", RECORD)
    save(tmp_path / "here", 7)
    remote, order = Remote(url), []
    put = remote.put

    def noted(folder: Path, names: list[str]) -> None:
        order.append(sorted(names))
        put(folder, names)

    monkeypatch.setattr(remote, "put", noted)
    push(remote, tmp_path / "here")
    assert order[0] == ["fingerprint.json"]
    assert order[-1] == ["checkpoint-7/manifest.json"]


def test_an_upload_that_was_killed_does_not_count(url: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    write(here, RECORD)
    save(here, 5)
    save(here, 6)
    remote = Remote(url)
    push(remote, here)
    cut = f"checkpoint-6/{checkpoint.MANIFEST}"
    remote._fs.delete_file(f"{remote._root}/{cut}")
    assert list(checkpoints(remote, remote.sizes())[0]) == [5]
    pull(remote, tmp_path / "there", "auto")
    assert [saved.step for saved in checkpoint.find_all(tmp_path / "there")] == [5]
    assert not [name for name in names_of(remote) if name.startswith("checkpoint-6/")]
    push(remote, here)
    assert list(checkpoints(remote, remote.sizes())[0]) == [5, 6]


def test_an_earlier_run_is_not_overwritten(url: str, tmp_path: Path) -> None:
    write(tmp_path / "here", RECORD)
    save(tmp_path / "here", 5)
    push(Remote(url), tmp_path / "here")
    with pytest.raises(UserError, match=r"holds checkpoint-5 of an earlier run; continue it with --resume auto"):
        pull(Remote(url), tmp_path / "there", "never")


def test_files_of_the_users_own_are_refused(url: str, tmp_path: Path) -> None:
    write(tmp_path / "mine", {"data/train.jsonl": "{}", "notes.md": "-"})
    Remote(url).put(tmp_path / "mine", ["data/train.jsonl", "notes.md"])
    with pytest.raises(UserError, match=r"holds data that RaySwift did not write; choose another --train.output_dir"):
        pull(Remote(url), tmp_path / "there", "auto")


# ---- the scratch folder ----


def test_the_scratch_folder_lives_as_long_as_the_run(url: str, tmp_path: Path) -> None:
    with working_copy(url, "never", str(tmp_path / "scratch")) as run_dir:
        assert run_dir.name == "run"
        write(run_dir, RECORD)
        save(run_dir, 3)
    assert not list((tmp_path / "scratch").iterdir())
    assert list(checkpoints(Remote(url), Remote(url).sizes())[0]) == [3]
    with working_copy(url, "auto", str(tmp_path / "scratch")) as run_dir:
        assert checkpoint.newest(run_dir)


def test_an_error_names_the_url_and_its_logs_go_up(url: str, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=f"see {url}/logs") as caught,
        working_copy(url, "never", str(tmp_path / "scratch")) as run_dir,
    ):
        write(run_dir, RECORD)
        raise UserError(f"it broke; see {run_dir}/logs", exit_code=1)
    assert caught.value.exit_code == 1
    assert not list((tmp_path / "scratch").iterdir())
    assert "logs/rank-0.log" in names_of(Remote(url))


def test_a_launch_that_wrote_nothing_leaves_nothing(url: str) -> None:
    with pytest.raises(UserError), working_copy(url, "never", None):
        raise UserError("bad input")
    assert names_of(Remote(url)) == set()


@pytest.mark.parametrize("place", ["s3://", "file:///", "memory:///", "file:///tmp/lr#1", "s3://bucket/run#2"])
def test_a_url_that_would_be_another_place_is_refused(place: str) -> None:
    """Two runs of a sweep, `run#1` and `run#2`, would share `run`; `s3://` would be a folder `s3:` here."""
    with pytest.raises(UserError, match=r"a URL names a bucket or folder, and has no # in it"):
        Remote(place)


def test_a_plain_folder_is_worked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with working_copy("runs/a", "never", None) as run_dir:
        assert run_dir == tmp_path / "runs" / "a"
    assert not run_dir.exists()


def test_a_relative_folder_in_a_job_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(logger, "propagate", True)
    with working_copy(str(tmp_path / "run"), "never", None):
        assert not caplog.records
    with working_copy("runs/a", "never", None) as run_dir:
        assert run_dir == folder / "runs" / "a"
    assert "train.output_dir = 'runs/a' is in this job's working folder" in caplog.text


# ---- what cannot be used ----


class _Refuses(BaseHTTPRequestHandler):
    """An S3 server that permits nothing."""

    def _refuse(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET = do_PUT = do_POST = do_DELETE = _refuse

    def log_message(self, *_: object) -> None:
        """Silent."""


def test_a_bucket_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with (
        pytest.raises(UserError, match="ACCESS_DENIED") as caught,
        working_copy("s3://bucket/run", "never", None),
    ):
        pytest.fail("entered")
    server.shutdown()
    assert str(caught.value).startswith("train.output_dir = 's3://bucket/run' cannot be ")
    assert "check URL, credentials and permissions" in str(caught.value)
    assert caught.value.exit_code == 2


def _below_a_file(tmp_path: Path) -> str:
    (tmp_path / "file").write_text("")
    return f"file://{tmp_path}/file/run"


REFUSED: dict[str, tuple[Callable[[Path], str], str]] = {
    "unknown scheme": (lambda folder: "nowhere://bucket/run", "Protocol not known: nowhere"),
    "below a file": (_below_a_file, "cannot be written: .*Not a directory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_place_that_cannot_be_used(case: str, tmp_path: Path) -> None:
    make, reason = REFUSED[case]
    place = make(tmp_path)
    with pytest.raises(UserError, match=reason) as caught, working_copy(place, "never", None):
        pytest.fail("entered")
    assert str(caught.value).startswith(f"train.output_dir = {place!r} cannot be ")
    assert caught.value.exit_code == 2


# ---- uploads beside the training ----


def test_uploads_raise_at_the_next_call(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "here", RECORD)
    save(tmp_path / "here", 1)
    uploads = Uploads(url, tmp_path / "here", limit=1, timeout_s=20)
    uploads.wait()
    uploads.start(best_step=None)
    uploads.wait()
    save(tmp_path / "here", 2)
    uploads.start(best_step=None)
    uploads.wait()
    assert list(checkpoints(Remote(url), Remote(url).sizes())[0]) == [2]

    def refuse(*_: object) -> None:
        raise UserError("denied")

    monkeypatch.setattr(storage, "push", refuse)
    uploads.start(best_step=None)
    with pytest.raises(UserError, match="denied") as caught:
        uploads.wait()
    assert caught.value.exit_code == 1


def test_a_plain_folder_needs_no_upload(tmp_path: Path) -> None:
    uploads = Uploads("runs/sft", tmp_path, limit=None, timeout_s=1)
    uploads.start(best_step=None)
    uploads.wait()


# ---- what goes wrong ----


def refuse_from(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The service takes nothing any more, as when credentials expire."""

    def refuse(*_: object) -> None:
        raise UserError("train.output_dir = 'x' cannot be written: ExpiredToken")

    monkeypatch.setattr(Remote, method, refuse)


@pytest.mark.parametrize("method", ["put", "sizes"])
@pytest.mark.parametrize("failure", [None, UserError("upload failed", 1), KeyboardInterrupt(), RuntimeError("oops")])
def test_what_could_not_be_copied_up_stays_and_is_named(
    url: str,
    method: str,
    failure: BaseException | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    with (
        pytest.raises(type(failure) if failure else UserError) as caught,
        working_copy(url, "never", str(tmp_path / "scratch")) as run_dir,
    ):
        write(run_dir, RECORD)
        save(run_dir, 3)
        push(Remote(url), run_dir)
        save(run_dir, 6)
        refuse_from(monkeypatch, method)
        if failure:
            raise failure
    said = str(caught.value) + caplog.text
    assert checkpoint.read_complete(run_dir / "checkpoint-6")
    assert "checkpoint-6" in said
    assert f"kept in {run_dir}" in said
    assert not isinstance(caught.value, UserError) or caught.value.exit_code == 1


def test_only_what_is_missing_there_is_named(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(UserError) as caught,
        working_copy(url, "never", str(tmp_path / "scratch")) as run_dir,
    ):
        write(run_dir, RECORD)
        save(run_dir, 3)
        save(run_dir, 6, sealed=False)  # a save that failed: never complete, and weights all the same
        raise UserError("the disk is full", 1)
    assert f"not at {url}: checkpoint-6; kept in {run_dir}" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"step": 6', b"\0" * 40, b"[]"])
def test_a_half_written_manifest_behind_a_url(url: str, content: bytes, tmp_path: Path) -> None:
    here = tmp_path / "here"
    write(here, RECORD)
    save(here, 5)
    save(here, 6)
    remote = Remote(url)
    push(remote, here)
    with remote._fs.open_output_stream(f"{remote._root}/checkpoint-6/manifest.json") as file:
        file.write(content)
    assert list(checkpoints(remote, remote.sizes())[0]) == [5]
    pull(remote, tmp_path / "there", "auto")
    assert [saved.step for saved in checkpoint.find_all(tmp_path / "there")] == [5]
    assert "set_aside/checkpoint-6/model.safetensors" in names_of(remote)
    with remote._fs.open_output_stream(f"{remote._root}/checkpoint-5/manifest.json") as file:
        file.write(content)
    before = names_of(remote)
    with pytest.raises(UserError, match=r"none of which can be continued:\n  checkpoint-5: its manifest.json is cut"):
        pull(remote, tmp_path / "again", "auto")
    assert names_of(remote) == before


def test_a_damaged_checkpoint_is_not_fetched(url: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    write(here, RECORD)
    save(here, 5)
    save(here, 6)
    remote = Remote(url)
    push(remote, here)
    with remote._fs.open_output_stream(f"{remote._root}/checkpoint-6/model.safetensors") as file:
        file.write(b"w" * 5 + b"x")
    pull(remote, tmp_path / "there", "auto")
    assert [saved.step for saved in checkpoint.find_all(tmp_path / "there")] == [5]
    assert remote.read("set_aside/checkpoint-6/model.safetensors") == b"wwwwwx"


def test_what_has_not_changed_is_not_copied_again(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, RECORD)
    copied: list[str] = []
    put = Remote.put

    def noted(remote: Remote, folder: Path, names: list[str]) -> None:
        copied.extend(name for name in names if not name.startswith("checkpoint-"))
        put(remote, folder, names)

    monkeypatch.setattr(Remote, "put", noted)
    for number in range(8):
        write(here, {f"completions/part-{number:08d}.parquet": f"round {number}", "logs/rank-0.log": "x" * number})
        save(here, number + 1)
        push(Remote(url), here)
    parts = [name for name in copied if name.startswith("completions/")]
    assert len(parts) == len(set(parts)) == 8
    assert copied.count("logs/rank-0.log") == 8
    # Nor by the launch that continues: it has them from there.
    copied.clear()
    pull(Remote(url), there, "auto")
    write(there, {"completions/part-00000008.parquet": "round 8"})
    push(Remote(url), there)
    assert copied == ["completions/part-00000008.parquet"]


def test_a_run_that_goes_on_has_no_result(url: str, tmp_path: Path) -> None:
    """Neither here nor behind the URL; at its new end it has one again, also if that says the same."""
    here = tmp_path / "here"
    write(here, RECORD | {"result.json": "{}"})
    push(Remote(url), here)
    withdraw_result(url, here)
    assert names_of(Remote(url)) == set(RECORD)
    assert not (here / "result.json").exists()
    withdraw_result(url, here)
    write(here, {"result.json": "{}"})
    push(Remote(url), here)
    assert names_of(Remote(url)) == {*RECORD, "result.json"}
    withdraw_result(str(here), here)
    assert not (here / "result.json").exists()
