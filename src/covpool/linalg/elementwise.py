"""Any elementwise torch function as a scalar function, without its derivatives being given."""

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from covpool.linalg.functions import FUNCTIONS, Domain, ScalarFunction
from covpool.linalg.quadrature import mean
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
        if not torch.compiler.is_compiling():
            _prepare_forward_mode()
        self._f = f
        self.name = getattr(f, "__name__", type(f).__name__) if name is None else name
        self.domain = domain if isinstance(domain, Domain) else choose("domain", domain, DOMAINS)

    @torch.no_grad()
    def value(self, x: Tensor) -> Tensor:
        result = self._f(x)
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


@torch.no_grad()
def _differentiate(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    # A copy, as torch refuses tensors in which elements share their memory.
    with inner_forward_mode():
        return torch.func.jvp(f, (x.clone(),), (torch.ones_like(x),))[1]


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
