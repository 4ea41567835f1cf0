"""The whitening layer against BatchNorm, scipy, finite differences and its own description."""

import copy
import pickle
import re

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import quick
from covpool import METHODS
from covpool.nn import Whitening
from spectra import orthogonal, relative_error

KINDS = ("zca", "cholesky")


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.manual_seed(seed))


def features(*shape, seed=0):
    """Correlated channels of different mean and size."""
    mixing = random(shape[1], shape[1], seed=seed + 1)
    return torch.einsum("ij,bj...->bi...", mixing, random(*shape, seed=seed) + 0.5)


def channels_and_values(x):
    """(C, N) in numpy."""
    return x.detach().transpose(0, 1).flatten(1).numpy()


def whitening_matrix(covariance, kind, eps=1e-5):
    shifted = covariance + eps * np.eye(len(covariance))
    if kind == "cholesky":
        return np.linalg.inv(np.linalg.cholesky(shifted))
    return scipy.linalg.fractional_matrix_power(shifted, -0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d, (7, 4)),
        (nn.BatchNorm1d, (3, 4, 5)),
        (nn.BatchNorm2d, (3, 4, 3, 2)),
        (nn.BatchNorm3d, (2, 4, 2, 1, 3)),
    ],
)
def test_groups_of_one_channel_are_batch_norm(norm, shape, momentum, kind):
    ours = Whitening(4, groups=4, kind=kind, momentum=momentum).double()
    torch_own = norm(4, momentum=momentum).double()
    for parameter in ("weight", "bias"):
        for layer in (ours, torch_own):
            getattr(layer, parameter).data.copy_(random(4, seed=8))
    for step in range(3):
        x = features(*shape, seed=step)
        weight = random(*shape, seed=9)
        results = []
        for layer in (ours, torch_own):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            results.append(
                (y, *torch.autograd.grad((y * weight).sum(), [leaf, *layer.parameters()]))
            )
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.running_mean, torch_own.running_mean)
    torch.testing.assert_close(ours.running_cov.flatten(), torch_own.running_var)
    assert ours.num_batches_tracked == torch_own.num_batches_tracked == 3
    torch.testing.assert_close(ours.eval()(x), torch_own.eval()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(40, 6), (9, 6, 5), (5, 6, 3, 4)])
@pytest.mark.parametrize("groups", [1, 2])
def test_training_and_evaluation_are_scipys(groups, shape, kind):
    layer = Whitening(6, groups=groups, kind=kind, momentum=0.25).double()
    x = features(*shape)
    y = channels_and_values(layer(x))
    values, size = channels_and_values(x), 6 // groups
    for first in range(0, 6, size):
        part = values[first : first + size]
        covariance = np.cov(part, bias=True)
        matrix = whitening_matrix(covariance, kind)
        np.testing.assert_allclose(
            y[first : first + size], matrix @ (part - part.mean(1, keepdims=True)), atol=1e-10
        )
        lost = 1.01e-5 / np.linalg.eigvalsh(covariance)[0]
        white = np.cov(y[first : first + size], bias=True)
        np.testing.assert_allclose(white, np.eye(size), atol=lost)
    other = features(*shape, seed=5)
    evaluated = channels_and_values(layer.eval()(other))
    for first in range(0, 6, size):
        part = values[first : first + size]
        running = 0.75 * np.eye(size) + 0.25 * np.cov(part)
        centred = channels_and_values(other)[first : first + size] - 0.25 * part.mean(
            1, keepdims=True
        )
        expected = whitening_matrix(running, kind) @ centred
        np.testing.assert_allclose(evaluated[first : first + size], expected, atol=1e-10)


DERIVATIVES = [
    ({}, 5),
    ({"kind": "cholesky"}, 5),
    ({"groups": 3}, 5),
    ({"method": "isqrt-cov"}, 5),
    ({"method": "newton-schulz-minimax"}, 5),
    ({"eps": 0.1}, 2),
    ({"eps": 0.1, "kind": "cholesky"}, 2),
    ({"affine": False}, 5),
]


def call_and_leaves(options, samples):
    layer = Whitening(3, **options).double()
    parameters = dict(layer.named_parameters())
    for parameter in parameters.values():
        parameter.data += 0.3 * random(3, seed=3)

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), x)

    return call, [features(samples, 3).requires_grad_(), *parameters.values()]


