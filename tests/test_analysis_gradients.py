"""Tables 3 and 6 beside the paper's, and the sizes of K against their definitions in mpmath."""

import json
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch

from covpool import KERNELS, METHODS, matrix_sqrt
from covpool.analysis import approximation_error, gradient_bounds, gradient_magnitudes
from covpool.analysis.approximation import TABLE3_RATIOS
from covpool.analysis.conditioning import EPS
from covpool.experiments.paper import paper_tables
from covpool.linalg.functions import SQRT
from covpool.linalg.gradients.base import Pairwise
from covpool.linalg.gradients.kernels import Pade, Taylor
from covpool.linalg.gradients.pade_coefficients import SUM_RATIO
from test_kernels import DEFINITIONS

PAPER = paper_tables()
TABLE3 = PAPER["table3_approximation_error_degree100_float64"]
TABLE6 = PAPER["table6_gradient_upper_bound"]
"""Rows of Table 6 that go by another name in METHODS."""


def largest_printed_as(cell):
    """The paper prints one digit, so a cell stands for up to half a unit of it more."""
    return cell * (1 + 0.5 / float(f"{cell:.0e}"[0])) if cell < 10 else cell + 0.5


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_has_a_formula_and_a_bound(name):
    kernel = KERNELS[name]
    assert kernel.rational(Fraction(1, 3)) > 0
    assert None not in (kernel.form, kernel.trigger)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_approximation_error_is_that_of_the_definition(name, dtype):
    ratios = (0.0, 1e-6, *TABLE3_RATIOS, 1 - 1e-6)
    found = approximation_error(KERNELS[name], ratios, dtype=dtype)
    for ratio, formula, computed, exact in zip(
        found.ratios, found.formula, found.computed, found.exact, strict=True
    ):
        with mpmath.workdps(320):
            x = mpmath.mpf(ratio)
            right = 1 / (1 - x)
            if name != "pade":  # whose closed form is 1/(1 − x) itself, below the cap
                expected = abs(DEFINITIONS[name](mpmath.mpf(1), x)[0] - right)
                assert formula == pytest.approx(float(expected), rel=1e-12, abs=0)
            else:
                assert formula == 0
            kernel = KERNELS[name].matrix(torch.tensor([ratio, 1.0], dtype=dtype))[1, 0].item()
            assert computed == pytest.approx(float(abs(mpmath.mpf(kernel) - right)), abs=0)
        assert exact == pytest.approx(float(right))


def test_pade_by_coefficients_is_p_over_q():
    found = approximation_error(Pade(evaluation="coefficients"))
    for ratio, formula in zip(found.ratios, found.formula, strict=True):
        with mpmath.workdps(200):
            x = mpmath.mpf(ratio)
            expected = abs(DEFINITIONS["pade"](mpmath.mpf(1), x)[0] - 1 / (1 - x))
        assert formula == pytest.approx(float(expected), rel=1e-9, abs=0)


@pytest.mark.parametrize(
    ("row", "kernel"),
    [
        ("SVD-Taylor", Taylor()),
        ("SVD-Padé", Pade(evaluation="coefficients")),
        ("SVD-Padé", Pade()),
    ],
)
def test_table_3_has_no_worse_cell_than_the_papers(row, kernel):
    assert tuple(TABLE3["ratio"]) == TABLE3_RATIOS
    found = approximation_error(kernel)
    for formula, cell in zip(found.formula, TABLE3[row], strict=True):
        assert formula <= largest_printed_as(cell)


def test_the_closed_forms_as_computed_are_within_the_last_place():
    found = approximation_error(Pade())
    for computed, exact, cell in zip(found.computed, found.exact, TABLE3["SVD-Padé"], strict=True):
        assert computed <= max(largest_printed_as(cell), np.spacing(exact))
    assert found.computed[-1] < 1e-3 * TABLE3["SVD-Padé"][-1]


