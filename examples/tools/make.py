"""Rows for the examples with tools: products that a calculator computes, and games in which a number is guessed.

`calls`, `games` and `words_calls` teach the form of a call, by supervised fine-tuning; the others are prompts.
Those of `words_*` ask for products in words, for a model that reads.

Run: python examples/tools/make.py
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HIGHEST, GUESSES = 7, 3
IN_WORDS = (
    "What is {a} times {b}?",
    "A box holds {a} nails. How many nails do {b} boxes hold?",
    "Each of {a} pages has {b} words. How many words are that?",
    "{a} people pay {b} dollars each. How many dollars do they pay?",
)
Row = dict[str, Any]


def schema(name: str, argument: str, kind: str) -> Row:
    """The description of a tool, with the fields that the chat template of this folder shows."""
    parameters = {"type": "object", "properties": {argument: {"type": kind}}}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


def called(name: str, **arguments: Any) -> Row:
    """The model's turn that calls a tool."""
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def user(text: str) -> Row:
    """A message of the user."""
    return {"role": "user", "content": text}


def product(first: int, second: int, asked: str = "{a}*{b}=") -> Row:
    """A product with the call that computes it."""
    value = str(first * second)
    answer = {"role": "tool", "name": "calculator", "content": value}
    said = {"role": "assistant", "content": value}
    call = called("calculator", expression=f"{first}*{second}")
    return {
        "messages": [user(asked.format(a=first, b=second)), call, answer, said],
        "tools": [schema("calculator", "expression", "string")],
    }


def game(rng: random.Random) -> Row:
    """A game that is played badly: half of the guesses ignore the answers, the others use them."""
    number, messages = rng.randint(1, HIGHEST), [user(f"1-{HIGHEST}")]
    lowest, highest = 1, HIGHEST
    for _ in range(GUESSES):
        guess = rng.randint(1, HIGHEST) if rng.random() < 0.5 else rng.randint(lowest, highest)
        answer = "right" if guess == number else "higher" if number > guess else "lower"
        lowest = guess + 1 if answer == "higher" and guess >= lowest else lowest
        highest = guess - 1 if answer == "lower" and guess <= highest else highest
        messages += [called("guess", number=guess), {"role": "tool", "name": "guess", "content": answer}]
        if guess == number:
            break
    return {
        "messages": [*messages, {"role": "assistant", "content": "done"}],
        "tools": [schema("guess", "number", "integer")],
    }


def hidden(number: int) -> Row:
    """A prompt of the game, with the columns that its environment takes."""
    return {"messages": [user(f"1-{HIGHEST}")], "number": number, "highest": HIGHEST, "guesses": GUESSES}


def products(rng: random.Random, number: int) -> Iterator[tuple[int, int]]:
    """Pairs of numbers of four digits."""
    for _ in range(number):
        yield rng.randint(1000, 9999), rng.randint(1000, 9999)


def in_words(rng: random.Random, number: int) -> list[Row]:
    """Prompts that ask for products of four-digit numbers in words."""
    return [
        {"messages": [user(rng.choice(IN_WORDS).format(a=a, b=b))], "solution": str(a * b)}
        for a, b in dict.fromkeys(products(rng, number))
    ]


def write(name: str, rows: list[Row]) -> None:
    """A file of rows."""
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    (HERE / name).write_text(text, encoding="utf-8")


def main() -> None:
    """Write all files."""
    rng = random.Random(0)
    digits = [
        (rng.randint(10, 10 ** rng.randint(2, 4) - 1), rng.randint(10, 10 ** rng.randint(2, 4) - 1))
        for _ in range(1500)
    ]
    write("calls.jsonl", [product(*pair) for pair in digits])
    asked = list(dict.fromkeys(products(rng, 1200)))
    rows = [{"messages": [user(f"{a}*{b}=")], "solution": str(a * b)} for a, b in asked]
    write("products_train.jsonl", rows[:1000])
    write("products_test.jsonl", rows[1000:1200])
    write("games.jsonl", [game(rng) for _ in range(1000)])
    write("numbers_train.jsonl", [hidden(rng.randint(1, HIGHEST)) for _ in range(400)])
    write("numbers_test.jsonl", [hidden(number) for number in range(1, HIGHEST + 1)])
    small = [(rng.randint(10, 99), rng.randint(10, 99), rng.choice(IN_WORDS)) for _ in range(320)]
    write("words_calls.jsonl", [product(a, b, asked) for a, b, asked in small])
    rows = in_words(rng, 500)
    write("words_train.jsonl", rows[:400])
    write("words_test.jsonl", rows[400:480])


if __name__ == "__main__":
    main()
