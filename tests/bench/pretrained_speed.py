"""LoRA of SmolLM2-135M-Instruct on GSM8K rows beside TRL's `SFTTrainer`, in one run: tokens a second and peak memory.

    python -m tests.bench.pretrained_speed [--steps 6] [--rounds 1] [--cases padded packed]

Padded: 8 rows a step, the same for both: rows are not shuffled, since padding differs from batch to batch. Packed: one
row of 2,048 tokens a step. Both in float32 with gradient checkpointing, the same adapter, as many threads as there are
cores. Tokens are those of the rows, not of padding; the first step is left out. Memory: the most that the command's
process had resident. Some two minutes a case on two cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from tests.support.real_models import CACHE, smollm2

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "examples" / "gsm8k" / "train.jsonl"
CASES = {"padded": (8, 1024), "packed": (1, 2048)}  # rows of a step, longest row

TRL = """
import json, sys, time
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer
model, rows, out, case, per_device, max_length, steps = sys.argv[1:]

class Times(TrainerCallback):
    def __init__(self): self.seconds = []
    def on_step_begin(self, *args, **kwargs): self.began = time.monotonic()
    def on_step_end(self, *args, **kwargs): self.seconds.append(time.monotonic() - self.began)

times = Times()
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
    processing_class=AutoTokenizer.from_pretrained(model),
    train_dataset=load_dataset("json", data_files=rows, split="train"),
    peft_config=LoraConfig(r=8, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"),
    args=SFTConfig(out, per_device_train_batch_size=int(per_device), max_length=int(max_length), max_steps=int(steps),
        packing=case == "packed", logging_steps=1, save_strategy="no", report_to="none", bf16=False, use_cpu=True,
        gradient_checkpointing=True, disable_tqdm=True, train_sampling_strategy="sequential"),
    callbacks=[times],
)
trainer.train()
tokens = [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry]
json.dump({"seconds": times.seconds, "tokens": [b - a for a, b in zip([0, *tokens], tokens)]}, open(out + ".json", "w"))
"""


def write_rows(file: Path) -> None:
    """GSM8K's as messages, which both take as they are."""
    with file.open("w") as out:
        for line in ROWS.read_text().splitlines():
            row = json.loads(line)
            turns = (("user", row["question"]), ("assistant", row["answer"]))
            out.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")


def run(command: list[str]) -> float:
    """The most that it had resident, GiB."""
    with tempfile.TemporaryFile() as out:
        environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count()), "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            out.seek(0)
            raise SystemExit(out.read().decode())
    return usage.ru_maxrss / 2**20


def trl(model: Path, case: str, work: Path, steps: int) -> tuple[float, float]:
    """Tokens a second and GiB of TRL's script."""
    per_device, max_length = CASES[case]
    write_rows(work / "rows.jsonl")
    words = [model, work / "rows.jsonl", work / "trl", case, per_device, max_length, steps]
    memory = run([sys.executable, "-c", TRL, *map(str, words)])
    found = json.loads((work / "trl.json").read_text())
    return sum(found["tokens"][1:]) / sum(found["seconds"][1:]), memory


def rayswift(model: Path, case: str, work: Path, steps: int) -> tuple[float, float]:
    """Tokens a second and GiB of the command, in its process."""
    per_device, max_length = CASES[case]
    write_rows(work / "rows.jsonl")
    flags = {
        "model": model, "data.dataset": work / "rows.jsonl", "num_workers": 0, "zero_stage": 0, "max_steps": steps,
        "tuner": "lora", "lora_rank": 8, "lora_alpha": 32,
        "model.dtype": "float32", "max_length": max_length, "per_device_train_batch_size": per_device,
        "data.packing": str(case == "packed").lower(), "data.shuffle": "false",
        "gradient_checkpointing": "true", "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "train.output_dir": work / "run", "learning_rate": "2e-5",
    }  # fmt: skip
    memory = run([sys.executable, "-m", "rayswift", "sft", *(str(x) for k, v in flags.items() for x in (f"--{k}", v))])
    lines = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "loss" in line][1:]
    seconds = sum(line["step_s"] for line in measured)
    return sum(line["tokens_per_s"] * line["step_s"] for line in measured) / seconds, memory


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    options = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    model = smollm2()
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _ in range(options.rounds):
        for case in options.cases:
            for name, measure in (("TRL", trl), ("rayswift", rayswift)):
                with tempfile.TemporaryDirectory() as work:
                    found[f"{name}, {case}"].append(measure(model, case, Path(work), options.steps))
    print("| | tokens/s | GiB |\n| --- | ---: | ---: |")  # noqa: T201
    for name, each in found.items():
        print(f"| {name} | {statistics.median(e[0] for e in each):.1f} | {max(e[1] for e in each):.2f} |")  # noqa: T201


if __name__ == "__main__":
    main()
