"""The console on which commands show tables and longer texts."""

from typing import Any

from rich.console import Console
from rich.text import Text
from typing_extensions import override

from covpool.text import printable_lines


class PlainConsole(Console):
    """A console on which text is text, whatever it holds.

    Rich takes brackets for markup and words between colons for emoji, and lets escape sequences
    through; the names of classes and files may hold all of these.
    """

    def __init__(self, *, soft_wrap: bool = True) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap)

    @override
    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable_lines(text), **options)
