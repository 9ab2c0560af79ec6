"""Transcripts to text: a talk written up as an article that says what the talk says."""

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from isthmus.config import key
from isthmus.data.synthetic.context import Context
from isthmus.data.synthetic.passages import paragraphs, passages, sentences
from isthmus.data.synthetic.protocols import Item, Prompt, Verdict, Verifier, ask_once
from isthmus.data.synthetic.recipes.rephrase import complaint
from isthmus.data.synthetic.verifiers.faithful import Covers, Length, Names, Numbers, Written

_ASKED = (
    "Below is a part of a talk's transcript. Write it up as an article for readers: whole sentences, paragraphs, no "
    "fillers, no repetition, no speakers' labels. Say what the talk says and nothing else; keep all names and numbers. "
    "Answer with the article alone."
)
_FILLERS = re.compile(
    r"\b(?:u+h+m*|u+m+|er+m|mhm)\b[,.]?\s*|,?\s*\b(?:you know|i mean|kind of|sort of|like i said)\b,?", re.IGNORECASE
)
_LABEL = re.compile(r"^(?:[A-Z][\w.'-]*(?: [A-Z][\w.'-]*){0,2}|[A-Z][A-Z .'-]+):\s+")
_DIRECTION = re.compile(r"[\[(](?:music|applause|laughter|laughs|silence)[\])]\s*", re.IGNORECASE)
_STUTTER = re.compile(r"\b(\w+)(?:[,\u2026-]*\s+\1\b)+", re.IGNORECASE)


@dataclass(kw_only=True, slots=True)
class ArticleOptions:
    words: int = key(600, "a talk is written up in parts of up to so many words")
    least_words: int = key(120, "shorter parts are left out")
    keep_names: float = key(0.9, "smallest fraction of the talk's names that must be in the article")
    new_names: float = key(0.1, "largest fraction of the article's names that the talk need not have")
    covered: float = key(0.6, "smallest fraction of the talk's longer words that must be in the article")


class ArticleRecipe:
    """Each item is a part of a talk."""

    name = "article"
    version = 1

    def __init__(self, options: ArticleOptions, context: Context) -> None:
        self._options, self._context = options, context
        self.verifiers: Sequence[Verifier] = (
            Written(),
            Length(0.4, 1.5),
            Numbers(),
            Names(options.keep_names, options.new_names),
            Covers(options.covered),
        )

    def items(self) -> Iterator[Item]:
        for document in self._context.documents():
            for place, part in enumerate(passages(document.text, self._options.words)):
                spoken = _spoken(part)
                if len(spoken.split()) >= self._options.least_words:
                    yield Item(
                        f"{document.id}/{place}",
                        document.title,
                        {"text": part, "title": document.title},
                        {"source": spoken},
                        (document.id,),
                    )

    def write(self, task: Mapping[str, Any]) -> Generator[Sequence[Prompt], Sequence[str], str]:
        return ask_once(Prompt(_messages(task)))

    def repair(self, task: Mapping[str, Any], text: str, verdict: Verdict) -> Prompt:
        return Prompt((*_messages(task), ("assistant", text), ("user", complaint(verdict))), purpose="repair")

    def document(self, item: Item, text: str) -> str:
        return text.strip()

    def template(self, item: Item, prompt: Prompt, random: Random) -> str:
        written = []
        for paragraph in paragraphs(_spoken(str(item.task["text"]))):
            cleaned = _STUTTER.sub(r"\1", _FILLERS.sub(" ", paragraph))
            lines = [line[:1].upper() + line[1:] for line in sentences(cleaned.strip(" ,"))]
            written.append(re.sub(r"\s+([,.!?])", r"\1", " ".join(lines)))
        return "\n\n".join(part for part in written if part)


def _spoken(text: str) -> str:
    """Return what was said: no speakers' labels, no directions."""
    said = (_DIRECTION.sub("", _LABEL.sub("", paragraph)) for paragraph in paragraphs(text))
    return "\n\n".join(part for part in said if part.strip())


def _messages(task: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return (("system", _ASKED), ("user", f"{task['title']}\n\n{task['text']}"))
