"""A Python program in a process that has Python already: forked, it starts in a tenth of the time."""

import builtins
import os
import sys
import types
from collections.abc import Sequence


def run_python(path: str, arguments: Sequence[str]) -> None:
    """Run a file as `python FILE` would, and end this process as that would; never returns."""
    code = 1
    try:
        code = _run(path, arguments)
    finally:
        _flush()
        os._exit(code)


def _run(path: str, arguments: Sequence[str]) -> int:
    for name in [name for name in sys.modules if name.partition(".")[0] == "isthmus"]:
        del sys.modules[name]
    os.environ.clear()
    sys.argv = [path, *arguments]
    sys.path.insert(0, os.path.dirname(path))
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __file__=path, __cached__=None)
    sys.modules["__main__"] = main
    try:
        try:
            with open(path, "rb") as file:
                code = compile(file.read(), path, "exec", dont_inherit=True)
            exec(code, main.__dict__)
        finally:
            _end_threads()
    except SystemExit as error:
        return _exit_code(error)
    except BaseException as error:
        # The frames above the program's own are ours.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        _flush()
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _end_threads() -> None:
    """Wait for threads and call what was registered for the end, as the interpreter does."""
    threading = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()
    atexit = sys.modules.get("atexit")
    if atexit is not None:
        atexit._run_exitfuncs()


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    _flush()
    print(error.code, file=sys.stderr)
    return 1


def _flush() -> None:
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except BaseException:
            continue