@quick.parametrize(("options", "samples"), DERIVATIVES, keep=DERIVATIVES[:2])
def test_gradient_is_that_of_the_layer(options, samples):
    """With respect to features, weight and bias; with fewer samples than channels too."""
    assert torch.autograd.gradcheck(*call_and_leaves(options, samples))


@pytest.mark.slow
@pytest.mark.parametrize(("options", "samples"), DERIVATIVES)
def test_second_derivatives_and_forward_mode(options, samples):
    call, leaves = call_and_leaves(options, samples)
    assert torch.autograd.gradcheck(call, leaves, check_forward_ad=True, check_backward_ad=False)
    assert torch.autograd.gradgradcheck(call, leaves)


def test_five_steps_of_newton_and_schulz_are_iterative_normalisation():
    x = features(30, 5)
    centred = channels_and_values(x) - channels_and_values(x).mean(1, keepdims=True)
    covariance = centred @ centred.T / 30 + 1e-5 * np.eye(5)
    normalised, inverse = covariance / np.trace(covariance), np.eye(5)
    for _ in range(5):
        inverse = (3 * inverse - inverse @ inverse @ inverse @ normalised) / 2
    expected = inverse / np.sqrt(np.trace(covariance)) @ centred
    found = Whitening(5, method="isqrt-cov").double()(x)
    np.testing.assert_allclose(channels_and_values(found), expected, atol=1e-10)
    exact, minimax = (
        Whitening(5, method=name).double()(x) for name in ("exact", "newton-schulz-minimax")
    )
    torch.testing.assert_close(minimax, exact, rtol=0, atol=1e-8)
    assert relative_error(found, exact) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_samples_than_channels_and_dead_channels(kind):
    eps = 1e-3
    layer = Whitening(6, kind=kind, eps=eps).double()
    x = features(4, 6)
    x[:, 2] = 3
    x.requires_grad_()
    y = layer(x)
    (gradient,) = torch.autograd.grad((y * random(4, 6, seed=2)).sum(), x)
    assert gradient.isfinite().all()
    # At most what BatchNorm's for a constant channel would be.
    assert gradient.abs().max() < 10 / eps**0.5
    assert y[:, 2].abs().max() < 1e-12
    before = np.linalg.eigvalsh(np.cov(channels_and_values(x), bias=True))
    after = np.linalg.eigvalsh(np.cov(channels_and_values(y), bias=True))
    np.testing.assert_allclose(after, before / (before + eps), atol=1e-12)
    assert (after > 0.5).sum() == 3
    assert layer.eval()(x).isfinite().all()


def test_float32_at_a_bad_condition():
    """Channels of size 1e4 and 1e-2 in one group: float64 inside keeps the small one."""
    scales = torch.logspace(4, -2, 6, dtype=torch.float64)
    x = (features(200, 6) * scales).float()
    weight = random(200, 6, seed=4)
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).requires_grad_()
        y = Whitening(6, eps=1e-8).to(dtype)(leaf)
        (gradient,) = torch.autograd.grad((y * weight).sum(), leaf)
        results.append((y, gradient * scales))
    for one, other in zip(*results, strict=True):
        assert relative_error(one, other) < 1e-4


def test_float32_alone_where_a_device_has_no_other():
    x = features(50, 6).float()
    found = Whitening(6, compute_dtype=torch.float32)(x)
    torch.testing.assert_close(found, Whitening(6)(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_under_autocast(dtype):
    layer = Whitening(4)
    x = features(30, 4, 3).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    expected = Whitening(4).double()(x.detach().double())
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected.to(dtype), rtol=2e-2, atol=2e-2)
    y.float().sum().backward()
    assert x.grad is not None
    assert layer.running_cov.dtype == torch.float32
    with torch.autocast("cpu", dtype=dtype):
        assert layer.eval()(x).dtype == dtype


def test_a_sample_in_evaluation_does_not_see_its_batch():
    layer = Whitening(4).double()
    layer(features(30, 4, 3))
    layer.eval()
    x = features(5, 4, 3, seed=3)
    torch.testing.assert_close(layer(x[2:3])[0], layer(x)[2], rtol=0, atol=1e-14)
    assert torch.equal(layer(x), layer(x))
    assert layer.num_batches_tracked == 1


def trained_layer():
    layer = Whitening(4, groups=2)
    layer(features(30, 4).float())
    return layer.eval()


@pytest.mark.parametrize("evaluating", [False, True])
def test_state_is_loaded(evaluating):
    trained, x = trained_layer(), features(5, 4, seed=3).float()
    names = {"weight", "bias", "running_mean", "running_cov", "num_batches_tracked"}
    assert set(trained.state_dict()) == names
    model = nn.Sequential(Whitening(4, groups=2)).train(not evaluating)
    model.load_state_dict({f"0.{name}": value for name, value in trained.state_dict().items()})
    assert torch.equal(model(x) if evaluating else model.eval()(x), trained(x))
    for copied in (copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))):
        assert torch.equal(copied(x), trained(x))


