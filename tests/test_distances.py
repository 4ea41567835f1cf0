"""Distances against mpmath, closed forms, other packages and finite differences; at coincidence."""

import math
from functools import partial

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from torch.func import hessian, jacfwd, jacrev, vmap

import covpool.distances as distances
from covpool.distances import DISTANCES
from quick import parametrize
from spectra import relative_error, with_spectrum

DTYPES = [torch.float64, torch.complex128]


def hermitian(x):
    return (x + x.mH) / 2


def definite(condition=10.0, size=5, seed=0, dtype=torch.float64):
    spectrum = np.logspace(0, -math.log10(condition), size)
    return with_spectrum(spectrum, seed, dtype)


def function_of(matrix, function):
    values, vectors = mpmath.eighe(matrix)
    return vectors * mpmath.diag([function(x) for x in values]) * vectors.transpose_conj()


def trace(matrix):
    return sum(matrix[i, i] for i in range(matrix.rows)).real


def log_determinant(matrix):
    return sum(map(mpmath.log, mpmath.eighe(matrix, eigvals_only=True)))


def between(a, b):
    """A^(1/2) B A^(1/2), and its root's trace."""
    root = function_of(a, lambda x: mpmath.sqrt(abs(x)))
    return trace(function_of(root * b * root, lambda x: mpmath.sqrt(abs(x))))


def affine(a, b):
    inverse = function_of(a, lambda x: 1 / mpmath.sqrt(x))
    values = mpmath.eighe(inverse * b * inverse, eigvals_only=True)
    return sum(mpmath.log(x) ** 2 for x in values)


def log_euclidean(a, b):
    difference = function_of(a, mpmath.log) - function_of(b, mpmath.log)
    return trace(difference * difference)


def umegaki(a, b):
    difference = function_of(a, mpmath.log) - function_of(b, mpmath.log)
    return trace(a * difference) - trace(a) + trace(b)


def squared(name):
    return lambda a, b, **options: DISTANCES[name](a, b, squared=True, **options)


ORACLES = {
    "bures-wasserstein": lambda a, b: trace(a) + trace(b) - 2 * between(a, b),
    "log-euclidean": log_euclidean,
    "affine-invariant": affine,
    "stein": lambda a, b: (
        log_determinant((a + b) / 2) - (log_determinant(a) + log_determinant(b)) / 2
    ),
    "relative-entropy": umegaki,
    "fidelity": lambda a, b: between(a, b) ** 2,
}
SMOOTH = {
    **{name: squared(name) for name in DISTANCES},
    "relative-entropy": distances.relative_entropy,
}
"""What vanishes at A = B together with its gradient."""

PAIRS = {**SMOOTH, "fidelity": distances.fidelity}


def function_root(a):
    values, vectors = torch.linalg.eigh(a)
    return vectors @ torch.diag(values.sqrt()) @ vectors.mT


def by_mpmath(name, a, b):
    with mpmath.workdps(70):
        return ORACLES[name](mpmath.matrix(a.tolist()), mpmath.matrix(b.tolist()))


@parametrize("condition", [1e1, 1e4, 1e8], keep=[1e1, 1e4])
@parametrize("dtype", DTYPES, keep=[torch.float64])
@pytest.mark.parametrize("name", PAIRS)
def test_far_apart_they_are_those_of_mpmath(name, dtype, condition):
    a, b = definite(condition, seed=1, dtype=dtype), definite(condition, seed=2, dtype=dtype)
    expected = by_mpmath(name, a, b)
    bound = 1e-14 + 1e-15 * condition
    assert abs(PAIRS[name](a, b).item() - expected) <= bound * expected


@pytest.mark.parametrize("name", ["affine-invariant", "stein"])
def test_ill_conditioned_matrices_lose_the_digits_of_one_condition_number(name):
    """A⁻¹B may have the product of both, 1e16 here."""
    for seed in range(4):
        a, b = (definite(1e8, 4, seed=2 * seed + k) for k in (1, 2))
        expected = float(by_mpmath(name, a, b))
        for pair in ((a, b), (b, a)):
            assert PAIRS[name](*pair).item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("gap", [0.01, 0.06, 0.07, 0.2, 0.45, 0.55, 0.9])
