"""Gradients of every method against oracles that are not covpool's."""

import dataclasses
from functools import partial

import mpmath
import numpy as np
import pytest
import torch

import covpool
from covpool import METHODS
from covpool.linalg.forwards.coupled import NewtonSchulz
from covpool.linalg.functions import INV_SQRT, SQRT
from covpool.linalg.gradients.base import Pairwise
from spectra import (
    DIGITS,
    SPECTRA,
    newton_schulz,
    relative_error,
    sqrt,
    to_mpmath,
    to_torch,
    with_spectrum,
)

STEP = mpmath.mpf(10) ** -15
PAIRWISE = [name for name, row in METHODS.items() if isinstance(row.gradient, Pairwise)]
# Where the gradient is the derivative of the result: of the exact root, or of its own iteration.
SECOND_ORDER = [
    name for name, row in METHODS.items() if row.exact_gradient or row.differentiates_steps
]
FULL_RANK = ["separated", "clustered", "tied-diagonal", "tied-dense", "identity", "one-by-one"]
FULL_RANK += ["decaying", "tiny", "huge"]


def random_symmetric(size, seed):
    matrix = torch.randn(size, size, dtype=torch.float64, generator=torch.manual_seed(seed))
    return (matrix + matrix.mT) / 2


def gradient(function, matrix, cotangent):
    matrix = matrix.clone().requires_grad_()
    return torch.autograd.grad(function(matrix), matrix, cotangent)[0]


def directional(root, matrix, direction):
    """Central finite difference of a root in mpmath; its error is far below float64's."""
    plus, minus = root(matrix + STEP * direction), root(matrix - STEP * direction)
    return to_torch((plus - minus) / (2 * STEP))


@pytest.mark.parametrize("spectrum", FULL_RANK)
def test_exact_against_finite_differences_in_mpmath(spectrum, note_error):
    matrix = SPECTRA[spectrum]()
    size = matrix.shape[-1]
    scale = matrix.abs().max()
    for seed in range(3):
        direction = random_symmetric(size, seed)
        cotangent = random_symmetric(size, seed + 10)
        with mpmath.workdps(2 * DIGITS):
            expected = directional(
                lambda m: sqrt(m / mpmath.mpf(scale.item())),
                to_mpmath(matrix),
                mpmath.mpf(scale.item()) * to_mpmath(direction),
            )
        # √A = √s √(A/s): the oracle differentiates the second factor along s · direction.
        ours = gradient(covpool.matrix_sqrt, matrix, cotangent) * scale.sqrt()
        actual = (ours * direction).sum()
        # The smallest eigenvalue is known to n · eps of the largest, and so is the derivative.
        floor = (torch.linalg.eigvalsh(matrix / scale)[0]).clamp_min(1e-16).item()
        tolerance = 1e-13 + 4 * size * torch.finfo(torch.float64).eps / floor
        norm = ours.norm() * direction.norm()
        error = (abs(actual - (expected * cotangent).sum()) / norm).item()
        kind = "gradient (decaying)" if spectrum == "decaying" else "gradient"
        assert note_error(kind, "exact", error) <= tolerance


@pytest.mark.parametrize(("size", "rank"), [(8, 3), (8, 7), (5, 1)])
def test_exact_at_deficient_rank_along_changes_that_keep_it(size, rank):
    generator = np.random.default_rng(size * rank)
    factor = torch.from_numpy(generator.integers(-3, 4, (size, rank)).astype(float))
    direction = torch.from_numpy(generator.standard_normal((size, rank)))
    cotangent = random_symmetric(size, 1)

    ours = gradient(lambda f: covpool.matrix_sqrt(f @ f.mT), factor, cotangent)
    with mpmath.workdps(2 * DIGITS):
        expected = directional(lambda f: sqrt(f * f.T), to_mpmath(factor), to_mpmath(direction))
    assert (ours * direction).sum().item() == pytest.approx(
        (expected * cotangent).sum().item(), rel=1e-11
    )


