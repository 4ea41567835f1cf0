"""The documentation: the cells of its pages run, and what it generates is complete and right."""

import re
import sys
from pathlib import Path

import pytest
import torch

import covpool
import covpool.analysis
from covpool.cli import COMMANDS

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {page.stem: page for page in DOCS.glob("*.md")}

sys.path.insert(0, str(DOCS / "_extensions"))
import covpool_tables  # noqa: E402


def cells(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```\{code-cell\} python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", ["quickstart", "problems", "numerics", "analysis"])
def test_cells_run(page, capsys):
    found = cells(PAGES[page])
    assert found
    torch.manual_seed(0)
    namespace: dict = {"__name__": "__main__"}
    for number, cell in enumerate(found, start=1):
        exec(compile(cell, f"{page}.md, cell {number}", "exec"), namespace)
    assert capsys.readouterr().err == ""


def test_no_other_page_has_cells():
    assert {stem for stem, page in PAGES.items() if cells(page)} == {
        "quickstart",
        "problems",
        "numerics",
        "analysis",
    }


def test_each_problem_asserts_something():
    for problem in PAGES["problems"].read_text(encoding="utf-8").split("\n## ")[1:]:
        assert re.search(r"^\s*(assert |torch\.testing\.assert_close)", problem, re.MULTILINE)


def test_reference_has_every_public_name():
    text = covpool_tables.api_reference()
    for name in covpool.__all__:
        assert re.search(rf":: covpool\.{name}$", text, re.MULTILINE), name


def test_reference_has_every_instrument():
    text = covpool_tables.analysis_reference()
    for name in covpool.analysis.__all__:
        assert re.search(rf":: covpool\.analysis\.{name}$", text, re.MULTILINE), name


@pytest.mark.parametrize("package", [covpool, covpool.analysis])
def test_public_names_have_docstrings(package):
    for name in package.__all__:
        value = getattr(package, name)
        assert not callable(value) or value.__doc__, name


def test_methods_page_has_every_row():
    table, rows = covpool_tables.methods_table(), covpool_tables.methods_rows()
    for name, row in covpool.METHODS.items():
        assert f"[`{name}`](#method-{name})" in table
        assert f"(method-{name})=" in rows
        assert row.reference in rows
        assert all(constant in table for constant in row.constants)


def test_kernels_page_has_every_kernel():
    table = covpool_tables.kernels_table()
    assert all(f"| `{name}` |" in table for name in covpool.KERNELS)


def test_data_page_has_every_layout_and_option():
    from covpool.data.augmentation import AUGMENTATIONS
    from covpool.data.layouts import LAYOUTS
    from covpool.data.preprocessing import VIEWS

    table = covpool_tables.layouts_table()
    assert all(f"| `{name}` | {layout.title} |" in table for name, layout in LAYOUTS.items())
    page = PAGES["data"].read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in AUGMENTATIONS)
    assert all(f"`{name}`" in page for name in VIEWS)


@pytest.mark.parametrize("ratio", [1e-4, 0.5, 0.99, 1.0])
def test_measured_bias_is_that_of_the_formula(ratio):
    error = covpool_tables._gradient_error
    assert error("exact", ratio) == pytest.approx(0, abs=1e-14)
    # The Taylor kernel of degree 100 is 1/(λi − λj) times 1 − x^101.
    assert error("svd-taylor", ratio) == pytest.approx(-(ratio**101), rel=1e-10, abs=1e-14)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("(*, n, n), |Kᵢⱼ|", r"(\*, n, n), \|Kᵢⱼ\|"),
        ("`a * b | c` and S_(m)", r"`a * b | c` and S\_(m)"),
        ("snake_case stays", "snake_case stays"),
        (">>> 2 * 3", ">>> 2 * 3"),
    ],
)
def test_docstrings_keep_their_plain_characters(written, read):
    lines = [written]
    covpool_tables.escape_docstring(None, "function", "f", None, None, lines)
    assert lines == [read]


def test_commands_are_those_of_the_command_line():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES.values())
    named = set(re.findall(r"(?:^\$ |`)covpool ([a-z]+)", text, re.MULTILINE))
    assert named >= {"train", "compare", "bench"}
    assert named <= set(COMMANDS)


def test_every_page_is_in_the_table_of_contents():
    index = PAGES["index"].read_text(encoding="utf-8")
    contents = index.split("```{toctree}")[1].split("```")[0].split()
    assert set(contents) - {":hidden:"} == set(PAGES) - {"index"}
