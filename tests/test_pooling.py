"""cov_pool, the vector and the layer."""

import contextlib
import warnings
from functools import partial

import numpy as np
import pytest
import torch

import covpool
import quick
from covpool import METHODS
from covpool.poolings import POOLINGS, check_pooling
from spectra import EPS, null_space_rounding, range_condition, relative_error

ONE_POSITION = pytest.mark.filterwarnings("ignore:cov_pool gives zeros")


def features(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.manual_seed(seed))


def value_and_gradient(function, x, context=contextlib.nullcontext):
    x = x.clone().requires_grad_()
    with context():
        result = function(x)
    weight = features(*result.shape[-2:], seed=9).to(result.dtype)
    (gradient,) = torch.autograd.grad((result * weight).sum(), x)
    return result.detach(), gradient


def decompose_only(monkeypatch):
    """What `cov_pool` does where a CPU has many channels, with few of them."""
    for row in METHODS.values():
        if row.iteration:
            monkeypatch.setattr(type(row.forward), "iterated_channels", 0)


def autograd_nodes(result):
    """The names of all that backward passes through."""
    names, nodes = set(), [result.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(type(node).__name__.strip("_").removesuffix("Backward"))
        nodes += [parent for parent, _ in node.next_functions if parent is not None]
    return names


@ONE_POSITION
@pytest.mark.parametrize("positions", [1, 2, 7, 8, 9, 20])
@pytest.mark.parametrize("name", METHODS)
def test_gram_path_is_the_covariance_path(name, positions, note_error):
    """At N < C, N = C, N = C + 1 and N > C; C = 8."""
    x = features(3, 8, positions)
    ours = value_and_gradient(lambda x: covpool.cov_pool(x, name), x)
    direct = value_and_gradient(lambda x: covpool.matrix_sqrt(covpool.covariance(x), name), x)
    # Two ways to form a covariance know its smallest eigenvalue to eps · its condition.
    singular = null_space_rounding(METHODS[name]) if positions <= 8 else 0
    tolerance = 1e-11 + EPS * range_condition(x) + singular
    kind = "gram = covariance" + (" (singular)" if singular else "")
    for one, other in zip(ours, direct, strict=True):
        assert note_error(kind, name, relative_error(one, other)) <= tolerance


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("positions", [3, 9])
def test_value_and_gradient_of_tied_and_degenerate_features(name, positions):
    """Constant channels, repeated positions, orthogonal features of equal length, zeros."""
    orthogonal = torch.linalg.qr(features(positions, positions))[0][:6]
    cases = [
        torch.zeros(6, positions).double(),
        torch.ones(6, positions).double() * torch.arange(6)[:, None],
        features(6, 1).expand(6, positions),
        torch.nn.functional.pad(orthogonal, (0, 0, 0, 6 - len(orthogonal))),
    ]
    result, gradient = value_and_gradient(lambda x: covpool.cov_pool(x, name), torch.stack(cases))
    assert result.isfinite().all()
    assert gradient.isfinite().all()
    assert result[:3].abs().max() < 1e-7


@quick.whole_jacobians
@pytest.mark.parametrize("positions", [3, 6, 7, 12])
def test_gradcheck_of_exact(positions, fast_mode):
    x = features(2, 6, positions).requires_grad_()
    assert torch.autograd.gradcheck(covpool.cov_pool, (x,), fast_mode=fast_mode)


def decaying_features(channels, positions, condition, seed=0):
    """Centred features with geometrically decaying singular values, in float32."""
    rank = min(channels, positions - 1)
    left = torch.linalg.qr(features(channels, rank, seed=seed))[0]
    basis = features(positions, rank, seed=seed + 1)
    right = torch.linalg.qr(basis - basis.mean(0))[0]
    singular_values = torch.logspace(0, -torch.tensor(condition).log10().item(), rank).double()
    return ((left * singular_values) @ right.mT).float()


def by_singular_values(x, weight):
    """Value and gradient of the root by the singular value decomposition of the features, whose
    condition number is the root of the covariance's; NumPy, float64."""
    count = x.shape[-1]
    centred = (x - x.mean(-1, keepdims=True)) / count**0.5
    left, s, right = np.linalg.svd(centred, full_matrices=False)
    rank = min(x.shape[-2], count - 1)
    left, s, right = left[:, :rank], s[:rank], right[:rank]
    product = (weight + weight.T) / 2 @ left
    inner = left.T @ product
    scaled = inner / (s[:, None] + s[None, :]) * s[None, :]
    gradient = 2 * (left @ scaled + product - left @ inner) @ right
    return (left * s) @ left.T, (gradient - gradient.mean(-1, keepdims=True)) / count**0.5


@pytest.mark.parametrize(("positions", "condition"), [(49, 1e6), (64, 1e6), (100, 1e5), (300, 1e5)])
def test_float32_features_keep_their_accuracy(positions, condition, note_error):
    """Of 25 random ones the worst value was off by 8e-8 and the worst gradient by 3.5e-6, with
    decompositions perturbed by eps of their norm by 6e-6."""
    x = decaying_features(64, positions, condition)
    ours = value_and_gradient(covpool.cov_pool, x)
    weight = features(64, 64, seed=9).float()
    reference = by_singular_values(x.double().numpy(), weight.double().numpy())
    for what, one, other, bar in zip(
        ("value", "gradient"), ours, reference, (1e-6, 2e-5), strict=True
    ):
        error = relative_error(one.double(), torch.from_numpy(other))
        assert note_error(f"float32 features, {what}", "exact", error) <= bar


@pytest.mark.axes(channels=range(4))
@pytest.mark.parametrize(
    ("channels", "positions", "condition"),
    [
        *[(24, 25, 1e5), (24, 196, 1e5), (64, 49, 1e6), (64, 100, 1e5)],
        *[(256, 196, 1e6), (256, 300, 1), (256, 784, 3), (256, 300, 1e5)],
    ],
)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_accuracy_of_float32_features(
    name, channels, positions, condition, note_error
):
    """Against the same method in float64 throughout; a large mean must not cost digits.

    Of a dozen random features of each size values were off by up to 9 eps where the computation is
    in float32 throughout and by 2 eps elsewhere, gradients by up to 18 eps; the bounds are four
    times that and more.
    """
    x = decaying_features(channels, positions, condition) + 3.0
    pooled = partial(covpool.cov_pool, method=name)
    ours, reference = value_and_gradient(pooled, x), value_and_gradient(pooled, x.double())
    eps = torch.finfo(torch.float32).eps
    bars = ((40 if METHODS[name].smooth else 8) * eps, 80 * eps)
    for what, one, other, bar in zip(("value", "gradient"), ours, reference, bars, strict=True):
        error = relative_error(one.double(), other)
        assert note_error(f"float32 features to float64, {what}", name, error) <= bar


SINGULAR = {
    "dead channels": lambda x: x * (torch.arange(32) > 5)[:, None],
    "the same channel twice": lambda x: torch.cat([x[..., :16, :], x[..., :16, :]], -2),
    "rank 3": lambda x: x[..., :3] @ x[..., :3, :],
    "rank 1": lambda x: x[..., :1] @ x[..., :1, :],
    "graded channels": lambda x: x * torch.logspace(0, -12, 32, dtype=x.dtype)[:, None],
}


@pytest.mark.parametrize("kind", SINGULAR)
@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.smooth])
def test_float32_eigenvalues_that_are_rounding_errors_cost_nothing(name, kind, note_error):
    """Of more positions than channels; those of a float32 covariance are of either sign."""
    x = SINGULAR[kind](features(20, 32, 80)).float()
    pooled = partial(covpool.cov_pool, method=name)
    ours, reference = value_and_gradient(pooled, x), value_and_gradient(pooled, x.double())
    for what, one, other, bar in zip(
        ("value", "gradient"), ours, reference, (5e-6, 1e-5), strict=True
    ):
        for sample, expected in zip(one.double(), other, strict=True):
            error = relative_error(sample, expected)
            assert note_error(f"singular float32 features, {what}", name, error) <= bar