@pytest.mark.parametrize("spectrum", ["separated", "tied-diagonal", "tied-dense", "identity"])
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_gradcheck_and_gradgradcheck(name, spectrum):
    matrix = SPECTRA[spectrum]()[:5, :5].contiguous().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a: covpool.matrix_sqrt((a + a.mT) / 2, name), (matrix,), fast_mode=True
    )
    assert torch.autograd.gradgradcheck(
        lambda a: covpool.matrix_sqrt((a + a.mT) / 2, name), (matrix,), fast_mode=True
    )


@pytest.mark.parametrize("power", [1, 2])
def test_exact_second_derivative_at_deficient_rank(power):
    """√(F Fᵀ) = F (FᵀF)^(−1/2) Fᵀ, which is smooth where F has full column rank."""
    factor = torch.randn(5, 2, dtype=torch.float64, generator=torch.manual_seed(0))
    weight = random_symmetric(5, 1)

    def ours(f):
        return (covpool.matrix_sqrt(f @ f.mT).pow(power) * weight).sum()

    def reference(f):
        eigenvalues, vectors = torch.linalg.eigh(f.mT @ f)
        return ((f @ (vectors * eigenvalues.rsqrt()) @ vectors.mT @ f.mT).pow(power) * weight).sum()

    actual = torch.autograd.functional.hessian(ours, factor)
    expected = torch.autograd.functional.hessian(reference, factor)
    assert relative_error(actual, expected) <= 1e-12  # type: ignore[arg-type]
    # Where forward mode comes first, another factor of the product is what keeps the rank.
    for outer, inner in (("jacrev", "jacrev"), ("jacfwd", "jacrev"), ("jacrev", "jacfwd")):
        found = getattr(torch.func, outer)(getattr(torch.func, inner)(ours))(factor)
        assert relative_error(found, expected) <= 1e-12  # type: ignore[arg-type]


def plain_newton_schulz(matrix, iterations):
    """The iteration as one would write it, for autograd to differentiate."""
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    trace = matrix.trace()
    y, z = matrix / trace, identity
    for _ in range(iterations):
        t = (3 * identity - z @ y) / 2
        y, z = y @ t, t @ z
    return trace.sqrt() * y


def plain_halley(matrix, iterations, start="matrix"):
    """The same of Halley's."""
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    trace = matrix.trace()
    y, z = matrix / trace, identity
    for _ in range(iterations):
        p = z @ y
        t = torch.linalg.solve(identity + 3 * p, 3 * identity + p)
        y, z = y @ t, t @ z
    return trace.sqrt() * (y if start == "matrix" else torch.linalg.inv(z))


LOOPS = {"Newton-Schulz": plain_newton_schulz, "Halley": plain_halley}


@pytest.mark.parametrize("spectrum", [name for name in SPECTRA if name != "zero"])
@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.unrolled])
def test_unrolled_gradient_against_autograd_through_the_loop(name, spectrum, note_error):
    matrix, rule = SPECTRA[spectrum](), METHODS[name].gradient
    cotangent = random_symmetric(matrix.shape[-1], 5)
    loop = partial(LOOPS[rule.title], **dataclasses.asdict(rule))
    expected = gradient(loop, matrix, cotangent)
    expected = (expected + expected.mT) / 2
    ours = gradient(lambda a: covpool.matrix_sqrt(a, name), matrix, cotangent)
    error = relative_error((ours + ours.mT) / 2, expected)
    assert note_error("gradient", name, error) <= 1e-10


@pytest.mark.parametrize(
    ("iterations", "eigenvalue", "share"),
    [(5, 1e-2, 0.659), (5, 1e-4, 0.0758), (10, 1e-2, 1 - 3e-11), (10, 1e-4, 0.529)],
)
def test_newton_schulz_converges_as_its_docstring_says(iterations, eigenvalue, share):
    row = METHODS["isqrt-cov"].replace(iterations=iterations)
    matrix = torch.diag(torch.tensor([eigenvalue, 1 - eigenvalue], dtype=torch.float64))
    root = covpool.matrix_sqrt(matrix, row)[0, 0].item()
    assert root / eigenvalue**0.5 == pytest.approx(share, abs=5e-4 if share < 0.9 else 1e-11)


