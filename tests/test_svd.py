"""svd's gradient against mpmath, torch and finite differences; ties, zeros, truncation, scale."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import covpool
import quick
from covpool import KERNELS
from covpool.linalg.autograd.svd import _weights
from covpool.linalg.gradients.kernels import Lorentzian, Truncated
from spectra import DIGITS, lift, orthogonal, relative_error, to_mpmath, to_torch

EPS = torch.finfo(torch.float64).eps
STEP = mpmath.mpf(10) ** -15
SHAPES = {"square": (5, 5), "tall": (7, 5), "wide": (5, 6)}
# Ratios of squares of at most 1/25, where every kernel has converged to 1/(λi − λj).
APART = [100.0, 15.0, 2.0, 0.3, 0.05]


def with_singular_values(values, shape, seed=0):
    left, right = orthogonal(shape[0], seed), orthogonal(shape[1], seed + 1)
    count = len(values)
    return torch.from_numpy((left[:, :count] * np.array(values)) @ right[:, :count].T)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.manual_seed(seed)).to(dtype)


def gradient(loss, matrix):
    matrix = matrix.clone().requires_grad_()
    return torch.autograd.grad(loss(matrix), matrix)[0]


def thin_svd(matrix, kernel="difference"):
    return covpool.svd(matrix, full_matrices=False, kernel=kernel)


def torchs_svd(matrix, kernel=None):
    return torch.linalg.svd(matrix, full_matrices=False)


def everything(decomposition, kernel="difference"):
    """A loss of U, σ and V, not blind to anything but signs of pairs."""

    def loss(matrix):
        u, s, vh = decomposition(matrix, kernel)
        weights = [random(*t.shape[-2:], seed=i).to(t) for i, t in enumerate((u, s[None], vh))]
        pairs = (u * weights[0])[..., :, None, :] * (vh.mT * weights[2].mT)[..., None, :, :]
        return (
            pairs.pow(2).sum() + ((u @ vh) * s[..., :1, None]).sin().sum() + (s * weights[1]).sum()
        )

    return loss


def polar(matrix):
    """A (AᵀA)^(−1/2), for full column rank, in mpmath."""
    return matrix * lift(matrix.T * matrix, lambda values: [1 / mpmath.sqrt(x) for x in values])


def truncated(rank):
    """The parts that do not depend on the gauge, in mpmath: A_r, U_r U_rᵀ, V_r V_rᵀ, Σ σ_r³."""

    def parts(matrix):
        values, vectors = mpmath.eigsy(matrix.T * matrix)
        count = len(values)
        v = vectors[:, count - rank : count]
        singular = [mpmath.sqrt(values[i]) for i in range(count - rank, count)]
        u = matrix * v * mpmath.diag([1 / x for x in singular])
        cubes = mpmath.matrix([[mpmath.fsum(x**3 for x in singular)]])
        return [matrix * v * v.T, u * u.T, v * v.T, cubes]

    return parts


def our_truncated(rank, kernel="difference"):
    def parts(matrix):
        u, s, vh = thin_svd(matrix, kernel=kernel)
        u, s, vh = u[..., :rank], s[..., :rank], vh[..., :rank, :]
        return [(u * s[..., None, :]) @ vh, u @ u.mT, vh.mT @ vh, s.pow(3).sum()[None, None]]

    return parts


def directional(function, matrix, direction):
    """Central differences in mpmath, whose error is far below float64's."""
    with mpmath.workdps(2 * DIGITS):
        point, step = to_mpmath(matrix), STEP * to_mpmath(direction)
        plus, minus = function(point + step), function(point - step)
        return [to_torch((p - m) / (2 * STEP)) for p, m in zip(plus, minus, strict=True)]