@pytest.mark.parametrize("positions", [3, 6, 20])
@pytest.mark.parametrize("name", METHODS)
def test_shares_of_the_batch_are_the_batch(name, positions, monkeypatch):
    x = features(2, 5, 6, positions)
    pooled = partial(covpool.cov_pool, method=name)
    whole = value_and_gradient(pooled, x)
    threads = torch.get_num_threads()
    decompose_only(monkeypatch)
    monkeypatch.setattr("covpool.linalg.covariance.SHARED_ELEMENTS", 0)
    monkeypatch.setattr("covpool.linalg.engine.shares.SHARE_BYTES", 2000)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for one, other in zip(value_and_gradient(pooled, x), whole, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)


@pytest.mark.axes(shape=(1, 2))
@pytest.mark.parametrize("shape", [(2, 3, 30, 4, 3), (3, 30, 29), (3, 30, 31), (5, 30, 90)])
@pytest.mark.parametrize("name", METHODS)
def test_the_ways_of_a_gpu_give_the_same_on_a_cpu(name, shape, monkeypatch, note_error):
    """Value, gradient, forward mode, vmap and refusal; in float32 to its rounding."""
    x, direction = features(*shape), features(*shape, seed=5)
    pooled = partial(covpool.cov_pool, method=name)

    def everything(x):
        _, change = torch.func.jvp(pooled, (x,), (direction.to(x.dtype),))
        return *value_and_gradient(pooled, x), change, torch.vmap(pooled)(x)

    def refusal():
        bad = x.clone()
        bad[1].fill_(torch.nan)
        with pytest.raises(ValueError, match="NaN or infinite") as caught:
            pooled(bad)
        return str(caught.value)

    expected, refused = everything(x), refusal()
    for module in (
        "pooling",
        "linalg.covariance",
        "linalg.engine.factorisation",
        "linalg.precision",
    ):
        monkeypatch.setattr(f"covpool.{module}.on_cpu", lambda tensor: False)
    assert refusal() == refused
    exact_to = 1e-11 + EPS * range_condition(x.flatten(min(3, x.ndim - 1)))
    for dtype, bound in ((torch.float64, exact_to), (torch.float32, 40 * 2.0**-23)):
        for one, other in zip(everything(x.to(dtype)), expected, strict=True):
            assert one.dtype == dtype
            error = relative_error(one.double(), other)
            assert note_error(f"as on a GPU, {dtype}", name, error) <= bound


