"""No launch deletes a file with weights, whatever the state of its folder."""

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayswift.log import UserError
from rayswift.run import checkpoint
from rayswift.run.folder import open_run
from rayswift.run.remote import Remote, push, working_copy
from rayswift.train.parallel import universal
from tests.unit.run.test_run_folder import agreed, config_of, save

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def run_of(folder: Path) -> Path:
    """A finished run: three checkpoints, initial weights, a record."""
    for step in (10, 20, 30):
        made = save(folder, step, sealed=False)
        (made / "model.safetensors").write_text(f"weights of {step}")
        (made / "optimizer.pt").write_text(f"states of {step}")
        checkpoint.write_manifest(made, step, 1, 0)
    (folder / "init").mkdir()
    (folder / "init" / "model.safetensors").write_text("initial weights")
    (folder / "logs").mkdir()
    (folder / "logs" / "rank-0.log").write_text("a line\n")
    (folder / "result.json").write_text(json.dumps({"model": "checkpoint-30"}))
    return folder


def weights_in(folder: Path) -> Counter[str]:
    """The contents of all files that hold weights, wherever they lie."""
    return Counter(path.read_text() for path in folder.rglob("*") if path.is_file() and path.suffix in WEIGHTS)


def each(names: str, harm: Callable[[Path], object]) -> Callable[[Path], None]:
    def do(run: Path) -> None:
        for path in sorted(run.glob(names)):
            harm(path)

    return do


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def only(*steps: int) -> Callable[[Path], None]:
    def do(run: Path) -> None:
        for folder in checkpoint.folders(run):
            if checkpoint.step_of(folder) not in steps:
                shutil.rmtree(folder)

    return do


def both(*harms: Callable[[Path], None]) -> Callable[[Path], None]:
    def do(run: Path) -> None:
        for harm in harms:
            harm(run)

    return do


def converted_only(run: Path) -> None:
    for folder in checkpoint.folders(run):
        (folder / "global_step1_universal").mkdir()
        (folder / "global_step1_universal" / "fp32.pt").write_text(f"converted {folder.name}")
        (folder / "latest_universal").write_text("global_step1_universal")


def users_own(run: Path) -> None:
    for name in (
        "checkpoint-30-merged",
        "checkpoint-best",
        "data/adapter",
        "logs/old",
        "ref",
        "set_aside/checkpoint-30",
    ):
        (run / name).mkdir(parents=True)
        (run / name / "model.safetensors").write_text(f"my {name}")
    (run / "checkpoint-30" / "mine.safetensors").write_text("beside the others")


HARMS: dict[str, Callable[[Path], None]] = {
    "nothing": lambda run: None,
    "no optimizer anywhere": each("checkpoint-*/optimizer.pt", Path.unlink),
    "no optimizer in the newest": each("checkpoint-30/optimizer.pt", Path.unlink),
    "no manifest anywhere": each("checkpoint-*/manifest.json", Path.unlink),
    "no manifest in the newest": each("checkpoint-30/manifest.json", Path.unlink),
    "manifests cut off": each("checkpoint-*/manifest.json", cut),
    "manifests of zeros": each("checkpoint-*/manifest.json", zeros),
    "manifests empty": each("checkpoint-*/manifest.json", lambda path: path.write_text("")),
    "weights cut off": each("checkpoint-*/model.safetensors", cut),
    "weights of zeros": each("checkpoint-30/model.safetensors", zeros),
    "trainer state of zeros": each("checkpoint-30/trainer_state.json", zeros),
    "trainer states of zeros": each("checkpoint-*/trainer_state.json", zeros),
    "no config in any": each("checkpoint-*/config.yaml", Path.unlink),
    "no data state in the newest": each("checkpoint-30/data_state.json", Path.unlink),
    "only model.safetensors left": each(
        "checkpoint-*/*", lambda path: None if path.suffix == ".safetensors" else path.unlink()
    ),
    "one checkpoint, without its optimizer": both(only(30), each("checkpoint-30/optimizer.pt", Path.unlink)),
    "one checkpoint, without its manifest": both(only(30), each("checkpoint-30/manifest.json", Path.unlink)),
    "no checkpoint, but initial weights": only(),
    "the mark of ownership is gone": each("fingerprint.json", Path.unlink),
    "the record is gone": both(each("fingerprint.json", zeros), each("result.json", Path.unlink)),
    "a half-written init": both(only(), each("init", lambda path: path.rename(path.with_name("init.partial")))),
    "only converted states": both(converted_only, each("checkpoint-*/optimizer.pt", Path.unlink)),
    "converted states, damaged": both(converted_only, each("checkpoint-*/manifest.json", cut)),
    "folders of the user's own": users_own,
    "folders of the user's own, no manifests": both(users_own, each("checkpoint-*/manifest.json", Path.unlink)),
    "folders of the user's own, no checkpoints": both(users_own, only()),
    "a checkpoint is a link": both(
        each("checkpoint-30", lambda path: path.rename(path.parent.parent / "elsewhere")),
        lambda run: (run / "checkpoint-30").symlink_to(run.parent / "elsewhere"),
        each("checkpoint-30/manifest.json", cut),
    ),
}


