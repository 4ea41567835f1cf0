"""Options of a run that are arguments of timm's functions and classes, which define them."""

import difflib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def keywords(
    group: str, options: Mapping[str, Any], owner: Callable[..., Any], *, ours: Collection[str]
) -> dict[str, Any]:
    """Options as keyword arguments; YAML's lists become tuples.

    Args:
        group: what stands before their names, for messages.
        options: by the names of the owner's parameters.
        owner: what takes them.
        ours: its parameters that are not for the user to choose.

    Raises:
        ValueError: an option that the owner does not take.
    """
    known = [name for name in inspect.signature(owner).parameters if name not in ours]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"unknown option {group}.{name}{hint} (known are {', '.join(known)}, as in "
                f"{owner.__module__}.{owner.__name__})"
            )
    return {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}


@contextmanager
def made_by_timm(what: str) -> Iterator[None]:
    """Within it timm makes something of options, which it checks by whatever they lead to.

    Raises:
        ValueError: it raised an exception of any kind; the message names `what` and its reason.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"timm cannot make {what} ({reason})") from error
