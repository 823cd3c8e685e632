"""The start of a worker group, before it trains."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayswift.cluster.layout import Layout
from rayswift.config.load import load, to_yaml
from rayswift.data.sequence.global_batches import FeedPlan, Position
from rayswift.run import checkpoint
from rayswift.train import startup
from rayswift.train.clock import Clock
from rayswift.train.loop import train_loop
from rayswift.train.spec import RunSpec, Worker


def at_its_end(run_dir: Path, *flags: str, epochs: float, history: Any = ()) -> RunSpec:
    """A run whose checkpoint of step 20 is its last."""
    given = ["--model", "examples/tiny", "--dataset", "d.jsonl", "--output_dir", str(run_dir), "--device", "cpu"]
    config = load("sft", [*given, "--num_workers", "1", "--global_batch_size", "8", "--zero_stage", "0", *flags]).config
    config = config.model_copy(update={"train": config.train.model_copy(update={"greater_is_better": False})})
    folder = run_dir / "checkpoint-20"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(b"states")
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    data_state = {"position": dataclasses.asdict(Position(step=20)), "epochs": epochs}
    (folder / "data_state.json").write_text(json.dumps(data_state))
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": list(history)}))
    checkpoint.write_manifest(folder, 20, 1, 0)
    plan = FeedPlan(8, 100, 100, config.train.num_train_epochs, config.train.max_steps, 0.01)
    layout = Layout(1, "cpu", 1, local=True)
    return RunSpec(config, layout, run_dir, Path("examples/tiny"), plan, Clock(0), None, run_dir)


@pytest.mark.parametrize(
    ("flags", "epochs", "history"),
    [
        (["--max_steps", "20"], 1.5, []),
        (["--num_train_epochs", "2"], 2.0, []),
        (["--early_stopping_patience", "1"], 1.5, [{"step": 10, "eval_loss": 1.0}, {"step": 20, "eval_loss": 2.0}]),
    ],
)
def test_workers_that_died_behind_the_last_save_are_not_missed(
    flags: list[str], epochs: float, history: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that take their place would ask for the step behind the end of the data, which is an error; or train on."""
    pushed: list[Path] = []
    pushes = SimpleNamespace(open=lambda: None, finish=pushed.append)
    monkeypatch.setattr(startup, "HubPushes", lambda *_: pushes)
    supply: Any = SimpleNamespace(new_attempt=lambda: 2)
    train_loop(at_its_end(tmp_path / "run", *flags, epochs=epochs, history=history), Worker(0, 1, supply))
    assert pushed == [tmp_path / "run" / "checkpoint-20"]