@pytest.mark.parametrize("positions", [7, 20])
def test_batched_gradients_of_features_that_are_shared_out(positions, monkeypatch):
    """torch hands tensors with a hidden dimension to the backward pass, which no thread takes."""
    monkeypatch.setattr("covpool.linalg.covariance.SHARED_ELEMENTS", 1)
    x = features(3, 6, positions).requires_grad_()
    pooled = covpool.cov_pool(x)
    gradients = features(4, *pooled.shape)
    (batched,) = torch.autograd.grad(pooled, x, gradients, True, is_grads_batched=True)
    for one, gradient in zip(batched, gradients, strict=True):
        (alone,) = torch.autograd.grad(pooled, x, gradient, retain_graph=True)
        assert relative_error(one, alone) <= 1e-12


ITERATED = [n for n, row in METHODS.items() if getattr(row.forward, "iterated_channels", 0)]


@pytest.mark.parametrize("positions", [7, 20])
@pytest.mark.parametrize("name", ITERATED)
def test_few_channels_are_pooled_by_the_iteration_which_is_the_same(name, positions, monkeypatch):
    """Value, gradient and forward mode, and second derivatives where there are any."""
    x, direction = features(3, 6, positions), features(3, 6, positions, seed=5)
    pooled = partial(covpool.cov_pool, method=name)

    def everything():
        results = [*value_and_gradient(pooled, x), *torch.func.jvp(pooled, (x,), (direction,))]
        if name == "isqrt-cov":
            gradient = torch.func.grad(lambda x: pooled(x).pow(3).sum())
            results += torch.func.jvp(gradient, (x,), (direction,))
        return results

    iterated = everything()
    assert "CovarianceFunction" not in autograd_nodes(pooled(x.requires_grad_()))
    decompose_only(monkeypatch)
    assert "CovarianceFunction" in autograd_nodes(pooled(x))
    x.requires_grad_(False)
    for one, other in zip(iterated, everything(), strict=True):
        assert relative_error(one, other) <= 1e-12


