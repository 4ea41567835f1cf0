"""Roots by matrix products: coefficients, both forms, the Lyapunov equation, singular matrices."""

import dataclasses
import itertools
from functools import partial

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch

import covpool
import quick
from covpool import METHODS
from covpool.linalg.autograd.lift import lift
from covpool.linalg.forwards.approximants import MatrixPade, MatrixTaylor
from covpool.linalg.forwards.coupled import MinimaxNewtonSchulz
from covpool.linalg.functions import INV_SQRT, SQRT
from covpool.linalg.gradients.lyapunov import Lyapunov
from covpool.linalg.minimax_coefficients import SIGN_QUINTICS
from covpool.linalg.sign import sign_quotient, sign_steps
from covpool.linalg.spectrum import clip_to_rank
from spectra import (
    EPS,
    SPECTRA,
    null_space_rounding,
    orthogonal,
    pade_of_root,
    relative_error,
    with_spectrum,
)

NAMES = [name for name, row in METHODS.items() if row.gradient.solved_at is not None]
INVERSE = [name for name in NAMES if METHODS[name].supports("inv_sqrt")]
MINIMAX = "newton-schulz-minimax"


def random_symmetric(size, seed):
    matrix = torch.randn(size, size, dtype=torch.float64, generator=torch.manual_seed(seed))
    return (matrix + matrix.mT) / 2


def value_and_gradient(function, matrix, cotangent):
    matrix = matrix.clone().requires_grad_()
    result = function(matrix)
    return result.detach(), torch.autograd.grad(result, matrix, cotangent)[0]


def geometric(size, condition, seed=0):
    """Q, √λ and the matrix, λ evenly spaced in logarithm from 1 to 1/condition."""
    eigenvalues = np.logspace(0, -np.log10(condition), size)
    basis = torch.from_numpy(orthogonal(size, seed))
    return basis, torch.from_numpy(eigenvalues).sqrt(), with_spectrum(eigenvalues, seed)


def exact(basis, roots, cotangent):
    root = (basis * roots) @ basis.mT
    inner = (basis.mT @ cotangent @ basis) / (roots[:, None] + roots)
    return root, basis @ inner @ basis.mT


@pytest.mark.parametrize("degree", [1, 2, 5, 9])
def test_scalar_forms_against_mpmath(degree):
    """The Padé approximant in mpmath's own coefficients, and the Taylor polynomial in its."""
    x = torch.tensor([0, 1e-12, 1e-3, 0.1, 0.5, 0.9, 1], dtype=torch.float64)
    with mpmath.workdps(50):
        numerator, denominator = pade_of_root(degree)
        taylor = mpmath.taylor(lambda z: mpmath.sqrt(1 - z), 0, degree)
        for value, pade, polynomial in zip(
            x.tolist(),
            MatrixPade(degree=degree).scalar_root(x).tolist(),
            MatrixTaylor(degree=degree).scalar_root(x).tolist(),
            strict=True,
        ):
            z = 1 - mpmath.mpf(value)
            expected = mpmath.polyval(numerator[::-1], z) / mpmath.polyval(denominator[::-1], z)
            assert pade == pytest.approx(float(expected), rel=8 * EPS)
            expected = mpmath.polyval(taylor[::-1], z)
            assert polynomial == pytest.approx(float(expected), rel=16 * EPS)


def test_pade_in_closed_form():
    """√x ((1 + √x)ᴺ + (1 − √x)ᴺ) / ((1 + √x)ᴺ − (1 − √x)ᴺ), and 1/N at zero."""
    x = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    root, order = x.sqrt(), 11
    plus, minus = (1 + root) ** order, (1 - root) ** order
    ours = MatrixPade(degree=5).scalar_root(x)
    torch.testing.assert_close(ours, root * (plus + minus) / (plus - minus), rtol=1e-14, atol=0)
    assert MatrixPade(degree=5).scalar_root(torch.zeros(1)).item() == pytest.approx(1 / 11)


def test_minimax_coefficients_equioscillate():
    """Four alternations characterise the best odd quintic (Chebyshev); each row starts where the
    one before ends."""
    ends = [row[0] for row in SIGN_QUINTICS[1:]] + [1 - 2.676125e-10]
    with mpmath.workdps(50):
        for (start, a, b, c), end in zip(SIGN_QUINTICS, ends, strict=True):
            # The derivative a + 3b y + 5c y², y = x², vanishes at the two inner extremes.
            root = mpmath.sqrt(9 * mpmath.mpf(b) ** 2 - 20 * mpmath.mpf(a) * c)
            inner = [mpmath.sqrt((-3 * b + sign * root) / (10 * c)) for sign in (-1, 1)]
            points = [mpmath.mpf(start), *inner, mpmath.mpf(1)]
            assert points == sorted(points)
            values = [x * (a + b * x**2 + c * x**4) for x in points]
            for value, expected in zip(values, [end, 1, end, 1], strict=True):
                assert abs(value - expected) <= 2e-14


