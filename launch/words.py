"""The words after a sub-verb: flags, KEY=VALUE settings and the rest."""

from collections.abc import Sequence

from isthmus.errors import UserError


class Words:
    """Sorts the words of a command line.

    Args:
        flags: options without a value; `--help` is always one.
        options: options with a value, as in `--sample 5` or `--sample=5`.

    Raises:
        UserError: an unknown option, or one that lacks its value.
    """

    def __init__(
        self, argv: Sequence[str], *, verb: str, flags: Sequence[str] = (), options: Sequence[str] = ()
    ) -> None:
        self.help = False
        self.rest: list[str] = []
        self._flags: set[str] = set()
        self._values: dict[str, str] = {}
        words = iter(argv)
        for word in words:
            name, equals, value = word.partition("=")
            if word in ("-h", "--help"):
                self.help = True
            elif word in flags:
                self._flags.add(word)
            elif name in options:
                found = value if equals else next(words, "")
                if not found:
                    raise UserError("needs a value", where=name, fix=f"`isthmus {verb} --help` shows how")
                self._values[name] = found
            elif word.startswith("-"):
                raise UserError("is no option", where=word, fix=f"`isthmus {verb} --help` lists them")
            else:
                self.rest.append(word)

    def flag(self, name: str) -> bool:
        return name in self._flags

    def value(self, name: str) -> str | None:
        return self._values.get(name)

    def number(self, name: str, default: int) -> int:
        """Return an option's value as a number of 0 or more.

        Raises:
            UserError: it is none.
        """
        value = self._values.get(name)
        if value is None:
            return default
        if not value.isdigit():
            raise UserError(f"is '{value}'", where=name, fix="give a number")
        return int(value)

    def settings(self, known: Sequence[str]) -> dict[str, str]:
        """Take the KEY=VALUE words out of the rest.

        Raises:
            UserError: a key that is not known.
        """
        found = {}
        for word in [word for word in self.rest if "=" in word]:
            key, _, value = word.partition("=")
            if key not in known:
                raise UserError(f"there is no key '{key}'", where="override", fix=f"the keys are: {', '.join(known)}")
            found[key] = value
            self.rest.remove(word)
        return found