@pytest.mark.parametrize("printed", TABLE6)
def test_table_6_is_the_papers(printed):
    rows = {row.paper_name: row for row in gradient_bounds()}
    row, cell = rows[printed], TABLE6[printed]["maximum"]
    if cell is None:
        assert row.bound is None
        assert row.form is None
        return
    cell = float(cell)
    assert row.bound == pytest.approx(cell, rel=2e-3)
    # The bound is not a formula alone: the method reaches it, where the table says.
    assert row.attained == pytest.approx(row.bound)
    assert row.floor == EPS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_follow_from_the_precision(dtype):
    eps = torch.finfo(dtype).eps
    rows = {row.method: row for row in gradient_bounds(dtype)}
    assert list(rows) == list(METHODS)
    assert rows["svd-taylor"].bound == pytest.approx(101 / eps)
    assert rows["svd-pade"].bound == pytest.approx(SUM_RATIO / eps)
    assert rows["svd-topn"].bound == pytest.approx(1 / eps)
    assert rows["svd-trunc"].bound == 1e10
    for row in rows.values():
        assert row.representable == (row.bound != float("inf"))
        assert (row.bound is None) == (row.attained is None)
        if row.bound is not None:
            assert row.attained == pytest.approx(row.bound, rel=1e-3)
    # "still acceptable in both double precision and float precision", the paper says of 6.00e36.
    (in_float32,) = (r for r in gradient_bounds(torch.float32, floor=EPS) if r.method == "svd-pade")
    assert in_float32.bound == pytest.approx(6.00e36, rel=1e-3)
    assert in_float32.representable


def test_the_pade_bound_is_the_digits_of_the_precision_that_solved_for_it():
    digits = 30  # the paper's are 20
    with mpmath.workdps(digits):
        taylor = mpmath.taylor(lambda x: 1 / (1 - x), 0, 100)
        numerator, denominator = mpmath.pade(taylor, 50, 50)
        summed = abs(sum(numerator) / sum(denominator))
    assert float(summed) == pytest.approx(3.6e31, rel=0.02)  # as docs/analysis.md has it


def brute_force(name, eigenvalues):
    """max |K| of every pair with a positive eigenvalue, by the definitions."""
    found = []
    values = sorted(eigenvalues)
    for j, larger in enumerate(values):
        for smaller in values[:j]:
            if larger == 0:
                continue
            if larger == smaller:
                found.append(None)
                continue
            with mpmath.workdps(60):
                pair = DEFINITIONS[name](mpmath.mpf(larger), mpmath.mpf(smaller))
            found.append(float(max(pair)))
    return found


PAIRWISE = [name for name, row in METHODS.items() if isinstance(row.gradient, Pairwise)]


@pytest.mark.parametrize("method", PAIRWISE)
def test_magnitudes_are_those_of_the_definition(method):
    spectra = torch.tensor(
        [
            [0.0, 0.0, 1e-9, 1.0, 1.0 + 1e-11, 30.0],
            [1e-5, 1e-4, 1e-3, 0.1, 0.1001, 0.5],
        ],
        dtype=torch.float64,
    )
    kernel = next(n for n, k in KERNELS.items() if type(k) is type(METHODS[method].gradient.kernel))
    found = gradient_magnitudes(spectra[:, torch.tensor([3, 0, 5, 1, 4, 2])], [method])[method]
    for sample, spectrum in enumerate(spectra.tolist()):
        expected = brute_force(kernel, spectrum)
        assert found.largest[sample].item() == pytest.approx(max(expected), rel=1e-9)
        assert found.largest[sample] <= found.bound * (1 + 1e-12)
        assert found.pairs[sample] == len(expected)
        edges = found.log10_edges
        counts, _ = np.histogram(np.log10(expected), bins=edges)
        assert found.histogram[sample].tolist() == counts.tolist()
    assert found.ties.tolist() == [0, 0]
    assert found.nonfinite.tolist() == [0, 0]


