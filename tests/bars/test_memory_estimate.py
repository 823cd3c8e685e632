"""The plan's estimate of a worker's memory is within 10 % of its peak allocation.

A random Llama on two workers of a CPU, for every tuner, number format and ZeRO stage; a minute for each case, so not
part of the suite: pytest -s tests/bars/test_memory_estimate.py. memory_watch.py says what is counted. Beside the
model each process allocates some 18 MB that nobody has traced yet, so models are large beside that: 65 M parameters
trained in full, 210 M below a LoRA, 410 M below a QLoRA (at 65 M a QLoRA with ZeRO 2 misses the bound).
"""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rayswift.cluster.layout import lay_out
from rayswift.config.load import load
from rayswift.config.schema import SftConfig
from rayswift.launch.plan import resolve
from tests.ray.conftest import sft

REPO = Path(__file__).parents[2]
WATCH = Path(__file__).with_name("memory_watch.py")
LORA = ("--tuner", "lora", "--lora_rank", "16")
TUNERS: dict[str, tuple[str, ...]] = {
    "full": (),
    "frozen half": ("--model.freeze_ratio", "0.5"),
    "lora": LORA,
    "qlora": (*LORA, "--quantization", "nf4"),
}
CASES = [
    (tuner, dtype, stage)
    for tuner in TUNERS
    for dtype in ("float32", "bfloat16")
    for stage in range(4)
    if not (tuner == "qlora" and stage == 3)  # refused: quantized weights cannot be cut over the workers
]


# Hidden size, inner size, layers.
SIZES = {
    "full": (1024, 2816, 5),
    "frozen half": (1024, 2816, 5),
    "lora": (2048, 5632, 4),
    "qlora": (2048, 5632, 8),
}


@pytest.fixture(scope="module")
def model_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int, int], Path]:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    found = {}
    for hidden, inner, layers in dict.fromkeys(SIZES.values()):
        folder = found[hidden, inner, layers] = tmp_path_factory.mktemp("llama")
        torch.manual_seed(0)
        sizes = {"vocab_size": 512, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
        config = LlamaConfig(**sizes, num_attention_heads=16, max_position_embeddings=512, dtype=torch.bfloat16)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(REPO / "examples" / "tiny" / name, folder / name)
    return found


@pytest.mark.parametrize(("tuner", "dtype", "stage"), CASES)
def test_estimate_and_truth(tuner: str, dtype: str, stage: int, model_dirs: Any, tmp_path: Path) -> None:
    if tuner == "qlora" and find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    rows = REPO / "examples" / "sums" / "train.jsonl"
    flags = ("--model", str(model_dirs[SIZES[tuner]]), "--dataset", str(rows), "--dtype", dtype, *TUNERS[tuner])
    flags += ("--num_workers", "2", "--zero_stage", str(stage), "--device", "cpu", "--max_length", "64")
    flags += ("--per_device_train_batch_size", "1", "--max_steps", "3", "--save_strategy", "no", "--report_to", "none")
    sft(tmp_path / "run", *flags, "--train.plugins", str(WATCH), "--train.callbacks", f"{WATCH}:Watch")
    config = load("sft", list(flags)).config
    assert isinstance(config, SftConfig)
    estimates = resolve(config, lay_out(config.cluster), None).estimates
    assert isinstance(estimates, list)
    wanted = estimates[stage]
    for rank in range(2):
        seen = json.loads((tmp_path / "run" / f"memory-{rank}.json").read_text(encoding="utf-8"))
        print(  # noqa: T201
            f"\n{tuner} {dtype} ZeRO {stage} rank {rank}: estimate {wanted.total / 1e6:.0f} MB, allocated "
            f"{seen['allocated'] / 1e6:.0f} MB ({wanted.total / seen['allocated'] - 1:+.1%}); {wanted}; "
            f"{seen['parameters']}"
        )
        assert wanted.total == pytest.approx(seen["allocated"], rel=0.1)
