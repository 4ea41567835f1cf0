"""A network of spd-learn with our layers in place of its own.

spd-learn is in none of covpool's environments. Outside of them, without a torch of its own:

    pip install --no-deps --target FOLDER spd-learn pyriemann einops scikit-learn joblib
    pip install --no-deps --target FOLDER threadpoolctl narwhals cloudpickle loky
    pip install --no-deps --target FOLDER array-api-compat array-api-extra
    PYTHONPATH=FOLDER python -m pytest -m "" tests/test_nn_spd_learn.py
"""

import copy

import pytest
import torch
from torch import nn

import covpool
from covpool.nn import BiMap, LogEig, ReEig, RiemannianBatchNorm

theirs = pytest.importorskip("spd_learn.modules")
models = pytest.importorskip("spd_learn.models")

CHANNELS, KEPT, CLASSES, STEPS = 10, 6, 3, 60


@pytest.fixture(autouse=True)
def double():
    """While layers are made too: in float32 spd-learn's W is orthonormal to 1e-7 for good."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def classes():
    """Covariances of three kinds, 40 samples each, and their labels."""
    generator = torch.manual_seed(0)
    labels = torch.arange(CLASSES).repeat(40)
    mixing = torch.randn(CLASSES, CHANNELS, CHANNELS, generator=generator)
    noise = torch.randn(len(labels), CHANNELS, 40, generator=generator)
    mixed = (torch.eye(CHANNELS) + 0.3 * mixing)[labels] @ noise
    return covpool.covariance(mixed), labels


def our_bimap(layer):
    """A BiMap at the point of the Stiefel manifold where spd-learn's is, which has W as columns."""
    ours = BiMap(CHANNELS, KEPT)
    own, other = ours.parametrizations.weight, layer.parametrizations.weight  # pyright: ignore
    own.original.data.copy_(other.original[0].mT)
    own[0].base.copy_(other[0].base[0])
    torch.testing.assert_close(ours.weight, layer.weight[0].mT, rtol=0, atol=1e-14)
    return ours


def trained(network, x, labels):
    """The losses of full-batch training."""
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    losses = []
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network(x), labels)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return torch.tensor(losses)


@pytest.mark.slow
def test_spdnet_has_the_same_loss_curve():
    torch.manual_seed(1)
    network = models.SPDNet(
        input_type="cov", n_chans=CHANNELS, n_outputs=CLASSES, subspacedim=KEPT, threshold=0.3
    )
    ours = copy.deepcopy(network)
    ours.bimap, ours.reeig, ours.logeig = our_bimap(network.bimap), ReEig(0.3), LogEig()
    x, labels = classes()
    one, other = trained(network, x, labels), trained(ours, x, labels)
    print(f"loss {one[0]:.4f} -> {one[-1]:.4f}, largest difference {(one - other).abs().max():.1e}")
    assert one[-1] < one[0] / 2
    torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("dispersion", [False, True])
def test_batch_norm_has_the_same_values_and_the_right_gradient(dispersion):
    """spd-learn takes the mean of the batch for a constant: its gradient is not the derivative.

    What the layers after it learn is nearly the same.
    """
    torch.manual_seed(1)
    norm = theirs.SPDBatchNormMeanVar if dispersion else theirs.SPDBatchNormMean
    head = nn.Linear(KEPT * (KEPT + 1) // 2, CLASSES)
    network = nn.Sequential(
        theirs.BiMap(CHANNELS, KEPT), theirs.ReEig(0.3), norm(KEPT), theirs.LogEig(), head
    )
    eps = getattr(network[2], "eps", 1e-5)
    own_norm = RiemannianBatchNorm(KEPT, dispersion=dispersion, eps=eps)
    ours = nn.Sequential(our_bimap(network[0]), ReEig(0.3), own_norm, LogEig(), copy.deepcopy(head))
    x, labels = classes()
    torch.testing.assert_close(ours(x), network(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(own_norm.running_mean, network[2].running_mean[0])
    torch.testing.assert_close(ours.eval()(x), network.eval()(x), rtol=1e-9, atol=1e-9)
    ours.train()
    network.train()

    matrices = network[:2](x).detach()
    step = 1e-5 * matrices.flip(0)

    def loss(layer, matrices):
        return (layer(matrices)[:, 0, 1] * torch.linspace(-1, 2, len(x))).sum()

    along = []
    for layer in (own_norm, network[2]):
        leaf = matrices.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(layer, leaf), leaf)
        along.append((gradient * step).sum().item())
    up, down = (loss(own_norm, matrices + change).item() for change in (step, -step))
    print(f"along a step: ours {along[0]:.3e}, theirs {along[1]:.3e}, {(up - down) / 2:.3e}")
    assert along[0] == pytest.approx((up - down) / 2, rel=1e-6)
    assert along[1] != pytest.approx((up - down) / 2, rel=0.1)

    one, other = trained(network, x, labels), trained(ours, x, labels)
    print(f"loss {one[0]:.4f} -> {one[-1]:.4f}, largest difference {(one - other).abs().max():.1e}")
    assert one[-1] < one[0] / 2
    torch.testing.assert_close(other, one, rtol=0, atol=5e-3)
