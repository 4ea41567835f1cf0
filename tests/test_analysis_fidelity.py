"""Gradient fidelity against finite differences of NumPy's root, and known damping factors."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from covpool import METHODS, CovPool2d, cov_pool
from covpool.analysis import (
    feature_fidelity,
    gap_spectra,
    pooled_gradient,
    rank_spectra,
    spectral_fidelity,
)
from covpool.analysis.fidelity import compare
from spectra import orthogonal
from test_analysis_conditioning import features_with


def numpy_root(x):
    """√cov X from the singular value decomposition, which at deficient rank is as good."""
    centred = x - x.mean(1, keepdims=True)
    left, sigma, _ = np.linalg.svd(centred / np.sqrt(x.shape[1]), full_matrices=False)
    sigma = np.where(sigma > 1e-9, sigma, 0)
    return left * sigma @ left.T


def finite_differences(x, cotangent, step=1e-4):
    """The gradient of ⟨G, √cov X⟩ by central differences of fourth order."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        for weight, multiple in ((8, 1), (-8, -1), (-1, 2), (1, -2)):
            there = x.copy()
            there[index] += multiple * step
            gradient[index] += weight * (cotangent * numpy_root(there)).sum() / (12 * step)
    return gradient


@pytest.mark.parametrize(("channels", "positions"), [(4, 9), (6, 4)])
def test_figures_are_those_of_the_numerical_derivative(channels, positions, note_error):
    singular = np.linspace(1, 0.3, min(channels, positions - 1))
    x = features_with(singular, positions, channels)
    cotangent = np.random.default_rng(1).standard_normal((channels, channels))
    found = feature_fidelity(x, cotangent=torch.from_numpy(cotangent))
    exact = finite_differences(x.numpy(), (cotangent + cotangent.T) / 2)
    assert list(found) == list(METHODS)
    for name, figures in found.items():
        leaf = x.clone().requires_grad_()
        cov_pool(leaf, name).backward(torch.from_numpy(cotangent))
        own = leaf.grad.numpy()
        distance = np.linalg.norm(own - exact) / np.linalg.norm(exact)
        cosine = (own * exact).sum() / np.linalg.norm(own) / np.linalg.norm(exact)
        note_error("fidelity", name, abs(figures.relative_distance.item() - distance))
        assert figures.relative_distance.item() == pytest.approx(distance, abs=1e-8)
        assert figures.cosine.item() == pytest.approx(cosine, abs=1e-8)
        ratio = np.linalg.norm(own) / np.linalg.norm(exact)
        assert figures.norm_ratio.item() == pytest.approx(ratio, abs=1e-8)
    assert found["exact"].relative_distance == 0
    assert found["isqrt-cov"].relative_distance > 0.01


@pytest.mark.parametrize(("channels", "positions"), [(8, 30), (8, 5)])
@pytest.mark.parametrize("name", METHODS)
def test_prescribed_spectra_give_what_features_of_that_spectrum_give(name, channels, positions):
    rank = min(channels, positions - 1)
    singular = np.geomspace(1, 0.05, rank)
    singular[1] = singular[0] * (1 - 1e-3)
    x = features_with(singular, positions, channels)
    basis = orthogonal(channels, 0)  # whose first columns are the singular vectors
    cotangent = np.random.default_rng(1).standard_normal((channels, channels))
    by_features = feature_fidelity(x, [name], cotangent=torch.from_numpy(cotangent))[name]
    spectrum = torch.zeros(channels, dtype=torch.float64)
    spectrum[channels - rank :] = torch.from_numpy(np.square(singular)[::-1].copy())
    turned = (basis.T @ cotangent @ basis)[::-1, ::-1].copy()
    by_spectrum = spectral_fidelity(spectrum, [name], cotangent=torch.from_numpy(turned))[name]
    for figure in ("cosine", "relative_distance", "norm_ratio"):
        expected, actual = getattr(by_features, figure), getattr(by_spectrum, figure)
        # Where nothing of rank is discarded, what lies outside the range is arbitrary to nobody.
        torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9)


def powers(x, terms):
    return sum(x**k for k in range(terms))


DAMPING = {
    "svd": lambda x: 1.0,
    "svd-taylor": lambda x: 1 - x**101,
    # Not antisymmetric: Kij √λi + Kji √λj, over the exact 1/(√λi + √λj).
    "svd-pi": lambda x: (1 + x**0.5) * (powers(x, 20) - powers(x, 19) * x**0.5),
    "svd-lorentz": lambda x: 1 / (1 + (1e-6 / (1 - x)) ** 2),
    "svd-trunc": lambda x: min(1.0, (1 - x) * 1e10),
    "svd-pade": lambda x: min(1.0, (1 - x) * 1.33e21),
}


@pytest.mark.parametrize("gap", [0.3, 1e-2, 1e-4, 1e-6, 1e-9, 1e-11])
@pytest.mark.parametrize("name", DAMPING)
def test_of_one_pair_the_distance_is_the_kernels_damping(name, gap):
    spectrum = torch.tensor([1 - gap, 1.0], dtype=torch.float64)
    off_diagonal = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    found = spectral_fidelity(spectrum, [name], cotangent=off_diagonal)[name]
    gap = 1 - spectrum[0].item()
    share = DAMPING[name](1 - gap)
    assert found.relative_distance == pytest.approx(abs(1 - share), rel=1e-6, abs=1e-10)
    assert found.norm_ratio == pytest.approx(share, rel=1e-6)
    assert found.cosine == pytest.approx(1)


