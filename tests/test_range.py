"""Numbers at both ends of a dtype's range: nothing overflows or vanishes before the result does."""

import warnings

import pytest
import torch

import covpool
from covpool import KERNELS, METHODS
from covpool.linalg.engine.singular import SINGULAR_VALUE_DECOMPOSITION
from covpool.linalg.engine.symmetric import EIGENDECOMPOSITION
from spectra import SPECTRA, relative_error, with_spectrum

# Multiples of six, so that square and cube roots of powers of two are powers of two.
EXPONENTS = {torch.float64: [-1062, -996, 996, 1020], torch.float32: [-138, -120, 120, 126]}
SCALES = [(dtype, exponent) for dtype, chosen in EXPONENTS.items() for exponent in chosen]
LIMITS = {torch.float64: 1000, torch.float32: 110}


def times(x, exponent):
    """x · 2^exponent in two steps, as 2^exponent alone may leave the range."""
    half = round(exponent) // 2
    return x * 2.0**half * 2.0 ** (round(exponent) - half)


def symmetric(*shape, seed=0):
    matrix = torch.randn(*shape, dtype=torch.float64, generator=torch.manual_seed(seed))
    return (matrix + matrix.mT) / 2


def power(p):
    return lambda a, *rest, **options: covpool.matrix_power(a, p, *rest, **options)


# Each function with its degree p: f(s A) = sᵖ f(A).
FUNCTIONS = {
    "sqrt": (covpool.matrix_sqrt, 1 / 2),
    "inv_sqrt": (covpool.matrix_inv_sqrt, -1 / 2),
    "log": (covpool.matrix_log, 0),
    "power 1/3": (power(1 / 3), 1 / 3),
    "power -1": (power(-1.0), -1),
}
# The largest entry of the first and the largest eigenvalue of the third are far apart.
MATRICES = torch.stack(
    [
        with_spectrum(torch.linspace(1, 9, 8).numpy()) / 9,
        SPECTRA["tied-diagonal"]() / 5,
        torch.ones(8, 8, dtype=torch.float64) + torch.diag(torch.linspace(0.3, 0.7, 8)),
    ]
)
PAIRINGS = [
    (case, name)
    for name, row in METHODS.items()
    for case in FUNCTIONS
    if row.supports(case.split()[0])
    # Their gradients do not scale: the one's constant has the unit of 1/λ, the other, of the
    # logarithm, changes where a constant is added to f.
    if name != "svd-trunc" and (case, name) != ("log", "svd-pi")
]


def derivatives(function, matrix, cotangent, direction):
    leaf = matrix.clone().requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, cotangent.to(value.dtype))
    _, tangent = torch.func.jvp(function, (matrix,), (direction.to(matrix.dtype),))
    return value.detach().double(), gradient.double(), tangent.double()


@pytest.mark.axes(dtype=(2, 4))
@pytest.mark.parametrize(("dtype", "exponent"), SCALES)
@pytest.mark.parametrize(("case", "method"), PAIRINGS)
def test_functions_scale(case, method, dtype, exponent, note_error):
    """Value, gradient and forward mode, of matrices as rounded at that scale."""
    function, degree = FUNCTIONS[case]
    limit = LIMITS[dtype]
    if abs(degree * exponent) > limit:
        pytest.skip("the value itself leaves the range")
    matrix = times(MATRICES, exponent).to(dtype)
    reference = times(matrix.double(), -exponent)
    reference = reference.to(dtype if METHODS[method].smooth else torch.float64)
    cotangent, direction = symmetric(8, 8, seed=1), symmetric(3, 8, 8, seed=2)
    # What brings the gradient into the range, where it is not there.
    lift = -(degree - 1) * exponent
    lift = max(-limit, min(limit, lift)) if abs(lift) > limit else 0
    found = derivatives(
        lambda a: function(a, method),
        matrix,
        times(cotangent, lift).expand_as(matrix),
        times(direction, max(-limit, min(limit, exponent))),
    )
    expected = derivatives(
        lambda a: function(a, method), reference, cotangent.expand_as(matrix), direction
    )
    exponents = [
        degree * exponent,
        (degree - 1) * exponent + lift,
        (degree - 1) * exponent + max(-limit, min(limit, exponent)),
    ]
    if case == "log":
        shift = exponent * torch.tensor(2.0).double().log() * torch.eye(8, dtype=torch.float64)
        expected = (expected[0] + shift, *expected[1:])
    bound = 1e-12 if dtype == torch.float64 else 1e-5 if METHODS[method].smooth else 1e-6
    for what, one, other, by in zip(
        ("value", "gradient", "tangent"), found, expected, exponents, strict=True
    ):
        if abs(by) > limit + 20:
            continue  # forward mode of what is far from the size of the matrix
        for sample, right in zip(one, other, strict=True):
            error = relative_error(times(sample, -by), right)
            assert note_error(f"{what} at the ends of {dtype}", method, error) <= bound, what


