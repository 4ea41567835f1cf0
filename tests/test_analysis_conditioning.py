"""Conditioning of covariances against NumPy's and SciPy's decompositions of known spectra."""

import json

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import nn

from covpool import CovPool2d, create_model
from covpool.analysis import (
    feature_spectrum,
    measure_conditioning,
    pooled_features,
    spectrum_figures,
    summarise,
)
from covpool.analysis.conditioning import EPS
from covpool.analysis.records import QUANTILES
from spectra import orthogonal

CHANNELS = 24
FIGURES = (
    *("condition_number", "condition_number_of_range", "condition_number_floored", "rank"),
    *("effective_rank", "smallest_relative_gap", "largest_eigenvalue", "floored_share"),
    "negative_share",
)


def features_with(singular, positions, channels=CHANNELS, seed=0):
    """Centred features whose Xc/√N has these singular values, in float64: (C, N)."""
    singular = np.asarray(singular, dtype=float)
    left = orthogonal(channels, seed)[:, : len(singular)]
    right = np.random.default_rng(seed + 1).standard_normal((positions, len(singular)))
    right = np.linalg.qr(right - right.mean(0))[0]
    return torch.from_numpy(left * singular @ right.T * positions**0.5 + 5.0)


SHAPES = {
    "more positions": (np.geomspace(2, 1e-3, CHANNELS), 60),
    "as many": (np.geomspace(2, 1e-2, CHANNELS - 1), CHANNELS),
    "fewer positions": (np.geomspace(3, 1e-2, 9), 10),
    "deficient": (np.linspace(1, 2, 5), 40),
    "one position": ([], 1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_figures_are_those_of_the_prescribed_spectrum(name):
    singular, positions = SHAPES[name]
    if len(singular):
        x = features_with(singular, positions)
    else:
        x = torch.arange(float(CHANNELS), dtype=torch.float64)[:, None]
    expected = np.zeros(CHANNELS)
    expected[CHANNELS - len(singular) :] = np.sort(np.square(singular))
    found = measure_conditioning(x)
    np.testing.assert_allclose(found.eigenvalues, expected, rtol=1e-9, atol=0)
    figures = found.of_features
    positive = expected[expected > 0]
    whole = len(positive) == CHANNELS
    largest = expected[-1]
    assert figures.rank == len(positive)
    assert figures.largest_eigenvalue == pytest.approx(largest)
    assert figures.condition_number.item() == pytest.approx(
        largest / expected[0] if whole else np.inf, rel=1e-8
    )
    floored = np.maximum(expected, EPS)
    assert figures.condition_number_floored == pytest.approx(floored[-1] / floored[0], rel=1e-8)
    assert figures.floored_share == pytest.approx((expected < EPS).mean())
    assert figures.negative_share == 0
    if len(positive):
        assert figures.condition_number_of_range == pytest.approx(largest / positive[0], rel=1e-8)
        entropy = scipy.stats.entropy(expected / expected.sum())
        assert figures.effective_rank == pytest.approx(np.exp(entropy))
        gaps = np.diff(expected)[expected[1:] > 0] / expected[1:][expected[1:] > 0]
        assert figures.smallest_relative_gap == pytest.approx(gaps.min(), rel=1e-6)
    else:
        assert figures.condition_number_of_range.isnan()
        assert figures.effective_rank == 0


def test_spectrum_is_that_of_scipys_singular_values():
    x = torch.randn(3, 8, 11, 13, generator=torch.Generator().manual_seed(0))
    found = feature_spectrum(x)
    for sample, spectrum in zip(x.double().numpy().reshape(3, 8, -1), found, strict=True):
        centred = sample - sample.mean(1, keepdims=True)
        sigma = scipy.linalg.svdvals(centred / np.sqrt(143))
        np.testing.assert_allclose(spectrum, np.sort(sigma**2), rtol=1e-12)


@pytest.mark.parametrize("positions", [10, 60])
def test_a_large_mean_takes_no_digit_of_a_small_rest(positions):
    # Multiples of 2^-12, so that adding 2^36 to them rounds nothing.
    sample = np.random.default_rng(0).integers(-4096, 4096, (CHANNELS, positions)) / 4096
    sample[:, -1] = 0.5
    sample[0] = sample[1] + np.round(sample[2] * 4) / 4096  # nearly a dependence
    expected = feature_spectrum(torch.from_numpy(sample))
    found = feature_spectrum(torch.from_numpy(sample + 2.0**36))
    assert (found > 0).sum() == min(positions - 1, CHANNELS)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("dtype", "blind_beyond"), [(torch.float64, 1e16), (torch.float32, 1e8)], ids=str
)
def test_features_have_a_condition_that_the_formed_covariance_hides(dtype, blind_beyond):
    singular = np.geomspace(1, 1e-10, CHANNELS)  # the covariance's condition number is 1e20
    found = measure_conditioning(features_with(singular, 100), formed_dtype=dtype)
    # The features were themselves rounded, to 5 + x, by 1e-15 of their size.
    assert found.of_features.condition_number.item() == pytest.approx(1e20, rel=1e-2)
    assert found.of_features.rank == CHANNELS
    formed = found.of_covariance
    assert formed.condition_number == torch.inf
    assert formed.condition_number_of_range < blind_beyond
    assert formed.rank < CHANNELS
    assert formed.largest_eigenvalue == pytest.approx(1, rel=1e-5)


def test_the_papers_figure_of_a_singular_covariance_is_its_largest_eigenvalue_over_the_floor():
    def figure(x, **options):
        return measure_conditioning(x, **options).of_features.condition_number_floored

    x = features_with(np.geomspace(0.3, 0.1, 9), 10)
    assert figure(x) == pytest.approx(0.09 / EPS)
    # Better conditioned within its range by far, and the same figure.
    assert figure(features_with(np.full(9, 0.3), 10)) == pytest.approx(0.09 / EPS)
    assert figure(x, floor=1e-6) == pytest.approx(9e4)


def test_rounding_of_a_formed_singular_covariance_is_seen():
    x = torch.randn(4, 40, 10, generator=torch.Generator().manual_seed(3))
    found = measure_conditioning(x, formed_dtype=torch.float32)
    raw = []
    for sample in x.numpy():
        centred = sample - sample.mean(1, keepdims=True)
        raw.append(np.linalg.eigvalsh((centred @ centred.T / np.float32(10)).astype(float)))
    assert found.of_covariance.negative_share.sum() > 0
    np.testing.assert_allclose(
        found.of_covariance.negative_share, [(e < 0).mean() for e in raw], atol=0.2
    )
    assert found.of_covariance.rank.tolist() == found.of_features.rank.tolist() == [9] * 4
    # Of the 31 zeros many are rounding errors far above the floor.
    assert (found.of_features.floored_share == 31 / 40).all()
    assert (found.of_covariance.floored_share < 25 / 40).all()


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_batch_shapes_and_dtypes(batch, dtype):
    x = torch.randn(*batch, 5, 3, 3).to(dtype) if batch else torch.randn(5, 9).to(dtype)
    found = measure_conditioning(x)
    for way in (found.of_features, found.of_covariance):
        for name in FIGURES:
            assert getattr(way, name).shape == batch
    assert json.dumps(found.to_dict(), allow_nan=False)
    assert str(found).startswith("5 channels, 9 positions")
    if batch == (2, 3):
        alone = measure_conditioning(x[1, 2].flatten(1))
        for name in FIGURES:
            together = getattr(found.of_features, name)[1, 2]
            torch.testing.assert_close(together, getattr(alone.of_features, name))


def test_spectrum_figures_of_given_eigenvalues():
    figures = spectrum_figures(torch.tensor([[4.0, 0.0, 2.0], [1.0, 1.0, 1.0]]))
    assert figures.rank.tolist() == [2, 3]
    assert figures.condition_number.tolist() == [float("inf"), 1]
    assert figures.condition_number_of_range.tolist() == [2, 1]
    assert figures.smallest_relative_gap.tolist() == [0.5, 0]


@pytest.fixture
def model():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5))
    return nn.Sequential(body, CovPool2d(8, 6), nn.Linear(21, 2))


