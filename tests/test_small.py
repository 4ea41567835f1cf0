"""Small matrices: closed forms for large batches of them, and what a call of few costs."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import covpool
from covpool.bench import small
from covpool.linalg import checks, evaluate, precision
from covpool.linalg.engine import factorisation
from covpool.linalg.engine.small import CLOSED_SIZE, small_eigh, small_svd

MANY = 3000
SPECTRA = {
    "tied below": (1.0, 1.0, 2.0),
    "tied above": (2.0, 2.0, 1.0),
    "all tied": (1.0, 1.0, 1.0),
    "tied to 1e-9": (1.0, 1 + 1e-9, 2.0),
    "tied to rounding": (1.0, 1 + 1e-15, 1 + 1e-14),
    "graded": (1.0, 1e-8, 1e-16),
    "of rank two": (1.0, 2.0, 0.0),
    "of rank one": (1.0, 0.0, 0.0),
    "indefinite": (1.0, -1.0, 0.0),
    "zero": (0.0, 0.0, 0.0),
}


def with_eigenvalues(values, dtype, seed=0, kind="dense"):
    """MANY matrices with the eigenvalues in random bases, or in permuted unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    size = len(values)
    basis = torch.linalg.qr(torch.randn(MANY, size, size, dtype=dtype, generator=generator))[0]
    if kind == "diagonal":
        order = torch.rand(MANY, size, generator=generator).argsort(-1)
        basis = torch.eye(size, dtype=dtype)[order]
    matrix = (basis * torch.tensor(values, dtype=torch.float64).unsqueeze(-2)) @ basis.mH
    return (matrix + matrix.mH) / 2


@pytest.mark.axes(size=(2,), spectrum=range(len(SPECTRA)))
@pytest.mark.parametrize("scale", [1.0, 1e300, 1e-290])
@pytest.mark.parametrize("kind", ["dense", "diagonal"])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("size", range(1, CLOSED_SIZE + 1))
def test_closed_forms_are_right_to_rounding(size, dtype, spectrum, kind, scale):
    expected = sorted(SPECTRA[spectrum][:size])
    matrix = with_eigenvalues(expected, dtype, kind=kind)
    values, vectors = small_eigh(matrix * scale)
    values = values / scale
    norm = max(map(abs, expected))
    assert (values.diff(dim=-1) >= 0).all()
    assert (values - torch.tensor(expected, dtype=torch.float64)).abs().max() <= 1e-14 * norm
    rebuilt = (vectors * values.unsqueeze(-2)) @ vectors.mH
    assert (rebuilt - matrix).abs().max() <= 1e-14 * norm
    unit = torch.eye(size, dtype=dtype)
    assert (vectors.mH @ vectors - unit).abs().max() <= 1e-14


def test_closed_forms_leave_what_is_not_finite_to_its_sample():
    matrix = with_eigenvalues((1.0, 2.0, 3.0), torch.float64)
    matrix[7, 1, 2] = matrix[7, 2, 1] = torch.nan
    matrix[9, 0, 0] = torch.inf
    root = covpool.matrix_sqrt(matrix, check=False)
    bad = [i for i in range(MANY) if not root[i].isfinite().all()]
    assert bad == [7, 9]
    assert root[bad].isnan().all()
    with pytest.raises(ValueError, match=r"NaN or infinite .* 2 of 3000 samples: \[7, 9\]"):
        covpool.matrix_sqrt(matrix)


FUNCTIONS = {
    "sqrt": covpool.matrix_sqrt,
    "inv_sqrt": covpool.matrix_inv_sqrt,
    "power": lambda a: covpool.matrix_power(a, 0.3),
    "log": covpool.matrix_log,
    "exp": covpool.matrix_exp,
}