@pytest.mark.parametrize("method", [name for name in METHODS if name != "svd-trunc"])
def test_compute_dtype_float32_takes_matrices_that_it_cannot_hold(method):
    matrix = MATRICES[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "compute_dtype=torch.float32")
        expected = covpool.matrix_sqrt(matrix, method, compute_dtype=torch.float32)
        for exponent in EXPONENTS[torch.float64][1:]:
            scaled = times(matrix, exponent)
            root = covpool.matrix_sqrt(scaled, method, compute_dtype=torch.float32)
            assert relative_error(times(root, -exponent // 2), expected) <= 1e-5


def test_a_matrix_at_the_end_of_the_range_changes_nothing_for_its_mates():
    batch = torch.stack([times(MATRICES[0], 1020), MATRICES[1], times(MATRICES[2], -996)])
    for name in METHODS:
        together = covpool.matrix_sqrt(batch, name)
        for sample, alone in zip(together, batch, strict=True):
            assert relative_error(sample, covpool.matrix_sqrt(alone, name)) <= 1e-14


@pytest.mark.parametrize("dtype", EXPONENTS)
def test_singular_matrices_below_the_least_normal_number_are_not_indefinite(dtype):
    """Rounded to so few digits, a matrix of deficient rank has negative eigenvalues."""
    matrix = times(SPECTRA["rank-deficient"](), EXPONENTS[dtype][0]).to(dtype)
    for name in METHODS:
        assert covpool.matrix_sqrt(matrix, name).isfinite().all(), name
    largest = matrix.abs().max()
    with pytest.raises(ValueError, match=r"matrix_sqrt: matrix not positive semi-definite"):
        covpool.matrix_sqrt(matrix - 2 * largest * torch.eye(8, dtype=dtype))


@pytest.mark.parametrize("method", ["exact", "isqrt-cov"])
def test_refusals_name_what_was_given(method):
    huge = torch.finfo(torch.float64).max
    with pytest.raises(ValueError, match=r"the lowest eigenvalue is -1e\+300;"):
        covpool.matrix_sqrt(torch.diag(torch.tensor([-1e300, 1e300], dtype=torch.float64)), method)
    with pytest.raises(ValueError, match=r"the largest \|A − Aᵀ\| is 2\.0e\+00 of"):
        covpool.matrix_sqrt(
            torch.tensor([[huge, huge], [-huge, huge]], dtype=torch.float64), method
        )
    nearly = torch.tensor([[1e-310, 5e-324], [0, 1e-310]], dtype=torch.float64)
    assert covpool.matrix_sqrt(nearly, method).isfinite().all()


INDEFINITE = torch.tensor([-8.0, -3.0, 1.0, 7.5], dtype=torch.float64) / 8


@pytest.mark.axes(dtype=(2, 4))
@pytest.mark.parametrize(("dtype", "exponent"), [*SCALES, (torch.float64, 1023)])
@pytest.mark.parametrize("kernel", ["difference", "pade", "lorentzian"])
@pytest.mark.parametrize("decomposition", [covpool.eigh, covpool.svd])
def test_decompositions_scale(decomposition, kernel, dtype, exponent, note_error):
    """Values by 2^e, the vectors' gradient by its inverse, the values' not at all."""
    if exponent == EXPONENTS[dtype][0] or (exponent < 0 and kernel != "difference"):
        pytest.skip("1/(λi − λj) itself leaves the range; the other kernels have the paper's floor")
    matrix = times(with_spectrum(INDEFINITE.numpy(), 3).to(dtype).double(), exponent).to(dtype)
    reference = times(matrix.double(), -exponent)
    of_vectors = times(1.0, max(-LIMITS[dtype], min(LIMITS[dtype], exponent)))
    weight = torch.randn(4, 4, dtype=torch.float64, generator=torch.manual_seed(0))

    def everything(a, scale):
        leaf = a.clone().requires_grad_()
        outputs = decomposition(leaf, kernel=kernel)
        values = min(outputs, key=lambda t: t.ndim)
        vectors = [t for t in outputs if t is not values]
        signs = [t.detach().sign() for t in vectors]  # so that the vectors' own do not matter
        cotangents = [(weight * scale).to(a.dtype) * s for s in signs]
        (from_vectors,) = torch.autograd.grad(vectors, leaf, cotangents, retain_graph=True)
        (from_values,) = torch.autograd.grad(values, leaf, weight[0].to(a.dtype))
        return values.detach().double(), from_vectors.double(), from_values.double()

    found, expected = everything(matrix, of_vectors), everything(reference, 1.0)
    by = exponent, max(-LIMITS[dtype], min(LIMITS[dtype], exponent)) - exponent, 0
    bound = 1e-12 if dtype == torch.float64 else 1e-4
    for one, other, power in zip(found, expected, by, strict=True):
        error = relative_error(times(one, -power), other)
        assert note_error(f"at the ends of {dtype}", decomposition.__name__, error) <= bound


@pytest.mark.parametrize("dtype", EXPONENTS)
def test_eigh_takes_entries_above_half_of_the_largest_number(dtype):
    largest = torch.finfo(dtype).max
    matrix = torch.diag(torch.tensor([largest, 1.0], dtype=dtype)).requires_grad_()
    values, vectors = covpool.eigh(matrix)
    torch.testing.assert_close(values, torch.tensor([1, largest], dtype=dtype))
    (gradient,) = torch.autograd.grad(values[1] + vectors.abs().sum(), matrix)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 0], [0, 0]], dtype=dtype))
    root = covpool.matrix_sqrt(largest * torch.eye(3, dtype=dtype))
    torch.testing.assert_close(
        root, torch.tensor(largest, dtype=dtype).sqrt() * torch.eye(3, dtype=dtype)
    )
    logarithm = covpool.matrix_log(largest * torch.eye(3, dtype=dtype))
    expected = torch.tensor(largest, dtype=dtype).log() * torch.eye(3, dtype=dtype)
    torch.testing.assert_close(logarithm, expected)


