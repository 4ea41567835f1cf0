"""Effective β-smoothness against curvatures that are known, and that measuring leaves no trace."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from covpool import CovPool2d
from covpool.analysis import effective_smoothness

STEPS = (1e-3, 0.1, 1.0, 7.0)


class Point(nn.Module):
    """A point θ to take a function's gradient at."""

    def __init__(self, values):
        super().__init__()
        self.theta = nn.Parameter(torch.as_tensor(values, dtype=torch.float64))


def symmetric(size, seed):
    matrix = np.random.default_rng(seed).standard_normal((size, size))
    return matrix + matrix.T


@pytest.mark.parametrize("seed", range(3))
def test_of_a_quadratic_it_is_the_curvature_along_the_gradient(seed):
    matrix = symmetric(6, seed)
    start = np.random.default_rng(seed + 9).standard_normal(6)
    point, tensor = Point(start), torch.from_numpy(matrix)
    found = effective_smoothness(
        point, lambda: 0.5 * point.theta @ tensor @ point.theta, step_lengths=STEPS
    )
    gradient = matrix @ start
    beta = np.linalg.norm(matrix @ gradient) / np.linalg.norm(gradient)
    assert found.quotients == pytest.approx([beta] * 4, rel=1e-9)
    assert found.smoothness == max(found.quotients)
    assert found.gradient_norm == pytest.approx(np.linalg.norm(gradient))
    there = [start - eta * gradient for eta in STEPS]
    assert found.losses == pytest.approx([0.5 * x @ matrix @ x for x in there])
    assert found.loss_range == (min(found.losses), max(found.losses))
    changes = [np.linalg.norm(matrix @ (x - start)) for x in there]
    assert found.gradient_changes == pytest.approx(changes)
    assert found.gradient_range == pytest.approx((min(changes), max(changes)))
    turned = [matrix @ x for x in there]
    cosines = [x @ gradient / np.linalg.norm(x) / np.linalg.norm(gradient) for x in turned]
    assert found.cosines == pytest.approx(cosines)


def test_along_an_eigenvector_it_is_the_eigenvalue():
    matrix = torch.diag(torch.tensor([1.0, 50.0, 3.0], dtype=torch.float64))
    point = Point([0.0, 2.0, 0.0])
    found = effective_smoothness(
        point, lambda: 0.5 * point.theta @ matrix @ point.theta, step_lengths=[0.01, 0.02]
    )
    assert found.smoothness == pytest.approx(50)


def test_of_a_quartic_it_is_the_largest_over_the_steps():
    start = np.array([1.0, -0.5, 0.25])
    point = Point(start)
    steps = (0.25, 1.0, 4.0)
    found = effective_smoothness(point, lambda: (point.theta**4).sum() / 4, step_lengths=steps)
    quotients = []
    for eta in steps:
        there = start - eta * start**3
        quotients.append(np.linalg.norm(start**3 - there**3) / np.linalg.norm(start - there))
    assert found.quotients == pytest.approx(quotients)
    assert found.smoothness == pytest.approx(max(quotients))
    assert found.evaluations == 4