@pytest.mark.parametrize("spectrum", ["separated", "tied-dense", "rank-deficient", "decaying"])
def test_newton_schulz_on_the_spectrum_is_the_iteration(spectrum):
    """The scalar recursion, which the factored path uses, against the iteration in mpmath."""
    matrix = SPECTRA[spectrum]()
    iteration = NewtonSchulz(iterations=5)
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    values = iteration.values(covpool.linalg.functions.SQRT, eigenvalues.clamp_min(0), len(matrix))
    with mpmath.workdps(DIGITS):
        expected = to_torch(newton_schulz(to_mpmath(matrix), 5))
    assert relative_error((vectors * values) @ vectors.mT, expected) <= 1e-13


def unfused_sqrt(matrix, kernel):
    eigenvalues, vectors = covpool.eigh(matrix, kernel=kernel)
    return (vectors * eigenvalues.sqrt()[..., None, :]) @ vectors.mT


@pytest.mark.parametrize("spectrum", ["separated", "clustered", "tied-diagonal", "one-by-one"])
@pytest.mark.parametrize("name", PAIRWISE)
def test_fused_against_unfused(name, spectrum, note_error):
    matrix = SPECTRA[spectrum]()
    gradient_rule = METHODS[name].gradient
    assert isinstance(gradient_rule, Pairwise)
    cotangent = random_symmetric(matrix.shape[-1], 2)
    fused = gradient(lambda a: covpool.matrix_sqrt(a, name), matrix, cotangent)
    unfused = gradient(lambda a: unfused_sqrt(a, gradient_rule.kernel), matrix, cotangent)
    # Unfused, rounding errors of order eps meet kernels as large as the smallest gap allows; the
    # eigenvectors of the diagonal matrix are unit vectors, which leaves nothing to round.
    largest = gradient_rule.kernel.matrix(torch.linalg.eigvalsh(matrix)).abs().max().item()
    if spectrum == "tied-diagonal":
        largest = 1
    error = relative_error(unfused, fused)
    kind = "fused = unfused" + (" (clustered)" if spectrum == "clustered" else "")
    assert note_error(kind, name, error) <= 1e-13 + 20 * torch.finfo(torch.float64).eps * largest


@pytest.mark.parametrize("spectrum", ["separated", "clustered"])
def test_power_iteration_against_autograd_through_the_iterations(spectrum, note_error):
    """Wang et al. (2019) as an algorithm: eigenvectors from the decomposition, refined by power
    iterations that autograd sees, deflation between them."""
    steps = 7
    matrix = SPECTRA[spectrum]()
    _, vectors = torch.linalg.eigh(matrix)

    def root(a):
        deflated, result = a, torch.zeros_like(a)
        for start in vectors.mT.flip(0):
            v = start
            for _ in range(steps):
                v = deflated @ v
                v = v / v.norm()
            eigenvalue = v @ a @ v
            result = result + eigenvalue.sqrt() * torch.outer(v, v)
            deflated = deflated - torch.outer(deflated @ v, v)
        return result

    cotangent = random_symmetric(matrix.shape[-1], 4)
    expected = gradient(root, matrix, cotangent)
    row = METHODS["svd-pi"].replace(steps=steps)
    ours = gradient(lambda a: covpool.matrix_sqrt(a, row), matrix, cotangent)
    error = relative_error(ours, (expected + expected.mT) / 2)
    assert note_error("gradient", "svd-pi", error) <= 1e-10


