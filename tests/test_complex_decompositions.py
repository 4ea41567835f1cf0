"""eigh, svd and gauge_dependence of complex matrices, on losses that are blind to phases."""

import pytest
import torch

import covpool
import quick
from covpool import gauge_dependence
from spectra import relative_error

EPS = torch.finfo(torch.float64).eps
SEPARATED, TIED = [-1.0, 0.5, 2, 3.5], [1.0, 1, 1, 3]


def random(*shape, seed=0, dtype=torch.complex128):
    return torch.randn(*shape, dtype=dtype, generator=torch.manual_seed(seed))


def unitary(size, seed=0):
    return torch.linalg.qr(random(size, size, seed=seed)).Q


def with_eigenvalues(values, seed=0):
    basis = unitary(len(values), seed)
    matrix = (basis * torch.tensor(values, dtype=torch.float64)) @ basis.mH
    return (matrix + matrix.mH) / 2


def with_singular_values(values, shape, seed=0):
    left, right = unitary(shape[0], seed), unitary(shape[1], seed + 1)
    count = len(values)
    return (left[:, :count] * torch.tensor(values, dtype=torch.float64)) @ right[:count]


def hermitian_part(matrix):
    return (matrix + matrix.mH) / 2


def of_eigh(matrix, triangle="L"):
    values, vectors = covpool.eigh(hermitian_part(matrix), triangle)
    return values, vectors.abs(), (vectors[..., -1:] @ vectors[..., -1:].mH)


def of_svd(matrix):
    """|U|, σ, |V| and, which see the phases that u and v have in common alone, the polar factor
    and the best approximation of rank 1."""
    u, s, vh = covpool.svd(matrix, full_matrices=False)
    return u.abs(), s, vh.abs(), u @ vh, u[..., :1] * s[..., :1, None] @ vh[..., :1, :]


@pytest.mark.parametrize("triangle", ["L", "U"])
def test_one_triangle_is_read_inside_vmap(triangle):
    """Where LAPACK is not called as on the direct way, which has its tests in test_drop_in.py."""
    matrix = with_eigenvalues(SEPARATED)
    strange = matrix.triu(1) if triangle == "L" else matrix.tril(-1)
    given = (matrix + strange)[None]
    values, vectors = torch.vmap(lambda a: tuple(covpool.eigh(a, triangle)))(given)
    # Not |V| alone, which the conjugate matrix has too.
    found = (vectors * values[..., None, :]) @ vectors.mH
    assert relative_error(found[0], matrix) <= 100 * torch.finfo(torch.float64).eps


@quick.whole_jacobians
@pytest.mark.parametrize("triangle", ["L", "U"])
def test_gradients_of_eigh(triangle, fast_mode):
    matrix = with_eigenvalues(SEPARATED).requires_grad_()
    forward = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(
        lambda a: of_eigh(a, triangle), (matrix,), **forward, fast_mode=fast_mode
    )
    assert torch.autograd.gradgradcheck(
        lambda a: of_eigh(a, triangle), (matrix,), fast_mode=fast_mode
    )


@quick.whole_jacobians
@quick.parametrize(
    "shape",
    [(4, 4), (5, 3), (3, 5), (1, 3), (3, 1), (1, 1)],
    keep=[(5, 3), (1, 3), (1, 1)],
    ids=str,
)
def test_gradients_of_svd(shape, fast_mode):
    values = [4.0, 2.5, 1, 0.5][: min(shape)]
    matrix = with_singular_values(values, shape).requires_grad_()
    forward = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(of_svd, (matrix,), **forward, fast_mode=fast_mode)
    assert torch.autograd.gradgradcheck(of_svd, (matrix,), fast_mode=fast_mode)


def test_the_phases_have_a_term_of_their_own():
    """Without it the gradient of the polar factor of 1 × 1 matrices, z/|z|, would be 0."""
    z = torch.tensor([[0.6 + 0.8j]], dtype=torch.complex128, requires_grad=True)
    u, _, vh = covpool.svd(z)
    (gradient,) = torch.autograd.grad((u @ vh).real.sum(), z)
    expected = torch.autograd.grad((z / z.abs()).real.sum(), z)[0]
    assert expected.abs() > 0.1
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("kernel", [n for n, k in covpool.KERNELS.items() if k.antisymmetric])
def test_at_ties_what_does_not_see_them(kernel):
    """The projection on what is not tied, against the contour integral's derivative."""
    matrix, direction = with_eigenvalues(TIED), hermitian_part(random(4, 4, seed=5))
    weight = hermitian_part(random(4, 4, seed=6))

    def loss(a):
        top = covpool.eigh(a, kernel=kernel)[1][..., -1:]
        return (top @ top.mH * weight.conj()).sum().real

    leaf = matrix.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    # dP = P dA R + R dA P, with R = (3 − A)⁺ = (I − P)/2 at λ = (1, 1, 1, 3).
    top = torch.linalg.eigh(matrix)[1][..., -1:]
    projection = top @ top.mH
    resolvent = (torch.eye(4) - projection) / 2
    change = projection @ direction @ resolvent
    expected = ((change + change.mH) * weight.conj()).sum().real
    found = (gradient * direction.conj()).sum().real
    tolerance = {"taylor": 1e-12, "lorentzian": 1e-10}.get(kernel, 1e-13)
    assert abs(found - expected) <= tolerance * gradient.norm() * direction.norm()


