"""The value of every method on every prescribed spectrum, against mpmath at 50 digits."""

import warnings

import mpmath
import pytest
import torch

import covpool
from covpool import FUNCTIONS, METHODS
from covpool.linalg.forwards.approximants import MatrixPade, MatrixTaylor
from covpool.linalg.forwards.coupled import MinimaxNewtonSchulz, NewtonSchulz
from covpool.linalg.forwards.halley import Halley
from covpool.linalg.forwards.top_n import TopN
from spectra import (
    DIGITS,
    SPECTRA,
    halley,
    lift,
    matrix_pade,
    matrix_taylor,
    newton_schulz,
    relative_error,
    sqrt,
    to_mpmath,
    to_torch,
)


def expected_root(method: covpool.Method, matrix: torch.Tensor) -> torch.Tensor:
    with mpmath.workdps(DIGITS):
        exact = to_mpmath(matrix)
        if isinstance(method.forward, NewtonSchulz):
            return to_torch(newton_schulz(exact, method.forward.iterations))
        if isinstance(method.forward, Halley):
            return to_torch(halley(exact, method.forward.iterations, method.forward.start))
        if isinstance(method.forward, MatrixTaylor):
            return to_torch(matrix_taylor(exact, method.forward.degree))
        if isinstance(method.forward, MatrixPade):
            return to_torch(matrix_pade(exact, method.forward.degree))
        if isinstance(method.forward, TopN):
            size = matrix.shape[-1]
            kept = round(method.forward.kept_fraction * size)
            return to_torch(
                lift(
                    exact,
                    lambda eigenvalues: [
                        mpmath.sqrt(x) if i >= size - kept else mpmath.mpf(0)
                        for i, x in enumerate(eigenvalues)
                    ],
                )
            )
        return to_torch(sqrt(exact))


def tolerance(method: covpool.Method, spectrum: str, size: int) -> float:
    rounding = size * torch.finfo(torch.float64).eps
    if spectrum == "clustered" and isinstance(method.forward, TopN):
        return rounding / 1e-9  # the cut lies within the cluster, between gaps of 1e-9
    if isinstance(method.forward, MatrixTaylor | MatrixPade):
        return 1e-13  # smooth functions of A, at eigenvalues near zero too
    if isinstance(method.forward, MinimaxNewtonSchulz) and spectrum == "decaying":
        return 2.8e-6  # what the docstring states for eigenvalues below ‖A‖/condition
    if isinstance(method.forward, MinimaxNewtonSchulz) and spectrum == "rank-deficient":
        return 8 * torch.finfo(torch.float64).eps * method.forward.condition**0.5
    if spectrum == "decaying":
        return rounding**0.5  # an eigenvalue known to ε of the largest: its root is, to √ε
    return 1e-13


# Where the cut lies within a tie, which eigenvectors are kept is the decomposition's choice.
CASES = [
    (name, spectrum)
    for name, row in METHODS.items()
    for spectrum in SPECTRA
    if not (
        isinstance(row.forward, TopN) and spectrum in ("tied-diagonal", "tied-dense", "identity")
    )
]


@pytest.mark.parametrize(("name", "spectrum"), CASES)
def test_value_against_mpmath(name, spectrum, note_error):
    matrix = SPECTRA[spectrum]()
    result = covpool.matrix_sqrt(matrix, name)
    error = relative_error(result, expected_root(METHODS[name], matrix))
    allowed = tolerance(METHODS[name], spectrum, matrix.shape[-1])
    note_error("value" if allowed <= 1e-13 else f"value ({spectrum})", name, error)
    assert error <= allowed


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_result_is_symmetric_and_finite(name, spectrum):
    result = covpool.matrix_sqrt(SPECTRA[spectrum](), name)
    assert result.isfinite().all()
    torch.testing.assert_close(result, result.mT, rtol=1e-12, atol=1e-300)


def test_topn_keeps_206_of_256():
    eigenvalues = torch.arange(1.0, 257.0, dtype=torch.float64)
    root = covpool.matrix_sqrt(torch.diag(eigenvalues), "svd-topn")
    kept = root.diagonal() > 0
    assert kept.sum() == 206
    assert kept[-206:].all()


