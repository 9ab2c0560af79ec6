"""Composition: Hydra groups and overrides in, validated plain dataclasses out.

A schema is a dataclass beside the component that it configures, with `key(default, help)` fields. Nothing below the
entry points sees a DictConfig.
"""

import dataclasses
import difflib
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isthmus.errors import UserError

CONFIG_MODULE = "isthmus.configs"
Schema = TypeVar("Schema")


def key(default: Any, help: str) -> Any:
    """Declare a configuration key: a dataclass field with a default (or a dataclass to build) and one line of help."""
    if isinstance(default, type | dict | list):
        factory = default if isinstance(default, type) else lambda: type(default)(default)
        return dataclasses.field(default_factory=factory, metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def compose(schema: type[Schema], config_name: str, overrides: Sequence[str]) -> Schema:
    """Compose `configs/CONFIG_NAME.yaml` with the overrides and return it as an instance of `schema`.

    A group's value that ends in `.yaml` is the user's own file (`data=my/mix.yaml`); other overrides still win over it.

    Raises:
        UserError: an unknown key or group choice, a wrong type, a missing or malformed file.
    """
    ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)
    with tempfile.TemporaryDirectory(prefix="isthmus-config-") as folder:
        rewritten, staged = _stage_user_files(overrides, Path(folder))
        if rewritten != list(overrides):
            rewritten.append(f"hydra.searchpath=[file://{folder}]")
        GlobalHydra.instance().clear()
        try:
            with initialize_config_module(config_module=CONFIG_MODULE, version_base="1.3"):
                composed = hydra_compose(config_name=config_name, overrides=rewritten)
                return _to_schema(schema, composed)
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            raise _explain(error, schema, staged) from None
        finally:
            GlobalHydra.instance().clear()


def load_resolved(schema: type[Schema], path: Path) -> Schema:
    """Read a file that holds what `to_yaml` returned, as a launcher hands it to its ranks.

    Raises:
        UserError: the file is missing, malformed or does not fit the schema.
    """
    try:
        loaded = OmegaConf.load(path)
        values = _to_schema(schema, cast(DictConfig, OmegaConf.merge(OmegaConf.structured(schema), loaded)))
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path), fix="check --config") from None
    except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, TypeError) as error:
        key_name = str(getattr(error, "full_key", "") or "")
        what = f"{key_name}: {_first_line(error)}" if key_name else _first_line(error)
        raise UserError(what, where=str(path), fix="give a resolved configuration") from None
    if absent := {field.name for field in dataclasses.fields(cast(Any, schema))} - set(loaded):
        raise UserError(f"lacks {', '.join(sorted(absent))}", where=str(path), fix="give a resolved configuration")
    return values


def replaced(schema: type[Schema], config: Schema, values: dict[str, Any], where: str) -> Schema:
    """Return the configuration with other values for some dotted keys, checked as overrides are.

    Raises:
        UserError: an unknown key or a wrong type; `where` is put before the key.
    """
    merged = OmegaConf.merge(OmegaConf.structured(schema), to_plain(config))
    for name, value in values.items():
        try:
            OmegaConf.update(merged, name, value, force_add=False)
            composed = _to_schema(schema, cast(DictConfig, merged))
        except (OmegaConfBaseException, ValueError, TypeError, AttributeError) as error:
            fix = "`isthmus train --help` lists keys and types"
            raise UserError(_first_line(error), where=f"{where}.{name}", fix=fix) from None
    return composed if values else config


def to_plain(config: Any) -> dict[str, Any]:
    """Return a configuration dataclass as nested plain values (enums as their names), fit for YAML and JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(entry) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [plain(entry) for entry in value]
        return value.name if isinstance(value, Enum) else value

    return cast(dict[str, Any], plain(dataclasses.asdict(config)))


def to_yaml(config: Any) -> str:
    """Return the configuration as YAML that `load_resolved` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))


def fingerprint(config: Any, *, without: Sequence[str] = ()) -> str:
    """Return 8 hex digits that depend on the composed values only (never on time, paths of this code or key order).

    `without` names what is left out: whole sections, or dotted keys.
    """
    plain = to_plain(config)
    for name in without:
        section, _, entry = name.partition(".")
        if entry:
            plain[section].pop(entry)
        else:
            plain.pop(section)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


def flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted keys."""
    found: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def from_flat(schema: type[Schema], values: dict[str, Any], where: str) -> Schema:
    """Return the configuration of which `flat(to_plain(...))` is `values`.

    Raises:
        UserError: a key or value that this version does not know.
    """
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        section = nested
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    try:
        return _to_schema(schema, cast(DictConfig, OmegaConf.merge(OmegaConf.structured(schema), nested)))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(_first_line(error), where=where, fix="it is of another version of isthmus") from None


def keys_of(schema: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (dotted key, default, help) for every leaf of the schema, in order of declaration."""
    for field in dataclasses.fields(schema):
        name = f"{prefix}{field.name}"
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
            if dataclasses.is_dataclass(value):
                yield from keys_of(type(value), f"{name}.")
                continue
        else:
            value = field.default
        shown = value.name if isinstance(value, Enum) else "null" if value is None else str(value)
        yield name, shown, field.metadata.get("help", "")


