"""From configuration to generators, with everything refused that would be ignored."""

import dataclasses
from collections.abc import Callable, Mapping

from isthmus.data.synthetic.config import GeneratorConfig, GeneratorKind
from isthmus.data.synthetic.generators.http import HttpGenerator
from isthmus.data.synthetic.generators.sampled import SampledGenerator
from isthmus.data.synthetic.generators.template import TemplateGenerator
from isthmus.data.synthetic.protocols import Generator, Recipe, Sampler
from isthmus.errors import UserError

OpenSampler = Callable[[str], Sampler]


def check_generator(config: GeneratorConfig, where: str, *, judge: bool) -> None:
    """Refuse what is missing, out of range or of another kind.

    Raises:
        UserError: naming the key.
    """
    if config.kind is GeneratorKind.same and not judge:
        raise UserError("is same, which is for judges", where=f"{where}.kind", fix="template, http or checkpoint")
    defaults = GeneratorConfig()
    for field in dataclasses.fields(GeneratorConfig):
        of_kind, colon, _ = field.metadata["help"].partition(": ")
        if (
            colon
            and of_kind in GeneratorKind.__members__
            and of_kind != config.kind.name
            and getattr(config, field.name) != getattr(defaults, field.name)
        ):
            raise UserError(f"is of kind: {of_kind}", where=f"{where}.{field.name}", fix="remove it or set the kind")
    needed = {GeneratorKind.http: ("url", "model"), GeneratorKind.checkpoint: ("path",)}.get(config.kind, ())
    for name in needed:
        if not getattr(config, name):
            raise UserError("is not given", where=f"{where}.{name}", fix=f"kind: {config.kind.name} needs it")
    if config.kind is GeneratorKind.http and not str(config.url).startswith(("http://", "https://")):
        raise UserError(f"is '{config.url}'", where=f"{where}.url", fix="give http://HOST:PORT/v1 or the like")
    for name, fine in (
        ("parallel", 1 <= config.parallel <= 1024),
        ("attempts", config.attempts >= 1),
        ("timeout_seconds", config.timeout_seconds > 0),
        ("longest_wait_seconds", config.longest_wait_seconds >= 0),
        ("requests_per_minute", config.requests_per_minute is None or config.requests_per_minute > 0),
        ("tokens_per_minute", config.tokens_per_minute is None or config.tokens_per_minute > 0),
        ("prompt_price", config.prompt_price >= 0),
        ("completion_price", config.completion_price >= 0),
        ("batch", config.batch >= 1),
    ):
        if not fine:
            raise UserError(f"is {getattr(config, name)}", where=f"{where}.{name}", fix="choose a sensible number")


def build_generator(
    config: GeneratorConfig,
    recipe: Recipe,
    *,
    where: str,
    secrets: Mapping[str, str],
    open_sampler: OpenSampler | None,
) -> Generator:
    """Return the generator.

    Args:
        secrets: the environment, for `key_variable`.
        open_sampler: from a checkpoint's path to a sampler; None where there is no engine.

    Raises:
        UserError: the API key is absent, or the checkpoint cannot be opened.
    """
    if config.kind is GeneratorKind.http:
        secret = None
        if config.key_variable is not None:
            secret = secrets.get(config.key_variable)
            if not secret:
                raise UserError(
                    f"the environment has no {config.key_variable}", where=f"{where}.key_variable", fix="set it"
                )
        return HttpGenerator(config, secret)
    if config.kind is GeneratorKind.checkpoint:
        if open_sampler is None:
            raise UserError("is checkpoint, and nothing here can sample", where=f"{where}.kind", fix="use the command")
        return SampledGenerator(f"checkpoint {config.path}", open_sampler(str(config.path)), config.batch)
    return TemplateGenerator(recipe)
