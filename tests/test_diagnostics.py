"""The figures of `Diagnostics` against numpy, scipy and spectra known beforehand."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch

import covpool
from covpool import METHODS, Diagnostics
from spectra import SPECTRA, with_spectrum

FUNCTIONS = {
    "sqrt": covpool.matrix_sqrt,
    "inv_sqrt": covpool.matrix_inv_sqrt,
    "power": lambda a, *args, **options: covpool.matrix_power(a, 0.4, *args, **options),
    "log": covpool.matrix_log,
}
PAIRINGS = [(f, m) for m, row in METHODS.items() for f in FUNCTIONS if row.supports(f)]


def test_figures_of_a_known_spectrum():
    eigenvalues = np.array([0.5, 2.0, 2.5, 5.0])
    info = covpool.diagnose(with_spectrum(eigenvalues))
    share = eigenvalues / eigenvalues.sum()
    assert info.size == 4
    assert info.condition_number.item() == pytest.approx(10, rel=1e-13)
    assert info.rank.item() == 4
    assert info.effective_rank.item() == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert info.smallest_relative_gap.item() == pytest.approx(0.2, rel=1e-13)
    assert info.residual is None
    assert info.iterations is None


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_against_numpy(spectrum):
    matrix = SPECTRA[spectrum]()
    info = covpool.diagnose(matrix)
    array = matrix.numpy()
    assert info.rank.item() == np.linalg.matrix_rank(array, hermitian=True)
    if info.rank == len(matrix):
        # The condition number is known to its own size times eps.
        expected = np.linalg.cond(array)
        assert info.condition_number.item() == pytest.approx(expected, rel=1e-14 * expected)
    else:
        assert info.condition_number.item() == torch.inf
    assert info.rank == 0 or 1 <= info.effective_rank <= info.rank * (1 + 1e-12)


@pytest.mark.parametrize(("multiple", "rank"), [(0.9, 4), (1.1, 5)])
def test_the_rank_at_its_threshold_is_numpys(multiple, rank):
    """n · eps of the largest eigenvalue, of a diagonal matrix without rounding."""
    least = multiple * 5 * np.finfo(np.float64).eps
    array = np.diag([least, 0.1, 0.2, 0.5, 1.0])
    assert np.linalg.matrix_rank(array, hermitian=True) == rank
    assert covpool.diagnose(torch.from_numpy(array)).rank.item() == rank


def test_extremes():
    identity = covpool.diagnose(torch.eye(8) * 1e-30)
    assert identity.condition_number == 1
    assert identity.effective_rank.item() == pytest.approx(8)
    assert identity.smallest_relative_gap == 0
    zero = covpool.diagnose(torch.zeros(8, 8))
    assert zero.condition_number == torch.inf
    assert zero.rank == zero.effective_rank == 0
    assert zero.smallest_relative_gap == torch.inf
    single = covpool.diagnose(torch.tensor([[3.0]]))
    assert single.condition_number == single.effective_rank == 1
    assert single.smallest_relative_gap == torch.inf
    # Zeros are no ties that a gradient would see.
    deficient = covpool.diagnose(torch.diag(torch.tensor([0.0, 0, 1, 4])))
    assert deficient.smallest_relative_gap.item() == 0.75


def test_what_was_dropped():
    """The 1 of diag(1e24, 1) is known, and counts as a rounding error."""
    graded = torch.diag(torch.tensor([1e24, 1.0], dtype=torch.float64))
    full = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))
    for scale in (1.0, 1e-300, 1e280):
        batch = scale * torch.stack([graded, full, 0 * full])
        root, info = covpool.matrix_sqrt(batch, return_info=True)
        assert root[0, 1, 1] == 0
        for figures in (info, covpool.diagnose(batch)):
            dropped = figures.largest_dropped_eigenvalue
            torch.testing.assert_close(dropped / scale, torch.tensor([1.0, 0, 0]).double())
            assert figures.rank.tolist() == [1, 2, 0]
    assert "largest dropped eigenvalue: 1" in str(covpool.diagnose(graded))
    _, info = covpool.matrix_sqrt(graded, "isqrt-cov", return_info=True)
    assert info.largest_dropped_eigenvalue == 1
    negative = covpool.diagnose(torch.diag(torch.tensor([-5.0, 4.0])), check=False)
    assert negative.largest_dropped_eigenvalue == 5
    deficient = covpool.diagnose(SPECTRA["rank-deficient"]())
    assert deficient.largest_dropped_eigenvalue < 1e-13
    with pytest.raises(
        ValueError, match=r"singular; .* rows and columns .* scale them to similar size"
    ):
        covpool.matrix_log(graded)
    scales = graded.diagonal().sqrt()
    scaled = graded / scales[:, None] / scales
    assert covpool.diagnose(scaled).rank == 2


@pytest.mark.parametrize(("function", "method"), PAIRINGS)
def test_each_sample_for_itself(function, method):
    names = ["separated", "tied-diagonal", "clustered", "identity"]
    batch = torch.stack([SPECTRA[name]() for name in names]).reshape(2, 2, 8, 8)
    result, info = FUNCTIONS[function](batch, method, return_info=True)
    torch.testing.assert_close(result, FUNCTIONS[function](batch, method), rtol=0, atol=0)
    assert isinstance(info, Diagnostics)
    for i in range(4):
        _, alone = FUNCTIONS[function](batch.flatten(0, 1)[i], method, return_info=True)
        for field in dataclasses.fields(Diagnostics):
            figure, expected = getattr(info, field.name), getattr(alone, field.name)
            if isinstance(figure, torch.Tensor):
                assert figure.shape == (2, 2)
                torch.testing.assert_close(figure.flatten()[i], expected, rtol=1e-6, atol=1e-13)
            else:
                assert figure == expected


@pytest.mark.parametrize("method", METHODS)
def test_residuals_against_scipy(method):
    matrix = with_spectrum(np.logspace(-3, 0, 8))
    array = matrix.numpy()
    norm = np.linalg.norm
    root, info = covpool.matrix_sqrt(matrix, method, return_info=True)
    square = root.numpy() @ root.numpy()
    assert info.residual is not None
    expected = norm(square - array) / norm(array)
    assert info.residual.item() == pytest.approx(expected, abs=1e-14)
    steps = {"isqrt-cov": 5, "newton-schulz-minimax": 10} | {
        name: 5 for name in METHODS if name.startswith("halley")
    }
    assert (info.iterations is not None) == (method in steps)
    if method in steps:
        assert info.iterations == steps[method]
    if METHODS[method].supports("inv_sqrt"):
        inverse, info = covpool.matrix_inv_sqrt(matrix, method, return_info=True)
        expected = norm(inverse.numpy() @ array @ inverse.numpy() - np.eye(8)) / norm(np.eye(8))
        assert info.residual is not None
        assert info.residual.item() == pytest.approx(expected, abs=1e-12)
        approximate = ("isqrt-cov", "svd-topn", "mpa-lyapunov")
        assert (info.residual > 0.1) == (method in approximate)
    if METHODS[method].supports("log"):
        logarithm, info = covpool.matrix_log(matrix, method, return_info=True)
        expected = norm(scipy.linalg.expm(logarithm.numpy()) - array) / norm(array)
        assert info.residual is not None
        assert info.residual.item() == pytest.approx(expected, abs=1e-14)
        assert info.residual < 1e-13
    if METHODS[method].supports("power"):
        assert covpool.matrix_power(matrix, 0.4, method, return_info=True)[1].residual is None


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
@pytest.mark.parametrize("spectrum", ["separated", "rank-deficient", "zero"])
@pytest.mark.parametrize("function", ["sqrt", "inv_sqrt", "log"])
def test_residuals_on_the_range_and_at_any_scale(function, spectrum, scale):
    matrix = SPECTRA[spectrum]() * scale
    _, info = FUNCTIONS[function](matrix, check=False, return_info=True)
    # log A is known to eps times its size, and so is exp of it.
    assert info.residual <= 1e-13 * max(1, abs(np.log(scale)))


@pytest.mark.parametrize(("function", "method"), PAIRINGS)
def test_no_gradient_flows(function, method):
    matrix = SPECTRA["separated"]().requires_grad_()
    result, info = FUNCTIONS[function](matrix, method, return_info=True)
    assert result.requires_grad
    for field in dataclasses.fields(Diagnostics):
        figure = getattr(info, field.name)
        assert not (isinstance(figure, torch.Tensor) and figure.requires_grad)
    assert not covpool.diagnose(matrix).condition_number.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision(dtype):
    matrix = SPECTRA["separated"]().to(dtype)
    result, info = covpool.matrix_sqrt(matrix, return_info=True)
    assert result.dtype == dtype
    assert info.condition_number.dtype == torch.float64
    assert info.condition_number.item() == pytest.approx(8, rel=10 * torch.finfo(dtype).eps)
    # Of the root as computed, before it is rounded to the input's dtype.
    assert info.residual is not None
    assert info.residual < 1e-14


def test_empty_batches():
    result, info = covpool.matrix_sqrt(torch.zeros(0, 3, 3), return_info=True)
    assert result.shape == (0, 3, 3)
    assert info.condition_number.shape == info.rank.shape == (0,)
    assert str(info) == "3 × 3, batch (0,): least, median, largest"
    assert covpool.diagnose(torch.zeros(2, 0, 3, 3)).effective_rank.shape == (2, 0)


def test_it_reads_well():
    info = covpool.diagnose(torch.diag(torch.tensor([1.0, 1, 4])).expand(5, 3, 3))
    assert str(info).splitlines() == [
        "3 × 3, batch (5,): least, median, largest",
        "  condition number: 4, 4, 4",
        "  rank: 3, 3, 3",
        "  effective rank: 2.381, 2.381, 2.381",
        "  smallest relative gap: 0, 0, 0",
        "  largest dropped eigenvalue: 0, 0, 0",
    ]
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.size = 4  # type: ignore[misc]


def test_refusals():
    for matrix, message in (
        (torch.zeros(2, 3), r"diagnose needs square matrices .* \(2, 3\)"),
        (torch.zeros(2, 0, 0), r"size 1 or more, got \(2, 0, 0\)"),
        (torch.diag(torch.tensor([1.0, -1])), "diagnose: matrix not positive semi-definite"),
        (torch.tensor([[1.0, 2], [0, 1]]), "diagnose: matrix not symmetric"),
        (torch.full((2, 2), torch.nan), "diagnose: NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            covpool.diagnose(matrix)
    with pytest.raises(ValueError, match=r"matrix_sqrt: .*size 0 have no diagnostics"):
        covpool.matrix_sqrt(torch.zeros(2, 0, 0), return_info=True)
