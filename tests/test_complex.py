"""Complex Hermitian matrices and complex features: values, gradients, transforms, refusals."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import covpool
import quick
from covpool import FUNCTIONS, METHODS
from spectra import relative_error, with_spectrum

SIZE = 5
EXPONENT = 0.3
MATRIX_FUNCTIONS = {
    "sqrt": covpool.matrix_sqrt,
    "inv_sqrt": covpool.matrix_inv_sqrt,
    "power": lambda matrix, *args, **kwargs: covpool.matrix_power(
        matrix, EXPONENT, *args, **kwargs
    ),
    "log": covpool.matrix_log,
}
EXACT = [name for name, row in METHODS.items() if row.exact_gradient or row.differentiates_steps]
SPECTRA = {
    "separated": [0.5, 1.0, 2.0, 3.5, 6.0],
    "tied": [1.0, 1.0, 1.0, 4.0, 4.0],
    "near-tied": [1.0, 1.0 + 1e-9, 2.0, 2.0 + 1e-12, 5.0],
    "rank-deficient": [0.0, 0.0, 1.0, 2.0, 5.0],
}
SHAPES = {"gram": (2, 6, 4), "covariance": (2, 4, 9)}


def pairings(methods=METHODS):
    return [(m, f) for m in methods for f in MATRIX_FUNCTIONS if METHODS[m].supports(f)]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def unitary(size: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(random(size, size, seed=seed)).Q


def hermitian(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mH) / 2


def lifted(values: Tensor, basis: Tensor) -> Tensor:
    return hermitian((basis * values) @ basis.mH)


def spectrum(name: str) -> Tensor:
    return torch.tensor(SPECTRA[name], dtype=torch.float64)


def matrix_of(name: str) -> Tensor:
    return lifted(spectrum(name), unitary(SIZE))


def bound(function: str):
    scalar = FUNCTIONS[function]
    if scalar.parameter is None:
        return scalar
    return scalar.bind(torch.tensor(EXPONENT, dtype=torch.float64))


def embedded(matrix: Tensor) -> Tensor:
    """The real matrices [[Re, −Im], [Im, Re]], whose products are those of the complex ones."""
    real, imaginary = matrix.real, matrix.imag
    top, bottom = torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)
    return torch.cat([top, bottom], -2)


def pulled_back(gradient: Tensor) -> Tensor:
    """The adjoint of `embedded`, halved: what a gradient by way of it is to the complex matrix."""
    left, right = gradient.chunk(2, -1)
    (a, c), (b, d) = left.chunk(2, -2), right.chunk(2, -2)
    return torch.complex(a + d, c - b) / 2


def value_and_gradient(function, matrix: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    matrix = matrix.clone().requires_grad_()
    value = function(matrix)
    (gradient,) = torch.autograd.grad((value * weights.conj()).real.sum(), matrix)
    return value.detach(), gradient


@pytest.mark.parametrize("case", SPECTRA)
@pytest.mark.parametrize(("method", "function"), pairings(["exact"]))
def test_exact_from_prescribed_spectra(method, function, case):
    """Values by V f(Λ) Vᴴ, and both by the real matrix of twice the size, at ties as well."""
    matrix, weights = matrix_of(case), random(SIZE, SIZE, seed=1)

    def evaluate(x: Tensor) -> Tensor:
        return MATRIX_FUNCTIONS[function](x, method, check=case != "rank-deficient")

    value, gradient = value_and_gradient(evaluate, matrix, weights)
    values = bound(function).value(spectrum(case))
    assert relative_error(value, lifted(values, unitary(SIZE))) <= 1e-13
    real_value, real_gradient = value_and_gradient(evaluate, embedded(matrix), embedded(weights))
    assert relative_error(embedded(value), real_value) <= 1e-13
    assert relative_error(gradient, pulled_back(real_gradient)) <= 1e-12
    assert relative_error(gradient, gradient.mH) <= 1e-14


ORACLES = {
    "sqrt": scipy.linalg.sqrtm,
    "inv_sqrt": lambda x: np.linalg.inv(scipy.linalg.sqrtm(x)),
    "power": lambda x: scipy.linalg.fractional_matrix_power(x, EXPONENT),
    "log": scipy.linalg.logm,
}


@pytest.mark.parametrize("case", ["separated", "tied"])
@pytest.mark.parametrize(
    ("method", "function"),
    [pair for pair in pairings() if pair[0].startswith(("exact", "newton")) or pair[0] == "svd"],
)
def test_values_are_those_of_scipy(method, function, case):
    matrix = matrix_of(case)
    expected = torch.from_numpy(np.asarray(ORACLES[function](matrix.numpy())))
    assert relative_error(MATRIX_FUNCTIONS[function](matrix, method), expected) <= 1e-12


@pytest.mark.parametrize(("method", "function"), pairings())
def test_every_method_by_its_own_rule(method, function):
    """V diag(f) Vᴴ and V (L ∘ VᴴGV) Vᴴ + Σ tᵢ(VᴴGV)ᵢᵢ I, with the real f, L and t of the row."""
    row, scalar = METHODS[method], bound(function)
    basis, eigenvalues, weights = unitary(SIZE), spectrum("separated"), random(SIZE, SIZE, seed=1)
    matrix = lifted(eigenvalues, basis)
    value, gradient = value_and_gradient(
        lambda x: MATRIX_FUNCTIONS[function](x, method), matrix, weights
    )
    values = row.forward.values(scalar, eigenvalues.clone(), SIZE)
    assert relative_error(value, lifted(values, basis)) <= 1e-12
    loewner, trace = row.gradient.loewner(scalar, eigenvalues.clone(), SIZE)
    projected = basis.mH @ hermitian(weights) @ basis
    expected = basis @ (loewner * projected) @ basis.mH
    if trace is not None:
        expected = expected + (trace * projected.diagonal().real).sum() * torch.eye(SIZE)
    assert relative_error(gradient, expected) <= 1e-9


@quick.whole_jacobians
@quick.parametrize("case", ["separated", "tied"], keep=["tied"])
@quick.parametrize(
    ("method", "function"),
    pairings(EXACT),
    keep=[("exact", "sqrt"), ("exact", "log"), ("isqrt-cov", "inv_sqrt")],
)
def test_gradcheck(method, function, case, fast_mode):
    def evaluate(x: Tensor) -> Tensor:
        return MATRIX_FUNCTIONS[function](hermitian(x), method)

    matrix = lifted(spectrum(case)[[0, 1, -1]], unitary(3)).requires_grad_()
    assert gradcheck(evaluate, matrix, check_forward_ad=True, fast_mode=fast_mode)
    assert gradgradcheck(evaluate, matrix, check_fwd_over_rev=True, fast_mode=fast_mode)


@quick.whole_jacobians
@pytest.mark.parametrize("function", MATRIX_FUNCTIONS)
def test_gradcheck_along_changes_that_keep_the_rank(function, fast_mode):
    factor = random(4, 2).requires_grad_()

    def evaluate(x: Tensor) -> Tensor:
        return MATRIX_FUNCTIONS[function](x @ x.mH, check=False)

    assert gradcheck(evaluate, factor, check_forward_ad=True, fast_mode=fast_mode)
    assert gradgradcheck(evaluate, factor, fast_mode=fast_mode)


@quick.whole_jacobians
def test_gradcheck_of_the_exponent(fast_mode):
    factor = random(2, 3, 4).requires_grad_()
    exponent = torch.tensor([0.4, 0.7], dtype=torch.float64, requires_grad=True)

    def evaluate(x: Tensor, p: Tensor) -> Tensor:
        return covpool.matrix_power(x @ x.mH, p)

    assert gradcheck(evaluate, (factor, exponent), check_forward_ad=True, fast_mode=fast_mode)
    assert gradgradcheck(evaluate, (factor, exponent), fast_mode=fast_mode)


@pytest.mark.parametrize("function", MATRIX_FUNCTIONS)
def test_the_layer(function):
    needed = FUNCTIONS[function].parameter is not None
    exponent = torch.nn.Parameter(torch.tensor(EXPONENT, dtype=torch.float64)) if needed else None
    layer = covpool.MatrixFunction(function, exponent=exponent)
    matrix = matrix_of("tied")
    assert torch.equal(layer(matrix), MATRIX_FUNCTIONS[function](matrix))
    if exponent is not None:
        layer(matrix).real.sum().backward()
        assert exponent.grad is not None
        assert exponent.grad.dtype == torch.float64


@pytest.mark.parametrize(("method", "function"), pairings())
def test_a_real_matrix_in_complex_dtype_gives_the_real_result(method, function):
    matrix, weights = with_spectrum(np.array(SPECTRA["separated"])), torch.eye(SIZE).double()
    weights[0, 1] = 2

    def evaluate(x: Tensor) -> Tensor:
        return MATRIX_FUNCTIONS[function](x, method)

    expected, slope = value_and_gradient(evaluate, matrix, weights)
    value, gradient = value_and_gradient(evaluate, matrix.to(torch.complex128), weights)
    assert relative_error(value, expected.to(value.dtype)) <= 1e-13
    assert relative_error(gradient, slope.to(value.dtype)) <= 1e-10


@pytest.mark.parametrize(("method", "function"), pairings())
def test_complex64_is_computed_where_float32_is(method, function):
    """Decomposing methods in complex128, so that rounding the result is all that is lost."""
    matrix = random(3, SIZE, 9, dtype=torch.complex64)
    matrix = matrix @ matrix.mH / 9
    row = METHODS[method]
    dtype = torch.promote_types(row.forward.least_dtype, torch.complex64)
    assert row.dtype(torch.complex64, None) == dtype
    assert row.dtype(torch.complex64, torch.float32) == torch.complex64
    assert row.dtype(torch.complex64, torch.float64) == torch.complex128
    result = MATRIX_FUNCTIONS[function](matrix, method)
    assert result.dtype == torch.complex64
    expected = MATRIX_FUNCTIONS[function](matrix.to(torch.complex128), method, check=False)
    assert relative_error(result.to(expected.dtype), expected) <= 5e-6


@pytest.mark.filterwarnings("ignore:compute_dtype=torch.float32")
@pytest.mark.parametrize("method", METHODS)
def test_compute_dtype_float32_of_complex_features(method):
    x = random(2, 4, 9)
    pooled = covpool.cov_pool(x, method, compute_dtype=torch.float32)
    assert pooled.dtype == torch.complex128
    assert 1e-9 < relative_error(pooled, covpool.cov_pool(x, method)) < 1e-4


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_pooling_is_the_root_of_the_covariance(method, shape):
    if method == "svd-topn":
        # Which part is discarded depends on N.
        shape = (2, 4, 9)
    x, weights = random(*shape), random(2, shape[1], shape[1], seed=1)
    centred = x - x.mean(-1, keepdim=True)
    assert relative_error(covpool.covariance(x), centred @ centred.mH / shape[-1]) <= 1e-15
    value, gradient = value_and_gradient(lambda x: covpool.cov_pool(x, method), x, weights)
    expected, slope = value_and_gradient(
        lambda x: covpool.matrix_sqrt(covpool.covariance(x), method), x, weights
    )
    assert relative_error(value, expected) <= 1e-7
    assert relative_error(gradient, slope) <= 1e-6


@quick.whole_jacobians
@pytest.mark.parametrize("shape", [(1, 3, 2), (1, 2, 4)], ids=SHAPES)
@quick.parametrize("method", EXACT, keep=["exact"])
def test_gradcheck_of_pooling(method, shape, fast_mode):
    x = random(*shape).requires_grad_()

    def pool(x: Tensor) -> Tensor:
        return covpool.cov_pool(x, method)

    assert gradcheck(pool, x, check_forward_ad=True, fast_mode=fast_mode)
    assert gradgradcheck(pool, x, check_fwd_over_rev=True, fast_mode=fast_mode)


@pytest.mark.parametrize("channels", [24, 300], ids=["by samples", "in blocks"])
def test_large_complex_covariances(channels):
    positions = 2**21 // channels // 2 if channels == 24 else 400
    x = random(3, channels, positions, dtype=torch.complex64)
    pooled = covpool.cov_pool(x)
    expected = covpool.matrix_sqrt(covpool.covariance(x.to(torch.complex128)))
    assert relative_error(pooled.to(expected.dtype), expected) <= 1e-6


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_entries_out_of_range(scale):
    matrix = matrix_of("separated")
    expected = covpool.matrix_sqrt(matrix) * scale**0.5
    assert relative_error(covpool.matrix_sqrt(matrix * scale), expected) <= 1e-13
    x = random(2, 4, 9)
    assert relative_error(covpool.cov_pool(x * scale), covpool.cov_pool(x) * scale) <= 1e-13


@pytest.mark.parametrize("function", MATRIX_FUNCTIONS)
def test_diagnostics(function):
    matrix = matrix_of("separated")
    kwargs = {"exponent": EXPONENT} if function == "power" else {}
    named = getattr(covpool, f"matrix_{function}")
    _, info = named(matrix, return_info=True, **kwargs)
    for found in (info, covpool.diagnose(matrix)):
        assert found.condition_number.dtype == torch.float64
        assert found.condition_number.item() == pytest.approx(12, rel=1e-13)
        assert found.rank.item() == SIZE
    if function != "power":
        assert info.residual.item() <= 1e-13
    assert covpool.diagnose(matrix_of("rank-deficient")).rank.item() == 3


@pytest.mark.parametrize(("method", "function"), pairings())
def test_torch_func(method, function):
    batch = torch.stack([matrix_of("separated"), 2 * matrix_of("separated").conj()])
    weights, direction = random(SIZE, SIZE, seed=1), hermitian(random(SIZE, SIZE, seed=2))

    def evaluate(x: Tensor) -> Tensor:
        return MATRIX_FUNCTIONS[function](x, method)

    def loss(x: Tensor) -> Tensor:
        return (evaluate(x) * weights.conj()).real.sum()

    torch.testing.assert_close(torch.func.vmap(evaluate)(batch), evaluate(batch))
    _, gradient = value_and_gradient(evaluate, batch, weights)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(batch), gradient)
    for matrix, slope in zip(batch, gradient, strict=True):
        torch.testing.assert_close(torch.func.grad(loss)(matrix), slope)
        _, change = torch.func.jvp(evaluate, (matrix,), (direction,))
        along = (slope.conj() * direction).real.sum()
        torch.testing.assert_close((weights.conj() * change).real.sum(), along)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_torch_func_of_pooling(method, shape):
    x, direction = random(*shape), random(*shape, seed=2)
    weights = random(shape[1], shape[1], seed=1)

    def pool(x: Tensor) -> Tensor:
        return covpool.cov_pool(x, method)

    def loss(x: Tensor) -> Tensor:
        return (pool(x) * weights.conj()).real.sum()

    torch.testing.assert_close(torch.func.vmap(pool)(x), pool(x))
    _, gradient = value_and_gradient(pool, x, weights)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(x), gradient)
    _, change = torch.func.jvp(loss, (x,), (direction,))
    torch.testing.assert_close(change, (gradient.conj() * direction).real.sum())


COMPILED = ["exact", "svd-pade", "isqrt-cov", "mpa-lyapunov", "newton-schulz-minimax"]


@quick.parametrize("kind", ["sqrt", *SHAPES], keep=["covariance"])
@quick.parametrize("method", COMPILED, keep=["exact"])
def test_compile(method, kind):
    if kind == "sqrt":
        x, weights = matrix_of("tied"), random(SIZE, SIZE, seed=1)
    else:
        x = random(*SHAPES[kind])
        weights = random(x.shape[1], x.shape[1], seed=1)

    def evaluate(x: Tensor) -> Tensor:
        function = covpool.matrix_sqrt if kind == "sqrt" else covpool.cov_pool
        return function(x, method)

    torch.compiler.reset()
    compiled = torch.compile(evaluate, fullgraph=True, backend="aot_eager")
    graphed = value_and_gradient(compiled, x, weights)
    torch.testing.assert_close(graphed, value_and_gradient(evaluate, x, weights))


def test_what_is_not_hermitian_is_refused():
    with pytest.raises(
        ValueError,
        match=r"not Hermitian; the largest \|A − Aᴴ\| .*\(A \+ Aᴴ\)/2 if that is rounding$",
    ):
        covpool.matrix_sqrt(random(3, 3))


def test_a_complex_symmetric_matrix_is_refused_and_told_from_others():
    """Aᵀ = A has other eigenvectors; X Xᵀ in place of X Xᴴ is how code comes to it."""
    factor = random(2, 3, 9)
    for matrix in (factor @ factor.mT, torch.eye(3) + 0.1j * torch.eye(3)):
        for function in (covpool.matrix_sqrt, covpool.diagnose):
            with pytest.raises(ValueError, match=r"not Hermitian.*it equals Aᵀ.* X Xᴴ, not X Xᵀ"):
                function(matrix)
    mixed = torch.stack([factor[0] @ factor[0].mT, random(3, 3)])
    with pytest.raises(ValueError, match=r"in 2 of 2 samples: \[0, 1\].* if that is rounding$"):
        covpool.matrix_sqrt(mixed)


@pytest.mark.parametrize("method", METHODS)
def test_bad_values_are_refused_by_sample(method):
    eye = torch.eye(3, dtype=torch.complex128).expand(2, 3, 3)
    indefinite = torch.stack([eye[0], torch.diag(torch.tensor([1, -1, 1])).to(eye)])
    with pytest.raises(ValueError, match=r"semi-definite in 1 of 2 samples: \[1\]; the lowest eig"):
        covpool.matrix_sqrt(indefinite, method)
    broken = eye.clone()
    broken[1, 0, 0] = complex(1, torch.nan)
    with pytest.raises(ValueError, match=r"NaN or infinite values in 1 of 2 samples: \[1\]"):
        covpool.matrix_sqrt(broken, method)
    with pytest.raises(ValueError, match=r"NaN or infinite values in 1 of 2 samples: \[1\]"):
        covpool.cov_pool(broken, method)


@pytest.mark.parametrize("function", ["inv_sqrt", "log"])
def test_singular_matrices_are_refused(function):
    with pytest.raises(ValueError, match=r"singular; the lowest numerical rank is 3 of 5"):
        MATRIX_FUNCTIONS[function](matrix_of("rank-deficient"))


def test_the_vector_of_a_complex_covariance():
    pooled = covpool.cov_pool(random(2, 3, 3, 3, dtype=torch.complex64))
    row, column = torch.triu_indices(3, 3)
    assert torch.equal(covpool.triu_vector(pooled), pooled[:, row, column])


REFUSED = {
    "matrix_sqrt": lambda x: covpool.matrix_sqrt(x[0, :, :, 0].to(torch.complex32)),
    "cov_pool": lambda x: covpool.cov_pool(x.to(torch.complex32)),
    "CovPool2d": lambda x: covpool.CovPool2d(3, None)(x),
}


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("caller", REFUSED)
def test_what_has_no_complex_form_is_refused_by_name(caller):
    with pytest.raises(ValueError, match=rf"^{caller} needs a .*floating-point.* got torch.comp"):
        REFUSED[caller](random(1, 3, 3, 3, dtype=torch.complex64))
