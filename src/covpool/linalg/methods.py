"""METHODS, the one table of spectral methods; everything that lists methods iterates it."""

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from covpool.linalg.forwards.approximants import MatrixPade, MatrixTaylor
from covpool.linalg.forwards.base import Eigendecomposition, Forward, Iteration
from covpool.linalg.forwards.coupled import MinimaxNewtonSchulz, NewtonSchulz
from covpool.linalg.forwards.halley import Halley
from covpool.linalg.forwards.top_n import TopN
from covpool.linalg.functions import FUNCTIONS, ScalarFunction
from covpool.linalg.gradients.base import DividedDifferences, Gradient, Pairwise
from covpool.linalg.gradients.kernels import (
    Difference,
    Lorentzian,
    Pade,
    PowerIteration,
    Taylor,
    Truncated,
)
from covpool.linalg.gradients.lyapunov import Lyapunov
from covpool.linalg.spectrum import of_kind
from covpool.linalg.tables import choose, table


@dataclass(frozen=True, kw_only=True)
class Method:
    """A named pair of a forward algorithm and a gradient rule.

    Attributes:
        name: the name by which functions, modules and the command line know it.
        paper_name: what Song, Sebe and Wang (ICCV 2021) call it, or None.
        forward: the forward algorithm, with its constants.
        gradient: the gradient rule, with its constants.
        description: one line.
        reference: the source.
        caution: what a reader must know: deviations, and what is not known.
    """

    name: str
    paper_name: str | None
    forward: Forward
    gradient: Gradient
    description: str
    reference: str
    caution: str = ""

    def __post_init__(self) -> None:
        if not self.forward.differentiated_by(self.gradient):
            raise ValueError(
                f"method {self.name!r}: gradient {self.gradient.title!r} with {self.gradient} does "
                f"not differentiate the forward algorithm {self.forward.title!r} with "
                f"{self.forward}; an iteration goes with its own gradient, or with the Lyapunov "
                "equation at the same iteration"
            )

    @property
    def exact_gradient(self) -> bool:
        """Whether the gradient is the derivative of the forward pass, so that it has one too."""
        return self.gradient.exact

    @property
    def unrolled(self) -> Iteration | None:
        """The iteration whose steps the gradient rule differentiates, or None."""
        return self.gradient if isinstance(self.gradient, Iteration) else None

    @property
    def differentiates_steps(self) -> bool:
        """Whether those are the steps of its forward pass, so that it has every derivative where
        it works on the matrix itself."""
        return self.unrolled is not None and self.unrolled == self.forward

    @property
    def iteration(self) -> Iteration | None:
        """The forward algorithm where it works on the matrix itself, without its eigenvalues."""
        return self.forward if isinstance(self.forward, Iteration) else None

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of the scalar functions that the row computes and differentiates."""
        return tuple(name for name, function in FUNCTIONS.items() if self.offers(function))

    def offers(self, function: ScalarFunction) -> bool:
        """Whether the row computes and differentiates a function, of the table or another."""
        if self.forward.functions is self.gradient.functions is None:
            return True
        named = FUNCTIONS.get(function.name) is function
        both = self.forward.functions, self.gradient.functions
        return all(names is None or (named and function.name in names) for names in both)

    def supports(self, function: str) -> bool:
        """Whether the row has the scalar function of that name, a key of `FUNCTIONS`."""
        return function in self.functions

    @property
    def smooth(self) -> bool:
        """Whether eigenvalues near zero are like any others to it: the forward algorithm's own."""
        return self.forward.smooth

    def dtype(self, given: torch.dtype, compute_dtype: torch.dtype | None) -> torch.dtype:
        """The dtype in which it computes on tensors of the given one.

        float64 where it decomposes, since a small eigenvalue is known to finfo(dtype).eps of the
        largest alone; the input's, and at least the forward algorithm's own, where it iterates.
        """
        if compute_dtype is None:
            return torch.promote_types(given, self.forward.least_dtype)
        return of_kind(compute_dtype, given)

    @property
    def constants(self) -> dict[str, Any]:
        """The row's constants by name, the gradient's and the forward algorithm's together."""
        return _constants(self.forward) | _constants(self.gradient)

    def replace(self, **constants: Any) -> Self:
        """The row with other constants, `METHODS["svd-taylor"].replace(degree=50)`.

        Raises:
            ValueError: the row has no constant of that name, or the value is out of range.
        """
        unknown = [name for name in constants if name not in self.constants]
        if unknown:
            has = ", ".join(f"{k}={v!r}" for k, v in self.constants.items()) or "none"
            raise ValueError(
                f"method {self.name!r} has no constant {unknown[0]!r}; its constants: {has}"
            )
        return dataclasses.replace(
            self,
            forward=_with_constants(self.forward, constants),
            gradient=_with_constants(self.gradient, constants),
        )


