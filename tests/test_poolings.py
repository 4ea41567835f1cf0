"""POOLINGS: each row against its formula, written out here, and what every pooling promises."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from numpy.polynomial.chebyshev import chebinterpolate, chebval
from torch.nn.functional import batch_norm, conv2d, gelu, layer_norm, linear, relu

import covpool
import quick
from covpool import METHODS, POOLINGS, Pool2d
from covpool.poolings.representations import REPRESENTATIONS
from spectra import orthogonal

OTHERS = [name for name in POOLINGS if name not in METHODS]
ONE_POSITION = pytest.mark.filterwarnings("ignore:cov_pool gives zeros")

CHANNELS = 8
OPTIONS = {
    "attention-rotary": {"num_heads": 2},
    "attention-latent": {"num_heads": 2},
    "tensor-sketch": {"outputs": 13},
    "random-maclaurin": {"outputs": 13, "learned": True},
    "fbn": {"outputs": 5, "factors": 3},
    "sot": {"heads": 2, "head_channels": 4},
    "so-vit": {"first": 5, "second": 4},
    "moment-probing": {"heads": 3, "head_channels": 9},
}
"""Constants for small maps: those of the papers are for hundreds of channels."""


def features(positions, *, batch=2, channels=CHANNELS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, 1, positions, generator=generator, dtype=torch.float64)


def made(name, *, channels=CHANNELS, seed=1, **constants):
    torch.manual_seed(seed)
    row = POOLINGS[name].replace(**OPTIONS.get(name, {}), **constants)
    return Pool2d(channels, row).double().eval()


# The formulas, in the simplest operations that autograd differentiates; X is (B, C, N).


def centred(x):
    return x - x.mean(-1, keepdim=True)


def cov(x):
    return centred(x) @ centred(x).mT / x.shape[-1]


def triu(matrix):
    row, column = torch.triu_indices(*matrix.shape[-2:])
    return matrix[..., row, column]


def directions(x, centre=True):
    """U and the eigenvalues that are not zero: by singular values, which are distinct."""
    count = x.shape[-1]
    if centre:
        ones = torch.ones(count, 1, dtype=x.dtype)
        basis = torch.linalg.qr(torch.cat([ones, torch.eye(count, dtype=x.dtype)[:, 1:]], 1))[0]
        x = x @ basis[:, 1:]
    left, values, _ = torch.linalg.svd(x / count**0.5, full_matrices=False)
    return left, values**2


def lifted(x, f, at_zero=0.0, centre=True):
    left, values = directions(x, centre)
    outside = torch.eye(x.shape[-2], dtype=x.dtype) - left @ left.mT
    return (left * f(values)[..., None, :]) @ left.mT + at_zero * outside


def unit_trace(x, f):
    moment = x @ x.mT / x.shape[-1]
    trace = moment.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None]
    return lifted(x, lambda v: f(v / (trace + 1e-6)), centre=False)


def chebyshev(x, published=False):
    matrix = cov(x)
    scale = matrix.diagonal(dim1=-2, dim2=-1).mean(-1) if published else matrix.norm(dim=(1, 2))
    middle, half = (1.775, 1.725) if published else (0.51, 0.49)
    nodes = [math.cos(math.pi * (2 * k + 1) / 18) for k in range(9)]
    logs = [math.log(middle + half * node) for node in nodes]

    def interpolant(values):
        """Lagrange's form of the polynomial of degree 8 through log at the Chebyshev nodes."""
        t = (0.98 * values + 0.02 - middle) / half
        total = 0
        for k, node in enumerate(nodes):
            term = logs[k]
            for j, other in enumerate(nodes):
                if j != k:
                    term = term * (t - other) / (node - other)
            total = total + term
        return total

    zero = interpolant(torch.zeros((), dtype=torch.float64))
    matrix = lifted(x, lambda v: interpolant(v / scale[:, None]), zero)
    return matrix + scale.log()[:, None, None] * torch.eye(x.shape[-2], dtype=x.dtype)


def log_cholesky(x):
    matrix = cov(x) + 1e-6 * torch.eye(x.shape[-2], dtype=x.dtype)
    columns = []
    for j in range(x.shape[-2]):
        rest = matrix[..., j]
        for column in columns:
            rest = rest - column * column[..., j : j + 1]
        known = torch.arange(x.shape[-2]) >= j
        columns.append(torch.where(known, rest / rest[..., j : j + 1].sqrt(), 0))
    factor = torch.stack(columns, -1)
    below = factor.tril(-1)
    return below + below.mT + torch.diag_embed(2 * factor.diagonal(dim1=-2, dim2=-1).log())


def rank_one(x):
    matrix = cov(x)
    v = matrix @ matrix @ torch.ones(x.shape[-2], 1, dtype=x.dtype)
    v = v / v.norm(dim=1, keepdim=True)
    update = matrix @ v @ v.mT
    return matrix - 0.25 * (update + update.mT)


