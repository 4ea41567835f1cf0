"""eigh and svd under every transform of torch, against torch.linalg under reverse mode."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import covpool
import quick
from covpool import KERNELS
from spectra import relative_error, with_spectrum

# Forward mode loads decompositions that torch itself scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


def through_eigh(matrix, kernel="difference", ours=True):
    """(*, n, n) → (*, n), of eigenvalues and eigenvectors, without their signs."""
    symmetric = (matrix + matrix.mT) / 2
    values, vectors = (
        covpool.eigh(symmetric, kernel=kernel) if ours else torch.linalg.eigh(symmetric)
    )
    return vectors.pow(4).sum(-2) * values


thin_svd = partial(covpool.svd, full_matrices=False)


def through_svd(matrix, kernel="difference", ours=True):
    u, s, vh = thin_svd(matrix, kernel=kernel) if ours else torch.linalg.svd(matrix, False)
    return u.pow(4).sum(-2) * s + vh.mT.pow(4).sum(-2)


def batch(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.manual_seed(sum(shape)))


SYMMETRIC = torch.stack([with_spectrum(np.array([-1.0, 0.5, 2, 4]), seed) for seed in range(3)])
CASES = {
    "eigh": (through_eigh, SYMMETRIC),
    "svd, square": (through_svd, batch(3, 4, 4)),
    "svd, tall": (through_svd, batch(3, 5, 4)),
    "svd, wide": (through_svd, batch(3, 3, 5)),
}
each_case = pytest.mark.parametrize(("function", "x"), CASES.values(), ids=CASES)


def total(function):
    return lambda x: function(x).sum()


FIRST_ORDER = {
    "vmap": lambda f, x: vmap(f)(x),
    "grad": lambda f, x: grad(total(f))(x),
    "vmap of grad": lambda f, x: vmap(grad(total(f)))(x),
    "jacrev": lambda f, x: jacrev(f)(x[0]),
    "vmap of jacrev": lambda f, x: vmap(jacrev(f))(x),
}
# The same in forward mode; expected is what torch gives in reverse mode.
FORWARD = {
    "jacfwd": (lambda f, x: jacfwd(f)(x[0]), lambda f, x: jacrev(f)(x[0])),
    "vmap of jacfwd": (lambda f, x: vmap(jacfwd(f))(x), lambda f, x: vmap(jacrev(f))(x)),
    "jvp": (
        lambda f, x: jvp(f, (x,), (x.flip(0),))[1],
        lambda f, x: torch.einsum("birc,brc->bi", vmap(jacrev(f))(x), x.flip(0)),
    ),
}
SECOND_ORDER = {
    "jacrev of jacrev": lambda f, x: jacrev(jacrev(total(f)))(x),
    "jacfwd of jacrev": lambda f, x: hessian(total(f))(x),
    "jacrev of jacfwd": lambda f, x: jacrev(jacfwd(total(f)))(x),
    "jacfwd of jacfwd": lambda f, x: jacfwd(jacfwd(total(f)))(x),
}


@pytest.mark.parametrize("transform", FIRST_ORDER)
@each_case
def test_reverse_mode(function, x, transform):
    apply = FIRST_ORDER[transform]
    expected = apply(partial(function, ours=False), x)
    assert relative_error(apply(function, x), expected) <= 1e-12


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("transform", FORWARD)
@each_case
def test_forward_mode(function, x, transform, kernel):
    forward, reverse = FORWARD[transform]
    ours = partial(function, kernel=kernel)
    # With every kernel, forward mode is the adjoint of reverse mode.
    assert relative_error(forward(ours, x), reverse(ours, x)) <= 1e-12
    if kernel == "difference":
        expected = reverse(partial(function, ours=False), x)
        assert relative_error(forward(ours, x), expected) <= 1e-12


@pytest.mark.parametrize("transform", SECOND_ORDER)
@each_case
def test_second_order(function, x, transform, note_error):
    apply = SECOND_ORDER[transform]
    expected = SECOND_ORDER["jacrev of jacrev"](partial(function, ours=False), x[0])
    error = relative_error(apply(function, x[0]), expected)
    assert note_error("second order", function.__name__, error) <= 1e-11


@each_case
def test_second_order_where_the_first_vanishes(function, x):
    """At diagonal matrices the gradient with respect to the vectors has no rotating part."""
    matrix = torch.zeros_like(x[0])
    matrix.diagonal().copy_(torch.tensor([1.0, 2, 4, 7])[: min(matrix.shape)])
    expected = jacrev(jacrev(total(partial(function, ours=False))))(matrix)
    assert relative_error(hessian(total(function))(matrix), expected) <= 1e-13


@pytest.mark.parametrize("transform", SECOND_ORDER)
@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "difference"])
@pytest.mark.parametrize("case", ["eigh", "svd, tall"])
def test_other_second_orders_are_refused_in_every_mode(case, kernel, transform):
    function, x = CASES[case]
    with pytest.raises(RuntimeError, match=r"second derivative .* use kernel='difference'"):
        SECOND_ORDER[transform](partial(function, kernel=kernel), x[0])


@each_case
def test_dual_numbers(function, x):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x.flip(0))
        tangent = forward_ad.unpack_dual(function(dual)).tangent
    assert relative_error(tangent, jvp(function, (x,), (x.flip(0),))[1]) <= 1e-14


@each_case
def test_gradcheck_in_forward_mode(function, x):
    leaf = x[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        function, (leaf,), check_forward_ad=True, check_batched_forward_grad=True
    )


@quick.parametrize("kernel", ["difference", "pade"], keep=["difference"])
@quick.parametrize("case", CASES, keep=["svd, tall"])
def test_compile_without_graph_breaks_and_with_any_batch(case, kernel):
    function, x = CASES[case]
    torch.compiler.reset()
    eager = partial(function, kernel=kernel)
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager", dynamic=True)
    for repeats in (1, 2, 3):
        leaf = x.repeat(repeats, 1, 1).requires_grad_()
        torch.testing.assert_close(compiled(leaf), eager(leaf))
        (ours,) = torch.autograd.grad(compiled(leaf).square().sum(), leaf)
        (expected,) = torch.autograd.grad(eager(leaf).square().sum(), leaf)
        torch.testing.assert_close(ours, expected)


@each_case
def test_export_with_any_batch(function, x):
    class Module(torch.nn.Module):
        def forward(self, x):
            return function(x)

    shapes = {"x": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(Module(), (x,), dynamic_shapes=shapes)
    many = x.repeat(3, 1, 1)
    torch.testing.assert_close(exported.module()(many), function(many))


@each_case
def test_strides_do_not_matter(function, x):
    def gradient(x):
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(function(leaf).square().sum(), leaf)[0]

    expected = gradient(x)
    spread = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)[..., ::2].copy_(x)
    for other in (x.mT.contiguous().mT, spread, x.movedim(0, -1).contiguous().movedim(-1, 0)):
        assert not other.is_contiguous()
        torch.testing.assert_close(gradient(other), expected)
    expanded = x[:1].expand_as(x)
    torch.testing.assert_close(gradient(expanded), gradient(x[:1]).expand_as(x))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("decomposition", "shape"),
    [
        *[(covpool.eigh, shape) for shape in [(0, 0), (2, 0, 0), (0, 3, 3), (1, 1), (2, 1, 1)]],
        *[(thin_svd, shape) for shape in [(0, 0), (0, 3), (3, 0), (2, 0, 3), (2, 3, 0)]],
        *[(thin_svd, shape) for shape in [(0, 2, 3), (1, 1), (1, 4), (4, 1), (2, 0, 4, 3)]],
    ],
)
def test_empty_and_one_by_one(decomposition, shape, kernel):
    torchs = torch.linalg.eigh if decomposition is covpool.eigh else _svd_of_torch
    leaf = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    ours, expected = decomposition(leaf, kernel=kernel), torchs(leaf)
    for one, other in zip(ours, expected, strict=True):
        assert one.shape == other.shape
        assert torch.equal(one, other)
    (found,) = torch.autograd.grad([t.sum() for t in ours], leaf)
    assert found.shape == leaf.shape
    assert found.isfinite().all()
    tangents = jvp(partial(decomposition, kernel=kernel), (leaf.detach(),), (leaf.detach(),))[1]
    assert all(t.isfinite().all() for t in tangents)


def _svd_of_torch(matrix):
    return torch.linalg.svd(matrix, full_matrices=False)


@pytest.mark.parametrize("decomposition", [covpool.eigh, covpool.svd])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_lower_the_precision(dtype, decomposition):
    leaf = SYMMETRIC.float().requires_grad_()

    def gradient():
        return torch.autograd.grad([t.pow(4).sum() for t in decomposition(leaf)], leaf)[0]

    expected = gradient()
    with torch.autocast("cpu", dtype):
        assert torch.equal(gradient(), expected)


@pytest.mark.parametrize("decomposition", [covpool.eigh, covpool.svd])
def test_meta_tensors_have_shapes(decomposition):
    outputs = decomposition(torch.empty(2, 5, 5, device="meta"))
    assert sorted(len(t.shape) for t in outputs) == [2, *[3] * (len(outputs) - 1)]


def invariant(kind, matrix, kernel):
    """A loss blind to the basis of ties: of projections and polar factors alone."""
    if kind == "eigh":
        _, vectors = covpool.eigh(matrix, kernel=kernel)
        top = vectors[..., -3:]
        return (top @ top.mT).sin().sum()
    u, _, vh = covpool.svd(matrix, kernel=kernel)
    return (u[..., :3] @ vh[..., :3, :]).sin().sum()


@pytest.mark.parametrize("kernel", [name for name in KERNELS if KERNELS[name].antisymmetric])
@pytest.mark.parametrize("kind", ["eigh", "svd"])
def test_rounding_within_a_tie_is_not_multiplied_by_the_pole(kind, kernel):
    """λ = (1, 1, 1, 100, 100, 100) up to rounding: what is kept is tied, and so is the rest."""
    matrix = with_spectrum(np.array([1.0, 1, 1, 100, 100, 100]))
    leaf = matrix.clone().requires_grad_()
    (found,) = torch.autograd.grad(invariant(kind, leaf, kernel), leaf)
    direction = batch(6, 6)
    direction = direction + direction.mT

    def at(distance):
        return invariant(kind, matrix + distance * direction, kernel).item()

    # Of order 4, as the projection is a smooth function of the matrix.
    h = 1e-2
    expected = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    assert (found * direction).sum().item() == pytest.approx(expected, abs=1e-9)


SHAPES = {"eigh": [(4, 5, 5), (300, 3, 3)], "svd": [(4, 5, 5), (4, 6, 3), (4, 3, 6), (300, 3, 2)]}


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("gap", [1.0, 1e-10])
@pytest.mark.parametrize(("name", "shape"), [(n, s) for n, each in SHAPES.items() for s in each])
def test_gradients_do_not_depend_on_whether_they_are_differentiated(name, shape, gap, dtype):
    """Those that are not take a shorter way: of every output, and where others have no gradient."""
    generator = torch.Generator().manual_seed(1)
    values = 1 + gap * torch.arange(min(shape[1:]), dtype=torch.float64)
    factors = [
        torch.linalg.qr(torch.randn(shape[0], side, len(values), dtype=dtype, generator=generator))
        for side in shape[1:]
    ]
    left, right = factors[0].Q, factors[0 if name == "eigh" else 1].Q
    matrix = (left * values @ right.mH).requires_grad_()
    options = {} if name == "eigh" else {"full_matrices": False}
    outputs = tuple(getattr(covpool, name)(matrix, **options))
    weights = [torch.randn(t.shape, dtype=t.dtype, generator=generator) for t in outputs]
    for chosen in ([0], [1], list(range(len(outputs)))):
        given = [outputs[i] for i in chosen], matrix, [weights[i] for i in chosen]
        (plain,) = torch.autograd.grad(*given, retain_graph=True)
        (expected,) = torch.autograd.grad(*given, create_graph=True)
        assert plain.is_contiguous()
        error = (plain - expected).abs().amax((-2, -1)) / expected.abs().amax((-2, -1))
        assert error.max() <= 1e-12
