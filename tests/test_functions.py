"""Values and first gradients of every function with every method, against outside oracles."""

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import covpool
import quick
from covpool import FUNCTIONS, METHODS
from covpool.linalg.forwards.coupled import NewtonSchulz
from covpool.linalg.forwards.top_n import TopN
from covpool.linalg.gradients.base import Pairwise
from spectra import (
    DIGITS,
    SPECTRA,
    lift,
    orthogonal,
    relative_error,
    to_mpmath,
    to_torch,
    with_spectrum,
)

STEP = mpmath.mpf(10) ** -15
EXPONENTS = (1 / 3, 0.5, 1.0, 2.0, -0.5, -1.0, 0.0)
FULL_RANK = ["separated", "clustered", "tied-diagonal", "tied-dense", "identity", "one-by-one"]

# Every function as (matrix, method, **options) → result, beside its scalar form for mpmath.
CASES = {
    "inv_sqrt": (covpool.matrix_inv_sqrt, lambda x: 1 / mpmath.sqrt(x)),
    "log": (covpool.matrix_log, mpmath.log),
}


def power_of(p):
    def power(matrix, method="exact", **options):
        return covpool.matrix_power(matrix, p, method, **options)

    return power, lambda x: x ** mpmath.mpf(p)


CASES |= {f"power {p:.3g}": power_of(p) for p in EXPONENTS}
ALL = {"sqrt": (covpool.matrix_sqrt, mpmath.sqrt), **CASES}
ONE_OF_EACH = ("sqrt", "inv_sqrt", "power 0.333", "power -1", "log")
PAIRINGS = [
    (case, method)
    for case in ONE_OF_EACH
    for method, row in METHODS.items()
    if row.supports(case.split()[0])
]
EXACT_FORWARD = [
    (case, name)
    for case, name in PAIRINGS
    if not isinstance(METHODS[name].forward, TopN | NewtonSchulz)
]


def on_spectrum(f):
    return lambda values: [f(x) if x > 0 else mpmath.mpf(0) for x in values]


def random_symmetric(size, seed):
    matrix = torch.randn(size, size, dtype=torch.float64, generator=torch.manual_seed(seed))
    return (matrix + matrix.mT) / 2


def gradient(function, matrix, cotangent):
    matrix = matrix.clone().requires_grad_()
    return torch.autograd.grad(function(matrix), matrix, cotangent)[0]


@pytest.mark.parametrize("spectrum", [*FULL_RANK, "tiny", "huge"])
@pytest.mark.parametrize("case", CASES)
def test_value_against_mpmath(case, spectrum, note_error):
    if spectrum in ("tiny", "huge") and case in ("power 2",):
        pytest.skip("the square itself overflows")
    function, f = CASES[case]
    matrix = SPECTRA[spectrum]()
    with mpmath.workdps(DIGITS):
        expected = to_torch(lift(to_mpmath(matrix), on_spectrum(f)))
    error = relative_error(function(matrix), expected)
    assert note_error("value", case, error) <= 1e-13


@pytest.mark.parametrize("spectrum", ["rank-deficient", "rank-deficient-diagonal", "zero"])
@pytest.mark.parametrize("case", CASES)
def test_value_on_the_range(case, spectrum):
    function, f = CASES[case]
    matrix = SPECTRA[spectrum]()
    with mpmath.workdps(DIGITS):
        expected = to_torch(lift(to_mpmath(matrix), on_spectrum(f)))
    assert relative_error(function(matrix, check=False), expected) <= 1e-13


@pytest.mark.parametrize("spectrum", ["separated", "tied-dense", "clustered"])
def test_values_against_scipy(spectrum):
    matrix = SPECTRA[spectrum]()
    array = matrix.numpy()
    close = {"rtol": 1e-10, "atol": 1e-10}
    for ours, theirs in (
        (covpool.matrix_sqrt(matrix), scipy.linalg.sqrtm(array)),
        (covpool.matrix_inv_sqrt(matrix), np.linalg.inv(scipy.linalg.sqrtm(array))),
        (covpool.matrix_log(matrix), scipy.linalg.logm(array)),
        (covpool.matrix_power(matrix, 0.3), scipy.linalg.fractional_matrix_power(array, 0.3)),
        (covpool.matrix_power(matrix, -1.7), scipy.linalg.fractional_matrix_power(array, -1.7)),
    ):
        np.testing.assert_allclose(ours.numpy(), theirs, **close)