@pytest.mark.axes(name=range(len(METHODS)))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(2, 6, 2, 2), (2, 6, 4, 4), (0, 6, 2, 2), (3, 2, 6, 4, 4)])
@pytest.mark.parametrize("name", METHODS)
def test_dtypes_and_autocast(name, shape, dtype):
    x = features(*shape).to(dtype)
    plain = value_and_gradient(lambda x: covpool.cov_pool(x, name), x)
    automatic = value_and_gradient(
        lambda x: covpool.cov_pool(x, name),
        x,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    )
    assert plain[0].shape == (*shape[:-3], 6, 6)
    assert plain[0].dtype == plain[1].dtype == dtype
    assert torch.equal(plain[0], automatic[0])
    assert torch.equal(plain[1], automatic[1])


def test_shapes_are_told_apart_by_their_dimensions():
    x = features(2, 5, 3, 4)
    assert torch.equal(covpool.cov_pool(x), covpool.cov_pool(x.flatten(2)))
    torch.testing.assert_close(covpool.cov_pool(x[0].flatten(1)), covpool.cov_pool(x)[0])
    assert covpool.covariance(x).shape == (2, 5, 5)
    expected = torch.cov(x[1].flatten(1), correction=0)
    torch.testing.assert_close(covpool.covariance(x)[1], expected)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(5), r"features \(\*, C, H, W\) or \(\*, C, N\), got \(5,\)"),
        (torch.ones(2, 3, 0, 4), r"no channels or no positions in shape \(2, 3, 0, 4\)"),
        (torch.ones(2, 3, 4).long(), "floating-point tensor, got torch.int64"),
    ],
)
def test_bad_features(x, message):
    with pytest.raises(ValueError, match=message):
        covpool.cov_pool(x)


def test_triangle_is_row_major_and_differentiable():
    matrix = torch.arange(18.0).reshape(2, 3, 3).requires_grad_()
    vector = covpool.triu_vector(matrix)
    assert vector.tolist() == [[0, 1, 2, 4, 5, 8], [9, 10, 11, 13, 14, 17]]
    (gradient,) = torch.autograd.grad(vector.sum(), matrix)
    assert torch.equal(gradient[0], torch.ones(3, 3).triu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("correction", [0, 1, 2])
def test_the_covariance_is_torchs_with_every_correction(correction, dtype):
    x = features(5, 7, dtype=dtype)
    expected = torch.cov(x, correction=correction)
    torch.testing.assert_close(covpool.covariance(x, correction=correction), expected)
    x = x.to(torch.promote_types(dtype, torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: covpool.covariance(x, correction=correction), (x,))
    # The squares of these leave the range on the way.
    found = covpool.covariance(1e153 * x.detach(), correction=correction) / 1e306
    torch.testing.assert_close(found, expected.to(x.dtype), rtol=1e-6, atol=1e-7)


def test_a_correction_of_all_positions_is_refused():
    for correction, positions in ((3, 3), (4, 3), (1, 1)):
        message = (
            f"correction {correction} needs more than {correction} positions, got {positions} in "
            rf"shape \(2, {positions}\)"
        )
        with pytest.raises(ValueError, match=message):
            covpool.covariance(features(2, positions), correction=correction)
    for correction in (-1, 0.5, True):
        message = f"correction must be a whole number of at least 0, got {correction}"
        with pytest.raises(ValueError, match=message):
            covpool.covariance(features(2, 3), correction=correction)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex128])
