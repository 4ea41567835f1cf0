"""Decompositions that fail, made to: which way helps, for which samples, and what it says."""

import re

import pytest
import torch

import covpool
from covpool.linalg.engine import factorisation as retries
from covpool.linalg.engine.factorisation import DecompositionError, LinAlgError
from covpool.linalg.engine.singular import SINGULAR_VALUE_DECOMPOSITION
from covpool.linalg.engine.symmetric import EIGENDECOMPOSITION
from spectra import SPECTRA

EIGH, SVD = torch.linalg.eigh, torch.linalg.svd
KINDS = {"eigh": EIGENDECOMPOSITION, "svd": SINGULAR_VALUE_DECOMPOSITION}
ROWS, COLUMNS = retries.DIVIDED_SIZE + 4, retries.DIVIDED_SIZE + 2


def batch_of(kind, dtype=torch.float32, size=12):
    generator = torch.Generator().manual_seed(0)
    shape = size, ROWS, ROWS if kind == "eigh" else COLUMNS
    factor = torch.randn(shape, generator=generator, dtype=dtype) / ROWS**0.5
    return factor + factor.mT if kind == "eigh" else factor


def rebuilt(kind, factors):
    if kind == "eigh":
        return (factors[1] * factors[0][..., None, :]) @ factors[1].mT
    return (factors[0] * factors[1][..., None, :]) @ factors[2]


def marks(matrices):
    """What tells a sample from the others."""
    kept = matrices.reshape(-1, matrices.shape[-2] * matrices.shape[-1]).double().abs()
    return kept.sum(-1) / kept.amax(-1)


class Saboteur:
    """Solvers that fail for the marked samples until `allowed` says that they need not."""

    def __init__(self, monkeypatch, matrices, bad, failure, allowed):
        self.marks, self.failure, self.allowed = marks(matrices), failure, allowed
        self.bad = torch.tensor([index in bad for index in range(len(matrices))])
        monkeypatch.setattr(torch.linalg, "eigh", lambda a, **k: self.run("eigh", EIGH, a, **k))
        monkeypatch.setattr(torch.linalg, "svd", lambda a, **k: self.run("svd", SVD, a, **k))
        if failure == "not orthogonal":  # which LAPACK does not do silently
            monkeypatch.setattr(retries, "on_cpu", lambda a: False)

    def run(self, name, solver, matrices, out=None, **options):
        factors = self.sabotaged(name, solver, matrices, options)
        if out is None:
            return factors
        for place, factor in zip(out, factors, strict=True):
            place.copy_(factor)
        return out

    def sabotaged(self, name, solver, matrices, options):
        factors = [
            factor.clone(memory_format=torch.contiguous_format)
            for factor in solver(matrices, **options)
        ]
        if self.allowed(name, matrices):
            return factors
        found = marks(matrices)[:, None]
        known = (found - self.marks).abs() <= 1e-4 * found
        # What is none of the samples is a way's own version of a bad one.
        bad = (known & self.bad).any(-1) | ~known.any(-1)
        if self.failure == "raises" and bad.any():
            raise LinAlgError("does not converge")
        vectors = factors[1 if name == "eigh" else 0].reshape(
            -1, *factors[0 if name == "svd" else 1].shape[-2:]
        )
        if self.failure == "not orthogonal":
            vectors[bad] = vectors[bad, :, :1]
        if self.failure == "NaN":
            vectors[bad] = torch.nan
        return factors


FAILURES = ["raises", "not orthogonal", "NaN"]


def largest(matrices):
    return matrices.abs().amax().item()


