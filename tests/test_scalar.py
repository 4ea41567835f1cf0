"""Values and divided differences of the scalar functions, against mpmath.

Errors are relative to the difference, where that is bounded away from zero by its terms. Where f′
(or f″) changes its sign, the difference itself has zeros, and errors are relative to what it is a
mean of: the mean of |f′|, or that of |f″| with the B-spline's weight (Hermite, Genocchi, Peano).
"""

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import pytest
import torch
from mpmath import mpf

import quick
from covpool.linalg.elementwise import Elementwise
from covpool.linalg.functions import FUNCTIONS, POWER, Domain, Floored, ScalarFunction

GAPS = [0, 3e-16, 1e-15, 1e-14, 1e-12, 1e-9, 1e-6, 1e-3, 0.01, 0.03, 0.0313, 0.05, 0.1, 0.15, 0.2]
GAPS += [0.25, 0.3, 0.4, 0.49, 0.51, 0.6, 0.7, 0.8, 0.9, 0.999, 1 - 1e-6, 1 - 1e-12]
MAGNITUDES = [1e-150, 1e-60, 1e-8, 1e-3, 0.3, 1.1, 7.3, 300.0, 1e8, 1e60, 1e150]
# For triples, of which there are many.
FEWER_GAPS = [0, 3e-16, 1e-12, 1e-6, 0.03, 0.1, 0.2, 0.3, 0.95]
FEWER_MAGNITUDES = [1e-150, 1e-8, 0.3, 7.3, 300.0, 1e150]
EXPONENTS = [0, 1, 2, 0.5, -0.5, -1, 1 / 3, 1e-8, -1e-8, 1 + 1e-8, 1 - 1e-6, 1.5, 3.7, -2.3]


@dataclass(frozen=True)
class Case:
    """A function with its oracle, and what the size of its differences' terms takes."""

    function: ScalarFunction
    oracle: Callable
    first: float = 1e-13
    second: float = 1e-11
    first_size: Callable | None = None
    """What errors of first differences are relative to, given the points; None: themselves."""
    second_size: Callable | None = None
    saturates: bool = False
    """Whether f is constant to e^(−|λ|), which takes as many digits more."""
    floor: float = -math.inf
    """Up to which number f is constant: second differences are exactly zero there."""


def variation(f, zeros, start, end):
    """∫ |f′| from start to end, given the zeros of f′."""
    cuts = [start, *(z for z in zeros if start < z < end), end]
    return sum(abs(f(x) - f(y)) for x, y in itertools.pairwise(cuts))


def mean_slope(f, zeros):
    """The mean of |f′| between two points; `zeros` are those of f′."""

    def size(points):
        low, high = sorted(points)
        return variation(f, zeros(low, high), low, high) / (high - low)

    return size


def mean_curvature(f, slope, zeros):
    """∫ M |f″| with M the linear B-spline of three points, f[a, b, c] = ∫ M f″."""

    def size(points):
        c, b, a = sorted(points)
        inflections = zeros(c, a)
        rising = variation(lambda x: (x - c) * slope(x) - f(x), inflections, c, b) / (b - c)
        falling = variation(lambda x: (a - x) * slope(x) + f(x), inflections, b, a) / (a - b)
        return (rising + falling) / (a - c)

    return size


def at(*zeros):
    return lambda low, high: [mpmath.mpf(zero()) for zero in zeros]


def multiples_of_pi(shift):
    """Of shift + kπ; none in long intervals, where they are too many."""

    def zeros(low, high):
        start, end = (x / mpmath.pi - shift for x in (low, high))
        count = end - start if end - start < 100 else 0
        return [(mpmath.ceil(start) + k + shift) * mpmath.pi for k in range(int(count) + 1)]

    return zeros


def with_rounded_points(size):
    """What the rounding of nodes adds for a function that oscillates: |x| times one derivative."""
    return lambda points: (
        1 if max(points) - min(points) > 100 else size(points) + max(map(abs, points))
    )


def softplus(x):
    return mpmath.log1p(mpmath.exp(x)) if x < 0 else x + mpmath.log1p(mpmath.exp(-x))


