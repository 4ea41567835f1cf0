"""The rows that probes write along a training, read without Lightning."""

import json
from collections.abc import Iterable
from pathlib import Path

from covpool.train.run_directory import Row

ANALYSIS = "analysis.jsonl"
"""The file of the rows in the run directory."""


def read_analysis(directory: Path) -> list[Row]:
    """The rows that probes have written, in the order of writing; none where there is no file.

    Raises:
        ValueError: as `read_json_lines`.
    """
    return read_json_lines(directory / ANALYSIS)


def measurements(rows: Iterable[Row], probe: str) -> list[Row]:
    """Those of a probe, but for measurements that failed."""
    return [row for row in rows if row.get("probe") == probe and "error" not in row]


def read_json_lines(file: Path) -> list[Row]:
    """A record for each line; none where there is no file.

    A last line that a crash has cut short is left out.

    Raises:
        ValueError: another line that cannot be read, or is no record.
    """
    if not file.is_file():
        return []
    rows = []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{file}: line {number} cannot be read: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{file}: line {number} is no record: {line[:60]!r}")
        rows.append(row)
    return rows
