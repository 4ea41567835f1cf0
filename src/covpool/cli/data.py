"""`covpool data check`."""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from covpool.cli import UserError, say
from covpool.cli.console import PlainConsole
from covpool.cli.output import refuse_file, require_ending
from covpool.cli.parsing import FileProgress, one_line, users_input
from covpool.data import DataConfig, DataError
from covpool.data.config import collecting_faults
from covpool.data.contact_sheet import draw_contact_sheet
from covpool.data.inspection import Facts, Report, inspect_images, labelled_sources
from covpool.data.layouts import LAYOUTS, check_name, read_layout
from covpool.data.listing import Listing, check_listed_once
from covpool.text import printable, quantity

SHOWN = 20
"""How many classes, files and duplicates the report lists at most; --json has all."""


def run(given: argparse.Namespace) -> int:
    """Report on a data set; exit status 1 where something is wrong with it."""
    with users_input():
        if given.path is not None and given.root is not None:
            raise ValueError(f"{given.path} and --data.root {given.root} exclude each other")
        given.root = given.root or given.path
        check_name(given.name)
        if given.root is not None and not Path(os.path.expanduser(given.root)).exists():
            raise UserError(f"{given.root} does not exist; give the folder or archive of images")
        for option, file in (("--json", given.json), ("--contact-sheet", given.contact_sheet)):
            refuse_file(option, file)
        require_ending("--contact-sheet", given.contact_sheet, (".png",))
        config = DataConfig(name=given.name, root=given.root)
    with collecting_faults() as faults:
        try:
            with _progress("opening") as progress:
                layout, contents = read_layout(config, progress)
        except (DataError, OSError) as error:
            # A file that is not there has been named where it was looked for.
            missing = FileNotFoundError in (type(error), type(error.__cause__))
            return _tell(faults if faults and missing else [*faults, error])
        if isinstance(contents, Listing):
            check_listed_once(contents)
    if faults and not any(labels for _, _, labels in labelled_sources(contents)):
        return _tell(faults)
    with _progress("reading images") as progress:
        report = inspect_images(layout, contents, progress, faults=[*map(one_line, faults)])
    show(report)
    with users_input():
        if given.json is not None:
            text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False)
            # Bytes of a name that are no UTF-8 become the escapes by which JSON writes them.
            given.json.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        if given.contact_sheet is not None:
            _, source, labels = next(iter(labelled_sources(contents)))
            with _progress("drawing classes") as progress:
                draw_contact_sheet(
                    source, labels, report.classes, given.contact_sheet, progress=progress
                )
    return 1 if report.problems else 0


def _tell(faults: Sequence[Exception]) -> int:
    """The exit status of a data set of which nothing can be looked at."""
    lines = [one_line(each) for each in faults]
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    for line in [*lines[:SHOWN], *more]:
        say(f"covpool: error: {line}", error=True)
    return 1


@contextmanager
def _progress(title: str) -> Iterator[FileProgress]:
    """A bar on standard error, which goes when it is done."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def show(report: Report) -> None:
    """Print the report, long lists cut."""
    console = PlainConsole()
    counts = report.counts()
    console.print(
        f"{LAYOUTS[report.layout].title if report.layout in LAYOUTS else report.layout}"
        f" (data.name {report.layout}): "
        f"{quantity(len(report.classes), 'class', 'classes')}, "
        f"{quantity(len(report.images), 'image')}"
    )
    table = Table("class", *report.splits)
    for name, found in list(counts.items())[:SHOWN]:
        table.add_row(printable(name), *(str(found[split]) for split in report.splits))
    if len(counts) > SHOWN:
        table.add_row(f"… and {len(counts) - SHOWN} more", *("…" for _ in report.splits))
    totals = (sum(found[split] for found in counts.values()) for split in report.splits)
    table.add_section()
    table.add_row("all", *map(str, totals))
    console.print(table)
    for side, values in report.sizes().items():
        console.print(
            f"{side}: {values['least']:g} to {values['greatest']:g} pixels, median "
            f"{values['median']:g}"
        )
    for what, count in report.passed_over.items():
        if count:
            console.print(f"passed over {count} {what}")
    _list(console, "unreadable", [f"{one.name}: {one.error}" for one in report.unreadable])

    def names(group: Sequence[Facts]) -> str:
        return " = ".join(f"{one.name} ({report.classes[one.label]})" for one in group)

    _list(console, "in both splits", list(map(names, report.across_splits)))
    _list(console, "in several classes", list(map(names, report.across_classes)))
    harmless = [
        group
        for group in report.duplicates
        if group not in report.across_splits and group not in report.across_classes
    ]
    _list(console, "several times in one class of one split", list(map(names, harmless)))
    for problem in report.problems[:SHOWN]:
        console.print(f"wrong: {printable(problem)}")
    if len(report.problems) > SHOWN:
        console.print(f"  … and {len(report.problems) - SHOWN} more")
    if not report.problems:
        console.print("nothing wrong was found")


def _list(console: Console, title: str, lines: list[str]) -> None:
    if not lines:
        return
    console.print(f"{title}: {len(lines)}")
    for line in lines[:SHOWN]:
        console.print(f"  {printable(line)}")
    if len(lines) > SHOWN:
        console.print(f"  … and {len(lines) - SHOWN} more")