def rational(x):
    return x / (1 + x * x)


ORACLES = {
    "sqrt": mpmath.sqrt,
    "inv_sqrt": lambda x: 1 / mpmath.sqrt(x),
    "log": mpmath.log,
    "exp": mpmath.exp,
    "inverse": lambda x: 1 / x,
    "sign": mpmath.sign,
    "abs": abs,
    "positive_part": lambda x: max(x, mpf(0)),
    "softplus": softplus,
    "tanh": mpmath.tanh,
    "entropy": lambda x: -x * mpmath.log(x),
}
# What is asked of those that are in use for long.
TIGHT = {"first": 2e-15, "second": 5e-13}
CONDITIONS = {
    "sqrt": TIGHT,
    "inv_sqrt": TIGHT,
    "log": TIGHT,
    "softplus": {"saturates": True},
    "tanh": {
        "saturates": True,
        "second_size": mean_curvature(mpmath.tanh, lambda x: mpmath.sech(x) ** 2, at(lambda: 0)),
    },
    # −(log a + b log[a, b]), which has a zero near 1/e.
    "entropy": {"first_size": lambda points: abs(mpmath.log(max(points))) + 1},
}


def parametrised(name, p, oracle, **conditions):
    function = FUNCTIONS[name].bind(torch.tensor(p, dtype=torch.float64))
    return Case(function, oracle, **conditions)


CASES = {
    name: Case(FUNCTIONS[name], oracle, **CONDITIONS.get(name, {}))
    for name, oracle in ORACLES.items()
}
CASES |= {
    f"power {p:.9g}": parametrised("power", p, lambda x, p=p: x ** mpf(p), **TIGHT)
    for p in EXPONENTS[2:]
}
CASES |= {
    f"inv_root {p}": parametrised("inv_root", p, lambda x, p=p: x ** (-1 / mpf(p)))
    for p in (1, 2, 3, 4, 7)
}
CASES |= {
    f"clamp_min {p}": parametrised("clamp_min", p, lambda x, p=p: max(x, mpf(p)))
    for p in (0.002, -0.25)
}


def floored(function, floor, oracle, **conditions):
    """f(max(x, floor)); second differences have a zero, and errors are relative to their terms."""

    def terms(points):
        points = sorted(points, reverse=True)
        clamped = [max(x, mpf(floor)) for x in points]
        a, b, c = clamped
        if a == b:
            return mpf(0)
        first = (oracle(a) - oracle(b)) / (a - b) * difference(clamped, points)
        if b == c:
            return abs(first)
        slopes = (b - c) / (points[1] - points[2]) * (a - c) / (points[0] - points[2])
        return abs(first) + abs(difference([oracle(x) for x in clamped], clamped) * slopes)

    return Case(
        Floored(function, torch.tensor(floor, dtype=torch.float64)),
        lambda x: oracle(max(x, mpf(floor))),
        second_size=terms,
        floor=floor,
        **conditions,
    )


CASES |= {
    "log, floor 0.002": floored(FUNCTIONS["log"], 0.002, mpmath.log),
    "log, floor 1e-100": floored(FUNCTIONS["log"], 1e-100, mpmath.log),
    "inv_sqrt, floor 1.5": floored(FUNCTIONS["inv_sqrt"], 1.5, ORACLES["inv_sqrt"]),
    "power 0.3, floor 1e-20": floored(
        parametrised("power", 0.3, None).function, 1e-20, lambda x: x ** mpf(0.3)
    ),
    "power -2.3, floor 0.4": floored(
        parametrised("power", -2.3, None).function, 0.4, lambda x: x ** mpf(-2.3)
    ),
    "softplus, floor 0.25": floored(FUNCTIONS["softplus"], 0.25, softplus, saturates=True),
}
# A user's own: f alone is given.
CASES |= {
    "own x/(1 + x²)": Case(
        Elementwise(lambda x: x / (1 + x * x)),
        rational,
        first_size=mean_slope(rational, at(lambda: -1, lambda: 1)),
        second_size=mean_curvature(
            rational,
            lambda x: (1 - x * x) / (1 + x * x) ** 2,
            at(lambda: -mpmath.sqrt(3), lambda: 0, lambda: mpmath.sqrt(3)),
        ),
    ),
    "own log(1 + x²)": Case(
        Elementwise(lambda x: torch.log1p(x * x)),
        lambda x: mpmath.log1p(x * x),
        first_size=mean_slope(lambda x: mpmath.log1p(x * x), at(lambda: 0)),
        second_size=mean_curvature(
            lambda x: mpmath.log1p(x * x), lambda x: 2 * rational(x), at(lambda: -1, lambda: 1)
        ),
    ),
    "own sin": Case(
        Elementwise(torch.sin),
        mpmath.sin,
        first_size=with_rounded_points(mean_slope(mpmath.sin, multiples_of_pi(mpf(0.5)))),
        second_size=with_rounded_points(
            mean_curvature(mpmath.sin, mpmath.cos, multiples_of_pi(mpf(0)))
        ),
    ),
    "own exp": Case(Elementwise(torch.exp), mpmath.exp),
}
PIECEWISE = {"abs": 0.0, "sign": 0.0, "positive_part": 0.0, "clamp_min 0.002": 0.002}
PIECEWISE["clamp_min -0.25"] = -0.25


