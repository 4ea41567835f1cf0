"""A user's own network with the package's layers, through PyTorch's exporters and tracers."""

import copy
import io
import pickle

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import covpool
import quick
from covpool import METHODS
from covpool.models import create_model
from spectra import with_spectrum

IN_PRODUCTS = [name for name, row in METHODS.items() if row.forward.product_steps(torch.float64)]

TRACING = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit")
"""A trace is of one shape, which PyTorch says; and that it prefers torch.export."""


class Network(nn.Module):
    """4 × 4 positions of as many channels as asked for, pooled by the layer."""

    def __init__(self, method, channels=6, **options):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, channels, kernel_size=3, padding=1)
        self.pool = covpool.CovPool2d(channels, None, method, **options)
        self.classifier = nn.Linear(self.pool.out_features, 3)
        self.eval()

    def forward(self, images):
        return self.classifier(self.pool(self.convolution(images)))


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def images(batch=2, seed=0):
    return torch.randn(batch, 3, 4, 4, generator=torch.manual_seed(seed))


def to_onnx(network, *example, **options):
    """The file as a function of arrays."""
    file = io.BytesIO()
    torch.onnx.export(network, example, file, dynamo=True, verbose=False, **options)
    session = onnxruntime.InferenceSession(file.getvalue())
    return lambda x: session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


@quick.parametrize("channels", [6, 30], keep=[6], ids=["N>C", "N<C"])
@quick.parametrize("method", IN_PRODUCTS, keep=["newton-schulz-minimax"])
def test_methods_of_products_become_onnx_from_any_network(method, channels):
    network = Network(method, channels)
    batch = {"images": {0: torch.export.Dim("batch")}}
    run = to_onnx(network, images(), dynamic_shapes=batch)
    with torch.no_grad():
        expected = network(images(5, seed=1)).numpy()
    np.testing.assert_allclose(run(images(5, seed=1)), expected, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_the_function_becomes_onnx_as_the_layer_does():
    network = Call(lambda x: covpool.cov_pool(x.flatten(2), "newton-schulz-minimax")).eval()
    torch.testing.assert_close(
        torch.from_numpy(to_onnx(network, images())(images())), network(images())
    )


def test_an_exported_program_becomes_onnx():
    """What another program makes of torch.export's graph is not known while it is recorded."""
    network = Network("newton-schulz-minimax", 30)
    with torch.no_grad():
        program = torch.export.export(network, (images(),))
        expected = network(images()).numpy()
    np.testing.assert_allclose(to_onnx(program)(images()), expected, rtol=0, atol=2e-6)


@quick.parametrize(
    ("call", "lacks"),
    [
        (lambda x: covpool.cov_pool(x, "exact"), "eigendecomposition"),
        (lambda x: covpool.cov_pool(x, "mpa-lyapunov"), "eigendecomposition"),
        (lambda x: covpool.eigh(x)[0], "eigendecomposition"),
        (lambda x: covpool.svd(x)[1], "singular value decomposition"),
        (lambda x: covpool.matrix_log(x), "eigendecomposition"),
        (lambda x: covpool.matrix_sqrt(x, "newton-schulz-minimax"), "Cholesky factorisation"),
        (lambda x: covpool.matrix_sqrt(x, "mpa-lyapunov"), "Cholesky factorisation"),
    ],
    keep=lambda case: case[1] == "singular value decomposition",
)
def test_what_onnx_lacks_is_said(call, lacks):
    matrix = with_spectrum(np.arange(1.0, 5))[None]
    with pytest.raises(torch.onnx.OnnxExporterError) as caught:
        to_onnx(Call(call).eval(), matrix)
    assert f"covpool: ONNX has no {lacks}; what can be exported is cov_pool" in str(caught.value)


@quick.parametrize("strict", [False, True], keep=[False])
@pytest.mark.parametrize("positions", [(4, 4), (2, 2)], ids=["N>C", "N<C"])
@quick.parametrize("method", ["exact", "svd-topn", "mtp-lyapunov"], keep=["exact"])
def test_exported_programs_can_be_lowered(method, positions, strict):
    """`run_decompositions` comes before everything that is made of an exported program."""
    features = torch.randn(2, 6, *positions, generator=torch.manual_seed(0))
    pooled = Call(lambda x: covpool.cov_pool(x, method))
    program = torch.export.export(pooled, (features,), strict=strict).run_decompositions()
    torch.testing.assert_close(program.module()(features), pooled(features), rtol=0, atol=1e-6)


@TRACING
@pytest.mark.parametrize("channels", [6, 30], ids=["N>C", "N<C"])
@quick.parametrize("method", METHODS, keep=["exact", "svd-pi", "isqrt-cov"])
def test_a_trace_is_the_network_and_can_be_saved(method, channels):
    """Also of images of another scale: nothing that was looked up in the example is in it."""
    network = Network(method, channels)
    traced = torch.jit.trace(network, (images(),), check_inputs=[(images(3, seed=1),)])
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for scale in (1, 1e14):
        other = scale * images(3, seed=2)
        torch.testing.assert_close(loaded(other), network(other), rtol=2e-5, atol=2e-6 * scale)


@TRACING
@pytest.mark.parametrize(
    "call",
    [
        *(
            lambda a, name=name: covpool.matrix_sqrt(a, name)
            for name in ("exact", "svd-topn", "isqrt-cov", "mpa-lyapunov", "newton-schulz-minimax")
        ),
        lambda a: covpool.matrix_power(a, 0.3),
        covpool.MatrixFunction("log"),
        lambda a: covpool.eigh(a)[0],
        lambda a: covpool.svd(a)[1],
    ],
)
def test_traces_of_functions_can_be_saved(call):
    matrices = with_spectrum(np.arange(1.0, 5)).expand(2, 4, 4)
    traced = torch.jit.trace(Call(call), (matrices,))
    torch.jit.save(traced, io.BytesIO())
    torch.testing.assert_close(traced(3 * matrices), call(3 * matrices))


@pytest.mark.parametrize("method", METHODS)
def test_graphs_of_torch_fx(method):
    network = Network(method)
    graph = torch.fx.symbolic_trace(network)
    assert torch.equal(graph(images(5, seed=1)), network(images(5, seed=1)))
    assert torch.equal(graph(images()[0]), network(images()[0]))
    with pytest.raises(ValueError, match=r"one position .*; got features \(2, 6, 1, 1\)"):
        graph(images()[..., :1, :1])


def test_matrix_functions_in_graphs_of_torch_fx():
    layer = covpool.MatrixFunction("power", exponent=nn.Parameter(torch.tensor(0.3)))
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Identity(), layer))
    matrix = torch.diag(torch.tensor([1.0, 4, 9]))
    assert torch.equal(graph(matrix), layer(matrix))
    graph(matrix).sum().backward()
    assert layer.exponent.grad is not None