def test_ties_are_counted_and_pairs_of_zeros_are_not():
    spectrum = torch.tensor([0.0, 0.0, 0.0, 2.0, 2.0, 5.0], dtype=torch.float64)
    found = gradient_magnitudes(spectrum)
    for row in found.values():
        assert row.pairs == 12
        assert row.ties == 1
    assert found["svd"].largest == 0.5  # 1/(2 − 0), which the overflow check puts at the tie too
    assert found["svd-pade"].largest == pytest.approx(SUM_RATIO / 2)
    assert found["svd-newton"].largest is None


def test_with_the_papers_floor_zeros_are_ties():
    spectrum = torch.tensor([0.0, 0.0, 0.0, 2.0, 2.0, 5.0], dtype=torch.float64)
    found = gradient_magnitudes(spectrum, floor=EPS)
    for row in found.values():
        assert row.pairs == 15
        assert row.ties == 4
    for name in ("svd-pade", "svd-taylor", "svd-trunc"):
        assert found[name].largest == pytest.approx(found[name].bound)


def test_topn_is_clipped_at_its_smallest_kept_eigenvalue():
    method = METHODS["svd-topn"].replace(kept_fraction=0.5)
    spectrum = torch.tensor([1.0, 2.0, 4.0, 4.1], dtype=torch.float64)
    magnitudes = method.gradient.kernel_magnitudes(spectrum)
    assert magnitudes.nonzero().tolist() == [[2, 3], [3, 2]]
    assert magnitudes[2, 3] == 1 / 4
    found = gradient_magnitudes(spectrum, [method])["svd-topn"]
    assert found.largest == found.bound == 1 / 4
    below = gradient_magnitudes(torch.tensor([0.0, 0.0, 0.0, 4.0]), [method])["svd-topn"]
    assert below.bound == float("inf")


@pytest.mark.parametrize("name", METHODS)
def test_the_largest_entry_is_what_the_gradient_is_multiplied_by(name):
    """The largest |∂(√A)ᵢⱼ/∂Aᵢⱼ| over the entries of a diagonal A, by autograd."""
    spectrum = torch.tensor([1e-3, 0.02, 0.3, 1.0], dtype=torch.float64)
    jacobian = torch.zeros(4, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(i):
            leaf = torch.diag(spectrum).requires_grad_()
            matrix_sqrt(leaf, name)[..., i, j].backward()
            jacobian[i, j] = leaf.grad[i, j] + leaf.grad[j, i]
    largest = gradient_magnitudes(spectrum, [name])[name].largest_entry
    off_diagonal = METHODS[name].gradient.loewner(SQRT, spectrum, 4).matrix.tril(-1)
    torch.testing.assert_close(off_diagonal, jacobian, rtol=1e-9, atol=1e-12)
    assert largest >= jacobian.abs().max() * (1 - 1e-9)


@pytest.mark.parametrize("batch", [(), (2, 3), (0,)])
def test_batch_shapes(batch):
    spectra = torch.rand(*batch, 5, generator=torch.Generator().manual_seed(0))
    for row in gradient_magnitudes(spectra).values():
        assert row.largest_entry.shape == row.pairs.shape == row.ties.shape == batch
        assert row.largest is None or row.largest.shape == batch
        assert row.histogram is None or row.histogram.shape[:-1] == batch
        assert json.dumps(row.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: approximation_error(Taylor(), [0.5, 1.0]), r"ratios in \[0, 1\)"),
        (lambda: approximation_error(Taylor(), [1 - 1e-9], dtype=torch.float32), "float32"),
        (lambda: approximation_error(Taylor(), dtype=torch.float16), "float16"),
        (lambda: gradient_bounds(torch.bfloat16), "bfloat16"),
        (lambda: gradient_bounds(floor=-1.0), "positive number, got -1.0"),
        (lambda: gradient_magnitudes(torch.ones(3), ["svd-tailor"]), "did you mean 'svd-taylor'"),
        (lambda: gradient_magnitudes(torch.ones(3), floor=0), "positive number, got 0"),
        (lambda: gradient_magnitudes(torch.tensor([torch.nan])), "finite .* got nan"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
