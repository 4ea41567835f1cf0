"""Cases of which the quick tests keep some; pyproject.toml leaves out what is marked slow."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest


def parametrize(
    names: str | tuple[str, ...],
    values: Iterable[Any],
    *,
    keep: Sequence[Any] | Callable[[Any], bool],
    ids: Any = None,
) -> pytest.MarkDecorator:
    """As pytest's, with the values slow but for those to keep, or for which `keep` holds.

    Raises:
        ValueError: a value to keep that is not among the values, or none to keep.
    """
    values = list(values)
    kept = [value for value in values if (keep(value) if callable(keep) else value in keep)]
    if not kept or not (callable(keep) or len(kept) >= len(keep)):
        raise ValueError(f"to keep were {keep}, of {values} that are {kept}")
    cases = [
        pytest.param(
            *([value] if isinstance(names, str) else value),
            marks=[] if value in kept else [pytest.mark.slow],
        )
        for value in values
    ]
    return pytest.mark.parametrize(names, cases, ids=ids)


whole_jacobians = parametrize("fast_mode", [True, False], keep=[True])
"""Of gradcheck: along random directions, which is quick, and by every entry of the Jacobian."""
