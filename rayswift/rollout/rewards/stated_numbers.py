"""Finds the number that a text states as its answer; open expressions and choices are no answers. Pure.

Texts may be prose, Markdown or LaTeX. Digits are ASCII digits.
"""

import re
from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
# Limits of the text that is read around a number, and of its digits: completions may have any text and length.
_CONTEXT_CHARS, _MOST_DIGITS = 80, 400

# Forms of a number; digits beyond ASCII are found too, so that they are refused and not skipped.
_NUMBER = re.compile(
    r"(?P<grouped>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,]*[0-9]{4})(?:\.[0-9]+)?(?![\w]))"
    r"|(?P<plain>(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3}(?![\w]))?)"
    r"|(?P<foreign>(?:\d|[²³¹⁰-⁹₀-₉①-⓿¼-¾⅐-⅞])+)"
)
_SIGN = re.compile(r"(?<![\w)\]%])\s*[-−–+]\s*$")  # noqa: RUF001
# Text between two numbers of one statement.
_EQUALS = re.compile(r"\W*(?:=|≈|≡|→|⇒|->|=>|\bequals\b|\bmakes\b)\W*")
_OPERATOR = re.compile(
    r"[\s()\[\]]*(?:[-+−–/×÷·∗^:]|\*{1,2}|\b(?:plus|minus|times|over|mod|divided by|multiplied by|to the power of)\b)"  # noqa: RUF001
    r"[\s()\[\]+-]*",
    re.IGNORECASE,
)
_LISTS = re.compile(r"(?:[,;|&~…()\[\]]|\.\.+|[^\S\n])*(?:\b(?:or|and|to|through|but|vs)\b[^\S\n]*)?", re.IGNORECASE)
_CHOICE = re.compile(
    r"[^\n;:]{0,40}\b(?:or|maybe|perhaps|possibly|alternatively)\b(?! (?:more|less|fewer))[^\n.;:]{0,20}", re.IGNORECASE
)
# Text before or after a number that changes the number, or means that there is none.
_DENIED = re.compile(
    r"(?:\b(?:not|never|nor|neither|than|least|most|except|without)\b|n['’]t\b|[<>≤≥≠!])"  # noqa: RUF001
    r"(?:\s*(?:be|equal|to|exactly|the|a|number|=))*\W*$",
    re.IGNORECASE,
)
_GLUED = re.compile(r"[A-Za-z_√][({]*$")
_FUNCTION = re.compile(r"(?:√|\b(?:sqrt|log|ln|exp|sin|cos|tan|root of|half of|twice|double))[\s({]*$", re.IGNORECASE)
_DANGLING = re.compile(r"[\s)\]]*(?:=(?!\s*[A-Za-z])|[+×÷^*](?!\w)|/(?![A-Za-z])|!=|[<>≤≥≠])")  # noqa: RUF001
_ASKED = re.compile(r"[^.!?\n]*\?")
_REFUTED = re.compile(r"\W*(?:(?:is|was)\s+(?:not|wrong|incorrect|false)|isn['’]t)\b", re.IGNORECASE)  # noqa: RUF001
_VARIABLE = re.compile(r"(?:[xyzabnkpqtieM]|pi|π)(?![A-Za-z])|\s*\\[A-Za-z]|\s*√|_")
_MAGNITUDE = re.compile(r"[\s-]*(hundred|thousand|million|billion|trillion|dozen)\b", re.IGNORECASE)
_MAGNITUDES = {"hundred": 100, "dozen": 12, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SAID = re.compile(r"\banswer\b[^\n.!?0-9]{0,40}?(?::|=|\b(?:is|are|be|equals)\b)", re.IGNORECASE)
_BARE = re.compile(r"(?:[A-Za-z]{1,2}\s*=)?\W*")
_UNIT = re.compile(r"[^\w!]*[A-Za-z°µ]*(?:\s*/\s*[A-Za-z]+)?[^\w!]*")

_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{\s*(-?[0-9.]+)\s*\}\s*\{\s*([0-9.]+)\s*\}"), r" \1/\2 "),
    (re.compile(r"\\[dt]?frac\s*([0-9])\s*([0-9])(?![0-9])"), r" \1/\2 "),
    (re.compile(r"(?<=[0-9])(?:\{,\}|\\[,!;:]|,\\!|[\u00a0\u2009\u202f])(?=[0-9]{3})"), ","),
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|mathit|operatorname)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\(?:left|right|displaystyle|quad|qquad|,|;|:|!|\(|\)|\[|\]|\s|\$)"), " "),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree"), "° "),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\times|\\cdot|\\ast"), "×"),  # noqa: RUF001
    (re.compile(r"\\div"), "÷"),
    (re.compile(r"\\approx|\\simeq"), "≈"),
    (re.compile(r"\\neq?(?![a-z])"), "≠"),
    (re.compile(r"\\(?:geq?|gt)(?![a-z])"), "≥"),
    (re.compile(r"\\(?:leq?|lt)(?![a-z])"), "≤"),
    (re.compile(r"\\(?:to|rightarrow|implies)(?![a-z])"), "→"),
    (re.compile(r"\\sqrt"), "√"),
    (re.compile(r"\$"), " "),
)
# Bullets, emphasis, code: what Markdown puts around a number. A star between two operands is no emphasis.
_BULLET = re.compile(r"(?m)^[^\S\n]*(?:[-*+•]|#{1,6})[^\S\n]+")
_STAR = re.compile(r"(?<=[0-9)])\*{1,2}(?=[0-9(+-])|(?<=\s)\*{1,2}(?=\s)")
_EMPHASIS = re.compile(r"\*{1,3}|(?<!\w)_{1,3}|_{2,3}|_(?!\w)|`+")


