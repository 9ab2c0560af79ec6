"""Web documents worded anew in a given style (WRAP, arXiv 2401.16380): the facts of the source, in other words."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from isthmus.config import key
from isthmus.data.synthetic.context import Context
from isthmus.data.synthetic.passages import paragraphs, passages, sentences
from isthmus.data.synthetic.protocols import Item, Prompt, Verdict, Verifier, ask_once
from isthmus.data.synthetic.recipes.wording import reword
from isthmus.data.synthetic.verifiers.faithful import Length, Names, NoCopy, Numbers, Written
from isthmus.errors import UserError

STYLES = {
    "plain": "in plain English that a twelve-year-old can read, in short sentences",
    "encyclopedia": "in the style of an encyclopedia: neutral, dense, precise",
    "dialogue": "as questions of a curious reader and answers, each on a line that begins with Question: or Answer:",
    "lecture": "as a teacher would tell it to a class, with a sentence that opens and one that closes it",
}
_RULES = (
    "Keep every fact: all names, numbers and dates. Add nothing. Do not copy sentences. Answer with the text alone."
)


@dataclass(kw_only=True, slots=True)
class RephraseOptions:
    styles: list[str] = key(list(STYLES), "plain, encyclopedia, dialogue, lecture; each passage gets them in turn")
    words: int = key(220, "paragraphs are rephrased together up to so many words")
    least_words: int = key(60, "shorter passages are left out")
    keep_names: float = key(1.0, "smallest fraction of the source's names that must be in the text")
    new_names: float = key(0.1, "largest fraction of the text's names that the source need not have")
    most_copied: float = key(0.5, "largest fraction of the text's runs of five words that may be the source's")
    longest_copy: int = key(30, "most words in a row that may be the source's")


class RephraseRecipe:
    """Each item is a passage and a style."""

    name = "rephrase"
    version = 1

    def __init__(self, options: RephraseOptions, context: Context) -> None:
        self._options, self._context = options, context
        for style in options.styles:
            if style not in STYLES:
                raise UserError(
                    f"there is no style '{style}'", where="data.options.styles", fix=f"choose of: {', '.join(STYLES)}"
                )
        if not options.styles:
            raise UserError("is empty", where="data.options.styles", fix=f"choose of: {', '.join(STYLES)}")
        self.verifiers: Sequence[Verifier] = (
            Written(),
            Length(),
            Numbers(),
            Names(options.keep_names, options.new_names),
            NoCopy(options.most_copied, options.longest_copy),
        )

    def items(self) -> Iterator[Item]:
        """Yield every passage in one style, then every passage in the next."""
        styles = self._options.styles
        for turn in range(len(styles)):
            for number, document in enumerate(self._context.documents()):
                for place, passage in enumerate(passages(document.text, self._options.words)):
                    if len(passage.split()) < self._options.least_words:
                        continue
                    style = styles[(number + place + turn) % len(styles)]
                    yield Item(
                        f"{document.id}/{place}/{style}",
                        style,
                        {"text": passage, "style": style, "title": document.title},
                        {"source": passage},
                        (document.id,),
                    )

    def write(self, task: Mapping[str, Any]) -> Generator[Sequence[Prompt], Sequence[str], str]:
        return ask_once(Prompt(_messages(task)))

    def repair(self, task: Mapping[str, Any], text: str, verdict: Verdict) -> Prompt:
        return Prompt((*_messages(task), ("assistant", text), ("user", complaint(verdict))), purpose="repair")

    def document(self, item: Item, text: str) -> str:
        return text.strip()

    def template(self, item: Item, prompt: Prompt, random: Random) -> str:
        parts = []
        for paragraph in paragraphs(str(item.task["text"])):
            lines = [reword(sentence, random) for sentence in sentences(paragraph.lstrip("# "))]
            if item.task["style"] == "dialogue":
                asked = ("What else is there to say?", "And then?", "Could you tell more?", "What follows?")
                parts += [f"Question: {random.choice(asked)}\nAnswer: {line}" for line in lines]
            else:
                parts.append(" ".join(lines))
        return "\n\n".join(parts)


def complaint(verdict: Verdict) -> str:
    """Return what a model is told about a rejected text."""
    told = "; ".join(f"{name}: {value}" for name, value in verdict.details.items())
    return f"This text was rejected: {verdict.reason} ({told}). Write it again and answer with the text alone."


def _messages(task: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    asked = f"Rewrite the following text {STYLES[str(task['style'])]}. {_RULES}"
    return (("system", asked), ("user", str(task["text"])))
