"""What a scalar function is: its values, its divided differences, where it is defined."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from enum import Enum
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.fx import Node, Tracer

from covpool.linalg.functions.differences import guarded, mix
from covpool.linalg.spectrum import rank_tolerance

THIRD_DERIVATIVE = (
    "the third derivative of a function of a matrix is not implemented: it is a sum of n⁴ terms; "
    "differentiate at most twice (matrix_sqrt, method 'exact', has derivatives of every order at "
    "full rank)"
)


class Domain(Enum):
    """Which eigenvalues a function accepts."""

    REAL = "any"
    NONNEGATIVE = "λ ≥ 0"
    POSITIVE = "λ > 0"
    NONZERO = "λ ≠ 0"

    @property
    def has_negative(self) -> bool:
        return self in (Domain.REAL, Domain.NONZERO)

    @property
    def has_zero(self) -> bool:
        return self in (Domain.REAL, Domain.NONNEGATIVE)


class ScalarFunction(ABC):
    """A scalar function with what its lift to matrices needs, elementwise."""

    name: str
    """Its name in messages and in `FUNCTIONS`."""

    domain: Domain
    """The eigenvalues that it accepts. Where it is asked for others regardless, negative ones count
    as zero and a zero as the package says."""

    smooth_at_zero: bool = False
    """Whether an eigenvalue near zero is like any other. If not, those that may be zero but for
    rounding are set to it: a kink, a jump or a pole there must not depend on the rounding."""

    scales: bool = False
    """Whether f(u A) follows from f(A), by `rescale`: a matrix whose powers leave the range of its
    dtype is then divided by a number first."""

    parameter: str | None = None
    """What its parameter is called, which `bind` gives it, or None."""

    rate: "ScalarFunction | None" = None
    """∂f/∂p for a function with a parameter p."""

    is_rate: bool = False
    """Whether it is the `rate` of another function, whose second derivative its derivative is."""

    solves_lyapunov: ClassVar[bool] = False
    """Whether F F = A for F = f(A). A first derivative P then solves F P + P F = H, and second
    ones come from differentiating that equation instead of from second divided differences."""

    inverse_of: ClassVar["ScalarFunction | None"] = None
    """The function g with f = 1/g, where an algorithm for g gives f too."""

    def bind(self, parameter: Tensor | None) -> "ScalarFunction":
        """The function with its parameter, one for each matrix: (*) beside eigenvalues (*, m)."""
        if parameter is not None:
            raise TypeError(f"{self.name} has no parameter, got {parameter!r}")
        return self

    def prepare(
        self, parameter: Tensor | None, eigenvalues: Tensor
    ) -> tuple["ScalarFunction", Tensor]:
        """The function with its parameter, and the eigenvalues (*, m) that it is taken of."""
        return self.bind(parameter), eigenvalues

    def canonical(self, parameter: Tensor | None) -> tuple["ScalarFunction", Tensor | None]:
        """The same function as one whose `rate` is known, and its parameter, differentiably."""
        return self, parameter

    def defined_at_zero(self, parameter: Tensor | None = None) -> bool | Tensor:
        """Whether singular matrices have it; (*) where that depends on the parameter."""
        return self.domain.has_zero

    def clip(self, eigenvalues: Tensor, size: int) -> Tensor:
        """Eigenvalues (*, m) of n × n matrices, n = `size`, as `value` and `loewner` take them.

        Those below zero are zero where the domain has none, and where the function is not smooth at
        zero, so are those of at most n · finfo(dtype).eps of the largest, which are rounding.
        """
        if self.smooth_at_zero:
            return eigenvalues if self.domain.has_negative else eigenvalues.clamp_min(0)
        size_of = eigenvalues.abs() if self.domain.has_negative else eigenvalues
        threshold = rank_tolerance(size, eigenvalues.dtype) * size_of.amax(-1, keepdim=True)
        # The comparison is this way round so that NaN, where it was not looked for, stays NaN.
        return eigenvalues.masked_fill(size_of <= threshold, 0)

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """f(x), and 0 for x = 0 where f(0) is not finite."""

    @abstractmethod
    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        """f[a, b] = (f(a) − f(b)) / (a − b) for a ≥ b, f[a, a] = f′(a)."""

    def loewner(self, x: Tensor) -> Tensor:
        """f[xᵢ, xⱼ] for all pairs: (*, m) → (*, m, m)."""
        row, column = x.unsqueeze(-1), x.unsqueeze(-2)
        larger, smaller = torch.maximum(row, column), torch.minimum(row, column)
        return self.divided_difference(larger, smaller)

    def mirrored_loewner(self, x: Tensor) -> Tensor:
        """f[xᵢ, −xⱼ] for all pairs of x ≥ 0, of odd functions: (*, m) → (*, m, m)."""
        return self.divided_difference(x.unsqueeze(-1), -x.unsqueeze(-2))

    def confluent_difference(self, x: Tensor, y: Tensor) -> Tensor:
        """f[x, x, y] = (f′(x) − f[x, y]) / (x − y) for x and y in any order; f″(x)/2 at a tie."""
        if self.is_rate:
            raise RuntimeError(THIRD_DERIVATIVE)
        raise RuntimeError(
            f"{self.name} has no second derivative: it does not say its confluent_difference"
        )

    def second_divided_difference(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """f[a, b, c] = (f[a, b] − f[b, c]) / (a − c) for a ≥ b ≥ c."""
        return mix(a, b, c, self.confluent_difference(b, a), self.confluent_difference(b, c))

    def second_differences(self, x: Tensor) -> Iterator[Tensor]:
        """f[xᵢ, xₗ, xⱼ] of ascending x (*, m), as (*, m, m) for one l after the other."""
        # What is made of two numbers alone is made once, not for every l.
        confluent = self.confluent_difference(x[..., :, None], x[..., None, :])
        order = torch.arange(x.shape[-1], device=x.device)
        larger = torch.maximum(order[:, None], order)
        smaller = torch.minimum(order[:, None], order)
        for index in order:
            a, c = torch.maximum(larger, index), torch.minimum(smaller, index)
            b = larger + smaller + index - a - c
            yield mix(x[..., a], x[..., b], x[..., c], confluent[..., b, a], confluent[..., b, c])

    def rescale(self, lifted: Tensor, unit: Tensor, projector: Callable[[], Tensor]) -> Tensor:
        """f(u A) from f(A) (*, n, n), for powers of four u (*, 1, 1), of functions that `scale`.

        Args:
            projector: gives the projector on the range of A, which the logarithm needs.
        """
        raise TypeError(f"{self.name} of a multiple of A does not follow from that of A")

    def equation(
        self, matrix: Tensor, result: Tensor, projector: Callable[[], Tensor], scale: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Two matrices that are equal where the result is f(A), None where none are defined.

        Args:
            matrix, result: (*, n, n), A and what was computed for f(A).
            projector: gives the projector (*, n, n) on the range of A, which some need.
            scale: (*, 1, 1), the size of A's entries: norms of A itself could overflow.
        """
        return None

    def __fx_create_arg__(self, tracer: Tracer) -> Node:
        """Itself in a graph of torch.fx: an attribute of the module that is traced.

        torch keeps its own constants so, those that cannot be written out as code.
        """
        held = (name for name, value in vars(tracer.root).items() if value is self)
        name = next(held, None)
        if name is None:
            name = tracer.get_fresh_qualname("_scalar_function")
            setattr(tracer.root, name, self)
        return tracer.create_node("get_attr", name, (), {})

    def __repr__(self) -> str:
        return f"<{self.name}>"


