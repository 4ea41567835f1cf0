"""eigvalsh, svdvals, the k largest and smallest, and the generalised eigenvalue problem."""

import pytest
import torch

import covpool
import quick
from spectra import relative_error

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
EXACT = [torch.float64, torch.complex128]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.manual_seed(seed))


def hermitian_part(matrix):
    return (matrix + matrix.mH) / 2


def with_eigenvalues(values, dtype=torch.float64):
    basis = torch.linalg.qr(random(len(values), len(values), dtype=dtype)).Q
    return hermitian_part((basis * torch.tensor(values, dtype=basis.real.dtype)) @ basis.mH)


def definite(size=4, seed=1, dtype=torch.float64):
    root = random(size, size, seed=seed, dtype=dtype)
    return root @ root.mH + torch.eye(size, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_torchs(dtype):
    matrix, eps = random(2, 5, 5, dtype=dtype), torch.finfo(dtype).eps
    for triangle in "LU":
        ours = covpool.eigvalsh(matrix, triangle)
        assert relative_error(ours, torch.linalg.eigvalsh(matrix, triangle)) <= 20 * eps
    tall = random(2, 5, 3, dtype=dtype)
    ours, out = covpool.svdvals(tall), torch.empty(0, dtype=tall.real.dtype)
    assert relative_error(ours, torch.linalg.svdvals(tall)) <= 20 * eps
    assert torch.equal(covpool.svdvals(tall, out=out), ours)
    assert torch.equal(out, ours)


@quick.whole_jacobians
@pytest.mark.parametrize("dtype", EXACT, ids=str)
def test_gradients_away_from_ties(dtype, fast_mode):
    square, tall = with_eigenvalues([-1.0, 0.5, 2, 3], dtype), random(5, 3, dtype=dtype)
    for matrix, function in (
        (square, lambda a: covpool.eigvalsh(hermitian_part(a))),
        (tall, covpool.svdvals),
    ):
        leaf = matrix.requires_grad_()
        assert torch.autograd.gradcheck(
            function, (leaf,), check_forward_ad=True, fast_mode=fast_mode
        )
        assert torch.autograd.gradgradcheck(function, (leaf,), fast_mode=fast_mode)


@pytest.mark.parametrize("dtype", EXACT, ids=str)
def test_gradients_at_ties(dtype):
    """Of losses that are symmetric in the values: Σ λ³ has 3 A², the nuclear norm U Vᴴ."""
    for values in ([2.0, 2, 2, 2], [1.0, 1, 3, 3]):
        leaf = with_eigenvalues(values, dtype).requires_grad_()
        (gradient,) = torch.autograd.grad(covpool.eigvalsh(leaf).pow(3).sum(), leaf)
        assert relative_error(gradient, 3 * leaf.detach() @ leaf.detach()) <= 1e-14
        (gradient,) = torch.autograd.grad(covpool.svdvals(leaf).sum(), leaf)
        assert relative_error(gradient, torch.eye(4, dtype=dtype)) <= 1e-14
    for function in (covpool.eigvalsh, covpool.svdvals):
        leaf = torch.eye(3, dtype=dtype).repeat(2, 1, 1)
        leaf[0] = torch.diag(torch.tensor([1.0, 2, 3]))
        leaf.requires_grad_()
        (first,) = torch.autograd.grad(function(leaf).pow(3).sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match=r"not defined at ties.* samples: \[1\]"):
            torch.autograd.grad(first.abs().sum(), leaf)


def test_refusals_name_the_function():
    bad = torch.full((2, 2), torch.nan)
    for function in (covpool.eigvalsh, covpool.svdvals):
        with pytest.raises(torch.linalg.LinAlgError, match=f"{function.__name__}: NaN or inf"):
            function(bad)
    with pytest.raises(ValueError, match="eigvalsh needs square matrices"):
        covpool.eigvalsh(torch.ones(2, 3))


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("dtype", EXACT, ids=str)
def test_some_of_the_pairs(dtype, largest):
    """Their gradient knows the discarded ones: that of slices of everything."""
    matrix = with_eigenvalues([-1.0, 0.5, 2, 3], dtype).requires_grad_()
    some, everything = covpool.eigh(matrix, k=2, largest=largest), covpool.eigh(matrix)
    part = slice(2, 4) if largest else slice(2)
    assert torch.equal(some.eigenvalues, everything.eigenvalues[part])
    assert torch.equal(some.eigenvectors, everything.eigenvectors[:, part])
    found = []
    for values, vectors in (some, (everything[0][part], everything[1][:, part])):
        loss = (vectors.abs().pow(4).sum(0) * values).sum()
        found.append(torch.autograd.grad(loss, matrix, retain_graph=True)[0])
    assert torch.equal(*found)

    tall = random(5, 4, dtype=dtype)
    part = slice(2) if largest else slice(2, 4)
    some, everything = covpool.svd(tall, k=2, largest=largest), covpool.svd(tall, False)
    assert torch.equal(some.U, everything.U[:, part])
    assert torch.equal(some.S, everything.S[part])
    assert torch.equal(some.Vh, everything.Vh[part])


@pytest.mark.parametrize("k", [0, 4, -1, 1.0, True])
def test_numbers_of_pairs_that_there_are_not(k):
    for function in (covpool.eigh, covpool.svd):
        with pytest.raises(ValueError, match=f"{function.__name__}: k must be .*, got {k}"):
            function(torch.eye(3), k=k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_generalised_problem(dtype):
    a, b = hermitian_part(random(3, 4, 4, dtype=dtype)), definite(dtype=dtype)
    values, vectors = covpool.eigh_generalized(a, b)
    eps = torch.finfo(dtype).eps
    assert relative_error(a @ vectors, b @ vectors * values[..., None, :]) <= 200 * eps
    identity = torch.eye(4, dtype=dtype).expand(3, 4, 4)
    assert relative_error(vectors.mH @ b @ vectors, identity) <= 200 * eps
    assert (values.diff(dim=-1) >= 0).all()


@quick.whole_jacobians
@pytest.mark.parametrize("dtype", EXACT, ids=str)
def test_gradients_of_the_generalised_problem(dtype, fast_mode):
    a, b = with_eigenvalues([-1.0, 0.5, 2, 3], dtype), definite(dtype=dtype)

    def outputs(a, b):
        values, vectors = covpool.eigh_generalized(hermitian_part(a), hermitian_part(b), k=3)
        return values, vectors.abs()

    leaves = a.requires_grad_(), b.requires_grad_()
    assert torch.autograd.gradcheck(outputs, leaves, check_forward_ad=True, fast_mode=fast_mode)
    assert torch.autograd.gradgradcheck(outputs, leaves, fast_mode=fast_mode)


def test_generalised_problem_refuses():
    one = torch.eye(3)
    indefinite = torch.stack([one, -one])
    with pytest.raises(torch.linalg.LinAlgError, match=r"B is not positive .* samples: \[1\]"):
        covpool.eigh_generalized(one, indefinite)
    assert torch.vmap(lambda b: covpool.eigh_generalized(one, b)[0])(indefinite)[1].isnan().all()
    for other in (torch.eye(2), one.double()):
        with pytest.raises(ValueError, match="matrices of one size and dtype, got"):
            covpool.eigh_generalized(one, other)
