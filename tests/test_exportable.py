"""`exportable`: networks without decompositions, run eagerly and by ONNX Runtime."""

import io
import math
import re

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

import covpool.nn
import quick
from covpool import METHODS, POOLINGS

NO_FORM = {
    "power-learned": "the learned power 0.5",
    "log-e": "the logarithm",
    "hdp": "exp",
    "seb": "e^",
    "cho-tmlr": "the Cholesky factorisation",
}
"""Poolings that need more than products, and what the refusal names."""

OTHER_ROOTS = {"svd-topn", "mtp-lyapunov", "mpa-lyapunov"}
"""Methods whose result is not the square root, which is what stands in for them."""

OPTIONS = {
    "attention-rotary": {"num_heads": 2},
    "attention-latent": {"num_heads": 2},
    "tensor-sketch": {"outputs": 13},
    "random-maclaurin": {"outputs": 13},
    "fbn": {"outputs": 5, "factors": 3},
    "sot": {"heads": 2, "head_channels": 4},
    "so-vit": {"first": 5, "second": 4},
    "moment-probing": {"heads": 3, "head_channels": 9},
}
FORMS = [name for name in POOLINGS if name not in NO_FORM]
"""Those that can be exported."""


class Forbidding(TorchDispatchMode):
    """Refuses every operation of torch.linalg that factorises or solves."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        words = ("eig", "svd", "cholesky", "solve", "linalg_inv", "linalg_qr", "linalg_lu")
        assert not any(word in name for word in words), name
        return function(*args, **(kwargs or {}))


def network(name, channels=8):
    torch.manual_seed(0)
    pool = covpool.Pool2d(channels, POOLINGS[name].replace(**OPTIONS.get(name, {})))
    return nn.Sequential(nn.Conv2d(3, channels, 1), nn.BatchNorm2d(channels), nn.ReLU(), pool)


def images(height=4, width=5, batch=3):
    return torch.randn(batch, 3, height, width, generator=torch.manual_seed(1))


@pytest.mark.parametrize("size", [(2, 3), (4, 5)], ids=["N<C", "N>C"])
@pytest.mark.parametrize("name", FORMS)
def test_every_pooling_with_a_form_is_itself_in_products(name, size):
    x = images(*size)
    made = network(name)
    found = covpool.exportable(made, x)
    with torch.no_grad(), Forbidding():
        after = found.network(x)
    with torch.no_grad():
        before = made.eval()(x)
    assert found.deviation == (after - before).abs().max().item()
    assert found.scale == before.abs().max().item()
    if name not in OTHER_ROOTS and "halley" not in name:
        # iSQRT's value is computed in float32 where it iterates, as it is in `cov_pool`.
        torch.testing.assert_close(after, before, rtol=2e-5, atol=2e-5 * found.scale)
    elif size == (4, 5):
        assert found.deviation > 1e-6


@pytest.mark.parametrize("name", NO_FORM)
def test_a_pooling_without_a_form_is_refused_by_name(name):
    made, words = network(name), re.escape(NO_FORM[name])
    with pytest.raises(ValueError, match=f"layer '3.pooling.normalisation' .*{words}") as e:
        covpool.exportable(made, images())
    words = str(e.value).replace(",", " ").split()
    assert " one" in str(e.value)
    assert (
        any(word in POOLINGS and word not in NO_FORM for word in words) or name == "power-learned"
    )


def test_what_is_replaced_is_told_and_the_network_stays():
    made = nn.ModuleDict(
        {
            "exact": covpool.CovPool2d(4, None, "exact"),
            "isqrt": covpool.CovPool2d(4, None, "isqrt-cov"),
            "root": covpool.MatrixFunction("inv_sqrt"),
            "other": nn.Linear(2, 2),
        }
    ).train()
    found = covpool.exportable(made)
    assert found.replaced == {"exact": "newton-schulz-minimax", "root": "newton-schulz-minimax"}
    assert (found.deviation, found.scale) == (None, None)
    assert made["exact"].method is METHODS["exact"]
    assert not made["exact"].products
    assert made.training
    assert not found.network.training


@pytest.mark.parametrize("function", ["sqrt", "inv_sqrt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_of_matrices(function, dtype):
    basis = torch.linalg.qr(torch.randn(6, 6, generator=torch.manual_seed(0)).double())[0]
    matrix = ((basis * torch.logspace(-2, 1, 6).double()) @ basis.mT).to(dtype)
    found = covpool.exportable(covpool.MatrixFunction(function), matrix)
    with Forbidding():
        found.network(matrix)
    assert found.deviation <= (1e-3 if dtype == torch.float32 else 1e-11) * found.scale


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            covpool.MatrixFunction("log"),
            "the layer .MatrixFunction. has no form.*'log' of a matrix",
        ),
        (covpool.MatrixFunction("inv_sqrt", floor=0.1), "'inv_sqrt' with a floor of a matrix"),
        (covpool.Pool2d(4, POOLINGS["gamma"].replace(gamma=0.3)), "the power 0.3; 0.5"),
        (covpool.Pool2d(4, POOLINGS["maxexp"].replace(eta=1.5)), "the power 1.5; whole numbers"),
    ],
)
def test_refusals(layer, message):
    with pytest.raises(ValueError, match=message):
        covpool.exportable(layer)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"exportable needs a torch.nn.Module, got str"):
        covpool.exportable("network")
    with pytest.raises(ValueError, match=r"torch.float32 or torch.float64, got torch.float16"):
        covpool.exportable(nn.Linear(1, 1), dtype=torch.float16)


def test_outputs_of_several_tensors_and_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = covpool.CovPool2d(4, None, "svd-pade")

        def forward(self, x, scale):
            return {"vector": self.pool(x) * scale, "map": (x, 1)}

    x = torch.randn(2, 4, 3, 3, generator=torch.manual_seed(0))
    found = covpool.exportable(Two(), (x, 2.0))
    assert 0 < found.deviation < 1e-5
    assert found.scale >= x.abs().max()


class Several(nn.Module):
    """A root beside other outputs."""

    def __init__(self, other):
        super().__init__()
        self.pool, self.other = covpool.CovPool2d(4, None, "svd-pade"), other

    def forward(self, x):
        return self.pool(x), self.other(x)


def test_nan_in_any_output_is_told():
    x = torch.randn(2, 4, 3, 3, generator=torch.manual_seed(0))
    found = covpool.exportable(Several(lambda x: x.sum() * torch.nan), x)
    assert math.isnan(found.deviation)
    assert math.isnan(found.scale)
    same = covpool.exportable(Several(lambda x: x.sum() * 0 - torch.inf), x)
    assert 0 < same.deviation < 1e-5
    assert same.scale == math.inf


def test_outputs_of_booleans_and_whole_numbers():
    x = torch.randn(2, 4, 3, 3, generator=torch.manual_seed(0))
    for other in (lambda x: x > 0, lambda x: (10 * x).to(torch.uint8)):
        assert 0 < covpool.exportable(Several(other), x).deviation < 1e-5
    calls = []

    def changes(x):
        calls.append(len(calls))
        return torch.tensor([len(calls) == 1, True])

    assert covpool.exportable(Several(changes), x).deviation == 1


def test_weights_that_are_computed_become_constants():
    made = nn.Sequential(covpool.nn.BiMap(6, 4), covpool.nn.BiMap(4, 4))
    features = torch.randn(3, 6, 9, generator=torch.manual_seed(0))
    found = covpool.exportable(made, features @ features.mT)
    assert found.replaced == {"0": "constant weight", "1": "constant weight"}
    assert found.deviation <= 1e-6 * found.scale
    with Forbidding():
        found.network(features @ features.mT)
    assert parametrize.is_parametrized(made[0])
    assert covpool.exportable(made).network[0].weight.equal(made[0].weight)
    assert not any(parametrize.is_parametrized(layer) for layer in found.network)


@pytest.mark.parametrize("name", ["LogEig", "ReEig", "RiemannianBatchNorm"])
def test_layers_of_covpool_nn_without_a_form(name):
    layer = getattr(covpool.nn, name)
    made = nn.Sequential(layer(4) if name == "RiemannianBatchNorm" else layer())
    with pytest.raises(ValueError, match=rf"layer '0' \({name}\) has no form .* have? one|has one"):
        covpool.exportable(made)


def test_whitening_decomposes_nothing_in_evaluation():
    x = images()
    assert covpool.exportable(covpool.nn.Whitening(3), x).deviation == 0


def test_a_layer_of_ones_own_that_decomposes_is_refused_by_name():
    class Own(nn.Module):
        def forward(self, x):
            return torch.linalg.eigh(x @ x.mT).eigenvalues

    x = images()
    made = nn.Sequential(nn.Identity(), nn.Sequential(Own()))
    with pytest.raises(ValueError, match=r"layer '1.0' \(Own\) computes aten._linalg_eigh"):
        covpool.exportable(made, x)
    assert not made[1][0]._forward_hooks
    weights = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 5)), nn.Softmax(-1))
    assert covpool.exportable(weights, x).deviation <= 1e-6


QUICK = ("exact", "isqrt-cov", "maxexp", "sigma-max")


@quick.parametrize("name", FORMS, keep=QUICK)
def test_onnx_runtime_agrees(name):
    """Whatever the operators of the pooling: torch.onnx.export writes it, ONNX Runtime runs it."""
    x = images()
    made = covpool.exportable(network(name), x)
    file = io.BytesIO()
    torch.onnx.export(made.network, (x,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = made.network(x).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * made.scale)
