"""One command line of ms-swift run by ms-swift and by RaySwift, and TRL's script on the same rows, from start to exit.

    python -m tests.bench.same_command --swift FOLDER [--steps 60] [--rounds 1]

FOLDER holds ms-swift and what it needs beside the packages of this environment:

    pip install --target FOLDER --no-deps ms-swift "trl<1" modelscope modelscope_hub addict attrdict json_repair \
        dacite binpacking oss2 rouge transformers-stream-generator

Padded batches of GSM8K rows in their order, full fine-tuning of a 5.8 M model in float32, nothing saved. Prints wall
seconds of the commands and their ratio to TRL's script.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from tests.bench.sft_speed import ROOT, write_model

ROWS = ROOT / "examples" / "gsm8k" / "train.jsonl"
PER_DEVICE, MAX_LENGTH = 8, 512

TRL = """
import json, sys, time
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer
model, rows, out, per_device, max_length, steps = sys.argv[1:]
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
    processing_class=AutoTokenizer.from_pretrained(model),
    train_dataset=load_dataset("json", data_files=rows, split="train"),
    args=SFTConfig(out, per_device_train_batch_size=int(per_device), max_length=int(max_length), max_steps=int(steps),
        logging_steps=1, save_strategy="no", report_to="none", bf16=False, use_cpu=True, learning_rate=2e-5,
        gradient_checkpointing=False, disable_tqdm=True, train_sampling_strategy="sequential"),
)
trainer.train()
"""
WEIGHTS = """
import sys
from transformers import AutoConfig, AutoModelForCausalLM, set_seed
set_seed(42)
AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sys.argv[1])).save_pretrained(sys.argv[1])
"""


def swift_flags(model: Path, rows: Path, out: Path, steps: int) -> list[str]:
    """The command line, as ms-swift's users write it."""
    flags = {
        "model": model, "model_type": "qwen3", "template": "qwen3", "tuner_type": "full", "torch_dtype": "float32",
        "dataset": rows, "max_steps": steps, "per_device_train_batch_size": PER_DEVICE,
        "gradient_accumulation_steps": 1, "max_length": MAX_LENGTH, "learning_rate": "2e-5", "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "gradient_checkpointing": "false", "output_dir": out,
        "dataset_shuffle": "false", "train_dataloader_shuffle": "false", "load_from_cache_file": "false",
        "packing": "false",
    }  # fmt: skip
    return [str(word) for name, value in flags.items() for word in (f"--{name}", value)]


def run(command: list[str], more: dict[str, str]) -> float:
    """Wall seconds of a command."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count()), "HF_HUB_OFFLINE": "1", **more}
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return time.monotonic() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swift", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    walls: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_model(work / "model")
        subprocess.run([sys.executable, "-c", WEIGHTS, str(work / "model")], check=True, capture_output=True)
        rows = work / "rows.jsonl"
        with rows.open("w") as out:
            for line in ROWS.read_text().splitlines():
                row = json.loads(line)
                turns = (("user", row["question"]), ("assistant", row["answer"]))
                out.write(json.dumps({"messages": [{"role": r, "content": text} for r, text in turns]}) + "\n")
        for number in range(options.rounds):
            folder = work / str(number)
            asked = [work / "model", rows, folder / "trl", PER_DEVICE, MAX_LENGTH, options.steps]
            walls["TRL's script"].append(run([sys.executable, "-c", TRL, *map(str, asked)], {}))
            if options.swift:
                flags = swift_flags(work / "model", rows, folder / "swift", options.steps)
                found = {"PYTHONPATH": f"{options.swift}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
                walls["swift sft ..."].append(run([sys.executable, "-m", "swift.cli.sft", *flags], found))
            for name, more in (("rayswift sft ...", []), ("rayswift sft ... --num_workers 1", ["--num_workers", "1"])):
                ours = swift_flags(work / "model", rows, folder / str(len(more)), options.steps)
                flags = [*ours, *(more or ["--num_workers", "0"])]
                walls[name].append(run([sys.executable, "-m", "rayswift", "sft", *flags], {}))
    plain = statistics.median(walls["TRL's script"])
    print(f"| command | {options.steps} steps, s | of TRL's script |\n| --- | ---: | ---: |")  # noqa: T201
    for name, seconds in walls.items():
        median = statistics.median(seconds)
        print(f"| `{name}` | {median:.1f} | {median / plain:.2f} |")  # noqa: T201


if __name__ == "__main__":
    main()