@pytest.mark.parametrize(
    "function",
    [
        torch.sin,
        covpool.Elementwise(torch.tanh, domain="real"),
        nn.PReLU(dtype=torch.float64),
        "abs",
    ],
    ids=["torch's", "elementwise", "module", "named"],
)
def test_functions_of_ones_own_in_graphs_of_torch_fx(function):
    """The graph keeps the function itself, as it does its other constants."""
    layer = covpool.MatrixFunction(function, floor=torch.tensor(0.5))
    graphs = [torch.fx.symbolic_trace(root) for root in (nn.Sequential(layer, layer), layer)]
    matrix = with_spectrum(np.array([-1.0, 0.3, 0.7, 0.9])).float()
    for graph, expected in zip(graphs, (layer(layer(matrix)), layer(matrix)), strict=True):
        for twin in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
            assert torch.equal(twin(matrix), expected)
            assert torch.equal(torch.fx.symbolic_trace(twin)(matrix), expected)


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (lambda: Network("svd-pade"), ("convolution", "pool")),
        (
            lambda: create_model("resnet10t", 3, reduced_channels=4, hidden_features=5),
            ("backbone.layer3", "pool"),
        ),
        (
            lambda: create_model("small-convnet", 3, method="gap", width=8),
            ("backbone.features.3", "pool"),
        ),
        (
            lambda: create_model("vit_tiny_patch16_224", 3, image_size=64, depth=1),
            ("backbone.blocks.0", "pool"),
        ),
    ],
    ids=["own network", "resnet", "gap", "vit"],
)
def test_torchvisions_feature_extractor(model, layers):
    network = model().eval()
    size = 4 if isinstance(network, Network) else 64
    batch = torch.randn(2, 3, size, size, generator=torch.manual_seed(0))
    kept = {}
    for name in layers:
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: kept.__setitem__(name, output.clone())
        )
    found = create_feature_extractor(network, list(layers))(batch)
    network(batch)
    assert set(found) == set(kept)
    for name, output in kept.items():
        torch.testing.assert_close(found[name], output)
