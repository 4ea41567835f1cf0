"""Every row under every transform, against docs/_generated/transforms.md.

transforms.py says what is checked and writes that file.
"""

import subprocess
import sys
import warnings
from functools import partial

import pytest
import torch
from torch.func import hessian, jacfwd, jacrev, vjp, vmap

import covpool
import quick
from covpool import METHODS
from spectra import relative_error
from transforms import (
    CHECKS,
    COMMAND,
    GRAPHS,
    PATH,
    SUBJECTS,
    in_every_run,
    is_quick,
    measure,
    parse,
    random,
    render,
)

COMMITTED = parse(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}


def checks_of(subject, graphs):
    return [c for c in CHECKS if (c in GRAPHS) == graphs and in_every_run(subject, c)]


def rows(chosen, always_slow=False):
    return [
        pytest.param(
            subject,
            checks_of(subject, graphs),
            id=f"{subject.group}-{subject.name}-{subject.kind}{'-graphs' if graphs else ''}",
            marks=[] if is_quick(subject, graphs) and not always_slow else [pytest.mark.slow],
        )
        for subject in chosen
        for graphs in (False, True)
        if checks_of(subject, graphs)
    ]


@pytest.mark.parametrize(("subject", "checks"), rows(SUBJECTS))
def test_table_holds(subject, checks):
    hold(subject, checks)


ITERATED = [
    s
    for s in SUBJECTS
    if s.group == "cov_pool, N > C" and getattr(METHODS[s.name].forward, "iterated_channels", 0)
]


@pytest.mark.parametrize(("subject", "checks"), rows(ITERATED, always_slow=True))
def test_table_holds_for_many_channels_too(subject, checks, monkeypatch):
    """Those of the table are few enough to be pooled by the iteration."""
    monkeypatch.setattr(type(METHODS[subject.name].forward), "iterated_channels", 0)
    hold(subject, checks)


def hold(subject, checks):
    cells = COMMITTED[subject.group, subject.name][subject.kind]
    committed = dict(zip(CHECKS, cells, strict=True))
    measured = {check: measure(subject, check) for check in checks}
    changed = {
        check: f"{committed[check]} -> {outcome}"
        for check, outcome in measured.items()
        if outcome != committed[check]
    }
    assert not changed, f"if the change is meant, write {PATH.name} anew: {COMMAND}"


def test_table_is_complete():
    """No row and no column too many or too few, and nothing that was edited by hand."""
    message = f"write {PATH.name} anew: {COMMAND}"
    assert set(COMMITTED) == {(s.group, s.name) for s in SUBJECTS}, message
    assert PATH.read_text(encoding="utf-8") == render(COMMITTED), message


def pooled(name):
    return lambda x: covpool.cov_pool(x, name)


@pytest.mark.filterwarnings("ignore:cov_pool gives zeros")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("positions", [1, 4, 6, 7, 12])
@pytest.mark.parametrize("name", METHODS)
def test_forward_mode_of_cov_pool_is_the_transpose_of_its_gradient(
    name, positions, dtype, note_error
):
    """⟨G, jvp(H)⟩ = ⟨vjp(G), H⟩ at N < C, N = C, N = C + 1 and N > C; C = 6."""
    x, direction = (random(3, 6, positions, seed=seed).to(dtype) for seed in (0, 1))
    cotangent = random(3, 6, 6, seed=2).to(dtype)
    _, change = torch.func.jvp(pooled(name), (x,), (direction,))
    (gradient,) = vjp(pooled(name), x)[1](cotangent)
    assert change.dtype == dtype
    forward, backward = (change * cotangent).sum(), (gradient * direction).sum()
    scale = (change.norm() * cotangent.norm()).clamp_min(torch.finfo(dtype).tiny)
    error = (abs(forward - backward) / scale).item()
    bound = 16 * torch.finfo(dtype).eps
    assert note_error(f"pooling, forward = backwardᵀ, {dtype}", name, error) <= bound


@pytest.mark.axes
@pytest.mark.parametrize("positions", [4, 9])
@pytest.mark.parametrize("name", ["exact", "isqrt-cov", "newton-schulz-minimax"])
def test_every_way_to_the_hessian_of_cov_pool_agrees(name, positions):
    x, weight = random(2, 6, positions), random(6, 6, seed=9)

    def loss(x):
        return (covpool.cov_pool(x, name).square() * weight).sum()

    leaf = x[0].clone().requires_grad_()
    expected = torch.autograd.functional.hessian(loss, leaf)
    for way in (
        jacrev(jacrev(loss)),
        jacfwd(jacrev(loss)),
        jacrev(jacfwd(loss)),
        jacfwd(jacfwd(loss)),
    ):
        assert relative_error(way(x[0]), expected) <= 1e-12
    each = vmap(hessian(loss))(x)
    assert relative_error(each[1], hessian(loss)(x[1])) <= 1e-12


