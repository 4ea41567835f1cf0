"""Registration of point sets against scipy and finite differences; ties, planes, lines, points."""

import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacfwd, jacrev, vmap

import covpool
import quick
from spectra import relative_error

FLAT, MIRROR = torch.tensor([1.0, 1, 0]).double(), torch.tensor([1.0, 1, -1]).double()
CUBE = torch.cartesian_prod(*3 * [torch.tensor([-1.0, 1]).double()])
TETRAHEDRON = CUBE[CUBE.prod(-1) > 0]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.manual_seed(seed))


def rotation(seed=0, size=3):
    basis = torch.linalg.qr(random(size, size, seed=seed)).Q
    basis[:, 0] *= torch.linalg.det(basis).sign()
    return basis


def moved(points, found):
    return (
        found.scale[..., None, None] * (points @ found.rotation.mT)
        + found.translation[..., None, :]
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_scipys_rotation(weighted, note_error):
    p, q = random(20, 6, 3), random(20, 6, 3, seed=1)
    weights = random(20, 6, seed=2).abs() if weighted else None
    found = covpool.kabsch(p, q, weights)
    for index in range(20):
        share = torch.full((6,), 1 / 6) if weights is None else weights[index]
        share = share.double() / share.sum()
        centred = [x[index] - share @ x[index] for x in (p, q)]
        expected, _ = Rotation.align_vectors(centred[1], centred[0], weights=share.numpy())
        error = (found.rotation[index] - torch.from_numpy(expected.as_matrix())).abs().max()
        assert note_error("rotation", "kabsch", error * found.gap[index].clamp_max(1)) <= 2e-15
    assert (torch.linalg.det(found.rotation) - 1).abs().max() <= 1e-14
    assert torch.equal(found.scale, torch.ones(20).double())


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_motion_is_found(size, dtype):
    p = random(3, 9, size, dtype=dtype)
    turn, shift = rotation(size=size).to(dtype), random(3, 1, size, seed=1, dtype=dtype)
    found = covpool.kabsch(p, 2.5 * p @ turn.mT + shift, scale=True)
    tolerance = 50 * torch.finfo(dtype).eps
    assert (found.rotation - turn).abs().max() <= tolerance
    assert (found.translation - shift[:, 0]).abs().max() <= tolerance
    assert (found.scale - 2.5).abs().max() <= tolerance
    assert {each.dtype for each in found} == {dtype}
    assert (found.gap > 0).all()


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([2, 3, 4]))
def test_no_other_motion_is_better(seed, scale, size):
    p, q = random(6, size, seed=seed), random(6, size, seed=seed + 1)
    weights = random(6, seed=seed + 2).abs()
    found = covpool.kabsch(p, q, weights, scale=scale)

    def error(motion):
        return (weights[:, None] * (moved(p, motion) - q).square()).sum()

    least = error(found)
    for other in range(5):
        small = 10.0**-other * random(size, size, seed=seed + 3 + other)
        turn = found.rotation @ torch.linalg.matrix_exp(small - small.mT)
        factor = found.scale * (1 + 10.0**-other * scale)
        motion = found._replace(rotation=turn, scale=factor)
        for shift in (0, 10.0**-other):
            assert error(motion._replace(translation=found.translation + shift)) >= least - 1e-12


SETS = {
    "random": (random(5, 3), random(5, 3, seed=1)),
    "a cube": (CUBE, CUBE @ rotation().mT),
    "a tetrahedron": (TETRAHEDRON, TETRAHEDRON @ rotation().mT),
    "in a plane": (random(5, 3) * FLAT, random(5, 3, seed=1)),
    "both in a plane": (random(5, 3) * FLAT, random(5, 3, seed=1) * FLAT @ rotation().mT),
    "three points": (random(3, 3), random(3, 3, seed=1)),
    "mirrored": (random(5, 3), random(5, 3) * MIRROR),
    "in two dimensions": (random(5, 2), random(5, 2, seed=1)),
}


