"""eigh and svd in the very form of torch.linalg's: positions, triangle, full bases, out, errors."""

import inspect

import pytest
import torch

import covpool
from spectra import relative_error

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.manual_seed(seed))


def hermitian(size=5, dtype=torch.float64):
    matrix = random(size, size, dtype=dtype)
    return matrix + matrix.mH


def test_positions_and_defaults():
    """torch's own are written in C: (A, UPLO='L', *, out=None), and driver=None for svd."""
    for function, positional, keywords in (
        (covpool.eigh, {"A": inspect.Parameter.empty, "UPLO": "L"}, {"out": None}),
        (
            covpool.svd,
            {"A": inspect.Parameter.empty, "full_matrices": True},
            {"driver": None, "out": None},
        ),
    ):
        parameters = inspect.signature(function).parameters.values()
        kinds = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
        assert list(kinds.items()) == list(positional.items())
        others = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        assert others.items() >= keywords.items()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("triangle", ["L", "U", "l", "u"])
def test_eigh_reads_one_triangle(triangle, dtype):
    """What is in the other, NaN even, and the imaginary part of the diagonal do not matter."""
    matrix = random(5, 5, dtype=dtype)
    torchs = torch.linalg.eigh(matrix, triangle)
    other = torch.full_like(matrix, torch.nan)
    other = other.triu(1) if triangle in "Ll" else other.tril(-1)
    eps = torch.finfo(dtype).eps
    for given in (matrix, matrix + other):
        ours = covpool.eigh(given, triangle)
        assert relative_error(ours.eigenvalues, torchs.eigenvalues) <= 20 * eps
        assert relative_error(ours.eigenvectors.abs(), torchs.eigenvectors.abs()) <= 100 * eps


def test_the_gradient_of_one_triangle_is_the_symmetric_one():
    matrix = random(4, 4).requires_grad_()
    weight = random(4, 4, seed=1)

    def loss(decomposition, triangle):
        values, vectors = decomposition(matrix, triangle)
        return (vectors.abs() * weight).sum() + values.pow(3).sum()

    for triangle in "LU":
        (ours,) = torch.autograd.grad(loss(covpool.eigh, triangle), matrix)
        (torchs,) = torch.autograd.grad(loss(torch.linalg.eigh, triangle), matrix)
        torch.testing.assert_close(ours, (torchs + torchs.mT) / 2)
        assert torch.equal(ours, ours.mT)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (2, 6, 2), (3, 1, 4)])
def test_full_matrices(shape, dtype):
    matrix = random(*shape, dtype=dtype)
    ours, torchs = covpool.svd(matrix), torch.linalg.svd(matrix)
    thin = covpool.svd(matrix, False)
    k, eps = min(shape[-2:]), torch.finfo(dtype).eps
    for one, other in zip(ours, torchs, strict=True):
        assert one.shape == other.shape
    assert torch.equal(ours.U[..., :k], thin.U)
    assert torch.equal(ours.Vh[..., :k, :], thin.Vh)
    assert torch.equal(ours.S, thin.S)
    assert relative_error(ours.S, torchs.S) <= 10 * eps
    for basis in (ours.U, ours.Vh):
        identity = torch.eye(basis.shape[-1], dtype=dtype)
        assert ((basis.mH @ basis - identity).abs() <= 20 * eps).all()
    for name in ("U", "Vh"):  # the projections on the space beyond
        one, other = (getattr(result, name) for result in (ours, torchs))
        one, other = ((b.mH if name == "Vh" else b)[..., k:] for b in (one, other))
        torch.testing.assert_close(one @ one.mH, other @ other.mH, rtol=0, atol=50 * eps)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_gradients_beyond_the_singular_values_are_refused(shape):
    """Where none reaches those columns they change nothing; torch's are silently zero."""
    matrix = random(2, *shape).requires_grad_()
    full, thin = covpool.svd(matrix), covpool.svd(matrix, full_matrices=False)
    found = []
    for u, s, vh in (full, thin):
        loss = (u[..., :3].pow(4).sum() + vh[..., :3, :].pow(4).sum()) * s.sum()
        found.append(torch.autograd.grad(loss, matrix, retain_graph=True)[0])
    torch.testing.assert_close(*found)
    basis = full.U if shape[0] > shape[1] else full.Vh.mT
    with pytest.raises(RuntimeError, match=r"svd: .* have no gradient, .* in 1 of 2 samples: \[1"):
        torch.autograd.grad(basis[1].pow(4).sum(), matrix)

    def extra(a):
        u, _, vh = covpool.svd(a)
        return (u if shape[0] > shape[1] else vh.mT).pow(4)

    tangent = torch.func.jvp(extra, (matrix[0].detach(),), (random(*shape),))[1]
    assert tangent.isnan().all(0).tolist() == [False] * 3 + [True] * 2
    assert torch.func.jacrev(extra)(matrix[0].detach())[:, 3:].isnan().all()


@pytest.mark.parametrize(
    ("ours", "torchs", "matrix"),
    [
        (covpool.eigh, torch.linalg.eigh, hermitian(dtype=torch.complex128)),
        (covpool.svd, torch.linalg.svd, random(4, 6)),
    ],
)
def test_out(ours, torchs, matrix):
    expected = ours(matrix)
    fields = [name for name in dir(torchs(matrix)) if name in expected._fields]
    assert sorted(fields) == sorted(expected._fields)
    out = tuple(torch.empty(0, dtype=part.dtype) for part in expected)
    result = ours(matrix, out=out)
    for part, target, value in zip(result, out, expected, strict=True):
        assert part.data_ptr() == target.data_ptr()
        assert torch.equal(target, value)
    with pytest.raises(RuntimeError, match=r"out=.* don't support automatic differentiation"):
        ours(matrix.clone().requires_grad_(), out=out)
    with pytest.raises(ValueError, match=f"out must hold {len(out)} tensors, got 1"):
        ours(matrix, out=out[:1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["eigh", "svd"])
def test_values_that_are_not_finite(name, dtype):
    """Code around torch.linalg catches LinAlgError or RuntimeError, other code ValueError."""
    batch = torch.eye(3, dtype=dtype).repeat(3, 1, 1)
    batch[1, 2, 0] = torch.nan if not dtype.is_complex else complex(0, torch.inf)
    message = rf"{name}: NaN or infinite values in 1 of 3 samples: \[1\]"
    for kind in (torch.linalg.LinAlgError, RuntimeError, ValueError):
        with pytest.raises(kind, match=message):
            getattr(covpool, name)(batch)
    factors = getattr(covpool, name)(batch, check=False)
    for factor in factors:
        assert factor.isfinite().flatten(1).all(-1).tolist() == [True, False, True]


def test_what_is_refused_by_name():
    with pytest.raises(ValueError, match="UPLO must be 'L' or 'U', got 'taylor'; a kernel is"):
        covpool.eigh(torch.eye(2), "taylor")
    with pytest.raises(RuntimeError, match="driver"):
        covpool.svd(torch.eye(2), driver="gesvd")