@quick.parametrize(
    "spectrum", [*FULL_RANK, "tiny", "huge"], keep=lambda spectrum: spectrum != "tied-dense"
)
@pytest.mark.parametrize("case", CASES)
def test_exact_gradient_against_finite_differences_in_mpmath(case, spectrum, note_error):
    function, f = CASES[case]
    if spectrum in ("tiny", "huge") and case in ("power 2", "power -1"):
        pytest.skip("the derivative itself overflows")
    matrix = SPECTRA[spectrum]()
    size, scale = len(matrix), matrix.abs().max()
    for seed in range(2):
        direction, cotangent = random_symmetric(size, seed), random_symmetric(size, seed + 10)
        with mpmath.workdps(2 * DIGITS):
            middle, along = to_mpmath(matrix), STEP * to_mpmath(direction) * scale.item()
            plus, minus = (lift(middle + s * along, on_spectrum(f)) for s in (1, -1))
            expected = (to_torch((plus - minus) / (2 * STEP)) * cotangent).sum()
        ours = gradient(function, matrix, cotangent) * scale
        # Not norms: squares would leave the range of float64.
        size_of_terms = (ours.abs().max() + function(matrix).abs().max()) * direction.norm()
        error = (abs((ours * direction).sum() - expected) / size_of_terms).item()
        assert note_error("gradient", case, error) <= 1e-13


@pytest.mark.parametrize("case", [*CASES, "power 1.5"])
@pytest.mark.parametrize(("size", "rank"), [(6, 2), (5, 4), (4, 1)])
def test_exact_gradient_along_changes_that_keep_the_rank(case, size, rank, note_error):
    function, f = power_of(1.5) if case == "power 1.5" else CASES[case]
    generator = np.random.default_rng(size * rank)
    factor = torch.from_numpy(generator.integers(-3, 4, (size, rank)).astype(float))
    direction = torch.from_numpy(generator.standard_normal((size, rank)))
    cotangent = random_symmetric(size, 1)
    ours = gradient(lambda x: function(x @ x.mT, check=False), factor, cotangent)
    with mpmath.workdps(2 * DIGITS):
        middle, along = to_mpmath(factor), STEP * to_mpmath(direction)
        sides = [middle + along, middle - along]
        plus, minus = (lift(x * x.T, on_spectrum(f)) for x in sides)
        expected = (to_torch((plus - minus) / (2 * STEP)) * cotangent).sum()
    norm = ours.norm() * direction.norm()
    error = (abs((ours * direction).sum() - expected) / norm.clamp_min(1e-300)).item()
    assert note_error("gradient, deficient rank", case, error) <= 1e-12