@pytest.mark.parametrize("name", ["affine-invariant", "stein"])
def test_no_digits_are_lost_where_one_formula_follows_the_other(name, gap):
    for condition in (1e1, 1e4):
        a = definite(condition)
        for sign in (-1, 1):
            ratio = 1 + sign * gap * np.array([0.1, 0.3, 0.5, 0.7, 1])
            root = function_root(a)
            b = hermitian(root @ with_spectrum(ratio, 3, torch.float64) @ root)
            expected = by_mpmath(name, a, b)
            assert abs(SMOOTH[name](a, b).item() - expected) <= 2e-15 * condition * expected


@parametrize("gap", [1e-1, 1e-4, 1e-8, 1e-12], keep=[1e-1, 1e-8])
@parametrize("condition", [1e1, 1e4], keep=[1e1])
@parametrize("dtype", DTYPES, keep=[torch.float64])
@pytest.mark.parametrize("name", SMOOTH)
def test_close_to_each_other_they_are_right_to_their_own_digits(name, dtype, condition, gap):
    """At 1e-8 the squares are 1e-16 and less, of which the textbook formulas have no digit."""
    a, direction = definite(condition, dtype=dtype), definite(condition, seed=3, dtype=dtype)
    b = a + gap / condition * hermitian(a @ direction)
    expected = by_mpmath(name, a, b)
    assert 0 < expected < gap**2
    bound = 5e-14 * condition if name != "bures-wasserstein" or gap < 1e-2 else 1e-12 * condition
    assert abs(SMOOTH[name](a, b).item() - expected) <= bound * expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMOOTH)
def test_of_a_matrix_and_itself_all_is_zero(name, dtype):
    for spectrum in ([1.0, 2, 3, 4], [2.0, 2, 2, 2], [1.0, 1, 5, 5]):
        a = with_spectrum(np.array(spectrum), 0, dtype).requires_grad_()
        b = a.detach().clone().requires_grad_()
        value = SMOOTH[name](a, b)
        assert 0 <= value.item() < 1e-29
        for gradient in torch.autograd.grad(value, (a, b)):
            assert gradient.abs().max() < 1e-13
        if name in DISTANCES:
            for found in torch.autograd.grad(DISTANCES[name](a, a.detach()), a):
                assert found.isfinite().all()
            assert DISTANCES[name](a, b).item() < 1e-14


COMMUTING = {
    "bures-wasserstein": lambda x, y: (x.sqrt() - y.sqrt()).square().sum(),
    "log-euclidean": lambda x, y: (x / y).log().square().sum(),
    "affine-invariant": lambda x, y: (x / y).log().square().sum(),
    "stein": lambda x, y: (((x + y) / 2).log() - (x * y).log() / 2).sum(),
    "relative-entropy": lambda x, y: (x * (x / y).log() - x + y).sum(),
    "fidelity": lambda x, y: (x * y).sqrt().sum().square(),
}
"""The same of matrices with the eigenvectors in common."""


@parametrize("name", PAIRS, keep=["stein", "fidelity"])
def test_of_commuting_matrices_value_and_derivatives_are_the_closed_form(name):
    basis = torch.linalg.qr(torch.randn(4, 4, generator=torch.manual_seed(0)).double()).Q
    x = torch.tensor([0.5, 0.5, 1.5, 2.0], dtype=torch.float64)
    y = torch.tensor([0.7, 0.5, 0.2, 1.0], dtype=torch.float64)

    def ours(x, y):
        a, b = (basis @ torch.diag(v) @ basis.mT for v in (x, y))
        return PAIRS[name](hermitian(a), hermitian(b))

    for other in (y, x):
        theirs = COMMUTING[name]
        assert relative_error(1 + ours(x, other), 1 + theirs(x, other)) < 1e-13
        for place in (0, 1):
            found, expected = (jacrev(f, place)(x, other) for f in (ours, theirs))
            assert (found - expected).abs().max() < 1e-12
            found, expected = (hessian(f, place)(x, other) for f in (ours, theirs))
            assert (found - expected).abs().max() < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PAIRS)
