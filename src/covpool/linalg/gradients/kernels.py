"""Kernels K(λi, λj) ≈ 1/(λi − λj), which turn an eigenvector's gradient into the matrix's.

The derivative of the eigenvector vᵢ is Σⱼ Kᵢⱼ (vⱼᵀ dA vᵢ) vⱼ with Kᵢⱼ = 1/(λi − λj) in exact
arithmetic. The kernels here replace the pole at λi = λj by something finite. Each is given by its
magnitude as a function of the gap |λi − λj| and of the larger eigenvalue max(|λi|, |λj|); the sign
is that of λi − λj, ties being ordered as the eigenvalues are. With x the ratio of the smaller to
the larger eigenvalue, gap = larger · (1 − x), and 1 − x is known to full relative precision where
x itself, rounded, would not be.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from covpool.linalg.checks import require_integer
from covpool.linalg.gradients.pade_coefficients import DENOMINATOR, NUMERATOR, SUM_RATIO
from covpool.linalg.tables import table


class LargestKernel(NamedTuple):
    """The largest |K| that can enter a gradient, eigenvalues below a floor counting as the floor.

    form: the bound as a formula.
    trigger: the condition under which it is reached, or None.
    bound: its value; inf where there is none.
    attained: the largest |K| that is computed for two eigenvalues near the floor.
    """

    form: str
    trigger: str | None
    bound: float
    attained: float


@dataclass(frozen=True, kw_only=True)
class Kernel(ABC):
    """A finite stand-in for 1/(λi − λj).

    A kernel of one's own gives `title`, `magnitudes` and `bound`. Everything else follows from
    them, or has a default that is right without it.
    """

    title: ClassVar[str]
    """A few words for tables."""

    form: ClassVar[str | None] = None
    """The bound as a formula, for tables; None: the title stands in its place."""

    trigger: ClassVar[str | None] = None
    """The condition under which the bound is reached, for tables."""

    exact_second_order: ClassVar[bool] = False
    """Whether the kernel's own derivative is that of the true eigenvectors' derivative."""

    antisymmetric: ClassVar[bool] = True
    """Whether Kⱼᵢ = −Kᵢⱼ, as it is for 1/(λi − λj) itself."""

    @abstractmethod
    def magnitudes(self, larger: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """|Kᵢⱼ| where λi is the larger eigenvalue of its pair, and where it is the smaller.

        Args:
            larger: (*, n, n) symmetric, max(|λi|, |λj|), positive.
            gap: (*, n, n) symmetric, |λi − λj|, zero at ties.

        The two differ for power iteration alone; every other kernel is antisymmetric.
        """

    def damping(self, larger: Tensor, gap: Tensor) -> Tensor:
        """|Kᵢⱼ| · |λi − λj|, λi the smaller of its pair: the share of 1/(λi − λj) that K keeps.

        Args:
            larger: as for `magnitudes`; the pair's eigenvalues are not of opposite signs.
            gap: as for `magnitudes`, so at most `larger`.
        """
        _, lower = self.magnitudes(larger, gap)
        return lower * gap

    def asymmetry(self, larger: Tensor, gap: Tensor) -> Tensor:
        """|Kᵢⱼ| − |Kⱼᵢ|, λi the larger: zero for the antisymmetric kernels."""
        upper, lower = self.magnitudes(larger, gap)
        return upper - lower

    @abstractmethod
    def bound(self, eigenvalue: float) -> float:
        """The largest |Kᵢⱼ| over all pairs whose larger eigenvalue is at least `eigenvalue`."""

    def largest(self, floor: float, dtype: torch.dtype) -> LargestKernel:
        """The bound for eigenvalues from `floor` on, and what is computed in `dtype` there."""
        attained = self.attained(floor, dtype)
        return LargestKernel(self.form or self.title, self.trigger, self.bound(floor), attained)

    def attained(self, floor: float, dtype: torch.dtype) -> float:
        """The largest |K| of two tied eigenvalues at `floor`, or where else K is largest."""
        return self.matrix(torch.full((2,), floor, dtype=dtype)).abs().max().item()

    def rational(self, ratio: Fraction) -> Fraction | None:
        """K(1, x) for x below 1 in rational arithmetic, which is the formula without rounding.

        Where the kernel is not antisymmetric it is that of the larger eigenvalue's vector. None
        for a kernel whose formula is not written down.
        """
        return None

    def matrix(self, eigenvalues: Tensor) -> Tensor:
        """Kᵢⱼ for every pair of eigenvalues, with zero diagonal.

        Args:
            eigenvalues: (*, n). Of tied ones the later counts as the larger. Magnitudes below EPS
                = finfo(dtype).eps count as EPS (the paper's floor), so that every bounded kernel
                is finite at zero too.

        Returns:
            (*, n, n); the row is the eigenvector that is differentiated.
        """
        column, row = eigenvalues[..., :, None], eigenvalues[..., None, :]
        # Pairs of opposite signs whose gap overflows, in a unit of their own.
        unit = torch.where((column - row).isinf(), 0.25, torch.ones_like(column - row))
        column, row = column * unit, row * unit
        larger, difference = torch.maximum(column.abs(), row.abs()), column - row
        floor = torch.finfo(larger.dtype).eps
        upper, lower = self.magnitudes(larger.clamp_min(floor), difference.abs())
        upper, lower = upper * unit, lower * unit
        index = torch.arange(eigenvalues.shape[-1], device=eigenvalues.device)
        later = index[:, None] > index
        row_is_larger = (difference > 0) | ((difference == 0) & later)
        signed = torch.where(row_is_larger, upper, -lower)
        return torch.where(index[:, None] == index, 0, signed)


_AT_THE_TIE = "λi = λj ≤ floor"


def _reciprocal(gap: Tensor, at_tie: Tensor | float) -> Tensor:
    """1/gap, and `at_tie` where the gap is zero, with a derivative that is finite there."""
    tied = gap == 0
    return torch.where(tied, at_tie, 1 / torch.where(tied, 1, gap))


@dataclass(frozen=True, kw_only=True)
class Difference(Kernel):
    """The plain kernel 1/(λi − λj), with the paper's overflow check.

    Where the quotient overflows, at ties above all, it takes the largest finite |K| of the same
    matrix (0 if there is none). The paper's code takes the largest of the whole batch, which makes
    one sample's gradient depend on another's.
    """

    title: ClassVar[str] = "1/(λi − λj)"
    form: ClassVar[str | None] = "1/(λi − λj)"
    trigger: ClassVar[str | None] = "λi = λj"
    exact_second_order: ClassVar[bool] = True

    def magnitudes(self, larger: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        plain = _reciprocal(gap, 0.0)
        plain = torch.where(torch.isfinite(plain), plain, 0)
        if gap.shape[-1] == 0:
            return plain, plain
        largest = plain.amax((-2, -1), keepdim=True)
        plain = torch.where(plain == 0, largest, plain)
        return plain, plain

    def damping(self, larger: Tensor, gap: Tensor) -> Tensor:
        return torch.where(gap > 0, torch.ones_like(gap), 0)

    def bound(self, eigenvalue: float) -> float:
        return float("inf")

    def attained(self, floor: float, dtype: torch.dtype) -> float:
        return float("inf")  # which the overflow check then replaces

    def rational(self, ratio: Fraction) -> Fraction:
        return 1 / (1 - ratio)


@dataclass(frozen=True, kw_only=True)
class Truncated(Kernel):
    """1/(λi − λj) clipped to ±limit; ±limit at ties.

    Biased only where |λi − λj| < 1/limit. The limit has the unit of 1/λ: it does not scale with
    the matrix.
    """

    title: ClassVar[str] = "1/(λi − λj), clipped"
    form: ClassVar[str | None] = "T"
    trigger: ClassVar[str | None] = "1/|λi − λj| ≥ T"

    limit: float = 1e10
    """T; the paper's 1e10."""

    def __post_init__(self) -> None:
        if isinstance(self.limit, bool | str) or not 0 < self.limit < float("inf"):
            raise ValueError(f"limit must be a positive number, got {self.limit!r}")

    def magnitudes(self, larger: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        clipped = _reciprocal(gap, self.limit).clamp_max(self.limit)
        return clipped, clipped

    def damping(self, larger: Tensor, gap: Tensor) -> Tensor:
        return (gap * self.limit).clamp_max(1)

    def bound(self, eigenvalue: float) -> float:
        return self.limit

    def rational(self, ratio: Fraction) -> Fraction:
        return min(1 / (1 - ratio), Fraction(self.limit))


def _geometric_sum(larger: Tensor, gap: Tensor, terms: int) -> Tensor:
    """(1 + x + … + x^(terms−1)) / larger, x = 1 − gap/larger in [−1, 1], at the cost of O(1)."""
    relative_gap = gap / larger
    near = relative_gap < 0.5
    ratio = torch.where(near, 0, 1 - relative_gap)
    distance = torch.where(
        near,
        -torch.expm1(terms * torch.log1p(-torch.where(near, relative_gap, 0))),
        1 - ratio**terms,
    )
    tied = gap == 0
    largest = torch.finfo(larger.dtype).max
    return torch.where(tied, terms / larger, distance / torch.where(tied, 1, gap)).clamp_max(
        largest
    )


@dataclass(frozen=True, kw_only=True)
class Taylor(Kernel):
    """The Taylor polynomial (1/λi)(1 + x + … + x^degree), x = λj/λi, evaluated in closed form.

    It is 1/(λi − λj) times 1 − x^(degree+1): too small by 37% where 1 − x = 1/(degree + 1) = 0.0099
    and by more where the eigenvalues are closer; at a tie it is (degree + 1)/λi. For pairs of
    opposite signs the polynomial converges as slowly where λj is close to −λi.
    """

    title: ClassVar[str] = "Taylor polynomial"
    form: ClassVar[str | None] = "(K + 1)/λi"
    trigger: ClassVar[str | None] = _AT_THE_TIE

    degree: int = 100
    """K; the paper's 100."""

    def __post_init__(self) -> None:
        require_integer("degree", self.degree, 0)

    def magnitudes(self, larger: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        kernel = _geometric_sum(larger, gap, self.degree + 1)
        return kernel, kernel

    def damping(self, larger: Tensor, gap: Tensor) -> Tensor:
        return (-gap / larger).log1p_().mul_(self.degree + 1).expm1_().neg_()

    def bound(self, eigenvalue: float) -> float:
        return (self.degree + 1) / eigenvalue

    def rational(self, ratio: Fraction) -> Fraction:
        return (1 - ratio ** (self.degree + 1)) / (1 - ratio)


@dataclass(frozen=True, kw_only=True)
class Pade(Kernel):
    """The diagonal Padé approximant [50/50] of 1/(1 − x), divided by λi.

    1/(1 − x) is its own Padé approximant, so the equations for the coefficients are singular and
    what a solver returns depends on its working precision. The paper solved them at 20 digits; the
    rational function with those coefficients (see `pade_coefficients`), evaluated exactly, is
    1/(1 − x + 6.2e-22). In float64 that is the plain kernel at every ratio below 1 (a relative
    difference of 6e-7 where 1 − x = 1e-15) and a finite cap at the tie itself.

    `evaluation="closed-form"` is 1/(λi − λj) with the cap 1.333e21/λi, the paper's Table 6.
    `evaluation="coefficients"` evaluates P(x)/Q(x) in the tensor's precision, as the paper's code
    does; in float64 it is off by 0.3% where 1 − x = 1e-13 and by 24% where 1 − x = 1e-15.
    """

    title: ClassVar[str] = "Padé approximant"
    form: ClassVar[str | None] = "|Σp/Σq|/λi"
    trigger: ClassVar[str | None] = _AT_THE_TIE

    evaluation: Literal["closed-form", "coefficients"] = "closed-form"

    def __post_init__(self) -> None:
        if self.evaluation not in (choices := ("closed-form", "coefficients")):
            raise ValueError(f"evaluation must be one of {choices}, got {self.evaluation!r}")

    def magnitudes(self, larger: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        cap = (SUM_RATIO / larger).clamp_max(torch.finfo(larger.dtype).max)
        if self.evaluation == "closed-form":
            kernel = torch.minimum(_reciprocal(gap, cap), cap)
        else:
            ratio = 1 - gap / larger
            numerator = _horner(NUMERATOR, ratio, float)
            quotient = numerator / (_horner(DENOMINATOR, ratio, float) * larger)
            kernel = torch.where(quotient.isfinite(), quotient.clamp(-cap, cap), cap)
        return kernel, kernel

    def damping(self, larger: Tensor, gap: Tensor) -> Tensor:
        if self.evaluation == "closed-form":
            return (gap / larger).mul_(SUM_RATIO).clamp_max_(1)
        return super().damping(larger, gap)

    def bound(self, eigenvalue: float) -> float:
        return SUM_RATIO / eigenvalue

    def rational(self, ratio: Fraction) -> Fraction:
        if self.evaluation == "closed-form":
            return min(1 / (1 - ratio), Fraction(SUM_RATIO))
        return _horner(NUMERATOR, ratio, Fraction) / _horner(DENOMINATOR, ratio, Fraction)


def _horner(coefficients: tuple[str, ...], x: Any, number: Callable[[str], Any]) -> Any:
    """The polynomial with these coefficients, lowest power first, of a tensor or a fraction."""
    value = 0 * x
    for coefficient in reversed(coefficients):
        value = value * x + number(coefficient)
    return value


@dataclass(frozen=True, kw_only=True)
class PowerIteration(Kernel):
    """The gradient of `steps` power iterations with deflation, started at the eigenvectors.

    The eigenpairs are found one after the other, largest first: v ← Av/‖Av‖ from the eigenvector
    (held constant), then A ← A − A v vᵀ, with the gradient flowing through both (Wang, Dang, Hu,
    Fua, Salzmann, "Backpropagation-friendly eigendecomposition", NeurIPS 2019). In the eigenbasis
    the pairs decouple and that gradient is a kernel: with S_m = 1 + x + … + x^(m−1), x = λj/λi ≤ 1,
    it is S_steps/λi for the eigenvector of the larger eigenvalue and −S_(steps−1)/λi for that of
    the smaller, which sees the larger's through deflation alone. So it is the Taylor kernel of
    degree steps − 1, but for one term, and it is not quite antisymmetric. At ties: steps/λi and
    −(steps − 1)/λi.
    """

    title: ClassVar[str] = "power iteration"
    form: ClassVar[str | None] = "steps/λi"
    trigger: ClassVar[str | None] = _AT_THE_TIE
    antisymmetric: ClassVar[bool] = False

    steps: int = 20
    """Power iterations; the paper's code takes 20, the original 9 or 19."""

    def __post_init__(self) -> None:
        require_integer("steps", self.steps, 1)

    def magnitudes(self, larger: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        return (
            _geometric_sum(larger, gap, self.steps),
            _geometric_sum(larger, gap, self.steps - 1),
        )

    def damping(self, larger: Tensor, gap: Tensor) -> Tensor:
        if self.steps == 1:
            return torch.zeros_like(gap)
        return (-gap / larger).log1p_().mul_(self.steps - 1).expm1_().neg_()

    def asymmetry(self, larger: Tensor, gap: Tensor) -> Tensor:
        return (1 - gap / larger) ** (self.steps - 1) / larger

    def bound(self, eigenvalue: float) -> float:
        return self.steps / eigenvalue

    def rational(self, ratio: Fraction) -> Fraction:
        return (1 - ratio**self.steps) / (1 - ratio)


@dataclass(frozen=True, kw_only=True)
class Lorentzian(Kernel):
    """The broadened kernel gap / (gap² + (epsilon · larger)²), 0 at ties.

    Liao, Liu, Wang, Xiang, "Differentiable programming tensor networks", Physical Review X 9, 2019,
    use x/(x² + ε) with ε = 1e-12 and x = λi − λj, whose width √ε = 1e-6 has the unit of λ. Here
    the width is `epsilon` times the larger eigenvalue of the pair, so that the kernel scales with
    the matrix; for a pair whose larger eigenvalue is 1 theirs is `epsilon=ε**0.5`, the default.

    It is 1/(λi − λj) times 1/(1 + (epsilon/r)²) with r = gap/larger: too small by half where
    r = epsilon, by 1% where r = 10 epsilon and by 1e-6 where r = 1000 epsilon. It is largest,
    1/(2 epsilon larger), at r = epsilon.
    """

    title: ClassVar[str] = "Lorentzian"
    form: ClassVar[str | None] = "1/(2 ε λi)"
    trigger: ClassVar[str | None] = "λi − λj = ε λi, λi ≤ floor"

    epsilon: float = 1e-6
    """Width, as a share of the pair's larger eigenvalue."""

    def __post_init__(self) -> None:
        if isinstance(self.epsilon, bool | str) or not 0 < self.epsilon < float("inf"):
            raise ValueError(f"epsilon must be a positive number, got {self.epsilon!r}")

    def magnitudes(self, larger: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        tied = gap == 0
        relative_gap = torch.where(tied, 1, gap / larger)
        # Neither the gap nor epsilon is squared, which would vanish or overflow.
        broadened = relative_gap + self.epsilon / relative_gap * self.epsilon
        kernel = torch.where(tied, 0, 1 / broadened / larger)
        return kernel, kernel

    def damping(self, larger: Tensor, gap: Tensor) -> Tensor:
        # At ties the quotient is infinite and the damping zero.
        return 1 / (1 + (self.epsilon * larger / gap).square())

    def bound(self, eigenvalue: float) -> float:
        return 0.5 / self.epsilon / eigenvalue

    def attained(self, floor: float, dtype: torch.dtype) -> float:
        # At the tie it is zero; its largest value lies beside it.
        pair = torch.tensor([floor - self.epsilon * floor, floor], dtype=dtype)
        return self.matrix(pair).abs().max().item()

    def rational(self, ratio: Fraction) -> Fraction:
        return (1 - ratio) / ((1 - ratio) ** 2 + Fraction(self.epsilon) ** 2)


KERNELS: Mapping[str, Kernel] = table(
    {
        "difference": Difference(),
        "truncated": Truncated(),
        "taylor": Taylor(),
        "pade": Pade(),
        "power-iteration": PowerIteration(),
        "lorentzian": Lorentzian(),
    },
    kind="kernel",
)