def lower(x: float, gap: float) -> float:
    """x (1 − gap), or the next number below x where the gap is a rounding."""
    return x * (1 - gap) if gap == 0 or gap > 5e-16 else math.nextafter(x, 0)


def with_signs(points: list[tuple[float, ...]], domain: Domain) -> list[tuple[float, ...]]:
    """The points, and where the domain has them, those of other signs. In descending order."""
    every = list(points)
    if domain.has_negative:
        for shift, signs in enumerate(itertools.product((1, -1), repeat=len(points[0]))):
            # Of each choice of signs a part, as there are many.
            some = points[shift :: 3 * len(signs) - 4]
            every += [tuple(s * x for s, x in zip(signs, point, strict=True)) for point in some]
    return [tuple(sorted(point, reverse=True)) for point in every]


def pairs(domain: Domain) -> list[tuple[float, ...]]:
    found = [(x, lower(x, gap)) for x in MAGNITUDES for gap in GAPS]
    found += list(itertools.combinations(MAGNITUDES, 2))
    if domain is Domain.REAL:
        found += [(x, 0.0) for x in MAGNITUDES]
    return with_signs(found, domain)


def triples(domain: Domain) -> list[tuple[float, ...]]:
    found = []
    for x, first, second in itertools.product(FEWER_MAGNITUDES, FEWER_GAPS, FEWER_GAPS):
        middle = lower(x, first)
        found.append((x, middle, lower(middle, second)))
    draw = random.Random(0)
    found += [tuple(draw.choices(MAGNITUDES, k=3)) for _ in range(60)]
    return with_signs(found, domain)


def apart(points: tuple[float, ...]) -> list:
    """As mpmath numbers, those that coincide moved apart by 1e-25: confluent differences are their
    limits, to 25 digits."""
    found: list = []
    for point in points:
        x = mpf(point)
        step = min(abs(x), mpf(1)) / mpf(10) ** 25
        while any(abs(x - y) <= step / 10 for y in found):
            x = x + step
        found.append(x)
    return found


def digits(points: tuple[float, ...], saturates: bool) -> int:
    """How many the raw quotients need to have 30 left."""
    sizes = [abs(x) for x in points if x]
    gaps = [abs(x - y) or min(1.0, abs(x)) * 1e-25 for x, y in itertools.combinations(points, 2)]
    lost = math.log10(max(1.0, *sizes)) - math.log10(min(gaps + sizes))
    return round(80 + 2 * lost + (max(min(x, 320.0) for x in sizes) if saturates else 0))


def difference(values, points):
    """Σᵢ f(xᵢ) / Πⱼ (xᵢ − xⱼ)."""
    return mpmath.fsum(
        value / mpmath.fprod(x - y for j, y in enumerate(points) if j != i)
        for i, (value, x) in enumerate(zip(values, points, strict=True))
    )


