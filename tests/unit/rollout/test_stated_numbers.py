# ruff: noqa: RUF001 - the letters that look like others are what is tested
"""Answers to a reference that is a number: hacks get no reward, honest spellings do."""

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayswift.rollout.rewards import builtin
from rayswift.rollout.rewards.stated_numbers import is_answer, reference_number

# Each is worth nothing where 22 is right.
HACKS = [
    # the question restated, work left to do
    "4 + 18 = ?", "4 + 18", "4 + 18 =", "What is 4 + 18?", "Answer: 4 + 18 = ?", "The answer is 4 + 18.", "4 plus 18",
    "2 * 11", r"2 \cdot 11", "2**11", "11 + 11", "22 + 0", "0 + 22", "0 plus 22", "22 = 4 + 18", "22 + x", "22 = ?",
    "44/2", r"\frac{44}{2}", r"\boxed{\frac{44}{2}}", r"\boxed{4+18}", r"\boxed{4 + 18 = ?}", r"\sqrt{484}",
    "sqrt(484)", "22^2", "22²", "twice 11", "22 = 22 + 1", "22:30", "2022-01-22", "#### 4 + 18",
    # several candidates
    "22 or 23", "23 or 22", "22, 23", "23, 22", "21 22", "[21, 22]", r"$\{21, 22\}$", "22/23", "20-22", "20–22",
    "21|22", "between 21 and 22", "1, 2, 3, ..., 22", "22 apples or 23 apples", "22. Or 23.", "23, maybe 22",
    "21 (or 22)", "22 (or 21)", "22 22 22", "22, 22", r"\boxed{22} \boxed{23}", r"\boxed{23} \boxed{22}",
    r"\boxed{21} or \boxed{22}", r"\boxed{22, 23}", r"\boxed{22 \text{ or } 23}",
    "<answer>22</answer><answer>23</answer>",
    "<answer>23</answer><answer>22</answer>", "#### 22\n#### 23", "#### 23\n#### 22", "<answer>21, 22</answer>",
    "The answer is 22. The answer is 23.", "The answer is 23. The answer is 22.",
    # nothing said
    "", r"\boxed{}", r"the answer is 22 but \boxed{}", "<answer></answer>", "####", "<think>it is 22",
    "<think>22</think>", "<think>22</think> ?", "?", "twenty-two",
    # digits of another number
    "1220", "122", "0.22", "22.5", "2 2", "22,230", "22e5", "-22", "22k", "22 million", "x22", "22x", r"22\pi",
    "２２", "٢٢", "²²", "㉒",
    # denied, asked, bounded
    "not 22", "The answer is not 22", "It isn't 22", "22 is wrong", "≠ 22", r"\neq 22", "4 + 18 ≠ 22", "22?",
    "Is it 22?", "What is 22?", "> 22", "more than 22", "at least 22", "The answer is less than 22.",
    # a wrong end
    "4 + 18 = 23", "4 + 18 = 22 = 23", "4 + 18 = 22. No, 23.",
]  # fmt: skip
HONEST = [
    "22", "22.", "22\n", "+22", "= 22", "22.0", "22.00", "2.2e1", "22!", "(22)", '"22"', "'22'", "The answer is 22.",
    "**22**", "*22*", "`22`", "__22__", "# 22", "- 22", "* 22", "$22$", "$22", r"\$22", "€22", "22€", "US$22", "Rs. 22",
    r"\boxed{22}", r"$\boxed{22}$", r"\fbox{22}", r"\boxed{22 \text{ apples}}", r"\boxed{x = 22}", r"\boxed{\text{22}}",
    r"\boxed{4 + 18 = 22}", r"\boxed{22} and again \boxed{22.0}", r"\(22\)", r"\[22\]", r"\textbf{22}", r"\mathbf{22}",
    "#### 22", "#### $22", "4+18=23\n#### 22", "#### 22\nLet me explain: 4 + 18.", "22 apples", "22km", "22 km/h",
    "22nd", "22%", r"22\%", "22°", r"22^\circ", "4 + 18 = 22", "4+18=22", "4 + 18 = **22**", r"4 \times 5 + 2 = 22",
    "4 + 18 → 22", "4 + 18 equals 22", "4 + 18 = 22 (4 + 10 = 14, 14 + 8 = 22)", "The sum of 4 and 18 is 22",
    "The sum of 4 and 18 is **22** apples.", "I have 4 apples and 18 pears, so 22 in total.", "4 + 18\n22",
    "Answer: 22", "Answer:\n22", "**Answer:** 22", "**Answer: 22**", "The answer is: $22$.",
    r"The final answer is $\boxed{22}$.", "The answer is 22 because 20 + 2 makes it.",
    "The answer is not 21. It is 22.", "<answer>22</answer>", "<answer>\n22\n</answer>",
    "<answer> 4 + 18 = 22 </answer>", r"<answer>\boxed{22}</answer>",
    "<think>4+18 = 23? no, 22</think> 22", "thoughts, 23</think>22", "1. Add 4 and 18\n2. 22",
    "1) Add 4 and 18.\n2) The result is 22", "x = 22", "x=22", "about 22", "≈ 22", r"so we get \approx 22",
    "What is 4 + 18? 22", "What is 4 + 18? The answer is 22.", "Let x2 = 4. Then 22", "It is 22, as asked.",
    "22 (twenty-two)", "twenty-two (22)", "It's 22.\n\nDone.", "Total = 22", "total: 22 dollars",
]  # fmt: skip