def by_triples(function: ScalarFunction, x: Tensor) -> Iterator[Tensor]:
    """`second_differences` of a function whose difference of three numbers is a formula."""
    larger = torch.maximum(x[..., :, None], x[..., None, :])
    smaller = torch.minimum(x[..., :, None], x[..., None, :])
    for middle in x[..., None, None].unbind(-3):
        yield function.second_divided_difference(
            torch.maximum(larger, middle),
            torch.maximum(smaller, torch.minimum(larger, middle)),
            torch.minimum(smaller, middle),
        )


class OnTheRange(ScalarFunction):
    """A function of λ ≥ 0 that is not differentiable at zero, see the package."""

    domain = Domain.NONNEGATIVE

    def second_differences(self, x: Tensor) -> Iterator[Tensor]:
        return by_triples(self, x)

    @abstractmethod
    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        """f[a, b] for a ≥ b ≥ 0 and a > 0."""

    def divided_difference_at_zero(self, like: Tensor) -> Tensor:
        """f[0, 0], in the shape of `like`, a tensor of pairs."""
        return torch.zeros_like(like)

    def loewner(self, x: Tensor) -> Tensor:
        row, column = x.unsqueeze(-1), x.unsqueeze(-2)
        return self.difference_on_range(torch.maximum(row, column), torch.minimum(row, column))

    def difference_on_range(self, a: Tensor, b: Tensor) -> Tensor:
        """f[a, b] for a ≥ b ≥ 0."""
        zero, a = guarded(a)
        exact = self.divided_difference(a, b)
        return torch.where(zero, self.divided_difference_at_zero(exact), exact)


class WithParameter(ScalarFunction):
    def __init__(self, parameter: Tensor | None = None) -> None:
        self._parameter = parameter

    def bind(self, parameter: Tensor | None) -> Self:
        if parameter is None:
            raise TypeError(f"{self.name} needs its {self.parameter}")
        return type(self)(parameter)

    def beside(self, like: Tensor) -> Tensor:
        """The parameter beside eigenvalues or pairs of them, of which `like` is a tensor."""
        p = self._parameter
        if p is None:
            raise TypeError(f"{self.name} needs its {self.parameter}")
        return p.reshape(p.shape + (1,) * (like.ndim - p.ndim))
