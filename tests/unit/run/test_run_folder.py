"""A launch and its run folder: what it finds, what may change when a run continues, and its record."""

import dataclasses
import json
import logging
import re
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from rayswift.config.load import load, paths_of, to_yaml
from rayswift.config.schema import RlhfConfig, SftConfig, TrainingConfig
from rayswift.data.sequence.global_batches import Position
from rayswift.launch import user_code
from rayswift.log import UserError
from rayswift.run import checkpoint, continuation, fingerprint
from rayswift.run import folder as run_folder
from rayswift.run.continuation import check_unchanged
from rayswift.run.folder import Resume, open_run

POSITION = Position(step=20, epoch=1, window=3, row=2, counts={"trained": 90, "quarantined: malformed JSON": 10})
FOUND = {"model": "m1", "tokenizer": "t1", "rows": 100}


def config_of(run_dir: Path, *argv: str) -> SftConfig:
    given = ["--model", "m", "--dataset", "d.jsonl", "--output_dir", str(run_dir), "--zero_stage", "0"]
    config = load("sft", [*given, "--num_workers", "1", "--global_batch_size", "8", *argv]).config
    assert isinstance(config, SftConfig)
    return config


def save(
    run_dir: Path,
    step: int = 20,
    only_model: bool = False,
    complete: bool = True,
    zero_stage: int = 0,
    **state: Any,
) -> Path:
    """A checkpoint as training leaves it, weights aside, in a folder that a run has made its own."""
    folder = run_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    if not (run_dir / "fingerprint.json").exists():
        (run_dir / "fingerprint.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    if not only_model:
        (folder / "optimizer.pt").write_bytes(b"states")
    (folder / "config.yaml").write_text(to_yaml(config_of(run_dir)), encoding="utf-8")
    data_state = {"position": dataclasses.asdict(dataclasses.replace(POSITION, step=step)), "epochs": 1.5}
    (folder / "data_state.json").write_text(json.dumps(data_state))
    (folder / "trainer_state.json").write_text(json.dumps({"best_global_step": None, "best_metric": None} | state))
    if complete:
        checkpoint.write_manifest(folder, step, 1, zero_stage)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- open_run ----


@pytest.mark.parametrize("resume", ["never", "auto"])
def test_a_new_folder(tmp_path: Path, resume: str) -> None:
    run_dir = tmp_path / "deep" / "run"
    assert open_run(config_of(run_dir, "--resume", resume), run_dir) is None
    # Its mark of ownership, and nothing else.
    assert names(run_dir) == ["fingerprint.json"]
    assert (run_dir / "fingerprint.json").read_text() == "{}"
    # A launch that failed before it wrote anything more does not lock the folder.
    assert open_run(config_of(run_dir, "--resume", resume), run_dir) is None


def test_never_refuses_a_folder_with_a_checkpoint_and_touches_nothing(tmp_path: Path) -> None:
    save(tmp_path)
    save(tmp_path, 30, complete=False)
    with pytest.raises(UserError, match=r"checkpoint-20 of an earlier run; continue it with --resume auto") as caught:
        open_run(config_of(tmp_path), tmp_path)
    assert caught.value.exit_code == 2
    assert names(tmp_path) == ["checkpoint-20", "checkpoint-30", "fingerprint.json"]


def test_never_clears_what_a_run_without_a_checkpoint_left(tmp_path: Path) -> None:
    run_folder.write_record(tmp_path, config_of(tmp_path), FOUND)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "logs").mkdir()
    save(tmp_path, 5, complete=False)
    (tmp_path / "notes.md").write_text("mine")
    assert open_run(config_of(tmp_path), tmp_path) is None
    assert not {"metrics.jsonl", "logs", "checkpoint-5"} & set(names(tmp_path))
    assert "notes.md" in names(tmp_path)
    # The mark is the new run's: nothing of the old one's content is compared with it.
    assert (tmp_path / "fingerprint.json").read_text() == "{}"