def newton_schulz_inverse(matrix):
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    matrix = matrix + 5e-10 * identity
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    y, z = matrix / trace, identity
    for _ in range(7):
        t = 1.5 * identity - 0.5 * z @ y
        y, z = y @ t, t @ z
    return z @ z / trace


def isice(x, last=5):
    matrix = cov(x)
    a = matrix / matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    s = newton_schulz_inverse(a)
    for i in range(5):
        eta = 5.0 * (1 - i / last)
        g = a - newton_schulz_inverse(s)
        s = relu(relu(s) - eta * (g + 0.01)) - relu(relu(-s) - eta * (-g + 0.01))
        s = (s + s.mT) / 2
    return s / s.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None].sqrt()


def seb(x):
    left, values = directions(x)
    root = (left * values.sqrt()[..., None, :]) @ left.mT
    decay = torch.linalg.matrix_exp(-cov(x))
    return root * (1 + (root @ decay).flatten(1).norm(dim=1)[:, None, None])


def signed_root(v, length=True):
    v = v.sign() * (v.abs() + 1e-8).sqrt()
    return v / v.norm(dim=-1, keepdim=True)


def bcnn(x):
    vector = signed_root((x @ x.mT / x.shape[-1]).flatten(1)).unflatten(1, (x.shape[1],) * 2)
    weights = 2**0.5 - (2**0.5 - 1) * torch.eye(x.shape[1], dtype=x.dtype)
    return triu(vector * weights)


def tensor_sketch(x, pool):
    """As published: by Fourier transforms of each position's two sketches."""
    total = 0
    for position in x.unbind(-1):
        product = 1
        for places, signs in zip(pool.places, pool.signs, strict=True):
            sketch = torch.zeros(len(x), pool.out_features, dtype=x.dtype)
            for channel, (place, sign) in enumerate(zip(places, signs, strict=True)):
                hit = torch.arange(pool.out_features) == place
                sketch = sketch + torch.where(hit, sign * position[:, channel, None], 0)
            product = product * torch.fft.fft(sketch)
        total = total + torch.fft.ifft(product).real
    return signed_root(total)


def random_maclaurin(x, pool):
    first, second = pool.projections
    return signed_root(((first @ x) * (second @ x)).sum(-1))


def factorised(x, pool):
    factors = pool.quadratic.unflatten(0, (pool.out_features, pool.factors))
    squares = torch.einsum("jfc,bcn->bjfn", factors, x) ** 2
    return linear(x, torch.eye(x.shape[-1], dtype=x.dtype)).mean(-1) @ pool.linear.weight.mT + (
        pool.linear.bias + 0.5 * squares.sum(2).mean(-1)
    )


def brownian(x, pool):
    apart = (x[:, :, None] - x[:, None]) ** 2
    d = (pool.temperature.exp() * apart.sum(-1) / (2 * x.shape[-1]) + 1e-5).sqrt()
    return triu(
        d - d.mean(1, keepdim=True) - d.mean(2, keepdim=True) + d.mean((1, 2), keepdim=True)
    )


def svpn(m, v):
    u = m @ v
    u = u / u.norm(dim=-1, keepdim=True)
    w = (m.mT @ u[..., None])[..., 0]
    w = w / w.norm(dim=-1, keepdim=True)
    s = (u * (m @ w[..., None])[..., 0]).sum(-1)[..., None, None]
    outer = u[..., :, None] * w[..., None, :]
    return s.sqrt() * outer + (m - s * outer) / (s.sqrt() + 1e-5)


def sot(x, pool, published=False):
    projected = torch.einsum("oc,bcn->bon", pool.project.weight, x)
    heads = pool.shape[1]
    w, r = projected.unflatten(1, pool.shape).unbind(1)
    parts = []
    for head in range(heads):
        if published:
            a, b = (t[:, head] - t[:, head].mean((1, 2), keepdim=True) for t in (w, r))
        else:
            a, b = centred(w[:, head]), centred(r[:, head])
        parts.append(svpn(a @ b.mT / x.shape[-1], pool.normalise.start).flatten(1))
    return torch.cat(parts, 1)


def so_vit(x, pool):
    def reduced(layers):
        convolution, norm, _ = layers
        y = conv2d(x[..., None], convolution.weight)
        y = batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return centred(relu(y).flatten(2))

    m = reduced(pool.first) @ reduced(pool.second).mT / x.shape[-1]
    return svpn(m.mT, pool.normalise.start).mT.flatten(1)


def moment_probing(x, pool, published=False):
    heads, size = pool.shape
    h = linear(x.mT, pool.project.weight, pool.project.bias).unflatten(-1, pool.shape)
    h = layer_norm(h, (size,), pool.norm.weight, pool.norm.bias)
    mean = (lambda t: t.mean((1, 2), keepdim=True)) if published else (lambda t: t.mean(1, True))
    maps = []
    for k in range(heads - 1):
        a, b = h[:, :, k], h[:, :, k + 1]
        m = (a - mean(a)).mT @ (b - mean(b)) / x.shape[-1]
        maps.append(m / m.norm(dim=1, keepdim=True))
    first, second = pool.convolutions
    y = conv2d(torch.stack(maps, 1), first.weight, stride=2)
    y = conv2d(gelu(y), second.weight, stride=2)
    return torch.cat([x.mean(-1), y.flatten(1)], 1)


