"""Kernels against their definitions in mpmath, the bounds of Table 6 and the errors of Table 3."""

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from covpool import KERNELS, METHODS
from covpool.experiments.paper import paper_tables
from covpool.linalg.gradients.base import Pairwise
from covpool.linalg.gradients.kernels import (
    Difference,
    Lorentzian,
    Pade,
    PowerIteration,
    Taylor,
    Truncated,
)
from covpool.linalg.gradients.pade_coefficients import DENOMINATOR, NUMERATOR, SUM_RATIO

EPS = torch.finfo(torch.float64).eps
PAPER = paper_tables()
ONE_MINUS_RATIO = [1.0, 0.9, 0.5, 0.3, 0.1, 1e-2, 1e-3, 1e-6, 1e-9, 1e-12, 1e-15]


def geometric(x, terms):
    return mpmath.fsum(x**k for k in range(terms))


def rational(x):
    top = mpmath.polyval([mpmath.mpf(c) for c in reversed(NUMERATOR)], x)
    return top / mpmath.polyval([mpmath.mpf(c) for c in reversed(DENOMINATOR)], x)


# K for the eigenvector of the larger eigenvalue and for that of the smaller, from the definition.
DEFINITIONS = {
    "difference": lambda a, b: (1 / (a - b),) * 2,
    "truncated": lambda a, b: (min(1 / (a - b), mpmath.mpf(1e10)),) * 2,
    "taylor": lambda a, b: (geometric(b / a, 101) / a,) * 2,
    "pade": lambda a, b: (rational(b / a) / a,) * 2,
    "lorentzian": lambda a, b: ((a - b) / ((a - b) ** 2 + (a * mpmath.mpf(1e-6)) ** 2),) * 2,
    "power-iteration": lambda a, b: (geometric(b / a, 20) / a, geometric(b / a, 19) / a),
}


def test_every_kernel_has_a_definition():
    assert set(DEFINITIONS) == set(KERNELS)
    used = {
        type(row.gradient.kernel) for row in METHODS.values() if isinstance(row.gradient, Pairwise)
    }
    assert used == {type(kernel) for kernel in KERNELS.values()}


@pytest.mark.parametrize("scale", [1.0, 3e-9, 7e4])
@pytest.mark.parametrize("distance", ONE_MINUS_RATIO)
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_against_its_definition(name, distance, scale):
    larger = scale
    smaller = scale * (1 - distance)
    matrix = KERNELS[name].matrix(torch.tensor([smaller, larger], dtype=torch.float64))
    with mpmath.workdps(60):
        upper, lower = (
            float(k) for k in DEFINITIONS[name](mpmath.mpf(larger), mpmath.mpf(smaller))
        )
    tolerance = 8 * EPS
    if name == "pade":
        # The exactly evaluated rational function has its pole 6.2e-22 beyond the tie.
        tolerance += 6.2e-22 / ((larger - smaller) / larger)
    assert matrix[1, 0].item() == pytest.approx(upper, rel=tolerance)
    assert matrix[0, 1].item() == pytest.approx(-lower, rel=tolerance)
    assert matrix.diagonal().tolist() == [0, 0]


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_at_a_tie(name):
    eigenvalues = torch.tensor([0.5, 2.0, 2.0], dtype=torch.float64)
    matrix = KERNELS[name].matrix(eigenvalues)
    at_tie = {
        "difference": (1 / 1.5, 1 / 1.5),  # the largest finite |K| of this matrix
        "truncated": (1e10, 1e10),
        "taylor": (101 / 2, 101 / 2),
        "pade": (SUM_RATIO / 2, SUM_RATIO / 2),
        "power-iteration": (20 / 2, 19 / 2),
        "lorentzian": (0, 0),
    }[name]
    assert (matrix[2, 1].item(), -matrix[1, 2].item()) == pytest.approx(at_tie, rel=1e-14)