@dataclass(frozen=True)
class _Run:
    """The numbers of one statement, its position, the gaps between the numbers, and the text before and after."""

    start: int
    numbers: tuple[re.Match[str], ...]
    gaps: tuple[str, ...]
    before: str
    behind: str


def answers(text: str) -> list[str]:
    """Return the answers of a text, at least one: after its thoughts, inside `<answer>`, on the line after `####`.

    After thoughts that do not end there is no text.
    """
    text = text.rpartition("</think>")[2].partition("<think>")[0]
    parts = tagged(text) or [text]
    if any("####" in part for part in parts):
        parts = [(piece.strip().splitlines() or [""])[0] for part in parts for piece in part.split("####")[1:]]
    return [part.strip() for part in parts]


def tagged(text: str) -> list[str]:
    """Return the texts between `<answer>` and `</answer>`."""
    found, start = [], text.find("<answer>")
    while start >= 0 and (end := text.find("</answer>", start)) >= 0:
        found.append(text[start + len("<answer>") : end])
        start = text.find("<answer>", end)
    return found


def boxes(text: str) -> list[str]:
    r"""Return the contents of every `\boxed{...}`; one that is not closed reaches to the end."""
    found, end = [], 0
    while start := _BOX.search(text, end):
        depth, end = 1, start.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        found.append(text[start.end() : end - (not depth)].strip())
    return found


def reference_number(text: str) -> Fraction | None:
    """Return the number of a reference, boxed or plain, with or without a unit; None: it is no number."""
    part = answers(text)[-1]
    plain = _plain((boxes(part) or [part])[-1])
    runs = _runs(plain) if len(plain) <= _CONTEXT_CHARS else []
    if len(runs) != 1 or not _BARE.fullmatch(_unsigned(runs[0].before)) or not _UNIT.fullmatch(runs[0].behind):
        return None
    return _value(runs[0], takes_fraction=True)


def is_answer(text: str, wanted: Fraction) -> bool:
    """Whether a text states this number as its answer.

    Only the text inside `<answer>` or on the line after `####` counts, if there is one. The answers of a text are its
    boxes, else the numbers after "answer is", else its last number. All answers of one kind must be equal.

    Args:
        text: A completion.
        wanted: The number. If it is whole, a quotient in the text is an open expression; otherwise it is a number.
    """
    return all(_states(part, wanted) for part in answers(text))


