"""Libraries that only data preparation needs: imported when used, with one clear line where one is missing."""

import importlib
from typing import Any

from isthmus.errors import UserError


def need(module: str, package: str | None = None) -> Any:
    """Import a module of the `prepare` extra (or of `package`).

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        install = f"pip install {package}" if package else "pip install 'isthmus[prepare]'"
        raise UserError(
            f"{module} needs {missing}, which is not installed", where="isthmus data", fix=install
        ) from None