def test_functional_call_in_evaluation_takes_all_buffers():
    """Of the state dict alone it has no matrix, and would keep the layer's own."""
    trained, x = trained_layer(), features(5, 4, seed=3).float()
    layer = Whitening(4, groups=2).eval()
    buffers = dict(trained.named_buffers())
    assert torch.equal(torch.func.functional_call(layer, buffers, x), trained(x))
    del buffers["matrix"]
    assert not torch.allclose(torch.func.functional_call(layer, buffers, x), trained(x))


@pytest.mark.slow
def test_state_is_loaded_into_a_layer_without_storage():
    trained, x = trained_layer(), features(5, 4, seed=3).float()
    with torch.device("meta"):
        empty = Whitening(4, groups=2).eval()
    empty.load_state_dict(trained.state_dict(), assign=True)
    assert torch.equal(empty(x), trained(x))


@pytest.mark.parametrize("kind", KINDS)
def test_running_covariance_that_rounding_has_made_indefinite(kind):
    """The eigenvalue −0.001 counts as 0."""
    layer = Whitening(2, kind=kind, affine=False).double()
    layer.running_cov.copy_(torch.tensor([[1.0, 1.001], [1.001, 1.0]]))
    along = torch.tensor([[0.5, -0.5], [0.5, 0.5]], dtype=torch.float64) * 2**0.5
    found = layer.eval()(along).norm(dim=1)
    expected = torch.tensor([1e-5, 2.001 + 1e-5], dtype=torch.float64).rsqrt()
    torch.testing.assert_close(found, expected)


def test_cholesky_of_what_has_no_factor_names_the_remedies():
    """The eps that it asks for is enough; zca takes what cholesky does not."""
    x = 1e6 * random(8, 16)
    with pytest.raises(ValueError, match=r"Whitening: kind 'cholesky' .*zca") as error:
        Whitening(16, kind="cholesky")(x)
    found = re.search(r"eps of at least (\S+), ", str(error.value))
    assert found
    assert "compute_dtype" not in str(error.value)
    for layer in (Whitening(16, kind="cholesky", eps=float(found[1])), Whitening(16)):
        assert layer(x).isfinite().all()
    narrow = Whitening(16, kind="cholesky", compute_dtype=torch.float32)
    with pytest.raises(ValueError, match=r"eps of at least .*compute_dtype=torch\.float64.*zca"):
        narrow(x)


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 1e38])
def test_running_covariance_that_has_overflowed_has_no_cholesky_factor(value):
    layer = Whitening(4, kind="cholesky")
    layer.running_cov.fill_(value)
    named = "not finite" if value != 1e38 else "eps of at least"
    with pytest.raises(ValueError, match=f"Whitening: kind 'cholesky' .*{named}"):
        layer.eval()


@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1, 1), (0, 4), (0, 4, 3, 3)])
def test_one_sample_is_refused_in_training_as_by_batch_norm(shape):
    layer = Whitening(4)
    with pytest.raises(ValueError, match=rf"more than one sample.*got .*{shape[0]}, 4.*eval\(\)"):
        layer(torch.ones(shape))
    assert layer.num_batches_tracked == 0
    assert layer.eval()(torch.ones(shape)).shape == shape
    assert layer.train()(random(1, 4, 2, 2).float()).isfinite().all()


def test_what_is_not_finite_is_refused_by_channel_and_leaves_no_trace():
    layer = Whitening(4)
    state = copy.deepcopy(layer.state_dict())
    x = random(8, 4).float()
    x[3, 1], x[2, 3] = torch.nan, torch.inf
    with pytest.raises(ValueError, match=r"NaN or infinite values in 2 of 4 channels: \[1, 3\]"):
        layer(x)
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())


