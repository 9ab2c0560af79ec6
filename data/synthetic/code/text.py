"""Code out of what a model has written."""

import re

_BLOCK = re.compile(r"^```[ \t]*[\w+-]*[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
_OPEN_BLOCK = re.compile(r"^```[ \t]*[\w+-]*[ \t]*\n(.*)\Z", re.DOTALL | re.MULTILINE)


def code_of(text: str) -> str:
    """Return the first fenced block; what follows the opening fence where it is never closed; else all of the text."""
    found = _BLOCK.search(text) or _OPEN_BLOCK.search(text)
    code = found[1] if found else text
    return code.strip("\n").rstrip() + "\n" if code.strip() else ""


def fenced(code: str, language: str) -> str:
    return f"```{language}\n{code.rstrip()}\n```"
