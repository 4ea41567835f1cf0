"""Annotation files as data sets are published with: numbered lines of text, and MATLAB files."""

from pathlib import Path, PurePath
from typing import Any

import numpy as np

from covpool.data.config import DataError, fault
from covpool.data.reading import open_file


def find(root: Path, what: str, *names: str) -> Path:
    """The first of the files or folders that is there.

    Raises:
        DataError: none is; the message says what was looked for. Where faults are collected, the
            first name is returned, which cannot be read.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    fault(f"{root} lacks {' or '.join(names)}, {what}; restore it from the published archive")
    return root / names[0]


def inside(folder: Path, name: str) -> Path:
    """The file of that name in the folder.

    Raises:
        DataError: the name leads out of the folder.
    """
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(
            f"{name!r} is named as a file in {folder}, out of which it leads; restore what names "
            "it as it was published"
        )
    return folder / path


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that hold something.

    Raises:
        DataError: a file that cannot be read, or is empty. Where faults are collected, it has no
            lines, as all readers here leave out what they tell of.
    """
    try:
        with open_file(path) as file:
            text = file.read().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        fault(
            f"cannot read annotation file {path}: {reason}; restore it from the published archive",
            error,
        )
        return []
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        fault(f"annotation file {path} is empty; restore it from the published archive")
    return lines


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """The lines of a text file of two columns; the second may hold spaces.

    Raises:
        DataError: as `read_lines`; a line of one column.
    """
    pairs = []
    for number, line in enumerate(read_lines(path), 1):
        first, _, second = line.partition(" ")
        if not second:
            fault(
                f"annotation file {path}: line {number} is {line!r}, where two columns are due; "
                "restore it from the published archive"
            )
            continue
        pairs.append((first, second.strip()))
    return pairs


def read_table(path: Path) -> dict[str, str]:
    """`read_pairs` by the first column, which must not repeat itself."""
    pairs = read_pairs(path)
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        fault(f"annotation file {path} has {twice!r} twice; restore it from the published archive")
    return table


def read_mat(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays of a MATLAB file, each with as many entries as it has, in one dimension.

    Raises:
        DataError: a file that cannot be read, or lacks an array.
    """
    from scipy.io import loadmat

    try:
        with open_file(path) as file:
            content = loadmat(file)
    # scipy raises what it likes on damaged files: ValueError, TypeError, zlib.error, MemoryError
    # where they claim more than there is, …
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        fault(
            f"cannot read MATLAB file {path}: {reason}; restore it from the published archive",
            error,
        )
        return [np.empty(0) for _ in names]
    for name in names:
        if name not in content:
            held = ", ".join(key for key in content if not key.startswith("__")) or "nothing"
            fault(
                f"MATLAB file {path} lacks {name!r}; it holds {held}: is it another file of the "
                "data set?"
            )
    return [np.asarray(content.get(name, ())).ravel() for name in names]


def field(path: Path, structs: np.ndarray, name: str) -> list[Any]:
    """A field of each struct of a MATLAB array: text or a number.

    Raises:
        DataError: no such field, or an empty one.
    """
    if name not in (structs.dtype.names or ()):
        held = ", ".join(structs.dtype.names or ()) or "none"
        if structs.size:
            fault(f"MATLAB file {path}: its structs lack the field {name!r}; they have {held}")
        return []
    return entries(path, structs[name])


def entries(path: Path, cells: np.ndarray) -> list[Any]:
    """The content of each cell of a MATLAB array: text or a number.

    Raises:
        DataError: an empty cell, which is None where faults are collected.
    """
    values = []
    for number, cell in enumerate(cells, 1):
        while isinstance(cell, np.ndarray):  # MATLAB's numbers and texts are 1×1 arrays
            if cell.size == 0:
                fault(
                    f"MATLAB file {path}: entry {number} is empty; restore it from the published "
                    "archive"
                )
                cell = None
                break
            cell = cell.ravel()[0]
        values.append(cell.item() if isinstance(cell, np.generic) else cell)
    return values


def to_labels(path: Path, numbers: list[Any], classes: int) -> list[int]:
    """Class numbers that count from 1 as labels, which count from 0.

    Numbers may be of any kind: MATLAB's come as uint8, in which 0 - 1 would be 255.

    Raises:
        DataError: one that is no whole number, or outside the classes; −1 where faults are
            collected.
    """
    labels = []
    for position, number in enumerate(numbers, 1):
        if number is None:  # which has been told
            labels.append(-1)
            continue
        try:
            label = int(number) - 1
        except (TypeError, ValueError):
            label = -1
        if not 0 <= label < classes or float(number) != label + 1:
            fault(
                f"{path}: entry {position} has the class number {number!r}; 1 to {classes} are due"
            )
            label = -1
        labels.append(label)
    return labels
