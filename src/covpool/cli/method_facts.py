"""All about each pooling in words, from METHODS.

`python -m covpool.cli.method_facts` writes them into the file that `covpool methods` shows: the
table's rows hold the functions that compute, for which PyTorch is loaded, and that takes seconds.
"""

import json
from pathlib import Path

from covpool.linalg.methods import METHODS
from covpool.pooling import POOLINGS

FILE = Path(__file__).with_name("methods.json")


def facts() -> dict[str, dict[str, str]]:
    """By pooling: what is known of it, by what that is."""
    return {name: _of(name) for name in POOLINGS}


def as_text() -> str:
    """The same as the file holds it."""
    return json.dumps(facts(), indent=1, ensure_ascii=False) + "\n"


def _of(name: str) -> dict[str, str]:
    method = METHODS.get(name)
    if method is None:
        return {
            "name": name,
            "description": "global average pooling, the baseline",
            "paper": "-",
            "forward": "mean over positions",
            "gradient": "its own",
            "constants": "-",
        }
    constants = ", ".join(f"{key}={value}" for key, value in method.constants.items())
    return {
        "name": name,
        "description": method.description,
        "paper": method.paper_name or "-",
        "forward": method.forward.title,
        "gradient": method.gradient.title,
        "exact": "yes" if method.exact_gradient else "no: not that of its forward pass",
        "constants": constants or "-",
        "functions": ", ".join(method.functions),
        "source": method.reference,
    }


if __name__ == "__main__":
    FILE.write_text(as_text(), encoding="utf-8")
