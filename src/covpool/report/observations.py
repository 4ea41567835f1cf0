"""The paper's observations as `covpool reproduce` has judged them, read from what it wrote."""

import json
from collections.abc import Iterable
from pathlib import Path

from covpool.report.sources import reading
from covpool.report.tables import PageTable

FILE = "observations.json"


def find_observations(paths: Iterable[Path]) -> list[PageTable]:
    """A table for each recipe of the folders named that `covpool reproduce` wrote.

    Raises:
        ValueError: a file that is not what it writes.
    """
    return [each for path in paths if (path / FILE).is_file() for each in _read(path / FILE)]


def _read(file: Path) -> list[PageTable]:
    again = (
        "what covpool reproduce writes (the same covpool reproduce again writes it anew, without "
        "training what has finished)"
    )
    with reading(file, again):
        content = json.loads(file.read_text(encoding="utf-8"))
        several = len(content["settings"]) > 1
        return [
            PageTable(
                heading=f"The paper’s five observations{f' ({recipe})' if several else ''}",
                lead=str(content["scale"]),
                kind="observations",
                columns=("observation of the paper", "here", "from"),
                rows=[
                    (
                        f"({each['number']}) {each['statement']}",
                        str(each["verdict"]),
                        "; ".join(c["described"] for c in each["claims"] if c["decides"]),
                    )
                    for each in found
                ],
                about={"notes": [str(note) for note in content["notes"]]},
            )
            for recipe, found in content["settings"].items()
        ]
