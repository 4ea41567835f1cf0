"""Write what is made from covpool's tables: one command after a row was added to any of them.

    python tools/tables.py

- `linalg/names.py`: the names as types, which type checkers and editors can read no table for;
- `cli/methods.json`: all about each pooling in words, which `covpool methods` shows without loading
  PyTorch.

`tests/test_tables.py` says when they have fallen behind.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from covpool import FUNCTIONS, KERNELS, METHODS, POOLINGS  # noqa: E402
from covpool.cli import method_facts  # noqa: E402
from covpool.linalg.functions.odd import ODD_FUNCTIONS  # noqa: E402
from covpool.linalg.inverse_root import INVERSE_ROOTS  # noqa: E402

NAMES = ROOT / "src" / "covpool" / "linalg" / "names.py"

HEAD = '''\
"""The names in the tables as types, by which editors complete them and type checkers find a typo.

Type checkers read no table, so the names stand here once more: `python tools/tables.py` writes this
file. Nothing here imports PyTorch.
"""

from typing import Literal
'''


def names() -> str:
    """The text of `linalg/names.py`."""
    others = dict.fromkeys("MethodName" if name in METHODS else repr(name) for name in POOLINGS)
    tables: dict[str, tuple[str, Iterable[str]]] = {
        "MethodName": ("`METHODS`", map(repr, METHODS)),
        "PoolingName": ("`POOLINGS`, which `create_model` takes", others),
        "InverseRootName": (
            "`INVERSE_ROOTS`, the methods of `matrix_inv_root`",
            map(repr, INVERSE_ROOTS),
        ),
        "KernelName": ("`KERNELS`", map(repr, KERNELS)),
        "FunctionName": ("`FUNCTIONS`", map(repr, FUNCTIONS)),
        "OddFunctionName": (
            "`ODD_FUNCTIONS`, which `svd_function` takes",
            map(repr, ODD_FUNCTIONS),
        ),
    }
    return HEAD + "".join(_type(name, *row) for name, row in tables.items())


def _type(name: str, table: str, entries: Iterable[str]) -> str:
    lines = "".join(f"    {entry},\n" for entry in entries).replace("'", '"')
    return f'\n{name} = Literal[\n{lines}]\n"""The keys of {table}."""\n'


def texts() -> dict[Path, str]:
    """The files and what they are to hold."""
    return {NAMES: names(), method_facts.FILE: method_facts.as_text()}


if __name__ == "__main__":
    for file, text in texts().items():
        file.write_text(text, encoding="utf-8")