@settings(max_examples=25)
@given(
    size=st.integers(2, 5),
    seed=st.integers(0, 10**6),
    logarithm=st.floats(-4, 4),
)
def test_turned_shifted_and_scaled_features(size, seed, logarithm):
    """zca(c Q x + b) = Q zca(x); cholesky does not see a lower triangular map."""
    eps = 1e-14
    x = features(4 * size, size, seed=seed)
    shift, scale = random(size, seed=seed + 2), 10.0**logarithm
    turn = torch.from_numpy(orthogonal(size, seed))
    zca = Whitening(size, eps=eps, affine=False).double()
    whitened = zca(x)
    condition = torch.linalg.cond(x.T.cov()).item()
    tolerance = (1e-12 + eps * scale**-2) * condition * max(1, shift.abs().max().item() / scale)
    assert relative_error(zca(scale * x @ turn.T + shift), whitened @ turn.T) <= 10 * tolerance
    cholesky = Whitening(size, kind="cholesky", eps=eps, affine=False).double()
    lower = random(size, size, seed=seed + 3).tril(-1) + torch.eye(size)
    worse = torch.linalg.cond(lower).item() ** 2
    found = cholesky(x @ lower.T + shift)
    assert relative_error(found, cholesky(x)) <= 1e-12 * condition * worse * (1 + size)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_in_training_and_evaluation(kind):
    plain = Whitening(4, groups=2, kind=kind).double()
    module = copy.deepcopy(plain)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for training in (True, False):
        for layer in (plain, module):
            layer.train(training)
        for batch in (7, 5):
            results = []
            for call in (plain, compiled):
                x = features(batch, 4).requires_grad_()
                y = call(x)
                (gradient,) = torch.autograd.grad(y.sin().sum(), x)
                results.append((y, gradient))
            for one, other in zip(*results, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(module.running_cov, plain.running_cov)


def test_evaluation_is_exported_as_a_product():
    layer = Whitening(4, groups=2, kind="cholesky")
    layer(features(20, 4, 3).float())
    layer.eval()
    x = features(5, 4, 2, seed=3).float()
    batch = torch.export.Dim.DYNAMIC
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch, 2: batch},))
    calls = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("matmul" in call for call in calls)
    assert not any("linalg" in call or "cholesky" in call for call in calls)
    longer = features(9, 4, 6).float()
    torch.testing.assert_close(program.module()(longer), layer(longer))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_what_a_cpu_gives(kind):
    x = features(50, 8, 5, 5).float()
    results = []
    for device in ("cpu", "cuda"):
        layer, leaf = Whitening(8, groups=2, kind=kind).to(device), x.to(device).requires_grad_()
        y = layer(leaf)
        (gradient,) = torch.autograd.grad((y * x.to(device).sin()).sum(), leaf)
        results.append([each.cpu() for each in (y, gradient, layer.eval()(leaf))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": 0}, "num_features must be a whole number of at least 1, got 0"),
        ({"groups": 3}, "4 channels do not divide into 3 groups"),
        ({"groups": 2.0}, "groups must be a whole number of at least 1, got 2.0"),
        ({"kind": "zcs"}, "unknown kind of whitening 'zcs'; choose from zca, .*mean 'zca'"),
        ({"method": "exat"}, "unknown method 'exat'; .*mean 'exact'"),
        ({"method": "mtp-lyapunov"}, "does not offer 'inv_sqrt'; methods that do: exact, "),
        (
            {"kind": "cholesky", "method": "isqrt-cov"},
            "'cholesky' takes no root, got .*'isqrt-cov'",
        ),
        ({"eps": 0}, "eps must be a positive number, got 0"),
        ({"momentum": 1.5}, r"momentum must be a number in \[0, 1\], got 1.5"),
        ({"compute_dtype": torch.float16}, "compute_dtype must be torch.float32, .*float16"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Whitening(**{"num_features": 4, **options})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(4), r"needs features \(B, 4\) or \(B, 4, \*\), got \(4,\)"),
        (torch.ones(4, 5), r"got \(4, 5\)"),
        (torch.ones(5, 4, dtype=torch.long), "real floating-point tensor, got torch.int64"),
        (
            torch.ones(5, 4, dtype=torch.complex64),
            "real floating-point tensor, got torch.complex64",
        ),
    ],
)
def test_bad_features(x, message):
    with pytest.raises(ValueError, match=f"Whitening.*{message}"):
        Whitening(4)(x)


def test_every_method_with_an_inverse_root_whitens():
    x = features(60, 3)
    for name, row in METHODS.items():
        if row.supports("inv_sqrt"):
            y = Whitening(3, method=name, affine=False).double()(x)
            assert y.isfinite().all()
            assert f"method='{name}'" in repr(Whitening(3, method=name))