def worst_error(case: Case, points: list[tuple[float, ...]], actual: torch.Tensor, size) -> float:
    worst, counted = 0.0, 0
    for point, found in zip(points, actual.tolist(), strict=True):
        with mpmath.workdps(digits(point, case.saturates)):
            exact = apart(point)
            values = [case.oracle(x) for x in exact]
            if not mpf(10) ** -307 < max(map(abs, values)) < mpf(10) ** 307:
                continue  # f itself overflows or underflows
            expected = difference(values, exact)
            scale = max(abs(expected), size(exact) if size else mpf(0))
            if scale > mpf(10) ** 307:
                continue  # the difference overflows
            if scale < mpf(10) ** -300:
                assert abs(found) < 1e-290, (point, found)
                continue  # it underflows, and then is nearly zero
            counted += 1
            error = float(abs(found - expected) / scale)
        assert not math.isnan(error), (point, found)
        worst = max(worst, error)
    assert counted >= len(points) / 4
    return worst


@pytest.mark.parametrize("name", CASES)
def test_value(name, note_error):
    case = CASES[name]
    points = [(x,) for x in MAGNITUDES] + [(1.5 * x,) for x in MAGNITUDES]
    if case.function.domain.has_negative:
        points += [(-x,) for (x,) in points]
    actual = case.function.value(torch.tensor(points, dtype=torch.float64)[:, 0])
    worst = 0.0
    for (point,), found in zip(points, actual.tolist(), strict=True):
        with mpmath.workdps(200):
            expected = case.oracle(mpf(point))
            if abs(expected) > mpf(10) ** 308:
                assert found == math.inf
            elif abs(expected) < mpf(10) ** -308:
                assert abs(found) < 1e-307
            else:
                worst = max(worst, float(abs(found - expected) / abs(expected)))
    assert note_error("scalar value", name, worst) <= 1e-14


@pytest.mark.parametrize("name", CASES)
def test_first_divided_difference(name, note_error):
    case = CASES[name]
    points = pairs(case.function.domain)
    if name in PIECEWISE or name == "own log(1 + x²)":
        points = [point for point in points if point != (0.0, 0.0)]
    actual = case.function.divided_difference(*torch.tensor(points, dtype=torch.float64).T)
    worst = worst_error(case, points, actual, case.first_size)
    assert note_error("first difference", name, worst) <= case.first


@quick.parametrize(
    "name",
    CASES,
    keep=[
        *("sqrt", "log", "exp", "inverse", "abs", "softplus", "tanh", "entropy"),
        *("power 1.00000001", "power -2.3", "inv_root 3", "clamp_min 0.002"),
        *("log, floor 0.002", "own x/(1 + x²)"),
    ],
)
def test_second_divided_difference(name, note_error):
    case = CASES[name]
    points = triples(case.function.domain)
    kink = PIECEWISE.get(name)
    if kink is not None:
        straight = [p for p in points if p[0] <= kink or p[-1] >= kink]
        on_one_piece = torch.tensor(straight, dtype=torch.float64).T
        assert not case.function.second_divided_difference(*on_one_piece).any()
        points = [p for p in points if p not in set(straight)]
    constant = [p for p in points if p[0] <= case.floor]
    if constant:
        below = torch.tensor(constant, dtype=torch.float64).T
        assert not case.function.second_divided_difference(*below).any()
        points = [p for p in points if p[0] > case.floor]
    actual = case.function.second_divided_difference(*torch.tensor(points, dtype=torch.float64).T)
    worst = worst_error(case, points, actual, case.second_size)
    assert note_error("second difference", name, worst) <= case.second


def test_differences_of_powers_0_and_1():
    """Zero, to the rounding of their terms."""
    a, b = torch.tensor(pairs(Domain.POSITIVE), dtype=torch.float64).T
    assert not bound(POWER, 0).divided_difference(a, b).any()
    torch.testing.assert_close(bound(POWER, 1).divided_difference(a, b), torch.ones_like(a))
    a, b, c = torch.tensor(triples(Domain.POSITIVE), dtype=torch.float64).T
    for p in (0, 1):
        actual = bound(POWER, p).second_divided_difference(a, b, c)
        assert (actual.abs() * a ** (1 - p) * b).max() <= 1e-13


