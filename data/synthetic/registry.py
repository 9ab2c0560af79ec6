"""What a recipe file can name: recipes, seeds and verifiers, each loaded when it is asked for."""

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isthmus.data.synthetic.context import Context
from isthmus.data.synthetic.protocols import Recipe, Verifier
from isthmus.errors import UserError


@dataclass(frozen=True)
class RecipeEntry:
    """Where a recipe's class and options stand (MODULE:CLASS), and the kind of seeds that it takes unless told."""

    recipe: str
    options: str
    seeds: str | None = None


_RECIPES = "isthmus.data.synthetic.recipes"
_VERIFIERS = "isthmus.data.synthetic.verifiers"
_SEEDS = "isthmus.data.synthetic.seeds"

RECIPES: dict[str, RecipeEntry] = {
    "code": RecipeEntry(f"{_RECIPES}.code:CodeRecipe", f"{_RECIPES}.code:CodeOptions"),
    "translation": RecipeEntry(
        f"{_RECIPES}.translation:TranslationRecipe", f"{_RECIPES}.translation:TranslationOptions"
    ),
    "mathematics": RecipeEntry(
        f"{_RECIPES}.mathematics:MathematicsRecipe", f"{_RECIPES}.mathematics:MathematicsOptions"
    ),
    "rephrase": RecipeEntry(f"{_RECIPES}.rephrase:RephraseRecipe", f"{_RECIPES}.rephrase:RephraseOptions", "pages"),
    "article": RecipeEntry(f"{_RECIPES}.article:ArticleRecipe", f"{_RECIPES}.article:ArticleOptions", "talks"),
    "long_context": RecipeEntry(
        f"{_RECIPES}.long_context:LongContextRecipe", f"{_RECIPES}.long_context:LongContextOptions", "manual"
    ),
}

SEEDS: dict[str, str] = {
    "pages": f"{_SEEDS}:pages",
    "talks": f"{_SEEDS}:talks",
    "manual": f"{_SEEDS}:manual",
    "files": f"{_SEEDS}:files",
    "dataset": f"{_SEEDS}:dataset",
}

# Those that need nothing but the text can be added to any recipe by name.
VERIFIERS: dict[str, str] = {
    "equations": f"{_VERIFIERS}.equations:Equations",
    "written": f"{_VERIFIERS}.faithful:Written",
}


def load(target: str) -> Any:
    """Import `MODULE:NAME`."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def find(name: str, known: Mapping[str, Any], where: str) -> Any:
    """Return an entry of a registry.

    Raises:
        UserError: there is none of this name.
    """
    if name not in known:
        what = f"there is no '{name}'" if name else "is not given"
        raise UserError(what, where=where, fix=f"choose one of: {', '.join(known)}")
    return known[name]


def build_recipe(name: str, options: Mapping[str, Any], context: Context) -> Recipe:
    """Build a recipe with its options.

    Raises:
        UserError: an unknown recipe or option, or a value of the wrong type.
    """
    entry: RecipeEntry = find(name, RECIPES, "data.recipe")
    return cast(Recipe, load(entry.recipe)(read_options(load(entry.options), options), context))


def build_verifiers(names: list[str]) -> list[Verifier]:
    """Build the verifiers that a recipe file adds."""
    return [load(find(name, VERIFIERS, "data.verifiers"))() for name in names]


def read_options(schema: type, values: Mapping[str, Any]) -> Any:
    """Return a recipe's options as its dataclass.

    Raises:
        UserError: an unknown key or a wrong type.
    """
    known = [field.name for field in dataclasses.fields(schema)]
    if unknown := sorted(set(values) - set(known)):
        raise UserError(
            f"there is no key '{unknown[0]}'",
            where="data.options",
            fix=f"this recipe has: {', '.join(known) or 'none'}",
        )
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), dict(values)))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", "") or ""
        raise UserError(
            str(error).splitlines()[0], where=f"data.options.{key}".rstrip("."), fix="see --help for its type"
        ) from None