def _constants(part: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, and of those that it holds."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        found |= _constants(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return found


def _with_constants(part: Any, constants: dict[str, Any]) -> Any:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = _with_constants(value, constants)
        elif field.name in constants:
            changes[field.name] = constants[field.name]
    return dataclasses.replace(part, **changes)


_ICCV_2021 = (
    "Song, Sebe, Wang: Why approximate matrix square root outperforms accurate SVD in global "
    "covariance pooling? ICCV 2021"
)
_ICLR_2022 = "Song, Sebe, Wang: Fast differentiable matrix square root, ICLR 2022"
_EIGENDECOMPOSITION = Eigendecomposition()
_TOP_N = TopN()
_NEWTON_SCHULZ = NewtonSchulz(iterations=5)
_MATRIX_TAYLOR = MatrixTaylor()
_MATRIX_PADE = MatrixPade()
_MINIMAX = MinimaxNewtonSchulz()
_HALLEY = Halley()
_HALLEY_IDENTITY = Halley(start="identity")
_HALLEY_SVD = "Gu, Qiao, Li, Li: Halley-SVD, NeurIPS 2025"
_HALLEY_UNKNOWN = (
    "Start, normalisation and number of steps of the published Halley-SVD are not known to us: "
    "this is Halley's iteration on Σ over its trace, 5 steps, from "
)

METHODS: Mapping[str, Method] = table(
    {
        row.name: row
        for row in (
            Method(
                name="exact",
                paper_name=None,
                forward=_EIGENDECOMPOSITION,
                gradient=DividedDifferences(),
                description="the mathematically exact gradient by divided differences; finite at "
                "ties",
                reference="Daleckiĭ, Kreĭn: Integration and differentiation of functions of "
                "Hermitian operators, AMS Translations 47, 1965",
            ),
            Method(
                name="svd",
                paper_name="MPN-COV",
                forward=_EIGENDECOMPOSITION,
                gradient=Pairwise(kernel=Difference()),
                description="1/(λi − λj) with the paper's overflow check; zero instead of f′(λ) "
                "between tied eigenvectors",
                reference="Li, Xie, Wang, Zuo: Is second-order information helpful for large-scale "
                "visual recognition? ICCV 2017",
            ),
            Method(
                name="svd-topn",
                paper_name="SVD-TopN",
                forward=_TOP_N,
                gradient=_TOP_N,
                description="the N largest eigenvalues alone, kernel bounded by 1/λN; biased "
                "forward and backward",
                reference=_ICCV_2021,
            ),
            Method(
                name="svd-trunc",
                paper_name="SVD-Trunc",
                forward=_EIGENDECOMPOSITION,
                gradient=Pairwise(kernel=Truncated()),
                description="1/(λi − λj) clipped to ±limit; biased where the gap is below 1/limit",
                reference=_ICCV_2021,
            ),
            Method(
                name="svd-pi",
                paper_name="SVD-PI",
                forward=_EIGENDECOMPOSITION,
                gradient=Pairwise(kernel=PowerIteration()),
                description="gradient of power iterations with deflation; biased where the "
                "eigenvalue ratio is close to 1",
                reference="Wang, Dang, Hu, Fua, Salzmann: Backpropagation-friendly "
                "eigendecomposition, NeurIPS 2019",
            ),
            Method(
                name="svd-newton",
                paper_name="SVD-Newton",
                forward=_EIGENDECOMPOSITION,
                gradient=NewtonSchulz(iterations=10),
                description="exact root forward, gradient of the Newton-Schulz iteration; biased "
                "at small eigenvalues",
                reference=_ICCV_2021,
            ),
            Method(
                name="svd-taylor",
                paper_name="SVD-Taylor",
                forward=_EIGENDECOMPOSITION,
                gradient=Pairwise(kernel=Taylor()),
                description="1/(λi − λj) by its Taylor polynomial; biased where the eigenvalue "
                "ratio is close to 1",
                reference=_ICCV_2021,
            ),
            Method(
                name="svd-pade",
                paper_name="SVD-Padé",
                forward=_EIGENDECOMPOSITION,
                gradient=Pairwise(kernel=Pade()),
                description="1/(λi − λj) by the diagonal Padé approximant [50/50]: the plain "
                "kernel with a finite cap at ties",
                reference=_ICCV_2021,
            ),
            Method(
                name="svd-lorentz",
                paper_name=None,
                forward=_EIGENDECOMPOSITION,
                gradient=Pairwise(kernel=Lorentzian()),
                description="1/(λi − λj) broadened by epsilon times the larger eigenvalue; biased "
                "where the relative gap is not far above epsilon",
                reference="Liao, Liu, Wang, Xiang: Differentiable programming tensor networks, "
                "Physical Review X 9, 2019",
            ),
            Method(
                name="isqrt-cov",
                paper_name="iSQRT-COV",
                forward=_NEWTON_SCHULZ,
                gradient=_NEWTON_SCHULZ,
                description="Newton-Schulz iteration and its own gradient; the root is "
                "approximate at small eigenvalues",
                reference="Li, Xie, Wang, Gao: Towards faster training of global covariance "
                "pooling networks by iterative matrix square root normalization, CVPR 2018",
            ),
            Method(
                name="mtp-lyapunov",
                paper_name=None,
                forward=_MATRIX_TAYLOR,
                gradient=Lyapunov(forward=_MATRIX_TAYLOR),
                description="Taylor polynomial of the matrix, gradient of an exact root; both "
                "approximate at small eigenvalues",
                reference=_ICLR_2022,
            ),
            Method(
                name="mpa-lyapunov",
                paper_name=None,
                forward=_MATRIX_PADE,
                gradient=Lyapunov(forward=_MATRIX_PADE),
                description="Padé approximant of the matrix, gradient of an exact root; both "
                "approximate at small eigenvalues",
                reference=_ICLR_2022,
            ),
            Method(
                name="newton-schulz-minimax",
                paper_name=None,
                forward=_MINIMAX,
                gradient=Lyapunov(forward=_MINIMAX),
                description="matrix products alone, exact to rounding where no eigenvalue is "
                "below ‖A‖/condition",
                reference="Amsel, Persson, Musco, Gower: The Polar Express: optimal matrix sign "
                "methods and their application to the Muon algorithm, 2025",
            ),
            Method(
                name="halley",
                paper_name=None,
                forward=_HALLEY,
                gradient=_HALLEY,
                description="Halley's iteration and its own gradient; the root is too small at "
                "small eigenvalues",
                reference=_HALLEY_SVD,
                caution=_HALLEY_UNKNOWN + "Σ itself, differentiated through its steps.",
            ),
            Method(
                name="halley-identity",
                paper_name=None,
                forward=_HALLEY_IDENTITY,
                gradient=_HALLEY_IDENTITY,
                description="Halley's iteration from the identity and its own gradient; the root "
                "is too large at small eigenvalues",
                reference=_HALLEY_SVD,
                caution=_HALLEY_UNKNOWN + "the identity, differentiated through its steps.",
            ),
            Method(
                name="halley-lyapunov",
                paper_name=None,
                forward=_HALLEY,
                gradient=Lyapunov(forward=_HALLEY),
                description="Halley's iteration, gradient of an exact root; both approximate at "
                "small eigenvalues",
                reference=_HALLEY_SVD,
                caution=_HALLEY_UNKNOWN + "Σ itself, with another gradient than the paper's.",
            ),
            Method(
                name="halley-identity-lyapunov",
                paper_name=None,
                forward=_HALLEY_IDENTITY,
                gradient=Lyapunov(forward=_HALLEY_IDENTITY),
                description="Halley's iteration from the identity, gradient of an exact root; both "
                "approximate at small eigenvalues",
                reference=_HALLEY_SVD,
                caution=_HALLEY_UNKNOWN + "the identity, with another gradient than the paper's.",
            ),
        )
    },
    kind="method",
)


def warn_of_float32(method: Method, compute_dtype: torch.dtype | None, stacklevel: int) -> None:
    """Tell of the error of float32 where it was asked for and the method needs float64."""
    if compute_dtype != torch.float32 or method.smooth or torch.compiler.is_compiling():
        return
    warnings.warn(
        f"compute_dtype=torch.float32 with method {method.name!r}: the gradient is wrong by tens "
        "of percent where eigenvalues of an n × n matrix, relative to the largest, are below "
        "n · 1e-7 (singular values of features with C channels below √(C · 1e-7)); leave "
        "compute_dtype=None where the device has float64, or, if that is meant, silence this by "
        "warnings.filterwarnings('ignore', 'compute_dtype=torch.float32')",
        UserWarning,
        stacklevel=stacklevel + 1,
    )


def get_method(method: str | Method) -> Method:
    """The row of that name, or the row itself.

    Raises:
        ValueError: no such method; the message names the nearest.
    """
    if isinstance(method, Method):
        return method
    # Without a further call for a name that is right.
    row = METHODS.get(method) if isinstance(method, str) else None
    return choose("method", method, METHODS) if row is None else row
