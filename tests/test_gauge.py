"""gauge_dependence: about eps for losses that are well defined, about 1 for others, by sample."""

import pytest
import torch

import covpool
from covpool import gauge_dependence
from spectra import SPECTRA, orthogonal, relative_error, with_spectrum

EPS = torch.finfo(torch.float64).eps
WEIGHT = torch.randn(8, 8, dtype=torch.float64, generator=torch.manual_seed(0))


def spectral(values, vectors):
    """Σ W ∘ V exp(λ) Vᵀ, a function of the matrix alone."""
    return ((vectors * values.exp()[..., None, :]) @ vectors.mT * WEIGHT).sum((-2, -1)).square()


def linear(values, vectors):
    return (vectors * WEIGHT).sum((-2, -1))


def even(values, vectors):
    """Blind to signs, not to the basis."""
    return (vectors.abs() * WEIGHT).sum((-2, -1))


SEPARATED, TIED = SPECTRA["separated"](), SPECTRA["tied-diagonal"]()
BATCH = torch.stack([SEPARATED, TIED])


@pytest.mark.parametrize(
    ("loss", "signs", "rotations"),
    [
        (spectral, [False, False], [False, False]),
        (linear, [True, True], [False, True]),
        (even, [False, False], [False, True]),
    ],
)
def test_dependence_is_found_where_it_is(loss, signs, rotations):
    found = gauge_dependence(loss, BATCH)
    assert found.sign.shape == found.rotation.shape == (2,)
    for share, expected in ((found.sign, signs), (found.rotation, rotations)):
        for value, dependent in zip(share.tolist(), expected, strict=True):
            assert value > 0.1 if dependent else value <= 100 * EPS
    assert found.largest_multiplicity.tolist() == [1, 3]


def fused(matrix):
    """`spectral` as one function of the matrix, for torch to differentiate."""
    return (torch.matrix_exp(matrix) * WEIGHT).sum((-2, -1)).square()