@pytest.mark.parametrize("name", KERNELS)
def test_order_of_the_eigenvalues_does_not_matter(name):
    values = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    order = values.argsort()
    expected = KERNELS[name].matrix(values[order])
    actual = KERNELS[name].matrix(values)[order][:, order]
    assert torch.equal(actual, expected)


def test_taylor_is_too_small_by_what_its_docstring_says():
    values = torch.tensor([1 - 1 / 101, 1.0], dtype=torch.float64)
    share = Taylor().matrix(values)[1, 0] * (values[1] - values[0])
    assert share.item() == pytest.approx(1 - 0.37, abs=5e-3)


@pytest.mark.parametrize(("multiple", "share"), [(1, 0.5), (10, 1 / 1.01), (1e3, 1 - 1e-6)])
def test_lorentzian_is_too_small_by_what_its_docstring_says(multiple, share):
    larger = 3e5
    gap = torch.tensor(multiple * 1e-6 * larger, dtype=torch.float64)
    kernel, _ = Lorentzian().magnitudes(torch.tensor(larger, dtype=torch.float64), gap)
    assert (kernel * gap).item() == pytest.approx(share, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [1e-300, 1e-6, 1.0])
def test_lorentzian_is_finite_at_the_ends_of_the_range(epsilon, dtype):
    limits = torch.finfo(dtype)
    larger = torch.tensor([limits.tiny, 1.0, limits.max / 2], dtype=dtype)[:, None]
    gap = larger * torch.tensor([0, limits.tiny, limits.eps, 1, 2], dtype=dtype)
    kernel, _ = Lorentzian(epsilon=epsilon).magnitudes(larger.expand_as(gap), gap)
    assert kernel[1:].isfinite().all()
    assert not kernel[:, 0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", KERNELS)
def test_damping_is_the_kernel_times_the_gap(name, dtype):
    larger = torch.logspace(-4, 4, 9, dtype=dtype)[:, None]
    relative_gap = torch.cat([torch.zeros(1), torch.logspace(-6, 0, 13)]).to(dtype)
    gap = larger * relative_gap
    expected = KERNELS[name].magnitudes(larger.expand_as(gap), gap)[1] * gap
    actual = KERNELS[name].damping(larger.expand_as(gap), gap)
    torch.testing.assert_close(actual, expected, rtol=1e3 * torch.finfo(dtype).eps, atol=1e-30)


def test_difference_without_any_gap_is_zero():
    assert not Difference().matrix(torch.ones(2, 3, dtype=torch.float64)).any()


def test_overflow_check_is_per_matrix():
    lone = torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64)
    mate = torch.tensor([1.0, 1.0 + 1e-12, 3.0], dtype=torch.float64)
    together = Difference().matrix(torch.stack([lone, mate]))
    assert torch.equal(together[0], Difference().matrix(lone))


@given(
    eigenvalues=st.lists(st.floats(-1e8, 1e8), min_size=1, max_size=6),
    name=st.sampled_from([name for name in KERNELS if KERNELS[name].antisymmetric]),
)
def test_kernel_is_antisymmetric_finite_and_bounded(eigenvalues, name):
    values = torch.tensor(sorted(eigenvalues), dtype=torch.float64)
    kernel = KERNELS[name]
    matrix = kernel.matrix(values)
    assert matrix.isfinite().all()
    assert torch.equal(matrix, -matrix.mT)
    assert (matrix.abs() <= kernel.bound(EPS) * (1 + 8 * EPS)).all()


@given(st.lists(st.floats(0, 1e8), min_size=1, max_size=6))
def test_power_iteration_is_finite_and_bounded(eigenvalues):
    kernel = PowerIteration()
    matrix = kernel.matrix(torch.tensor(sorted(eigenvalues), dtype=torch.float64))
    assert matrix.isfinite().all()
    assert (matrix.abs() <= kernel.bound(EPS) * (1 + 8 * EPS)).all()