def test_a_models_features_are_those_that_it_pools(model):
    images = torch.randn(4, 3, 7, 7)
    model.eval()
    with torch.no_grad():
        expected = model[1].reduction(model[0](images)).flatten(2)
    assert torch.equal(pooled_features(model, images), expected)
    found, direct = measure_conditioning(model, images), measure_conditioning(expected)
    assert torch.equal(found.eigenvalues, direct.eigenvalues)


def test_looking_at_a_model_leaves_it_as_it_was(model):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    measure_conditioning(model, torch.randn(4, 3, 7, 7, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not model[1].reduction._forward_hooks


def test_a_covpool_model_can_be_looked_at():
    network = create_model("small-convnet", num_classes=3, method="svd", in_chans=1, image_size=32)
    found = measure_conditioning(network.eval(), torch.rand(2, 1, 32, 32))
    assert found.of_features.rank.shape == (2,)
    assert found.channels == network.pool.channels


@pytest.mark.parametrize(
    "values",
    [
        [3.0, 1.0, 2.0],
        [1.0, float("inf"), 2.0, float("inf"), 5.0, 6.0],
        np.random.default_rng(0).random(101).tolist(),
    ],
)
def test_quantiles_are_numpys_nearest(values):
    found = summarise(torch.tensor(values, dtype=torch.float64))
    assert found.quantiles == tuple(np.quantile(values, QUANTILES, method="nearest"))
    assert found.infinite == np.isinf(values).sum()
    assert found.median == np.quantile(values, 0.5, method="nearest")


def test_quantiles_without_values():
    found = summarise(torch.tensor([float("nan")]))
    assert (found.count, found.not_a_number, found.quantiles) == (1, 1, ())
    assert np.isnan(found.median)
    assert np.isnan(found.largest)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure_conditioning(torch.ones(3)), r"got shape \(3,\)"),
        (lambda: measure_conditioning(torch.ones(2, 3, dtype=torch.int64)), "floating-point"),
        (lambda: measure_conditioning(torch.full((2, 3, 4), torch.nan)), r"2 of 2 samples"),
        (lambda: measure_conditioning(torch.ones(3, 4), formed_dtype=torch.float16), "float16"),
        (lambda: measure_conditioning(torch.rand(3, 4), floor=0.0), "floor .* got 0.0"),
        (lambda: measure_conditioning(torch.rand(3, 4), torch.rand(3)), "for a model alone"),
        (
            lambda: measure_conditioning(nn.Linear(2, 2), torch.rand(2)),
            "exactly one CovPool2d.* none",
        ),
        (
            lambda: measure_conditioning(nn.Sequential(CovPool2d(2), CovPool2d(2)), torch.rand(2)),
            "found '0', '1'",
        ),
        (lambda: spectrum_figures(torch.tensor([1.0, -1.0])), "not negative, got -1"),
        (lambda: spectrum_figures(torch.ones(2, 0)), r"got shape \(2, 0\)"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
