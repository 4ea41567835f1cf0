"""Second derivatives, forward mode, torch.func and torch.compile of every function."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch.func import hessian, jacfwd, jacrev, vmap

import covpool
import quick
from covpool import METHODS
from spectra import SPECTRA, relative_error, with_spectrum

Tensor = torch.Tensor


def power_of(p):
    return lambda a, method="exact", **options: covpool.matrix_power(a, p, method, **options)


CASES = {
    "sqrt": covpool.matrix_sqrt,
    "inv_sqrt": covpool.matrix_inv_sqrt,
    "log": covpool.matrix_log,
    "power 0.3": power_of(0.3),
    "power -1": power_of(-1.0),
    "power 2.5": power_of(2.5),
}
DECOMPOSING = [
    (case, name)
    for case in CASES
    for name, row in METHODS.items()
    if row.supports(case.split()[0]) and row.iteration is None
]
TIES = {
    "separated": lambda: with_spectrum(np.arange(1.0, 6)),
    "tied": lambda: torch.diag(torch.tensor([1.0, 1, 1, 3, 3]).double()),
    "tied-dense": lambda: with_spectrum(np.array([1.0, 1, 1, 3, 3])),
    "clustered": lambda: with_spectrum(1 + 1e-6 * np.arange(5)),
    "near the switch": lambda: with_spectrum(1 + np.array([0, 0.01, 0.02, 0.03, 0.05])),
}


def of_symmetric(function, *arguments, **options):
    return lambda a: function((a + a.mT) / 2, *arguments, **options)


def matrices(batch=3, size=4, rank=6, seed=0):
    x = torch.randn(batch, size, rank, dtype=torch.float64, generator=torch.manual_seed(seed))
    return x @ x.mT


def weight(size, seed=9):
    return torch.randn(size, size, dtype=torch.float64, generator=torch.manual_seed(seed))


@pytest.mark.parametrize("spectrum", TIES)
@pytest.mark.parametrize("case", CASES)
def test_gradcheck_and_gradgradcheck_in_both_modes(case, spectrum):
    matrix = TIES[spectrum]().requires_grad_()
    function = of_symmetric(CASES[case])
    fast = {"fast_mode": True}
    assert torch.autograd.gradcheck(function, (matrix,), check_forward_ad=True, **fast)
    assert torch.autograd.gradgradcheck(function, (matrix,), check_fwd_over_rev=True, **fast)


@quick.whole_jacobians
@quick.parametrize("rank", [1, 2, 3], keep=[2])
@pytest.mark.parametrize("case", [*CASES, "power 0", "power 1", "power 1.5", "power 2", "power 3"])
def test_second_derivatives_at_deficient_rank(case, rank, fast_mode):
    """A = XXᵀ: every change of X keeps the rank."""
    function = CASES.get(case) or power_of(float(case.split()[1]))
    factor = torch.randn(4, rank, dtype=torch.float64, generator=torch.manual_seed(rank))
    factor.requires_grad_()

    def of_factor(x):
        return function(x @ x.mT, check=False)

    assert torch.autograd.gradcheck(
        of_factor, (factor,), check_forward_ad=True, fast_mode=fast_mode
    )
    assert torch.autograd.gradgradcheck(
        of_factor, (factor,), check_fwd_over_rev=True, fast_mode=fast_mode
    )


def reference(factor, p):
    """(XXᵀ)^p = X (XᵀX)^(p−1) Xᵀ, smooth where X has full column rank."""
    eigenvalues, vectors = torch.linalg.eigh(factor.mT @ factor)
    # Not `eigenvalues ** (p - 1)`: at p = 1 torch's second derivative of that lacks a term.
    powers = (eigenvalues.log() * (p - 1)).exp()
    return factor @ (vectors * powers) @ vectors.mT @ factor.mT


@pytest.mark.parametrize("p", [0.3, 0.5, -0.5, -1.0, 1.0, 2.0])
def test_hessians_at_deficient_rank_against_the_thin_form(p, note_error):
    factor = torch.randn(5, 2, dtype=torch.float64, generator=torch.manual_seed(0))
    exponent = torch.tensor(p, dtype=torch.float64)

    def ours(x, q):
        return (covpool.matrix_power(x @ x.mT, q, check=False).square() * weight(5)).sum()

    def theirs(x, q):
        return (reference(x, q).square() * weight(5)).sum()

    actual = torch.autograd.functional.hessian(ours, (factor, exponent))
    expected = torch.autograd.functional.hessian(theirs, (factor, exponent))
    for i in range(2):
        for j in range(2):
            error = relative_error(actual[i][j], expected[i][j])  # type: ignore[index]
            assert note_error("Hessian, deficient rank", "exact", error) <= 1e-11


@pytest.mark.parametrize("spectrum", TIES)
@pytest.mark.parametrize("p", [0.0, 0.4, 1.0, -1.3])
def test_second_derivatives_of_the_exponent(p, spectrum):
    matrix = TIES[spectrum]().requires_grad_()
    exponent = torch.tensor(p, dtype=torch.float64, requires_grad=True)

    def function(a, q):
        return covpool.matrix_power((a + a.mT) / 2, q)

    inputs = (matrix, exponent)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("method", ["exact", "isqrt-cov"])
@pytest.mark.parametrize("case", CASES)
def test_every_way_to_the_hessian_agrees(case, method):
    if not METHODS[method].supports(case.split()[0]):
        pytest.skip("not offered")
    batch = matrices()
    function = of_symmetric(CASES[case], method)

    weights = weight(4)

    def loss(a):
        return (function(a).square() * weights).sum()

    first = batch[0]
    expected = torch.autograd.functional.hessian(loss, first)
    for way in (
        jacrev(jacrev(loss)),
        jacfwd(jacrev(loss)),
        jacfwd(jacfwd(loss)),
        jacrev(jacfwd(loss)),
        hessian(loss),
    ):
        assert relative_error(way(first), expected) <= 1e-12  # type: ignore[arg-type]
    together = vmap(hessian(loss))(batch)
    for one, matrix in zip(together, batch, strict=True):
        assert relative_error(one, hessian(loss)(matrix)) <= 1e-12  # type: ignore[arg-type]


@pytest.mark.parametrize("spectrum", ["separated", "tied-dense", "clustered", "rank-deficient"])
@pytest.mark.parametrize(("case", "method"), DECOMPOSING)
def test_forward_mode_is_the_transpose_of_the_gradient(case, method, spectrum, note_error):
    matrix = SPECTRA[spectrum]()
    size = len(matrix)
    direction, cotangent = (weight(size, seed) for seed in (1, 2))
    function = of_symmetric(CASES[case], method, check=False)
    _, change = torch.func.jvp(function, (matrix,), (direction,))
    leaf = matrix.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf, cotangent)
    forward, backward = (change * cotangent).sum(), (gradient * direction).sum()
    scale = change.norm() * cotangent.norm()
    error = (abs(forward - backward) / scale).item()
    assert note_error("forward = backwardᵀ", method, error) <= 1e-13


@pytest.mark.parametrize("method", ["exact", "svd-pade"])
def test_forward_mode_of_the_exponent(method):
    batch = matrices()
    exponent = torch.tensor([0.3, -0.7, 1.2], dtype=torch.float64)
    speed = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    _, change = torch.func.jvp(
        lambda p: covpool.matrix_power(batch, p, method), (exponent,), (speed,)
    )
    step = 1e-6
    plus, minus = (covpool.matrix_power(batch, exponent + s * step * speed) for s in (1.0, -1.0))
    torch.testing.assert_close(change, (plus - minus) / (2 * step), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("case", "method"), DECOMPOSING)
def test_vmap_and_per_sample_gradients(case, method):
    batch = matrices()
    function = of_symmetric(CASES[case], method)

    weights = weight(4)

    def loss(a):
        return (function(a) * weights).sum()

    torch.testing.assert_close(vmap(function)(batch), function(batch))
    each = vmap(torch.func.grad(loss))(batch)
    leaf = batch.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(each, expected)
    directions = batch.flip(0)
    each = vmap(lambda a, h: torch.func.jvp(function, (a,), (h,))[1])(batch, directions)
    torch.testing.assert_close(each, torch.func.jvp(function, (batch,), (directions,))[1])


def test_vmap_over_exponents():
    batch = matrices()
    exponent = torch.tensor([0.3, -0.7, 1.2], dtype=torch.float64)
    expected = covpool.matrix_power(batch, exponent)
    torch.testing.assert_close(vmap(covpool.matrix_power)(batch, exponent), expected)
    over_exponents = vmap(covpool.matrix_power, (None, 0))(batch[0], exponent)
    torch.testing.assert_close(over_exponents[0], expected[0])
    over_matrices = vmap(covpool.matrix_power, (0, None))(batch, exponent[0])
    torch.testing.assert_close(over_matrices[0], expected[0])
    grad = vmap(torch.func.grad(lambda p, a: covpool.matrix_power(a, p).sum()))(exponent, batch)
    leaf = exponent.clone().requires_grad_()
    (reference,) = torch.autograd.grad(covpool.matrix_power(batch, leaf).sum(), leaf)
    torch.testing.assert_close(grad, reference)


@quick.parametrize(
    ("case", "method"),
    [*((case, "exact") for case in CASES), ("inv_sqrt", "isqrt-cov")],
    keep=[("log", "exact"), ("inv_sqrt", "isqrt-cov")],
)
def test_compile_without_graph_breaks(case, method):
    batch = matrices().requires_grad_()
    function = of_symmetric(CASES[case], method)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(batch), function(batch))
    (graphed,) = torch.autograd.grad(compiled(batch).square().sum(), batch)
    (expected,) = torch.autograd.grad(function(batch).square().sum(), batch)
    torch.testing.assert_close(graphed, expected)


def test_compile_with_a_learnt_exponent():
    batch = matrices()
    layer = covpool.MatrixFunction(
        "power", exponent=torch.nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
    )
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(batch), layer(batch))
    (graphed,) = torch.autograd.grad(compiled(batch).square().sum(), layer.exponent)
    (expected,) = torch.autograd.grad(layer(batch).square().sum(), layer.exponent)
    torch.testing.assert_close(graphed, expected)


@pytest.mark.parametrize("case", [case for case in CASES if case != "sqrt"])
@pytest.mark.parametrize("last", ["matrix", "exponent"])
def test_third_derivatives_are_refused(case, last):
    matrix = TIES["separated"]().requires_grad_()
    exponent = None
    if case.startswith("power"):
        exponent = torch.tensor(float(case.split()[1]), dtype=torch.float64, requires_grad=True)
        result = covpool.matrix_power(matrix, exponent)
    else:
        result = CASES[case](matrix)
    wanted = matrix if last == "matrix" else exponent
    if wanted is None:
        pytest.skip("no exponent")
    derivative = result.square().sum()
    for _ in range(2):
        (derivative,) = torch.autograd.grad(derivative.sum(), wanted, create_graph=True)
    with pytest.raises(RuntimeError, match=r"the third derivative .* is not implemented"):
        torch.autograd.grad(derivative.sum(), wanted)


def test_third_derivative_of_the_root():
    matrix = TIES["tied-dense"]().requires_grad_()
    function = of_symmetric(covpool.matrix_sqrt)

    def first(a):
        return torch.autograd.grad(function(a).square().mul(weight(5)).sum(), a, create_graph=True)

    assert torch.autograd.gradgradcheck(lambda a: first(a)[0], (matrix,), fast_mode=True)


def test_third_derivative_of_the_root_is_refused_at_deficient_rank():
    regular = with_spectrum(np.array([0.5, 1.0, 2.0, 3.0]))
    singular = with_spectrum(np.array([0.0, 1.0, 2.0, 3.0]))
    batch = torch.stack([regular, singular]).requires_grad_()
    derivative = covpool.matrix_sqrt(batch).square().mul(weight(4)).sum()
    for _ in range(2):
        (derivative,) = torch.autograd.grad(derivative.sum(), batch, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no third derivative at deficient rank.*\[1\]"):
        torch.autograd.grad(derivative.sum(), batch)

    weights = weight(4)

    def loss(a):
        return covpool.matrix_sqrt((a + a.mT) / 2).mul(weights).sum()

    # Within transforms, where the rank cannot be read, it is NaN rather than wrong.
    assert hessian(loss)(singular).isfinite().all()
    assert not jacrev(jacrev(jacrev(loss)))(singular).isfinite().any()


@pytest.mark.parametrize("third", [jacfwd, jacrev], ids=["forward", "reverse"])
@pytest.mark.parametrize("second", [jacfwd, jacrev], ids=["forward", "reverse"])
def test_third_derivative_of_the_root_by_transforms(second, third):
    if second is third is jacfwd:
        pytest.skip("torch loses forward derivatives of a forward derivative's own (issue 197867)")
    matrix, weights, step = with_spectrum(np.array([0.5, 1.0, 2.0, 3.0])), weight(4), 1e-5

    def loss(a):
        return covpool.matrix_sqrt((a + a.mT) / 2).mul(weights).sum()

    along = weight(4, seed=3)
    along = along + along.mT
    ends = [hessian(loss)(matrix + sign * step * along) for sign in (1, -1)]
    found = (third(second(jacrev(loss)))(matrix) * along).sum((-2, -1))
    assert relative_error(found, (ends[0] - ends[1]) / (2 * step)) < 1e-7


@pytest.mark.parametrize(
    ("case", "method"), [pairing for pairing in DECOMPOSING if pairing[1] != "exact"]
)
def test_second_derivatives_of_biased_gradients_are_refused(case, method):
    matrix = SPECTRA["separated"]()
    message = f"'{method}' has no second derivative.*use method='exact'"

    def loss(a):
        return CASES[case](a, method).square().sum()

    leaf = matrix.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(first.sum(), leaf)
    with pytest.raises(RuntimeError, match=message):
        hessian(loss)(matrix)
    if case.startswith("power"):
        exponent = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        result = covpool.matrix_power(leaf, exponent, method).square().sum()
        (first,) = torch.autograd.grad(result, exponent, create_graph=True)
        with pytest.raises(RuntimeError, match=message):
            torch.autograd.grad(first, leaf)


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_kept_alive(case):
    """No reference cycle through what forward mode saves: results go with their last name."""
    gc.collect()
    gc.disable()
    try:
        matrix = TIES["separated"]().requires_grad_()
        result = CASES[case](matrix)
        (first,) = torch.autograd.grad(result.square().sum(), matrix, create_graph=True)
        references = [weakref.ref(result), weakref.ref(first), weakref.ref(result.grad_fn)]
        del result, first
        assert [reference() for reference in references] == [None, None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("name", METHODS["svd"].functions)
def test_layer_is_the_function(name):
    exponent = 0.3 if name == "power" else None
    layer = covpool.MatrixFunction(name, exponent=exponent)
    function = CASES["power 0.3" if name == "power" else name]
    batch = matrices().requires_grad_()
    torch.testing.assert_close(layer(batch), function(batch), rtol=0, atol=0)
    (first,) = torch.autograd.grad(layer(batch).square().sum(), batch, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), batch)
    copied = copy.deepcopy(layer)
    (first,) = torch.autograd.grad(copied(batch).square().sum(), batch, create_graph=True)
    (other,) = torch.autograd.grad(first.square().sum(), batch)
    torch.testing.assert_close(second, other, rtol=0, atol=0)


def test_layer_shows_what_it_does():
    layer = covpool.MatrixFunction("inv_sqrt", "isqrt-cov")
    assert repr(layer) == "MatrixFunction('inv_sqrt', method='isqrt-cov', iterations=5)"
    learnt = covpool.MatrixFunction("power", exponent=torch.nn.Parameter(torch.tensor(0.5)))
    assert repr(learnt) == (
        "MatrixFunction('power', method='exact', exponent=<0.5, parameter of shape ()>)"
    )
    fixed = covpool.MatrixFunction("power", exponent=torch.ones(3))
    assert "exponent=<buffer of shape (3,)>" in repr(fixed)
    assert "exponent=0.5" in repr(covpool.MatrixFunction("power", exponent=0.5))


def test_layer_learns_and_stores_its_exponent():
    layer = covpool.MatrixFunction("power", exponent=torch.nn.Parameter(torch.tensor(0.9)))
    batch = matrices().float()
    target = covpool.matrix_power(batch, 0.5)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        (layer(batch) - target).square().mean().backward()
        optimiser.step()
    assert abs(layer.exponent.item() - 0.5) < 0.02  # type: ignore[union-attr]
    other = covpool.MatrixFunction("power", exponent=torch.nn.Parameter(torch.tensor(0.1)))
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(batch), layer(batch))
    assert not covpool.MatrixFunction("log").state_dict()
    buffer = covpool.MatrixFunction("power", exponent=torch.tensor(0.25))
    assert list(buffer.state_dict()) == ["exponent"]
    assert buffer.double().exponent.dtype == torch.float64  # type: ignore[union-attr]


def test_layer_refuses_what_makes_no_sense():
    layer = covpool.MatrixFunction("log")
    layer.method = "svd-pade"
    with pytest.raises(ValueError, match="'isqrt-cov' does not offer 'log'"):
        layer.method = "isqrt-cov"
    assert layer.method.name == "svd-pade"
    for arguments, message in (
        ({"function": "cube"}, "unknown function 'cube'; choose from sqrt, inv_sqrt, power, log"),
        ({"function": "power"}, "function 'power' needs an exponent, got None"),
        ({"function": "log", "exponent": 2}, "function 'log' has no exponent, got 2"),
        ({"function": "power", "exponent": "2"}, "must be a number or a tensor, got '2'"),
        ({"compute_dtype": torch.float16}, "compute_dtype must be"),
        ({"method": "svd-pad"}, "did you mean 'svd-pade'"),
    ):
        with pytest.raises(ValueError, match=message):
            covpool.MatrixFunction(**arguments)
    with pytest.raises(ValueError, match=r"^MatrixFunction\('log'\): matrix singular"):
        layer(torch.zeros(2, 2))