def test_power_iteration_approaches_the_exact_gradient():
    matrix = with_spectrum(2.0 ** np.arange(8))
    cotangent = random_symmetric(8, 6)
    exact = gradient(covpool.matrix_sqrt, matrix, cotangent)
    distances = []
    for steps in (1, 2, 4, 8, 16, 32, 64):
        row = METHODS["svd-pi"].replace(steps=steps)
        ours = gradient(lambda a, row=row: covpool.matrix_sqrt(a, row), matrix, cotangent)
        distances.append(relative_error(ours, exact))
    print("\nsvd-pi, distance to exact:", [f"{d:.1e}" for d in distances])
    assert distances == sorted(distances, reverse=True)
    # Neighbouring eigenvalues have the ratio 1/2, so a step halves the distance.
    assert distances[0] > 0.1
    assert distances[-1] < 1e-13
    assert distances[4] / distances[3] == pytest.approx(2.0**-8, rel=0.2)


def test_topn_against_its_definition_in_mpmath(note_error):
    matrix = SPECTRA["separated"]()
    size = len(matrix)
    kept = round(METHODS["svd-topn"].constants["kept_fraction"] * size)
    cotangent = random_symmetric(size, 8)
    with mpmath.workdps(DIGITS):
        eigenvalues, vectors = mpmath.eigsy(to_mpmath(matrix))
        inner = vectors.T * to_mpmath(cotangent) * vectors
        bound = 1 / eigenvalues[size - kept]
        for i in range(size):
            for j in range(size):
                a, b = eigenvalues[i], eigenvalues[j]
                if min(i, j) < size - kept:
                    inner[i, j] = 0
                elif i == j:
                    inner[i, i] /= 2 * mpmath.sqrt(a)
                else:
                    kernel = min(1 / abs(a - b), bound)
                    inner[i, j] *= kernel * abs(mpmath.sqrt(a) - mpmath.sqrt(b))
        expected = to_torch(vectors * inner * vectors.T)
    ours = gradient(lambda a: covpool.matrix_sqrt(a, "svd-topn"), matrix, cotangent)
    assert note_error("gradient", "svd-topn", relative_error(ours, expected)) <= 1e-13


@pytest.mark.parametrize("positions", [3, 20])
def test_topn_discards_nothing_of_a_rank_below_n(positions):
    """Rank 2 of 8 where 6 are kept: the gradient of the features is the exact one."""
    factor = torch.randn(8, 2, dtype=torch.float64, generator=torch.manual_seed(0))
    x = factor @ torch.randn(2, positions, dtype=torch.float64, generator=torch.manual_seed(1))
    cotangent = random_symmetric(8, 2)
    topn = gradient(lambda x: covpool.cov_pool(x, "svd-topn"), x, cotangent)
    exact = gradient(covpool.cov_pool, x, cotangent)
    assert relative_error(topn, exact) <= 1e-12


def test_topn_ignores_the_discarded_part():
    eigenvalues = np.arange(1.0, 9.0)
    cotangent = random_symmetric(8, 9)
    results = []
    for smallest in (1.0, 1e-3):
        eigenvalues[0] = smallest
        matrix = with_spectrum(eigenvalues)
        results.append(
            (
                covpool.matrix_sqrt(matrix, "svd-topn"),
                gradient(lambda a: covpool.matrix_sqrt(a, "svd-topn"), matrix, cotangent),
            )
        )
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", PAIRWISE)
def test_kernels_agree_with_exact_far_from_ties(name, note_error):
    """Ratios of at most 1/10, where every kernel has converged to 1/(λi − λj), the Lorentzian but
    for (10⁻⁶/gap)², gaps of at least 0.9 of the larger eigenvalue."""
    matrix = with_spectrum(10.0 ** np.arange(5))
    cotangent = random_symmetric(5, 3)
    exact = gradient(covpool.matrix_sqrt, matrix, cotangent)
    ours = gradient(lambda a: covpool.matrix_sqrt(a, name), matrix, cotangent)
    broadening = (1e-6 / 0.9) ** 2 if name == "svd-lorentz" else 0
    error = relative_error(ours, exact)
    assert note_error("to exact, ratios <= 1/10", name, error) <= broadening + 1e-13


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", METHODS)
def test_gradient_is_finite_and_symmetric(name, dtype, spectrum):
    matrix = SPECTRA[spectrum]()
    if dtype == torch.float32 and spectrum in ("tiny", "huge"):
        matrix = matrix / matrix.max() * {"tiny": 1e-35, "huge": 1e35}[spectrum]
    matrix = matrix.to(dtype)
    cotangent = random_symmetric(matrix.shape[-1], 7).to(dtype)
    result = gradient(lambda a: covpool.matrix_sqrt(a, name), matrix, cotangent)
    assert result.isfinite().all()
    assert result.dtype == dtype
    if spectrum == "zero":
        assert not result.any()


