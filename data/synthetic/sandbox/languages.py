"""The interpreters that the sandbox knows: where they are, what they need, how they check a program's syntax."""

import glob
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from isthmus.errors import UserError

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
_LOADERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-*.so.1")
# Lua's own checker, luac, is another program.
_LUA_CHECK = "local f, e = loadfile(arg[0]) if not f then io.stderr:write(e) end os.exit(f and 0 or 1)"


@dataclass(frozen=True)
class Language:
    """A language.

    Args:
        suffix: of its files.
        commands: its interpreter's names, the best first.
        check: options that make the interpreter parse a program without running it (some run parts of it all the same).
        shared: folders with its own libraries outside the system's.
        reserved_bytes: of address space that its interpreter sets aside without using it.
    """

    name: str
    suffix: str
    commands: tuple[str, ...]
    check: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    reserved_bytes: int = 0


LANGUAGES = {
    language.name: language
    for language in (
        Language("python", ".py", ("python3",)),
        Language("perl", ".pl", ("perl",), ("-c",), ("/usr/share/perl", "/usr/share/perl5")),
        # V8 reserves room for its code and heaps, and grows into it.
        Language("javascript", ".js", ("node", "nodejs"), ("--check",), ("/usr/share/nodejs",), 16 << 30),
        Language("php", ".php", ("php",), ("-l",), ("/usr/share/php", "/usr/share/zoneinfo"), 1 << 30),
        Language("lua", ".lua", ("lua5.4", "lua5.3", "lua", "luajit"), ("-e", _LUA_CHECK), ("/usr/share/lua",)),
    )
}


@dataclass(frozen=True)
class Interpreter:
    """A language's interpreter on this machine, by its real path; `reads` is what it must be able to see."""

    language: Language
    command: str
    reads: tuple[str, ...]
    starts: tuple[str, ...]


def present() -> list[str]:
    """Return the languages whose interpreter is on this machine, Python first."""
    return [name for name, language in LANGUAGES.items() if _command(language) is not None]


def find(name: str) -> Interpreter:
    """Return a language's interpreter.

    Raises:
        UserError: the language is unknown, or its interpreter is not on this machine.
    """
    if name not in LANGUAGES:
        raise UserError(f"'{name}' is unknown", where="language", fix=f"choose one of: {', '.join(LANGUAGES)}")
    language = LANGUAGES[name]
    command = _command(language)
    if command is None:
        raise UserError(
            f"no {' or '.join(language.commands)} on this machine",
            where=f"language {name}",
            fix=f"install it, or choose one of: {', '.join(present())}",
        )
    reads = [path for path in (*_LIBRARIES, *language.shared, command) if os.path.exists(path)]
    if name == "python":
        # The sandbox is Python itself and forks: nothing has to be started, modules are all that is read.
        reads += {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib")}
        reads.remove(command)
    elif not command.startswith(("/usr/", "/bin/")):
        reads.append(str(Path(command).parents[1] / "lib"))
    loaders = [path for pattern in _LOADERS for path in glob.glob(pattern)]
    return Interpreter(language, command, tuple(path for path in reads if os.path.exists(path)), (command, *loaders))


def _command(language: Language) -> str | None:
    if language.name == "python":
        return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    found = next((path for name in language.commands if (path := shutil.which(name))), None)
    return os.path.realpath(found) if found else None
