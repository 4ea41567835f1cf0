"""The sheets of experiments, as `covpool reproduce`, `study` and `probe` wrote them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from covpool.report.sources import reading
from covpool.report.tables import PageTable

OBSERVATIONS = "observations"
"""The sheet whose verdicts stand in the page's first lines."""


@dataclass(frozen=True, kw_only=True)
class PageSheet:
    """A section of the page that is a sheet.

    Attributes:
        title: its heading.
        scale: how it was computed.
        tables: for people.
        notes: what is to be known beside them, in Markdown.
        verdicts: of the paper's observations, a list for each recipe; of another sheet none.
    """

    title: str
    scale: str
    tables: Sequence[PageTable]
    notes: Sequence[str]
    verdicts: Sequence[Sequence[str]] = ()


def find_sheets(paths: Iterable[Path]) -> list[PageSheet]:
    """The sheets in the folders named, the observations first.

    What holds no tables is none, and neither is a comparison's, as the page has its figures itself.

    Raises:
        ValueError: a file that is not what `covpool reproduce` or `study` writes.
    """
    files = [file for path in paths for file in sorted(path.glob("*.json"))]
    files.sort(key=lambda file: file.stem != OBSERVATIONS)
    return [sheet for file in files if (sheet := _read(file)) is not None]


def _read(file: Path) -> PageSheet | None:
    again = "what a covpool command wrote (the same command again writes it anew, without training)"
    with reading(file, again):
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "tables" not in content:
            return None
        if content["name"] == "comparison":
            return None
        tables = [
            PageTable(
                heading=str(table["heading"]),
                kind=OBSERVATIONS if content["name"] == OBSERVATIONS else "text",
                columns=[*map(str, table["columns"])],
                rows=[[*map(str, row)] for row in table["rows"]],
            )
            for table in content["tables"]
        ]
        judged = [each for each in tables if each.kind == OBSERVATIONS and len(each.columns) == 3]
        return PageSheet(
            title=str(content["title"]),
            scale=str(content["scale"]),
            tables=tables,
            notes=[*map(str, content["notes"])],
            verdicts=[[row[1] for row in table.rows] for table in judged],
        )