def test_the_isometric_triangle_keeps_lengths_and_angles(dtype):
    matrices = features(3, 5, 5, dtype=dtype)
    matrices = matrices + matrices.mH
    vectors = covpool.triu_vector(matrices, isometric=True)
    assert vectors.dtype == dtype
    rtol = 1e-2 if dtype == torch.bfloat16 else 1e-14
    lengths, norms = vectors.norm(dim=-1), torch.linalg.matrix_norm(matrices.to(vectors.dtype))
    torch.testing.assert_close(lengths, norms, rtol=rtol, atol=0)
    product = (vectors[0].conj() * vectors[1]).sum().real
    expected = (matrices[0].conj() * matrices[1]).sum().real
    torch.testing.assert_close(product, expected, rtol=10 * rtol, atol=0)
    plain = covpool.triu_vector(matrices)
    row, column = torch.triu_indices(5, 5)
    assert torch.equal(vectors[:, row == column], plain[:, row == column])
    assert torch.equal(plain, covpool.triu_vector(matrices, isometric=False))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("reduced", [None, 6])
@pytest.mark.parametrize("vectorize", [True, False])
def test_layer(name, reduced, vectorize):
    torch.manual_seed(0)
    layer = covpool.CovPool2d(10, reduced, name, vectorize)
    output = layer(features(4, 10, 3, 3, dtype=torch.float32))
    assert output.flatten(1).shape == (4, layer.out_features)
    size = reduced or 10
    assert output.shape == ((4, size * (size + 1) // 2) if vectorize else (4, size, size))
    if reduced is None:
        assert not list(layer.parameters())
        return
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_checkpoints_interchange_between_methods():
    states = [covpool.CovPool2d(10, 6, name).state_dict() for name in METHODS]
    for name in METHODS:
        for state in states:
            covpool.CovPool2d(10, 6, name).load_state_dict(state)


def test_method_is_assignable():
    layer = covpool.CovPool2d(4, None, "isqrt-cov").double()
    x = features(2, 4, 3, 3)
    before = layer(x)
    layer.method = "exact"
    assert torch.equal(layer(x), covpool.triu_vector(covpool.cov_pool(x)))
    assert not torch.allclose(layer(x), before)
    layer.method = METHODS["isqrt-cov"].replace(iterations=40)
    torch.testing.assert_close(layer(x), covpool.triu_vector(covpool.cov_pool(x)))
    with pytest.raises(ValueError, match="unknown method 'average'"):
        layer.method = "average"


def test_layer_refuses_bad_numbers():
    with pytest.raises(ValueError, match=r"reduced_channels must be a whole .* 1, got 0"):
        covpool.CovPool2d(10, 0)
    with pytest.raises(ValueError, match=r"in_channels must be a whole .* 1, got -3"):
        covpool.CovPool2d(-3)
    with pytest.raises(ValueError, match=r"in_channels must be a whole .* 1, got 4.5"):
        covpool.CovPool2d(4.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(5, 4, 6), (2, 7, 3, 3), (4, 5), (1, 2, 4, 3, 3)])
def test_layer_refuses_other_shapes(shape):
    layer = covpool.CovPool2d(4, None)
    message = r"needs features \(B, 4, H, W\) or \(4, H, W\), got \("
    with pytest.raises(ValueError, match=message):
        layer(torch.ones(shape))


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("reduced", [None, 3])
def test_layer_takes_one_sample_as_torchs_own_poolings_do(reduced, vectorize):
    """`nn.AdaptiveAvgPool2d` gives (C, 1, 1) of (C, H, W); batch norm alone wants a batch."""
    layer = covpool.CovPool2d(4, reduced, vectorize=vectorize).double()
    x = features(4, 5, 6).requires_grad_()
    found, expected = layer(x), layer(x[None])[0]
    size = layer.channels
    assert found.shape == ((layer.out_features,) if vectorize else (size, size))
    assert torch.equal(found, expected)
    for one, other in zip(
        torch.autograd.grad(found.sum(), x), torch.autograd.grad(expected.sum(), x), strict=True
    ):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"one position .*got features \(4, 1, 1\)"):
        layer(x[:, :1, :1])