def check_against_mpmath(ours, theirs, matrix, direction, tolerance, note=lambda error: error):
    expected = directional(theirs, matrix, direction)
    for index, part in enumerate(expected):
        weight = random(*part.shape, seed=index + 20)
        found = gradient(lambda a, i=index, w=weight: (ours(a)[i] * w).sum(), matrix)
        scale = found.norm() * direction.norm()
        error = ((found * direction).sum() - (part * weight).sum()).abs() / scale
        assert note(error.item()) <= tolerance, index


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_svd_is_torchs_away_from_ties(shape, dtype, note_error):
    matrix = torch.stack([with_singular_values([5, 4, 3, 2, 1.0], shape, s) for s in range(3)])
    matrix = matrix.to(dtype)
    for ours, torchs in zip(thin_svd(matrix), torchs_svd(matrix), strict=True):
        assert torch.equal(ours, torchs)
    ours = gradient(everything(thin_svd), matrix)
    torchs = gradient(everything(torchs_svd), matrix)
    error = relative_error(ours, torchs)
    eps = torch.finfo(dtype).eps
    assert note_error(f"gradient, {dtype}", "svd()", error) <= 100 * eps


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_is_exact_far_from_ties(kernel, shape):
    matrix = with_singular_values(APART, shape)
    expected = gradient(everything(torchs_svd), matrix)
    assert relative_error(gradient(everything(thin_svd, kernel), matrix), expected) <= 1e-11


@quick.whole_jacobians
@pytest.mark.parametrize("shape", [*SHAPES.values(), (1, 4), (4, 1), (1, 1)])
def test_gradcheck_and_gradgradcheck(shape, fast_mode):
    values = [5.0, 4, 3, 2, 1][: min(shape)]
    matrix = with_singular_values(values, shape).requires_grad_()

    def outputs(a):
        u, s, vh = thin_svd(a)
        return u.abs(), s, vh.abs()

    assert torch.autograd.gradcheck(
        outputs, (matrix,), check_batched_grad=True, fast_mode=fast_mode
    )
    assert torch.autograd.gradgradcheck(
        outputs, (matrix,), check_batched_grad=True, fast_mode=fast_mode
    )


@pytest.mark.parametrize("kernel", [name for name in KERNELS if KERNELS[name].antisymmetric])
@pytest.mark.parametrize("values", [[3.0] * 4, [5.0, 2, 2, 1], [1.0 + 1e-12, 1, 1, 1e-3]])
@pytest.mark.parametrize("shape", [(4, 4), (6, 4)])
def test_polar_factor_is_exact_at_ties(shape, values, kernel, note_error):
    """U Vᵀ depends on (dPᵢⱼ − dPⱼᵢ)/(σi + σj) alone, which no kernel touches."""
    matrix = with_singular_values(values, shape)

    def ours(a):
        u, _, vh = thin_svd(a, kernel=kernel)
        return [u @ vh]

    check_against_mpmath(
        ours,
        lambda a: [polar(a)],
        matrix,
        random(*shape, seed=2),
        1e-13,
        # The scale is that of 1/σ for the smallest, so the noise of larger ones is below it.
        lambda error: note_error("polar factor at ties", "svd()", error),
    )


