"""How figures and lists of names are written for people."""

import math
from collections.abc import Iterable

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(value: float) -> str:
    """10⁻³ for 0.001; nothing for what is none."""
    if not 0 < value < math.inf:
        return ""
    exponent = math.log10(value)
    if abs(exponent - round(exponent)) > 1e-6:
        return ""
    return f"10{str(round(exponent)).translate(_SUPERSCRIPTS)}"


def number(value: float) -> str:
    """A figure for people: 4.55·10¹⁷, 86.9, ∞."""
    if math.isinf(value):
        return "∞"
    if math.isnan(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e5:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{digits}·10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return f"{value:.3g}"


def names(values: Iterable[str], most: int = 7) -> str:
    """a, b and c; of more than so many, the first and how many others there are."""
    found = list(values)
    if len(found) > most:
        found = [*found[: most - 1], f"{len(found) - most + 1} others"]
    *first, last = found
    return f"{', '.join(first)} and {last}" if first else last
