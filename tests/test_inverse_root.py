"""Inverse p-th roots by both methods, against mpmath; what has not converged never passes."""

import dataclasses
import math

import mpmath
import numpy as np
import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import covpool
from covpool.linalg.forwards.coupled_newton import largest_eigenvalue_bound, plan_inverse_root
from covpool.linalg.inverse_root import INVERSE_ROOTS, CoupledNewton
from quick import parametrize
from spectra import relative_error, with_spectrum

METHODS = list(INVERSE_ROOTS)
PRODUCTS = "coupled-newton"
ROOTS = (1, 2, 3, 4, 6, 8)


def by_mpmath(matrix: torch.Tensor, root: int, ridge: float = 0.0) -> torch.Tensor:
    with mpmath.workdps(60):
        entries = mpmath.matrix(matrix.tolist())
        values, vectors = (mpmath.eighe if matrix.is_complex() else mpmath.eigsy)(entries)
        shift = ridge * max(values)
        powers = mpmath.diag([(value + shift) ** (-mpmath.mpf(1) / root) for value in values])
        found = vectors * powers * vectors.transpose_conj()
    convert = complex if matrix.is_complex() else float
    return torch.tensor([[convert(x) for x in row] for row in found.tolist()], dtype=matrix.dtype)


def decaying(condition: float, size: int = 8, dtype=torch.float64, seed: int = 0) -> torch.Tensor:
    return with_spectrum(np.logspace(0, -math.log10(condition), size), seed, dtype)


@parametrize("condition", [1e1, 1e4, 1e8, 1e11], keep=[1e4, 1e11])
@parametrize("dtype", [torch.float64, torch.complex128], keep=[torch.float64])
@parametrize("root", [*ROOTS, 5, 7, 12], keep=[2, 3, 4, 8])
@pytest.mark.parametrize("method", METHODS)
def test_it_is_that_of_mpmath(method, root, dtype, condition):
    """To the digits that the condition number leaves, and its residual says how many those are."""
    matrix = decaying(condition, dtype=dtype)
    found, info = covpool.matrix_inv_root(matrix, root, method, return_info=True)
    error = relative_error(found, by_mpmath(matrix, root))
    assert error <= 8 * torch.finfo(torch.float64).eps * condition + 1e-12
    assert error <= info.residual / root + 1e-13
    assert info.residual <= 1e-14 * condition + 1e-11
    assert torch.equal(found, found.mH)
    assert (info.iterations > 0) == (method == PRODUCTS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float32, 2e-7), (torch.float16, 1e-3), (torch.bfloat16, 8e-3), (torch.complex64, 2e-7)],
)
def test_lower_precisions_are_computed_in_float64(method, dtype, bound):
    matrix = decaying(1e2, dtype=torch.complex128 if dtype.is_complex else torch.float64)
    given = matrix.to(dtype)
    given = (given + given.mH) / 2
    wide = given.to(torch.promote_types(dtype, torch.float64))
    found = covpool.matrix_inv_root(given, 4, method)
    assert found.dtype == dtype
    assert relative_error(found.to(wide.dtype), by_mpmath(wide, 4)) < bound


@pytest.mark.parametrize("method", METHODS)
def test_float32_arithmetic_says_what_it_lost(method):
    good, bad = decaying(1e2).float(), decaying(1e7).float()
    options = {"compute_dtype": torch.float32, "return_info": True}
    found, info = covpool.matrix_inv_root(good, 4, method, **options)
    assert relative_error(found.double(), by_mpmath(good.double(), 4)) < 1e-5
    assert 1e-7 < info.residual < 1e-3
    with pytest.raises(
        ValueError, match=r"matrix_inv_root: the residual .* up to .*float32.*ridge"
    ):
        covpool.matrix_inv_root(bad, 4, method, **options)