@pytest.mark.parametrize("resume", ["never", "auto", "path"])
@pytest.mark.parametrize(
    "name", ["data", "logs", "tokenizer", "init", "ray", "runs", "checkpoint-500", "metrics.jsonl", "result.json"]
)
def test_a_folder_of_the_users_own_is_refused_and_left_alone(tmp_path: Path, name: str, resume: str) -> None:
    # --output_dir may name a project folder, with the training data in data/, or another trainer's run.
    project = tmp_path / "project"
    file = project / name if "." in name else project / name / "train.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("{}\n")
    if resume == "path":
        resume = str(save(tmp_path / "old"))
    message = f"holds {name} that RaySwift did not write; choose another --train.output_dir"
    for _ in range(2):  # the first try leaves no mark that would let the second one in
        with pytest.raises(UserError, match=message):
            open_run(config_of(project, "--resume", resume), project)
    assert file.read_text() == "{}\n"
    assert names(project) == [name]


def test_other_files_do_not_keep_a_run_out(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "src").mkdir()
    assert open_run(config_of(tmp_path), tmp_path) is None
    assert names(tmp_path) == ["fingerprint.json", "notes.md", "src"]


def test_auto_continues_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    save(tmp_path, 30, complete=False)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    resume = open_run(config_of(tmp_path, "--resume", "auto"), tmp_path)
    assert resume is not None
    assert (resume.saved.step, resume.epochs, resume.saved.zero_stage) == (20, 1.5, 0)
    assert resume.position == POSITION
    assert resume.config["data"]["dataset"] == ["d.jsonl"]
    kept = ["checkpoint-10", "checkpoint-20", "fingerprint.json", "metrics.jsonl", "set_aside"]
    assert names(tmp_path) == kept
    assert names(tmp_path / "set_aside") == ["checkpoint-30"]


def test_a_path_is_continued_into_another_folder(tmp_path: Path) -> None:
    folder = save(tmp_path / "old")
    resume = open_run(config_of(tmp_path / "new", "--resume", str(folder)), tmp_path / "new")
    assert resume is not None
    assert resume.saved.path == folder
    assert names(tmp_path / "old") == ["checkpoint-20", "fingerprint.json"]
    assert names(tmp_path / "new") == ["fingerprint.json"]


@pytest.mark.parametrize(
    ("harm", "said"), [("missing", "there is no such folder; give auto, never, or"), ("incomplete", "no manifest.json")]
)
def test_a_path_must_be_a_complete_checkpoint(tmp_path: Path, harm: str, said: str) -> None:
    folder = tmp_path / "old" / "checkpoint-20"
    if harm == "incomplete":
        save(tmp_path / "old", complete=False)
    with pytest.raises(UserError, match=rf"is not a complete checkpoint: .*{said}"):
        open_run(config_of(tmp_path / "new", "--resume", str(folder)), tmp_path / "new")
    assert folder.exists() == (harm == "incomplete")


def test_a_run_folder_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "old", 10)
    old = tmp_path / "old"
    said = f"train.resume = '{old}' is a run folder; name one of its checkpoints: {old}/checkpoint-10"
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        open_run(config_of(tmp_path / "new", "--resume", str(tmp_path / "old")), tmp_path / "new")


def test_a_model_alone_cannot_be_continued(tmp_path: Path) -> None:
    save(tmp_path, only_model=True)
    with pytest.raises(UserError, match=r"saved with train\.save_only_model"):
        open_run(config_of(tmp_path, "--resume", "auto"), tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"train\.output_dir = .*run' cannot be written: Not a directory"):
        open_run(config_of(tmp_path / "file" / "run"), tmp_path / "file" / "run")
    with pytest.raises(UserError, match="cannot be written: File exists"):
        open_run(config_of(tmp_path / "file"), tmp_path / "file")


# ---- check_unchanged ----


def resumed(run_dir: Path, zero_stage: int = 0) -> Resume:
    save(run_dir, zero_stage=zero_stage)
    run_folder.write_record(run_dir, config_of(run_dir), FOUND)
    resume = open_run(config_of(run_dir, "--resume", "auto"), run_dir)
    assert resume is not None
    return resume


def test_the_same_again_may_continue(tmp_path: Path) -> None:
    check_unchanged(resumed(tmp_path), config_of(tmp_path, "--resume", "auto"), FOUND)


@pytest.mark.parametrize(
    "argv",
    [
        ["--logging_steps", "3", "--save_steps", "7", "--save_total_limit", "2", "--report_to", "none"],
        ["--max_failures", "9", "--timeout_s", "5", "--num_data_cpus", "1", "--threads_per_worker", "1"],
        ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"],
        ["--max_bad_fraction", "0.5", "--early_stopping_patience", "3", "--eval_strategy", "steps"],
        ["--callbacks", "a.py:B", "--metrics", "a.py:c", "--metric_for_best_model", "c", "--run_name", "again"],
        ["--adam_beta2", "0.999", "--label_smoothing_factor", "0"],  # as TRL's defaults
    ],
)
def test_what_changes_no_step_may_change(tmp_path: Path, argv: list[str]) -> None:
    check_unchanged(resumed(tmp_path), config_of(tmp_path, *argv), FOUND)


