"""What counts as a number, a name and a copy; and a labelled set of rewritten texts."""

from fractions import Fraction
from random import Random

import pytest

from isthmus.data.synthetic.config import SeedsConfig
from isthmus.data.synthetic.context import SeedDocument
from isthmus.data.synthetic.passages import chunks, passages, sentences
from isthmus.data.synthetic.protocols import Candidate, Item, Verdict
from isthmus.data.synthetic.recipes.long_tasks import Needles, Questions, Summaries
from isthmus.data.synthetic.recipes.windows import Windows, spread
from isthmus.data.synthetic.seeds import pages
from isthmus.data.synthetic.verifiers.facts import names_of, numbers_of
from isthmus.data.synthetic.verifiers.faithful import Covers, Length, Names, NoCopy, Numbers, Written

SOURCE = (
    "The Corinth Canal was opened in 1893 after twelve years of work. It is 6.4 kilometres long and only about 21 "
    "metres wide, so most modern ships cannot pass it. The emperor Nero had dug there with 6,000 prisoners, and "
    "Istvan Turr led the company that began again in 1881. Today some eleven thousand ships use it each year, "
    "most with tourists."
)
GOOD = (
    "Work on the Corinth Canal took twelve years, from 1881 under Istvan Turr to the opening in 1893. With a length of "
    "6.4 kilometres but a width of roughly 21 metres it is too narrow for large ships of our time. Long "
    "before, Nero had set 6000 prisoners to dig. Every year about 11,000 vessels come through, "
    "carrying mainly tourists."
)


def check(verifier: object, text: str, source: str = SOURCE) -> Verdict:
    verdict: Verdict = verifier.check(Item("1", "t", {}, {"source": source}), Candidate(text))  # type: ignore[attr-defined]
    return verdict


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,250.5 and -3", [1250.5, -3]),
        ("twenty-three, four hundred and six", [23, 406]),
        ("two million three hundred thousand", [2_300_000]),
        ("nineteen hundred", [1900]),
        ("one or two of them", []),
        ("in 1990-1995", [1990, 1995]),
        ("version 3.11, A4, 2nd", [3.11, 4, 2]),
        ("three, four, five", [3, 4, 5]),
        ("sixty five and seven", [65, 7]),
        ("a hundred people", []),
        ("five thousand", [5000]),
    ],
)
def test_numbers_in_every_spelling(text: str, found: list[float]) -> None:
    assert numbers_of(text) == {Fraction(str(number)) for number in found}


def test_a_number_of_any_length_is_one() -> None:
    long = "7" * 5_000
    assert len(numbers_of(f"{long} and {long}")) == 1
    assert check(Numbers(), f"It is {long}.", f"There are {long}.").ok
    assert check(Numbers(), f"It is {long}.", f"There are {long}8.").reason == "numbers were lost"
    assert check(Numbers(), f"It is {long}.5.", "There are 2.").reason == "numbers were lost"


def test_names_are_capitals_in_mid_sentence() -> None:
    assert names_of("The river Nile flows. Egypt's kings knew it. \"Long ago,\" said Herodotus, in NASA's words.") == {
        "nile", "herodotus", "nasa",
    }  # fmt: skip
    assert names_of("# A Title\n\nIt was here. And I saw Dr Who.") >= {"who"}


ALTERED = {
    "a number": ("1893", "1894", "numbers"),
    "a number lost": (" in 1893", "", "numbers"),
    "a word number": ("twelve", "fifteen", "numbers"),
    "a decimal": ("6.4", "64", "numbers"),
    "a name": ("Nero", "Trajan", "names"),
    "a name lost": ("under Istvan Turr ", "", "names"),
    "an added name": ("Long before,", "Long before, in Rome,", "names"),
}
VERIFIERS = {"numbers": Numbers(), "names": Names(), "copy": NoCopy(), "length": Length(), "written": Written()}


def test_a_faithful_text_passes_everything() -> None:
    for name, verifier in VERIFIERS.items():
        assert check(verifier, GOOD).ok, (name, check(verifier, GOOD))
    assert check(Covers(0.3), GOOD).ok


@pytest.mark.parametrize("case", ALTERED)
def test_one_changed_fact_is_found(case: str) -> None:
    old, new, verifier = ALTERED[case]
    assert old in GOOD
    verdict = check(VERIFIERS[verifier], GOOD.replace(old, new))
    assert not verdict.ok
    assert verdict.details


def test_facts_changed_at_random_are_told_apart_at_99_5_percent() -> None:
    """Right: a passage's sentences in another order. Wrong: one number or name of it changed, added or taken out."""
    random = Random(5)
    wrongly, count = [], 0
    for document in pages(SeedsConfig()):
        for passage in passages(document.text, 200):
            facts = sorted({str(number) for number in numbers_of(passage) if f" {number} " in passage})
            names = sorted(name for name in names_of(passage) if passage.lower().count(name) == 1)
            lines = sentences(passage)
            random.shuffle(lines)
            right = "\n\n".join(lines)
            wrong = [f"{right} It was {random.randint(10**6, 10**7)} of them.", f"{right} So said old Quexby."]
            wrong += [passage.replace(f" {fact} ", f" {int(float(fact)) + 977} ") for fact in facts]
            wrong += [" ".join(word for word in passage.split() if name not in word.lower()) for name in names[:4]]
            for label, texts in ((True, [right, passage]), (False, wrong)):
                for text in texts:
                    count += 1
                    if (check(Numbers(), text, passage).ok and check(Names(), text, passage).ok) is not label:
                        wrongly.append((label, text[:80]))
    print(f"rewritten texts: {count}, accuracy {1 - len(wrongly) / count:.4f}")
    assert count > 400
    assert 1 - len(wrongly) / count >= 0.995, wrongly


