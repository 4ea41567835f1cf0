"""Scalar functions f that are lifted to symmetric matrices, f(A) = V f(Λ) Vᵀ.

A function is a class in the file of its family and a row of the table here; `Elementwise`
(elementwise.py) makes one of any torch function. What the rest of the package has to know about a
function is a member of it. Everything is evaluated without the cancellation of the raw quotients,
at ties too. With u = log(a/b), which log1p gives to full precision where a ≈ b,

    log[a, b] = u / (a − b),    power[a, b] = a^p (1 − e^(−pu)) / (a − b),

and, with φ(d) = (1 − e^(−d)) / d and σ the logistic function, for a ≥ b

    exp[a, b] = e^a φ(a − b),    σ[a, b] = σ(a) σ(−b) φ(a − b).

Second differences are a mean of two that depend on two numbers each,

    f[a, b, c] = ((a − b) f[b, b, a] + (b − c) f[b, b, c]) / (a − c),    a ≥ b ≥ c,

where nothing cancels as long as f″ does not change its sign. Where the difference itself has a
zero, errors are relative to the mean of |f′| or |f″| over the interval.

At zero: where f(0) or f′(0) is not finite, f is applied on the range of A alone, so that f(0)
counts as 0 (the pseudo-inverse's convention). The derivative is the one along changes that keep the
rank. Those leave a zero eigenvalue zero, so it is that of a function that vanishes near 0:
f[0, 0] = 0, f[a, 0] = f(a)/a and f[a, 0, 0] = f(a)/a². Where the ordinary derivative at 0 is
finite, it is taken: λ^1 has f[0, 0] = 1.

Overflow: a value beyond the largest number is infinite (exp beyond 709.78), and so are the
differences that it enters; entries of the matrix are then infinite or NaN. Those too small for a
number are zero.
"""

from collections.abc import Mapping

from covpool.linalg.functions.base import THIRD_DERIVATIVE, Domain, ScalarFunction
from covpool.linalg.functions.floored import Floored, with_floor
from covpool.linalg.functions.logarithms import ENTROPY, LOG
from covpool.linalg.functions.piecewise import ABS, CLAMP_MIN, POSITIVE_PART, SIGN
from covpool.linalg.functions.powers import INV_ROOT, INV_SQRT, INVERSE, POWER, SQRT
from covpool.linalg.functions.smooth import EXP, SOFTPLUS, TANH
from covpool.linalg.tables import table

__all__ = [
    "EXP",
    "FUNCTIONS",
    "INV_ROOT",
    "INV_SQRT",
    "LOG",
    "ON_COVARIANCES",
    "POWER",
    "SQRT",
    "THIRD_DERIVATIVE",
    "Domain",
    "Floored",
    "ScalarFunction",
    "with_floor",
]

FUNCTIONS: Mapping[str, ScalarFunction] = table(
    {
        function.name: function
        for function in (
            *(SQRT, INV_SQRT, POWER, LOG, EXP, INVERSE, INV_ROOT, ENTROPY),
            *(SIGN, ABS, POSITIVE_PART, CLAMP_MIN, SOFTPLUS, TANH),
        )
    },
    kind="function",
)
"""Every named function. Method `exact` offers all of them; others say which."""

ON_COVARIANCES = frozenset(function.name for function in (SQRT, INV_SQRT, POWER, LOG))
"""What the methods of the paper's kind, which are made for covariances, offer."""