def test_first_and_second_derivatives_far_apart_and_at_coincidence(name, dtype):
    for a, b in (
        (definite(5, 3, 1, dtype), definite(5, 3, 2, dtype)),
        (definite(5, 3, 1, dtype),) * 2,
        (torch.eye(3, dtype=dtype),) * 2,
    ):
        inputs = a.clone().requires_grad_(), b.clone().requires_grad_()

        def call(x, y):
            return PAIRS[name](hermitian(x), hermitian(y))

        assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True, eps=1e-5, atol=1e-7)
        assert torch.autograd.gradgradcheck(call, inputs, eps=1e-5, atol=1e-6, fast_mode=True)


def slope(x, y):
    """log[x, y]."""
    return np.where(x == y, 1 / x, np.log(x / y) / (x - y + (x == y)))


METRIC = {
    "bures-wasserstein": lambda x, y: 1 / (2 * (x + y)),
    "log-euclidean": lambda x, y: slope(x, y) ** 2,
    "affine-invariant": lambda x, y: 1 / (x * y),
    "stein": lambda x, y: 1 / (8 * x * y),
    "relative-entropy": lambda x, y: (
        np.where(x == y, 1 / x, np.log(x / y) / (x - y + (x == y))) / 2
    ),
}
"""Each vanishes as Σ g(λᵢ, λⱼ) |Δᵢⱼ|² in the eigenbasis: the Riemannian metric."""


@parametrize("way", ["jacrev jacrev", "jacfwd jacrev", "jacfwd jacfwd"], keep=["jacfwd jacrev"])
@pytest.mark.parametrize("name", SMOOTH)
def test_the_hessian_at_coincidence_is_the_metric(name, way):
    x = np.array([1.0, 1.0, 3.0])
    a = torch.diag(torch.from_numpy(x))
    with np.errstate(divide="ignore"):
        weights = torch.from_numpy(METRIC[name](x[:, None], x[None, :]))
    outer, inner = ({"jacrev": jacrev, "jacfwd": jacfwd}[w] for w in way.split())
    for place in (0, 1):

        def loss(d, place=place):
            pair = [a, a]
            pair[place] = a + hermitian(d)
            return SMOOTH[name](*pair)

        found = outer(inner(loss))(torch.zeros_like(a))
        for seed in range(3):
            d = hermitian(torch.randn(3, 3, generator=torch.manual_seed(seed)).double())
            quadratic = torch.einsum("ij,ijkl,kl", d, found, d) / 2
            assert relative_error(quadratic, (weights * d * d).sum()) < 1e-12


def deficient(seed, dtype=torch.float64, rank=2, size=4):
    factor = with_spectrum(np.arange(1.0, size + 1), seed, dtype)[:, :rank]
    return factor @ factor.mH


@pytest.mark.parametrize("dtype", DTYPES)
def test_singular_matrices(dtype):
    a, b, full = deficient(0, dtype), deficient(1, dtype), definite(5, 4, 2, dtype)
    for first, second in ((a, b), (a, full), (full, a)):
        for name in ("bures-wasserstein", "fidelity"):
            found = PAIRS[name](first, second).item()
            assert found == pytest.approx(float(by_mpmath(name, first, second)), rel=1e-7)
    for name in ("log-euclidean", "affine-invariant", "stein"):
        batch = torch.stack([full, a, full])
        for pair, which in (((batch, full), "first"), ((full, batch), "second")):
            message = rf"{name}: {which} matrix singular in 1 of 3 samples: \[1\].*infinite"
            with pytest.raises(ValueError, match=message):
                DISTANCES[name](*pair)
    batch = torch.stack([full, a, b])
    assert distances.relative_entropy(batch, full).isfinite().all()
    assert distances.relative_entropy(batch, a).tolist() == [
        math.inf,
        pytest.approx(0, abs=1e-12),
        math.inf,
    ]
    zero = torch.zeros_like(a)
    assert DISTANCES["bures-wasserstein"](a, zero, squared=True).item() == pytest.approx(
        a.diagonal().sum().real.item()
    )
    leaf = a.clone().requires_grad_()
    value = DISTANCES["bures-wasserstein"](leaf, a, squared=True)
    (gradient,) = torch.autograd.grad(value, leaf)
    # Along changes that keep the range the distance is at its minimum.
    assert value < 1e-28
    assert (a @ gradient @ a).abs().max() < 1e-10