def test_textbook_form_loses_the_polar_factor_at_ties():
    """What the two separate poles are for: torch's own gradient there is not finite."""
    matrix = torch.eye(3, dtype=torch.float64)
    weight = random(3, 3)
    torchs = gradient(lambda a: (lambda u, _, vh: (u @ vh * weight).sum())(*torchs_svd(a)), matrix)
    ours = gradient(lambda a: (lambda u, _, vh: (u @ vh * weight).sum())(*thin_svd(a)), matrix)
    assert not torchs.isfinite().all()
    torch.testing.assert_close(ours, (weight - weight.mT) / 2)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_losses_that_do_not_see_the_tie(shape, kernel):
    """The largest pair and the σ of all, where the others are tied exactly or zero."""
    for others in ([2.0, 2, 2, 2], [2.0, 2, 0, 0], [0.0] * 4):
        matrix = with_singular_values([30.0, *others], shape)
        if others[0] == 2:
            # Exact ties in floating point too.
            u, _, vh = torchs_svd(matrix)
            s = torch.tensor([30.0, *others], dtype=torch.float64)
            matrix = torch.zeros(shape, dtype=torch.float64)
            matrix.diagonal().copy_(s)
        check_against_mpmath(
            our_truncated(1, kernel),
            truncated(1),
            matrix,
            random(*shape, seed=4),
            1e-11 if kernel == "lorentzian" else 1e-13,
        )
        everyone = gradient(lambda a, k=kernel: thin_svd(a, kernel=k)[1].sum(), matrix)
        u, _, vh = torchs_svd(matrix)
        torch.testing.assert_close(everyone, u @ vh)


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_truncated_decomposition(shape, rank, note_error):
    matrix = with_singular_values([5.0, 4, 3, 2, 1], shape)
    check_against_mpmath(
        our_truncated(rank),
        truncated(rank),
        matrix,
        random(*shape, seed=3),
        1e-13,
        lambda error: note_error("truncated gradient", "svd()", error),
    )


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_deficient_rank_along_changes_that_keep_it(shape, rank, note_error):
    left, right = random(shape[0], rank, seed=rank), random(rank, shape[1], seed=rank + 1)
    matrix = left @ right
    direction = random(shape[0], rank, seed=5) @ right + left @ random(rank, shape[1], seed=6)
    check_against_mpmath(
        our_truncated(rank),
        truncated(rank),
        matrix,
        direction,
        1e-12,
        lambda error: note_error("deficient rank", "svd()", error),
    )


@pytest.mark.parametrize("gap", [1e-3, 1e-8, 1e-12, 4 * EPS])
@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_weight_of_close_values_has_all_digits(scale, gap):
    values = torch.tensor([1 + gap, 1, 0.3], dtype=torch.float64) * scale
    weights = _weights(values, KERNELS["difference"], 3)
    exact = [mpmath.mpf(x) for x in values.tolist()]
    for i, j in ((0, 1), (1, 0), (0, 2), (2, 1)):
        difference = weights.difference[i, j].item() * (exact[i] - exact[j]) / exact[0]
        total = weights.total[i, j].item() * (exact[i] + exact[j]) / exact[0]
        assert float(abs(difference - 1)) <= 8 * EPS
        assert float(abs(total - 1)) <= 8 * EPS


HOSTILE = {
    "identity": [1.0] * 5,
    "tied": [3.0, 3, 1, 1, 1],
    "close": [1 + 1e-15, 1.0, 1e-8, 1e-8 * (1 - 1e-15), 1e-20],
    "rank one": [2.0, 0, 0, 0, 0],
    "zero": [0.0] * 5,
    "noise": [1.0, 1e-16, 1e-17, 1e-30, 1e-300],
}


