"""`rayswift sample` on the real stack: the rows hold the completions and rewards, and can be trained."""

import json
from pathlib import Path

from tests.ray.conftest import start

REWARDS = """
def digits(completions):
    return [sum(letter.isdigit() for letter in each[0]["content"]) / 10 for each in completions]
"""


def test_prompts_become_rows(tmp_path: Path, tiny_model_dir: Path) -> None:
    (tmp_path / "rewards.py").write_text(REWARDS, encoding="utf-8")
    output = tmp_path / "rows.jsonl"
    flags = (
        "--model", str(tiny_model_dir), "--dataset", "examples/sums/train.jsonl#12",
        "--reward_funcs", f"{tmp_path}/rewards.py:digits", "--num_return_sequences", "4", "--n_best_to_keep", "2",
        "--max_prompt_length", "32", "--max_completion_length", "12", "--output_file", str(output),
        "--output_dir", str(tmp_path / "run"), "--timeout_s", "120",
        "--engine_kwargs", '{"enforce_eager": true, "kv_cache_memory_bytes": 67108864}',
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
