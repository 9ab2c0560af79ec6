"""The words of `isthmus train`: a few options, and Hydra overrides."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from isthmus.config import groups, keys_of
from isthmus.errors import UserError
from isthmus.train.config import Config

_USAGE = """\
isthmus train [OPTION] [GROUP=CHOICE] [KEY=VALUE] ...

Pre-train a model. Several ranks: isthmus launch launch.processes=4 [overrides], or under torchrun:
torchrun --nproc-per-node 4 -m isthmus.train [overrides]

Options:
  --config FILE    take a resolved configuration (RUN/config.yaml) instead of overrides
  --print-config   print the composed configuration and end
  --json           print one JSON object on standard output at the end, everything else on standard error
  --help           print this

Groups (a choice may be a YAML file of yours, as in data=my/mix.yaml):
"""


@dataclass
class Command:
    overrides: list[str] = field(default_factory=list)
    config: Path | None = None
    print_config: bool = False
    json: bool = False
    help: bool = False


def parse(argv: Sequence[str]) -> Command:
    """Sort the words of a command line.

    Raises:
        UserError: an unknown option, or --config without a file.
    """
    command = Command()
    words = iter(argv)
    for word in words:
        if word == "--config" or word.startswith("--config="):
            value = word.partition("=")[2] or next(words, "")
            if not value:
                raise UserError("needs a file", where="--config", fix="give the path of a resolved configuration")
            command.config = Path(value)
        elif word in ("-h", "--help"):
            command.help = True
        elif word in ("--json", "--print-config"):
            setattr(command, word[2:].replace("-", "_"), True)
        elif word.startswith("-"):
            raise UserError("is no option", where=word, fix="`isthmus train --help` lists them")
        else:
            command.overrides.append(word)
    return command


def print_help(usage: str = _USAGE, schema: type = Config, config_name: str = "train") -> None:
    """Print options, groups and every key with its default."""
    print(usage, end="")
    for group, choices in groups(config_name).items():
        print(f"  {group:<12} {', '.join(choices)}")
    print("\nKeys (default): meaning")
    for name, default, meaning in keys_of(schema):
        print(f"  {name} ({default}): {meaning}")