@pytest.mark.parametrize("least", [0.9, 0.2, 1 / 11, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_reach_the_sign(least, dtype):
    x = torch.logspace(np.log10(least), 0, 10_001, dtype=torch.float64)
    p = x * sign_quotient(x, sign_steps(least, dtype))
    assert (1 - p).abs().max() <= (4 * EPS if dtype == torch.float64 else 2e-9)
    below = torch.logspace(-12, np.log10(least), 1001, dtype=torch.float64)
    p = below * sign_quotient(below, sign_steps(least, dtype))
    assert p.min() >= 0
    assert p.max() <= 1 + 4 * EPS


def sensitivity(row):
    """How much further than a Padé approximant's errors of rounding are carried, in value and
    gradient: by 1/r where the root r of A/‖A‖ has its least, in the gradient by its square."""
    ratio = 1.0 if row.forward.accurate else max(1.0, 1 / 11 / row.forward.least_root(None))
    return ratio, ratio**2


def on_the_spectrum(matrix, function, row):
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix.detach())
    clipped = clip_to_rank(eigenvalues, len(matrix))
    return lift(matrix, None, clipped, eigenvectors, function, row)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("name", NAMES)
def test_matrix_form_is_spectral_form(name, spectrum, note_error):
    matrix, row = SPECTRA[spectrum](), METHODS[name]
    cotangent = random_symmetric(len(matrix), 0)
    ours = value_and_gradient(lambda a: covpool.matrix_sqrt(a, row), matrix, cotangent)
    spectral = value_and_gradient(lambda a: on_the_spectrum(a, SQRT, row), matrix, cotangent)
    singular = name == MINIMAX and spectrum in ("decaying", "rank-deficient")
    tolerance = null_space_rounding(row) if singular else 1e-13
    if singular:  # what reaches the factors of A: pairs of two null vectors do not
        ours, spectral = ((root, gradient @ root) for root, gradient in (ours, spectral))
    kind = "matrix = spectral" + (" (singular)" if singular else "")
    for one, other, carried in zip(ours, spectral, sensitivity(row), strict=True):
        assert note_error(kind, name, relative_error(one, other)) <= tolerance * carried


@pytest.mark.parametrize("degree", [1, 2, 3, 9])
@pytest.mark.parametrize("function", ["matrix_sqrt", "matrix_inv_sqrt"])
def test_pade_of_every_degree_is_its_spectral_form(function, degree):
    row = METHODS["mpa-lyapunov"].replace(degree=degree)
    basis, roots, matrix = geometric(16, 1e4)
    scale = roots.square().norm()
    values = row.forward.scalar_root(roots.square() / scale) * scale.sqrt()
    inverse = function == "matrix_inv_sqrt"
    expected = (basis * (1 / values if inverse else values)) @ basis.mT
    assert relative_error(getattr(covpool, function)(matrix, row), expected) <= 1e-12


@pytest.mark.parametrize("spectrum", ["separated", "clustered", "tied-dense", "identity", "huge"])
@pytest.mark.parametrize("name", INVERSE)
def test_matrix_form_of_the_inverse_root_is_spectral_form(name, spectrum, note_error):
    matrix, row = SPECTRA[spectrum](), METHODS[name]
    cotangent = random_symmetric(len(matrix), 0)
    ours = value_and_gradient(lambda a: covpool.matrix_inv_sqrt(a, row), matrix, cotangent)
    spectral = value_and_gradient(lambda a: on_the_spectrum(a, INV_SQRT, row), matrix, cotangent)
    for one, other in zip(ours, spectral, strict=True):
        error = relative_error(one / other.abs().max(), other / other.abs().max())
        assert note_error("inverse, matrix = spectral", name, error) <= 1e-13


@pytest.mark.parametrize("name", INVERSE)
def test_inverse_root_is_the_inverse_and_solves_its_lyapunov_equation(name, note_error):
    """Z P + P Z = −Z² G Z² (Song, Sebe, Wang, TPAMI 2023), against SciPy's Bartels-Stewart."""
    matrix = SPECTRA["separated"]()
    cotangent = random_symmetric(len(matrix), 1)
    inverse, gradient = value_and_gradient(
        lambda a: covpool.matrix_inv_sqrt(a, name), matrix, cotangent
    )
    product = inverse @ covpool.matrix_sqrt(matrix, name)
    torch.testing.assert_close(product, torch.eye(len(matrix)).double(), rtol=0, atol=1e-13)
    square = inverse @ inverse
    expected = scipy.linalg.solve_continuous_lyapunov(
        inverse.numpy(), -(square @ cotangent @ square).numpy()
    )
    error = relative_error(gradient, torch.from_numpy(expected))
    assert note_error("inverse, gradient", name, error) <= 1e-12


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_minimax_inverse_root_is_accurate(condition):
    basis, roots, matrix = geometric(64, condition)
    cotangent = random_symmetric(64, 2)
    ours = value_and_gradient(lambda a: covpool.matrix_inv_sqrt(a, MINIMAX), matrix, cotangent)
    inverse = (basis / roots) @ basis.mT
    _, gradient = exact(basis, roots, -inverse @ cotangent @ inverse)
    errors = [relative_error(*pair) for pair in zip(ours, (inverse, gradient), strict=True)]
    print(f"\ncondition {condition:.0e}: value {errors[0]:.1e}, gradient {errors[1]:.1e}")
    assert errors[0] <= 1e-13 + EPS * condition
    assert errors[1] <= 1e-12 + 8 * EPS * condition


@pytest.mark.parametrize("name", INVERSE)
def test_inverse_root_of_a_singular_matrix_is_refused(name):
    with pytest.raises(ValueError, match="matrix_inv_sqrt"):
        covpool.matrix_inv_sqrt(SPECTRA["rank-deficient"](), name)
    assert covpool.matrix_inv_sqrt(SPECTRA["rank-deficient"](), name, check=False).isfinite().all()
    assert not covpool.matrix_inv_sqrt(SPECTRA["zero"](), name, check=False).any()


@pytest.mark.parametrize(
    ("function", "name"),
    [(covpool.matrix_sqrt, name) for name in NAMES]
    + [(covpool.matrix_inv_sqrt, name) for name in INVERSE],
)
def test_forward_mode_is_the_transpose_of_the_gradient(function, name):
    matrix, cotangent, direction = SPECTRA["separated"](), *map(random_symmetric, (8, 8), (1, 2))
    _, gradient = value_and_gradient(lambda a: function(a, name), matrix, cotangent)
    _, tangent = torch.func.jvp(lambda a: function(a, name), (matrix,), (direction,))
    torch.testing.assert_close((tangent * cotangent).sum(), (gradient * direction).sum())


@pytest.mark.parametrize("function", [covpool.matrix_sqrt, covpool.matrix_inv_sqrt])
def test_minimax_hessians_are_the_exact_ones(function):
    matrix, weight = SPECTRA["tied-dense"]()[:4, :4].contiguous(), random_symmetric(4, 3)

    def loss(name):
        return lambda a: (function((a + a.mT) / 2, name).pow(2) * weight).sum()

    expected = torch.func.hessian(loss("exact"))(matrix)
    torch.testing.assert_close(torch.func.hessian(loss(MINIMAX))(matrix), expected)
    reverse = torch.func.jacrev(torch.func.jacrev(loss(MINIMAX)))(matrix)
    torch.testing.assert_close(reverse, expected)


def test_forward_over_reverse_is_refused_where_the_gradient_is_no_derivative():
    for name in NAMES:
        if not METHODS[name].exact_gradient:
            with pytest.raises(RuntimeError, match=f"'{name}' has no second derivative"):
                torch.func.hessian(
                    lambda a, name=name: covpool.matrix_sqrt(a, name).square().sum()
                )(SPECTRA["separated"]())


@pytest.mark.parametrize("spectrum", ["separated", "clustered", "tied-dense", "tiny", "huge"])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_solves_the_lyapunov_equation(name, spectrum, note_error):
    """Against SciPy's Bartels-Stewart, at the F that the method gives."""
    matrix = SPECTRA[spectrum]()
    cotangent = random_symmetric(len(matrix), 1)
    root, gradient = value_and_gradient(lambda a: covpool.matrix_sqrt(a, name), matrix, cotangent)
    scale = root.abs().max()
    expected = scipy.linalg.solve_continuous_lyapunov(
        (root / scale).numpy(), (cotangent / scale).numpy()
    )
    error = relative_error(gradient, torch.from_numpy(expected))
    assert note_error("gradient", name, error) <= 1e-12


# κ(A): value and gradient, in float64 and in float32.
DOCUMENTED = {
    1e1: (7e-15, 1e-14, 1.5e-6, 2.5e-6),
    1e2: (1e-14, 1e-14, 2.5e-6, 3e-6),
    1e4: (3e-14, 6e-14, 5e-6, 1e-5),
    1e6: (5e-14, 5e-12, 1.5e-5, 8e-4),
    1e8: (2e-13, 4e-10, 5e-5, 0.1),
}


@pytest.mark.axes(condition=(2,))
@pytest.mark.filterwarnings("ignore:compute_dtype=torch.float32")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("condition", DOCUMENTED)
def test_minimax_accuracy_is_as_documented(condition, dtype, note_error):
    """Medians of rounding errors, which hardly move between sets of matrices or processors; a
    single error, which does, may be off by more."""
    errors = []
    for seed in range(5):
        basis, roots, matrix = geometric(64, condition, seed)
        cotangent = random_symmetric(64, seed).to(dtype)
        if dtype == torch.float32:  # of the matrix as it is after rounding
            matrix = matrix.float()
            eigenvalues, basis = torch.linalg.eigh(matrix.double())
            roots = eigenvalues.sqrt()
        ours = value_and_gradient(
            lambda a: covpool.matrix_sqrt(a, MINIMAX, compute_dtype=dtype), matrix, cotangent
        )
        expected = exact(basis, roots, cotangent.double())
        errors.append([relative_error(a.double(), b) for a, b in zip(ours, expected, strict=True)])
    documented = DOCUMENTED[condition][:2] if dtype == torch.float64 else DOCUMENTED[condition][2:]
    for found, figure in zip(np.transpose(errors), documented, strict=True):
        note_error(f"documented at {condition:.0e}, {dtype}", MINIMAX, found.max())
        assert figure / 4 <= np.median(found) <= 4 * figure
        assert found.max() <= 16 * figure


def test_minimax_holds_at_condition_1e6_and_a_flat_spectrum():
    """The Frobenius norm is √n times the largest eigenvalue: the least favourable spectrum."""
    basis = torch.from_numpy(orthogonal(100, 0))
    eigenvalues = np.ones(100)
    eigenvalues[::20] = 1e-6
    cotangent = random_symmetric(100, 3)
    ours = value_and_gradient(
        lambda a: covpool.matrix_sqrt(a, MINIMAX), with_spectrum(eigenvalues), cotangent
    )
    reference = exact(basis, torch.from_numpy(eigenvalues).sqrt(), cotangent)
    assert relative_error(ours[0], reference[0]) <= 1e-12
    assert relative_error(ours[1], reference[1]) <= 1e-9


@pytest.mark.axes
@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("condition", [1e2, 1e4, 1e8])
@pytest.mark.parametrize(
    ("function", "name"),
    [("matrix_sqrt", name) for name in [*NAMES, "isqrt-cov"]]
    + [("matrix_inv_sqrt", name) for name in INVERSE if METHODS[name].smooth],
)
def test_float32_loses_nothing_to_the_way_of_computing(function, name, condition, size, note_error):
    """To the same in float64: a quotient of two polynomials was off by 6e-6 in the value. Random
    matrices lose up to 6 and 15 eps; the bounds are four times that."""
    matrix = geometric(size, condition)[2].float()
    cotangent = random_symmetric(size, 2).float()
    root = partial(getattr(covpool, function), method=name, check=False)
    ours = value_and_gradient(root, matrix, cotangent)
    reference = value_and_gradient(root, matrix.double(), cotangent.double())
    eps = torch.finfo(torch.float32).eps
    for one, other, bound in zip(ours, reference, (24 * eps, 60 * eps), strict=True):
        assert note_error("float32", name, relative_error(one.double(), other)) <= bound


@pytest.mark.parametrize(
    ("name", "condition", "documented"),
    [
        ("mtp-lyapunov", 1e2, (0.23, 0.41, 0.34)),
        ("mtp-lyapunov", 1e6, (0.62, 0.98, 0.52)),
        ("mpa-lyapunov", 1e2, (0.064, 0.18, 0.18)),
        ("mpa-lyapunov", 1e6, (0.30, 0.97, 0.42)),
        ("halley-lyapunov", 1e4, (0.00258, 0.0387, 0.11)),
        ("halley-lyapunov", 1e6, (0.0044, 0.68, 0.34)),
        ("halley-identity-lyapunov", 1e4, (0.0032, 0.113, 0.12)),
        ("halley-identity-lyapunov", 1e6, (0.013, 0.73, 0.33)),
    ],
)
def test_approximation_errors_are_as_documented(name, condition, documented):
    """Value, gradient to the exact one, gradient to the derivative of the forward pass."""
    basis, roots, matrix = geometric(64, condition)
    cotangent = torch.randn(64, 64, dtype=torch.float64, generator=torch.manual_seed(0))
    cotangent = (cotangent + cotangent.mT) / 2
    row = METHODS[name]
    root, gradient = value_and_gradient(lambda a: covpool.matrix_sqrt(a, row), matrix, cotangent)
    expected = exact(basis, roots, cotangent)
    forward = row.forward
    assert row.gradient.solved_at == forward
    _, derivative = value_and_gradient(lambda a: forward.roots(a, False)[0], matrix, cotangent)
    found = (
        relative_error(root, expected[0]),
        relative_error(gradient, expected[1]),
        relative_error(gradient, (derivative + derivative.mT) / 2),
    )
    assert found == pytest.approx(documented, rel=0.03)


@pytest.mark.axes
@pytest.mark.filterwarnings("ignore:compute_dtype=torch.float32")
@pytest.mark.parametrize("size", [2, 3, 5, 8, 16, 33, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_minimax_gradient_of_nearly_rank_one_matrices(size, dtype):
    """The largest eigenvalue of A/‖A‖ is 1 but for rounding, above which the polynomials grow."""
    for rest, seed in itertools.product((1e-2, 1e-3, 1e-4), range(6)):
        v = random_symmetric(size, seed)[0] if seed else torch.ones(size, dtype=torch.float64)
        matrix = torch.outer(v, v) / v.square().sum() + rest * torch.eye(size)
        matrix = (matrix / (1 + rest)).to(dtype)
        cotangent = random_symmetric(size, seed + 10)
        root = partial(covpool.matrix_sqrt, method=MINIMAX, compute_dtype=dtype)
        ours = value_and_gradient(root, matrix, cotangent.to(dtype))
        expected = value_and_gradient(covpool.matrix_sqrt, matrix.double(), cotangent)
        # The model of the documented table: roundings times the condition number.
        for one, other in zip(ours, expected, strict=True):
            error = relative_error(one.double(), other)
            assert error <= 256 * torch.finfo(dtype).eps * max(16, 1 / rest) ** 0.5


def test_minimax_underestimates_what_it_does_not_resolve():
    iteration = METHODS[MINIMAX].forward
    assert isinstance(iteration, MinimaxNewtonSchulz)
    x = torch.logspace(-20, 0, 20_001, dtype=torch.float64)
    short = x.sqrt() - iteration.scalar_root(x)
    assert short.min() >= -4 * EPS
    assert 2.7e-6 <= short.max() <= 2.85e-6
    assert (short / x.sqrt())[x >= 1 / iteration.condition].max() <= 4 * EPS
    assert iteration.scalar_root(torch.zeros(1)).item() == 0


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_below_zero_is_survived(dtype, size):
    """Rank 3, rounded: eigenvalues down to −eps, which a growing iteration would blow up."""
    factor = torch.randn(4, size, 3, dtype=torch.float64, generator=torch.manual_seed(0))
    matrix = (factor @ factor.mT).to(dtype).double()
    lowest = torch.linalg.eigvalsh(matrix)
    assert (lowest[:, 0] < -1e-3 * torch.finfo(dtype).eps * lowest[:, -1]).all()
    results = {
        name: value_and_gradient(
            lambda a, name=name: covpool.matrix_sqrt(a, name, check=False),
            matrix,
            torch.ones_like(matrix),
        )
        for name in NAMES
    }
    for root, gradient in results.values():
        assert root.isfinite().all()
        assert gradient.isfinite().all()
    reference = covpool.matrix_sqrt(matrix, check=False)
    # Off by the roots of eigenvalues within rounding of zero.
    tolerance = (16 * size * torch.finfo(dtype).eps) ** 0.5
    assert relative_error(results[MINIMAX][0], reference) <= tolerance


def test_indefinite_matrices_unchecked_give_nan_not_numbers():
    matrix = torch.diag(torch.tensor([-1.0, 4.0]))
    assert covpool.matrix_sqrt(matrix, MINIMAX, check=False).isnan().any()
    assert covpool.matrix_sqrt(matrix, "mpa-lyapunov", check=False).isnan().any()


def test_gradient_of_features_at_deficient_rank():
    """Through a singular 8 × 8 matrix, against the exact gradient."""
    factor = torch.randn(8, 3, dtype=torch.float64, generator=torch.manual_seed(0))
    cotangent = random_symmetric(8, 4)
    _, ours = value_and_gradient(
        lambda f: covpool.matrix_sqrt(f @ f.mT, MINIMAX), factor, cotangent
    )
    _, reference = value_and_gradient(lambda f: covpool.matrix_sqrt(f @ f.mT), factor, cotangent)
    assert relative_error(ours, reference) <= null_space_rounding(METHODS[MINIMAX])


def test_no_entry_exceeds_the_documented_bound():
    eigenvalues = torch.cat([torch.zeros(1), torch.logspace(-30, 0, 1001)]).double()
    rule = METHODS[MINIMAX].gradient
    loewner = rule.loewner(SQRT, eigenvalues, len(eigenvalues)).matrix
    scaled = loewner * eigenvalues.norm().sqrt()
    assert loewner[0, 0] == 0
    assert scaled.min() >= 0
    assert 5e4 <= scaled.max() <= 6.1e4


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e12, 1e16])
def test_more_condition_resolves_more(condition):
    row = METHODS[MINIMAX].replace(condition=condition)
    matrix = torch.diag(torch.tensor([1.01 / condition, 1.0], dtype=torch.float64))
    root = covpool.matrix_sqrt(matrix, row)
    assert root[0, 0].item() == pytest.approx((1.01 / condition) ** 0.5, rel=1e-9 + 4 * EPS**0.5)


@pytest.mark.parametrize("name", NAMES)
def test_other_gradients_are_refused(name):
    """When the method is made: gradients of another rule, and of the same at another iteration."""
    constant = next(iter(METHODS[name].constants))
    other = METHODS[name].replace(**{constant: 7}).gradient
    for gradient in (METHODS["exact"].gradient, other):
        with pytest.raises(
            ValueError, match=f"'{name}'.*does not differentiate.*the same iteration"
        ):
            dataclasses.replace(METHODS[name], gradient=gradient)


@pytest.mark.parametrize("name", NAMES)
def test_constants_reach_forward_and_gradient(name):
    constant = next(iter(METHODS[name].constants))
    row = METHODS[name].replace(**{constant: 7})
    assert isinstance(row.gradient, Lyapunov)
    assert row.gradient.forward == row.forward
    assert getattr(row.forward, constant) == 7


@pytest.mark.parametrize("name", NAMES)
def test_transforms_of_the_matrix_form(name):
    matrices = torch.stack([with_spectrum(np.arange(1.0, 7) + i, i) for i in range(3)])

    def root(a):
        return covpool.matrix_sqrt(a, name)

    torch.testing.assert_close(torch.func.vmap(root)(matrices), root(matrices))
    each = torch.func.vmap(torch.func.grad(lambda a: root(a).square().sum()))(matrices)
    matrices.requires_grad_()
    (together,) = torch.autograd.grad(root(matrices).square().sum(), matrices)
    torch.testing.assert_close(each, together)


@quick.parametrize("name", NAMES, keep=[MINIMAX])
def test_the_matrix_form_compiles(name):
    matrices = torch.stack([with_spectrum(np.arange(1.0, 7) + i, i) for i in range(3)])

    def root(a):
        return covpool.matrix_sqrt(a, name)

    torch.compiler.reset()
    compiled = torch.compile(root, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (matrices, matrices[:2]):
        torch.testing.assert_close(compiled(batch), root(batch))


@pytest.mark.parametrize("scale", [1e-38, 1e-36, 1e36])
@pytest.mark.parametrize("name", [*NAMES, "isqrt-cov"])
def test_checks_do_not_depend_on_the_scale(name, scale):
    matrix = (with_spectrum(np.linspace(1, 3, 8)) / 3 * scale).float()
    for function in METHODS[name].functions:
        result = covpool.MatrixFunction(function, name)(matrix)
        assert result.isfinite().all()
    with pytest.raises(ValueError, match="not positive semi-definite"):
        covpool.matrix_sqrt(-matrix, name)
    with pytest.raises(ValueError, match="singular"):
        covpool.matrix_inv_sqrt(torch.diag(matrix.diagonal() * torch.arange(8)), "isqrt-cov")
