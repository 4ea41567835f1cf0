"""The documentation: the cells of its pages run, and what it generates is complete and right."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from xml.etree import ElementTree

import pytest
import torch

import covpool
import covpool.analysis
import covpool.distances
import covpool.nn
import quick
from covpool.cli import COMMANDS
from covpool.train.config import RunConfig

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {page.stem: page for page in DOCS.glob("*.md")}

sys.path.insert(0, str(DOCS / "_extensions"))
import covpool_pictures  # noqa: E402
import covpool_tables  # noqa: E402


def cells(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```\{code-cell\} python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


EXECUTED = [
    *(
        "quickstart",
        "gallery",
        "faq",
        "python",
        "problems",
        "tensor-networks",
        "rectangular",
        "numerics",
        "inverse-roots",
        "distances",
        "analysis",
        "adding",
        "layers",
        "which-pooling",
    ),
]


@quick.parametrize("page", EXECUTED, keep=["quickstart", "adding"])
def test_cells_run(page, capsys):
    found = cells(PAGES[page])
    assert found
    torch.manual_seed(0)
    namespace: dict = {"__name__": "__main__"}
    for number, cell in enumerate(found, start=1):
        cell = re.sub(r"\A(:.*\n)+", "", cell)  # the cell's options, such as :tags:
        exec(compile(cell, f"{page}.md, cell {number}", "exec"), namespace)
    assert capsys.readouterr().err == ""


def test_the_tensor_network_in_quimb():
    """In a process of its own, as what autoray is told stays."""
    pytest.importorskip("quimb")
    text = PAGES["tensor-networks"].read_text(encoding="utf-8")
    network, ours = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    check = """
import torch
try:
    losses = train()
except torch.linalg.LinAlgError:  # raised by the second step, as the gates are NaN then
    pass
else:
    raise SystemExit(f"torch's own SVD has a gradient now: {losses[0]} -> {losses[-1]}")