@pytest.mark.parametrize("dtype", EXPONENTS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_of_eigenvalues_whose_gap_overflows(kernel, dtype):
    """K(λi, λj) = K(λi/4, λj/4)/4, of pairs of opposite signs."""
    largest = torch.finfo(dtype).max
    values = torch.tensor([-0.9, 0.8, 0.95], dtype=dtype)
    found = KERNELS[kernel].matrix(values * largest)
    quarter = KERNELS[kernel].matrix(values * (largest / 4)) / 4
    assert found.isfinite().all()
    torch.testing.assert_close(found[0], quarter[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[:, 0], quarter[:, 0], rtol=1e-5, atol=0)


POOLINGS = [(name, positions) for name in METHODS if name != "svd-trunc" for positions in (4, 20)]


@pytest.mark.axes(dtype=(2, 4))
@pytest.mark.parametrize(("dtype", "exponent"), SCALES)
@pytest.mark.parametrize(("name", "positions"), POOLINGS)
def test_pooling_scales(name, positions, dtype, exponent, note_error):
    """The root of the covariance is of the features' own degree: its gradient does not scale."""
    x = torch.randn(6, positions, dtype=torch.float64, generator=torch.manual_seed(0)) / 4
    x = times(x, exponent).to(dtype)
    weight = symmetric(6, 6, seed=1)

    def both(x, size):
        leaf = x.clone().requires_grad_()
        pooled = covpool.cov_pool(leaf, name)
        (gradient,) = torch.autograd.grad(pooled, leaf, (size * weight).to(x.dtype))
        return pooled.detach().double(), gradient.double() / size

    value, gradient = both(times(x.double(), -exponent), 1.0)
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    few_digits = exponent == EXPONENTS[dtype][0]
    # An iteration differentiates itself, by products of its result and the cotangent.
    iterated = positions > 6 and getattr(METHODS[name].forward, "iterated_channels", 0)
    for size in (1.0, 1e6) if few_digits else (1e-6, 1.0, 1e6):
        pooled, slope = both(x, size)
        assert relative_error(times(pooled, -exponent), value) <= (0.01 if few_digits else bound)
        if iterated and (few_digits or (size > 1) == (exponent > 0)):
            continue
        error = relative_error(slope, gradient)
        assert note_error(f"pooling's gradient at the ends of {dtype}", name, error) <= bound


@pytest.mark.parametrize("positions", [4, 20])
@pytest.mark.parametrize("name", METHODS)
def test_pooling_of_channels_whose_norm_overflows(name, positions):
    """Sixteen times the same channel: no entry of the root is beyond float32, its norm is."""
    channel = torch.randn(positions, dtype=torch.float64, generator=torch.manual_seed(0))
    x = (channel / channel.abs().max() * 3e38).float().expand(16, positions)
    pooled = covpool.cov_pool(x, name)
    assert relative_error(pooled.double(), covpool.cov_pool(x.double(), name)) <= 1e-5


@pytest.mark.parametrize("dtype", EXPONENTS)
def test_covariance_at_the_ends_of_the_range(dtype):
    """Sums and squares overflow, means and variances do not."""
    largest = torch.finfo(dtype).max
    assert not covpool.covariance(torch.full((3, 4), largest, dtype=dtype)).any()
    x = torch.randn(3, 400, dtype=torch.float64, generator=torch.manual_seed(0)).clamp(-2, 2)
    for exponent in (LIMITS[dtype] // 2, -LIMITS[dtype] // 2):
        found = covpool.covariance(times(x, exponent).to(dtype)).double()
        expected = covpool.covariance(x)
        assert relative_error(times(found, -2 * exponent), expected) <= 1e-5
    near = largest**0.5 / 2.5 * x  # the sum over positions overflows, the variance does not
    found = covpool.covariance(near.to(dtype)).double() / largest
    assert relative_error(found, covpool.covariance(x) / 2.5**2) <= 1e-5


@pytest.mark.parametrize(("dtype", "exponent"), SCALES)
def test_diagnostics_scale(dtype, exponent):
    matrix = times(MATRICES, exponent).to(dtype)
    reference = times(matrix.double(), -exponent)
    expected = covpool.diagnose(reference)
    _, info = covpool.matrix_sqrt(matrix, return_info=True)
    for figures in (covpool.diagnose(matrix), info):
        for name in ("condition_number", "rank", "effective_rank", "smallest_relative_gap"):
            torch.testing.assert_close(
                getattr(figures, name), getattr(expected, name), rtol=1e-12, atol=1e-13
            )
    assert info.residual is not None
    assert (info.residual <= 1e-13).all()


@pytest.mark.parametrize("exponent", [-996, 996])
@pytest.mark.parametrize("factorisation", [EIGENDECOMPOSITION, SINGULAR_VALUE_DECOMPOSITION])
def test_every_way_of_decomposing_works_at_any_scale(factorisation, exponent):
    matrix = times(MATRICES[0], exponent)
    for name, way in factorisation.fallbacks.items():
        with warnings.catch_warnings(record=True):  # of the jitter
            warnings.simplefilter("always")
            factorised, factors = way(matrix)
        left, values = factors[:2] if len(factors) == 3 else factors[::-1]
        right = factors[2] if len(factors) == 3 else left.mT
        rebuilt = (left * times(values, -exponent)) @ right
        assert relative_error(rebuilt, times(factorised, -exponent)) <= 1e-13, name
        assert relative_error(rebuilt, MATRICES[0]) <= 1e-13, name