def test_copies_are_found_by_share_and_by_run() -> None:
    assert check(NoCopy(), SOURCE).reason == "near copy"
    half = (
        " ".join(SOURCE.split()[:31]) + " " + " ".join(f"word{number}x" for number in "abcdefghijklmnopqrstuvwxyz" * 3)
    )
    assert check(NoCopy(longest=30), half).reason == "copies a passage"
    assert check(NoCopy(longest=40), half).ok
    assert check(NoCopy(), GOOD).ok
    assert check(Length(), "Short.").reason == "too short"
    assert check(Length(), SOURCE * 3).reason == "too long"
    assert check(Covers(), "The canal is narrow.").reason == "leaves too much out"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Well, um, it is so.", "fillers of speech"),
        ("00:01:02.500 --> 00:01:04.000\nIt is.", "marks of captions"),
        ("It is [applause] so.", "marks of captions"),
        ("As an AI language model, I like canals.", "talks about itself"),
        ("Sure! Here is the rewritten text: ...", "talks about itself"),
        ("  ", "empty"),
        ("An umbrella, an album and error messages; here is the tower.", ""),
    ],
)
def test_prose_is_written(text: str, reason: str) -> None:
    assert check(Written(), text).reason == reason


def test_passages_and_chunks_lose_nothing() -> None:
    text = "\n\n".join(f"Paragraph {number}. " + "word " * number for number in range(30))
    assert "\n\n".join(passages(text, 60)).split() == text.split()
    parts = [part.strip() for part in text.split("\n\n")]
    assert "\n\n".join(chunks(parts, 50, lambda part: len(part.split()))).split() == text.split()
    assert sentences("Dr. No came. He saw 3.5 of J. Smith's.\nThen he left!") == [
        "Dr. No came.", "He saw 3.5 of J. Smith's.", "Then he left!",
    ]  # fmt: skip


def windows() -> Windows:
    documents = [
        SeedDocument(f"d{n}", f"Title {n}", "\n\n".join(f"Part {n} {p}. " + "word " * 20 for p in range(40)))
        for n in range(3)
    ]
    return Windows(lambda: iter(documents), lambda text: len(text.split()), seed=1, passes=1)


def test_windows_are_nearly_full_and_share_no_paragraph() -> None:
    found = windows()
    taken = []
    while (window := found.take(300)) is not None:
        assert 180 <= sum(len(part.split()) + 1 for part in window.parts) <= 300
        assert window.parents
        taken += window.parts
    assert len(taken) == len(set(taken)) > 90
    text = spread(["a", "b", "c", "d"], ["X", "Y"], Random(1)).split("\n\n")
    assert sorted(text) == ["X", "Y", "a", "b", "c", "d"]
    assert text.index("X") <= 2 <= text.index("Y")


def task(kind: object) -> tuple[Item, str]:
    window = windows().take(600)
    assert window is not None
    shown, frozen = kind.make(window, Random(3))  # type: ignore[attr-defined]
    item = Item("1", "t", shown, frozen)
    writing = kind.write(shown)  # type: ignore[attr-defined]
    prompts = next(writing)
    while True:
        try:
            prompts = writing.send([kind.template(item, prompt, Random(1)) for prompt in prompts])  # type: ignore[attr-defined]
        except StopIteration as end:
            return item, end.value


def test_needles_must_all_be_found_in_order() -> None:
    kind = Needles(3)
    item, text = task(kind)
    first, second, third = item.frozen["answers"]
    assert all(number in item.task["text"] for number in item.frozen["answers"])
    assert not any(number in item.task["question"] for number in item.frozen["answers"])
    assert kind.check(item, Candidate(text)).ok
    assert kind.check(item, Candidate(f"{first}, {second} and {third}, yes, {third}")).ok
    assert kind.check(item, Candidate(f"{first}, {second}")).reason == "a needle was missed"
    assert kind.check(item, Candidate(f"{second}, {first}, {third}")).reason == "wrong or swapped needles"
    assert not kind.check(item, Candidate(f"{first}, {second}, {third}, 123456")).ok
    assert not kind.check(item, Candidate(f"1{first}, {second}, {third}")).ok


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("What comes first?", "Part 1 0", "answer not in the text"),
        ("What comes?", "word word", ""),
        ("Is it word word?", "word word", "question gives the answer away"),
        ("What comes", "word word", "not a question"),
        ("What?", "word " * 26, "answer too long"),
        ("", "word", "no question and answer"),
    ],
)
def test_answers_must_stand_in_their_part(question: str, answer: str, reason: str) -> None:
    import json

    kind = Questions(lambda text: len(text.split()), 100, 1)
    item = Item("1", "t", {}, {"parts": ["Part 7. word word word and more."]})
    found = kind.check(item, Candidate(json.dumps([{"question": question, "answer": answer}])))
    assert found.reason == reason


def test_the_tasks_templates_pass_their_checks() -> None:
    def count(text: str) -> int:
        return len(text.split())

    for kind in (Needles(1), Questions(count, 120, 4), Summaries(count, 120, 2)):
        item, text = task(kind)
        assert kind.check(item, Candidate(text)).ok, (kind, text, kind.check(item, Candidate(text)))
    import json

    item, text = task(Summaries(count, 120, 2))
    levels = json.loads(text)
    sizes = [len(level) for level in levels]
    assert sizes == [5, 3, 2, 1]
    levels[0][0] += " And 77777."
    assert Summaries(count, 120, 2).check(item, Candidate(json.dumps(levels))).reason == "numbers were invented"
    levels[0][0] = item.frozen["parts"][0]
    assert Summaries(count, 120, 2).check(item, Candidate(json.dumps(levels))).reason == "summary too long"