def test_first_power_is_the_identity_at_any_rank():
    for spectrum in ("rank-deficient", "zero", "separated"):
        matrix, cotangent = SPECTRA[spectrum](), random_symmetric(8, 3)
        ours = gradient(lambda a: covpool.matrix_power(a, 1.0), matrix, cotangent)
        torch.testing.assert_close(ours, cotangent, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("spectrum", [*FULL_RANK, "tiny", "huge"])
@pytest.mark.parametrize("method", [m for c, m in PAIRINGS if c == "log"])
def test_powers_of_a_half_are_the_roots(method, spectrum):
    matrix = SPECTRA[spectrum]()
    for p, root in ((0.5, covpool.matrix_sqrt), (-0.5, covpool.matrix_inv_sqrt)):
        cotangent = random_symmetric(len(matrix), 4)
        power = covpool.matrix_power(matrix, p, method)
        assert relative_error(power, root(matrix, method)) <= 1e-14
        ours = gradient(lambda a, p=p: covpool.matrix_power(a, p, method), matrix, cotangent)
        expected = gradient(lambda a, root=root: root(a, method), matrix, cotangent)
        assert relative_error(ours, expected) <= 1e-13


def test_huge_ratios_of_eigenvalues_lose_no_digits():
    """1/√λ of a diagonal matrix over 14 decades, entry by entry."""
    eigenvalues = torch.logspace(-14, 0, 8, dtype=torch.float64)
    matrix = torch.diag(eigenvalues).requires_grad_()
    for function, f in (
        (covpool.matrix_inv_sqrt, torch.rsqrt),
        (covpool.matrix_log, torch.log),
        (lambda a: covpool.matrix_power(a, -1.2), lambda x: x**-1.2),
    ):
        leaf = eigenvalues.clone().requires_grad_()
        expected = f(leaf)
        result = function(matrix)
        torch.testing.assert_close(result.diagonal(), expected, rtol=1e-14, atol=0)
        (ours,) = torch.autograd.grad(result.trace(), matrix)
        (theirs,) = torch.autograd.grad(expected.sum(), leaf)
        torch.testing.assert_close(ours.diagonal(), theirs, rtol=1e-13, atol=0)


@pytest.mark.parametrize("method", [m for c, m in PAIRINGS if c == "power -1"])
def test_gradient_of_the_exponent(method, note_error):
    """⟨G, V diag(λ^p log λ) Vᵀ⟩, against mpmath's finite difference of the power."""
    matrices = torch.stack([SPECTRA[name]() for name in ("separated", "clustered")])
    exponent = torch.tensor([0.37, -1.2], dtype=torch.float64, requires_grad=True)
    cotangent = torch.stack([random_symmetric(8, seed) for seed in (1, 2)])
    result = covpool.matrix_power(matrices, exponent, method)
    (ours,) = torch.autograd.grad(result, exponent, cotangent)
    if isinstance(METHODS[method].forward, TopN):
        cut = 8 - METHODS[method].forward.kept_count(8)  # type: ignore[attr-defined]
    else:
        cut = 0
    for index in range(2):
        with mpmath.workdps(2 * DIGITS):
            p = mpmath.mpf(exponent[index].item())

            def power(q, index=index):
                return lift(
                    to_mpmath(matrices[index]),
                    lambda values: [x**q if i >= cut else 0 for i, x in enumerate(values)],
                )

            expected = to_torch((power(p + STEP) - power(p - STEP)) / (2 * STEP))
        # The cut of Top-N lies within the cluster's eigenvectors, known to 1e-16/1e-9.
        tolerance = 1e-6 if cut and index == 1 else 1e-13
        error = relative_error(ours[index], (expected * cotangent[index]).sum())
        if tolerance < 1e-12:
            note_error("exponent's gradient", method, error)
        assert error <= tolerance


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (2, 3), (1, 1)])
def test_exponents_broadcast(shape):
    generator = torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=generator)
    matrix = x @ x.mT
    exponent = torch.rand(shape, dtype=torch.float64, generator=generator).requires_grad_()
    result = covpool.matrix_power(matrix, exponent)
    each = exponent.detach().expand(2, 3)
    for i in range(2):
        for j in range(3):
            alone = covpool.matrix_power(matrix[i, j], each[i, j].item())
            torch.testing.assert_close(result[i, j], alone)
    (grad,) = torch.autograd.grad(result.sum(), exponent)
    assert grad.shape == shape
    assert torch.autograd.gradcheck(lambda p: covpool.matrix_power(matrix, p), (exponent,))


def test_exponents_keep_their_dtype():
    exponent = torch.tensor(0.5, requires_grad=True)
    result = covpool.matrix_power(torch.eye(3).double() * 2, exponent)
    assert result.dtype == torch.float64
    (grad,) = torch.autograd.grad(result.sum(), exponent)
    assert grad.dtype == torch.float32
    assert covpool.matrix_power(torch.eye(3), 2).dtype == torch.float32
    assert covpool.matrix_power(torch.eye(3), torch.tensor(2)).dtype == torch.float32


def unfused(matrix, case, kernel):
    eigenvalues, vectors = covpool.eigh(matrix, kernel=kernel)
    name, *exponent = case.split()
    if name == "power":
        values = eigenvalues ** {"0.333": 1 / 3, "-1": -1}[exponent[0]]
    else:
        values = {"sqrt": torch.sqrt, "inv_sqrt": torch.rsqrt, "log": torch.log}[name](eigenvalues)
    return (vectors * values[..., None, :]) @ vectors.mT


@pytest.mark.parametrize("spectrum", ["separated", "tied-diagonal", "one-by-one"])
@pytest.mark.parametrize(
    ("case", "method"), [p for p in PAIRINGS if isinstance(METHODS[p[1]].gradient, Pairwise)]
)
def test_fused_against_unfused(case, method, spectrum, note_error):
    rule = METHODS[method].gradient
    assert isinstance(rule, Pairwise)
    matrix = SPECTRA[spectrum]()
    cotangent = random_symmetric(len(matrix), 2)
    fused = gradient(lambda a: ALL[case][0](a, method), matrix, cotangent)
    expected = gradient(lambda a: unfused(a, case, rule.kernel), matrix, cotangent)
    error = relative_error(fused, expected)
    assert note_error(f"{case}, fused = unfused", method, error) <= 1e-13


