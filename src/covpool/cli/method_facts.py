"""All about each pooling in words, from METHODS and POOLINGS.

`tools/tables.py` writes them into the file that `covpool methods` shows: the table's rows hold the
functions that compute, for which PyTorch is loaded, and that takes seconds.
"""

import json
from pathlib import Path

from covpool.linalg.methods import Method
from covpool.poolings import POOLINGS, Pooling, method_or_pooling

CHANNELS = 256
"""Of which lengths and parameters are told: the paper's number."""

FILE = Path(__file__).with_name("methods.json")


def facts() -> dict[str, dict[str, str]]:
    """By pooling: what is known of it, by what that is."""
    return {name: _of(name) for name in POOLINGS}


def as_text() -> str:
    """The same as the file holds it."""
    return json.dumps(facts(), indent=1, ensure_ascii=False) + "\n"


def _of(name: str) -> dict[str, str]:
    row = method_or_pooling(name)
    constants = ", ".join(f"{key}={value}" for key, value in row.constants.items()) or "-"
    return _of_method(row, constants) if isinstance(row, Method) else _of_pooling(row, constants)


def _of_method(method: Method, constants: str) -> dict[str, str]:
    exact = method.exact_gradient or method.differentiates_steps
    return {
        "name": method.name,
        "description": method.description,
        "paper": method.paper_name or "-",
        "forward": method.forward.title,
        "gradient": method.gradient.title,
        "exact": "yes" if exact else "no: not that of its forward pass",
        "constants": constants,
        "functions": ", ".join(method.functions),
        "caution": method.caution or "-",
        "source": method.reference,
    }


def _of_pooling(row: Pooling, constants: str) -> dict[str, str]:
    length, parameters = row.count(CHANNELS)
    plain = row.normalisation == "none"
    return {
        "name": row.name,
        "description": row.description,
        "paper": "-",
        "forward": row.representation + ("" if plain else f", {row.normalisation}"),
        "regulariser": row.regulariser,
        "gradient": "its own",
        "constants": constants,
        "vector": f"{length} numbers of {CHANNELS} channels",
        "parameters": str(parameters),
        "reduction": "before it, unless told otherwise" if row.reduced else "none unless asked for",
        "class token": "beside it, where the backbone has one" if row.class_token else "not used",
        "caution": row.caution or "-",
        "source": row.paper,
    }