def test_what_float64_does_not_resolve_is_refused():
    a, b = (torch.diag(torch.tensor(x, dtype=torch.float64)) for x in ([1, 1e-10], [1e-10, 1]))
    with pytest.raises(ValueError, match=r"affine-invariant: no finite value.*range further"):
        distances.affine_invariant(a, b)
    assert distances.affine_invariant(a, b, check=False).isnan()
    assert distances.log_euclidean(a, b).item() == pytest.approx(math.sqrt(2) * math.log(1e10))


DEGREE = {"bures-wasserstein": 1, "relative-entropy": 1, "fidelity": 2}
"""With which power of a common factor of both matrices they grow; the others do not."""


@pytest.mark.parametrize("exponent", [-300, -155, 155, 300, 307])
@pytest.mark.parametrize("name", PAIRS)
def test_they_neither_overflow_nor_vanish_on_the_way(name, exponent):
    a, b = definite(seed=1), definite(seed=2)
    factor = 10.0**exponent
    degree = DEGREE.get(name, 0)
    if degree == 2:
        assert PAIRS[name](a * factor, b / factor).item() == pytest.approx(
            PAIRS[name](a, b).item(), rel=1e-12
        )
        return
    expected = PAIRS[name](a, b).item() * factor**degree
    for call in (PAIRS[name], vmap(PAIRS[name])):
        batched = call is not PAIRS[name]
        pair = ((a * factor)[None], (b * factor)[None]) if batched else (a * factor, b * factor)
        assert call(*pair).item() == pytest.approx(expected, rel=1e-12, abs=0)
    leaf = (a * factor).requires_grad_()
    (gradient,) = torch.autograd.grad(PAIRS[name](leaf, b * factor), leaf)
    usual = a.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(PAIRS[name](usual, b), usual)
    assert relative_error(gradient * factor if degree == 0 else gradient, wanted) < 1e-10


