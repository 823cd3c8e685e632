"""Paths of a config are made absolute for actors; nodes must have the files."""

from pathlib import Path

from rayswift.config.load import load
from rayswift.config.reading import paths

FLAGS = [
    "--rlhf_type", "grpo", "--model", "models/tiny", "--data.dataset", "rows.jsonl", "--reward_funcs",
    "rewards.py:digits", "accuracy", "mine.rewards:other", "--reward_models", "models/reward", "org/on-the-hub",
    "--reward_kwargs", '{"rewards.py:digits": {"scale": 2}, "accuracy": {"tolerance": 1}}', "--plugins", "plugin.py",
    "--chat_template", "chat.jinja",
]  # fmt: skip


def project(folder: Path) -> Path:
    for name in ("models/tiny", "models/reward"):
        (folder / name).mkdir(parents=True)
    for name in ("rewards.py", "plugin.py", "chat.jinja", "accuracy"):
        (folder / name).touch()
    (folder / "accuracy").unlink()
    return folder


def test_what_lies_in_the_folder_becomes_absolute(tmp_path: Path) -> None:
    folder = project(tmp_path)
    config = paths.absolute(load("rlhf", FLAGS).config, folder)
    assert config.model.path == f"{folder}/models/tiny"
    assert config.model.chat_template == f"{folder}/chat.jinja"
    assert config.train.plugins == [f"{folder}/plugin.py"]
    assert config.rollout.reward_funcs == [f"{folder}/rewards.py:digits", "accuracy", "mine.rewards:other"]
    assert config.rollout.reward_models == [f"{folder}/models/reward", "org/on-the-hub"]
    assert config.rollout.reward_kwargs == {f"{folder}/rewards.py:digits": {"scale": 2}, "accuracy": {"tolerance": 1}}
    assert paths.absolute(config, Path("/elsewhere")) == config


def test_a_job_keeps_paths_that_each_node_unpacks_for_itself(tmp_path: Path) -> None:
    folder = project(tmp_path / "working_dir_files" / "_ray_pkg_0")
    config = load("rlhf", FLAGS).config
    assert paths.absolute(config, folder) == config
    assert paths.needed(config, folder, paths.FOR_WORKERS)["model.path = 'models/tiny'"] == Path("models/tiny")


def test_what_nodes_must_have(tmp_path: Path) -> None:
    folder = project(tmp_path)
    config = paths.absolute(load("rlhf", FLAGS).config, folder)
    assert set(paths.needed(config, folder, paths.FOR_WORKERS).values()) == {
        folder / "models/tiny", folder / "chat.jinja", folder / "plugin.py",
    }  # fmt: skip
    rewards = paths.needed(config, folder, paths.FOR_REWARDS)
    assert set(rewards.values()) == {folder / "rewards.py", folder / "models/reward"}


def test_every_name_is_a_field() -> None:
    config = load("rlhf", FLAGS).config
    for name in (*paths.FOR_WORKERS, *paths.FOR_REWARDS):
        section, _, field = name.partition(".")
        assert field in type(dict(config)[section]).model_fields, name
