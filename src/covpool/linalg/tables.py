"""Tables of named rows, and what is said of a name that they do not have."""

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

Row = TypeVar("Row")


class _Rows(dict[str, Row]):
    """Rows by name, of which a missing one is told as by `unknown`."""

    kind: str

    def __missing__(self, name: object) -> Row:
        raise KeyError(unknown(self.kind, name, self))


def table(rows: Mapping[str, Row], *, kind: str) -> Mapping[str, Row]:
    """The rows by name, read-only; looking up a name that is not there names the nearest one.

    Args:
        rows: by name.
        kind: what a row is called in messages.
    """
    own = _Rows(rows)
    own.kind = kind
    return MappingProxyType(own)


def choose(kind: str, name: object, rows: Mapping[str, Any]) -> Any:
    """The row of that name; a ValueError that names the choices and the nearest one."""
    if isinstance(name, str) and name in rows:
        return rows[name]
    raise ValueError(unknown(kind, name, rows))


def unknown(kind: str, name: object, rows: Mapping[str, Any]) -> str:
    """The message for a name that is not among the rows: their names, and the nearest one."""
    near = difflib.get_close_matches(str(name), rows, n=1)
    near = near or [row for row in rows if name and str(name) in row]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}; choose from {', '.join(rows)}{hint}"