def gem(x, pool):
    return (x.clamp_min(1e-6) ** pool.exponent).mean(-1) ** (1 / pool.exponent)


def lse(x, pool):
    return ((pool.layer.r * x).exp().mean(-1)).log() / pool.layer.r


def attention(x, pool):
    """timm's class, on what it takes."""
    return pool.layer(x.mT if pool.tokens else x[..., None, :])


def gaussian(x):
    with_ones = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    return lifted(with_ones, torch.sqrt, centre=False)


ORACLES = {
    "gap": lambda x, pool: x.mean(-1),
    "max": lambda x, pool: x.max(-1).values,
    "avgmax": lambda x, pool: (x.mean(-1) + x.max(-1).values) / 2,
    "gem": gem,
    "simpool": attention,
    "lse-plus": lse,
    "attention-latent": attention,
    "attention-rotary": attention,
    "covariance": lambda x, pool: triu(cov(x)),
    "power": lambda x, pool: triu(lifted(x, torch.sqrt)),
    "power-learned": lambda x, pool: triu(
        lifted(x, lambda v: v ** pool.normalisation.logit.sigmoid())
    ),
    "log-e": lambda x, pool: triu(lifted(x, lambda v: (v + 1e-3).log(), math.log(1e-3))),
    "chebyshev-log": lambda x, pool: triu(chebyshev(x)),
    "pow-tmlr": lambda x, pool: triu(lifted(x, lambda v: 2 * (v.sqrt() - 1), -2.0)),
    "scalepow-emlr": lambda x, pool: triu(2 * lifted(x, torch.sqrt)),
    "maxexp": lambda x, pool: triu(unit_trace(x, lambda v: 1 - (1 - v) ** 20)),
    "gamma": lambda x, pool: triu(unit_trace(x, torch.sqrt)),
    "hdp": lambda x, pool: triu(unit_trace(x, lambda v: (-0.01 / v).exp())),
    "gaussian": lambda x, pool: triu(gaussian(x)),
    "sigma-max": lambda x, pool: triu(cov(x) / directions(x)[1][:, :1, None]),
    "frobenius": lambda x, pool: triu(cov(x) / cov(x).flatten(1).norm(dim=1)[:, None, None]),
    "root-sigma-max": lambda x, pool: triu(
        lifted(x, torch.sqrt) / directions(x)[1][:, :1, None].sqrt()
    ),
    "root-frobenius": lambda x, pool: triu(
        lifted(x, torch.sqrt) / directions(x)[1].sum(-1)[:, None, None].sqrt()
    ),
    "rank-one-update": lambda x, pool: triu(rank_one(x)),
    "seb": lambda x, pool: triu(seb(x)),
    "cho-tmlr": lambda x, pool: triu(log_cholesky(x)),
    "precision": lambda x, pool: triu(newton_schulz_inverse(cov(x))),
    "isice": lambda x, pool: triu(isice(x)),
    "dropcov": lambda x, pool: triu(cov(x)),
    "bcnn": lambda x, pool: bcnn(x),
    "tensor-sketch": tensor_sketch,
    "random-maclaurin": random_maclaurin,
    "fbn": factorised,
    "bdc": brownian,
    "sot": sot,
    "so-vit": so_vit,
    "moment-probing": moment_probing,
}


def test_every_pooling_but_the_generated_has_an_oracle():
    assert set(ORACLES) == set(OTHERS)


def value_and_gradients(function, x, parameters):
    x = x.clone().requires_grad_()
    value = function(x)
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(9)).double()
    gradients = torch.autograd.grad(
        (value * weights).sum(), [x, *parameters], allow_unused=True, materialize_grads=True
    )
    return [value.detach(), *gradients]


def compare(pool, oracle, x, note_error, what, tolerance=1e-10):
    parameters = list(pool.parameters())
    ours = value_and_gradients(pool, x, parameters)
    theirs = value_and_gradients(lambda x: oracle(x.flatten(2), pool.pooling), x, parameters)
    for one, other in zip(ours, theirs, strict=True):
        # Some gradients are zero: that of a shift before the centring.
        scale = other.abs().max().clamp_min(1e-3)
        error = ((one - other).abs().max() / scale).item()
        assert note_error("pooling = formula", what, error) <= tolerance


@pytest.mark.parametrize("positions", [5, 30])
@pytest.mark.parametrize("name", OTHERS)
def test_value_and_gradient_are_those_of_the_formula(name, positions, note_error):
    """With fewer positions than the 8 channels, and with more."""
    compare(made(name), ORACLES[name], features(positions), note_error, name)