@pytest.mark.parametrize("shape", [(4, 4), (6, 4)])
def test_polar_factor_at_ties(shape):
    """U Vᴴ has no pole there, with every value tied; the polar factor by an inverse root."""
    matrix = with_singular_values([2.0] * 4, shape)
    weight = random(*shape, seed=3)

    def polar(a):
        u, _, vh = covpool.svd(a, full_matrices=False)
        return u @ vh

    leaf = matrix.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((polar(leaf) * weight.conj()).sum().real, leaf)
    step = 1e-5
    for seed in range(3):
        direction = random(*shape, seed=10 + seed)
        ends = [torch.linalg.svd(matrix + s * direction, False) for s in (step, -step)]
        difference = (ends[0].U @ ends[0].Vh - ends[1].U @ ends[1].Vh) / (2 * step)
        expected = (difference * weight.conj()).sum().real
        found = (gradient * direction.conj()).sum().real
        assert abs(found - expected) <= 1e-8 * gradient.norm() * direction.norm()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("kernel", covpool.KERNELS)
def test_gradient_is_finite_at_ties_zeros_and_any_scale(kernel, dtype):
    scales = {torch.complex64: 1e30, torch.complex128: 1e200}[dtype]
    for values in ([1.0] * 3, [1.0, 0, 0], [0.0] * 3):
        for scale in (1.0, scales, 1 / scales):
            square = (with_eigenvalues(values) * scale).to(dtype).requires_grad_()
            tall = (with_singular_values(values, (4, 3)) * scale).to(dtype).requires_grad_()
            for leaf, outputs in (
                (square, covpool.eigh(square, kernel=kernel)),
                (tall, covpool.svd(tall, False, kernel=kernel)),
            ):
                weights = [random(*part.shape, seed=1, dtype=part.dtype) for part in outputs]
                (found,) = torch.autograd.grad(outputs, leaf, weights)
                assert found.isfinite().all(), (values, scale)
                assert found.dtype == dtype


def spectral(values, vectors):
    weight = hermitian_part(random(4, 4, seed=7)).conj()
    return ((vectors * values.exp()[..., None, :]) @ vectors.mH * weight).sum((-2, -1)).real


def of_phases(values, vectors):
    return (vectors * random(4, 4, seed=7)).sum((-2, -1)).real


def blind_to_phases(values, vectors):
    return (vectors.abs() * random(4, 4, seed=7).real).sum((-2, -1))


@pytest.mark.parametrize(
    ("loss", "phases", "rotations"),
    [
        (spectral, [False, False], [False, False]),
        (of_phases, [True, True], [False, True]),
        (blind_to_phases, [False, False], [False, True]),
    ],
)
def test_gauge_dependence(loss, phases, rotations):
    found = gauge_dependence(loss, torch.stack([with_eigenvalues(v) for v in (SEPARATED, TIED)]))
    for share, expected in ((found.sign, phases), (found.rotation, rotations)):
        for value, dependent in zip(share.tolist(), expected, strict=True):
            assert value > 0.1 if dependent else value <= 200 * EPS
    assert found.largest_multiplicity.tolist() == [1, 3]
    if loss is spectral:
        assert found.lost[0] <= 200 * EPS
        assert found.lost[1] > 0.01


def test_gauge_dependence_finds_a_loss_of_a_sign_that_only_phases_show():
    """A loss even in v, and so blind to signs, that depends on the phase."""
    found = gauge_dependence(
        lambda values, vectors: vectors.square().sum().real, with_eigenvalues(SEPARATED)
    )
    assert found.sign > 0.1


def test_gauge_dependence_of_svd():
    matrix = with_singular_values([3.0, 2, 2, 1], (6, 4))
    weight = random(6, 4, seed=3).conj()
    polar = gauge_dependence(lambda u, s, vh: (u @ vh * weight).sum().real, matrix, "svd")
    assert max(polar.sign, polar.rotation, polar.lost) <= 200 * EPS
    alone = gauge_dependence(lambda u, s, vh: (u * weight).sum().real, matrix, "svd")
    assert min(alone.sign, alone.rotation) > 0.1


@quick.parametrize("name", ["eigh", "svd"], keep=["svd"])
def test_transforms_agree_with_eager(name):
    function = {"eigh": of_eigh, "svd": of_svd}[name]
    batch = torch.stack([with_eigenvalues([-3.0, 0.5, 2, 3.5 + i], seed=i) for i in range(3)])

    def loss(a):
        return sum(part.abs().pow(3).sum() for part in function(a))

    leaf = batch.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    assert relative_error(torch.vmap(torch.func.grad(loss))(batch), expected) <= 1e-12
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    other = batch.clone().requires_grad_()
    (found,) = torch.autograd.grad(compiled(other), other)
    assert relative_error(compiled(batch), loss(batch)) <= 1e-12
    assert relative_error(found, expected) <= 1e-12
