"""Divided differences of the scalar functions, against mpmath at 120 digits."""

import itertools

import mpmath
import pytest
import torch

from covpool.linalg.scalar import FUNCTIONS, POWER, ScalarFunction

GAPS = [0, 3e-16, 1e-14, 1e-12, 1e-9, 1e-6, 1e-3, 0.01, 0.03, 0.0313, 0.05, 0.1, 0.2, 0.24]
GAPS += [0.3, 0.49, 0.51, 0.9, 0.999, 1 - 1e-6, 1 - 1e-12]
EXPONENTS = [0, 1, 2, 0.5, -0.5, -1, 1 / 3, 1e-8, -1e-8, 1 + 1e-8, 1 - 1e-6, 1.5, 3.7, -2.3]
CASES = [(name, None) for name in FUNCTIONS if name != "power"]
CASES += [("power", p) for p in EXPONENTS]

ORACLES = {
    "sqrt": lambda x, p: mpmath.sqrt(x),
    "inv_sqrt": lambda x, p: 1 / mpmath.sqrt(x),
    "log": lambda x, p: mpmath.log(x),
    "power": lambda x, p: x**p,
    "power · log": lambda x, p: x**p * mpmath.log(x),
}


def bound(function: ScalarFunction, p: float | None) -> ScalarFunction:
    return function if p is None else function.bind(torch.tensor(p, dtype=torch.float64))


def below(x: torch.Tensor, gap: float) -> torch.Tensor:
    """x (1 − gap), or the next number below x where the gap is a rounding."""
    if gap == 0:
        return x
    return x * (1 - gap) if gap > 1e-15 else torch.nextafter(x, torch.zeros_like(x))


def apart(*points: torch.Tensor) -> list:
    """As mpmath numbers, those that coincide moved apart by 1e-25 of themselves: confluent
    differences are their limits, to 25 digits."""
    found: list = []
    for point in points:
        x = mpmath.mpf(point.item())
        while any(abs(x - y) < abs(x) * mpmath.mpf(10) ** -26 for y in found):
            x = x * (1 + mpmath.mpf(10) ** -25)
        found.append(x)
    return found


def difference(f, *points):
    """Σᵢ f(xᵢ) / Πⱼ (xᵢ − xⱼ)."""
    return mpmath.fsum(
        f(x) / mpmath.fprod(x - y for j, y in enumerate(points) if j != i)
        for i, x in enumerate(points)
    )


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1.0, 7.3, 1e200])
@pytest.mark.parametrize(("name", "p"), CASES)
def test_first_divided_difference(name, p, scale, note_error):
    if p is not None and abs(p) >= 2 and not 1e-3 <= scale <= 10:
        pytest.skip("the power itself overflows")
    worst = 0.0
    for gap in GAPS[:-1]:
        a = torch.tensor([scale], dtype=torch.float64)
        b = below(a, gap)
        actual = bound(FUNCTIONS[name], p).divided_difference(a, b).item()
        with mpmath.workdps(120):
            expected = difference(lambda x: ORACLES[name](x, mpmath.mpf(p or 0)), *apart(a, b))
            if expected and not 1e-300 < abs(expected) < 1e307:
                continue  # beyond float64
            error = abs(actual - expected) / abs(expected) if expected else abs(actual)
        worst = max(worst, float(error))
    assert note_error("first difference", name, worst) <= 1e-15


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1.0, 7.3, 1e200])
@pytest.mark.parametrize("p", EXPONENTS)
def test_first_divided_difference_of_the_exponents_derivative(p, scale, note_error):
    """λ^p log λ: errors relative to its terms, as its own derivative has a zero."""
    if not (0 <= p < 1.6 or (abs(p) < 0.1 and scale > 1e-100)) and not 1e-3 <= scale <= 10:
        pytest.skip("the power itself overflows")
    rate = POWER.rate
    assert rate is not None
    worst, exponent = 0.0, mpmath.mpf(p)
    for gap in GAPS[:-1]:
        a = torch.tensor([scale], dtype=torch.float64)
        b = below(a, gap)
        actual = bound(rate, p).divided_difference(a, b).item()
        with mpmath.workdps(120):
            points = apart(a, b)
            expected = difference(lambda x: ORACLES["power · log"](x, exponent), *points)
            power = difference(lambda x: x**exponent, *points)
            other = points[1] ** exponent * difference(mpmath.log, *points)
            terms = abs(mpmath.log(points[0]) * power) + abs(other)
            worst = max(worst, float(abs(actual - expected) / terms))
    assert note_error("first difference", rate.name, worst) <= 2e-15


