"""`covpool bench roots`: inverse p-th roots beside those of an optimiser."""

import json
import sys

import numpy as np
import pytest
import torch

from covpool.bench.checkouts import load_module
from covpool.bench.roots import Problem, exact_inverse_root
from covpool.cli import main

TINY = ("--rounds", "1", "--warm-up", "1", "--threads", "1")
MATRIX_FUNCTIONS = """
import logging
from dataclasses import dataclass
import torch
from distributed_shampoo.preconditioner.types import EigenConfig, QREigendecompositionConfig
from distributed_shampoo.utils.more import power

class CoupledNewtonConfig: pass

@dataclass
class CoupledHigherOrderConfig:
    rel_epsilon: float
    abs_epsilon: float

def matrix_inverse_root_from_eigendecomposition(values, vectors, root):
    return vectors * power(values, root) @ vectors.T

def matrix_eigendecomposition(matrix, eigendecomposition_config, eigenvectors_estimate):
    assert isinstance(eigendecomposition_config, QREigendecompositionConfig)
    return (eigenvectors_estimate.T @ matrix @ eigenvectors_estimate).diag(), eigenvectors_estimate

def matrix_inverse_root(matrix, root, config):
    assert matrix.ndim == 2
    logging.getLogger(__name__).warning("reached the maximum number of iterations")
    if isinstance(config, CoupledNewtonConfig):
        raise ArithmeticError("diverged")
    return matrix_inverse_root_from_eigendecomposition(*torch.linalg.eigh(matrix), root)
"""
FILES = {
    "__init__.py": "raise ImportError('not to be run')",
    "preconditioner/__init__.py": "raise ImportError('not to be run')",
    "preconditioner/matrix_functions.py": MATRIX_FUNCTIONS,
    "preconditioner/types.py": "class EigenConfig: pass\nclass QREigendecompositionConfig: pass",
    "utils/__init__.py": "",
    "utils/more.py": "def power(x, root): return x ** (-1 / root)",
}


@pytest.fixture
def clone(tmp_path):
    """A checkout in the layout of distributed Shampoo, whose packages do not import."""
    for name, text in FILES.items():
        file = tmp_path / "clone" / "distributed_shampoo" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "clone"


def test_a_module_imports_its_neighbours_and_leaves_no_traces(clone, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed_shampoo", "another's")
    before = sorted(clone.rglob("*"))
    file = clone / "distributed_shampoo" / "preconditioner" / "matrix_functions.py"
    module = load_module(file, torch.device("cpu"))
    assert module.power(4.0, 2) == 0.5
    assert sys.modules["distributed_shampoo"] == "another's"
    assert not any(name.startswith("distributed_shampoo.") for name in sys.modules)
    assert sorted(clone.rglob("*")) == before


def test_roots_are_measured_beside_an_optimisers(clone, tmp_path, capfd):
    file = tmp_path / "roots.json"
    axes = ("--shapes", "2x5", "--roots", "2,4", "--conditions", "1e2,1e6")
    options = (*axes, *TINY, "--peer", f"Shampoo={clone}", "--output", str(file))
    assert main(["bench", "roots", *options]) == 0
    records = json.loads(file.read_text())["shapes"]
    names = [f"2x5 {dtype}, p = {root}" for dtype in ("float32", "float64") for root in (2, 4)]
    assert [record["shape"] for record in records] == names
    for record in records:
        rows = {(row["case"], row["at"]): row for row in record["cases"]}
        wide = "float64" in record["shape"]
        for at, hard in (("1e+02", False), ("1e+06", True)):
            for name in ("exact", "coupled-newton"):
                assert rows[name, at]["relative_error"] < (1e-9 if wide else 1e-7)
                assert rows[name, at]["median"] > 0
                narrow = rows.get((f"{name}, in float32", at))
                assert (narrow is None) == wide
                if narrow is not None and hard:
                    assert "InvalidMatrixError: matrix_inv_root: the residual" in narrow["error"]
                elif narrow is not None:
                    assert 1e-9 < narrow["relative_error"] < 1e-4
            by_eigenvalues = rows["Shampoo/EigenConfig", at]
            assert by_eigenvalues["relative_error"] < (1e-9 if wide else 0.5)
            assert by_eigenvalues["residual"] < (1e-8 if wide else 2)
            assert rows["Shampoo/CoupledNewtonConfig", at]["error"] == "ArithmeticError: diverged"
            if not hard:  # one gradient changes the eigenvectors by little
                assert rows["Shampoo/QREigendecompositionConfig", at]["relative_error"] < 0.05
    shown = capfd.readouterr()
    assert "CoupledNewtonConfig, condition 1e+06 failed: ArithmeticError: diverged" in shown.out
    assert "maximum number of iterations" not in shown.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shapes", "5"), "shape '5' must be BATCHxN, in whole numbers from 1 on"),
        (("--roots", "0"), "roots must be at least 1, got 0"),
        (("--dtypes", "half"), "unknown dtype 'half'"),
        (("--conditions", "0.5"), "conditions must be at least 1 and finite, got 0.5"),
        (("--conditions", ","), "no conditions to measure; give at least one"),
        (("--dtypes", ","), "no dtypes to measure; give at least one"),
        (("--peer", "spd-learn"), "spd-learn"),
        (("--peer", "Shampoo"), "Shampoo is read from your clone of it"),
    ],
)
def test_mistakes_are_named(options, message, capsys):
    assert main(["bench", "roots", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_peer_without_inverse_roots_is_named(tmp_path, capsys):
    file = tmp_path / "src" / "representation" / "MPNCOV.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    assert main(["bench", "roots", "--peer", f"fast-MPN-COV={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "--peer fast-MPN-COV has nothing that is measured here; choose from Shampoo" in said


@pytest.mark.parametrize("root", [1, 2, 4])
@pytest.mark.parametrize("condition", [1e2, 1e8])
def test_the_exact_root_is_that_of_many_digits(root, condition):
    mpmath = pytest.importorskip("mpmath")
    problem = Problem.make("2x5", "float64", root, condition, seed=3, device="cpu")
    matrix, before = problem.matrix, problem.before
    torch.testing.assert_close(before.mT @ before, torch.eye(5).double().expand(2, 5, 5))
    found = exact_inverse_root(matrix, root)
    with mpmath.mp.workdps(60):
        for one, other in zip(matrix, found, strict=True):
            values, vectors = mpmath.eigsy(mpmath.matrix(one.tolist()))
            assert float(values[4] / values[0]) == pytest.approx(condition, rel=1e-6)
            roots = mpmath.diag([value ** (mpmath.mpf(-1) / root) for value in values])
            exact = vectors * roots * vectors.T
            error = mpmath.mnorm(mpmath.matrix(other.tolist()) - exact, "f")
            rounding = max(10 * condition * np.finfo(np.longdouble).eps, 1e-15)
            assert error <= rounding * mpmath.mnorm(exact, "f")