# When the solvers work again: at the call that the way makes, and at none before it.
ALLOWED = {
    ("eigh", "the same solver alone"): lambda name, a: a.ndim == 2,
    ("eigh", "float64"): lambda name, a: a.dtype == torch.float64,
    ("eigh", "scaling"): lambda name, a: a.dtype == torch.float32 and largest(a) == 1,
    ("eigh", "a singular value decomposition"): lambda name, a: name == "svd",
    ("svd", "the same solver alone"): lambda name, a: a.ndim == 2,
    ("svd", "float64"): lambda name, a: a.dtype == torch.float64,
    ("svd", "scaling"): lambda name, a: a.dtype == torch.float32 and largest(a) == 1,
    ("svd", "the transpose"): lambda name, a: a.shape[-2:] == (COLUMNS, ROWS),
    ("svd", "a symmetric eigendecomposition"): lambda name, a: name == "eigh",
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize(("kind", "way"), ALLOWED)
def test_each_way_helps_the_samples_that_failed(kind, way, failure, monkeypatch):
    matrices = batch_of(kind)
    factorisation = KINDS[kind]
    alone = factorisation(matrices)
    tried = []
    ways = dict(factorisation.fallbacks)
    for name, function in ways.items():
        monkeypatch.setitem(
            factorisation.fallbacks,
            name,
            lambda a, name=name, function=function: tried.append(name) or function(a),
        )
    Saboteur(monkeypatch, matrices, {2, 7}, failure, ALLOWED[kind, way])
    factors = factorisation(matrices)
    steps = list(ways)[: list(ways).index(way) + 1]
    if failure == "raises":  # all samples of the batch are retried, the good ones in the first way
        assert set(tried) == set(steps)
    else:
        assert tried == 2 * steps
    torch.testing.assert_close(rebuilt(kind, factors), matrices, rtol=1e-5, atol=1e-5)
    if failure != "raises":  # which leaves none of the batch's results
        others = [i for i in range(12) if i not in (2, 7)]
        for one, other in zip(factors, alone, strict=True):
            assert torch.equal(one[others], other[others])


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("kind", KINDS)
def test_jitter_is_last_and_says_so(kind, failure, monkeypatch):
    matrices = batch_of(kind, torch.float64)
    jitter = ROWS * torch.finfo(torch.float64).eps * torch.linalg.matrix_norm(matrices[2])

    def jittered(name, a):
        if a.ndim != 2 or a.shape != matrices[2].shape:
            return False
        change = (a - matrices[2]).diagonal()
        return name == kind and bool((change > 0).all()) and bool((change <= 3 * jitter).all())

    Saboteur(monkeypatch, matrices, {2}, failure, jittered)
    with pytest.warns(RuntimeWarning, match=r"added to its diagonal") as caught:
        factors = KINDS[kind](matrices)
    assert len(caught) == 1
    assert f"{2 * jitter.item():.1e}" in str(caught[0].message)
    torch.testing.assert_close(rebuilt(kind, factors), matrices, rtol=1e-12, atol=1e-12)


@pytest.mark.axes
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(12,), (3, 4), (12, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_that_nothing_helps_are_named(kind, shape, threads, failure, monkeypatch):
    matrices = batch_of(kind)
    Saboteur(monkeypatch, matrices, {1, 7, 11}, failure, lambda name, a: False)
    monkeypatch.setattr(retries, "PARALLEL_WORK", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.raises(DecompositionError) as caught:
            KINDS[kind](matrices.reshape(*shape, *matrices.shape[-2:]))
    finally:
        torch.set_num_threads(before)
    assert caught.value.samples == [1, 7, 11]
    size = f"{ROWS} × {ROWS if kind == 'eigh' else COLUMNS}"
    said = (
        f"{KINDS[kind].name} found in 3 of 12 samples: [1, 7, 11], {size} in torch.float32 on cpu"
    )
    assert re.search(re.escape(said), str(caught.value))
    assert all(way in str(caught.value) for way in KINDS[kind].fallbacks)
    assert isinstance(caught.value, torch.linalg.LinAlgError)


PUBLIC = {
    "matrix_sqrt": lambda a: covpool.matrix_sqrt(a, check=False),
    "eigh": lambda a: covpool.eigh(a, check=False)[1],
    "svd": lambda a: covpool.svd(a, check=False)[0],
    "cov_pool": lambda a: covpool.cov_pool(a, check_finite=False),
}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", PUBLIC)
def test_samples_that_are_not_finite_give_nan_alone(name, bad):
    """Inside the transforms of torch.func too."""
    function = PUBLIC[name]
    x = torch.randn(4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x @ x.mT
    x[2, 0, 0] = bad
    expected = [True, True, False, True]
    assert function(x).isfinite().all(-1).all(-1).tolist() == expected
    assert torch.vmap(function)(x).isfinite().all(-1).all(-1).tolist() == expected
    value, pull = torch.func.vjp(function, x)
    assert value.isfinite().all(-1).all(-1).tolist() == expected
    assert pull(torch.ones_like(value))[0].isfinite().all(-1).all(-1).tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_retries_too(kind, monkeypatch):
    matrices = batch_of(kind).double()
    expected = getattr(covpool, kind)(matrices)
    Saboteur(monkeypatch, matrices, {0}, "raises", lambda name, a: a.ndim == 2)
    mapped = torch.vmap(torch.vmap(getattr(covpool, kind)))(
        matrices.reshape(3, 4, *matrices.shape[1:])
    )
    for one, other in zip(mapped, expected, strict=True):
        torch.testing.assert_close(one.reshape(other.shape).abs(), other.abs())


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_retried_that_has_not_failed(kind, dtype, spectrum, monkeypatch):
    """At any scale: below the least normal number, too."""
    matrix = SPECTRA[spectrum]()
    matrix = matrix / matrix.abs().amax().clamp_min(1e-300)
    for name in KINDS[kind].fallbacks:
        monkeypatch.setitem(KINDS[kind].fallbacks, name, lambda a: pytest.fail("retried"))
    limits = torch.finfo(dtype)
    for scale in (1.0, limits.max / 1e3, limits.tiny * 1e3, limits.tiny / 1e3, 0.0):
        factors = KINDS[kind]((matrix * scale).to(dtype))
        assert all(factor.isfinite().all() for factor in factors)