@pytest.mark.parametrize("exponent", [-300, -155, 155, 300])
def test_frechet_distances_neither_overflow_nor_vanish_on_the_way(exponent):
    factor = 10.0**exponent
    generator = torch.manual_seed(0)
    x, y = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (9, 2))
    expected = distances.frechet_from_samples(x, y).item() * factor
    found = distances.frechet_from_samples(x * factor, y * factor)
    assert found.item() == pytest.approx(expected, rel=1e-12, abs=0)
    root = 10.0 ** (exponent / 2)
    a, b = definite(size=3, seed=1), definite(size=3, seed=2)
    expected = distances.frechet(x[0], a, y[0], b).item() * root
    found = distances.frechet(x[0] * root, a * factor, y[0] * root, b * factor)
    assert found.item() == pytest.approx(expected, rel=1e-12, abs=0)
    far = distances.frechet(x[0] * factor, a, y[0] * factor, a)
    expected = (x[0] - y[0]).norm().item() * factor
    assert far.item() == pytest.approx(expected, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", PAIRS)
def test_unchecked_a_bad_sample_leaves_the_others_what_they_are(name, bad):
    good = torch.eye(3, dtype=torch.float64)
    for pair in ((bad * good, good), (good, bad * good), (bad * good, bad * good)):
        pair = [torch.where(each.isnan(), bad, each) for each in pair]
        batch = [torch.stack([k * good, each]) for k, each in zip((1, 2), pair, strict=True)]
        alone = PAIRS[name](*pair, check=False)
        for found in (PAIRS[name](*batch, check=False), vmap(PAIRS[name])(*batch)):
            assert found[0].item() == pytest.approx(PAIRS[name](good, 2 * good).item(), rel=1e-14)
            torch.testing.assert_close(found[1], alone, equal_nan=True)
        if not math.isfinite(bad):
            assert alone.isnan()


@pytest.mark.parametrize("name", PAIRS)
def test_batches_broadcast_and_vmap(name):
    a = torch.stack([definite(5, seed=k) for k in range(3)])[:, None]
    b = torch.stack([definite(9, seed=k) for k in range(5, 7)])
    found = PAIRS[name](a, b)
    assert found.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            assert relative_error(PAIRS[name](a[i, 0], b[j]), found[i, j]) < 1e-12
    mapped = vmap(vmap(PAIRS[name], (None, 0)), (0, None))(a[:, 0], b)
    assert relative_error(mapped, found) < 1e-12
    assert PAIRS[name](a[:0], b).shape == (0, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_they_compile_as_one_graph(name):
    a = torch.stack([definite(5, seed=k) for k in range(3)]).requires_grad_()
    b = definite(9, seed=5)
    found = torch.compile(PAIRS[name], fullgraph=True, backend="aot_eager")(a, b)
    expected = PAIRS[name](a, b)
    assert relative_error(found, expected) < 1e-12
    ours, theirs = (torch.autograd.grad(v.sum(), a)[0] for v in (found, expected))
    assert relative_error(ours, theirs) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("name", PAIRS)
def test_lower_precisions_are_computed_in_float64(name, dtype):
    wide = torch.complex128 if dtype.is_complex else torch.float64
    a, b = (definite(5, seed=k, dtype=wide).to(dtype) for k in (1, 2))
    a, b = hermitian(a), hermitian(b)
    found = PAIRS[name](a, b)
    assert found.dtype == (torch.float32 if dtype.is_complex else dtype)
    expected = PAIRS[name](a.to(wide), b.to(wide)).to(found.dtype)
    assert torch.equal(found, expected)


@parametrize("dtype", DTYPES, keep=[torch.float64])
def test_von_neumann_entropy(dtype):
    state = definite(9, dtype=dtype)
    state = (state / state.diagonal().sum()).requires_grad_()
    found = distances.von_neumann_entropy(state)
    values = torch.linalg.eigvalsh(state.detach())
    assert found.item() == pytest.approx(-(values * values.log()).sum().item(), rel=1e-13)
    assert torch.autograd.gradgradcheck(
        lambda x: distances.von_neumann_entropy(hermitian(x)), state
    )
    pure = torch.diag(torch.tensor([1, 0, 0], dtype=dtype))
    assert distances.von_neumann_entropy(pure).item() == 0
    mixed = torch.eye(4, dtype=dtype) / 4
    assert distances.von_neumann_entropy(mixed).item() == pytest.approx(math.log(4))


def test_pinsker_and_fuchs_van_de_graaf():
    """Inequalities that tie relative entropy, fidelity and the trace distance together."""
    for seed in range(5):
        a, b = (definite(50, seed=seed + k) for k in (0, 9))
        a, b = a / a.trace(), b / b.trace()
        apart = torch.linalg.eigvalsh(a - b).abs().sum() / 2
        root = distances.fidelity(a, b).sqrt()
        assert distances.relative_entropy(a, b) >= 2 * apart.square()
        assert 1 - root <= apart <= (1 - root.square()).sqrt()
        bures = distances.bures_wasserstein(a, b, squared=True)
        assert bures.item() == pytest.approx(2 - 2 * root.item(), rel=1e-10)


def by_numpy(x, y):
    """The textbook FID, which multiplies the covariances."""
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    apart = np.square(x.mean(0) - y.mean(0)).sum()
    return apart + np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second)).real


@pytest.mark.parametrize(("count", "other"), [(40, 30), (40, 5), (4, 5), (8, 40)])
def test_frechet_distances_of_samples_and_of_moments(count, other):
    generator = torch.manual_seed(0)
    x = torch.randn(count, 8, generator=generator, dtype=torch.float64)
    y = torch.randn(other, 8, generator=generator, dtype=torch.float64) * 2 + 0.3
    found = distances.frechet_from_samples(x, y, squared=True)
    moments = [part for z in (x, y) for part in (z.mean(0), torch.cov(z.T).reshape(8, 8))]
    assert found.item() == pytest.approx(by_numpy(x.numpy(), y.numpy()), rel=1e-5)
    assert distances.frechet(*moments, squared=True).item() == pytest.approx(found.item(), rel=1e-9)
    root = distances.frechet_from_samples(x, y)
    assert root.item() == pytest.approx(math.sqrt(found.item()), rel=1e-14)
    population = distances.frechet_from_samples(x, y, squared=True, correction=0)
    moments = [p for z in (x, y) for p in (z.mean(0), torch.cov(z.T, correction=0))]
    assert distances.frechet(*moments, squared=True).item() == pytest.approx(population.item())
    same = distances.frechet_from_samples(x, x.flip(0), squared=True)
    assert 0 <= same.item() < 1e-25


