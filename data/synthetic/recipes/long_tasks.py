"""What is asked about a long text: needles to find, questions on every part of it, summaries of summaries."""

import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from random import Random
from typing import Any, Protocol

from isthmus.data.synthetic.passages import chunks, sentences
from isthmus.data.synthetic.protocols import Candidate, Item, Prompt, Verdict
from isthmus.data.synthetic.recipes.windows import Window, spread
from isthmus.data.synthetic.verifiers.facts import mentions, names_of, numbers_of

Writing = Generator[Sequence[Prompt], Sequence[str], str]
_QUESTION_TOKENS, _SUMMARY_TOKENS = 300, 600
_LONGEST_ANSWER = 25  # words of an answer that is copied from the text
_THINGS = ("access code", "catalogue number", "locker number", "serial number", "ticket number", "registration number")
_OWNERS = (
    "Amber", "Birch", "Cobalt", "Dover", "Ember", "Falcon", "Granite", "Harbour", "Indigo", "Juniper", "Kestrel",
    "Linden", "Marble", "Nettle", "Orchid", "Pelican", "Quartz", "Raven", "Saffron", "Thistle",
)  # fmt: skip
_PLACES = ("archive", "boathouse", "depot", "gallery", "greenhouse", "observatory", "station", "workshop")


class LongTask(Protocol):
    """One kind of question about a window."""

    def make(self, window: Window, random: Random) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what prompts may show and what is frozen."""
        ...

    def write(self, task: Mapping[str, Any]) -> Writing: ...
    def check(self, item: Item, candidate: Candidate) -> Verdict: ...
    def ending(self, item: Item, text: str) -> str:
        """Return what stands after the long text in the document."""
        ...

    def template(self, item: Item, prompt: Prompt, random: Random) -> str: ...


class Needles:
    """Facts hidden in the text, of which one or all are asked for (needles in haystacks: Llama 3, arXiv 2407.21783)."""

    def __init__(self, count: int) -> None:
        self._count = count

    def make(self, window: Window, random: Random) -> tuple[dict[str, Any], dict[str, Any]]:
        owners = [f"{name} {place}" for name, place in zip(
            random.sample(_OWNERS, self._count), random.choices(_PLACES, k=self._count), strict=True
        )]  # fmt: skip
        thing = random.choice(_THINGS)
        numbers = [str(number) for number in random.sample(range(100_000, 1_000_000), self._count)]
        facts = [f"The {thing} of the {owner} is {number}." for owner, number in zip(owners, numbers, strict=True)]
        text = spread(window.parts, facts, random)
        asked = list(range(self._count))
        random.shuffle(asked)
        names = [f"the {owners[place]}" for place in asked]
        listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}, in this order"
        question = f"What is the {thing} of {listed}?"
        answers = [numbers[place] for place in asked]
        return {"text": text, "question": question}, {"answers": answers, "owners": names, "thing": thing}

    def write(self, task: Mapping[str, Any]) -> Writing:
        asked = "Answer the question about the text in one sentence for each thing that is asked for."
        answers = yield [Prompt((("system", asked), ("user", f"{task['text']}\n\n{task['question']}")), "retrieve")]
        return answers[0]

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        found = re.findall(r"(?<!\d)\d{6}(?!\d)", candidate.text.replace(",", ""))
        expected = list(item.frozen["answers"])
        if list(dict.fromkeys(found)) == expected:
            return Verdict(True)
        missing = [number for number in expected if number not in found]
        return Verdict(False, "a needle was missed" if missing else "wrong or swapped needles", {"found": found[:20]})

    def ending(self, item: Item, text: str) -> str:
        return f"Question: {item.task['question']}\nAnswer: {text.strip()}"

    def template(self, item: Item, prompt: Prompt, random: Random) -> str:
        thing = item.frozen["thing"]
        pairs = zip(item.frozen["owners"], item.frozen["answers"], strict=True)
        return " ".join(f"The {thing} of {owner} is {number}." for owner, number in pairs)


class Questions:
    """A question on each of several parts, answered in the part's own words; all stand after the whole text."""

    def __init__(self, count: Callable[[str], int], chunk_tokens: int, most: int) -> None:
        self._count, self._chunk_tokens, self._most = count, chunk_tokens, most

    def make(self, window: Window, random: Random) -> tuple[dict[str, Any], dict[str, Any]]:
        parts = chunks(window.parts, self._chunk_tokens, self._count)
        chosen = sorted(random.sample(range(len(parts)), min(self._most, len(parts))))
        picked = [parts[place] for place in chosen]
        return {"text": "\n\n".join(window.parts), "parts": picked}, {"parts": picked}

    def write(self, task: Mapping[str, Any]) -> Writing:
        asked = (
            "Write one question that only this text answers and that makes sense without seeing the text, and its "
            f"answer: a name, number or phrase of at most {_LONGEST_ANSWER} words copied from the text. Answer with a "
            'line of JSON: {"question": "...", "answer": "..."}'
        )
        answers = yield [
            Prompt((("system", asked), ("user", part)), "question", {"part": part}, _QUESTION_TOKENS)
            for part in task["parts"]
        ]
        return json.dumps([_pair(answer) for answer in answers], ensure_ascii=False)

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        pairs = json.loads(candidate.text)
        for part, pair in zip(item.frozen["parts"], pairs, strict=True):
            question, answer = str(pair.get("question", "")), str(pair.get("answer", ""))
            reason = (
                "no question and answer" if not question or not answer
                else "not a question" if not question.rstrip().endswith("?")
                else "answer too long" if len(answer.split()) > _LONGEST_ANSWER
                else "answer not in the text" if not _within(answer, part)
                else "question gives the answer away" if _within(answer, question)
                else ""
            )  # fmt: skip
            if reason:
                return Verdict(False, reason, {"question": question[:300], "answer": answer[:300]})
        if len({pair["question"] for pair in pairs}) < len(pairs):
            return Verdict(False, "a question twice")
        return Verdict(True)

    def ending(self, item: Item, text: str) -> str:
        return "\n\n".join(f"Question: {pair['question']}\nAnswer: {pair['answer']}" for pair in json.loads(text))

    def template(self, item: Item, prompt: Prompt, random: Random) -> str:
        """Ask for a name or number that is left out of a sentence."""
        found = []
        for sentence in sentences(str(prompt.facts["part"])):
            names = names_of(sentence)
            for word in re.findall(r"[A-Za-z\d][\w.-]*\w", sentence):
                if (word.lower() in names or numbers_of(word)) and _words(sentence).split().count(word.lower()) == 1:
                    found.append((sentence, word))
        if not found:
            words = str(prompt.facts["part"]).split()
            long = max(words, key=len)
            found = [(" ".join(words[:60]).replace(long, "", 1), long.strip(".,;:()"))]
        sentence, word = random.choice([entry for entry in found if len(entry[0]) < 400] or found)
        return json.dumps(
            {"question": f'What belongs in the gap of "{sentence.replace(word, "____")}"?', "answer": word}
        )


