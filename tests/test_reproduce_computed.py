"""Tables 3 and 6 in full, and the names that tie our methods to the paper's rows."""

import json
import math
import re
from pathlib import Path

import mpmath
import pytest

from covpool import METHODS
from covpool.cli import main
from covpool.experiments import computed
from covpool.experiments.arms import METHODS_OF_PAPER, SMOOTHED
from covpool.experiments.paper import paper_tables, printed_name
from covpool.experiments.targets import TARGETS
from covpool.linalg.gradients.pade_coefficients import SUM_RATIO

EPS = 2.0**-52


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("computed") / "output"
    assert main(["reproduce", "table3", "table6", "--output", str(path)]) == 0
    return path


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("ours", "cell", "expected"),
    [
        (2.4e-4, 2e-4, "matches"),
        (2.6e-4, 2e-4, "worse"),
        (1.4e-4, 2e-4, "better"),
        (36.4, 36, "matches"),
        (36.6, 36, "worse"),
        (0.0, 9e-19, "better"),
        (9.5e-19, 9e-19, "matches"),
        (1.1e-18, 9e-19, "worse"),
    ],
)
def test_a_printed_digit_stands_for_half_a_unit_about_it(ours, cell, expected):
    assert computed.verdict(ours, cell) == expected


def test_no_cell_of_table_3_is_worse(folder):
    content = read(folder, "table3")
    assert content["paper_scale"] is True
    assert len(content["rows"]) == 3
    for row in content["rows"]:
        assert (
            row["ratios"] == content["rows"][0]["ratios"] == [0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999]
        )
        assert set(row["verdicts"]) <= {"matches", "better"}
        kernel_errors = [float(value) for value in row["formula"]]
        for ratio, error, cell in zip(row["ratios"], kernel_errors, row["paper"], strict=True):
            if row["row"] == "SVD-Taylor":
                with mpmath.workdps(150):
                    x = mpmath.mpf(ratio)
                    tail = x**101 / (1 - x)  # what the polynomial of degree 100 leaves out
                assert error == pytest.approx(float(tail), rel=1e-9)
            assert error <= 1.5 * cell


def test_every_cell_of_table_6_is_the_papers(folder):
    content = read(folder, "table6")
    rows = {row["paper"]["row"]: row for row in content["rows"] if row["paper"]}
    printed = paper_tables()["table6_gradient_upper_bound"]
    assert set(rows) == set(printed)
    assert {row["verdict"] for row in rows.values()} == {"matches"}
    expected = {
        "MPN-COV": math.inf,
        "SVD-TopN": 1 / EPS,
        "SVD-Trunc": 1e10,
        "SVD-Taylor": 101 / EPS,
        "SVD-Padé": SUM_RATIO / EPS,
    }
    for name, bound in expected.items():
        assert float(rows[name]["bound"]) == pytest.approx(bound)
    assert rows["SVD-Newton"]["bound"] is None
    assert [row["method"] for row in content["rows"]] == [
        m for m in METHODS if m in METHODS_OF_PAPER
    ]


def test_the_pade_bound_belongs_to_its_precision(folder):
    bounds = read(folder, "table6")["pade_bound_by_digits"]
    assert bounds["20"] == pytest.approx(6.00e36, rel=1e-3)
    for digits, bound in bounds.items():
        assert abs(math.log10(bound * EPS) - int(digits)) < 3
    assert bounds["15"] < bounds["20"] < bounds["30"]


def test_texts_have_the_papers_cells(folder):
    text = (folder / "table3.md").read_text()
    assert "| SVD-Padé, the paper | 9e-19 | 5e-18 |" in text
    assert "worse" not in text
    assert "6.00e+36 | 6.00e+36 | matches" in (folder / "table6.md").read_text()
    assert "table3.md" in (folder / "summary.md").read_text()


def test_every_method_of_the_paper_has_its_row():
    assert len(METHODS_OF_PAPER) == 9
    printed = paper_tables()["table4_imagenet_error"]["ResNet-50"]
    ours = {printed_name(name) for name in METHODS_OF_PAPER} - {None}
    assert set(printed) - {"Vanilla ResNet-50"} == ours - {"SVD-PI"}
    assert set(SMOOTHED) < set(METHODS_OF_PAPER)


def test_targets_are_the_papers():
    assert set(TARGETS) == {*(f"table{n}" for n in range(1, 7)), "figure1", "figure2"}
    assert [name for name, row in TARGETS.items() if not row.trained] == ["table3", "table6"]


def test_the_documentation_has_the_targets():
    page = Path(__file__).parents[1] / "docs" / "reproduce.md"
    found = re.findall(r"^\| `(.+?)` \| (.+) \| (.+) \|$", page.read_text("utf-8"), re.MULTILINE)
    assert found == [
        (name, row.title, ", ".join(f"`{recipe}`" for recipe in row.trainings) or "computed")
        for name, row in TARGETS.items()
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tabel4"], "unknown target 'tabel4'; did you mean table4?"),
        (["table1", "--seeds", "0"], "--seeds must be at least 1, not 0"),
        (["table1", "--jobs", "0"], "--jobs must be at least 1, not 0"),
        (["table1", "--methods", "svd-nwton"], "svd-newton"),
        (["table1", "--model.method", "svd"], "the targets say what is trained"),
        (["figure2", "--model.hybrid", "svd"], "the targets say what is trained"),
        (["table1", "--train.devices", "2"], "train.devices 2 cannot be used here"),
        (["table1", "--methods", "gap"], "table1 cannot be made: it needs one of svd, isqrt-cov"),
        (["figure2", "--train.epochs", "5"], "train.epochs 5 ends before it"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments, told, capsys, tmp_path):
    assert main(["reproduce", *arguments, "--output", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "none").exists()