"""
    end = "assert abs(losses[0] + 5) < 1e-12 and -7.297 < losses[-1] < -7.25, losses\n"
    program = [sys.executable, "-c", network + check + ours + end]
    found = subprocess.run(program, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("page", PAGES)
def test_code_is_no_wider_than_its_page(page):
    text = PAGES[page].read_text(encoding="utf-8")
    blocks = re.findall(
        r"^ *```(?:\{code-cell\} )?\w+\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE
    )
    assert [line for block in blocks for line in block.splitlines() if len(line) > 92] == []


def test_no_other_page_has_cells():
    assert {stem for stem, page in PAGES.items() if cells(page)} == set(EXECUTED)


def test_each_problem_asserts_something():
    for problem in PAGES["problems"].read_text(encoding="utf-8").split("\n## ")[1:]:
        assert re.search(r"^\s*(assert |torch\.testing\.assert_close)", problem, re.MULTILINE)


def test_reference_has_every_public_name():
    text = covpool_tables.api_reference()
    for name in covpool.__all__:
        assert re.search(rf":: covpool\.{name}$", text, re.MULTILINE), name


@pytest.mark.parametrize("package", [covpool.analysis, covpool.nn])
def test_reference_has_every_name_of_a_package(package):
    text = covpool_tables.package_reference(package)
    for name in package.__all__:
        assert re.search(rf":: {re.escape(package.__name__)}\.{name}$", text, re.MULTILINE), name


def test_the_distances_page_has_every_name():
    text = covpool_tables.distances_reference() + covpool_tables.distances_table()
    for name in covpool.distances.__all__:
        assert re.search(rf":: covpool\.distances\.{name}$|`{name.replace('_', '-')}`", text, re.M)


@pytest.mark.parametrize("package", [covpool, covpool.analysis, covpool.distances, covpool.nn])
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


def test_cheat_sheet_has_every_method_and_function():
    """And the figures of two rows that are known: 1 − 5 steps of Newton and Schulz; no error."""
    choice, functions = covpool_tables.methods_choice(), covpool_tables.functions_table()
    rows = {line.split("`")[1]: line for line in choice.splitlines()[2:]}
    assert set(rows) == set(covpool.METHODS)
    assert "| 0 | 0 | yes | yes |" in rows["exact"]
    assert "| no | yes |" in rows["isqrt-cov"]
    assert "| 0 | 0 |" not in rows["isqrt-cov"]
    for name, function in covpool.FUNCTIONS.items():
        assert f"| `{name}` | {function.domain.value} |" in functions


def test_calls_of_the_cheat_sheet_are_right():
    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    known = {"A": matrix, "exponent": 0.3, "root": 3.0, "bound": 0.1}
    for name, function in covpool.FUNCTIONS.items():
        row = re.search(
            rf"^\| `{name}` \|.*?\| `(matrix_.*?)` \|", covpool_tables.functions_table(), re.M
        )
        call = row[1] if "(" in row[1] else f"{row[1]}(A{', exponent' * (name == 'power')})"
        found = eval(f"covpool.{call}", {"covpool": covpool, **known})
        parameter = known.get(function.parameter)
        torch.testing.assert_close(
            found, covpool.matrix_function(matrix, name, parameter=parameter)
        )


def formulas() -> list[str]:
    found = []
    for page in PAGES.values():
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        text = re.sub(r"`[^`\n]*`", "", text)
        found += re.findall(r"\$\$(.*?)\$\$", text, re.DOTALL)
        found += re.findall(
            r"(?<![\\$])\$([^$\n]+)\$", re.sub(r"\$\$.*?\$\$", "", text, flags=re.S)
        )
    return found


def test_formulas_are_typeset_in_full():
    """What the converter does not know it leaves as text, with its backslash or ampersand."""
    latex2mathml = pytest.importorskip("latex2mathml.converter")
    assert len(formulas()) > 20
    for formula in formulas():
        root = ElementTree.fromstring(latex2mathml.convert(formula))
        assert not re.search(r"[\\&]", "".join(root.itertext())), formula


@pytest.mark.parametrize("name", covpool_pictures.DRAWINGS)
def test_pictures_of_the_readme_are_what_their_script_draws(name):
    def texts(svg):
        return [element.text for element in ElementTree.fromstring(svg).iter() if element.text]

    written = (covpool_pictures.PICTURES / name).read_text(encoding="utf-8")
    assert texts(written) == texts(covpool_pictures.standing_alone(covpool_pictures.DRAWINGS[name]))


@pytest.mark.parametrize(
    ("element", "loads"),
    [
        ('<script async src="https://cdn.example/mathjax.js"></script>', True),
        ("<link rel='stylesheet' href='//fonts.example/css'>", True),
        ('<img alt="" src="_images/gradient.svg">', False),
        ('<a href="https://www.sphinx-doc.org/">Sphinx</a>', False),
    ],
)
def test_what_loads_from_the_network_is_found(element, loads):
    assert bool(covpool_tables.NETWORK.search(f"<p>{element}</p>")) == loads


def test_picture_of_the_readme_has_the_figures_of_the_studies():
    """As the summaries of the studies state them."""
    for study in ("study-icons100-reduced", "study-typefaces200-reduced"):
        found = covpool_pictures.above(study, "gap")
        summary = json.loads((DOCS.parent / "results" / study / "summary.json").read_text())
        claims = {claim["question"]: claim for claim in summary["claims"]}
        claim = claims["does isqrt-cov beat gap?"]
        spread = found["isqrt-cov"]
        assert (spread.low, spread.high) == pytest.approx((claim["low"], claim["high"]))


def test_accuracies_of_the_readme_are_those_recorded():
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    table = text.partition("10 kinds of clothes |\n|---|---|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [[cell.strip(" *") for cell in row.split("|")[1:-1]] for row in table.splitlines()]
    averages = ("gap-matched", "gap-reduced", "gap-reduced-matched")
    arms = [("gap",), averages, ("covariance",), ("isqrt-cov",), ("gaussian",), ("log-e",)]
    sets = ("typefaces200-lite0-224", "typefaces200-lite0", "icons100-lite0", "fashion500-lite0")
    for place, name in enumerate(sets, start=1):
        found = covpool_pictures.accuracies(f"which-pooling/{name}")
        means = [max(fmean(found[arm].values()) for arm in group) for group in arms]
        assert [float(row[place]) for row in rows] == [round(mean, 1) for mean in means]


def test_page_on_choosing_a_pooling_names_the_defaults():
    """Each method stands behind the name of what has it as default, as in `NAME` with `METHOD`."""
    text = PAGES["which-pooling"].read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    sentences = re.split(r"(?<=\.)\s", text)
    wanted = {
        "covpool train": RunConfig().model.method,
        "create_model": inspect.signature(covpool.create_model).parameters["method"].default,
    }
    (sentence,) = (s for s in sentences if all(f"`{name}`" in s for name in wanted))
    names = re.findall(r"`([^`]+)`", sentence)
    assert {name: names[names.index(name) + 1] for name in wanted} == wanted


def test_defaults_in_tables_of_options_are_those_of_the_options():
    found = {}
    for page in PAGES.values():
        rows = re.findall(r"^\| `--(\w+\.\w+)`.*?`([^`]+)` \(default\)", page.read_text(), re.M)
        found |= dict(rows)
    assert {"optim.name", "optim.decay"} <= set(found)
    options = RunConfig().to_dict()
    assert found == {key: str(options[key.split(".")[0]][key.split(".")[1]]) for key in found}


def test_page_on_which_to_take_names_the_default_of_matrix_functions():
    text = PAGES["which"].read_text(encoding="utf-8")
    ((row, default),) = re.findall(r"^(\|.*), all with `([^`]+)`, the default", text, re.MULTILINE)
    names = re.findall(r"`(matrix_\w+)`", row)
    assert len(names) > 2
    for name in names:
        assert inspect.signature(getattr(covpool, name)).parameters["method"].default == default


def test_kernels_page_has_every_kernel():
    table = covpool_tables.kernels_table()
    assert all(f"| `{name}` |" in table for name in covpool.KERNELS)


def test_data_page_has_every_layout_and_option():
    from covpool.data.augmentation import AUGMENTATIONS
    from covpool.data.layouts import LAYOUTS
    from covpool.data.preprocessing import VIEWS

    table = covpool_tables.layouts_table()
    assert all(f"| `{name}` | {layout.title} |" in table for name, layout in LAYOUTS.items())
    assert r"car\_data/train" in table
    assert r"cars\_\*.mat" in table  # else the page shows what is between two of them in italics
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


def test_tables_and_formulas_of_docstrings_keep_their_lines():
    indented = ["    κ      1e1   1e2", "    value  7e-15 1e-14", ""]
    section = ["Args:", "    x: one", "        more, (*)", "", "    y: another", "        more", ""]
    lines = ["Measured:", "", *indented, *section]
    covpool_tables.escape_docstring(None, "class", "f", None, None, lines)
    escaped = [line.replace("*", r"\*") for line in section]
    assert lines == ["Measured:", "", "::", "", *indented, *escaped]


def test_commands_are_those_of_the_command_line():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES.values())
    named = set(re.findall(r"(?:^\$ |`)covpool ([a-z]+)", text, re.MULTILINE))
    assert named >= {"train", "compare", "bench"}
    assert named <= set(COMMANDS)


def test_every_page_is_in_the_table_of_contents():
    index = PAGES["index"].read_text(encoding="utf-8")
    trees = re.findall(
        r"^```\{toctree\}\n(?::[^\n]*\n)*(.*?)^```$", index, re.DOTALL | re.MULTILINE
    )
    lines = "".join(trees).splitlines()
    contents = [re.sub(r".* <(.*)>$", r"\1", line) for line in lines if line]
    assert sorted(contents) == sorted(set(PAGES) - {"index"})
