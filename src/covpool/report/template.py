"""The pages' templates, in which whatever comes from others is text."""

from pathlib import Path

import jinja2
from markupsafe import Markup

import covpool
from covpool.text import printable_lines

_FOLDER = Path(__file__).parent


def fill(template: str, **values: object) -> str:
    """The page of a template, with the style of all pages and the version beside the values."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((_FOLDER / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(
        version=covpool.__version__, style=style, **values
    )


def _finalize(value: object) -> object:
    """Nothing of the data can break the encoding; markup of ours stays what it is."""
    return printable_lines(value) if type(value) is str else value
