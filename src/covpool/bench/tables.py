"""Rows of records: ratios between them, and tables of them for people."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Columns = Mapping[str, Callable[[Row], str]]
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""Title, header and rows."""


def ratio(value: float | None, base: float | None, least: float = 0) -> float | None:
    """Their quotient; None where one is missing, or the base too small to be told from nothing."""
    return None if value is None or base is None or base <= least else value / base


def compare(
    rows: Iterable[dict[str, Any]], base: Row, name: str, figure: str = "median", least: float = 0
) -> None:
    """Give each row, by that name, the ratio of its figure to the base's."""
    for row in rows:
        row[name] = ratio(row[figure], base[figure], least)


def finite(value: float) -> float | str:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else "not finite"


def table(title: str, columns: Columns, rows: Iterable[Row]) -> Table:
    """A column for each function, and a line for each row; "failed" stands once in a line."""
    shown = []
    for row in rows:
        cells = [show(row) for show in columns.values()]
        if row.get("error"):
            cells[1:] = ["failed", *["-"] * (len(cells) - 2)]
        shown.append(cells)
    return title, list(columns), shown


def pivot(
    title: str, down: str, across: str, show: Callable[[Row], str], rows: Iterable[Row]
) -> Table:
    """A line for each value of the fact `down`, a column for each of `across`; "-" for no row."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        shown = "failed" if row.get("error") else show(row)
        cells.setdefault(row[down], {})[row[across]] = shown
    columns = list(dict.fromkeys(name for line in cells.values() for name in line))
    lines = [[name, *(line.get(name, "-") for name in columns)] for name, line in cells.items()]
    return title, [down, *columns], lines


def column(name: str, form: str = "{}", scale: float = 1) -> Callable[[Row], str]:
    """What shows that figure of a row, times the scale, or its word; "-" where it is missing."""

    def show(row: Row) -> str:
        value = row.get(name)
        if isinstance(value, str):
            return value
        return "-" if value is None else form.format(value if scale == 1 else scale * value)

    return show


def quartiles(row: Row) -> str:
    low, high = row.get("lower_quartile"), row.get("upper_quartile")
    return "-" if low is None or high is None else f"{1e3 * low:.4g} to {1e3 * high:.4g}"


NAME = column("name")
TIMES: Columns = {"ms": column("median", "{:.4g}", 1e3), "quartiles": quartiles}
MEMORY: Columns = {"peak MiB": column("memory", "{:.1f}", 1 / (1 << 20))}
RATIO = "{:.3g}"


def peer_notes(record: Row) -> list[str]:
    """What differs between the peers' rows, a line for each such note."""
    names: dict[str, dict[str, None]] = {}
    for row in record.get("cases", ()):
        if row["kind"] == "peer" and row.get("note"):
            names.setdefault(row["note"], {})[row.get("case", row["name"])] = None
    return [f"{', '.join(found)}: {note}" for note, found in names.items()]


def failures(record: Row) -> Iterator[str]:
    """A line for whatever could not be measured at a shape; one where a case fails alike often."""
    failed: dict[tuple[str, str], list[Row]] = {}
    for row in record.get("cases", ()):
        if row["error"]:
            kind = row["error"].partition(":")[0]
            failed.setdefault((row.get("case", row["name"]), kind), []).append(row)
    for rows in failed.values():
        yield f"{'; '.join(row['name'] for row in rows)} failed: {rows[0]['error']}"
    for row in record.get("cases", ()):
        if row.get("memory_error"):
            yield f"{row['name']}: peak memory not measured: {row['memory_error']}"
        for entry in row.get("accuracy", ()):
            if "error" in entry:
                at = f"errors at cond {entry['condition']:.0e}"
                yield f"{row['name']}: {at} not measured: {entry['error']}"