def _states(part: str, wanted: Fraction) -> bool:
    boxed = boxes(part)
    if boxed:
        return all(_is_boxed(content, wanted) for content in boxed)
    plain = _plain(part)
    runs = _runs(plain)
    starts = [run.start for run in runs]
    said = []
    for mark in _SAID.finditer(plain):
        following = bisect_left(starts, mark.end())
        if following < len(runs) and re.fullmatch(r"\W*", plain[mark.end() : starts[following]]):
            said.append(runs[following])
    return bool(runs) and all(_equals(run, wanted) for run in said or runs[-1:])


def _is_boxed(content: str, wanted: Fraction) -> bool:
    runs = _runs(_plain(content))
    return len(runs) == 1 and _equals(runs[0], wanted)


def _plain(text: str) -> str:
    """Return the text without the Markdown and LaTeX around numbers."""
    text = _BULLET.sub("", text)
    kept = {match.start() for match in _STAR.finditer(text)}
    text = _EMPHASIS.sub(lambda match: match.group() if match.start() in kept else " ", text)
    for pattern, put in _LATEX:
        text = pattern.sub(put, text)
    return text.replace("{", "(").replace("}", ")")


def _runs(text: str) -> list[_Run]:
    """Return the statements with numbers, in their order."""
    numbers = [match for match in _NUMBER.finditer(text) if not _is_glued(text, match.start())]
    found, first = [], 0
    for index, number in enumerate(numbers):
        following = numbers[index + 1] if index + 1 < len(numbers) else None
        if following and _joins(text[number.end() : following.start()]):
            continue
        run, start = tuple(numbers[first : index + 1]), numbers[first].start()
        gaps = tuple(text[one.end() : other.start()] for one, other in pairwise(run))
        before = text[max(0, start - _CONTEXT_CHARS) : start]
        found.append(_Run(start, run, gaps, before, text[number.end() : number.end() + _CONTEXT_CHARS]))
        first = index + 1
    return found


def _is_glued(text: str, start: int) -> bool:
    """Whether the number at this position is part of a name, as in x2 or v1_3."""
    before = text[max(0, start - _CONTEXT_CHARS) : start]
    return bool(_GLUED.search(before)) and not _FUNCTION.search(before)


def _joins(gap: str) -> bool:
    return len(gap) <= _CONTEXT_CHARS and any(
        pattern.fullmatch(gap) for pattern in (_EQUALS, _OPERATOR, _LISTS, _CHOICE)
    )


def _equals(run: _Run, wanted: Fraction) -> bool:
    value = _value(run, takes_fraction=wanted.denominator != 1)
    if value is None or _DENIED.search(_unsigned(run.before)) or _REFUTED.match(run.behind):
        return False
    # 50 % is 50 of a unit, and a half. What has no end, as a third, may be written out to some place.
    values = [value, value / 100] if run.behind.lstrip().startswith("%") else [value]
    tolerance = abs(wanted) / 10**6 if wanted.denominator != 1 else 0
    return any(abs(each - wanted) <= tolerance for each in values)


def _value(run: _Run, takes_fraction: bool) -> Fraction | None:
    """Return the result of a statement: the text after its last equality sign, if that is one number."""
    if any(pattern.match(run.behind) for pattern in (_DANGLING, _ASKED, _VARIABLE)):
        return None
    last_side = max((i + 1 for i, gap in enumerate(run.gaps) if _EQUALS.fullmatch(gap)), default=0)
    numbers, gaps = run.numbers[last_side:], run.gaps[last_side:]
    before = run.gaps[last_side - 1] if last_side else run.before
    values = [_number(number) for number in numbers[:3]]
    value, *others = values
    if value is None or None in others or _FUNCTION.search(before):
        return None
    if others:
        (below, *more) = others
        if more or not below or not takes_fraction or gaps[0].strip() != "/":
            return None
        value /= below
    magnitude = _MAGNITUDE.match(run.behind)
    if magnitude:
        value *= _MAGNITUDES[magnitude.group(1).lower()]
    return -value if _is_negative(before) else value


def _number(match: re.Match[str]) -> Fraction | None:
    is_read = match["foreign"] is None and len(match.group()) <= _MOST_DIGITS
    return Fraction(match.group().replace(",", "")) if is_read else None


def _is_negative(before: str) -> bool:
    sign = _SIGN.search(before)
    return sign is not None and "+" not in sign.group()


def _unsigned(before: str) -> str:
    return _SIGN.sub("", before)
