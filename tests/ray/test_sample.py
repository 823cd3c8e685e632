"""`rayswift sample` on the real stack: the rows hold the completions and rewards, and can be trained."""

import json
from pathlib import Path

from rayswift.model.find import find_model, load_tokenizer
from rayswift.verbs import infer
from tests.ray.conftest import start
from tests.ray.test_infer_export import copy_tokenizer, infer_section, save_adapter, save_base

REWARDS = """
def digits(completions):
    return [sum(letter.isdigit() for letter in each[0]["content"]) / 10 for each in completions]
"""


ENGINE = ("--engine_kwargs", '{"enforce_eager": true, "kv_cache_memory_bytes": 67108864}', "--timeout_s", "120")


def test_prompts_become_rows(tmp_path: Path, tiny_model_dir: Path) -> None:
    (tmp_path / "rewards.py").write_text(REWARDS, encoding="utf-8")
    output = tmp_path / "rows.jsonl"
    flags = (
        "--model", str(tiny_model_dir), "--dataset", "examples/sums/train.jsonl#12",
        "--reward_funcs", f"{tmp_path}/rewards.py:digits", "--num_return_sequences", "4", "--n_best_to_keep", "2",
        "--max_prompt_length", "32", "--max_completion_length", "12", "--output_file", str(output),
        "--output_dir", str(tmp_path / "run"), *ENGINE,
    )  # fmt: skip
    code, out = start("sample", "", *flags).wait()
    assert code == 0, out
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len({row["messages"][0]["content"] for row in rows}) == 12
    for row in rows:
        said = row["messages"][-1]
        assert said["role"] == "assistant"
        assert row["reward"] == sum(letter.isdigit() for letter in said["content"]) / 10
        if "rejected_response" in row:
            assert sum(letter.isdigit() for letter in row["rejected_response"]) / 10 < row["reward"]
    code, out = start("sample", "", *flags).wait()
    assert code == 2 and "is there already" in out
    before = output.read_bytes()
    code, out = start("sample", "", *flags, "--resume", "auto").wait()
    assert code == 0, out
    assert output.read_bytes() == before
    code, out = start("data inspect", "", "rlhf", "--rlhf_type", "dpo", *flags[:2], "--dataset", str(output)).wait()
    assert code == 0, out


def test_an_adapter_is_sampled_with(tmp_path: Path) -> None:
    """Greedy completions are the answers of transformers and peft, and not those of the model below."""
    model, adapter, output = tmp_path / "model", tmp_path / "adapter", tmp_path / "rows.jsonl"
    base = save_base(model, seed=1)
    copy_tokenizer(model)
    save_adapter(base, adapter)
    asked = [f"{number}+{number}=" for number in range(10, 16)]
    prompts = [{"messages": [{"role": "user", "content": each}]} for each in asked]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)), encoding="utf-8")
    flags = (
        "--model", str(model), "--adapters", str(adapter), "--dataset", str(tmp_path / "prompts.jsonl"),
        "--num_return_sequences", "1", "--temperature", "0",
        "--max_prompt_length", "32", "--max_completion_length", "12", "--output_file", str(output),
        "--output_dir", str(tmp_path / "run"), *ENGINE,
    )  # fmt: skip
    code, out = start("sample", "", *flags).wait()
    assert code == 0, out
    rows = [json.loads(line)["messages"] for line in output.read_text(encoding="utf-8").splitlines()]
    said = {row[0]["content"]: row[-1]["content"] for row in rows}
    assert said == greedy(adapter, str(model), asked)
    assert said != greedy(model, None, asked)


def greedy(model: Path, base: str | None, asked: list[str]) -> dict[str, str]:
    found = find_model(str(model), "infer.model", base=base)
    tokenizer = load_tokenizer(found)
    request = infer.encode(infer_section(model, "--prompt", *asked, "--max_new_tokens", "12"), found, tokenizer)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in infer.ask("transformers", found, request)]
    return dict(zip(asked, texts, strict=True))
