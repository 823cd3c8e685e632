"""A model folder without weights: a 0.7 M parameter Qwen3 and its 512-token byte-level BPE tokenizer.

The tokenizer is trained on the example data. Every digit is one token, so that sums can be learnt.
head_dim is 32 because vLLM's attention on CPU needs at least that.

Run: python examples/tiny/make.py (after examples/sums/make.py)
     python examples/tiny/make.py runs/student 64    a model of that width, in that folder, with the same tokenizer
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config

HERE = Path(__file__).parent
VOCAB_SIZE = 512
PAD, TURN_END = "<|endoftext|>", "<|im_end|>"
ROLES = [f"<|{role}|>" for role in ("system", "user", "assistant", "tool")]

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|' + message['role'] + '|>' + message['content'] + '<|im_end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|assistant|>' }}
{%- endif -%}
"""


def corpus() -> Iterator[str]:
    """The text of all example rows."""
    for line in (HERE / "../sums/train.jsonl").read_text().splitlines():
        for message in json.loads(line)["messages"]:
            yield message["content"]
    for line in (HERE / "../gsm8k/train.jsonl").read_text().splitlines():
        row = json.loads(line)
        yield row["question"]
        yield row["answer"]


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: decoding gives back any text, and digits are never merged."""
    bpe = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, TURN_END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=TURN_END,
        additional_special_tokens=ROLES,
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def main() -> None:
    """Write tokenizer, model config and generation config into this folder."""
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(HERE)
    write_config(HERE, 128, {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id})


def make_other(folder: Path, width: int) -> None:
    """A folder with the same tokenizer, for a model of another width."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(HERE / name, folder)
    known = json.loads((HERE / "config.json").read_text())
    write_config(folder, width, {name: known[name] for name in ("pad_token_id", "eos_token_id")})


def write_config(folder: Path, width: int, token_ids: dict[str, int]) -> None:
    """Model config and generation config."""
    Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=VOCAB_SIZE,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=3,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        dtype="float32",
        **token_ids,
    ).save_pretrained(folder)
    GenerationConfig(**token_ids).save_pretrained(folder)


if __name__ == "__main__":
    if sys.argv[1:]:
        make_other(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