@pytest.mark.parametrize("kernel", covpool.KERNELS)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_eigh_gradient_is_finite(kernel, spectrum):
    matrix = SPECTRA[spectrum]().requires_grad_()
    vectors = covpool.eigh(matrix, kernel=kernel)[1]
    weight = torch.randn(vectors.shape, dtype=torch.float64, generator=torch.manual_seed(0))
    (vectors * weight).sum().backward()
    assert matrix.grad is not None
    assert matrix.grad.isfinite().all()


def test_eigh_is_torchs_away_from_ties():
    matrix = random_symmetric(6, 0)  # indefinite
    weight = torch.randn(6, 6, dtype=torch.float64, generator=torch.manual_seed(1))

    def loss(decomposition):
        return lambda a: (lambda w, v: (w**2).sum() + (v.abs() * weight).sum())(*decomposition(a))

    ours = gradient(loss(covpool.eigh), matrix, torch.tensor(1.0).double())
    torchs = gradient(loss(torch.linalg.eigh), matrix, torch.tensor(1.0).double())
    torch.testing.assert_close(ours, (torchs + torchs.mT) / 2)


def test_eigh_second_derivative():
    matrix = SPECTRA["separated"]()[:4, :4].contiguous().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda a: unfused_sqrt((a + a.mT) / 2, "difference"), (matrix,)
    )


@pytest.mark.parametrize("name", [name for name in METHODS if name not in SECOND_ORDER])
def test_other_second_derivatives_are_refused(name):
    matrix = SPECTRA["separated"]().requires_grad_()
    (first,) = torch.autograd.grad(
        covpool.matrix_sqrt(matrix, name).square().sum(), matrix, create_graph=True
    )
    with pytest.raises(
        RuntimeError, match=f"'{name}' has no second derivative.*use method='exact'"
    ):
        torch.autograd.grad(first.sum(), matrix)


def newton_schulz_scalar(function, iterations):
    def value(x):
        y, z = x, mpmath.mpf(1)
        for _ in range(iterations):
            t = (3 - z * y) / 2
            y, z = y * t, t * z
        return z if function is INV_SQRT else y

    return value


@pytest.mark.parametrize("function", [SQRT, INV_SQRT])
@pytest.mark.parametrize("iterations", [1, 5, 10, 20])
def test_newton_schulz_divided_differences(function, iterations):
    """Far apart, near, tied and zero, over twelve orders of magnitude."""
    base = 10.0 ** np.random.default_rng(iterations).uniform(-12, 0, 6)
    gaps = np.array([0, 1e-15, 1e-9, 1e-4, 9e-3, 1.1e-2])
    x = np.sort(np.concatenate([base, base * (1 + gaps), [0.0, 0.0]]))
    x = torch.from_numpy(x / x.sum())
    _, ours = NewtonSchulz(iterations=iterations).divided_difference(function, x)
    value = newton_schulz_scalar(function, iterations)
    bound = 4 * (iterations + 1) * torch.finfo(torch.float64).eps
    with mpmath.workdps(60):
        points = [mpmath.mpf(v) for v in x.tolist()]
        values = [value(v) for v in points]
        for i, a in enumerate(points):
            for j, b in enumerate(points[:i]):
                tied = mpmath.diff(value, a, h=mpmath.mpf(10) ** -25) if a == b else None
                expected = tied or (values[i] - values[j]) / (a - b)
                assert abs(ours[i, j].item() / expected - 1) < bound
                assert abs(ours[j, i].item() / expected - 1) < bound
