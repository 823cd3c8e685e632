"""`rayswift data encode`, then training from the cache: step by step the run that encodes while it trains."""

from pathlib import Path

from tests.ray.conftest import WINDOWS, assert_same_curve, sft, start


def test_training_from_the_cache_is_training_without_it(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    """Over an epoch border, in this process; the same rows are accounted for."""
    rows = (*tiny, *WINDOWS, "--data.dataset", "examples/gsm8k/train.jsonl#200")
    run = (*rows, "--num_workers", "0", "--num_train_epochs", "1.5")
    code, out = start("data", tmp_path, "encode", *rows, "--to", str(tmp_path / "cache"), "--epochs", "2").wait()
    assert code == 0, out
    sft(tmp_path / "plain", *run)
    sft(tmp_path / "cached", *run, "--data.cache", str(tmp_path / "cache"))
    assert_same_curve(tmp_path / "cached", tmp_path / "plain", 0)
    accounting = [(tmp_path / name / "data" / "accounting.json").read_text() for name in ("plain", "cached")]
    assert accounting[0] == accounting[1]
