"""Any elementwise torch function as a scalar function, without its derivatives being given."""

import os
import threading
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from covpool.linalg.functions import FUNCTIONS, Domain, ScalarFunction
from covpool.linalg.functions.differences import guarded
from covpool.linalg.functions.odd import ODD_FUNCTIONS
from covpool.linalg.quadrature import mean
from covpool.linalg.spectrum import rank_tolerance
from covpool.linalg.tables import choose, table
from covpool.linalg.transforms import inner_forward_mode

DOMAINS = table({domain.name.lower(): domain for domain in Domain}, kind="domain")

AGREEMENT = 100
"""How many estimated errors of the quotient a mean may differ from it: f may be off by more than
the one rounding that the estimate assumes."""


class Elementwise(ScalarFunction):
    """f as a torch function gives it; f′ and f″ come from forward-mode differentiation of it.

    Divided differences are quotients where those do not cancel and means of f′ or f″ over the
    interval elsewhere, entry by entry, whichever has the smaller estimate of its error: right at
    ties and close to them. Errors are a few roundings relative to the mean of |f′| + |λ f″| (one
    derivative more for second differences), as long as f is resolved by 15 nodes wherever its
    values are too close for the quotient: not a small and fast oscillation on a large constant.

    Args:
        f: takes a tensor of any shape and gives one of the same shape and dtype, each element
            depending on its own alone; made of torch operations that `torch.func.jvp` can
            differentiate twice, and smooth on the interval between the smallest and the largest
            eigenvalue. Its values, and the derivatives that differentiating its code gives, must be
            right to rounding themselves: write `torch.nn.functional.softplus` as `logaddexp(x, 0)`,
            for example, as torch's is cut off at 20. Tensors that f closes over get no gradient.
        name: for messages; None: the function's own.
        domain: which eigenvalues f accepts: "real" (any), "nonnegative", "positive" or "nonzero".

    At a kink of f the derivative is what torch takes there (0 for `abs` and `relu`), and
    differences across it are quotients, which lose the digits of 1/gap. Where f is not finite at
    zero the domain must leave zero out: unlike the named functions, f is not replaced by 0 there.
    """

    smooth_at_zero = True

    def __init__(
        self,
        f: Callable[[Tensor], Tensor],
        name: str | None = None,
        domain: str | Domain = "real",
    ) -> None:
        if not callable(f):
            raise TypeError(f"Elementwise needs a function of a tensor, got {f!r}")
        home = getattr(f, "__module__", None) or type(f).__module__
        if home in ("math", "cmath", "numpy"):
            raise TypeError(f"Elementwise needs a torch function to differentiate, got {f!r}")
        if not torch.compiler.is_compiling():
            _prepare_forward_mode()
        self.f = self._f = f
        self.name = getattr(f, "__name__", type(f).__name__) if name is None else name
        self.domain = domain if isinstance(domain, Domain) else choose("domain", domain, DOMAINS)

    @torch.no_grad()
    def value(self, x: Tensor) -> Tensor:
        return self._elementwise(self._f(x), x)

    def _elementwise(self, result: Any, x: Tensor) -> Tensor:
        """What f has given for x, or a ValueError that says why it is no function of elements."""
        if not isinstance(result, Tensor) or (result.shape, result.dtype) != (x.shape, x.dtype):
            got = (
                f"{tuple(result.shape)} of {result.dtype}"
                if isinstance(result, Tensor)
                else repr(result)
            )
            raise ValueError(
                f"{self.name} must give a tensor of its input's shape and dtype, "
                f"{tuple(x.shape)} of {x.dtype}, got {got}"
            )
        return result

    def derivative(self, x: Tensor) -> Tensor:
        return _differentiate(self._f, x)

    def second_derivative(self, x: Tensor) -> Tensor:
        return _differentiate(self.derivative, x)

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        return self._first(a, b)[0]

    def _first(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """f[x, y] and an estimate of its error."""
        at_x, at_y = self.value(x), self.value(y)
        rounding = torch.finfo(x.dtype).eps * (at_x.abs() + at_y.abs())
        return _better(at_x - at_y, rounding, x - y, mean(self.derivative, x, y))

    def confluent_difference(self, x: Tensor, y: Tensor) -> Tensor:
        slope = self.derivative(x)
        first, error = self._first(x, y)
        error = error + torch.finfo(x.dtype).eps * slope.abs()
        return _better(slope - first, error, x - y, mean(self.second_derivative, x, y, power=1))[0]


class OddElementwise(Elementwise):
    """A torch function of σ ≥ 0 as an odd one: f(σ), and −f(−σ) below zero, where f is not called.

    Where f(0) is not 0 or f′(0) is not finite, it is 0 at zero, where the derivative then counts as
    0, and singular values that are zero to rounding are taken for it.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], name: str | None = None) -> None:
        super().__init__(f, name)
        self._f = self._extended

    def _extended(self, x: Tensor) -> Tensor:
        below = x < 0
        value = self._elementwise(self.f(torch.where(below, -x, x)), x)
        return torch.where(below, -value, value)

    def _goes_through_zero(self, like: Tensor) -> Tensor:
        zero = torch.zeros((), dtype=like.dtype, device=like.device)
        return (super().value(zero) == 0) & super().derivative(zero).isfinite()

    def clip(self, eigenvalues: Tensor, size: int) -> Tensor:
        threshold = rank_tolerance(size, eigenvalues.dtype) * eigenvalues.amax(-1, keepdim=True)
        rounding = (eigenvalues <= threshold) & ~self._goes_through_zero(eigenvalues)
        return eigenvalues.masked_fill(rounding, 0)

    def value(self, x: Tensor) -> Tensor:
        # A zero that is left by `clip` has the value 0 either way.
        return super().value(x).masked_fill(x == 0, 0)

    def mirrored_loewner(self, x: Tensor) -> Tensor:
        # As f goes through zero, |f(a)| + |f(b)| is at most (a + b) times the mean of |f′|: the
        # quotient's error is a rounding of that, and no mean has to be computed.
        values = self.value(x)
        zero, total = guarded(x.unsqueeze(-1) + x.unsqueeze(-2))
        quotient = (values.unsqueeze(-1) + values.unsqueeze(-2)) / total
        return torch.where(zero, self.derivative(torch.zeros_like(x[..., :1, None])), quotient)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where((x == 0) & ~self._goes_through_zero(x), 0, super().derivative(x))


@cache
def _prepare_forward_mode() -> None:
    """Load what torch loads at the first `jvp`, without its warning of a deprecation of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


def get_function(function: str | Callable[[Tensor], Tensor] | ScalarFunction) -> ScalarFunction:
    """The row of `FUNCTIONS` of that name, `Elementwise` of a torch function, or what is one.

    Raises:
        ValueError: no such name; the message names the nearest.
    """
    if isinstance(function, ScalarFunction):
        return function
    return Elementwise(function) if callable(function) else choose("function", function, FUNCTIONS)


def get_odd_function(
    function: str | Callable[[Tensor], Tensor] | Elementwise,
) -> ScalarFunction:
    """The row of `ODD_FUNCTIONS` of that name, or a torch function as an odd one.

    Raises:
        TypeError: another kind of object.
        ValueError: no such name; the message names the nearest.
    """
    if isinstance(function, Elementwise):
        return OddElementwise(function.f, function.name)
    if isinstance(function, str):
        return choose("function", function, ODD_FUNCTIONS)
    if not callable(function):
        raise TypeError(
            f"svd_function needs a name ({', '.join(ODD_FUNCTIONS)}) or a torch function that "
            f"works elementwise, got {function!r}"
        )
    return OddElementwise(function)


def _begin_anew() -> None:
    global _one_at_a_time
    _one_at_a_time = threading.RLock()  # a derivative may be of a derivative


_begin_anew()
if hasattr(os, "register_at_fork"):  # a lock that another thread held would stay so
    os.register_at_fork(after_in_child=_begin_anew)


@torch.no_grad()
def _differentiate(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f′ by forward mode, which keeps the scale of x on its way: in reverse mode 1/(1 + x²) of a
    large x underflows. Its levels belong to the process, so that threads take turns."""
    # A copy, as torch refuses tensors in which elements share their memory.
    x, ones = x.clone(), torch.ones_like(x)
    if torch.compiler.is_compiling():  # which takes no lock, and one thread traces
        return torch.func.jvp(f, (x,), (ones,))[1]
    with _one_at_a_time, inner_forward_mode():
        return torch.func.jvp(f, (x,), (ones,))[1]


def _better(
    difference: Tensor, error: Tensor, gap: Tensor, other: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The difference over the gap or the mean, the one with the smaller error, and that error."""
    tied = gap == 0
    gap = torch.where(tied, 1, gap)
    quotient = difference / gap
    of_quotient = torch.where(tied, torch.inf, error / gap.abs())
    value, of_mean = other
    # What lies between the nodes escapes the mean and its estimate, but not the quotient.
    agrees = (value - quotient).abs() <= AGREEMENT * of_quotient
    better = agrees & (of_mean <= of_quotient)
    return torch.where(better, value, quotient), torch.where(better, of_mean, of_quotient)
