"""The results of a run as tables for people."""

from collections.abc import Iterator, Sequence
from typing import Any

from covpool.machine import summary_line

MEBIBYTE = 1 << 20
Row = Sequence[str]


def tables(measured: dict[str, Any]) -> Iterator[tuple[str, Row, Sequence[Row]]]:
    """The tables of one shape, each as title, header and rows."""
    shape = measured["shape"]
    cases = measured["cases"]
    conditions = [entry["condition"] for entry in _first_accuracy(cases)]
    header = ["case", "ms", "quartiles", "peak MiB"]
    header += [f"error at cond {condition:.0e}" for condition in conditions]
    yield f"{shape}: forward + backward", header, [_case(row, conditions) for row in cases]
    if measured["pairs"]:
        rows = [
            [pair["method"], pair["peer"], ratio(pair["time"]), ratio(pair["memory"])]
            for pair in measured["pairs"]
        ]
        yield f"{shape}: peer over ours", ["ours", "peer", "time", "memory"], rows
    if floors := measured["floor"]:
        header = ["ours"] + [
            f"{_milliseconds(floor['median'])} ms: {floor['solver']}, products in {dtype}"
            for dtype, floor in floors.items()
        ]
        names = dict.fromkeys(name for floor in floors.values() for name in floor["ratios"])
        rows = [
            [name, *(ratio(floor["ratios"][name]) for floor in floors.values())] for name in names
        ]
        title = f"{shape}: ours over the floor, the decomposition and matrix products alone"
        yield title, header, rows


def preamble(results: dict[str, Any]) -> str:
    """What the figures were measured on, and what they are."""
    settings = results["settings"]
    spectrum = (
        f"geometric singular values, cond(X) {settings['condition']:.0e}"
        if settings["spectrum"] == "geometric"
        else "normally distributed entries"
    )
    return (
        f"{summary_line(results['environment'])}\n"
        f"{settings['dtype']} features, {spectrum}; forward + backward, alternating; median and "
        f"quartiles of {settings['rounds']} rounds. Errors are those of the root / of the gradient "
        "of the features, against the exact root's in float64, the worst sample's."
    )


def failures(measured: dict[str, Any]) -> list[str]:
    """A line for whatever could not be measured at a shape."""
    lines = []
    for row in measured["cases"]:
        if row["error"]:
            lines.append(f"{row['name']} failed: {row['error']}")
        if row["memory_error"]:
            lines.append(f"{row['name']}: peak memory not measured: {row['memory_error']}")
        lines += [
            f"{row['name']}: errors at cond {entry['condition']:.0e} not measured: {entry['error']}"
            for entry in row["accuracy"]
            if "error" in entry
        ]
    return lines


def peer_notes(measured: dict[str, Any]) -> list[str]:
    """What differs between the peers' rows, a line for each such note."""
    names: dict[str, list[str]] = {}
    for row in measured["cases"]:
        if row["kind"] == "peer" and row["note"]:
            names.setdefault(row["note"], []).append(row["name"])
    return [f"{', '.join(found)}: {note}" for note, found in names.items()]


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _case(row: dict[str, Any], conditions: Sequence[float]) -> Row:
    if row["error"]:
        return [row["name"], "failed", *["-"] * (2 + len(conditions))]
    low, high = row["lower_quartile"], row["upper_quartile"]
    between = "-" if low is None else f"{_milliseconds(low)} to {_milliseconds(high)}"
    memory = "-" if row["memory"] is None else f"{row['memory'] / MEBIBYTE:.1f}"
    errors = {entry["condition"]: entry for entry in row["accuracy"]}
    return [
        row["name"],
        "-" if row["median"] is None else _milliseconds(row["median"]),
        between,
        memory,
        *(_errors(errors.get(condition)) for condition in conditions),
    ]


def _errors(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    if "error" in entry:
        return "failed"
    parts = (entry["forward"], entry["gradient"])
    return " / ".join(part if isinstance(part, str) else f"{part:.1e}" for part in parts)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.4g}"


def _first_accuracy(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return next((row["accuracy"] for row in cases if row["accuracy"]), [])
