"""The pages' templates, in which whatever comes from others is text."""

from functools import partial
from pathlib import Path

from markupsafe import Markup

import covpool
from covpool.experiments.sheet import templates
from covpool.report.numbers import names, number, power_of_ten
from covpool.text import printable_lines, shortened

_FOLDER = Path(__file__).parent

NAME_LENGTH = 60
"""As much of a class's or a file's name is shown."""

FILTERS = {
    "listed": names,
    "number": number,
    "power_of_ten": power_of_ten,
    "name": partial(shortened, most=NAME_LENGTH),
}
"""How the templates write names and figures."""


def fill(template: str, **values: object) -> str:
    """The page of a template, with the style of all pages and the version beside the values."""
    environment = templates(_FOLDER, autoescape=True, finalize=_finalize)
    environment.filters |= FILTERS
    style = Markup((_FOLDER / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(
        version=covpool.__version__, style=style, **values
    )


def _finalize(value: object) -> object:
    """Nothing of the data can break the encoding; markup of ours stays what it is."""
    return printable_lines(value) if type(value) is str else value