@pytest.mark.axes
@pytest.mark.parametrize("positions", [4, 9])
@pytest.mark.parametrize(
    "way", ["jacrev jacrev", "jacfwd jacrev", "jacrev jacfwd", "jacfwd jacfwd"]
)
def test_second_derivatives_of_biased_pooling_are_refused_in_every_mode(way, positions):
    outer, inner = (getattr(torch.func, name) for name in way.split())
    for name, row in METHODS.items():
        if row.exact_gradient or row.differentiates_steps:
            continue
        function = outer(inner(lambda x, name=name: covpool.cov_pool(x, name).square().sum()))
        with pytest.raises(RuntimeError, match=f"method '{name}' has no second derivative"):
            function(random(6, positions))


@pytest.mark.parametrize("decomposition", [covpool.eigh, covpool.svd])
def test_second_derivatives_at_ties_are_refused_or_not_a_number(decomposition):
    """By autograd refused, with the samples named; under torch.func NaN, in those samples alone."""
    tied, other = (torch.diag(torch.tensor(d).double()) for d in ([2.0, 2, 1], [3.0, 2, 1]))

    def loss(a):
        return sum(part.pow(4).sum() for part in decomposition(a, check=False))

    leaf = torch.stack([other, tied]).requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"not defined at ties.* in 1 of 2 samples: \[1\]"):
        torch.autograd.grad(first.sum(), leaf)
    for second in (hessian(loss), jacrev(jacrev(loss)), jacfwd(jacfwd(loss)), jacrev(jacfwd(loss))):
        assert second(other).isfinite().all()
        assert second(tied).isnan().any()
        together = vmap(second)(leaf.detach())
        assert torch.equal(together[0], second(other))
        assert together[1].isnan().any()


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_second_derivatives_of_values_alone_are_refused_too(mode):
    """The tangent of an eigenvalue is exact, but its own derivative is the biased vectors'."""
    function = jacrev(jacrev(values)) if mode == "reverse" else jacfwd(jacfwd(values))
    with pytest.raises(RuntimeError, match=r"second derivative .* use kernel='difference'"):
        function(torch.diag(torch.tensor([1.0, 1.001, 3]).double()))


def values(matrix):
    return covpool.eigh(matrix, kernel="taylor", check=False)[0].square().sum()


def test_unresolved_second_derivatives_of_minimax_are_refused_or_not_a_number():
    def loss(a):
        return covpool.matrix_sqrt(a, "newton-schulz-minimax", check=False).square().sum()

    singular = torch.diag(torch.tensor([4.0, 1, 0]).double())
    leaf = torch.stack([torch.eye(3).double(), singular]).requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"below its resolution.* in 1 of 2 samples: \[1\]"):
        torch.autograd.grad(first.sum(), leaf)
    assert hessian(loss)(singular).isnan().any()
    assert hessian(loss)(leaf[0].detach()).isfinite().all()


@quick.parametrize("name", ["exact", "svd-pade", "isqrt-cov", "mpa-lyapunov"], keep=["exact"])
def test_a_forward_pass_compiled_under_autocast_has_exact_gradients(name):
    """As mixed-precision training does it: forward under autocast, backward outside."""
    torch.compiler.reset()
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0), requires_grad=True)
    pooled = partial(covpool.cov_pool, method=name)
    compiled = torch.compile(pooled, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = compiled(x)
    (gradient,) = torch.autograd.grad(value.square().sum(), x)
    (expected,) = torch.autograd.grad(pooled(x).square().sum(), x)
    assert (gradient - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.slow
def test_the_first_call_of_a_process_can_be_a_compiled_one():
    program = """
import torch, covpool
for function in (covpool.matrix_sqrt, covpool.cov_pool):
    torch.compile(function, fullgraph=True, backend="eager")(torch.eye(3))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["isqrt-cov", "newton-schulz-minimax"])
def test_a_graph_recorded_under_autocast_is_in_full_precision(name):
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))

    def pooled(x):
        return covpool.cov_pool(x, name, compute_dtype=torch.float32)

    with warnings.catch_warnings(), torch.autocast("cpu", dtype=torch.bfloat16):
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(pooled, x, check_trace=False)
    expected = covpool.cov_pool(x, name)
    assert (traced(x) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    "function", [covpool.matrix_sqrt, lambda a: covpool.cov_pool(a, "svd-pade")]
)
def test_compiled_forward_mode_is_refused_and_not_zero(function):
    torch.compiler.reset()
    matrix = torch.diag(torch.arange(1.0, 5))

    def tangent(a, along):
        return torch.func.jvp(function, (a,), (along,))[1]

    compiled = torch.compile(tangent, fullgraph=True, backend="aot_eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="Observed exception"):
        compiled(matrix, torch.ones(4, 4))