@pytest.mark.parametrize("text", HACKS)
def test_a_hack_is_worth_nothing(text: str) -> None:
    for reference in ("22", "#### 22", r"so we have $\boxed{22}$"):
        assert builtin.accuracy([text], [reference]) == [0.0]


@pytest.mark.parametrize("text", HONEST)
def test_an_honest_answer_is_right_and_right_alone(text: str) -> None:
    assert builtin.accuracy([text] * 3, ["22", 22.0, "He has 22 left.\n#### 22"]) == [1.0, 1.0, 1.0]
    assert builtin.accuracy([text] * 3, ["23", "2", "4"]) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("reference", "honest", "wrong"),
    [
        ("1234", ["1,234", "1{,}234", r"1\,234", "1234.0", "$1,234", "1,234 people"], ["1", "234", "1.234", "1,235"]),
        ("1,234,567", ["1234567", "1,234,567"], ["1,234", "567"]),
        ("5000000", ["5 million", "5,000,000", "5000 thousand"], ["5", "5 billion"]),
        ("36", ["3 dozen", "36"], ["3"]),
        ("0", ["0", "0.0", "-0", "5 - 5 = 0"], ["5 - 5", "none", "10"]),
        (
            "-5",
            ["-5", "−5", "x = -5", "it is -5.0", r"\boxed{-5}", "6 - 11 = -5", "6 - 11 = **-5**", "-$5"],
            ["5", "6 - 11", "100-5", "5 -5", "10 - 5"],
        ),
        (
            "1/2",
            ["1/2", "0.5", ".5", r"\frac{1}{2}", r"\dfrac12", r"\boxed{\frac{1}{2}}", "50%", "2/4", "1/2 cup"],
            ["1/2 = ?", "1/2/1", "3/4 or 1/2", "0.50.5", "1 1/2", "1,2", "2^{-1}", "half", "½", "1/0", "1 - 1/2"],
        ),
        ("0.5", ["1/2", "0.50", "50%"], ["5", "0.5.5", "0.5, 0.6", "50"]),
        (r"-\frac{3}{4}", [r"$-\frac{3}{4}$", "-0.75", r"\frac{-3}{4}", "-3/4"], ["3/4", "-3", "-4/3"]),
        (r"\frac{1}{3}", ["1/3", "0.333333", r"\boxed{\frac13}"], ["0.33", "3", "1"]),
        ("22%", ["22", "22%", r"22\%"], ["0.22", "2.2%"]),
        ("3.14", ["3.14", r"\approx 3.14"], ["3", "3.1", "314", "3.141"]),
    ],
)
def test_spellings_of_other_numbers(reference: str, honest: list[str], wrong: list[str]) -> None:
    assert [text for text in honest if builtin.accuracy([text], [reference]) != [1.0]] == []
    assert [text for text in wrong if builtin.accuracy([text], [reference]) != [0.0]] == []


@pytest.mark.parametrize(
    "text",
    [
        "Paris 2024", "Paris", "A", "", "x^2", r"\pi/2", r"3\pi", r"2\sqrt{3}", r"\sqrt{2}", "(3, 4)", "1, 2", "10:30",
        "4 + 18", r"3 \times 10^8", "x > 3", r"(-\infty, 5)", "1/0", "2/3/4", "22 or 23", "5x", r"1\frac{1}{2}",
        "2^{10}", "x_1", "1011_2", "5!", "22?", "٢٢",
    ],
)  # fmt: skip
def test_references_that_are_no_number(text: str) -> None:
    assert reference_number(text) is None


@settings(max_examples=300, deadline=None)
@given(st.integers(-(10**7), 10**7), st.sampled_from(["{}", "{}.", "{:,}", "The answer is {:,}.", "#### {}", "**{}**"]))
def test_every_whole_number_is_read_back(number: int, spelling: str) -> None:
    text = spelling.format(number)
    assert reference_number(str(number)) == number
    assert is_answer(text, Fraction(number)) and not is_answer(text, Fraction(number + 1))


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 99), st.integers(0, 99), st.sampled_from(["{} + {}", "{} + {} = ?", "{}, {}", "{} or {}", "{}-{}"])
)
def test_no_restated_sum_and_no_list_is_an_answer(first: int, second: int, spelling: str) -> None:
    text = spelling.format(first, second)
    assert not any(is_answer(text, Fraction(n)) for n in (first, second, first + second, first - second))


@settings(max_examples=500, deadline=None)
@given(st.text("0123456789.,+-*/=()[]{}<>$\\ \n?!|_^%eEx#abox", max_size=60))
def test_any_text_is_judged(text: str) -> None:
    is_answer(text, Fraction(1))
    reference_number(text)


@pytest.mark.parametrize(
    "text",
    [
        "!" * 50000 + "22", "not " * 12000 + "22", "1 " * 25000, "1" * 50000, "1e999999999", "answer is 1. " * 4000,
        "<answer>" * 6000, r"\boxed{" * 7000, " " * 50000 + "22", "\n" * 50000 + "22", "*" * 50000,
        "1,111" + ",111" * 9999, "(" * 50000 + "22", "-" * 50000 + "22", "sqrt " * 10000 + "22", "4 + 18 = ? " * 4500,
        r"\text{" * 8000,
    ],
    ids=lambda text: repr(text[:12]),
)  # fmt: skip
def test_a_long_text_takes_no_long_time(text: str) -> None:
    """Linear in the length: whatever a policy writes must not stop the rewards. 0.1 s; a square takes minutes."""
    began = time.process_time()
    is_answer(text, Fraction(22))
    assert time.process_time() - began < 5
