"""What the plan estimates that weights, gradients and optimizer take, and what a worker's tensors take: within 10 %.

A random Llama of 65 M parameters on two workers of a CPU, for every ZeRO stage, in float32 and bfloat16; minutes for
each case, so not part of the suite: pytest -s tests/bars/test_memory_estimate.py
"""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from rayswift.config.load import load
from rayswift.config.model import ModelConfig
from rayswift.config.schema import SftConfig
from rayswift.resources import lay_out
from rayswift.train import shapes
from rayswift.train.plan import resolve
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
    if not (tuner == "qlora" and (stage == 3 or dtype == "float32"))
]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 5}
    config = LlamaConfig(**sizes, num_attention_heads=16, max_position_embeddings=512)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(REPO / "examples" / "tiny" / name, folder / name)
    return folder


@pytest.mark.parametrize(("tuner", "dtype", "stage"), CASES)
def test_estimate_and_truth(tuner: str, dtype: str, stage: int, model_dir: Path, tmp_path: Path) -> None:
    if tuner == "qlora" and find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    rows = REPO / "examples" / "sums" / "train.jsonl"
    flags = ("--model", str(model_dir), "--dataset", str(rows), "--dtype", dtype, *TUNERS[tuner])
    flags += ("--num_workers", "2", "--zero_stage", str(stage), "--device", "cpu", "--max_length", "64")
    flags += ("--per_device_train_batch_size", "1", "--max_steps", "3", "--save_strategy", "no", "--report_to", "none")
    sft(tmp_path / "run", *flags, "--train.callbacks", f"{WATCH}:Watch")
    config = load("sft", list(flags)).config
    assert isinstance(config, SftConfig)
    estimates = resolve(config, lay_out(config.cluster), None).estimates
    assert isinstance(estimates, list)
    wanted = estimates[stage].weights + estimates[stage].gradients + estimates[stage].optimizer
    for rank in range(2):
        seen = json.loads((tmp_path / "run" / f"memory-{rank}.json").read_text(encoding="utf-8"))
        print(  # noqa: T201
            f"\n{tuner} {dtype} ZeRO {stage} rank {rank}: estimate {wanted / 1e6:.0f} MB, tensors "
            f"{seen['tensors'] / 1e6:.0f} MB, most resident {seen['resident'] / 1e6:.0f} MB, {seen['parameters']}"
        )
        assert wanted == pytest.approx(seen["tensors"], rel=0.1)


def test_a_config_that_cannot_be_built_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing_known"}')
    with pytest.raises(OSError, match=r"no model can be built from .*nothing_known"):
        shapes.find(ModelConfig(path=str(tmp_path)), "causal_lm")