UNFIT = {
    "zero": torch.zeros(6, 6, dtype=torch.float64),
    "singular": torch.diag(torch.tensor([1.0, 2, 3, 0, 5, 6], dtype=torch.float64)),
    "indefinite": torch.diag(torch.tensor([1.0, 2, 3, -1e-9, 5, 6], dtype=torch.float64)),
    "negative": -torch.eye(6, dtype=torch.float64),
    "condition 1e15": torch.diag(torch.tensor([1.0, 2, 3, 1e-15, 5, 6], dtype=torch.float64)),
}


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.parametrize("method", METHODS)
def test_what_has_no_root_is_refused_by_sample_and_never_returned(method, name, root):
    # A dense matrix: of a diagonal one the decomposition is exact at any condition number.
    basis = torch.linalg.qr(torch.randn(6, 6, generator=torch.manual_seed(0)).double()).Q
    bad = basis @ UNFIT[name] @ basis.mT
    good = decaying(10, 6)
    batch = torch.stack([good, (bad + bad.mT) / 2, good])
    with pytest.raises(ValueError, match=r"in 1 of 3 samples: \[1\].*ridge") as caught:
        covpool.matrix_inv_root(batch, root, method)
    assert isinstance(caught.value, torch.linalg.LinAlgError)
    batch.requires_grad_()
    found, info = covpool.matrix_inv_root(batch, root, method, check=False, return_info=True)
    assert found.isnan().flatten(1).all(1).tolist() == [False, True, False]
    assert not found[0].isnan().any()
    assert info.residual[1] > 1e-3
    (gradient,) = torch.autograd.grad(found.sum(), batch)
    assert gradient.isfinite().flatten(1).all(1).tolist() == [True, False, True]