@pytest.mark.parametrize(("case", "method"), PAIRINGS)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_every_pairing_is_finite_and_symmetric(case, method, spectrum):
    """At ties, clusters, singular matrices and zero; without checks, on the range alone."""
    function = ALL[case][0]
    if spectrum in ("tiny", "huge") and case == "power -1":
        pytest.skip("the derivative itself overflows")
    matrix = SPECTRA[spectrum]()
    cotangent = random_symmetric(len(matrix), 7)
    result = function(matrix, method, check=False)
    assert result.isfinite().all()
    torch.testing.assert_close(result, result.mT, rtol=1e-12, atol=1e-300)
    grad = gradient(lambda a: function(a, method, check=False), matrix, cotangent)
    assert grad.isfinite().all()
    if spectrum == "zero":
        assert not result.any()
        assert not grad.any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", METHODS["svd"].functions)
def test_pairings(name, method):
    """A pairing works, or is refused with the names of those that do."""
    function = ALL[next(case for case in ONE_OF_EACH if case.split()[0] == name)][0]
    exponent = 0.3 if name == "power" else None
    if METHODS[method].supports(name):
        assert name in METHODS[method].functions
        function(torch.eye(2), method)
        covpool.MatrixFunction(name, method, exponent=exponent)
        return
    valid = [other for other, row in METHODS.items() if row.supports(name)]
    message = rf"method '{method}' does not offer '{name}'; methods that do: {', '.join(valid)}$"
    with pytest.raises(ValueError, match="^matrix_.*" + message):
        function(torch.eye(2), method)
    with pytest.raises(ValueError, match="^MatrixFunction.*" + message):
        covpool.MatrixFunction(name, method, exponent=exponent)


def test_what_is_not_offered():
    refused = {
        (name, method)
        for method, row in METHODS.items()
        for name in METHODS["svd"].functions
        if not row.supports(name)
    }
    assert {
        ("log", "svd-topn"),
        ("log", "svd-newton"),
        ("power", "svd-newton"),
        ("log", "isqrt-cov"),
        ("power", "isqrt-cov"),
    } <= refused
    assert all(METHODS[name].supports("sqrt") for name in METHODS)
    assert METHODS["exact"].functions == tuple(FUNCTIONS)


SINGULAR = {
    "inv_sqrt": covpool.matrix_inv_sqrt,
    "log": covpool.matrix_log,
    "power -1": lambda a, m="exact", **o: covpool.matrix_power(a, -1.0, m, **o),
    "power 0": lambda a, m="exact", **o: covpool.matrix_power(a, 0, m, **o),
}