def circulant(size=8):
    row = torch.tensor([3.0, 1, 0.5, 0.2, 0.1, 0.2, 0.5, 1], dtype=torch.float64)
    return torch.stack([row.roll(shift) for shift in range(size)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_lost_where_values_and_vectors_meet_in_the_loss(dtype):
    """A function of the matrix is blind to the basis, and yet its gradient by `eigh` is wrong at
    ties: f′(λ) between the tied vectors is not in what arrives there."""
    matrices = [torch.eye(8, dtype=torch.float64), circulant(), TIED, 1e-30 * TIED, SEPARATED]
    matrices = torch.stack([*matrices, SPECTRA["clustered"]()]).to(dtype)
    found = gauge_dependence(spectral, matrices)
    assert (found.rotation <= 1e-3).all()
    leaf = matrices.clone().requires_grad_()
    ours = torch.autograd.grad(spectral(*covpool.eigh(leaf)).sum(), leaf)[0]
    right = torch.autograd.grad(fused(leaf).sum(), leaf)[0]
    right = (right + right.mT) / 2
    wrong = [relative_error(a, b) for a, b in zip(ours, right, strict=True)]
    # In float32 the cluster's gaps of 1e-9 are ties; in float64 nothing is lost between them.
    expected = [True, True, True, True, False, dtype == torch.float32]
    for share, error, lossy in zip(found.lost.tolist(), wrong, expected, strict=True):
        assert (share > 5e-3) == (error > 5e-3) == lossy
        assert lossy or share <= 1e-4
    said = str(found)
    assert "the gradient at ties lacks up to" in said
    assert "values and vectors meet in the loss in" in said
    assert "[0, 1, 2, 3" in said


def test_nothing_is_lost_of_values_alone_or_vectors_alone():
    def projection(values, vectors):
        return (vectors[..., -3:] @ vectors[..., -3:].mT * WEIGHT).sum().square()

    def separate(values, vectors):
        return projection(values, vectors) + values.square().sum()

    assert gauge_dependence(separate, TIED).lost <= 100 * EPS
    assert gauge_dependence(projection, TIED).lost <= 100 * EPS
    assert "the gradient at ties lacks up to" in str(gauge_dependence(separate, TIED))


def soft(u, s, vh):
    """Singular value thresholding."""
    shrunk = (u * (s - 0.5).clamp_min(0)[..., None, :]) @ vh
    return shrunk.sin().sum((-2, -1))


def test_what_svd_loses():
    separated = torch.cat([with_spectrum([1, 2, 3, 4, 5.0]), torch.zeros(2, 5)])
    tied = torch.from_numpy(orthogonal(7, 0)[:, :5]) * torch.tensor([3.0, 3, 2, 1, 1])
    found = gauge_dependence(soft, torch.stack([separated, tied, low_rank(3)]), "svd")
    assert (found.rotation <= 1e-12).all()
    assert (found.lost > 0.1).tolist() == [False, True, True]
    assert found.lost[0] <= 1e-13
    # Of the space of zeros, which changes of the same rank do not enter, nothing is said.
    deficient = torch.from_numpy(orthogonal(7, 0)[:, :5]) * torch.tensor([4.0, 3, 2, 0, 0])
    assert gauge_dependence(soft, deficient, "svd").lost <= 1e-13
    # The polar factor is a function that svd's gradient has whole.
    assert gauge_dependence(polar, tied, "svd").lost <= 1e-13


@pytest.mark.parametrize("column", range(8))
def test_a_single_vectors_sign_is_never_missed(column):
    found = gauge_dependence(lambda w, v: v[..., column].sum() + (v**2).sum(), SEPARATED, draws=1)
    assert found.sign > 0.01


def test_a_mean_over_the_batch_still_names_the_sample():
    matrix = torch.stack([SEPARATED, TIED, SEPARATED])
    found = gauge_dependence(lambda w, v: even(w, v).mean(), matrix)
    assert (found.rotation > 0.1).tolist() == [False, True, False]
    assert "rotations change up to" in str(found)
    assert "the loss depends on them in 1 of 3 samples: [1]" in str(found)
    assert "signs     change up to 0.0e+00 of the gradient\n" in str(found)


def test_tolerance_decides_what_is_tied():
    matrix = with_spectrum([1, 1 + 1e-5, 2, 3, 4, 5, 6, 7])
    assert gauge_dependence(even, matrix).largest_multiplicity == 1
    wide = gauge_dependence(even, matrix, tolerance=1e-4)
    assert wide.largest_multiplicity == 2
    assert wide.rotation > 0.1
    assert wide.tolerance == 1e-4
    # Rotating unequal eigenvalues changes a spectral function by their gap.
    assert 1e-8 < gauge_dependence(spectral, matrix, tolerance=1e-4).rotation < 1e-4


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_scale_of_matrix_and_loss_do_not_matter(scale):
    found = gauge_dependence(lambda w, v: scale * even(w, v), TIED * scale)
    torch.testing.assert_close(found.rotation, gauge_dependence(even, TIED).rotation)
    assert found.sign <= 100 * EPS


def low_rank(rank):
    basis = torch.from_numpy(orthogonal(7, 0)[:, :rank])
    return basis @ torch.from_numpy(orthogonal(5, 1)[:, :rank]).mT


def reconstruction(u, s, vh):
    return ((u * s[..., None, :]) @ vh).sin().sum((-2, -1))


def polar(u, s, vh):
    return (u @ vh).sin().sum((-2, -1))


def apart(u, s, vh):
    return u.abs().sum((-2, -1)) + (vh**4).sum((-2, -1))


@pytest.mark.parametrize(
    ("loss", "tied", "deficient"),
    [(reconstruction, False, False), (polar, False, True), (apart, True, True)],
)
def test_svd(loss, tied, deficient):
    separated = with_spectrum([1, 2, 3, 4, 5.0])
    separated = torch.cat([separated, torch.zeros(2, 5)])
    batch = torch.stack([separated, low_rank(5), low_rank(3)])
    found = gauge_dependence(loss, batch, "svd")
    for value, dependent in zip(found.rotation.tolist(), [False, tied, deficient], strict=True):
        assert value > 0.1 if dependent else value <= 1e-12
    assert (found.sign <= 1e-12).all()
    assert found.largest_multiplicity.tolist() == [1, 5, 3]


def test_global_generator_and_input_are_untouched():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    matrix = TIED.clone().requires_grad_()
    with torch.no_grad():
        found = gauge_dependence(linear, matrix)
    assert torch.equal(torch.get_rng_state(), before)
    assert matrix.grad is None
    torch.testing.assert_close(found.rotation, gauge_dependence(linear, TIED).rotation)


@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 0), (0, 0), (1, 1), (2, 3, 1, 1)])
@pytest.mark.parametrize("decomposition", ["eigh", "svd"])
def test_edges(decomposition, shape):
    matrix = torch.ones(shape, dtype=torch.float64)
    found = gauge_dependence(lambda *parts: sum(p.sum() for p in parts), matrix, decomposition)
    assert found.sign.shape == shape[:-2]
    assert found.rotation.isfinite().all()
    assert str(found)


def test_a_loss_without_gradient_is_zero():
    found = gauge_dependence(lambda w, v: 0 * v.sum(), TIED)
    assert found.sign == found.rotation == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decomposition": "qr"}, "unknown decomposition 'qr'; choose from eigh, svd"),
        ({"draws": 0}, "draws must be a whole number of at least 1, got 0"),
        ({"seed": 1.5}, "seed must be a whole number of at least 0, got 1.5"),
        ({"tolerance": -1}, "tolerance must be a non-negative number, got -1"),
        ({"loss": lambda w, v: w.sum()}, "depends on the vectors .* got one without a gradient"),
        ({"loss": lambda w, v: 3.0}, "depends on the vectors .* got float"),
        ({"matrix": torch.ones(2, 3)}, "eigh needs square matrices"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        gauge_dependence(**{"loss": linear, "matrix": TIED, **arguments})


def test_what_it_finds_is_what_no_kernel_repairs():
    """The gradient of a loss that depends on the basis changes with a perturbation that nobody
    sees; that of one that does not stays."""
    noise = 1e-14 * WEIGHT
    near = TIED + noise + noise.mT

    def projection(values, vectors):
        return (vectors[..., -3:] @ vectors[..., -3:].mT * WEIGHT).sum().square()

    def change(loss, kernel):
        gradients = []
        for matrix in (TIED, near):
            leaf = matrix.clone().requires_grad_()
            gradients.append(torch.autograd.grad(loss(*covpool.eigh(leaf, kernel=kernel)), leaf)[0])
        return relative_error(gradients[1], gradients[0])

    assert gauge_dependence(projection, TIED).rotation <= 100 * EPS
    assert gauge_dependence(even, TIED).rotation > 0.1
    for kernel in covpool.KERNELS.values():
        if kernel.antisymmetric:
            assert change(projection, kernel) <= 1e-12, kernel
            assert change(even, kernel) > 0.1, kernel
