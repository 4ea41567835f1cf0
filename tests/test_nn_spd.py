"""Layers of networks of positive definite matrices against scipy, pyRiemann and spd-learn."""

import copy
import functools

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

import covpool
import quick
from covpool.nn import BiMap, LogEig, ReEig, RiemannianBatchNorm
from spectra import relative_error


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.manual_seed(seed))


def matrices(count, size, seed=0):
    """Positive definite, of condition numbers around 100."""
    factor = random(count, size, 2 * size, seed=seed)
    mixing = random(size, size, seed=seed + 1)
    return covpool.covariance(mixing @ factor)


def symmetric_power(matrix, exponent):
    eigenvalues, vectors = np.linalg.eigh(matrix)
    return (vectors * eigenvalues**exponent) @ vectors.T


def logarithm(matrix):
    return scipy.linalg.logm(matrix).real


def karcher(batch, steps):
    mean = batch.mean(0)
    for _ in range(steps):
        root, inverse = symmetric_power(mean, 0.5), symmetric_power(mean, -0.5)
        direction = np.mean([logarithm(inverse @ x @ inverse) for x in batch], 0)
        mean = root @ scipy.linalg.expm(direction) @ root
    return mean


def geodesic(start, end, share):
    root, inverse = symmetric_power(start, 0.5), symmetric_power(start, -0.5)
    return root @ symmetric_power(inverse @ end @ inverse, share) @ root