@pytest.mark.parametrize("method", METHODS)
def test_one_position_is_refused_by_the_layer_and_zero_with_a_warning_by_the_function(method):
    """It would train on zeros, and give the same logits for every image."""
    message = "one position has no covariance; take larger images or a backbone of a smaller stride"
    layer = covpool.CovPool2d(4, 3, method)
    with pytest.raises(ValueError, match=rf"CovPool2d: {message}.*got features \(2, 4, 1, 1\)"):
        layer(torch.randn(2, 4, 1, 1))
    for shape, batch in (((3, 4, 1, 1), (3,)), ((3, 4, 1), (3,)), ((4, 1), ())):
        x = features(*shape).requires_grad_()
        with pytest.warns(UserWarning, match=f"cov_pool gives zeros: {message}") as caught:
            pooled = covpool.cov_pool(x, method)
        assert [warning.filename for warning in caught] == [__file__]
        assert torch.equal(pooled, torch.zeros(*batch, 4, 4, dtype=torch.float64))
        assert torch.equal(torch.autograd.grad(pooled.sum(), x)[0], torch.zeros_like(x))


def test_one_position_is_warned_of_once():
    """Not at every step of a training."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            covpool.cov_pool(torch.randn(2, 4, 1))
    assert ["gives zeros" in str(warning.message) for warning in caught] == [True]


def test_layer_shows_its_constants():
    layer = covpool.CovPool2d(4, None, METHODS["isqrt-cov"].replace(iterations=7))
    assert "method='isqrt-cov', iterations=7, out_features=10" in repr(layer)


def test_poolings_are_the_methods_and_gap():
    assert tuple(POOLINGS)[: len(METHODS) + 1] == ("gap", *METHODS)
    with pytest.raises(ValueError, match=r"unknown pooling method 'gab'.*did you mean 'gap'"):
        check_pooling("gab")


def test_backward_within_autocast_keeps_its_precision():
    x = features(2, 8, 5, dtype=torch.float32)
    outside = value_and_gradient(covpool.cov_pool, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = value_and_gradient(covpool.cov_pool, x)
    assert torch.equal(inside[1], outside[1])


@quick.whole_jacobians
@ONE_POSITION
@pytest.mark.parametrize("positions", [1, 3, 6, 7, 12])
@pytest.mark.parametrize("name", METHODS)
def test_second_derivatives_are_right_or_refused(name, positions, fast_mode):
    x = features(2, 6, positions).requires_grad_()
    method = METHODS[name]
    if method.exact_gradient or method.differentiates_steps:
        assert torch.autograd.gradgradcheck(
            lambda x: covpool.cov_pool(x, name), (x,), atol=1e-4, fast_mode=fast_mode
        )
        return
    (first,) = torch.autograd.grad(covpool.cov_pool(x, name).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=f"method '{name}' has no second derivative"):
        first.square().sum().backward()


@pytest.mark.parametrize("positions", [3, 20])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", METHODS)
def test_features_of_the_largest_and_the_smallest_size(name, dtype, positions):
    """Their squares overflow or vanish, the result is a root and does not."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 5, positions, dtype=torch.float64, generator=generator) * 2 - 1
    expected = covpool.cov_pool(x, name)
    for scale in (0.99 * torch.finfo(dtype).max, 64 * torch.finfo(dtype).tiny):
        result = covpool.cov_pool((x * scale).to(dtype), name)
        assert relative_error(result.double() / scale, expected) <= 100 * torch.finfo(dtype).eps
        # The gradient is of order one, but its parts are of the size of the features.
        scaled = (x * (scale * 1e-3 if scale > 1 else scale)).to(dtype).requires_grad_()
        result = covpool.cov_pool(scaled, name)
        (gradient,) = torch.autograd.grad(result.double().sum(), scaled)
        assert gradient.isfinite().all()
        assert gradient.any()


@pytest.mark.filterwarnings("ignore:compute_dtype=torch.float32")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_compute_dtype_float32_takes_features_whose_squares_it_cannot_hold(dtype):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, 20, dtype=torch.float64, generator=generator)
    expected = covpool.cov_pool(x)
    for scale in (1e30, 1e-30) if dtype != torch.float64 else (1e100, 1e-100):
        result = covpool.cov_pool((x * scale).to(dtype), compute_dtype=torch.float32)
        limit = 1e-4 if dtype != torch.bfloat16 else 0.1
        assert relative_error(result.double() / scale, expected) <= limit