@pytest.mark.parametrize("pair", [(-3.0, 2.0), (-2.0, 3.0), (-1.0, 1.0), (-2.0, -1.0)])
def test_taylor_of_indefinite_pairs_is_its_polynomial(pair):
    matrix = Taylor().matrix(torch.tensor(pair, dtype=torch.float64))
    larger, smaller = sorted(map(mpmath.mpf, pair), key=abs, reverse=True)
    expected = geometric(smaller / larger, 101) / abs(larger)
    assert matrix[1, 0].item() == pytest.approx(float(expected), rel=1e-14)


def test_pade_coefficients_are_those_of_the_paper():
    with mpmath.workdps(20):
        one = mpmath.mpf(1)
        numerator, denominator = mpmath.pade(
            mpmath.taylor(lambda x: one / (one - x), 0, 100), 50, 50
        )
        ratio = abs(mpmath.fsum(numerator) / mpmath.fsum(denominator))
        summed = abs(sum(numerator) / sum(denominator))
    with mpmath.workdps(40):
        for solved, frozen in ((numerator, NUMERATOR), (denominator, DENOMINATOR)):
            worst = max(abs(a - mpmath.mpf(b)) for a, b in zip(solved, frozen, strict=True))
            assert worst < mpmath.mpf(10) ** -23
    assert float(summed) == pytest.approx(SUM_RATIO, rel=1e-15)
    assert float(ratio) != pytest.approx(SUM_RATIO, rel=0.01)  # it is a figure of 20-digit sums


def test_pade_by_its_coefficients_loses_what_the_docstring_says():
    def relative_error(distance):
        values = torch.tensor([1 - distance, 1.0], dtype=torch.float64)
        rounded = Pade(evaluation="coefficients").matrix(values)[1, 0]
        return abs(rounded / Pade().matrix(values)[1, 0] - 1).item()

    assert relative_error(0.5) < 1e-14
    assert 1e-3 < relative_error(1e-13) < 1e-2
    assert 0.1 < relative_error(1e-15) < 0.5


def test_table_6_bounds():
    paper = PAPER["table6_gradient_upper_bound"]
    assert Pade().bound(EPS) == pytest.approx(paper["SVD-Padé"]["maximum"], rel=5e-3)
    assert Taylor().bound(EPS) == pytest.approx(paper["SVD-Taylor"]["maximum"], rel=5e-3)
    assert Truncated().bound(EPS) == paper["SVD-Trunc"]["maximum"]
    assert Difference().bound(EPS) == float("inf")


def test_table_3_is_no_worse_than_the_papers():
    """Approximation errors of |1/(1 − x) − K|, the kernel's formula at 60 digits as in the paper,
    and beside them the float64 kernels, which half a unit in the last place limits."""
    paper = PAPER["table3_approximation_error_degree100_float64"]
    rows = {"SVD-Taylor": "taylor", "SVD-Padé": "pade"}
    lines = []
    for title, name in rows.items():
        for ratio, cell in zip(paper["ratio"], paper[title], strict=True):
            with mpmath.workdps(60):
                # The paper's cells are printed to one digit, so a cell stands for up to half a
                # unit of it more.
                printed = cell * (1 + 0.5 / float(f"{cell:.0e}"[0]))
                x = mpmath.mpf(ratio)
                exact = 1 / (1 - x)
                formula = float(abs(DEFINITIONS[name](mpmath.mpf(1), x)[0] - exact))
                kernel = KERNELS[name].matrix(torch.tensor([ratio, 1.0], dtype=torch.float64))
                rounded = float(abs(mpmath.mpf(kernel[1, 0].item()) - exact))
            lines.append(f"{title:10} {ratio:5} {cell:9.0e} {formula:9.1e} {rounded:9.1e}")
            assert formula <= printed
            assert rounded <= max(printed, 4 * EPS * float(exact)), (title, ratio)
    print("\nmethod     ratio     paper   formula   float64", *lines, sep="\n")