@pytest.mark.parametrize("name", ["sqrt", "inv_sqrt", "log", "entropy", "inverse", "sign"])
def test_differences_of_what_vanishes_near_zero(name):
    """Where the derivative at zero is not finite, f counts as 0 near zero."""
    function = FUNCTIONS[name]
    zero, a, b = torch.tensor([[0.0], [3.0], [0.7]], dtype=torch.float64)
    value = function.value
    close = {"rtol": 1e-13, "atol": 1e-15}
    assert value(zero).item() == 0
    pair = torch.tensor([0.0, 3.0], dtype=torch.float64)
    loewner = function.loewner(pair)
    assert loewner[0, 0].item() == 0
    torch.testing.assert_close(loewner[1, :1], value(a) / a, **close)
    difference = function.second_divided_difference
    expected = (function.divided_difference(a, b) - value(b) / b) / a
    torch.testing.assert_close(difference(a, b, zero), expected, **close)
    torch.testing.assert_close(difference(a, zero, zero), value(a) / a**2, **close)
    assert difference(zero, zero, zero).item() == 0


@pytest.mark.parametrize("name", ["inverse", "sign"])
def test_differences_around_zero_of_odd_functions(name):
    """f counts as 0 near zero, between eigenvalues of either sign too."""
    function = FUNCTIONS[name]
    zero, a, b = torch.tensor([[0.0], [3.0], [-0.7]], dtype=torch.float64)
    value, difference = function.value, function.second_divided_difference
    for outer in (a, b):
        first = function.divided_difference(torch.maximum(outer, zero), torch.minimum(outer, zero))
        torch.testing.assert_close(first, value(outer) / outer)
    expected = (value(a) / a - value(b) / b) / (a - b)
    torch.testing.assert_close(difference(a, zero, b), expected)
    torch.testing.assert_close(difference(zero, zero, b), value(b) / b**2)


def bound(function: ScalarFunction, p: float | None) -> ScalarFunction:
    return function if p is None else function.bind(torch.tensor(p, dtype=torch.float64))


@quick.parametrize("scale", [1e-200, 1e-3, 1.0, 7.3, 1e200], keep=[1e-3])
@pytest.mark.parametrize("p", EXPONENTS)
def test_first_divided_difference_of_the_exponents_derivative(p, scale, note_error):
    """λ^p log λ: errors relative to its terms, as its own derivative has a zero."""
    if not (0 <= p < 1.6 or (abs(p) < 0.1 and scale > 1e-100)) and not 1e-3 <= scale <= 10:
        pytest.skip("the power itself overflows")
    rate = POWER.rate
    assert rate is not None
    worst, exponent = 0.0, mpmath.mpf(p)
    for gap in GAPS[:-1]:
        a, b = torch.tensor([[scale], [lower(scale, gap)]], dtype=torch.float64)
        actual = bound(rate, p).divided_difference(a, b).item()
        with mpmath.workdps(digits((a.item(), b.item()), saturates=False)):
            points = apart((a.item(), b.item()))
            expected = difference([x**exponent * mpmath.log(x) for x in points], points)
            power = difference([x**exponent for x in points], points)
            other = points[1] ** exponent * difference([mpmath.log(x) for x in points], points)
            terms = abs(mpmath.log(points[0]) * power) + abs(other)
            worst = max(worst, float(abs(actual - expected) / terms))
    assert note_error("first difference", rate.name, worst) <= 2e-15


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


def test_nan_stays_nan():
    nan = torch.tensor([torch.nan], dtype=torch.float64)
    for name, function in FUNCTIONS.items():
        chosen = bound(function, None if function.parameter is None else 0.5)
        assert chosen.value(nan).isnan().all(), name


def test_exponents_are_given_where_they_belong():
    with pytest.raises(TypeError, match="power needs its exponent"):
        POWER.value(torch.ones(1))
    with pytest.raises(TypeError, match="power needs its exponent"):
        POWER.bind(None)
    with pytest.raises(TypeError, match=r"log has no parameter, got tensor\(1\.\)"):
        FUNCTIONS["log"].bind(torch.ones(()))
