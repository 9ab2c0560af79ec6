"""Answers without a model: the recipe's own templates, for text made by rule and for trying a recipe out."""

from collections.abc import Sequence
from random import Random

from isthmus.data.synthetic.judges import template_judgement
from isthmus.data.synthetic.protocols import Completion, Recipe, Request, digest

_CHARACTERS_PER_TOKEN = 4


class TemplateGenerator:
    """Asks the recipe; the request's seed decides between its wordings."""

    name = "template"
    parallel = 0
    batch = 1

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.fingerprint = digest(["template", recipe.name, recipe.version])

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        return [self._one(request) for request in requests]

    def stop(self) -> None:
        pass

    def _one(self, request: Request) -> Completion:
        prompt = request.prompt
        if prompt.purpose == "judge":
            text = template_judgement(str(prompt.facts["document"]))
        else:
            text = self._recipe.template(request.item, prompt, Random(request.seed))
        read = sum(len(part) for _, part in prompt.messages) // _CHARACTERS_PER_TOKEN
        return Completion(text, read, len(text) // _CHARACTERS_PER_TOKEN + 1, "stop")
