"""What an experiment comes to: tables for people, figures for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

from covpool.analysis.records import plain
from covpool.text import markdown_table, quantity
from covpool.train.run_directory import replace_file, replace_text


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text.

    Attributes:
        columns: the header.
        rows: as many cells each.
        heading: where a sheet has several tables.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    heading: str = ""

    def markdown(self) -> str:
        """As a Markdown table."""
        text = markdown_table(self.columns, self.rows)
        return f"## {self.heading}\n\n{text}" if self.heading else text


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What an experiment came to, or one table or figure of the paper with ours beside it.

    Attributes:
        name: of its files.
        title: what it is of.
        scale: how it was computed, in a sentence.
        paper_scale: whether that is the paper's own way.
        tables: for people.
        data: the same as numbers, the paper's cells included.
        lead: what is to be known before them.
        notes: what is to be known beside the tables.
        problems: runs that are not in the figures, and why.
        figure: drawn, where the target is a figure.
    """

    name: str
    title: str
    scale: str = ""
    paper_scale: bool = False
    tables: Sequence[Table]
    data: Mapping[str, Any]
    lead: Sequence[str] = ()
    notes: Sequence[str] = ()
    problems: Sequence[str] = ()
    figure: Figure | None = field(default=None, repr=False)

    def markdown(self) -> str:
        """The sheet for people."""
        parts = [f"# {self.title}", *filter(None, [self.scale]), *self.lead]
        if self.figure is not None:
            parts.append(f"![{self.title}]({self.name}.svg)")
        parts += [table.markdown() for table in self.tables]
        parts += self.notes
        parts += [f"Not in the means: {problem}" for problem in self.problems]
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path) -> None:
        """Write NAME.md, NAME.json and, of a figure, NAME.svg."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "name": self.name,
            "title": self.title,
            "scale": self.scale,
            "paper_scale": self.paper_scale,
            "tables": [asdict(table) for table in self.tables],
            **self.data,
            "notes": [*self.lead, *self.notes],
            "problems": list(self.problems),
        }
        text = json.dumps(plain(content), indent=2, allow_nan=False, ensure_ascii=False)
        replace_text(folder / f"{self.name}.json", text + "\n")
        replace_text(folder / f"{self.name}.md", self.markdown())
        if self.figure is not None:
            save_svg(self.figure, folder / f"{self.name}.svg")


def notes(name: str, **about: object) -> list[str]:
    """The notes of notes.md.jinja under that name, a paragraph each.

    Args:
        name: of a macro there, a sheet's name mostly.
        about: what that is given.
    """
    environment = templates(Path(__file__).parent)
    macro = getattr(environment.get_template("notes.md.jinja").module, name)
    return [" ".join(text.split()) for text in macro(**about).split("\n\n") if text.strip()]


def templates(folder: Path, **options: Any) -> jinja2.Environment:
    """The templates of a folder, in which an unknown name is a fault; further options are
    jinja2's."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.filters["quantity"] = quantity
    return environment


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, without the date and with the same names on every run."""
    with matplotlib.rc_context({"svg.hashsalt": "covpool", "svg.fonttype": "none"}):
        replace_file(
            path, lambda partial: figure.savefig(partial, format="svg", metadata={"Date": None})
        )
