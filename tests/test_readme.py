"""The README's Python examples run, in order, in one namespace."""

import re
from pathlib import Path

import torch

import covpool

README = Path(__file__).parents[1] / "README.md"


def test_python_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 2
    torch.manual_seed(0)
    namespace: dict = {}
    for block in blocks:
        exec(block, namespace)
    assert namespace["pool"](namespace["x"]).shape == (8, 32896)
    assert namespace["root"].isfinite().all()
    assert namespace["eigenvectors"].shape == (4, 32, 32)


def test_table_of_the_comparison_is_that_of_the_results():
    table = (README.parent / "results" / "typefaces-compare" / "comparison.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ") and "±" in line]
    assert len(rows) == 4
    text = README.read_text(encoding="utf-8")
    assert all(row in text for row in rows)


def test_table_of_methods_is_that_of_the_package():
    text = README.read_text(encoding="utf-8")
    for name, row in covpool.METHODS.items():
        constants = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in row.constants.items()
        )
        cells = (f"`{name}`", row.paper_name or "", row.forward.title, row.gradient.title)
        assert f"| {' | '.join(cells)} | {constants} | {row.description} |" in text