class Summaries:
    """A summary of each part, then of the summaries, until one is left; all levels stand after the whole text."""

    def __init__(self, count: Callable[[str], int], chunk_tokens: int, fan: int) -> None:
        self._count, self._chunk_tokens, self._fan = count, chunk_tokens, fan

    def make(self, window: Window, random: Random) -> tuple[dict[str, Any], dict[str, Any]]:
        parts = chunks(window.parts, self._chunk_tokens, self._count)
        return {"text": "\n\n".join(window.parts), "parts": parts}, {"parts": parts}

    def write(self, task: Mapping[str, Any]) -> Writing:
        asked = (
            "Summarise the text in a paragraph of at most a fifth of its length. Add nothing. Answer with the summary "
            "alone."
        )
        levels: list[list[str]] = []
        texts: list[str] = list(task["parts"])
        while not levels or len(levels[-1]) > 1:
            answers = yield [
                Prompt((("system", asked), ("user", text)), "summary", {"part": text}, _SUMMARY_TOKENS)
                for text in texts
            ]
            levels.append([answer.strip() for answer in answers])
            groups = range(0, len(answers), self._fan)
            texts = ["\n\n".join(levels[-1][first : first + self._fan]) for first in groups]
        return json.dumps(levels, ensure_ascii=False)

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        """Each summary is shorter than what it sums up, and names and counts only what is there."""
        below: list[str] = list(item.frozen["parts"])
        for number, level in enumerate(json.loads(candidate.text)):
            for summary, source in zip(level, below, strict=True):
                if not summary:
                    return Verdict(False, "empty summary")
                if len(summary.split()) >= max(12, len(source.split()) * (0.5 if number == 0 else 0.9)):
                    return Verdict(False, "summary too long", {"level": number})
                if invented := numbers_of(summary) - numbers_of(source):
                    return Verdict(False, "numbers were invented", {"level": number, "invented": len(invented)})
                if invented_names := names_of(summary) - mentions(source):
                    return Verdict(False, "names were invented", {"invented": sorted(invented_names)[:8]})
            below = ["\n\n".join(level[first : first + self._fan]) for first in range(0, len(level), self._fan)]
        return Verdict(True)

    def ending(self, item: Item, text: str) -> str:
        levels = json.loads(text)
        parts = [f"Part {number}: {summary}" for number, summary in enumerate(levels[0], start=1)]
        higher = [f"Parts together: {summary}" for level in levels[1:-1] for summary in level]
        return "\n\n".join(["Summaries", *parts, *higher, f"Summary of the whole: {levels[-1][0]}"])

    def template(self, item: Item, prompt: Prompt, random: Random) -> str:
        """Take sentences that stand at the beginning, up to a fifth of the text."""
        part = str(prompt.facts["part"])
        most = max(8, len(part.split()) // 5)
        chosen: list[str] = []
        for sentence in sentences(re.sub(r"^#.*$", "", part, flags=re.MULTILINE)):
            words = sum(len(entry.split()) for entry in chosen)
            if words + len(sentence.split()) <= most:
                chosen.append(sentence)
        return " ".join(chosen) or " ".join(part.split()[: max(6, most)])


def _pair(answer: str) -> dict[str, str]:
    """Return the question and answer of a JSON object, which may stand among other words; {} if there is none."""
    for found in [answer[answer.find("{") : answer.rfind("}") + 1], *reversed(re.findall(r"\{[^{}]*\}", answer))]:
        try:
            value = json.loads(found)
        except ValueError:
            continue
        if not isinstance(value, dict):
            continue
        if isinstance(value.get("question"), str) and isinstance(value.get("answer"), str):
            return {"question": value["question"].strip(), "answer": value["answer"].strip()}
    return {}


def _within(part: str, text: str) -> bool:
    """Say whether words stand in a text in a row, whatever stands between them and however they begin."""
    return bool(_words(part)) and f" {_words(part)} " in f" {_words(text)} "


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