def test_at_a_tie_a_kernel_keeps_nothing_power_iteration_twice_and_exact_everything():
    off_diagonal = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    found = spectral_fidelity(torch.ones(2), ["svd", "svd-pi", "exact"], cotangent=off_diagonal)
    assert found["svd-pi"].norm_ratio == pytest.approx(2)
    assert (found["svd"].cosine, found["svd"].relative_distance) == (0, 1)
    assert found["exact"].cosine == pytest.approx(1)
    assert found["exact"].relative_distance == 0


def test_angle_is_in_degrees():
    one, other = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 1.0]]])
    found = compare("exact", one, other)
    assert found.angle.item() == pytest.approx(45)
    assert found.relative_distance.item() == pytest.approx(2**-0.5)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_sizes_at_the_ends_of_the_range(scale):
    gradient = torch.tensor([[3.0, 4.0]], dtype=torch.float64) * scale
    found = compare("exact", gradient, 2 * gradient)
    assert found.cosine == pytest.approx(1)
    assert found.relative_distance == found.norm_ratio == pytest.approx(0.5)


def test_gap_spectra_have_that_gap():
    gaps = [0.0, 1e-9, 0.3]
    spectra = gap_spectra(gaps, size=6, condition_number=100).numpy()
    assert spectra.shape == (3, 6)
    for gap, spectrum in zip(gaps, spectra, strict=True):
        np.testing.assert_allclose(spectrum[1::2], [0.01, 0.1, 1], rtol=1e-12)
        relative = (spectrum[1::2] - spectrum[::2]) / spectrum[1::2]
        np.testing.assert_allclose(relative, gap, rtol=1e-6)


def test_rank_spectra_have_that_rank():
    spectra = rank_spectra([1, 3, 5], size=5, condition_number=100).numpy()
    np.testing.assert_allclose(spectra[1], [0, 0, 0.01, 0.1, 1])
    assert (spectra > 0).sum(1).tolist() == [1, 3, 5]


@pytest.mark.parametrize("vectorize", [True, False])
def test_pooled_gradient_is_that_of_the_loss(vectorize):
    torch.manual_seed(0)
    layer = CovPool2d(4, 3, method="isqrt-cov", vectorize=vectorize)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), layer)
    images = torch.randn(2, 2, 5, 5)
    weights = torch.randn(layer.out_features).reshape(-1 if vectorize else (3, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features, cotangent = pooled_gradient(
        model, lambda: (model(images) * weights).sum(), method="exact"
    )
    assert layer.method is METHODS["isqrt-cov"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    expected = torch.zeros(3, 3)
    if vectorize:
        expected[tuple(torch.triu_indices(3, 3))] = weights
    else:
        expected = weights
    torch.testing.assert_close(cotangent, ((expected + expected.T) / 2).expand(2, 3, 3))
    leaf = features.clone().requires_grad_()
    loss = (cov_pool(leaf, "isqrt-cov") * expected).sum()
    (expected_gradient,) = torch.autograd.grad(loss, leaf)
    leaf = features.clone().requires_grad_()
    cov_pool(leaf, "isqrt-cov").backward(cotangent)
    torch.testing.assert_close(leaf.grad, expected_gradient)


@pytest.mark.parametrize("shape", [(4, 6), (3, 4, 6), (2, 3, 4, 3, 2)])
def test_batch_shapes(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for row in feature_fidelity(x).values():
        batch = shape[:-3] if len(shape) > 3 else shape[:-2]
        assert row.cosine.shape == row.relative_distance.shape == batch
        assert json.dumps(row.to_dict(), allow_nan=False)


def test_draws_leave_torchs_generator_alone():
    state = torch.get_rng_state()
    one = spectral_fidelity(gap_spectra([0.1]), ["svd-pi"], seed=1)
    other = spectral_fidelity(gap_spectra([0.1]), ["svd-pi"], seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert one["svd-pi"].cosine != other["svd-pi"].cosine


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectral_fidelity(torch.ones(3), ["svdd"]), "did you mean 'svd'"),
        (lambda: spectral_fidelity(torch.ones(3), cotangent=torch.ones(2, 2)), r"\(\*, 3, 3\)"),
        (lambda: spectral_fidelity(torch.tensor([-1.0])), "not negative"),
        (lambda: feature_fidelity(torch.rand(3, 4), cotangent=torch.rand(4, 4)), r"\(\*, 3, 3\)"),
        (lambda: feature_fidelity(torch.full((3, 4), torch.inf)), "finite"),
        (lambda: gap_spectra([1.0]), "gaps in"),
        (lambda: gap_spectra([0.1], size=5), "even size"),
        (lambda: gap_spectra([0.1], condition_number=0.5), "at least 1, got 0.5"),
        (lambda: rank_spectra([0]), "at least 1, got 0"),
        (lambda: rank_spectra([9], size=8), r"1 to size 8, got \[9\]"),
        (lambda: compare("svd", torch.ones(2, 2), torch.ones(2, 3)), "one shape"),
        (
            lambda: pooled_gradient(CovPool2d(2, None), lambda: torch.zeros(())),
            "did not call the model's pooling layer",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
