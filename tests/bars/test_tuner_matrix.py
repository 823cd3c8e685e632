"""Each tuner in one short run of the command line, over workers and ZeRO stages; its checkpoint loads in PEFT.

Minutes, so not part of the suite: pytest tests/bars/test_tuner_matrix.py
"""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.ray.conftest import assert_same_curve, assert_same_end, curve, sft, start
from tests.ray.test_equivalence import TOLERANCE, layout

TUNERS = {
    "lora": ("lora", {}),
    "rslora": ("lora", {"use_rslora": True}),
    "dora": ("lora", {"use_dora": True}),
    "pissa": ("lora", {"init_lora_weights": "pissa_niter_4"}),
    "olora": ("lora", {"init_lora_weights": "olora"}),
    "eva": ("lora", {"init_lora_weights": "eva"}),
    "corda": ("lora", {"init_lora_weights": "corda"}),
    "lora_ga": ("lora", {"init_lora_weights": "lora_ga"}),
    "adalora": ("adalora", {"init_r": 6, "target_r": 3, "tfinal": 1}),
    "vera": ("vera", {"r": 16}),
    "boft": ("boft", {}),
    "ia3": ("ia3", {}),
    "fourierft": ("fourierft", {"scaling": 1.0}),
    "loha": ("loha", {}),
    "lokr": ("lokr", {}),
    "miss": ("miss", {"r": 4}),
}
WITHOUT_ZERO = {"adalora", "muon", "--lisa_layers"}
STEPS = ("--max_steps", "3", "--save_strategy", "steps", "--lora_dropout", "0")


def tuner(name: str) -> tuple[str, ...]:
    """Flags of a tuner."""
    kind, kwargs = TUNERS[name]
    return ("--tuner", kind, "--model.tuner_kwargs", json.dumps(kwargs))