@pytest.mark.axes(dtype=(1,), kernel=range(len(KERNELS)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("values", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradient_is_finite(kernel, values, dtype):
    limits = {torch.float32: 1e30, torch.float64: 1e200}[dtype]
    for shape in SHAPES.values():
        dense = with_singular_values(values, shape)
        diagonal = torch.zeros_like(dense)
        diagonal.diagonal().copy_(torch.tensor(values))
        for matrix in (dense, diagonal):
            for scale in (1.0, limits, 1 / limits):
                scaled = (matrix.double() * scale).to(dtype).requires_grad_()
                outputs = thin_svd(scaled, kernel=kernel)
                weights = [random(*t.shape, seed=1, dtype=dtype) for t in outputs]
                (found,) = torch.autograd.grad(outputs, scaled, weights)
                assert found.isfinite().all(), scale
                assert found.dtype == dtype


def test_bound_at_zero_singular_values():
    """The docstring's: what is zero up to rounding contributes nothing."""
    matrix = torch.diag(torch.tensor([2.0, 1e-17, 0.0], dtype=torch.float64))
    weight = torch.zeros(3, 3, dtype=torch.float64)
    weight[1:, 1:] = random(2, 2)
    for output in (0, 2):
        found = gradient(lambda a, o=output: (thin_svd(a)[o] * weight).sum(), matrix)
        assert not found.any()


@given(
    scale=st.floats(1e-120, 1e120),
    kernel=st.sampled_from([*KERNELS.values(), Truncated(limit=1.5), Lorentzian(epsilon=0.1)]),
)
def test_gradient_scales_with_the_matrix(scale, kernel):
    """Vectors do not change with the scale, so their gradient is inverse to it."""
    matrix = with_singular_values([4.0, 3.9, 1.5, 1.4, 0.01], (7, 5))
    weight = random(7, 5)

    def loss(a):
        u, _, vh = thin_svd(a, kernel=kernel)
        return ((u * weight).abs() @ vh.abs()).sum()

    expected = gradient(loss, matrix)
    assert relative_error(gradient(loss, matrix * scale) * scale, expected) <= 1e-10


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradient_alone_and_in_a_hostile_batch(kernel):
    mates = [with_singular_values(values, (7, 5), i) for i, values in enumerate(HOSTILE.values())]
    mates += [mates[0] * 1e250, mates[1] * 1e-250]
    sample = with_singular_values([4.0, 3.9, 3.9, 1.4, 0.01], (7, 5), 9)
    batch = torch.stack([*mates, sample, *mates])
    weights = [random(*t.shape, seed=2) for t in thin_svd(sample)]

    def found(matrix):
        matrix = matrix.clone().requires_grad_()
        outputs = thin_svd(matrix, kernel=kernel)
        cotangents = [w.expand_as(t) for w, t in zip(weights, outputs, strict=True)]
        return torch.autograd.grad(outputs, matrix, cotangents)[0]

    assert relative_error(found(batch)[len(mates)], found(sample[None])[0]) <= 1e-12


def test_symmetric_definite_matrices_are_those_of_eigh():
    matrix = with_singular_values([5.0, 4, 3, 2, 1], (5, 5))
    matrix = matrix @ matrix.mT
    weight = random(5, 5)
    from_svd = gradient(lambda a: (thin_svd(a)[0].abs() * weight).sum(), matrix)
    from_eigh = gradient(lambda a: (covpool.eigh(a)[1].flip(-1).abs() * weight).sum(), matrix)
    torch.testing.assert_close((from_svd + from_svd.mT) / 2, from_eigh)


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "difference"])
def test_other_second_derivatives_are_refused(kernel):
    matrix = with_singular_values(APART, (6, 5)).requires_grad_()
    vectors = thin_svd(matrix, kernel=kernel)[0]
    (first,) = torch.autograd.grad(vectors.square().square().sum(), matrix, create_graph=True)
    with pytest.raises(RuntimeError, match=r"svd: the second .* not defined; use kernel='diff"):
        torch.autograd.grad(first.sum(), matrix)


BAD = {
    "a vector": (torch.ones(3), r"svd needs matrices \(\*, m, n\), got shape \(3,\)"),
    "integers": (
        torch.eye(3).long(),
        "svd needs float32 or float64, real or complex, got torch.int64; convert",
    ),
    "half": (
        torch.eye(3).half(),
        "svd needs float32 or float64, real or complex, got torch.float16; convert",
    ),
    "not finite": (
        torch.stack([torch.eye(3), torch.full((3, 3), torch.inf), torch.eye(3)]),
        r"svd: NaN or infinite values in 1 of 3 samples: \[1\]",
    ),
}


@pytest.mark.parametrize(("matrix", "message"), BAD.values(), ids=BAD)
def test_bad_matrices(matrix, message):
    with pytest.raises(ValueError, match=message):
        thin_svd(matrix)


def test_unknown_kernel():
    with pytest.raises(ValueError, match=r"unknown kernel 'lorenzian'; .*mean 'lorentzian'"):
        covpool.svd(torch.eye(2), kernel="lorenzian")
