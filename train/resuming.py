"""Which checkpoint a path means."""

from pathlib import Path

from isthmus.errors import UserError
from isthmus.fault_tolerance.records import parse_folder_name
from isthmus.fault_tolerance.store import Found, Store, inspect


def at_path(path: Path) -> Found:
    """Return the checkpoint at a path: its own folder, or the newest one of a run's or site's folder.

    Raises:
        UserError: there is none that is whole.
    """
    path = path.expanduser()
    if (numbers := parse_folder_name(path.name)) is not None:
        found = [inspect(path, *numbers)] if path.is_dir() else []
    else:
        folders = [path, path / "checkpoints", *sorted(path.glob("*/checkpoints"))]
        found = next((entries for folder in folders if (entries := Store(folder).scan())), [])
    whole = [entry for entry in found if entry.manifest is not None]
    if not whole:
        why = f"is broken: {found[0].broken}" if found else "holds no checkpoint"
        raise UserError(f"{path} {why}", where="checkpoint", fix="`isthmus checkpoint list RUN` shows what there is")
    return whole[0]