def launch(run: Path, resume: str) -> None:
    """The driver's half and the workers', twice, as a scheduler would; either may refuse."""
    for _ in range(2):
        with contextlib.suppress(UserError):
            agreed(run, resume)
        universal.discard(run)


def resume_of(how: str, folder: Path) -> str:
    return str(save(folder / "old", 7)) if how == "path" else how


@pytest.mark.parametrize("how", ["never", "auto", "path"])
@pytest.mark.parametrize("harm", HARMS)
def test_no_launch_deletes_weights(tmp_path: Path, harm: str, how: str) -> None:
    run, resume = run_of(tmp_path / "run"), resume_of(how, tmp_path)
    HARMS[harm](run)
    before = weights_in(tmp_path)
    launch(run, resume)
    assert not before - weights_in(tmp_path)


@pytest.mark.parametrize("how", ["never", "auto"])
@pytest.mark.parametrize("harm", HARMS)
def test_no_launch_deletes_weights_behind_a_url(tmp_path: Path, harm: str, how: str) -> None:
    run = run_of(tmp_path / "run")
    HARMS[harm](run)
    before = weights_in(tmp_path)
    for _ in range(2):
        try:
            with working_copy(f"file://{run}", how, str(tmp_path / "scratch")) as copy:
                open_run(config_of(copy, "--resume", how), copy)
        except UserError:
            pass
    assert not before - weights_in(tmp_path)


