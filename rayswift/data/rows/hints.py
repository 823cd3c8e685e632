"""The error for a row without known columns: it names the columns that the task takes, and suggests a mapping."""

import difflib
import re

from rayswift.data.rows.columns import RESPONSE, BadRow, NamedRow, Row

# Column names of public data sets that are suggested, but not accepted as they are.
_OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "messages": ("chat", "chats", "dialog", "dialogs", "dialogue", "dialogues", "turns", "chat_history", "data"),
    "query": ("ask", "user", "human", "user_input", "user_prompt", "input_text", "q", "request", "article", "source"),
    "response": (
        *("reply", "assistant", "bot", "gpt", "output_text", "generation", "generated"),
        *("result", "summary", "highlights"),
    ),
    "text": ("content", "document", "body", "passage", "article", "raw", "raw_content", "code", "review", "sentences"),
    "chosen": ("correct", "preferred", "accepted", "accept", "good", "better", "best", "winner", "win", "response_j"),
    "rejected": (
        *("incorrect", "wrong", "dispreferred", "reject", "bad", "worse", "worst", "loser", "lose", "response_k"),
    ),
    "label": (
        *("class", "category", "tag", "sentiment", "intent", "topic", "is_good", "desirable", "thumbs_up", "rating"),
    ),
    "anchor": ("query", "question", "text1", "text", "sentence", "premise", "src"),
    "positive": (
        *("answer", "response", "text2", "text_pair", "hypothesis", "pos_text", "relevant", "duplicate", "entailment"),
    ),
    "negative": ("neg_text", "hard_negative", "irrelevant", "contradiction"),
}
# Names of the two texts of a row, of which a task that judges texts needs both.
_PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2"))


def unknown(row: Row, wanted: str, parts: tuple[str, ...]) -> BadRow:
    """The error for a row, under our names, that lacks a column.

    wanted: the columns that the family takes; parts: our names of the columns for which a mapping is suggested.
    """
    seen = ", ".join(sorted(map(str, row))) or "none"
    nearest = _nearest(row, parts)
    example = f", as in {{{', '.join(f'{given}: {part}' for given, part in nearest.items())}}}" if nearest else ""
    return BadRow(
        "no known columns", f"columns are {seen[:400]}; wanted: {wanted}; map yours with data.columns{example}"
    )


def without_label(given: NamedRow, names: tuple[str, ...]) -> BadRow | None:
    """The error for a row whose label, under one of these names, is null; None if it has no such column."""
    empty = [name for name in names if name in given.nulls]
    return BadRow("bad label", f"{empty[0]} is null") if empty else None


def _nearest(row: Row, parts: tuple[str, ...]) -> dict[str, str]:
    """The suggested mapping: columns of the row -> our names."""
    if "text" in parts and "response" not in parts:
        for first, second in _PAIRS:
            if first in row and second in row:
                return {first: "query", second: "response"}
    free = [str(name) for name in row if str(name) not in parts]
    found: dict[str, str] = {}
    for part in parts:
        if part in row or (part == "text" and "query" in found.values()):
            continue
        plain = {re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"): name for name in free if name not in found}
        known = [part, *_OTHER_NAMES.get(part, ())]
        close = [name for name in known if name in plain] or [
            match for name in known if len(name) > 3 for match in difflib.get_close_matches(name, plain, 1, 0.8)
        ]
        if close:
            # Beside an answer, a text is the question: a row with the column `text` alone is trained unchanged.
            is_question = part == "text" and ("response" in found.values() or not row.keys().isdisjoint(RESPONSE))
            found[plain[close[0]]] = "query" if is_question else part
    return found