@pytest.mark.parametrize("zero_stage", [0, 3])
@pytest.mark.parametrize("workers", [["2"], ["1", "4"]])
def test_the_number_of_workers_may_change(tmp_path: Path, workers: list[str], zero_stage: int) -> None:
    check_unchanged(resumed(tmp_path, zero_stage), config_of(tmp_path, "--num_workers", *workers), FOUND)


def refusal(resume: Resume, config: SftConfig, found: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(UserError) as caught:
        check_unchanged(resume, config, found or FOUND)
    first, *lines, last = str(caught.value).splitlines()
    assert "cannot be continued" in first
    assert "another --train.output_dir" in last
    return [line.strip() for line in lines]


def test_every_difference_is_listed(tmp_path: Path) -> None:
    argv = [
        "--seed",
        "1",
        "--max_length",
        "64",
        "--adam_beta2",
        "0.9",
        "--dataset",
        "e.jsonl",
        "--lora_rank",
        "4",
    ]
    assert sorted(refusal(resumed(tmp_path), config_of(tmp_path, *argv))) == [
        "data.dataset: was ['d.jsonl'], is ['e.jsonl']",
        "data.max_length: was 2048, is 64",
        "model.lora_rank: was 8, is 4",
        "train.adam_beta2: was 0.999, is 0.9",
        "train.seed: was 42, is 1",
    ]


def test_what_may_change_is_shown(tmp_path: Path) -> None:
    shown: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: shown.append(record.getMessage())  # type: ignore[method-assign]
    continuation.logger.addHandler(handler)
    continuation.logger.setLevel(logging.INFO)
    try:
        check_unchanged(resumed(tmp_path), config_of(tmp_path, "--save_steps", "7"), FOUND)
    finally:
        continuation.logger.removeHandler(handler)
    assert shown == ["changed since checkpoint-20: train.save_steps: was 500, is 7"]


def test_a_checkpoint_of_before_a_field_has_its_default(tmp_path: Path) -> None:
    resume = resumed(tmp_path)
    for section, name in (("train", "plugins"), ("train", "loss"), ("data", "loss_on"), ("train", "save_steps")):
        del resume.config[section][name]
    check_unchanged(resume, config_of(tmp_path), FOUND)
    assert refusal(resume, config_of(tmp_path, "--loss_on", "all", "--plugins", "p.py")) == [
        "data.loss_on: was 'assistant', is 'all'",
        "train.plugins: was [], is ['p.py']",
    ]


def found_of(config: TrainingConfig) -> dict[str, Any]:
    return fingerprint.fingerprint(config, "t", 3, user_code.content_hash(config))


def test_loss_and_plugins_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("a")
    config = config_of(tmp_path, "--plugins", str(tmp_path / "mine.py"))
    found = found_of(config)
    (tmp_path / "mine.py").write_text("b")
    assert found["loss, plugins and rewards"] != found_of(config)["loss, plugins and rewards"]


# Beginnings of names that speak of watching, saving and waiting; all of these may change.
WATCHING = (
    "callbacks",
    "eval",
    "hub",
    "log",
    "max_failures",
    "metric",
    "report",
    "resume",
    "run_name",
    "save",
    "timeout",
)
STEERING = {"data.eval_fraction"}  # it takes rows from the training


def test_fields_that_only_watch_are_free() -> None:
    fields = [path for path in paths_of(SftConfig) if path.split(".")[1].startswith(WATCHING)]
    assert {"train.save_steps", "train.callbacks", "cluster.timeout_s", "train.hub_token"} <= set(fields)
    assert set(fields) - STEERING <= continuation.FREE, "give it a line in _FREE_NAMES, or in STEERING here"


@pytest.mark.parametrize(("patience", "ended"), [(None, False), (3, False), (2, True), (1, True)])
def test_a_run_that_stopped_early_has_ended(tmp_path: Path, patience: int | None, ended: bool) -> None:
    losses = [3.0, 2.0, 2.5, 2.5]
    history = [{"step": 5 * n, "eval_loss": loss} for n, loss in enumerate(losses, 1)]
    save(tmp_path, log_history=history)
    resume = open_run(config_of(tmp_path, "--resume", "auto"), tmp_path)
    assert resume is not None
    argv = ["--early_stopping_patience", str(patience)] if patience else []
    assert resume.is_end_of(config_of(tmp_path, *argv).train) == ended


def test_another_global_batch(tmp_path: Path) -> None:
    lines = refusal(resumed(tmp_path), config_of(tmp_path, "--global_batch_size", "16"))
    assert lines == ["train.global_batch_size: was 8, is 16"]


def test_other_contents(tmp_path: Path) -> None:
    lines = refusal(resumed(tmp_path), config_of(tmp_path), {"model": "m2", "tokenizer": "t2", "rows": 99})
    assert lines == [
        "content of the model: was m1, is m2",
        "content of the tokenizer: was t1, is t2",
        "content of the rows: was 100, is 99",
    ]


def test_free_fields_exist_and_change_no_step() -> None:
    assert {*paths_of(SftConfig), *paths_of(RlhfConfig)} >= continuation.FREE
    steps = ["seed", "num_train_epochs", "max_steps", "learning_rate", "warmup_steps", "optim"]
    assert not continuation.FREE & {f"train.{name}" for name in steps}
    assert not {field for field in continuation.FREE if field.startswith("model.")}
    assert {field for field in continuation.FREE if field.startswith("data.")} == {
        "data.eval",
        "data.max_bad_fraction",
    }


def test_the_fingerprint_sees_the_model(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    seen = set()
    for name, content in (
        ("config.json", "{}"),
        ("config.json", '{"a": 1}'),
        ("a.safetensors", "x"),
        ("a.safetensors", "xy"),
    ):
        (model / name).write_text(content)
        seen.add(found_of(config_of(tmp_path, "--model", str(model)))["model"])
    assert len(seen) == 4
    assert found_of(config_of(tmp_path)) | {"model": ""} == {
        "model": "",
        "tokenizer": "t",
        "rows": 3,
    }


# ---- what the workers take ----


def agreed(run_dir: Path, resume: str) -> Path | None:
    """The checkpoint that a worker continues after the driver has opened the run."""
    from rayswift.cluster.layout import lay_out
    from rayswift.data.feed.client import FeedClient
    from rayswift.data.feed.feed import Feed
    from rayswift.data.sequence.global_batches import FeedPlan
    from rayswift.train.clock import Clock
    from rayswift.train.spec import RunSpec, Worker
    from rayswift.train.startup import agree_on_checkpoint

    config = config_of(run_dir, "--resume", resume, "--device", "cpu", "--num_workers", "0")
    opened = open_run(config, run_dir)
    plan = FeedPlan(8, 100, 2000, 1, -1, 0.01)
    resume_from = opened.saved.path if opened else None
    spec = RunSpec(config, lay_out(config.cluster), run_dir, run_dir, plan, Clock(0), resume_from, run_dir)
    feed = Feed(None, None, plan, str(run_dir), None)  # type: ignore[arg-type]
    found, _ = agree_on_checkpoint(spec, Worker(0, 1, FeedClient(feed, 1)))
    return found.saved.path if found else None


def test_workers_take_what_the_launch_chose(tmp_path: Path) -> None:
    assert agreed(tmp_path / "new", "auto") is None
    old = save(tmp_path / "old")
    assert agreed(tmp_path / "old", "auto") == old
    assert agreed(tmp_path / "another", str(old)) == old


def test_the_newest_checkpoint_of_the_run_folder_can_be_named(tmp_path: Path) -> None:
    save(tmp_path, 10)
    newest = save(tmp_path, 20)
    assert agreed(tmp_path, str(newest)) == newest


@pytest.mark.parametrize("folder", ["run", "other"])
def test_no_other_checkpoint_is_continued_where_the_run_folder_holds_one(tmp_path: Path, folder: str) -> None:
    # Workers take the newest of the run folder after a restart, so a launch may begin with no other.
    named = save(tmp_path / folder, 10)
    newest = save(tmp_path / "run", 20)
    with pytest.raises(UserError, match=r"train\.resume = .*checkpoint-10'.*--resume auto") as caught:
        agreed(tmp_path / "run", str(named))
    assert f"the run folder holds {newest}" in str(caught.value)
    assert "another --train.output_dir" in str(caught.value)
    assert caught.value.exit_code == 2
    assert named.exists() and newest.exists()


def test_another_runs_checkpoint_is_continued_where_a_run_left_none(tmp_path: Path) -> None:
    other = save(tmp_path / "other", 10)
    save(tmp_path / "run", 5, complete=False)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 5}\n')
    assert agreed(tmp_path / "run", str(other)) == other
    assert names(tmp_path / "run") == ["events.jsonl", "fingerprint.json", "set_aside"]


# ---- records ----


def test_the_record_reloads(tmp_path: Path) -> None:
    config = config_of(tmp_path, "--adam_beta2", "0.9")
    run_folder.write_record(tmp_path, config, FOUND)
    assert load("sft", ["--config", str(tmp_path / "config.yaml")]).config == config
    assert json.loads((tmp_path / "fingerprint.json").read_text()) == FOUND


def test_a_full_disk_leaves_the_record_as_it_was(tmp_path: Path) -> None:
    """Cut off, it would keep a run from being continued when there is space again."""
    run_folder.write_record(tmp_path, config_of(tmp_path), FOUND)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            run_folder.write_record(tmp_path, config_of(tmp_path), FOUND)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_the_result_is_the_last_checkpoint_or_the_best(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20, best_global_step=10, best_metric=0.5)
    model, counts = run_folder.write_result(tmp_path, config_of(tmp_path))
    assert model == tmp_path / "checkpoint-20"
    assert counts == POSITION.counts
    accounting = json.loads((tmp_path / "data" / "accounting.json").read_text())
    assert accounting == {"rows seen": 100, **POSITION.counts}

    best, _ = run_folder.write_result(tmp_path, config_of(tmp_path, "--load_best_model_at_end"))
    assert best == tmp_path / "checkpoint-10"
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == {"model": "checkpoint-10", "last": "checkpoint-20", "best_metric": 0.5}
    assert checkpoint.model_folder(tmp_path) == best


def test_a_run_without_a_checkpoint_has_no_result(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no complete checkpoint") as caught:
        run_folder.write_result(tmp_path, config_of(tmp_path))
    assert caught.value.exit_code == 1


# ---- the rows ----


def run_on_rows(tmp_path: Path) -> tuple[SftConfig, Resume, Path]:
    """A run over two files, one of them gone through since its first launch."""
    rows = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in rows:
        file.write_text('{"text": "one"}\n{"text": "two"}\n')
    run_dir = tmp_path / "run"
    config = config_of(run_dir, "--resume", "auto")
    config = config.model_copy(update={"data": config.data.model_copy(update={"dataset": [*map(str, rows)]})})
    folder = save(run_dir)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    checkpoint.write_manifest(folder, 20, 1, 0)
    thread = fingerprint.record_sources(config.data, run_dir, ())
    assert thread is not None
    thread.join()
    run_folder.write_record(run_dir, config, FOUND)
    resume = open_run(config, run_dir)
    assert resume is not None
    return config, resume, rows[1]


def test_rows_edited_behind_a_runs_back_are_refused(tmp_path: Path) -> None:
    config, resume, file = run_on_rows(tmp_path)
    check_unchanged(resume, config, FOUND)
    file.write_text('{"text": "one"}\n{"text": "TWO"}\n')  # as many rows, as many bytes
    assert refusal(resume, config) == [f"data.dataset: {file}: its content has changed"]
    file.write_text('{"text": "one"}\n{"text": "another"}\n')
    assert refusal(resume, config) == [f"data.dataset: {file}: was 32 bytes, is 36"]
    # A copy put back in place is the same.
    file.write_text('{"text": "one"}\n{"text": "two"}\n')
    check_unchanged(resume, config, FOUND)


def test_rows_that_were_not_touched_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, resume, _ = run_on_rows(tmp_path)
    from rayswift.data.cache import fingerprint as contents

    monkeypatch.setattr(contents, "hash_file", lambda path: pytest.fail(f"read {path}"))
    check_unchanged(resume, config, FOUND)


def test_a_run_without_a_note_of_its_rows_is_continued(tmp_path: Path) -> None:
    config, resume, file = run_on_rows(tmp_path)
    (resume.saved.path.parent / "sources.json").unlink()
    file.write_text('{"text": "one"}\n{"text": "TWO"}\n')
    check_unchanged(resume, config, FOUND)


def test_the_fingerprint_sees_weights_of_the_same_size(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    file = model / "model.safetensors"
    file.write_bytes(bytes(3 << 20))
    config = config_of(tmp_path, "--model", str(model))
    was = found_of(config)
    assert found_of(config) == was
    file.write_bytes(b"\1" * (3 << 20))
    assert found_of(config)["weights"] != was["weights"]


def test_the_fingerprint_sees_the_models_beside_the_model(tmp_path: Path) -> None:
    """Rewards, teacher, critic and an adapter that a run folder holds; models on the hub have a revision."""
    folders = {name: tmp_path / name for name in ("teacher", "critic", "judge", "run/checkpoint-2")}
    for folder in folders.values():
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(bytes(100))
    (tmp_path / "run/config.yaml").write_text("")
    (folders["run/checkpoint-2"] / "adapter_config.json").write_text("{}")
    checkpoint.write_manifest(folders["run/checkpoint-2"], 2, 1, 0)
    flags = ["--rlhf_type", "ppo", "--model", "org/name", "--tuner", "lora", "--model.adapters", str(tmp_path / "run")]
    flags += [
        "--critic",
        "separate",
        "--critic_path",
        str(folders["critic"]),
        "--model.teacher",
        str(folders["teacher"]),
    ]
    flags += ["--reward_models", str(folders["judge"]), "--dataset", "d.jsonl"]
    config = load("rlhf", flags).config
    was = fingerprint.weights_hashes(config)
    for folder in folders.values():
        (folder / "adapter_model.safetensors").write_bytes(b"\1" * 100)
        now = fingerprint.weights_hashes(config)
        name = "weights" if folder.name == "checkpoint-2" else "weights beside the model"
        assert {key for key in was if was[key] != now[key]} == {name}
        was = now
    assert fingerprint.weights_hashes(load("sft", ["--model", "org/name", "--dataset", "d.jsonl"]).config) == {}


# ---- longer, and elsewhere ----


def test_a_longer_run_is_shown_the_way_on(tmp_path: Path) -> None:
    resume = resumed(tmp_path)
    with pytest.raises(UserError, match=rf"num_train_epochs: was .*\n.* and --model {resume.saved.path}, which trains"):
        check_unchanged(resume, config_of(tmp_path, "--num_train_epochs", "5"), FOUND)


@pytest.mark.parametrize(
    ("schedule", "change", "allowed"),
    [
        (["constant"], ["--num_train_epochs", "5"], True),
        (["constant_with_warmup", "--warmup_steps", "3"], ["--num_train_epochs", "5"], True),
        (["constant_with_warmup", "--warmup_steps", "0.1"], ["--num_train_epochs", "5"], False),
        (["constant", "--max_steps", "40"], ["--max_steps", "60"], True),
        (["constant"], ["--max_steps", "60"], False),
        (["cosine", "--max_steps", "40"], ["--max_steps", "60"], False),
        (["constant", "--max_steps", "40"], ["--max_steps", "60", "--seed", "1"], False),
    ],
)
def test_a_constant_schedule_may_go_on(tmp_path: Path, schedule: list[str], change: list[str], allowed: bool) -> None:
    was = config_of(tmp_path, "--lr_scheduler_type", *schedule)
    resume = dataclasses.replace(resumed(tmp_path), config=was.model_dump(mode="json"))
    kept = schedule[:1] if "--max_steps" in change else schedule
    now = config_of(tmp_path, "--lr_scheduler_type", *kept, *change)
    if allowed:
        check_unchanged(resume, now, FOUND)
    else:
        with pytest.raises(UserError, match="cannot be continued"):
            check_unchanged(resume, now, FOUND)


@pytest.mark.parametrize(("wanted", "here"), [(True, False), (True, True), (False, False)])
def test_a_best_checkpoint_that_stays_behind_is_named(
    tmp_path: Path, wanted: bool, here: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder.logger, "propagate", True)
    history = [{"step": 4, "eval_loss": 0.5}, {"step": 6, "eval_loss": 0.75}]
    if here:
        save(tmp_path, 4)
    save(tmp_path, 20, log_history=history)
    flags = ["--load_best_model_at_end", "true", "--eval_strategy", "steps"] if wanted else []
    run_folder.write_result(tmp_path, config_of(tmp_path, *flags))
    said = "the best evaluation so far, loss = 0.5 at step 4, is of a checkpoint that is not in" in caplog.text
    assert said == (wanted and not here)