@pytest.mark.parametrize("name", TUNERS)
def test_a_tuner_is_the_same_on_every_layout(name: str, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    sft(tmp_path / "one", *tiny, *tuner(name), *layout(0, 0), *STEPS)
    losses = curve(tmp_path / "one")
    assert losses[3] != losses[1]
    for workers, stage in [(2, 0), (2, 2), (2, 3)][: {"adalora": 1, "loha": 2}.get(name)]:
        sft(tmp_path / f"{workers}-{stage}", *tiny, *tuner(name), *layout(workers, stage), *STEPS)
        assert_same_curve(tmp_path / f"{workers}-{stage}", tmp_path / "one", TOLERANCE)
    checkpoint = tmp_path / "one/checkpoint-3"
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "one/init")
    tokens = torch.arange(40)[None]
    with torch.inference_mode():
        adapted = PeftModel.from_pretrained(base, checkpoint).eval()(tokens).logits
    code, out = start("export", "", "--model", str(tmp_path / "one"), "--merge_lora").wait()
    assert code == 0, out
    with torch.inference_mode():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "one/merged-checkpoint-3")(tokens).logits
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        ("--tuner", "lora", "--lora_plus_ratio", "16"),
        ("--tuner", "lora", "--model.tuner_kwargs", '{"init_lora_weights": "lora_ga"}'),
        ("--tuner", "adalora", "--model.tuner_kwargs", '{"init_r": 6, "target_r": 3, "tfinal": 1}'),
        ("--tuner", "lora", "--modules_to_save", "embed_tokens"),
        ("--tuner", "lora", "--neftune_noise_alpha", "5"),
        ("--freeze_ratio", "0.5"),
        ("--freeze", ".*", "--unfreeze", ".*norm"),
        ("--new_special_tokens", "<|plan|>"),
        ("--rope_scaling", '{"rope_type": "yarn", "factor": 2}'),
        ("--new_blocks", "3"),
        ("--optim", "muon"),
        ("--lisa_layers", "1", "--lisa_interval", "1"),
    ],
    ids=lambda flags: flags[-2].strip("-"),
)
@pytest.mark.parametrize(("workers", "stage"), [(0, 0), (2, 3)])
def test_it_resumes(flags: tuple[str, ...], workers: int, stage: int, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    steps = ("--save_strategy", "steps", "--save_steps", "2", "--lr_scheduler_type", "constant")
    run = (*tiny, *flags, *steps, *layout(workers, 0 if WITHOUT_ZERO & {*flags} else stage))
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    sft(whole, *run, "--max_steps", "4")
    sft(rest, *run, "--max_steps", "4", "--resume", str(whole / "checkpoint-2"))
    assert_same_end(rest, whole, 2, TOLERANCE)


@pytest.mark.parametrize(
    "flags",
    [("--new_blocks", "3"), ("--optim", "muon"), ("--lisa_layers", "1", "--lisa_interval", "2")],
    ids=lambda flags: flags[1],
)
def test_full_training_is_the_same_on_every_layout(
    flags: tuple[str, ...], tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    sft(tmp_path / "one", *tiny, *flags, *layout(0, 0), *STEPS)
    losses = curve(tmp_path / "one")
    assert losses[3] != losses[1]
    for workers, stage in [(2, 0)] if WITHOUT_ZERO & {*flags} else [(2, 0), (2, 2), (2, 3)]:
        sft(tmp_path / f"{workers}-{stage}", *tiny, *flags, *layout(workers, stage), *STEPS)
        assert_same_curve(tmp_path / f"{workers}-{stage}", tmp_path / "one", TOLERANCE)
    AutoModelForCausalLM.from_pretrained(tmp_path / "one/checkpoint-3")


def test_adalora_over_epochs_goes_on_exactly(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    """The number of its steps is known at the end only; the budget of ranks is met all the same."""
    save = ("--save_strategy", "steps", "--save_steps", "0.5")
    run = (*tiny, *tuner("adalora"), "--num_train_epochs", "2", *save, "--lora_dropout", "0", *layout(0, 0))
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    sft(whole, *run)
    first, *_, last = sorted(int(folder.name.partition("-")[2]) for folder in whole.glob("checkpoint-*"))
    sft(rest, *run, "--resume", str(whole / f"checkpoint-{first}"))
    assert_same_end(rest, whole, first, TOLERANCE)
    weights = load_file(whole / f"checkpoint-{last}/adapter_model.safetensors")
    singular = [value for name, value in weights.items() if "lora_E" in name]
    assert sum(int((value != 0).sum()) for value in singular) == 3 * len(singular)


@pytest.mark.parametrize("flags", [(), ("--tuner", "lora", "--modules_to_save", "embed_tokens")], ids=["full", "lora"])
def test_new_tokens_are_served(flags: tuple[str, ...], run_dir: Path, tiny: tuple[str, ...]) -> None:
    """One token for the new word, and the same answer from both engines: of the run, or of its merged weights."""
    steps = ("--max_steps", "3", "--save_strategy", "steps", "--learning_rate", "1e-2")
    sft(run_dir, *tiny, *flags, "--new_special_tokens", "<|plan|>", *layout(0, 0), *steps)
    model = run_dir
    if flags:
        code, out = start("export", "", "--model", str(run_dir), "--merge_lora").wait()
        assert code == 0, out
        model = run_dir / "merged-checkpoint-3"
    assert len(AutoTokenizer.from_pretrained(model if flags else model / "checkpoint-3")("<|plan|>")["input_ids"]) == 1
    asked = ("--model", str(model), "--prompt", "<|plan|> What is 2 + 3?", "--max_new_tokens", "12")
    answers = [start("infer", "", *asked, "--backend", backend).wait() for backend in ("transformers", "vllm")]
    assert [code for code, _ in answers] == [0, 0], answers
    said = ["".join(line for line in out.splitlines() if line.startswith(">")) for _, out in answers]
    assert said[0] == said[1] != ""
    assert answers[0][1].splitlines()[-1] == answers[1][1].splitlines()[-1]


ALL_LINEAR = ("--optim_target_modules", "all-linear")


@pytest.mark.parametrize(
    ("package", "flags"),
    [
        ("schedulefree", ("--optim", "schedule_free_adamw")),
        ("galore_torch", ("--optim", "galore_adamw", *ALL_LINEAR)),
        ("galore_torch", ("--optim", "galore_adafactor", *ALL_LINEAR)),
        ("apollo_torch", ("--optim", "apollo_adamw", *ALL_LINEAR)),
        ("torchao", ("--optim", "adamw_torch_8bit")),
        ("bitsandbytes", ("--optim", "adamw_bnb_8bit")),
        ("bitsandbytes", ("--tuner", "lora", "--quantization", "nf4")),
        ("bitsandbytes", ("--tuner", "lora", "--quantization", "int8")),
        ("kernels", ("--model.use_kernels", "true")),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else value,
)
def test_with_a_package_of_its_own(package: str, flags: tuple[str, ...], tmp_path: Path, tiny: tuple[str, ...]) -> None:
    """It resumes where the package is installed, and is refused where it is not."""
    steps = ("--save_strategy", "steps", "--save_steps", "2", "--max_steps", "4", "--lr_scheduler_type", "constant")
    run = (*tiny, *flags, *steps, *layout(0, 0))
    if find_spec(package) is None:
        out = sft(tmp_path / "run", *run, code=2)
        assert f"needs the package {package.replace('_', '-')}" in out
        return
    sft(tmp_path / "whole", *run)
    sft(tmp_path / "rest", *run, "--resume", str(tmp_path / "whole/checkpoint-2"))
    assert_same_end(tmp_path / "rest", tmp_path / "whole", 2, TOLERANCE)