def test_an_iteration_that_is_cut_short_is_refused():
    """The residual is of X itself: that of the coupled M would be 0 however X came out."""
    matrix = decaying(1e6)
    row = CoupledNewton(condition=1e2)
    with pytest.raises(ValueError, match="residual"):
        covpool.matrix_inv_root(matrix, 4, row)
    found, info = covpool.matrix_inv_root(matrix, 4, row, tolerance=math.inf, return_info=True)
    powered = torch.linalg.matrix_power(found, 4) @ matrix
    assert torch.allclose(info.residual, torch.linalg.matrix_norm(powered - torch.eye(8)))
    assert info.residual > 0.1
    assert (
        relative_error(covpool.matrix_inv_root(decaying(50), 4, row), by_mpmath(decaying(50), 4))
        < 1e-13
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("root", [*ROOTS, 5, 12])
def test_the_steps_bring_every_eigenvalue_to_one(dtype, root):
    """The recursion of a scalar, from the condition number on; with fewer steps than Newton's."""
    condition, size = torch.finfo(dtype).eps ** -0.75, 100
    steps = plan_inverse_root(root, size, None, dtype).steps
    start = torch.logspace(-math.log10(condition * 1.334), 0, 2000, dtype=torch.float64)
    x, inverse = start.clone(), torch.ones_like(start)
    for alpha, beta in steps:
        factor = alpha - beta * x
        x, inverse = x * factor**root, inverse * factor
        assert (x > 0).all()
        assert (x < 1 + 1e-12).all()
    assert (inverse * start ** (1 / root) - 1).abs().max() < 16 * torch.finfo(dtype).eps
    newton, y = 0, torch.tensor(1 / condition)
    while (y - 1).abs() > 1e-6:
        newton, y = newton + 1, y * (1 + (1 - y) / root) ** root
    assert len(steps) < 0.8 * newton


@pytest.mark.parametrize("size", [1, 2, 7, 64, 200])
def test_the_bound_of_the_largest_eigenvalue_is_no_lower_and_as_close_as_it_says(size):
    for spectrum in (np.ones(size), np.linspace(0.1, 1, size), np.logspace(0, -9, size)):
        for scale in (1e-300, 1.0, 1e300):
            matrix = with_spectrum(spectrum) * scale
            share = largest_eigenvalue_bound(matrix).item() / (spectrum.max() * scale)
            assert 1 - 1e-12 <= share <= size ** (1 / 16) + 1e-12
    assert largest_eigenvalue_bound(torch.zeros(3, 3)).item() == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_ridge_is_relative_to_the_largest_eigenvalue(method):
    matrix = torch.stack([decaying(1e3), 1e-200 * decaying(1e20, seed=1)])
    ridge = torch.tensor([0.0, 1e-6], dtype=torch.float64)
    found, info = covpool.matrix_inv_root(matrix, 4, method, ridge=ridge, return_info=True)
    share = info.ridge / torch.tensor([1.0, 1e-200], dtype=torch.float64)
    most = 1e-6 * (8 ** (1 / 16) if method == PRODUCTS else 1.0)
    assert share[0] == 0
    assert 1e-6 * (1 - 1e-9) <= share[1] <= most * (1 + 1e-9)
    assert relative_error(found[0], by_mpmath(matrix[0], 4)) < 1e-12
    expected = by_mpmath(matrix[1] * 1e200, 4, share[1].item()) * 1e50
    assert relative_error(found[1], expected) < 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_a_ridge_is_a_constant_for_the_gradient(method):
    matrix = decaying(1e2).requires_grad_()
    found, info = covpool.matrix_inv_root(matrix, 3, method, ridge=0.1, return_info=True)
    (ours,) = torch.autograd.grad(found.square().sum(), matrix)
    shifted = (matrix + info.ridge * torch.eye(8, dtype=torch.float64)).detach().requires_grad_()
    plain = covpool.matrix_inv_root(shifted, 3)
    (expected,) = torch.autograd.grad(plain.square().sum(), shifted)
    assert relative_error(ours, expected) < 1e-11


@pytest.mark.parametrize("method", METHODS)
def test_any_scale_of_the_matrix(method):
    matrix = decaying(1e2)
    expected = by_mpmath(matrix, 4)
    for exponent in (-300, -40, 40, 300):
        found = covpool.matrix_inv_root(matrix * 10.0**exponent, 4, method)
        assert relative_error(found * 10.0 ** (exponent / 4), expected) < 1e-12


@parametrize("condition", [3, 1e3, 1e8], keep=[1e3])
@parametrize("root", ROOTS, keep=[3, 4])
@parametrize("dtype", [torch.float64, torch.complex128], keep=[torch.float64])
def test_the_gradient_by_products_is_that_by_divided_differences(root, condition, dtype):
    matrix = decaying(condition, dtype=dtype).requires_grad_()
    cotangent = torch.randn(8, 8, dtype=dtype, generator=torch.manual_seed(1))
    gradients = []
    for method in METHODS:
        found = covpool.matrix_inv_root(matrix, root, method)
        gradients += torch.autograd.grad((found * cotangent.conj()).real.sum(), matrix)
    assert relative_error(gradients[1], gradients[0]) < 8e-15 * condition + (
        1e-11 if root == 1 else 1e-13
    )


def symmetric(x):
    return (x + x.mH) / 2


@parametrize("root", ROOTS, keep=[2])
@pytest.mark.parametrize("method", METHODS)
def test_first_and_second_derivatives_at_a_tie_in_every_mode(method, root):
    tied = torch.diag(torch.tensor([1.0, 1, 3], dtype=torch.float64)).requires_grad_()

    def call(x):
        return covpool.matrix_inv_root(symmetric(x), root, method)

    assert torch.autograd.gradcheck(call, tied, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, tied, check_fwd_over_rev=True, fast_mode=True)

    def loss(x):
        return call(x).pow(3).sum()

    expected = torch.autograd.functional.hessian(loss, tied)
    assert relative_error(hessian(loss)(tied.detach()), expected) < 1e-10
    assert relative_error(jacfwd(jacfwd(loss))(tied.detach()), expected) < 1e-10
    assert relative_error(jacrev(jacrev(loss))(tied.detach()), expected) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_complex_derivatives(method):
    matrix = decaying(5, 3, torch.complex128).requires_grad_()

    def call(x):
        return covpool.matrix_inv_root(symmetric(x), 4, method)

    assert torch.autograd.gradcheck(call, matrix, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, matrix)


@pytest.mark.parametrize("method", METHODS)
def test_vmap_and_samples_alone_give_what_the_batch_does(method):
    batch = torch.stack([decaying(10.0**k, seed=k) for k in range(1, 5)]).reshape(2, 2, 8, 8)

    def call(x):
        return covpool.matrix_inv_root(x, 4, method)

    expected = call(batch)
    assert relative_error(vmap(vmap(call))(batch), expected) < 1e-12
    assert relative_error(call(batch[1, 0]), expected[1, 0]) < 1e-12
    per_sample = vmap(grad(lambda x: call(x).square().sum()))(batch.flatten(0, 1))
    leaf = batch.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(call(leaf).square().sum(), leaf)
    assert relative_error(per_sample.reshape(gradient.shape), gradient) < 1e-11
    value, tangent = jvp(call, (batch,), (batch,))
    assert relative_error(tangent, -value / 4) < 1e-11
    # Where values cannot be read, a sample without a root is NaN.
    bad = torch.stack([batch[0, 0], torch.zeros(8, 8, dtype=torch.float64)])
    assert vmap(call)(bad).isnan().flatten(1).all(1).tolist() == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_it_compiles_as_one_graph(method):
    batch = torch.stack([decaying(1e2, seed=k) for k in range(3)]).requires_grad_()

    def call(x):
        return covpool.matrix_inv_root(x, 4, method, ridge=1e-3)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found = compiled(batch)
    assert relative_error(found, call(batch)) < 1e-12
    (ours,) = torch.autograd.grad(found.square().sum(), batch)
    (expected,) = torch.autograd.grad(call(batch).square().sum(), batch)
    assert relative_error(ours, expected) < 1e-11


@pytest.mark.parametrize("method", METHODS)
def test_empty_batches_and_sizes(method):
    assert covpool.matrix_inv_root(torch.zeros(0, 3, 3), 4, method).shape == (0, 3, 3)
    assert covpool.matrix_inv_root(torch.zeros(2, 0, 0), 4, method).shape == (2, 0, 0)
    with pytest.raises(ValueError, match=r"size 0.*\(2, 0, 0\)"):
        covpool.matrix_inv_root(torch.zeros(2, 0, 0), 4, method, return_info=True)
    one = torch.full((1, 1), 16.0)
    found, info = covpool.matrix_inv_root(one, 4, method, return_info=True)
    assert found.item() == pytest.approx(0.5)
    assert [part.shape for part in info] == 3 * [()]


def test_refusals_echo_what_was_given():
    eye = torch.eye(3)
    cases = [
        ({"root": 0}, "root must be a whole number of at least 1, got 0"),
        ({"root": 2.5}, "root must be a whole number of at least 1, got 2.5"),
        ({"method": "newton"}, "unknown method 'newton'; choose from exact, coupled-newton"),
        ({"method": "isqrt-cov"}, "unknown method 'isqrt-cov'"),
        ({"ridge": -0.1}, "ridge must be at least 0, got -0.1"),
        ({"ridge": torch.ones(4)}, "ridge of shape"),
        ({"ridge": None}, "ridge must be a number or a tensor, got None"),
        ({"ridge": torch.tensor(math.nan)}, "ridge: NaN or infinite values"),
        ({"ridge": torch.tensor(math.inf)}, "ridge: NaN or infinite values"),
        ({"tolerance": None}, "tolerance must be a number of at least 0, got None"),
        ({"tolerance": torch.ones(2)}, r"tolerance must be a number of at least 0, got tensor"),
        ({"tolerance": -1.0}, "tolerance must be a number of at least 0, got -1.0"),
        ({"tolerance": math.nan}, "tolerance must be a number of at least 0, got nan"),
        ({"compute_dtype": torch.float16}, "compute_dtype must be"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            covpool.matrix_inv_root(eye, **{"root": 4, **options})
    for condition in (0.5, "1e3", True, math.nan):
        with pytest.raises(ValueError, match="condition must be a number from 1 to 1e16"):
            dataclasses.replace(INVERSE_ROOTS[PRODUCTS], condition=condition)
    with pytest.raises(ValueError, match=r"matrix_inv_root: NaN .*\[1\]"):
        covpool.matrix_inv_root(torch.stack([eye, eye * math.nan]), 4)
    with pytest.raises(ValueError, match="not symmetric"):
        covpool.matrix_inv_root(torch.tensor([[1.0, 0.5], [0, 1]]), 4)
    with pytest.raises(TypeError, match=r"needs a torch\.Tensor, got list"):
        covpool.matrix_inv_root([[1.0]], 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_no_share_of_a_zero_matrix_is_a_ridge(method):
    matrices = torch.stack([torch.eye(3), torch.zeros(3, 3)])
    with pytest.raises(ValueError, match=r"eigenvalue is zero.*\[1\].*the identity") as e:
        covpool.matrix_inv_root(matrices, 4, method, ridge=0.1)
    assert "give a ridge" not in str(e.value)
    with pytest.raises(ValueError, match="give a ridge"):
        covpool.matrix_inv_root(torch.diag(torch.tensor([1.0, 0])), 4, method)


def test_whole_numbers_of_numpy():
    matrix = torch.diag(torch.tensor([1.0, 16.0]))
    expected = covpool.matrix_inv_root(matrix, 4)
    assert covpool.matrix_inv_root(matrix, np.int64(4)).equal(expected)  # type: ignore[arg-type]
    assert covpool.low_rank(matrix, np.int64(1)).diagonal().tolist() == [0, 16]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="root must be a whole number of at least 1"):
        covpool.matrix_inv_root(matrix, np.True_)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rank must be a whole number of at least 0, got .*2\.0"):
        covpool.low_rank(matrix, np.float64(2))  # type: ignore[arg-type]
