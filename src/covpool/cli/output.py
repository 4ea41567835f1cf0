"""Files that commands write where the user says."""

import os
from collections.abc import Collection
from pathlib import Path

from covpool.cli import UserError

PAGE = (".html", ".htm")
"""What the name of a web page ends in."""


def refuse_file(option: str, path: Path | None, *, otherwise: str = "", make: bool = False) -> None:
    """Refuse to write a file over another one, or where it cannot be.

    Args:
        option: what named it.
        path: None where the option was not given.
        otherwise: what else can be done where it exists, as in "go on with it by --resume, or ".
        make: whether the folder is made where it is not there.

    Raises:
        UserError: the path is taken, or its folder is not there.
    """
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder; name a file in it")
    if os.path.lexists(path):
        raise UserError(f"{option} {path} exists; {otherwise}remove it, or choose another name")
    if not make and not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.parent}; make it first")


def require_ending(option: str, path: Path | None, endings: Collection[str]) -> None:
    """Raise a UserError where a file's name does not end in one of these, which say its form."""
    if path is not None and path.suffix not in endings:
        raise UserError(f"{option} {path} must end in {' or '.join(endings)}, which says its form")
