"""Checkpoint folders: complete or nothing, which is newest, which are kept."""

import json
import re
from pathlib import Path

import pytest

from rayswift.cluster.layout import lay_out
from rayswift.config.load import load
from rayswift.launch.plan import resolve
from rayswift.log import UserError
from rayswift.run import checkpoint
from rayswift.run.checkpoint import Checkpoint


def save(run_dir: Path, step: int, sealed: bool = True) -> Path:
    folder = run_dir / f"checkpoint-{step}"
    (folder / f"global_step{step}").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights" * step)
    (folder / "config.json").write_text("{}")
    (folder / f"global_step{step}" / "optim.pt").write_bytes(b"states")
    if sealed:
        checkpoint.write_manifest(folder, step, world_size=2, zero_stage=1)
    return folder


def steps(run_dir: Path) -> list[int]:
    return [saved.step for saved in checkpoint.find_all(run_dir)]


def test_seal_and_read(tmp_path: Path) -> None:
    folder = save(tmp_path, 20)
    assert checkpoint.read_complete(folder) == Checkpoint(folder, 20, 2, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"] == {"model.safetensors": 140, "config.json": 2, "global_step20/optim.pt": 6}
    assert not list(folder.glob("*.partial"))


def test_sealing_again_takes_in_what_is_new(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    (folder / "late.bin").write_bytes(b"x")
    checkpoint.write_manifest(folder, 1, 2, 1)
    (folder / "late.bin").unlink()
    assert checkpoint.read_complete(folder) is None


@pytest.mark.parametrize("name", ["model.safetensors", "global_step20/optim.pt"])
@pytest.mark.parametrize("harm", ["missing", "short", "long", "a folder"])
def test_a_file_that_is_not_as_it_was_saved(tmp_path: Path, name: str, harm: str) -> None:
    folder = save(tmp_path, 20)
    file = folder / name
    content = file.read_bytes()
    file.unlink()
    if harm == "short":
        file.write_bytes(content[:-1])
    if harm == "long":
        file.write_bytes(content + b"x")
    if harm == "a folder":
        file.mkdir()
    assert checkpoint.read_complete(folder) is None
    assert checkpoint.newest(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", '{"step": 1}', '{"files": {"none": 3}}'])
def test_a_broken_manifest(tmp_path: Path, text: str) -> None:
    folder = save(tmp_path, 1)
    (folder / "manifest.json").write_text(text)
    assert checkpoint.read_complete(folder) is None


@pytest.mark.parametrize("text", ['{"files": {}}', "[]", '{"files": []}'])
def test_a_manifest_of_another_shape(tmp_path: Path, text: str) -> None:
    folder = save(tmp_path, 1)
    (folder / "manifest.json").write_text(text)
    assert checkpoint.read_complete(folder) is None


def test_newest_is_by_step_and_complete(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    for step in (9, 100, 20):
        save(tmp_path, step)
    save(tmp_path, 200, sealed=False)
    assert steps(tmp_path) == [9, 20, 100]
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.path.name == "checkpoint-100"


def test_what_is_incomplete_and_in_the_way_is_set_aside(tmp_path: Path) -> None:
    save(tmp_path, 1, sealed=False)
    save(tmp_path, 2)
    save(tmp_path, 3, sealed=False)
    (save(tmp_path, 4) / "model.safetensors").write_bytes(b"")
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "config.json").write_text("{}")  # holds no weights
    (tmp_path / "checkpoint-6-merged").mkdir()  # not ours
    (tmp_path / "checkpoint-notes.txt").write_text("mine")
    for _ in range(2):
        checkpoint.clear_way(tmp_path, 2, {})
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == ["checkpoint-1", "checkpoint-2", "checkpoint-6-merged", "checkpoint-notes.txt", "set_aside"]
        assert sorted(path.name for path in (tmp_path / "set_aside").iterdir()) == ["checkpoint-3", "checkpoint-4"]
    checkpoint.clear_way(tmp_path, None, {})
    assert (tmp_path / "set_aside" / "checkpoint-1" / "model.safetensors").exists()
    assert not checkpoint.folders(tmp_path)


def test_what_is_set_aside_replaces_nothing(tmp_path: Path) -> None:
    for n in range(3):
        folder = save(tmp_path, 3, sealed=False)
        (folder / "model.safetensors").write_text(str(n))
        checkpoint.set_aside(folder, "of a test")
    found = sorted((tmp_path / "set_aside").rglob("*.safetensors"))
    assert [path.read_text() for path in found] == ["0", "1", "2"]


# ---- checksums ----


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_checksums_find_a_flipped_bit(tmp_path: Path) -> None:
    folder = save(tmp_path, 20)
    checkpoint.verify(folder)
    flip(folder / "model.safetensors")
    assert checkpoint.read_complete(folder), "sizes say nothing"
    with pytest.raises(checkpoint.Damaged, match=r"the content of model\.safetensors has changed") as caught:
        checkpoint.verify(folder)
    assert caught.value.was_complete
    checkpoint.verify(folder, most_bytes=100)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_ranks_read_every_file_once(tmp_path: Path, size: int) -> None:
    names = [
        "model-1.safetensors",
        "model-2.safetensors",
        *(f"rng_state_{n}.pth" for n in range(4)),
        *(f"global_step3/bf16_zero_pp_rank_{n}_mp_rank_00_optim_states.pt" for n in range(4)),
    ]
    shares = [checkpoint.share_of(names, rank, size) for rank in range(size)]
    assert sorted(name for share in shares for name in share) == sorted(names)
    if size == 2:
        assert "rng_state_3.pth" in shares[1]
    folder = save(tmp_path, 20)
    flip(folder / "global_step20" / "optim.pt")
    damaged = 0
    for rank in range(size):
        try:
            checkpoint.verify(folder, (rank, size))
        except checkpoint.Damaged:
            damaged += 1
    assert damaged == 1


def test_a_rank_takes_the_checksums_of_what_it_wrote(tmp_path: Path) -> None:
    folder = save(tmp_path, 20, sealed=False)
    own = ["global_step20/zero_pp_rank_1_mp_rank_00_optim_states.pt", "rng_state_1.pth"]
    for name in [*own, "rng_state_0.pth", "global_step20/mp_rank_00_model_states.pt"]:
        (folder / name).write_bytes(name.encode())
    assert sorted(checkpoint.written_by(folder, 1)) == own
    known = checkpoint.checksums(folder, own, write_through=True)
    checkpoint.write_manifest(folder, 20, 2, 1, known)
    checkpoint.verify(folder)
    sums = json.loads((folder / "manifest.json").read_text())["checksums"]
    assert len(sums) == 7 and sums[own[0]] == known[own[0]]


def test_a_manifest_without_checksums_still_counts(tmp_path: Path) -> None:
    folder = save(tmp_path, 20)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["checksums"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoint.read_complete(folder)
    checkpoint.verify(folder)


def test_discard_removes_all(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    checkpoint.discard(folder)
    assert not folder.exists()
    checkpoint.discard(folder)  # nothing there is nothing to do


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, [1, 2, 3, 4]),
        (1, None, [4]),
        (2, None, [3, 4]),
        (9, None, [1, 2, 3, 4]),
        (1, 2, [2, 4]),
        (2, 3, [3, 4]),
        (2, 1, [1, 3, 4]),
        (1, 99, [4]),
    ],
)
def test_retain_keeps_the_newest_and_the_best(
    tmp_path: Path, limit: int | None, best: int | None, kept: list[int]
) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    checkpoint.retain(tmp_path, limit, best)
    assert steps(tmp_path) == kept
    assert len(list(tmp_path.iterdir())) == len(kept)


def test_retain_does_not_count_what_is_incomplete(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2, sealed=False)
    checkpoint.retain(tmp_path, 1, None)
    assert steps(tmp_path) == [1]


# ---- model_folder ----


def test_a_model_or_adapter_folder_is_itself(tmp_path: Path) -> None:
    for name in ("config.json", "adapter_config.json"):
        folder = tmp_path / name.split("_")[0]
        folder.mkdir()
        (folder / name).write_text("{}")
        assert checkpoint.model_folder(folder) == folder
    assert checkpoint.model_folder(save(tmp_path, 3)) == tmp_path / "checkpoint-3"


def test_a_run_folder_is_its_result(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    assert checkpoint.model_folder(tmp_path) == tmp_path / "checkpoint-2"
    (tmp_path / "result.json").write_text('{"model": "checkpoint-1"}')
    assert checkpoint.model_folder(tmp_path) == tmp_path / "checkpoint-1"
    checkpoint.discard(tmp_path / "checkpoint-1")
    assert checkpoint.model_folder(tmp_path) == tmp_path / "checkpoint-2"


@pytest.mark.parametrize("text", ['{"model": "check', '{"accuracy": 0.5}', "[1]", '{"model": 3}', ""])
def test_a_result_that_is_cut_off_or_of_another_program_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        checkpoint.model_folder(tmp_path)
    save(tmp_path, 1)
    assert checkpoint.model_folder(tmp_path) == tmp_path / "checkpoint-1"


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*nowhere; give a run folder"):
        checkpoint.model_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="s3://bucket/run is a URL; copy the model"):
        checkpoint.model_folder("s3://bucket/run")
    save(tmp_path, 1, sealed=False)
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        checkpoint.model_folder(tmp_path)


def test_training_names_the_checkpoint_of_a_run_folder(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    config = load("sft", ["--model", str(tmp_path), "--dataset", "rows.jsonl", "--num_workers", "0"]).config
    with pytest.raises(UserError, match=rf"holds no weights .*; name its checkpoint {re.escape(str(folder))}"):
        resolve(config, lay_out(config.cluster), None)