PUBLISHED = {
    "sot": lambda x, pool: sot(x, pool, published=True),
    "moment-probing": lambda x, pool: moment_probing(x, pool, published=True),
    "isice": lambda x, pool: triu(isice(x, last=4)),
    "bcnn": lambda x, pool: signed_root((x @ x.mT / x.shape[-1]).flatten(1)),
    "chebyshev-log": lambda x, pool: triu(chebyshev(x, published=True)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_form_where_ours_differs(name, note_error):
    pool = made(name, as_published=True)
    compare(pool, PUBLISHED[name], features(30), note_error, f"{name}, published")


def test_every_published_form_is_tested():
    told = {name for name in OTHERS if "as_published" in POOLINGS[name].constants}
    assert told == {*PUBLISHED, "dropcov"}
    assert all("as_published" in POOLINGS[name].caution for name in told)


@pytest.mark.parametrize("name", METHODS)
def test_the_roots_are_those_of_cov_pool(name):
    x = features(5)
    pool = Pool2d(CHANNELS, name)
    assert torch.equal(pool(x), covpool.CovPool2d(CHANNELS, None, name)(x))
    assert torch.equal(pool(x), Pool2d(CHANNELS, METHODS[name])(x))


# Each axis for itself.

MOMENTS = {
    "covariance": cov,
    "second-moment": lambda x: x @ x.mT / x.shape[-1],
    "gaussian": lambda x: torch.cat(
        [
            torch.cat([x @ x.mT / x.shape[-1], x.mean(-1, True)], 2),
            torch.cat([x.mean(-1)[:, None], torch.ones(len(x), 1, 1, dtype=x.dtype)], 2),
        ],
        1,
    ),
}


@pytest.mark.parametrize("positions", [1, 5, 30])
@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_representations_are_covariances_of_other_features(name, positions):
    x = features(positions).flatten(2)
    torch.testing.assert_close(
        covpool.covariance(REPRESENTATIONS[name](x)), MOMENTS[name](x), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("positions", [5, 30])
def test_any_normalisation_takes_any_representation(representation, positions, note_error):
    def oracle(x, pool):
        moment = MOMENTS[representation](x)
        return triu(torch.linalg.inv(moment + 1e-3 * torch.eye(moment.shape[-1]).double()))

    inverse = covpool.Elementwise(lambda t: 1 / (t + 1e-3), "ridge", "nonnegative")

    class Ridge(torch.nn.Module):
        def forward(self, features):
            return covpool.pooling.cov_function(features, inverse)

    row = covpool.poolings.matrix_pooling(
        "ridge", Ridge, representation=representation, paper="-", description="(Σ + εI)⁻¹"
    )
    assert row.representation == row.constants["representation"] == representation
    pool = Pool2d(CHANNELS, row)
    compare(pool, oracle, features(positions), note_error, f"ridge, {representation}", 1e-9)


def test_a_row_with_another_representation_says_so():
    row = POOLINGS["log-e"].replace(representation="gaussian", epsilon=0.1)
    assert row.representation == "gaussian"
    assert Pool2d(4, row).out_features == 15
    assert POOLINGS["log-e"].representation == "covariance"


def dropped(x, pool, published, limit):
    """In training: the probability, and the features that the covariance is taken of."""
    regulariser = pool.regulariser
    kernel = regulariser.weigh.weight[0, 0]
    padded = torch.nn.functional.pad(x.mean(-1), (1, 1))
    y = torch.softmax(sum(kernel[k] * padded[:, k : k + x.shape[1]] for k in range(3)), 1)
    x = x + y[..., None] * x
    c = cov(x).sum(-1)
    omega = (y * c).sum(1) / y.norm(dim=1) / c.norm(dim=1)
    omega = omega.mean(0, keepdim=True) if published else omega
    p = (1 - 10 / math.log2(x.shape[1]) * omega).clamp(0, limit).detach()[:, None]
    mask = torch.rand(x.shape[:2], dtype=x.dtype) < 1 - p
    return p, x * (mask / (1 - p).clamp_min(1e-9))[..., None]


@pytest.mark.parametrize("published", [False, True])
def test_adaptive_channel_dropout_in_training(published, note_error):
    limit = 1.0 if published else 0.9
    pool = made("dropcov", as_published=published).train()
    x = features(30, batch=4) - 0.4  # means of either sign, so that some cosines are small

    def oracle(x, module):
        torch.manual_seed(3)
        return triu(cov(dropped(x, module, published, limit)[1]))

    def ours(x):
        torch.manual_seed(3)
        return pool(x)

    p, _ = dropped(x.flatten(2), pool.pooling, published, limit)
    assert p.shape == ((1, 1) if published else (4, 1))
    parameters = list(pool.parameters())
    one = value_and_gradients(ours, x, parameters)
    other = value_and_gradients(lambda x: oracle(x.flatten(2), pool.pooling), x, parameters)
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)


def test_channels_are_not_all_dropped():
    """The cosine is 0 of one position, and of constant maps."""
    x = features(1).expand(2, CHANNELS, 1, 6)
    regulariser = made("dropcov").train().pooling.regulariser
    weights = torch.full((2, CHANNELS), 1 / CHANNELS).double()
    assert regulariser.probability(x.flatten(2), weights).tolist() == [[0.9], [0.9]]
    published = made("dropcov", as_published=True).train().pooling.regulariser
    assert published.probability(x.flatten(2), weights).tolist() == [[1.0]]
    assert published(x.flatten(2)).abs().max() == 0


def test_drop_factor_in_training():
    pool = made("fbn").train()
    x = features(30)
    torch.manual_seed(3)
    value = pool(x)
    torch.manual_seed(3)
    module, maps = pool.pooling, x.flatten(2)
    kept = torch.rand(2, 5, 3, dtype=torch.float64) < 0.5
    squares = torch.einsum("jfc,bcn->bjfn", module.quadratic.unflatten(0, (5, 3)), maps) ** 2
    expected = linear(maps.mean(-1), module.linear.weight, module.linear.bias)
    torch.testing.assert_close(value, expected + (squares.mean(-1) * kept).sum(-1))


# What every pooling promises.


def edge_cases(dtype):
    full = features(12, seed=5)[0]
    dead = full.clone()
    dead[::2] = 0
    cases = [
        torch.zeros_like(full),
        torch.ones_like(full),
        torch.arange(CHANNELS)[:, None, None] * torch.ones_like(full),
        dead,
        full[..., :1].expand_as(full),
        full[..., :2].repeat(1, 1, 6),
        full[:1].expand_as(full),
    ]
    return torch.stack(cases).to(dtype)


@ONE_POSITION
@quick.parametrize("training", [False, True], keep=[True])
@pytest.mark.parametrize("name", POOLINGS)
def test_finite_at_degenerate_maps(name, training):
    """Zeros, constants, dead channels, repeated positions, equal channels; one position."""
    for dtype in (torch.float64, torch.float32):
        pool = made(name).to(dtype).train(training)
        for x in (edge_cases(dtype), edge_cases(dtype)[..., :1]):
            # A layer refuses one position where nothing depends on it; the pooling does not.
            function = pool if x.shape[-1] > 1 else pool.pooling
            value, *gradients = value_and_gradients(function, x, list(pool.parameters()))
            assert value.isfinite().all()
            assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", POOLINGS)
def test_a_sample_depends_on_itself_alone(name):
    x = features(5, batch=3)
    pool = made(name)
    torch.testing.assert_close(
        pool(x), torch.cat([pool(sample[None]) for sample in x]), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", POOLINGS)
def test_state_and_size(name):
    x = features(12)
    pool, other = made(name, seed=1), made(name, seed=2)
    assert pool(x).shape == (2, pool.out_features)
    other.load_state_dict(pool.state_dict())
    assert torch.equal(other(x), pool(x))
    assert torch.equal(copy.deepcopy(pool)(x), pool(x))
    assert torch.equal(pickle.loads(pickle.dumps(pool))(x), pool(x))
    size, parameters = POOLINGS[name].count(256)
    assert size > 0
    assert parameters >= 0
    row = POOLINGS[name]
    assert row.name == name
    assert row.description
    assert row.paper
    assert pool.row.name in repr(pool)


SIZES = {"sot": (3456, 73_752), "so-vit": (3072, 28_960), "moment-probing": (3139, 132_002)}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_the_papers(name):
    assert POOLINGS[name].count(256) == SIZES[name]


@pytest.mark.parametrize("name", ["tensor-sketch", "random-maclaurin"])
def test_random_features_leave_the_generator_alone_and_are_saved(name):
    before = torch.get_rng_state()
    row = POOLINGS[name]
    one, same, other = (row.replace(seed=seed).build(CHANNELS) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    x = features(5).float()
    assert torch.equal(one(x), same(x))
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


@quick.parametrize("dtype", [torch.float16, torch.bfloat16], keep=[torch.bfloat16])
@pytest.mark.parametrize("name", POOLINGS)
def test_half_precision_is_pooled_in_float32(name, dtype):
    pool = made(name).float()
    x = features(12).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pool(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, pool(x.float()).to(dtype))


@pytest.mark.parametrize("name", POOLINGS)
def test_one_node_of_a_graph(name):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(3, CHANNELS, 1)
            self.pool = made(name).float()

        def forward(self, x):
            return self.pool(self.stem(x)) * 2

    network = Network().eval()
    traced = torch.fx.symbolic_trace(network)
    targets = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert targets == ["stem", "pool"]
    x = torch.rand(2, 3, 3, 4)
    assert torch.equal(traced(x), network(x))


def exported(name):
    pool = made(name).float()
    example = torch.rand(2, CHANNELS, 3, 4)
    batch = {"x": {0: torch.export.Dim("batch")}}
    with torch.no_grad():
        return pool, torch.export.export(pool, (example,), dynamic_shapes=batch).module()


@quick.parametrize("name", OTHERS, keep=["gem", "log-e", "dropcov", "tensor-sketch", "sot"])
def test_export(name):
    pool, program = exported(name)
    x = torch.rand(5, CHANNELS, 3, 4)
    torch.testing.assert_close(program(x), pool(x), rtol=1e-4, atol=1e-5)


# The layer, and the network that holds it.


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((8, "gab"), {}, r"unknown pooling method 'gab'.*did you mean 'gap'"),
        ((0, "gap"), {}, r"in_channels must be a whole number of at least 1, got 0"),
        ((8, "gap", 0), {}, r"reduced_channels must be a whole number of at least 1, got 0"),
        ((8, "bdc"), {"token_features": 4}, r"'bdc' takes no class token, got token_features 4"),
        (
            (16, "attention-rotary"),
            {},
            r"'attention-rotary': num_heads must be one of 1, 2, 4, as 16 channels.*got 8$",
        ),
        ((6, "attention-rotary"), {"row": {"num_heads": 2}}, "channels must be a multiple of 4"),
        ((7, "simpool"), {"row": {"num_heads": 2}}, r"'simpool': num_heads.*the 7 channels, got 2"),
        ((8, "power"), {"row": {"exponent": 0}}, r"'power': exponent must be in \(0, 1\], got 0"),
        ((8, "power"), {"row": {"degree": 5}}, r"'power' has no constant 'degree'.*exponent=0\.5"),
        ((8, "gap"), {"row": {"degree": 5}}, r"pooling 'gap' has no constants, got {'degree': 5}"),
        ((8, "seb"), {"row": {"representation": "mean"}}, r"unknown representation 'mean'"),
        ((8, "isice"), {"row": {"steps": 1, "as_published": True}}, r"steps must be .* least 2"),
        ((1, "dropcov"), {}, r"'dropcov': channels must be at least 2, got 1"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments, options, message):
    channels, pooling, *rest = arguments
    row = options.pop("row", None) if (options := dict(options)) else None
    with pytest.raises(ValueError, match=message):
        Pool2d(channels, POOLINGS[pooling].replace(**row) if row else pooling, *rest, **options)


def test_what_cannot_be_pooled_is_refused():
    with pytest.raises(ValueError, match=r"features \(B, 8, H, W\), got \(2, 7, 3, 3\)"):
        Pool2d(8, "gap")(torch.rand(2, 7, 3, 3))
    with pytest.raises(ValueError, match="one position has no covariance"):
        Pool2d(8, "dropcov")(torch.rand(2, 8, 1, 1))
    assert Pool2d(8, "bcnn")(torch.rand(2, 8, 1, 1)).shape == (2, 36)
    with pytest.raises(ValueError, match=r"class tokens of 5 numbers.*got 0"):
        Pool2d(8, "sot", token_features=5)(torch.rand(2, 8, 3, 3))


@pytest.mark.parametrize("name", ["sot", "so-vit", "moment-probing"])
def test_the_class_token_stands_first(name):
    row = POOLINGS[name].replace(**OPTIONS[name])
    torch.manual_seed(0)
    pool = Pool2d(CHANNELS, row, token_features=5).eval()
    torch.manual_seed(0)
    without = Pool2d(CHANNELS, row).eval()
    x, token = features(12).float(), torch.rand(2, 5)
    found = pool(x, token)
    assert torch.equal(found[:, :5], token)
    length = found.shape[1] - 5
    assert torch.equal(found[:, 5:], without(x)[:, -length:])


@pytest.mark.parametrize("name", OTHERS)
def test_networks_with_every_pooling(name):
    torch.manual_seed(0)
    model = covpool.create_model(
        "small-convnet", 3, method=name, width=32, method_constants=OPTIONS.get(name)
    )
    images = torch.rand(2, 3, 24, 24)
    logits = model(images)
    logits.square().sum().backward()
    assert logits.shape == (2, 3)
    assert model.method == name
    assert model.head_hidden_size == model.pool.out_features
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.method = name
    with pytest.raises(ValueError, match=f"pooling {name!r} cannot be switched to 'exact'"):
        model.method = "exact"


def test_channels_are_reduced_where_a_pooling_is_published_so():
    def reduction(name, **options):
        return covpool.create_model("resnet10t", 2, method=name, **options).pool.reduction

    assert reduction("dropcov")[0].out_channels == 256
    assert isinstance(reduction("bcnn"), torch.nn.Identity)
    assert reduction("bcnn", reduced_channels=16)[0].out_channels == 16
    assert isinstance(reduction("gap", reduced_channels=16), torch.nn.Identity)


@pytest.mark.parametrize("name", ["sot", "so-vit", "moment-probing"])
@pytest.mark.parametrize(
    ("backbone", "options", "token"),
    [
        ("vit_tiny_patch16_224", {"depth": 1}, 192),
        ("vit_tiny_patch16_224", {"depth": 1, "class_token": False, "reg_tokens": 2}, 0),
        ("small-convnet", {}, 0),
    ],
)
def test_class_tokens_of_backbones(name, backbone, options, token):
    model = covpool.create_model(backbone, 3, method=name, image_size=64, **options).eval()
    assert model.pool.token_features == token
    images = torch.rand(2, 3, 64, 64)
    features = model.forward_features(images)
    pooled = model.forward_head(features, pre_logits=True)
    if token:
        tokens = model.backbone.forward_features(images)
        assert torch.equal(pooled[:, :token], tokens[:, 0])
        assert features[0].shape == (2, 192, 4, 4)
    assert torch.equal(model(images), model.classifier(pooled))


@pytest.mark.parametrize(
    ("start", "shares"),
    [("matrix", (1.000, 0.985, 0.238)), ("identity", (1.000, 1.016, 4.2))],
)
def test_what_halley_makes_of_small_eigenvalues(start, shares):
    """On the spectrum and in matrix products, as documented: at 1e-2, 1e-4, 1e-6 of the trace."""
    for share, expected in zip((1e-2, 1e-4, 1e-6), shares, strict=True):
        matrix = torch.diag(torch.tensor([share, 1 - share], dtype=torch.float64))
        row = METHODS["halley"].replace(start=start)
        root = covpool.matrix_sqrt(matrix, row)[0, 0].item() / share**0.5
        values = row.forward.values(covpool.FUNCTIONS["sqrt"], matrix.diagonal(), 2)
        assert root == pytest.approx(expected, abs=0.05 if expected > 2 else 6e-4)
        assert values[0].item() / share**0.5 == pytest.approx(root, rel=1e-12)


@pytest.mark.parametrize("start", ["matrix", "identity"])
def test_halley_is_differentiated_as_its_steps_are(start):
    """The divided differences of the spectrum against autograd of the matrix products, at ties."""
    row = METHODS["halley"].replace(start=start)
    spectrum = torch.tensor([0.0, 1e-3, 0.2, 0.2, 0.9], dtype=torch.float64)
    basis = torch.linalg.qr(features(5, channels=5)[0, :, 0])[0]
    matrix = ((basis * spectrum) @ basis.mT).requires_grad_()
    weight = features(5, channels=5, seed=3)[0, :, 0]
    weight = weight + weight.mT
    root = covpool.matrix_sqrt(matrix, row, check=False)
    (gradient,) = torch.autograd.grad((root * weight).sum(), matrix)
    found = row.gradient.loewner(covpool.FUNCTIONS["sqrt"], spectrum, 5)
    inner = basis.mT @ weight @ basis
    inside = found.matrix * inner + torch.eye(5) * (found.trace * inner.diagonal()).sum()
    expected = basis @ inside @ basis.mT
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


def test_halley_starts_by_name():
    with pytest.raises(ValueError, match="start must be matrix or identity, got 'trace'"):
        METHODS["halley"].replace(start="trace")


@pytest.mark.parametrize("name", ["halley", "halley-identity"])
def test_a_null_space_with_a_value_of_its_own_moves_with_the_trace(name):
    """The two ways of computing, where f(0) depends on the trace: both modes."""
    row = METHODS[name]
    x, along = features(5).flatten(2), features(5, seed=1).flatten(2)

    def direct(x):
        return covpool.matrix_sqrt(covpool.covariance(x), row, check=False)

    ours = torch.func.jvp(lambda x: covpool.cov_pool(x, row), (x,), (along,))
    reference = torch.func.jvp(direct, (x,), (along,))
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    weight = features(8, seed=2)[:, :, 0]
    gradients = [
        torch.func.vjp(function, x)[1](weight)[0]
        for function in (lambda x: covpool.cov_pool(x, row), direct)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["sot", "so-vit"])
def test_a_cross_covariance_of_one_position_is_refused(name):
    with pytest.raises(ValueError, match="one position has no covariance"):
        Pool2d(16, name)(torch.randn(2, 16, 1, 1))


@pytest.mark.parametrize("scale", [1e-12, 1e10])
@pytest.mark.parametrize("name", ["frobenius", "root-frobenius"])
def test_norms_neither_overflow_nor_vanish(name, scale):
    x = torch.randn(2, 5, 3, 3, generator=torch.manual_seed(0))
    layer = Pool2d(5, name)
    torch.testing.assert_close(layer(x * scale), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sigma-max", "seb"])
def test_a_sample_that_is_not_finite_is_named(name):
    x = torch.randn(3, 5, 3, 3, generator=torch.manual_seed(0))
    x[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"1 of 3 samples: \[1\]"):
        Pool2d(5, name)(x)


def test_weights_in_half_precision_are_refused():
    layer = Pool2d(16, "fbn").half()
    with pytest.raises(ValueError, match=r"layer\.pooling\.float\(\)"):
        layer(torch.randn(2, 16, 4, 4).half())
    layer.pooling.float()
    assert layer(torch.randn(2, 16, 4, 4).half()).dtype == torch.float16


def maps_of_spectrum(eigenvalues, positions):
    """Features (1, C, 1, N) whose covariance has these eigenvalues, and its eigenvectors."""
    rank = np.count_nonzero(eigenvalues)
    basis = orthogonal(len(eigenvalues), 0)
    random = np.random.default_rng(1).standard_normal((positions, rank))
    rows = np.linalg.qr(np.column_stack([np.ones(positions), random]))[0][:, 1:].T
    values = (basis * np.sqrt(eigenvalues))[:, :rank] @ rows * positions**0.5
    return torch.from_numpy(values)[None, :, None], basis


LOGARITHM_SPECTRA = {
    "flat": np.ones(64),
    "one large": np.array([1.0] + [1e-3] * 63),
    "decaying": np.geomspace(1, 1e-6, 64),
    "rank 35": np.concatenate([np.geomspace(1, 1e-2, 35), np.zeros(29)]),
    "rank 1": np.eye(64)[0],
}


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("name", LOGARITHM_SPECTRA)
def test_the_chebyshev_logarithm_is_near_the_logarithm(name, scale):
    """Within the series' error on its interval, which the docstring gives, at every spectrum."""
    eigenvalues = scale * LOGARITHM_SPECTRA[name]
    x, basis = maps_of_spectrum(eigenvalues, 36 if "rank" in name else 144)
    found = torch.zeros(64, 64, dtype=torch.float64)
    found[tuple(torch.triu_indices(64, 64))] = Pool2d(64, "chebyshev-log")(x)[0]
    found = found + found.triu(1).mT
    logarithm = np.log(0.98 * eigenvalues + 0.02 * np.linalg.norm(eigenvalues))
    error = np.linalg.norm(found.numpy() - (basis * logarithm) @ basis.T, ord=2)
    series = chebinterpolate(lambda t: np.log(0.51 + 0.49 * t), 8)
    nodes = np.linspace(-1, 1, 1001)
    worst = np.abs(chebval(nodes, series) - np.log(0.51 + 0.49 * nodes)).max()
    assert worst == pytest.approx(0.093, abs=5e-4)
    assert error <= worst + 1e-9


@pytest.mark.parametrize(
    ("times_mean", "error"), [(3.55, -0.0042), (4, -1.07), (5, -84), (8, -3.6e4), (20, -2.7e8)]
)
def test_what_the_published_series_gives_outside_its_interval(times_mean, error):
    """As documented: off by that much at an eigenvalue so many times the mean."""
    eigenvalues = np.array([times_mean, *[(64 - times_mean) / 63] * 63])
    x, basis = maps_of_spectrum(eigenvalues, 144)
    pool = Pool2d(64, POOLINGS["chebyshev-log"].replace(as_published=True))
    found = torch.zeros(64, 64, dtype=torch.float64)
    found[tuple(torch.triu_indices(64, 64))] = pool(x)[0]
    value = basis[:, 0] @ (found + found.triu(1).mT).numpy() @ basis[:, 0]
    assert value - np.log(0.98 * times_mean + 0.02) == pytest.approx(error, rel=0.02)


def after_relu(channels, positions):
    """Maps of correlated channels after a ReLU, (8, C, 1, N)."""
    draw = np.random.default_rng(0).standard_normal
    mixed = draw((channels, 32)) @ draw((8, 32, positions)) / 32**0.5
    return torch.from_numpy(np.maximum(mixed, 0))[:, :, None]


def test_the_steps_regularise_the_precision():
    """As documented: what the null space gets, and no direction more."""
    x = after_relu(64, 36).flatten(2)
    matrix, trace = cov(x), cov(x).diagonal(dim1=-2, dim2=-1).sum(-1)
    found = POOLINGS["precision"].build(64).normalisation(x)
    values = torch.linalg.eigvalsh(found) * trace[:, None]
    assert torch.linalg.matrix_rank(matrix).tolist() == [35] * 8
    torch.testing.assert_close(
        values[:, -29:], torch.full((8, 29), 1.5**14).double(), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(("channels", "positions"), [(64, 36), (256, 196)])
def test_the_published_constants_leave_the_sparse_inverse_dense(channels, positions):
    """As documented: hardly another than the inverse, hardly an entry zero."""
    x = after_relu(channels, positions).flatten(2)
    inverse = newton_schulz_inverse(
        cov(x) / cov(x).diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    )
    found = POOLINGS["isice"].build(channels).normalisation(x)
    plain = inverse / inverse.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None].sqrt()
    assert 1e-4 < (found - plain).norm() / plain.norm() < 0.015
    assert 1e-4 < (found == 0).double().mean() < 0.03


@pytest.mark.parametrize("channels", [64, 256])
def test_few_channels_are_seldom_dropped(channels):
    """As documented for each number of channels."""
    x = after_relu(channels, 36).flatten(2)
    torch.manual_seed(0)
    dropout = POOLINGS["dropcov"].build(channels).regulariser.double()
    weights = torch.full((8, channels), 1 / channels).double()
    found = dropout.probability(x, weights)
    assert found.median() < 0.1 if channels == 64 else 0.1 < found.median() < 0.5


def test_float32_maps_have_no_eigenvalue_more():
    """Rounding errors of the centring, as an eigenvalue near zero, counted in seb's norm."""
    x = 100 * after_relu(64, 36).float()
    layer = Pool2d(64, "seb")
    torch.testing.assert_close(layer(x).double(), layer(x.double()), rtol=1e-6, atol=1e-5)