FILES = ("manifest.json", "optimizer.pt", "model.safetensors", "trainer_state.json", "data_state.json", "config.yaml")
DAMAGE: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(missing_ok=True),
    "cut": cut,
    "zeros": zeros,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    damages=st.lists(
        st.tuples(st.sampled_from([10, 20, 30]), st.sampled_from(FILES), st.sampled_from(sorted(DAMAGE))), max_size=6
    ),
    gone=st.sets(st.sampled_from(["init", "fingerprint.json", "result.json", "checkpoint-10", "checkpoint-20"])),
    how=st.sampled_from(["never", "auto", "path"]),
)
def test_no_launch_deletes_weights_in_any_state(
    tmp_path_factory: pytest.TempPathFactory, damages: list[tuple[int, str, str]], gone: set[str], how: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    run, resume = run_of(folder / "run"), resume_of(how, folder)
    for name in gone:
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    for step, name, kind in damages:
        file = run / f"checkpoint-{step}" / name
        if file.is_file():
            DAMAGE[kind](file)
    before = weights_in(folder)
    launch(run, resume)
    assert not before - weights_in(folder)


# ---- what is done instead ----


@pytest.mark.parametrize("resume", ["never", "auto"])
def test_checkpoints_without_their_optimizer_are_refused_like_whole_ones(tmp_path: Path, resume: str) -> None:
    run = run_of(tmp_path)
    each("checkpoint-*/optimizer.pt", Path.unlink)(run)
    files = sorted(run.rglob("*"))
    with pytest.raises(UserError, match=r"none of which can be continued") as caught:
        open_run(config_of(run, "--resume", resume), run)
    assert caught.value.exit_code == 2
    for step in (10, 20, 30):
        assert f"checkpoint-{step}: optimizer.pt is missing" in str(caught.value)
    assert sorted(run.rglob("*")) == files


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("trainer_state.json", zeros),
        ("config.yaml", zeros),
        ("data_state.json", cut),
        ("manifest.json", cut),
        ("optimizer.pt", Path.unlink),
    ],
)
def test_a_damaged_newest_gives_way_to_the_one_before(
    tmp_path: Path, name: str, harm: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of(tmp_path)
    harm(run / "checkpoint-30" / name)
    resume = open_run(config_of(run, "--resume", "auto"), run)
    assert resume is not None
    assert resume.saved.step == 20
    assert not (run / "checkpoint-30").exists(), "a later save would be in its place"
    assert (run / "set_aside" / "checkpoint-30" / "model.safetensors").read_text() == "weights of 30"
    assert (run / "logs" / "rank-0.log").exists()


@pytest.mark.parametrize("name", ["trainer_state.json", "config.yaml"])
def test_zeros_are_found_without_checksums_too(tmp_path: Path, name: str) -> None:
    run = run_of(tmp_path)
    for folder in checkpoint.folders(run):
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["checksums"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
    zeros(run / "checkpoint-30" / name)
    resume = open_run(config_of(run, "--resume", "auto"), run)
    assert resume is not None
    assert resume.saved.step == 20


def test_workers_read_all_of_a_checkpoint_before_they_trust_it(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    zeros(run / "checkpoint-30" / "model.safetensors")
    assert agreed(run, "auto") == run / "checkpoint-20"
    assert (run / "set_aside" / "checkpoint-30").is_dir()
    zeros(run / "checkpoint-20" / "optimizer.pt")
    zeros(run / "checkpoint-10" / "optimizer.pt")
    with pytest.raises(UserError, match=r"checkpoint-10: the content of optimizer\.pt has changed"):
        agreed(run, "auto")
    assert (run / "checkpoint-20").is_dir() and (run / "checkpoint-10").is_dir()


def test_initial_weights_that_would_be_the_same_stay(tmp_path: Path) -> None:
    from rayswift.run.fingerprint import initial_recipe

    config = config_of(tmp_path)
    run = run_of(tmp_path)
    only()(run)
    (run / "init" / "recipe.txt").write_text(initial_recipe(config) or pytest.fail())
    open_run(config, run)
    assert (run / "init" / "model.safetensors").exists()
    open_run(config_of(tmp_path, "--seed", "1"), run)
    assert not (run / "init").exists()
    assert (run / "set_aside" / "init" / "model.safetensors").read_text() == "initial weights"


def test_save_total_limit_alone_deletes(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    each("checkpoint-10/optimizer.pt", Path.unlink)(run)
    checkpoint.retain(run, 1, None)
    assert weights_in(run) == Counter(["weights of 10", "weights of 30", "states of 30", "initial weights"]), (
        "what is not whole does not count, and stays"
    )


def test_a_push_deletes_nothing_that_is_not_there_whole(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    there = run_of(tmp_path / "there")
    for name in ("manifest.json", "optimizer.pt"):
        each(f"checkpoint-*/{name}", Path.unlink)(there)
    each("checkpoint-*/model.safetensors", lambda path: path.write_text(f"another life's {path.parent.name}"))(there)
    before = weights_in(there)
    push(Remote(f"file://{there}"), run, limit=1)
    assert not before - weights_in(there)
    assert [saved.step for saved in checkpoint.find_all(there)] == [30]
