"""Rendering, tokenising, masking and packing on one core, beside the bare tokenizer on the same texts.

    python -m tests.bench.encode_speed [--rows rows.jsonl] [--tokenizer folder] [--rounds 5]

Prints one table of tokens a second and their ratio. Rounds alternate the sides, both on one thread. Unless given,
rows are those of examples/gsm8k, repeated, and the tokenizer is one of 16,000 entries trained on them, with the
splitting rule of Qwen2.5; multi-turn rows are eight questions and answers in a row.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoder import Encoder
from rayswift.data.sequence.packing import pack

ROOT = Path(__file__).parents[2]
MAX_LENGTH, WINDOW_ROWS, NUM_ROWS, TURNS = 2048, 2000, 4000, 8
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = """\
{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """A byte-level tokenizer trained on the texts, with a ChatML template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=16_000, initial_alphabet=alphabet, special_tokens=special, show_progress=False),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": CHATML}))


def conversations(rows: list[dict[str, Any]], turns: int) -> list[dict[str, Any]]:
    """Rows of `turns` questions and answers."""
    made = []
    for begin in range(0, len(rows) - turns + 1, turns):
        messages = []
        for row in rows[begin : begin + turns]:
            messages += [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        made.append({"messages": messages})
    return made


def encode_and_pack(encoder: Encoder, rows: list[dict[str, Any]]) -> int:
    """Rows to bins, a window at a time; the number of tokens."""
    total = 0
    for begin in range(0, len(rows), WINDOW_ROWS):
        results = encoder.encode(rows[begin : begin + WINDOW_ROWS])
        lengths = [len(row.input_ids) for result in results if isinstance(result, list) for row in result]
        pack(lengths, encoder.config.max_length)
        total += sum(lengths)
    return total


def tokenise(tokenizer: Tokenizer, texts: list[str]) -> int:
    """The bare tokenizer over the same texts; the number of tokens."""
    total = 0
    for begin in range(0, len(texts), WINDOW_ROWS):
        batch = tokenizer.encode_batch_fast(texts[begin : begin + WINDOW_ROWS], add_special_tokens=False)
        total += sum(map(len, batch))
    return total


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """CPU seconds, which other processes on the machine do not add to, and the result."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=ROOT / "examples" / "gsm8k" / "train.jsonl")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()]
    if len(rows) < NUM_ROWS:
        rows = (rows * (NUM_ROWS // len(rows) + 1))[:NUM_ROWS]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.tokenizer or Path(temporary)
        if not options.tokenizer:
            write_tokenizer(folder, [f"{row['question']} {row['answer']}" for row in rows])
        encoder = Encoder(EncodeConfig(str(folder), "", 8 * MAX_LENGTH))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        print("| rows | messages each | raw tokens/s | encoded tokens/s | ratio |\n| --- | ---: | ---: | ---: | ---: |")  # noqa: T201
        whole = EncodeConfig(str(folder), "", 8 * MAX_LENGTH, loss_on="all")
        cases = [
            ("single-turn", encoder, conversations(rows, 1)),
            ("multi-turn", encoder, conversations(rows, TURNS)),
            ("multi-turn, long", encoder, conversations(rows, 2 * TURNS)),
            ("single-turn, every token trained", Encoder(whole), conversations(rows, 1)),
        ]
        for name, side, case in cases:
            texts = [document.text for row in case for document in side.documents(row)]
            raw, ours = [], []
            for number in range(options.rounds + 1):
                seconds, expected = timed(lambda texts=texts: tokenise(tokenizer, texts))
                own_seconds, tokens = timed(lambda side=side, case=case: encode_and_pack(side, case))
                assert tokens == expected
                if number:  # the first warms up
                    raw.append(seconds)
                    ours.append(own_seconds)
            ratio = statistics.median(a / b for a, b in zip(raw, ours, strict=True))
            speeds = [f"{tokens / statistics.median(seconds):,.0f}" for seconds in (raw, ours)]
            print(f"| {name} | {len(case[0]['messages'])} | {' | '.join(speeds)} | {ratio:.2f} |")  # noqa: T201


if __name__ == "__main__":
    main()
