"""Names that come from others, made safe to show.

Class, file and folder names may hold anything: escape sequences that drive a terminal, line breaks,
characters that turn the direction of writing, and bytes that are no UTF-8. Whatever shows such a
name takes it through `printable` first.
"""

import re
from collections.abc import Iterable

_UNPRINTABLE = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # control characters: line breaks, the beginning of escape sequences
    "\xad\u200b\u2060-\u2065\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # not seen at all
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # the direction of writing
    "\u2028\u2029"  # line and paragraph separators
    "\ud800-\udfff"  # bytes that are no UTF-8, as Python decodes names of files
    "\ufffe\uffff"  # which XML cannot hold
    "]"
)

_MARKDOWN = re.compile(r"[\\`*_~$#\[\]<>&|]")


def printable(text: str) -> str:
    """The text in one line, with an escape such as \\x1b for each character that is not shown as
    itself, as Python's `repr` has them; a byte that is no UTF-8 is shown as \\xff."""
    return _UNPRINTABLE.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """As `printable`, but line breaks and tabs stay: for texts of our own in which names stand."""
    return _UNPRINTABLE.sub(lambda match: match[0] if match[0] in "\n\t" else _escaped(match), text)


def encodable(text: str) -> str:
    """The text itself where UTF-8 can hold it, else as `printable`."""
    return printable(text) if re.search("[\ud800-\udfff]", text) else text


def markdown(text: str) -> str:
    """As `printable`, and shown as it is by Markdown, which takes < for HTML, [ for a link and $
    for a formula."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def markdown_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Rows of text as a Markdown table."""
    header = [*columns]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def shortened(text: str, most: int) -> str:
    """As `printable`, of at most so many characters."""
    shown = printable(text)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def quantity(number: int, noun: str, plural: str = "") -> str:
    """A number with what is counted, as in "1 run" and "2 runs"; the plural is the noun with an s
    where none is given."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def file_name(text: str) -> str:
    """As `printable`, as part of a path: without slashes, short enough for any file system."""
    return printable(text).replace("/", "-").encode()[:200].decode(errors="ignore")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # where os.fsdecode puts the bytes that it cannot decode
        return f"\\x{code - 0xDC00:02x}"
    return repr(match[0])[1:-1]
