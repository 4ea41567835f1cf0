"""Any scalar function of a matrix: derivatives at exact ties, and a user's own under transforms."""

import itertools
import math

import pytest
import scipy.linalg
import torch
from torch import Tensor

import quick
from covpool.linalg.autograd.lift import lift
from covpool.linalg.elementwise import Elementwise
from covpool.linalg.engine.symmetric import EIGENDECOMPOSITION
from covpool.linalg.functions import FUNCTIONS, Domain, ScalarFunction
from covpool.linalg.methods import METHODS
from covpool.linalg.quadrature import RULE, mean

OWN = {
    "own x/(1 + x²)": Elementwise(lambda x: x / (1 + x * x)),
    "own log(1 + x²)": Elementwise(lambda x: torch.log1p(x * x)),
    "own sin": Elementwise(torch.sin),
}
EVERY = {**FUNCTIONS, **OWN}
PARAMETERS = {"power": 0.3, "inv_root": 3.0, "clamp_min": 0.8}


def matrix_function(matrix: Tensor, function: ScalarFunction, parameter: Tensor | None = None):
    """f(A) by the exact method."""
    symmetric = (matrix + matrix.mT) / 2
    eigenvalues, eigenvectors = EIGENDECOMPOSITION(symmetric)
    clipped = function.clip(eigenvalues, matrix.shape[-1])
    function, parameter = function.canonical(parameter)
    if parameter is not None:
        parameter = parameter.expand(matrix.shape[:-2])
    return lift(symmetric, parameter, clipped, eigenvectors, function, METHODS["exact"])


def with_eigenvalues(*eigenvalues: float) -> Tensor:
    """A dense matrix of four eigenvalues, without any rounding."""
    basis = torch.from_numpy(scipy.linalg.hadamard(4) / 2.0)
    return (basis * torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T


@quick.whole_jacobians
@pytest.mark.parametrize("eigenvalues", [(0, 0, 1, 1), (0, 0, 0, 0), (0, 0, 0, 1)])
@pytest.mark.parametrize("name", EVERY)
def test_gradients_at_ties(name, eigenvalues, fast_mode):
    function = EVERY[name]
    choice = (-1.5, 0.5) if function.domain.has_negative else (0.5, 2.0)
    if name in OWN and eigenvalues != (0, 0, 0, 1):
        pytest.skip("slow, and one tie shows what there is to see")
    matrix = with_eigenvalues(*(choice[i] for i in eigenvalues)).requires_grad_()
    inputs = [matrix]
    if name in PARAMETERS:
        inputs.append(torch.tensor(PARAMETERS[name], dtype=torch.float64, requires_grad=True))

    def call(matrix, parameter=None):
        return matrix_function(matrix, function, parameter)

    assert torch.autograd.gradcheck(call, inputs, fast_mode=fast_mode)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=fast_mode)


@pytest.mark.parametrize("name", ["exp", "tanh", "softplus", "abs", "sign", "inverse"])
def test_a_users_own_is_the_named_function(name):
    """Values and both derivatives, in a batch of ties, near ties, gaps and signs."""
    own = {
        "abs": torch.abs,
        "exp": torch.exp,
        "inverse": torch.reciprocal,
        "sign": torch.sign,
        "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
        "tanh": torch.tanh,
    }[name]
    x = torch.tensor(
        [[-3.0, -3.0, -1.0, 0.5, 0.5, 2.0], [-1.0, -1 + 1e-9, 0.3, 0.31, 0.31 + 1e-14, 40.0]],
        dtype=torch.float64,
    )
    named, general = FUNCTIONS[name], Elementwise(own)
    close = {"rtol": 1e-11, "atol": 1e-14}
    torch.testing.assert_close(general.value(x), named.value(x), **close)
    torch.testing.assert_close(general.loewner(x), named.loewner(x), **close)
    triple = x[:, [5, 4, 3]], x[:, [4, 3, 2]], x[:, [2, 3, 0]]
    for a, b, c in zip(*triple, strict=True):
        actual = general.second_divided_difference(a, b, c)
        torch.testing.assert_close(
            actual, named.second_divided_difference(a, b, c), rtol=1e-11, atol=1e-13
        )


def test_a_users_own_under_transforms():
    own, named = Elementwise(torch.exp), FUNCTIONS["exp"]
    batch = torch.stack([with_eigenvalues(-1, -1, 0.5, 2), with_eigenvalues(1, 1, 1, 1)])

    def loss(function):
        return lambda a: matrix_function(a, function).pow(3).sum()

    for transform in (
        lambda f: torch.func.vmap(torch.func.grad(f)),
        lambda f: torch.func.vmap(torch.func.hessian(f)),
        lambda f: torch.func.grad(lambda a: torch.func.vmap(f)(a).sum()),
        lambda f: torch.func.jacrev(torch.func.jacrev(lambda a: f(a[0]))),
        lambda f: lambda a: torch.func.jvp(f, (a,), (torch.ones_like(a),))[1],
    ):
        actual, expected = transform(loss(own))(batch), transform(loss(named))(batch)
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def test_a_users_own_in_float32():
    x = torch.tensor([-2.0, 0.5, 0.5, 0.5000001, 1.0])
    own, named = Elementwise(torch.exp), FUNCTIONS["exp"]
    for actual, expected in (
        (own.loewner(x), named.loewner(x.double())),
        (own.confluent_difference(x[:, None], x), named.confluent_difference(*_pairs(x))),
    ):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected.float(), rtol=1e-6, atol=0)


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.double()[:, None].expand(5, 5), x.double().expand(5, 5)