@pytest.mark.parametrize(
    ("case", "method"),
    [
        (case, method)
        for case in SINGULAR
        for method, row in METHODS.items()
        if row.supports(case.split()[0])
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_matrices_are_refused_by_index(case, method, dtype):
    batch = torch.eye(8, dtype=dtype).repeat(5, 1, 1)
    batch[1] = SPECTRA["rank-deficient"]().to(dtype)
    batch[3] = 0
    with pytest.raises(
        ValueError,
        match=r"^matrix_\w+: matrix singular in 2 of 5 samples: \[1, 3\]; the lowest numerical "
        r"rank is 0 of 8 .*add a multiple of the identity, give a floor .* or pass check=False",
    ):
        SINGULAR[case](batch, method)
    assert SINGULAR[case](batch, method, check=False).isfinite().all()
    shifted = batch + 0.01 * torch.eye(8, dtype=dtype)
    assert SINGULAR[case](shifted, method).isfinite().all()


def test_positive_powers_of_singular_matrices_are_not_refused():
    matrix = SPECTRA["rank-deficient"]().expand(2, 8, 8)
    covpool.matrix_power(matrix, 0.5)
    with pytest.raises(ValueError, match=r"singular in 1 of 2 samples: \[1\]; .* rank is 3 of 8"):
        covpool.matrix_power(matrix, torch.tensor([0.5, -0.5]))


def test_topn_inverts_what_it_keeps():
    """Rank 7 of 8, of which 6 are kept: nothing that is not there is needed."""
    matrix = with_spectrum(np.arange(8.0))
    kept = covpool.matrix_inv_sqrt(matrix, "svd-topn")
    expected = lift(
        to_mpmath(matrix),
        lambda values: [1 / mpmath.sqrt(x) if i > 1 else 0 for i, x in enumerate(values)],
    )
    assert relative_error(kept, to_torch(expected)) <= 1e-13


@pytest.mark.parametrize("method", ["exact", "isqrt-cov"])
def test_indefinite_matrices_are_refused(method):
    batch = torch.stack([torch.eye(2), torch.diag(torch.tensor([-1.0, 4]))])
    with pytest.raises(ValueError, match=r"not positive semi-definite in 1 of 2 samples: \[1\]"):
        covpool.matrix_inv_sqrt(batch, method)


@pytest.mark.parametrize(
    ("exponent", "message"),
    [
        ("half", "must be a number or a tensor, got 'half'"),
        (True, "must be a number or a tensor, got True"),
        (None, "must be a number or a tensor, got None"),
        (torch.tensor(1j), "must be real, got torch.complex64"),
        (torch.ones(3), r"shape \(3,\) does not broadcast to the batch shape \(2,\)"),
        (torch.ones(1, 2), r"shape \(1, 2\) does not broadcast to the batch shape \(2,\)"),
        (torch.tensor([1.0, torch.nan]), r"exponent: NaN .* 1 of 2 samples: \[1\]"),
        (torch.tensor(torch.inf), "exponent: NaN or infinite values"),
    ],
)
def test_bad_exponents(exponent, message):
    with pytest.raises(ValueError, match=f"^matrix_power.*{message}"):
        covpool.matrix_power(torch.eye(2).expand(2, 2, 2), exponent)


@pytest.mark.parametrize("exponent", [float("nan"), float("inf"), float("-inf"), 10**400])
def test_exponents_that_are_not_finite(exponent):
    """A number is looked at without `check` too, as that costs nothing."""
    message = f"the exponent must be finite, got {exponent!r}$"
    for check in (True, False):
        with pytest.raises(ValueError, match=f"^matrix_power: {message}"):
            covpool.matrix_power(torch.eye(2), exponent, check=check)
    with pytest.raises(ValueError, match=f"^MatrixFunction: {message}"):
        covpool.MatrixFunction("power", exponent=exponent)


def plain_inverse_root(matrix, iterations):
    """Z/√tr of the iteration as one would write it, for autograd to differentiate."""
    identity = torch.eye(len(matrix), dtype=matrix.dtype)
    trace = matrix.trace()
    y, z = matrix / trace, identity
    for _ in range(iterations):
        t = (3 * identity - z @ y) / 2
        y, z = y @ t, t @ z
    return z / trace.sqrt()


@pytest.mark.parametrize("spectrum", [name for name in SPECTRA if name != "zero"])
def test_newton_schulz_inverse_root(spectrum, note_error):
    matrix = SPECTRA[spectrum]()
    cotangent = random_symmetric(len(matrix), 5)
    values = covpool.matrix_inv_sqrt(matrix, "isqrt-cov", check=False)
    assert relative_error(values, plain_inverse_root(matrix, 5)) <= 1e-13
    row = METHODS["isqrt-cov"].forward
    assert isinstance(row, NewtonSchulz)
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    recursion = row.values(FUNCTIONS["inv_sqrt"], eigenvalues.clamp_min(0), len(matrix))
    assert relative_error((vectors * recursion) @ vectors.mT, values) <= 1e-13
    for method, iterations in (("isqrt-cov", 5), ("svd-newton", 10)):
        expected = gradient(lambda a, k=iterations: plain_inverse_root(a, k), matrix, cotangent)
        ours = gradient(
            lambda a, m=method: covpool.matrix_inv_sqrt(a, m, check=False), matrix, cotangent
        )
        error = relative_error((ours + ours.mT) / 2, (expected + expected.mT) / 2)
        assert note_error("inv_sqrt, gradient", method, error) <= 1e-10


def test_newton_schulz_inverse_root_converges_as_its_docstring_says():
    matrix = torch.diag(torch.tensor([1e-4, 1 - 1e-4], dtype=torch.float64))
    root = covpool.matrix_inv_sqrt(matrix, "isqrt-cov")[0, 0].item()
    assert root == pytest.approx(7.6, abs=0.05)


@pytest.mark.parametrize(("case", "method"), PAIRINGS)
def test_nothing_depends_on_batch_mates(case, method):
    function = ALL[case][0]
    sample = SPECTRA["separated"]()
    mates = [torch.eye(8).double() * s for s in (1e100, 1e-100, 1.0)]
    mates += [SPECTRA[name]() for name in ("tied-diagonal", "clustered", "decaying")]
    batch = torch.stack([*mates, sample, torch.zeros(8, 8).double()])
    cotangent = random_symmetric(8, 1)

    def both(matrices):
        matrices = matrices.clone().requires_grad_()
        result = function(matrices, method, check=False)
        return result, torch.autograd.grad(result, matrices, cotangent.expand_as(matrices))[0]

    # Products of a batch may be summed in another order than those of one matrix.
    for among, alone in zip(both(batch), both(sample[None]), strict=True):
        assert relative_error(among[6], alone[0]) <= 1e-13


@pytest.mark.parametrize("case", ONE_OF_EACH)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_shapes_and_dtypes(case, batch, dtype):
    factor = torch.randn(*batch, 5, 9, dtype=torch.float64, generator=torch.manual_seed(0))
    matrix = (factor @ factor.mT + torch.eye(5)).to(dtype).requires_grad_()
    result = ALL[case][0](matrix)
    assert result.shape == matrix.shape
    assert result.dtype == dtype
    reference = ALL[case][0](matrix.detach().double())
    assert relative_error(result.double(), reference) <= 4 * torch.finfo(dtype).eps
    (grad,) = torch.autograd.grad(result.sum(), matrix)
    assert grad.dtype == dtype
    assert grad.shape == matrix.shape


@pytest.mark.parametrize("case", ONE_OF_EACH)
def test_zero_by_zero(case):
    assert ALL[case][0](torch.zeros(2, 0, 0)).shape == (2, 0, 0)


@pytest.mark.parametrize(("case", "method"), PAIRINGS)
def test_autocast_changes_nothing(case, method):
    matrix = SPECTRA["separated"]().float().requires_grad_()

    def both():
        result = ALL[case][0](matrix, method)
        return result, torch.autograd.grad(result.square().sum(), matrix)[0]

    plain = both()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = both()
    torch.testing.assert_close(inside[0], plain[0], rtol=0, atol=0)
    if METHODS[method].iteration:
        return  # autograd's own products run in half precision within autocast
    torch.testing.assert_close(inside[1], plain[1], rtol=0, atol=0)


@pytest.mark.parametrize("case", ONE_OF_EACH)
def test_layouts(case):
    """Expanded, transposed and strided inputs."""
    matrix = SPECTRA["separated"]()
    expected = ALL[case][0](matrix)
    wide = torch.zeros(8, 16, dtype=torch.float64)
    wide[:, ::2] = matrix
    for view in (matrix.mT, matrix.expand(3, 8, 8)[1], wide[:, ::2]):
        torch.testing.assert_close(ALL[case][0](view), expected)


@given(
    eigenvalues=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=6),
    p=st.floats(-2, 2),
    seed=st.integers(0, 10**6),
)
def test_powers_add_and_turn(eigenvalues, p, seed):
    """A^p A^(1−p) = A, log A^p = p log A, (QAQᵀ)^p = Q A^p Qᵀ."""
    matrix = with_spectrum(np.sort(np.array(eigenvalues)), seed)
    power = covpool.matrix_power(matrix, p)
    condition = max(eigenvalues) / min(eigenvalues)
    tolerance = 1e-14 * condition ** max(1, abs(p), abs(1 - p))
    assert relative_error(power @ covpool.matrix_power(matrix, 1 - p), matrix) <= tolerance
    logarithm = covpool.matrix_log(matrix)
    difference = covpool.matrix_log(power, check=False) - p * logarithm
    assert difference.abs().max() <= 1e-13 * (condition ** abs(p) + 10)
    turn = torch.from_numpy(orthogonal(len(matrix), seed + 1))
    turned = turn @ matrix @ turn.mT
    turned = covpool.matrix_power((turned + turned.mT) / 2, p)
    assert relative_error(turned, turn @ power @ turn.mT) <= tolerance
