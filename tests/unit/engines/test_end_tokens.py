"""The end tokens of completions are those that transformers reads from the folder."""

import json
import shutil
from pathlib import Path

from rayswift.engines.vllm.end_tokens import end_tokens

TINY = Path(__file__).parents[3] / "examples" / "tiny"


def test_from_the_tokenizer_the_generation_config_and_the_template(tmp_path: Path) -> None:
    assert end_tokens(TINY) == (1,)
    folder = tmp_path / "tokenizer"
    shutil.copytree(TINY, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    assert end_tokens(folder) == (1, 7)
    # A template whose turns end with a token that nothing else names.
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink()
    assert end_tokens(folder) == (0, 1)