def test_bimap_keeps_its_rows_orthonormal():
    layer = BiMap(6, 4, dtype=torch.float64)
    x = matrices(5, 6)
    start = layer.weight.detach()
    for _ in range(10):
        gradients = torch.autograd.grad(layer(x).square().mean(), list(layer.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
                parameter -= gradient / gradient.norm() / 5
    weight = layer.weight.detach()
    assert (weight - start).norm() > 0.1
    torch.testing.assert_close(weight @ weight.T, torch.eye(4).double(), rtol=0, atol=1e-13)
    expected = weight.numpy() @ x.numpy() @ weight.numpy().T
    np.testing.assert_allclose(layer(x).detach(), expected, atol=1e-12)
    spectrum, mapped = torch.linalg.eigvalsh(x), torch.linalg.eigvalsh(layer(x))
    assert (mapped[:, 0] >= spectrum[:, 0] - 1e-12).all()
    assert (mapped[:, -1] <= spectrum[:, -1] + 1e-12).all()


def test_bimap_is_loaded_and_made_plain():
    layer, other = BiMap(5, 3), BiMap(5, 3)
    x = matrices(2, 5).float()
    with torch.no_grad():
        layer.parametrizations.weight.original.add_(0.1)  # pyright: ignore
    assert not torch.allclose(layer(x), other(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    parametrize.remove_parametrizations(other, "weight")
    assert set(other.state_dict()) == {"weight"}
    assert torch.equal(layer(x), other(x))


def test_bimap_takes_other_dtypes_and_shapes():
    layer = BiMap(4, 2)
    x = matrices(6, 4).reshape(2, 3, 4, 4)
    assert layer(x).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, layer(x).bfloat16(), rtol=2e-2, atol=2e-2)
    assert layer(torch.eye(4)).shape == (2, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bimap_in_half_precision(dtype):
    """W is computed in float32: from parameters that are rounded, as is its result."""
    layer, x = BiMap(5, 3), matrices(2, 5).float()
    with torch.no_grad():
        layer.parametrizations.weight.original.add_(0.1)  # pyright: ignore
    expected = layer(x)
    found = layer.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    assert relative_error(found.double(), expected.double()) < 8 * torch.finfo(dtype).eps
    found.float().square().sum().backward()
    gradient = layer.parametrizations.weight.original.grad  # pyright: ignore
    assert gradient.dtype == dtype
    assert gradient.abs().max() > 0
    made = BiMap(5, 3, dtype=dtype)
    assert {value.dtype for value in made.state_dict().values()} == {dtype}
    trace = made(torch.eye(5, dtype=dtype)).diagonal().float().sum().item()
    assert trace == pytest.approx(3, abs=0.05)


def test_spectral_layers_are_their_functions():
    x = matrices(3, 4) - 0.05 * torch.eye(4)
    clamped = covpool.matrix_function(x, "clamp_min", parameter=0.1)
    assert torch.equal(ReEig(0.1)(x), clamped)
    learnt = ReEig(nn.Parameter(torch.tensor(0.1, dtype=torch.float64)))
    learnt(x).sum().backward()
    assert learnt.bound.grad is not None
    log = covpool.matrix_log(clamped)
    assert torch.equal(LogEig()(clamped), covpool.triu_vector(log, isometric=True))
    assert torch.equal(LogEig(vectorize=False)(clamped), log)
    torch.testing.assert_close(LogEig(False, floor=0.1)(x), log, rtol=1e-12, atol=1e-12)
    assert torch.equal(LogEig(False, method="svd-taylor")(clamped), log)
    with pytest.raises(ValueError, match=r"singular.*give a floor"):
        LogEig()(torch.zeros(2, 2))


@pytest.mark.parametrize("dispersion", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_batch_norm_is_the_formula_in_scipy(steps, dispersion):
    layer = RiemannianBatchNorm(
        3, steps=steps, momentum=0.25, dispersion=dispersion, eps=1e-2
    ).double()
    layer.bias.data.copy_(covpool.linalg.spectrum.symmetric_part(random(3, 3)))
    bias = scipy.linalg.expm(layer.bias.detach().numpy() / 2)
    scale = 1.0
    if dispersion:
        layer.log_scale.data.fill_(0.3)
        scale = np.exp(0.3)

    def normalised(batch, mean, variance):
        inverse = symmetric_power(mean, -0.5)
        exponent = scale / np.sqrt(variance + 1e-2) if dispersion else 1.0
        return [bias @ symmetric_power(inverse @ x @ inverse, exponent) @ bias for x in batch]

    x, other = matrices(6, 3), matrices(4, 3, seed=5)
    batch = x.numpy()
    mean = karcher(batch, steps)
    inverse = symmetric_power(mean, -0.5)
    variance = np.mean([np.sum(logarithm(inverse @ each @ inverse) ** 2) for each in batch])
    found = layer(x.reshape(2, 3, 3, 3)).detach().reshape(6, 3, 3)
    np.testing.assert_allclose(found, normalised(batch, mean, variance), atol=1e-10)
    running = geodesic(np.eye(3), mean, 0.25)
    np.testing.assert_allclose(layer.running_mean, running, atol=1e-12)
    evaluated = layer.eval()(other).detach()
    expected = normalised(other.numpy(), running, 0.75 + 0.25 * variance)
    np.testing.assert_allclose(evaluated, expected, atol=1e-10)
    np.testing.assert_allclose(layer.running_mean, running, atol=1e-12)


def test_mean_of_commuting_matrices_is_the_geometric_mean():
    """For which one step is enough; with a dispersion the spread is 1."""
    values = random(8, 3).exp()
    layer = RiemannianBatchNorm(3, dispersion=True, eps=1e-12).double()
    found = layer(torch.diag_embed(values)).detach()
    logs = (values / values.log().mean(0).exp()).log()
    expected = (logs / logs.square().sum(-1).mean().sqrt()).exp()
    torch.testing.assert_close(found.diagonal(dim1=-2, dim2=-1), expected)


def test_mean_is_pyriemanns():
    mean = pytest.importorskip("pyriemann.utils.mean").mean_riemann
    x = matrices(9, 4)
    layer = RiemannianBatchNorm(4, steps=30, momentum=1).double()
    layer(x)
    np.testing.assert_allclose(layer.running_mean, mean(x.numpy(), tol=1e-12), rtol=1e-8)


@quick.parametrize(
    "options",
    [{}, {"steps": 2}, {"dispersion": True}, {"affine": False}],
    keep=[{}, {"dispersion": True}],
)
def test_gradient_of_batch_norm(options):
    """That of the mean included, with respect to matrices and parameters."""
    layer = RiemannianBatchNorm(2, **options).double()
    parameters = dict(layer.named_parameters())
    for parameter in parameters.values():
        parameter.data += 0.1 * random(*parameter.shape, seed=3)

    def call(x, *values):
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(layer, named, (x + x.mT) / 2)

    leaves = [matrices(3, 2).requires_grad_(), *parameters.values()]
    assert torch.autograd.gradcheck(call, leaves)


@settings(max_examples=20)
@given(size=st.integers(2, 4), seed=st.integers(0, 10**6), dispersion=st.booleans())
def test_batch_norm_does_not_see_the_basis(size, seed, dispersion):
    """The eigenvalues of what it gives are the same for X and C X Cᵀ."""
    x, basis = matrices(5, size, seed=seed), random(size, size, seed=seed + 3) + 2 * torch.eye(size)
    call = functools.partial(RiemannianBatchNorm, size, dispersion=dispersion, affine=False)
    one, other = (
        torch.linalg.eigvalsh(call().double()(batch)) for batch in (x, basis @ x @ basis.mT)
    )
    worst = torch.linalg.cond(x).max() * torch.linalg.cond(basis) ** 2
    assert relative_error(other, one) <= 1e-12 * worst.item()


def test_batch_norm_of_one_matrix_and_of_singular_ones_is_refused():
    layer = RiemannianBatchNorm(3)
    for one in (torch.eye(3), torch.eye(3)[None]):
        with pytest.raises(ValueError, match=r"RiemannianBatchNorm needs .* more than one sample"):
            layer(one)
    assert torch.equal(layer.eval()(torch.eye(3)), torch.eye(3))
    layer.train()
    batch = torch.eye(3).repeat(4, 1, 1)
    batch[2, 0, 0] = 0
    with pytest.raises(ValueError, match=r"singular in 1 of 4 samples: \[2\]"):
        layer(batch)
    batch[2, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        layer(batch)
    assert torch.equal(layer.running_mean, torch.eye(3, dtype=torch.float64))


def badly_conditioned(dtype, last, seed):
    """The same basis for each call, and eigenvalues from 1 to `last`, up to a factor of two."""
    basis = torch.linalg.qr(random(4, 4)).Q
    scales = torch.logspace(0, last, 4, dtype=torch.float64)
    generator = torch.manual_seed(seed)
    spectrum = scales * (1 + torch.rand(8, 4, dtype=torch.float64, generator=generator))
    return (basis @ torch.diag_embed(spectrum) @ basis.mT).to(dtype)


def test_batch_norm_trains_on_float32_matrices_of_bad_condition():
    """Covariances of features whose sizes differ by 100: no step is refused."""
    basis = torch.linalg.qr(random(4, 4)).Q.float()
    scales = torch.tensor([100.0, 10.0, 1.0, 1.0])
    layer = RiemannianBatchNorm(4, dispersion=True)
    for step in range(60):
        x = random(16, 30, 4, seed=step).float() * scales @ basis
        assert layer(x.mT @ x / 30).isfinite().all()
    expected = torch.tensor([1e4, 1e2, 1, 1]).double()
    found = torch.linalg.eigvalsh(layer.running_mean.double()).flip(0)
    assert (found / expected).log().abs().max() < 0.5


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_running_mean_of_batch_norm_stays_definite(seed, converted):
    layer = RiemannianBatchNorm(4, momentum=1.0, affine=False)
    layer = layer.float() if converted else layer
    for step in range(3):
        x = badly_conditioned(torch.float64, -8, 10 * seed + step)
        trained = layer(x)
    found = layer.eval()(x)
    assert torch.linalg.eigvalsh(found).amin() >= 0
    if not converted:
        torch.testing.assert_close(found, trained, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dispersion", [False, True])
@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((1, 2, 0, 0), -1.0, "matrix not positive semi-definite"),
        ((1, 2, 0, 0), 0.0, "matrix singular"),
        ((1, 2, 0, 1), 0.5, "matrix not symmetric"),
        ((1, 2, 0, 0), torch.nan, "NaN or infinite values"),
    ],
)
def test_batch_norm_names_itself_and_the_sample_it_refuses(
    place, value, message, dispersion, training
):
    layer = RiemannianBatchNorm(3, dispersion=dispersion).train(training)
    batch = torch.eye(3).repeat(2, 4, 1, 1)
    batch[place] = value
    where = r"in 1 of 8 samples: \[\(1, 2\)\]"
    with pytest.raises(ValueError, match=f"^RiemannianBatchNorm: {message} {where}") as error:
        layer(batch)
    assert "floor" not in str(error.value)
    layer.check = False
    assert layer(batch).shape == batch.shape


def test_batch_norm_refuses_parameters_that_are_not_finite():
    layer = RiemannianBatchNorm(3, dispersion=True)
    for name, parameter in layer.named_parameters():
        with torch.no_grad():
            parameter.flatten()[0] = torch.nan
        with pytest.raises(ValueError, match=f"RiemannianBatchNorm: {name}: NaN"):
            layer(matrices(4, 3))
        with torch.no_grad():
            parameter.zero_()


def test_batch_norm_in_other_dtypes():
    x = matrices(6, 3)
    expected = RiemannianBatchNorm(3, dispersion=True).double()(x)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
        layer = RiemannianBatchNorm(3, dispersion=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = layer(x.to(dtype))
        assert found.dtype == dtype
        assert relative_error(found.double(), expected) < tolerance
        other = RiemannianBatchNorm(3, dispersion=True)
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other.eval()(x), layer.eval()(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BiMap(3, 4), "4 rows of 3 entries cannot be orthonormal"),
        (lambda: BiMap(0, 4), "BiMap: in_features must be a whole number of at least 1, got 0"),
        (lambda: BiMap(3, 2)(torch.eye(4)), r"BiMap needs matrices \(\*, 3, 3\), got \(4, 4\)"),
        (lambda: BiMap(3, 2)(torch.ones(3, 4)), r"BiMap needs square matrices .*\(3, 4\)"),
        (lambda: ReEig(float("nan")), "the bound must be finite, got nan"),
        (lambda: RiemannianBatchNorm(3, steps=0), "steps must be a whole number of at least 1"),
        (
            lambda: RiemannianBatchNorm(3, momentum=2),
            r"momentum must be a number in \[0, 1\], got 2",
        ),
        (lambda: RiemannianBatchNorm(3, momentum=None), r"momentum must be .*, got None"),
        (
            lambda: RiemannianBatchNorm(3)(torch.eye(4)),
            r"RiemannianBatchNorm needs matrices \(\*, 3, 3\), got \(4, 4\)",
        ),
    ],
)
def test_bad_options_and_matrices(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
def test_a_network_compiles_in_training():
    torch.manual_seed(0)
    layers = [BiMap(4, 3), ReEig(), RiemannianBatchNorm(3), LogEig()]
    plain = nn.Sequential(*layers, nn.Linear(6, 2)).double()
    module = copy.deepcopy(plain)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (5, 7):
        x = matrices(batch, 4)
        results = []
        for call, parameters in ((plain, plain.parameters()), (compiled, module.parameters())):
            y = call(x)
            results.append((y, *torch.autograd.grad(y.sin().sum(), list(parameters))))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(module[2].running_mean, plain[2].running_mean)
