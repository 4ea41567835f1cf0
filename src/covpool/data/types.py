"""Whether plain values are of the types that a dataclass or a TypedDict declares.

For what comes from files: YAML and JSON have types of their own, and a wrong one would otherwise
end in a traceback far from the file.
"""

import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

LARGEST_INTEGER = 2**63 - 1
"""What PyTorch and NumPy can take."""


def check_types(group: str, options: object) -> None:
    """Raise a ValueError that names the first field of a dataclass whose value is of another type.

    Args:
        group: what stands before the field's name.
        options: the dataclass's instance.
    """
    for name, kind in get_type_hints(type(options)).items():
        check_value(f"{group}.{name}", getattr(options, name), kind)


def check_value(name: str, value: object, kind: Any) -> None:
    """Raise a ValueError that says what `name` must be unless the value is of that type."""
    if typing.is_typeddict(kind) and isinstance(value, Mapping):
        for key, inner in get_type_hints(kind).items():
            if key in value or key in kind.__required_keys__:
                check_value(f"{name}.{key}", value.get(key), inner)
    elif get_origin(kind) is dict and isinstance(value, dict):
        for key, inner in value.items():
            check_value(f"a name in {name}", key, str)
            check_value(f"{name}.{key}", inner, get_args(kind)[1])
    elif not fits(value, kind):
        shown = list(value) if isinstance(value, tuple) else value
        raise ValueError(f"{name} must be {describe(kind)}, not {shown!r}")


def fits(value: object, kind: Any) -> bool:
    """Whether a value is of a type: a class, a union, a literal, a list or a tuple of such.

    True is no number, a number is finite, and a list may stand for a tuple.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin in (tuple, list):
        if not isinstance(value, tuple | list):
            return False
        if origin is tuple and parts[-1] is not Ellipsis:
            return len(value) == len(parts) and all(map(fits, value, parts))
        return all(fits(item, parts[0]) for item in value)
    if origin is dict or typing.is_typeddict(kind):
        return isinstance(value, dict)
    return SCALARS[kind][1](value)


def describe(kind: Any) -> str:
    """The type in the words of messages."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, typing.Union):
        *first, last = map(describe, sorted(parts, key=lambda part: part is not types.NoneType))
        return f"{', '.join(first)} or {last}"
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (tuple, list):
        if get_origin(parts[0]) is Literal:
            return f"a list out of {', '.join(map(str, get_args(parts[0])))}"
        number = "" if origin is list or parts[-1] is Ellipsis else f" of {len(parts)}"
        return f"a list{number}, each entry {describe(parts[0])}"
    return SCALARS[kind][0] if kind in SCALARS else "a mapping"


def _is_number(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= LARGEST_INTEGER
    return isinstance(value, float) and math.isfinite(value)


SCALARS: Mapping[Any, tuple[str, Callable[[object], bool]]] = {
    int: ("a whole number", lambda value: isinstance(value, int) and _is_number(value)),
    float: ("a finite number", _is_number),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    str: ("text", lambda value: isinstance(value, str)),
    types.NoneType: ("null", lambda value: value is None),
}
"""Words and check of each type that is no compound of others."""
