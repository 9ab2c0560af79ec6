"""The generator of word problems and the verifier that must catch any wrong digit."""

import re

import pytest

from isthmus.data.synthetic.arithmetic import documents, verify

# Every number of an equation or of an answer; the question's own numbers are outside what the verifier promises.
_CHECKED = re.compile(r"\d+ [+x-] \d+ = \d+|^Answer: \d+$", re.MULTILINE)


def test_same_seed_same_documents() -> None:
    first = list(documents(30, seed=7))
    assert list(documents(30, seed=7)) == first
    assert list(documents(10, seed=7)) == first[:10]
    assert list(documents(30, seed=8)) != first
    assert len(set(first)) == 30


def test_documents_hold_the_problems_asked_for_and_the_verifier_accepts_them() -> None:
    for text in documents(100, seed=3, problems=4):
        assert text.count("Question: ") == text.count("\nAnswer: ") == len(text.split("\n\n")) == 4
        assert verify(text)


def test_all_kinds_occur() -> None:
    text = "\n\n".join(documents(20, seed=0))
    for sign in ("+", "-", "x"):
        assert re.search(rf"\d+ {re.escape(sign)} \d+ = \d+", text)
    assert "Then without the lost ones" in text


def test_any_wrong_digit_is_caught() -> None:
    mutations = 0
    for text in documents(40, seed=11, problems=2):
        for match in _CHECKED.finditer(text):
            for place in range(match.start(), match.end()):
                if text[place].isdigit():
                    for step in (1, 5, 9):
                        digit = str((int(text[place]) + step) % 10)
                        wrong = text[:place] + digit + text[place + 1 :]
                        assert not verify(wrong), f"{match[0]!r} with {digit!r} at {place - match.start()}"
                        mutations += 1
    assert mutations > 2_000  # 80 problems with 9 digits or more each, 3 ways


def test_missing_answers_and_equations_are_caught() -> None:
    (text,) = documents(1, seed=5, problems=3)
    for match in re.finditer(r"\nAnswer: \d+", text):
        assert not verify(text[: match.start()] + text[match.end() :])
    assert not verify("Question: how many?\nAnswer: 3")
    assert not verify("1 + 2 = 3")
    assert not verify("1 + 2 = 3\nAnswer: three")
    assert verify("1 + 2 = 3\nAnswer: 3")


def test_answer_belongs_to_the_last_equation() -> None:
    assert verify("2 x 3 = 6. Then 6 - 1 = 5.\nAnswer: 5")
    assert not verify("2 x 3 = 6. Then 6 - 1 = 5.\nAnswer: 6")


@pytest.mark.parametrize("text", ["", "1 + 2 = 3\nAnswer: 3\n\n"])
def test_empty_problem_is_a_verdict_not_a_crash(text: str) -> None:
    assert verify(text) is False