def test_a_users_own_keeps_no_graph():
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    own = Elementwise(lambda x: torch.tanh(weight * x))
    x = torch.linspace(-1, 1, 4, dtype=torch.float64)
    pair = x[:, None], x
    for result in (
        own.value(x),
        own.loewner(x),
        own.divided_difference(*pair),
        own.confluent_difference(*pair),
    ):
        assert not result.requires_grad


def test_what_a_users_own_must_be():
    x = torch.ones(2, 3, dtype=torch.float64)
    for f, got in (
        (lambda x: x.sum(-1), r"got \(2,\) of torch.float64"),
        (lambda x: x.float(), r"got \(2, 3\) of torch.float32"),
        (lambda x: 3, "got 3"),
    ):
        with pytest.raises(ValueError, match=r"^f must give .* \(2, 3\) of torch.float64, " + got):
            Elementwise(f, name="f").value(x)
    assert Elementwise(torch.sin).name == "sin"


def test_what_is_clipped():
    """Rounding errors of zero where that is a special place, and what the domain does not have."""
    x = torch.tensor([-1e-17, 1e-17, 1.0, torch.nan], dtype=torch.float64)
    for function, expected in (
        (FUNCTIONS["exp"], [-1e-17, 1e-17, 1.0]),
        (FUNCTIONS["sign"], [0, 0, 1.0]),
        (FUNCTIONS["log"], [0, 0, 1.0]),
        (Elementwise(torch.sin, domain=Domain.NONNEGATIVE), [0, 1e-17, 1.0]),
    ):
        assert function.clip(x[:3], 3).tolist() == expected
        assert function.clip(x, 4)[3].isnan()
    negative = torch.tensor([-1.0, 0.5], dtype=torch.float64)
    assert FUNCTIONS["sqrt"].clip(negative, 2).tolist() == [0, 0.5]
    assert FUNCTIONS["inverse"].clip(negative, 2).tolist() == [-1.0, 0.5]


def test_where_functions_are_defined():
    zero = {name: f.defined_at_zero() for name, f in FUNCTIONS.items()}
    assert {name for name, defined in zero.items() if not defined} == {
        "inv_sqrt",
        "log",
        "inverse",
        "inv_root",
        "sign",
    }
    p = torch.tensor([-1.0, 0.0, 2.0])
    assert FUNCTIONS["power"].defined_at_zero(p).tolist() == [False, False, True]
    assert FUNCTIONS["inv_root"].defined_at_zero(p).tolist() == [True, False, False]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_equations_hold(name):
    """What the residual measures is zero for f(A) and not for another matrix."""
    function = FUNCTIONS[name]
    choice = (-1.5, 3.0) if function.domain.has_negative else (0.5, 3.0)
    matrix = with_eigenvalues(choice[0], choice[1], 1.0, 1.0)
    parameter = PARAMETERS.get(name)
    if parameter is not None:
        parameter = torch.tensor(parameter, dtype=torch.float64)
    result = matrix_function(matrix, function, parameter)
    identity, scale = torch.eye(4, dtype=torch.float64), matrix.abs().amax().reshape(1, 1)
    equation = function.equation(matrix, result, lambda: identity, scale)
    if equation is None:
        return
    torch.testing.assert_close(*equation, rtol=0, atol=1e-13)
    actual, expected = function.equation(matrix, result + identity, lambda: identity, scale)
    assert (actual - expected).abs().max() > 0.1


def test_the_rule_is_exact_for_polynomials():
    """Kronrod's 15 nodes to degree 23, Gauss's 7 among them to degree 13, and no further."""
    for column, degree in ((1, 23), (2, 13)):
        for power in range(degree + 1):
            total = math.fsum(node[column] * node[0] ** power for node in RULE)
            assert total == pytest.approx(1 / (power + 1), rel=2e-15)
        beyond = math.fsum(node[column] * (2 * node[0] - 1) ** (degree + 1) for node in RULE)
        assert abs(beyond - 1 / (degree + 2)) > 1e-9


def test_the_mean_and_its_error():
    x = torch.tensor([1.0, 2.0, 0.3], dtype=torch.float64)
    y = torch.tensor([1.0, 1.0, 0.2], dtype=torch.float64)
    value, error = mean(torch.exp, x, y)
    assert ((value - FUNCTIONS["exp"].divided_difference(x, y)).abs() <= 2 * error).all()
    assert (error <= 1e-14).all()
    # One group of nodes at a time gives the same.
    one = torch.ones(2**20, dtype=torch.float64)
    value, _ = mean(torch.exp, 2 * one, one, power=1)
    torch.testing.assert_close(value[:1], mean(torch.exp, 2 * one[:1], one[:1], power=1)[0])
    # A kink is noticed.
    value, error = mean(torch.sign, x[:1], -2 * x[:1])
    assert error > 1e-3


@pytest.mark.parametrize("name", EVERY)
def test_second_differences_of_a_spectrum(name):
    """For every triple what the function of three numbers gives, ties included."""
    function = EVERY[name]
    if name in PARAMETERS:
        function = function.bind(torch.tensor([0.5, 2.0], dtype=torch.float64))
    x = torch.tensor([[0.1, 0.7, 0.7, 3.0], [0.2, 0.21, 0.2100001, 9.0]], dtype=torch.float64)
    if function.domain.has_negative:
        x = x - 0.5
    for middle, values in enumerate(function.second_differences(x)):
        for i, j in itertools.product(range(4), range(4)):
            triple = sorted((i, j, middle), reverse=True)
            expected = function.second_divided_difference(*(x[:, k] for k in triple))
            torch.testing.assert_close(values[:, i, j], expected, rtol=1e-12, atol=1e-14)