class Network(nn.Module):
    """Everything that has a state: batch norm, dropout, a frozen and an unused parameter."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(0.5)
        )
        self.pool = CovPool2d(6, 4, method="isqrt-cov")
        self.head = nn.Linear(10, 3)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("replaced", torch.zeros(1))

    def forward(self, x):
        self.replaced = self.replaced + 1  # another tensor, not another value
        return self.head(self.pool(self.body(x))) * self.frozen


@pytest.fixture
def network():
    torch.manual_seed(1)
    model = Network()
    for parameter in model.head.parameters():
        parameter.grad = torch.full_like(parameter, 3)
    model.body[1].eval()
    return model


def cross_entropy_of(model):
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(5, 3, 8, 8, generator=generator)
    labels = torch.tensor([0, 1, 2, 0, 1])
    return lambda: nn.functional.cross_entropy(model(images), labels)


def snapshot(model):
    tensors = {**model.state_dict(keep_vars=True), "replaced": model.replaced}
    return {
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "storage": {name: (id(tensor), tensor.data_ptr()) for name, tensor in tensors.items()},
        "grad": {name: copy.deepcopy(p.grad) for name, p in model.named_parameters()},
        "mode": [module.training for module in model.modules()],
        "generator": torch.get_rng_state(),
    }


def assert_unchanged(before, model):
    after = snapshot(model)
    assert after["storage"] == before["storage"]
    assert after["mode"] == before["mode"]
    assert torch.equal(after["generator"], before["generator"])
    for name, value in before["values"].items():
        assert torch.equal(after["values"][name], value), name
    for name, grad in before["grad"].items():
        assert (grad is None) == (after["grad"][name] is None)
        assert grad is None or torch.equal(grad, after["grad"][name])


@pytest.mark.parametrize("train", [True, False])
def test_the_model_is_left_as_it_was(network, train):
    network.train(train)
    before = snapshot(network)
    found = effective_smoothness(network, cross_entropy_of(network), step_lengths=STEPS)
    assert found.smoothness > 0
    assert_unchanged(before, network)


def test_without_its_care_the_model_would_have_changed(network):
    """The network above does change by a forward pass, so the test above can fail."""
    network.train()
    before = snapshot(network)
    cross_entropy_of(network)()
    with pytest.raises(AssertionError):
        assert_unchanged(before, network)


def test_the_model_is_left_as_it_was_when_the_loss_fails(network):
    loss, calls = cross_entropy_of(network), []

    def closure():
        calls.append(None)
        value = loss()
        if len(calls) == 3:
            raise RuntimeError("no more")
        return value

    before = snapshot(network)
    with pytest.raises(RuntimeError, match="no more"):
        effective_smoothness(network, closure, step_lengths=STEPS)
    assert len(calls) == 3
    assert_unchanged(before, network)


def test_every_evaluation_has_the_same_masks_and_buffers():
    class Linear(nn.Module):
        """Linear in θ, so β is 0 exactly, unless the mask or the counter changed."""

        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.ones(64))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self):
            self.calls += 1
            mask = nn.functional.dropout(torch.ones(64), 0.5)
            return (self.calls * mask * self.theta).sum()

    model = Linear()
    found = effective_smoothness(model, model, step_lengths=STEPS)
    assert found.quotients == (0, 0, 0, 0)
    assert model.calls == 0


def test_a_graph_that_is_alive_can_still_be_differentiated(network):
    loss = cross_entropy_of(network)
    with torch.random.fork_rng(devices=[]):
        expected = torch.autograd.grad(loss(), network.head.weight)[0]
    value = loss()
    effective_smoothness(network, loss, step_lengths=[0.1])
    network.head.weight.grad = None
    value.backward()
    torch.testing.assert_close(network.head.weight.grad, expected, rtol=0, atol=0)


def test_steps_that_end_where_the_loss_is_not_finite_are_left_out():
    point = Point([1.0])
    found = effective_smoothness(point, lambda: point.theta.log().sum(), step_lengths=[0.5, 2.0])
    # The gradient 1/θ is 1 here, 2 half a step on; two steps on θ is negative.
    assert found.quotients[0] == found.smoothness == pytest.approx(2)
    assert np.isnan(found.quotients[1])
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["quotients"][1] == "nan"


def test_where_the_gradient_is_zero_nothing_is_measured():
    point = Point([0.0])
    found = effective_smoothness(point, lambda: (point.theta**2).sum(), step_lengths=[1.0])
    assert np.isnan(found.smoothness)


@pytest.mark.parametrize(
    ("closure", "steps", "message"),
    [
        (lambda p: (p.theta**2).sum(), (), "step lengths that are positive"),
        (lambda p: (p.theta**2).sum(), (0.1, -1.0), r"positive numbers, got \(0.1, -1.0\)"),
        (lambda p: (p.theta**2).sum(), (float("nan"),), "step lengths"),
        (lambda p: 3.0, (1.0,), "must return the loss.* got float"),
        (lambda p: p.theta**2, (1.0,), r"got shape \(2,\)"),
        (lambda p: (p.theta**2).sum().detach(), (1.0,), "depends on the model's parameters"),
        (lambda p: (p.theta / 0).sum(), (1.0,), "loss is inf"),
    ],
)
def test_refusals(closure, steps, message):
    point = Point([1.0, 2.0])
    with pytest.raises(ValueError, match=message):
        effective_smoothness(point, lambda: closure(point), step_lengths=steps)


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ValueError, match="no parameter"):
        effective_smoothness(nn.ReLU(), lambda: torch.zeros(()), step_lengths=[1.0])