@pytest.mark.parametrize(("rank", "others"), [(2, 5), (3, 4), (4, 3)])
def test_topn_is_bounded_by_its_smallest_from_rank_n_on(rank, others):
    """Ranks below, at and above N = 3, zeros beside them: the last N are kept, the entry of a close
    pair is 1/(λi − λj) clipped at 1/λN; below rank N nothing bounds it."""
    top_n = TopN(kept_fraction=3 / 7)
    positive = [0.5, 1.0, 2.0, 2.0 + 1e-3][-rank:]
    eigenvalues = torch.tensor([0.0] * others + positive, dtype=torch.float64)
    kept = eigenvalues[-3:]
    values = top_n.values(FUNCTIONS["sqrt"], eigenvalues, 7)
    assert values[-3:].tolist() == kept.sqrt().tolist()
    assert not values[:-3].any()
    bound = 1 / kept[0].item() if rank >= 3 else torch.inf
    loewner, _ = top_n.loewner(FUNCTIONS["sqrt"], eigenvalues, 7)
    expected = min(1 / 1e-3, bound) * (kept[-1].sqrt() - kept[-2].sqrt())
    assert loewner[-1, -2].item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("positions", [12, 13, 14])
def test_topn_of_features_at_rank_n(positions):
    """16 channels, N = 13: at 14 positions the rank is N itself, and the gradient is bounded."""
    x = torch.randn(16, positions, dtype=torch.float64, generator=torch.manual_seed(0))
    left, values, right = torch.linalg.svd(x - x.mean(-1, keepdim=True), full_matrices=False)
    rank = positions - 1
    values[:rank] = torch.linspace(2, 1, rank).sqrt()
    values[0] = (values[1] ** 2 + 1e-4).sqrt()  # a close pair, whose plain kernel is 1e4 N
    x = ((left * values) @ right).requires_grad_()
    weight = left[:, :1] @ left[:, 1:2].mT  # a gradient that meets the close pair alone
    row = METHODS["svd-topn"]
    assert isinstance(row.forward, TopN)
    assert row.forward.kept_count(16) == 13
    (gradient,) = torch.autograd.grad((covpool.cov_pool(x, row) * weight).sum(), x)
    (exact,) = torch.autograd.grad((covpool.cov_pool(x) * weight).sum(), x)
    damping = 1e-4 / values[12] ** 2 if rank >= 13 else 1
    assert relative_error(gradient, damping * exact) <= 1e-6


@pytest.mark.axes(name=range(len(METHODS)))
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_shapes_and_dtypes(name, batch, dtype):
    factor = torch.randn(*batch, 5, 9, dtype=torch.float64, generator=torch.manual_seed(0))
    matrix = (factor @ factor.mT).to(dtype)
    result = covpool.matrix_sqrt(matrix, name)
    assert result.shape == matrix.shape
    assert result.dtype == dtype
    reference = covpool.matrix_sqrt(matrix.double(), name)
    # The rounding of input and result, and that of the computation in float64.
    tolerance = 40 * torch.finfo(dtype).eps + 1e-13
    assert relative_error(result.double(), reference) <= tolerance


@pytest.mark.parametrize("name", METHODS)
def test_zero_by_zero(name):
    assert covpool.matrix_sqrt(torch.zeros(2, 0, 0), name).shape == (2, 0, 0)


@pytest.mark.filterwarnings("ignore:compute_dtype=torch.float32")
@pytest.mark.parametrize("name", METHODS)
def test_compute_dtype_float32_is_honoured(name):
    matrix = SPECTRA["separated"]().float()
    single = covpool.matrix_sqrt(matrix, name, compute_dtype=torch.float32)
    double = covpool.matrix_sqrt(matrix, name, compute_dtype=torch.float64)
    assert single.dtype == double.dtype == torch.float32
    assert 0 < relative_error(single.double(), double.double()) < 1e-5


@pytest.mark.parametrize("name", METHODS)
def test_compute_dtype_float32_warns_where_small_eigenvalues_matter(name):
    """At the caller's line, and not where a method is as good in float32."""
    matrix, features = SPECTRA["rank-deficient"]().float(), torch.randn(4, 6)
    layer = covpool.CovPool2d(4, None, name, compute_dtype=torch.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        covpool.matrix_sqrt(matrix, name, compute_dtype=torch.float32)
        covpool.cov_pool(features, name, compute_dtype=torch.float32)
        layer(torch.randn(2, 4, 3, 3))
        covpool.matrix_sqrt(matrix, name)
        covpool.matrix_sqrt(matrix, name, compute_dtype=torch.float64)
    assert [w.category for w in caught] == ([] if METHODS[name].smooth else 3 * [UserWarning])
    assert all("tens of percent" in str(w.message) for w in caught)
    assert all(w.filename == __file__ for w in caught[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "compute_dtype=torch.float32")  # as the message says
        covpool.matrix_sqrt(matrix, name, compute_dtype=torch.float32)
    if METHODS[name].iteration is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            well_conditioned = SPECTRA["separated"]().float()
            covpool.matrix_sqrt(well_conditioned, name, compute_dtype=torch.float32)