@pytest.mark.parametrize("scale", [1e-60, 1.0, 7.3, 1e60])
@pytest.mark.parametrize(("name", "p"), [case for case in CASES if case[0] != "sqrt"])
def test_second_divided_difference(name, p, scale, note_error):
    if p == -2.3 and scale == 1e-60:
        pytest.skip("the difference itself overflows")
    worst = 0.0
    for first, second in itertools.product(GAPS, GAPS):
        a = torch.tensor([scale], dtype=torch.float64)
        b = below(a, first)
        c = below(b, second)
        actual = bound(FUNCTIONS[name], p).second_divided_difference(a, b, c).item()
        with mpmath.workdps(120):
            points = apart(a, b, c)
            expected = difference(lambda x: ORACLES[name](x, mpmath.mpf(p or 0)), *points)
            if p in (0, 1):  # exactly zero; the confluent oracle's own error is 1e-25 of the scale
                error = abs(actual) * points[0] ** (2 - p)
            else:
                error = abs(actual - expected) / abs(expected)
        worst = max(worst, float(error))
    # The quotient of first differences loses the digits of 1/NEAR_TIE = 32.
    assert note_error("second difference", name, worst) <= 1e-13


@pytest.mark.parametrize("p", EXPONENTS)
def test_differences_with_zeros_follow_the_convention(p):
    """f counts as 0 near 0; where f′(0) or f″(0) is finite, it is taken."""
    power = bound(POWER, p)
    zero, a, b = torch.tensor([[0.0], [3.0], [0.7]], dtype=torch.float64)
    close = {"rtol": 1e-13, "atol": 1e-15}

    def f(x):
        return x**p

    torch.testing.assert_close(power.value(zero), zero)
    torch.testing.assert_close(power.divided_difference(a, zero), f(a) / a, **close)
    at_zero = power.divided_difference_at_zero(zero[:, None, None])
    assert at_zero.item() == (1 if p == 1 else 0)
    expected = (power.divided_difference(a, b) - f(b) / b) / a
    torch.testing.assert_close(
        power.second_divided_difference(a, b, zero), expected, rtol=1e-6, atol=1e-12
    )
    expected = (f(a) / a - at_zero.flatten()) / a
    torch.testing.assert_close(power.second_divided_difference(a, zero, zero), expected, **close)
    triple = power.second_divided_difference(zero, zero, zero)
    assert triple.item() == (1 if p == 2 else 0)


@pytest.mark.parametrize("name", ["inv_sqrt", "log"])
def test_differences_with_zeros_of_singular_functions(name):
    function = FUNCTIONS[name]
    zero, a, b = torch.tensor([[0.0], [3.0], [0.7]], dtype=torch.float64)
    value = function.value
    assert value(zero).item() == 0
    assert not function.divided_difference_at_zero(zero[:, None, None]).any()
    torch.testing.assert_close(function.divided_difference(a, zero), value(a) / a)
    expected = (function.divided_difference(a, b) - value(b) / b) / a
    torch.testing.assert_close(function.second_divided_difference(a, b, zero), expected)
    torch.testing.assert_close(function.second_divided_difference(a, zero, zero), value(a) / a**2)
    assert function.second_divided_difference(zero, zero, zero).item() == 0


def test_nan_stays_nan():
    nan = torch.tensor([torch.nan], dtype=torch.float64)
    for name, function in FUNCTIONS.items():
        chosen = bound(function, 0.5 if name == "power" else None)
        assert chosen.value(nan).isnan().all(), name


def test_exponents_are_given_where_they_belong():
    with pytest.raises(TypeError, match="power needs an exponent"):
        POWER.value(torch.ones(1))
    with pytest.raises(TypeError, match="power needs an exponent"):
        POWER.bind(None)
    with pytest.raises(TypeError, match="log has no exponent"):
        FUNCTIONS["log"].bind(torch.ones(()))