@parametrize(("count", "other"), [(7, 6), (2, 3), (3, 6), (4, 4)], keep=[(2, 3)])
def test_derivatives_of_the_frechet_distance_of_samples(count, other):
    generator = torch.manual_seed(1)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randn(other, 4, generator=generator, dtype=torch.float64, requires_grad=True)

    def call(x, y):
        return distances.frechet_from_samples(x, y, squared=True)

    assert torch.autograd.gradcheck(call, (x, y), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, (x, y), fast_mode=True)
    same = x.detach().flip(0)
    value = call(x, same)
    (gradient,) = torch.autograd.grad(value, x)
    assert gradient.abs().max() < 1e-12
    batch = torch.stack([x.detach(), 2 * x.detach()])
    together = call(batch, y.detach())
    alone = torch.stack([call(each, y.detach()) for each in batch])
    assert relative_error(together, alone) < 1e-13


def test_frechet_distance_of_samples_at_any_condition():
    """Its gradient at condition 1e8 against mpmath; two equal sets in float32."""
    distance = partial(distances.frechet_from_samples, squared=True)
    generator = torch.manual_seed(0)
    scales = torch.logspace(0, -4, 5, dtype=torch.float64)  # 1e8 of the covariances
    x, y, step = (
        torch.randn(count, 5, dtype=torch.float64, generator=generator) * scales
        for count in (9, 8, 8)
    )
    leaf = y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distance(x, leaf), leaf)

    def centred(rows):
        means = [mpmath.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
        return means, [[v - m for v, m in zip(row, means, strict=True)] for row in rows]

    def in_mpmath(first, second):
        (mean_x, a), (mean_y, b) = centred(first), centred(second)
        values = mpmath.svd_r(mpmath.matrix(a) * mpmath.matrix(b).T, compute_uv=False)
        degrees = len(a) - 1, len(b) - 1
        total = sum((p - q) ** 2 for p, q in zip(mean_x, mean_y, strict=True))
        for rows, degree in zip((a, b), degrees, strict=True):
            total += mpmath.fsum(v * v for row in rows for v in row) / degree
        return total - 2 * mpmath.fsum(values) / mpmath.sqrt(degrees[0] * degrees[1])

    with mpmath.workdps(40):
        h = mpmath.mpf(10) ** -12
        # Each feature moved by itself, as what is lost is the gradient of the small ones.
        for feature in range(5):
            along = torch.zeros_like(step)
            along[:, feature] = step[:, feature]
            moved = [
                [
                    [mpmath.mpf(v) + s * h * d for v, d in zip(*rows, strict=True)]
                    for rows in zip(y.tolist(), along.tolist(), strict=True)
                ]
                for s in (1, -1)
            ]
            up, down = (in_mpmath([list(map(mpmath.mpf, r)) for r in x.tolist()], m) for m in moved)
            expected = float((up - down) / (2 * h))
            assert (gradient * along).sum().item() == pytest.approx(expected, rel=1e-9)

    same = torch.randn(512, 192, generator=generator)
    variance = same.var(0).sum().item()
    assert abs(distance(same, same).item()) <= 1e-5 * variance


def test_frechet_refusals():
    vector, matrix = torch.zeros(3), torch.eye(3)
    with pytest.raises(ValueError, match=r"first mean of shape \(2,\).*\(3, 3\)"):
        distances.frechet(torch.zeros(2), matrix, vector, matrix)
    with pytest.raises(ValueError, match=r"frechet: second mean: NaN"):
        distances.frechet(vector, matrix, vector * math.nan, matrix)
    with pytest.raises(ValueError, match=r"more than 1 samples, got shape \(1, 3\)"):
        distances.frechet_from_samples(torch.zeros(1, 3), matrix)
    with pytest.raises(ValueError, match=r"one size, got shapes \(3, 3\) and \(3, 2\)"):
        distances.frechet_from_samples(matrix, torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"first features: NaN.*\[1\]"):
        distances.frechet_from_samples(torch.stack([matrix, matrix * math.inf]), matrix)


def test_frechet_refuses_batches_that_do_not_go_together_and_other_corrections():
    samples = torch.zeros(2, 4, 3)
    with pytest.raises(ValueError, match=r"_samples: batch shapes \(2,\) and \(3,\) do not"):
        distances.frechet_from_samples(samples, torch.zeros(3, 4, 3))
    matrices = torch.eye(3).expand(2, 3, 3)
    with pytest.raises(ValueError, match=r"frechet: batch shapes \(5,\) and \(2,\) do not"):
        distances.frechet(torch.zeros(5, 3), matrices, torch.zeros(5, 3), matrices)
    with pytest.raises(ValueError, match=r"frechet: batch shapes \(5,\) and \(4,\) do not"):
        distances.frechet(torch.zeros(5, 3), torch.eye(3), torch.zeros(4, 3), torch.eye(3))
    for correction in (0.5, -1, None, True):
        with pytest.raises(ValueError, match=rf"correction must be a whole .* got {correction}"):
            distances.frechet_from_samples(samples, samples, correction=correction)
    with pytest.raises(ValueError, match=r"frechet_from_samples.*size of 1 or more.*\(4, 0\)"):
        distances.frechet_from_samples(samples[0, :, :0], samples[0, :, :0])


def test_frechet_distances_of_samples_in_several_batch_dimensions():
    generator = torch.manual_seed(0)
    x, y = (torch.randn(2, n, 3, generator=generator, dtype=torch.float64) for n in (9, 7))
    found = distances.frechet_from_samples(x[:, None], y[None])
    for i in range(2):
        for j in range(2):
            expected = distances.frechet_from_samples(x[i], y[j])
            assert relative_error(found[i, j], expected) < 1e-12


def test_subnormal_matrices():
    a = torch.eye(3, dtype=torch.float64) * 1e-310
    for name in DISTANCES:
        assert DISTANCES[name](a, a).item() == 0
        expected = DISTANCES[name](a * 2**40, a * 2**42).item()
        expected *= 2**-20 if name == "bures-wasserstein" else 1
        assert DISTANCES[name](a, 4 * a).item() == pytest.approx(expected, rel=1e-10, abs=0)


@pytest.mark.parametrize("name", PAIRS)
def test_refusals_name_the_function_and_the_sample(name):
    a = definite()
    called = name.replace("-", "[-_]")
    bad = torch.stack([a, a - 2 * torch.eye(5)])
    with pytest.raises(
        ValueError, match=rf"{called}: second matrix.*not positive semi-definite.*\[1\]"
    ):
        PAIRS[name](a, bad)
    with pytest.raises(ValueError, match=rf"{called}: first matrix.*not symmetric"):
        PAIRS[name](a.triu(), a)
    with pytest.raises(
        ValueError, match=rf"{called} needs matrices of one size.*\(5, 5\).*\(3, 3\)"
    ):
        PAIRS[name](a, definite(size=3))
    with pytest.raises(ValueError, match=rf"{called}: batch shapes \(2,\) and \(3,\)"):
        PAIRS[name](a.expand(2, 5, 5), a.expand(3, 5, 5))
    with pytest.raises(ValueError, match=r"size of 1 or more, got shape \(0, 0\)"):
        PAIRS[name](a[:0, :0], a[:0, :0])
    with pytest.raises(TypeError, match=r"needs a torch\.Tensor, got list"):
        PAIRS[name]([[1.0]], a)


def test_the_table_names_the_nearest_row():
    with pytest.raises(KeyError, match="unknown distance 'bures'; choose from bures-wasserstein"):
        DISTANCES["bures"]
    assert all(row is getattr(distances, name.replace("-", "_")) for name, row in DISTANCES.items())


def test_pyriemann_agrees():
    theirs = pytest.importorskip("pyriemann.utils.distance")
    names = {
        "bures-wasserstein": theirs.distance_wasserstein,
        "log-euclidean": theirs.distance_logeuclid,
        "affine-invariant": theirs.distance_riemann,
        "stein": theirs.distance_logdet,
    }
    a, b = definite(100, seed=1), definite(100, seed=2)
    for name, call in names.items():
        assert DISTANCES[name](a, b).item() == pytest.approx(call(a.numpy(), b.numpy()), rel=1e-9)


def test_pot_agrees():
    theirs = pytest.importorskip("ot.gaussian")
    a, b, mean = definite(100, seed=1), definite(100, seed=2), torch.arange(5.0).double()
    found = distances.frechet(mean, a, 0 * mean, b)
    expected = theirs.bures_wasserstein_distance(
        mean.numpy(), 0 * mean.numpy(), a.numpy(), b.numpy()
    )
    assert found.item() == pytest.approx(float(expected), rel=1e-9)