@quick.parametrize("name", SETS, keep=["a tetrahedron", "both in a plane", "mirrored"])
def test_derivatives_are_right(name):
    p, q = (points.clone().requires_grad_() for points in SETS[name])
    weights = (1 + random(len(p), seed=3).abs()).requires_grad_()

    def motion(p, q, weights):
        return covpool.kabsch(p, q, weights, scale=True)[:3]

    assert covpool.kabsch(p, q, weights).gap > 0.01
    assert gradcheck(motion, (p, q, weights), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(motion, (p, q, weights), fast_mode=True)


def test_points_in_columns_are_suspected():
    with pytest.warns(UserWarning, match=r"3 points in 50 dimensions: points are rows"):
        covpool.kabsch(random(3, 50), random(3, 50, seed=1))


LINE = torch.arange(6.0).double()[:, None] * rotation()[0] + 100
ALONE = {
    "P on a line": (LINE, random(6, 3)),
    "Q on a line": (random(6, 3), LINE),
    "P in a point": (torch.full((6, 3), 0.1).double(), random(6, 3)),
    "Q in a point": (random(6, 3), torch.full((6, 3), 0.1).double()),
    "one point": (random(1, 3), random(1, 3, seed=1)),
    "the cube's mirror image": (CUBE, CUBE * MIRROR),
    "all of zero": (torch.zeros(4, 3).double(), torch.zeros(4, 3).double()),
}


@pytest.mark.parametrize("many", [1, 2000])
@pytest.mark.parametrize("name", ALONE)
def test_rotations_that_are_not_unique_are_reported(name, many):
    p, q = (points.expand(many, *points.shape).clone().requires_grad_() for points in ALONE[name])
    with pytest.warns(UserWarning, match=rf"not unique in {many} of {many} samples: \[0"):
        found = covpool.kabsch(p, q, scale=True)
    assert (found.gap == 0).all()
    assert (torch.linalg.det(found.rotation) - 1).abs().max() <= 1e-13
    gradients = torch.autograd.grad(sum(each.sum() for each in found[:3]), (p, q))
    assert all(each.isfinite().all() for each in gradients)
    if "point" in name or "zero" in name:
        assert (found.rotation - torch.eye(3)).abs().max() == 0
        assert (found.scale == (0 if name == "Q in a point" else 1)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        covpool.kabsch(p, q, check=False)


def test_gradients_grow_as_the_gap_closes():
    """And do not as a tie does: the cube's three are tied, its mirror image has no gap."""
    weight = random(8, 3, seed=4)

    def size(image, distance):
        q = (image + distance * random(8, 3, seed=5)).requires_grad_()
        found = covpool.kabsch(CUBE, q)
        (gradient,) = torch.autograd.grad((moved(CUBE, found) * weight).sum(), q)
        return gradient.abs().max() * (1 if image is CUBE else found.gap)

    assert all(size(CUBE, 10.0**-n) < 10 for n in range(1, 16))
    assert all(0.01 < size(CUBE * MIRROR, 10.0**-n) < 10 for n in range(1, 8))


def test_weights_of_zero_leave_points_out():
    p, q = random(7, 3), random(7, 3, seed=1)
    weights = torch.tensor([1.0, 1, 1, 1, 1, 0, 0]).double()
    found, expected = covpool.kabsch(p, q, weights), covpool.kabsch(p[:5], q[:5])
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-14


@pytest.mark.parametrize(
    ("far", "compute_dtype"),
    [(1e15, None), (1e300, None), (1e9, torch.float32), (1e30, torch.float32)],
)
def test_points_of_weight_zero_may_be_anywhere(far, compute_dtype):
    """The padding of sets of different sizes, of products beyond the range too."""
    p, q = random(7, 3), random(7, 3, seed=1)
    padding = torch.full((1, 3), far, dtype=torch.float64)
    weights = torch.tensor([1.0] * 7 + [0]).double()
    options = {"scale": True, "compute_dtype": compute_dtype}
    expected = covpool.kabsch(p, q, **options)
    padded = [torch.cat([x, padding]).requires_grad_() for x in (p, q)]
    found = covpool.kabsch(*padded, weights.requires_grad_(), **options)
    tolerance = 1e-14 if compute_dtype is None else 1e-6
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= tolerance
    gradients = torch.autograd.grad(found.rotation.square().sum(), [*padded, weights])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all((gradient[7] == 0).all() for gradient in gradients[:2])


def test_padding_that_is_not_finite_counts_only_unchecked():
    p, q = random(7, 3), random(7, 3, seed=1)
    weights = torch.tensor([1.0] * 7 + [0]).double()
    for bad in (torch.nan, torch.inf):
        padded = [torch.cat([x, torch.full((1, 3), bad).double()]).requires_grad_() for x in (p, q)]
        with pytest.raises(ValueError, match="kabsch: NaN or infinite"):
            covpool.kabsch(*padded, weights)
        found = covpool.kabsch(*padded, weights, check=False)
        assert (found.rotation - covpool.kabsch(p, q).rotation).abs().max() <= 1e-14
        for gradient in torch.autograd.grad(found.translation.sum(), padded):
            assert gradient.isfinite().all()


def test_the_gradient_of_a_weight_at_zero_is_that_beside_it():
    p, q = random(7, 3), random(7, 3, seed=1)
    gradients = []
    for least in (0.0, 1e-7):
        weights = torch.tensor([1.0] * 6 + [least]).double().requires_grad_()
        turned = covpool.kabsch(p, q, weights).rotation
        gradients += torch.autograd.grad((turned * random(3, 3, seed=2)).sum(), weights)
    assert gradients[0][6].abs() > 1e-3
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-5


@pytest.mark.parametrize("weight", [1e308, 1e-320])
def test_the_unit_of_the_weights_does_not_matter(weight):
    p, q = random(7, 3), random(7, 3, seed=1)
    found = covpool.kabsch(p, q, torch.full((7,), weight, dtype=torch.float64))
    for one, other in zip(found, covpool.kabsch(p, q), strict=True):
        assert (one - other).abs().max() <= 1e-14


@pytest.mark.parametrize("units", [(1e150, 1e-150), (1e-250, 1e-250), (1e300, 1e300)])
def test_the_unit_of_the_points_does_not_matter(units):
    """And each sample has one of its own."""
    p, q = random(2, 5, 3), random(2, 5, 3, seed=1)
    expected = covpool.kabsch(p, q, scale=True)
    mixed = [torch.stack([x[0], x[1] * f]) for x, f in zip((p, q), units, strict=True)]
    found = covpool.kabsch(*mixed, scale=True)
    assert (found.rotation - expected.rotation).abs().max() <= 1e-14
    ratio = found.scale / expected.scale
    assert abs(ratio[0] - 1) <= 1e-14
    assert abs(ratio[1] / (units[1] / units[0]) - 1) <= 1e-14
    procrustes = covpool.orthogonal_procrustes(*mixed).R
    assert (procrustes - covpool.orthogonal_procrustes(p, q).R).abs().max() <= 1e-14


def test_many_sets_are_each_what_they_are_alone():
    p, q = random(3000, 5, 3, dtype=torch.float32), random(5, 3, seed=1, dtype=torch.float32)
    p.requires_grad_()
    together = covpool.kabsch(p, q, scale=True)
    (gradient,) = torch.autograd.grad(together.rotation[:, 0].sum(), p)
    for index in (0, 1234):
        leaf = p[index].detach().requires_grad_()
        alone = covpool.kabsch(leaf, q, scale=True)
        for one, other in zip(together, alone, strict=True):
            assert (one[index] - other).abs().max() <= 1e-6
        (own,) = torch.autograd.grad(alone.rotation[0].sum(), leaf)
        assert relative_error(gradient[index], own) <= 1e-6


def test_transforms_of_torch_func():
    p, q = random(4, 5, 3), random(4, 5, 3, seed=1)

    def call(p, q):
        return moved(p, covpool.kabsch(p, q, scale=True))

    assert relative_error(vmap(call)(p, q), call(p, q)) <= 1e-14
    assert relative_error(jacfwd(call)(p[0], q[0]), jacrev(call)(p[0], q[0])) <= 1e-12
    with torch.inference_mode():
        assert relative_error(call(p, q), call(p.clone(), q.clone())) <= 1e-15


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("rows", [6, 3])
def test_procrustes_is_scipys(dtype, rows):
    a, b = random(3, rows, 3, dtype=dtype), random(3, rows, 3, seed=1, dtype=dtype)
    found = covpool.orthogonal_procrustes(a, b)
    for index in range(3):
        expected, scale = scipy.linalg.orthogonal_procrustes(a[index].numpy(), b[index].numpy())
        assert np.abs(found.R[index].numpy() - expected).max() <= 1e-14
        assert abs(found.scale[index] - scale) <= 1e-13
    leaves = a[0].clone().requires_grad_(), b[0].clone().requires_grad_()
    checks = {"check_forward_ad": True, "fast_mode": True}
    assert gradcheck(covpool.orthogonal_procrustes, leaves, **checks)
    assert gradgradcheck(covpool.orthogonal_procrustes, leaves, fast_mode=True)


def test_procrustes_at_deficient_rank_is_orthogonal():
    """Of one zero σ the derivative is that of the solution returned; of two it is finite."""
    q = random(5, 3, seed=1)
    for rank in (2, 1, 0):
        a = (random(5, rank) @ random(rank, 3, seed=2)).requires_grad_()
        found = covpool.orthogonal_procrustes(a, q)
        assert (found.R @ found.R.mT - torch.eye(3)).abs().max() <= 1e-14
        (gradient,) = torch.autograd.grad((found.R * random(3, 3, seed=3)).sum(), a)
        assert gradient.isfinite().all()
        if rank == 2:
            step = 1e-6 * random(5, 3, seed=4)
            turned = [covpool.orthogonal_procrustes(a + s * step, q).R for s in (1, -1)]
            kept = [r for r in turned if (r - found.R).abs().max() < 0.1]
            assert kept
            change = (kept[0] - found.R) * (1 if kept[0] is turned[0] else -1)
            expected = (change * random(3, 3, seed=3)).sum()
            assert abs((gradient * step).sum() - expected) <= 1e-4 * abs(expected)


REFUSED = {
    "complex points": (lambda p: covpool.kabsch(p.cfloat(), p.cfloat()), "real floating-point"),
    "sizes": (lambda p: covpool.kabsch(p, p[:3]), r"one size and dtype, got \(4, 3\)"),
    "dtypes": (lambda p: covpool.orthogonal_procrustes(p, p.double()), "torch.float64"),
    "batches": (
        lambda p: covpool.kabsch(p.expand(2, 4, 3), p.expand(3, 4, 3)),
        "do not broadcast",
    ),
    "no points": (lambda p: covpool.kabsch(p[:0], p[:0]), r"needs points \(\*, N, n\)"),
    "weights of another shape": (lambda p: covpool.kabsch(p, p, p), "give one number for each"),
    "negative weights": (
        lambda p: covpool.kabsch(p, p, torch.tensor([1.0, 1, 1, -1])),
        "weights must be finite, not negative",
    ),
    "no weight": (lambda p: covpool.kabsch(p, p, torch.zeros(4)), "not all zero"),
    "NaN": (lambda p: covpool.kabsch(p, p * torch.nan), "kabsch: NaN or infinite"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(4, 3))


def test_nothing_to_do():
    assert covpool.kabsch(torch.zeros(0, 4, 3), torch.zeros(0, 4, 3)).rotation.shape == (0, 3, 3)
    found = covpool.orthogonal_procrustes(torch.zeros(0, 4, 3), torch.zeros(0, 4, 3))
    assert found.R.shape == (0, 3, 3)