def groups(config_name: str | None = None) -> dict[str, list[str]]:
    """Return the choices of each group that ships with isthmus; with a root's name, of the groups that it has."""
    root = resources.files(CONFIG_MODULE)
    chosen = None
    if config_name is not None:
        defaults = yaml.safe_load((root / f"{config_name}.yaml").read_text())["defaults"]
        chosen = {name for entry in defaults if isinstance(entry, dict) for name in entry}
    found = {}
    for folder in sorted(root.iterdir(), key=lambda entry: entry.name):
        if folder.is_dir() and not folder.name.startswith("_") and (chosen is None or folder.name in chosen):
            names = [entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")]
            found[folder.name] = sorted(names)
    return found


def _stage_user_files(overrides: Sequence[str], folder: Path) -> tuple[list[str], dict[str, Path]]:
    """Copy each `GROUP=PATH.yaml` where Hydra will find it as a choice; return the overrides and what was staged."""
    rewritten = []
    staged: dict[str, Path] = {}
    choices = groups()
    for override in overrides:
        if override.lstrip("+~").startswith("hydra"):
            raise UserError("would do nothing", where=override, fix="isthmus uses Hydra to compose, not to run")
        match = re.fullmatch(r"([a-z_]+)=(.+\.ya?ml)", override)
        if match and match[1] in choices:
            group, path = match[1], Path(match[2]).expanduser()
            if not path.is_file():
                raise UserError(f"there is no file {path}", where=f"{group}=", fix="give the path of a YAML file")
            # Hydra's grammar does not take every file name, so the choice gets one of ours.
            name = f"users_file_{len(staged)}"
            (folder / group).mkdir(exist_ok=True)
            shutil.copyfile(path, folder / group / f"{name}.yaml")
            staged[f"{group}/{name}"] = path
            override = f"{group}={name}"
        rewritten.append(override)
    return rewritten, staged


def _to_schema(schema: type[Schema], composed: DictConfig) -> Schema:
    try:
        values = OmegaConf.to_object(composed)
    except AttributeError as error:  # `+group.unknown=1` gets past OmegaConf's own check
        raise UserError(str(error), where="override", fix="`isthmus train --help` lists the keys") from None
    if not isinstance(values, schema):
        raise UserError("the configuration did not start from its schema", fix="keep the `defaults` list as it is")
    return values


def _explain(error: Exception, schema: type, staged: dict[str, Path]) -> UserError:
    """Turn Hydra's and OmegaConf's messages into one line that names the key and the remedy."""
    text = str(error)
    cause = error.__cause__ or error
    file = next((str(path) for name, path in staged.items() if name in text), "")
    if isinstance(error, yaml.YAMLError):
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        return UserError(getattr(error, "problem", None) or "is not YAML", where=where, fix="write valid YAML")
    if missing := re.search(r"Could not find '([^/']+)/([^']+)'", text):
        choices = ", ".join(groups().get(missing[1], []))
        return UserError(f"there is no '{missing[2]}'", where=f"{missing[1]}=", fix=f"choose one of: {choices}")
    full_key = str(getattr(cause, "full_key", "") or getattr(error, "full_key", "") or "")
    asked = re.search(r"Could not override '([^']+)'", text)
    unknown = re.search(r"Key '([^']+)' (?:is )?not in", text)
    if asked or unknown:
        name = asked[1] if asked else full_key or (unknown[1] if unknown else "")
        known = [*groups(), *(key_name for key_name, _, _ in keys_of(schema))]
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        fix = f"did you mean '{close[0]}'?" if close else "`isthmus train --help` lists the keys"
        return UserError(f"there is no key '{name}'", where=file or "override", fix=fix)
    if file and not full_key and "list" in f"{cause}".lower():
        return UserError("holds a list where keys belong", where=file, fix="write KEY: VALUE lines")
    if "is not a subclass of" in f"{text} {cause}":
        return UserError(
            "an override cannot add an entry", where=full_key, fix="name it in a file, as data=my/mix.yaml"
        )
    if type(error).__name__ == "OverrideParseException":
        problem = _first_line(error).removesuffix(".")
        return UserError(problem, where="override", fix="write KEY=VALUE, quoted for the shell where needed")
    # Of a wrong value inside a group's file, Hydra keeps what OmegaConf said only as the context.
    if isinstance(error.__context__, OmegaConfBaseException) and cause is error:
        cause = error.__context__
        full_key = ": ".join(part for part in (file, str(cause.full_key or "")) if part)
    return UserError(
        _first_line(cause), where=full_key or file or "configuration", fix="`isthmus train --help` lists keys and types"
    )


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