@pytest.mark.parametrize("spectrum", [(1.0, 1.0, 2.0), (1e-3, 1.0, 1 + 1e-12)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_batch_does_not_matter(name, dtype, spectrum):
    """A large batch, by closed forms, is what its samples are alone, by LAPACK: and gradients."""

    def both(matrix):
        matrix = matrix.clone().requires_grad_()
        result = FUNCTIONS[name](matrix)
        weight = torch.arange(9.0, dtype=torch.float64).reshape(3, 3)
        (gradient,) = torch.autograd.grad((result * weight).sum().real, matrix)
        return result.detach(), gradient

    matrices = with_eigenvalues(spectrum, dtype)
    together = both(matrices)
    for index in (0, 17):
        for one, other in zip(both(matrices[index]), together, strict=True):
            assert other.is_contiguous()
            error = (other[index] - one).abs().max() / one.abs().max()
            assert error <= 1e-12


READS = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero")


class Reads(TorchDispatchMode):
    """Counts operations that a GPU would be waited for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.name().split(".")[0] in READS
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", [3, 22, 40])
@pytest.mark.parametrize("name", [*FUNCTIONS, "two at once", "floored"])
def test_a_call_waits_for_a_gpu_twice_at_most_and_unchecked_never(name, size, monkeypatch):
    for module in (checks, evaluate, precision, factorisation):
        monkeypatch.setattr(module, "on_cpu", lambda tensor: False)
    options = {
        "two at once": {"function": ("sqrt", "inv_sqrt")},
        "floored": {"function": "log", "floor": 1e-3},
    }.get(name, {"function": name, "parameter": 0.3 if name == "power" else None})
    factor = torch.randn(4, size, 2 * size, dtype=torch.float64, generator=torch.manual_seed(0))
    matrix = factor @ factor.mT
    for check, allowed in ((True, 2), (False, 0)):
        with Reads() as reads:
            covpool.matrix_function(matrix, check=check, **options)
        assert reads.count <= allowed


class Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def forward_and_backward(root, size):
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(1, size, 2 * size, dtype=torch.float64, generator=generator)
    matrix = factor @ factor.mT
    leaf = ((matrix + matrix.mT) / 2).requires_grad_()
    torch.autograd.grad(root(leaf).sum(), leaf)


@pytest.mark.parametrize("size", [3, 22])
@pytest.mark.parametrize("check", [True, False])
def test_a_call_takes_no_more_operations_than_a_function_of_30_lines(check, size):
    """Its own checks, symmetric parts and care for zeros included."""
    counts = []
    thirty_lines = dict(small.plain_ways(small.FUNCTIONS["sqrt"], "float64"))["30 lines"]
    for root in (lambda a: covpool.matrix_sqrt(a, check=check), thirty_lines):
        with Operations() as operations:
            forward_and_backward(root, size)
        counts.append(operations.count)
    assert counts[0] <= counts[1]


@pytest.mark.parametrize("size", [3, 22])
@pytest.mark.parametrize("name", ["eigh", "svd"])
def test_a_decomposition_takes_no_more_operations_than_torchs(name, size):
    """Its own checks and care for ties included."""

    def count(decompose):
        with Operations() as operations:
            forward_and_backward(lambda a: sum(part.sum() for part in decompose(a)), size)
        return operations.count

    counts = [count(getattr(module, name)) for module in (covpool, torch.linalg)]
    assert counts[0] <= counts[1]


@pytest.mark.parametrize("check", [True, False])
def test_a_call_goes_through_few_functions_of_python(check):
    """After a decomposition each one is read from memory anew: together they took a third."""
    calls = []

    def root(matrix):
        return covpool.matrix_sqrt(matrix, check=check)

    forward_and_backward(root, 22)
    sys.setprofile(lambda frame, event, _: calls.append(event) if event == "call" else None)
    try:
        forward_and_backward(root, 22)
    finally:
        sys.setprofile(None)
    assert len(calls) <= 100


@pytest.mark.parametrize("size", [1, 2, 3, 30])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_entry_that_is_not_finite_is_seen_wherever_it_is(size, value):
    """LAPACK gives a finite eigenvalue for a matrix of two rows with NaN on its diagonal."""
    for row in range(size):
        matrix = torch.eye(size, dtype=torch.float64).repeat(2, 1, 1)
        matrix[0, row, row] = value
        for found in (
            covpool.matrix_sqrt(matrix, check=False),
            covpool.eigh(matrix, check=False)[1],
        ):
            assert found[0].isnan().all()
            assert found[1].isfinite().all()
        for function in (covpool.matrix_sqrt, covpool.matrix_exp, covpool.eigh):
            with pytest.raises(
                ValueError, match=r"NaN or infinite values in 1 of 2 samples: \[0\]"
            ):
                function(matrix)


RANK_ONE = torch.tensor([6.0, -20, -55], dtype=torch.float64)
"""Its matrix's null eigenvalues, as differences of large terms, once counted as rank."""

BESIDE_THEIR_OWN = {
    "rank one": torch.outer(RANK_ONE, RANK_ONE),
    "graded": torch.diag(torch.tensor([1, 1e-12], dtype=torch.float64)),
    "graded, of three": torch.diag(torch.tensor([1, 0.37, 1e-12], dtype=torch.float64)),
}


@pytest.mark.parametrize("name", BESIDE_THEIR_OWN)
def test_a_matrix_among_many_is_what_it_is_alone(name):
    matrix, found = BESIDE_THEIR_OWN[name], []
    for count in (1, 2000):
        x = matrix.expand(count, *matrix.shape).clone().requires_grad_()
        root = covpool.matrix_sqrt(x)
        (gradient,) = torch.autograd.grad(root[0].sum(), x)
        found.append((root[0].detach(), gradient[0]))
    for alone, among in zip(*found, strict=True):
        torch.testing.assert_close(among, alone, rtol=1e-9, atol=1e-12 * float(alone.abs().max()))


@pytest.mark.filterwarnings("ignore:compute_dtype=torch.float32")  # of singular matrices
@pytest.mark.parametrize("method", ["exact", "isqrt-cov"])
@pytest.mark.parametrize("count", [1, 1000])
def test_rounding_of_a_coarser_computation_is_not_refused(method, count):
    factor = torch.randn(count, 3, 2, dtype=torch.float64, generator=torch.manual_seed(0))
    root = covpool.matrix_sqrt(factor @ factor.mT, method, compute_dtype=torch.float32)
    assert root.isfinite().all()
    indefinite = torch.diag(torch.tensor([1, 1, -0.1], dtype=torch.float64)).expand(count, 3, 3)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        covpool.matrix_sqrt(indefinite, method, compute_dtype=torch.float32)


def test_a_solver_that_raises_for_one_sample_leaves_the_others(monkeypatch):
    """On a GPU, unchecked too."""
    for module in (checks, evaluate, precision, factorisation):
        monkeypatch.setattr(module, "on_cpu", lambda tensor: False)
    factor = torch.randn(4, 6, 12, dtype=torch.float64, generator=torch.manual_seed(0))
    matrix = factor @ factor.mT
    matrix[1, 0, 0] = torch.nan
    bad = covpool.matrix_sqrt(matrix, check=False).isnan().flatten(1).any(-1)
    assert bad.tolist() == [False, True, False, False]


@pytest.mark.parametrize("scale", [1.0, 1e290, 1e-290])
@pytest.mark.parametrize("spectrum", [name for name in SPECTRA if name != "indefinite"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_closed_forms_of_any_shape_are_right_to_rounding(dtype, spectrum, scale):
    for rows in range(1, CLOSED_SIZE + 1):
        for columns in range(1, CLOSED_SIZE + 1):
            count = min(rows, columns)
            expected = sorted(SPECTRA[spectrum], reverse=True)[:count]
            generator = torch.Generator().manual_seed(rows + 3 * columns)
            bases = [
                torch.linalg.qr(torch.randn(300, size, size, dtype=dtype, generator=generator))[0]
                for size in (rows, columns)
            ]
            bases = [torch.cat([basis, torch.eye(basis.shape[-1])[None]]) for basis in bases]
            values = torch.tensor(expected, dtype=torch.float64)
            matrix = (bases[0][..., :count] * values) @ bases[1][..., :count].mH
            u, s, vh = small_svd(matrix * scale)
            s = s / scale
            norm = max(expected)
            assert (s.diff(dim=-1) <= 0).all()
            assert (s - values).abs().max() <= 1e-14 * norm
            assert ((u * s.unsqueeze(-2)) @ vh - matrix).abs().max() <= 1e-14 * norm
            unit = torch.eye(count, dtype=dtype)
            assert (u.mH @ u - unit).abs().max() <= 1e-14
            assert (vh @ vh.mH - unit).abs().max() <= 1e-14
