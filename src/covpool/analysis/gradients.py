"""How large the kernels K ≈ 1/(λi − λj) can become, and how large they become.

The paper's Table 6 (upper bounds), and the sizes on eigenvalues that were met in training.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from covpool.analysis.conditioning import EPS
from covpool.analysis.records import Record, check_dtype, check_spectrum
from covpool.linalg.functions import SQRT
from covpool.linalg.methods import METHODS, Method, get_method
from covpool.linalg.names import MethodName
from covpool.linalg.spectrum import clip_to_rank

LOG10_EDGES = tuple(range(-20, 41))
"""Edges of the histogram's bins, of log10 |K|; the ends take what lies beyond them."""


@dataclass(frozen=True, kw_only=True)
class GradientBound(Record):
    """The largest |K| that a method can put into a gradient: a row of the paper's Table 6.

    Attributes:
        method: the row's name.
        paper_name: what the paper calls it, or None.
        form: the bound as a formula.
        trigger: where it is reached, or None.
        dtype: of the eigenvalues.
        floor: below which the larger eigenvalue of no pair lies.
        bound: the maximum; inf where there is none; None for methods that have no K.
        attained: the largest |K| that the method computes in the dtype for two eigenvalues at the
            floor that are tied; None for methods that have no K.
        representable: whether the bound is a finite number of the dtype.
    """

    method: str
    paper_name: str | None
    form: str | None
    trigger: str | None
    dtype: torch.dtype
    floor: float
    bound: float | None
    attained: float | None
    representable: bool


def gradient_bounds(
    dtype: torch.dtype = torch.float64, *, floor: float | None = None
) -> tuple[GradientBound, ...]:
    """The bound of |K| for every row of `METHODS`: the paper's Table 6.

    Args:
        dtype: of the eigenvalues, float64 or float32.
        floor: the paper's EPS, the least that the larger eigenvalue of a pair counts as; None:
            finfo(dtype).eps.

    The Padé row's bound is |Σp/Σq|/floor with the frozen coefficients, which were solved at 20
    decimal digits. 1/(1 − x) is its own Padé approximant, so the equations for the coefficients
    are singular, and |Σp/Σq|, which exact arithmetic would make infinite, is one over the rounding
    error of whatever precision solved them: with n digits it is about 10ⁿ. The bound says how
    precisely the coefficients were computed, not how well the gradient behaves.

    In this package eigenvalues below n · eps of the largest are zero and their pairs enter no
    gradient, so that the trigger, two tied eigenvalues at the floor, is not met; and at a tie K is
    multiplied by f(λi) − f(λj) = 0. `gradient_magnitudes` says what is met.

    Raises:
        ValueError: another dtype than float32 and float64, a floor that is not positive.

    Source: Song, Sebe, Wang, ICCV 2021, Table 6.
    """
    check_dtype("gradient_bounds", dtype)
    least = torch.finfo(dtype).eps if floor is None else floor
    _check_floor("gradient_bounds", least)
    return tuple(_bound(method, dtype, least) for method in METHODS.values())


def _bound(method: Method, dtype: torch.dtype, floor: float) -> GradientBound:
    found = method.gradient.largest_kernel(floor, dtype)
    bound = None if found is None else found.bound
    return GradientBound(
        method=method.name,
        paper_name=method.paper_name,
        form=None if found is None else found.form,
        trigger=None if found is None else found.trigger,
        dtype=dtype,
        floor=floor,
        bound=bound,
        attained=None if found is None else found.attained,
        representable=bound is None or bound <= torch.finfo(dtype).max,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientMagnitudes(Record):
    """The sizes of K over the pairs of each spectrum of a batch (*).

    Attributes:
        method: the row's name.
        bound: the largest |K| possible at `floor`, or None where the method has no K; of
            `svd-topn` the largest 1/λN of the batch, inf where a rank is below N.
        floor: the larger eigenvalue of no pair lies below; the least positive eigenvalue of the
            batch where nothing was floored.
        largest: (*), the largest |K|; 0 without pairs; None where the method has no K.
        largest_entry: (*), the largest |Lᵢⱼ| of the Loewner matrix of the square root: what the
            gradient is really multiplied by, K times the difference of the roots.
        pairs: (*), pairs i < j that enter the gradient.
        ties: (*), those of them with 1/(λi − λj) infinite, where K is what the method puts there.
        nonfinite: (*), pairs where the method's own |K| is infinite or NaN.
        log10_edges: edges of the histogram.
        histogram: (*, bins), pairs by log10 |K|; pairs with K = 0 or not finite are in none.
    """

    method: str
    bound: float | None
    floor: float
    largest: Tensor | None
    largest_entry: Tensor
    pairs: Tensor
    ties: Tensor
    nonfinite: Tensor | None
    log10_edges: tuple[int, ...]
    histogram: Tensor | None


def gradient_magnitudes(
    eigenvalues: Tensor,
    methods: Iterable[MethodName | Method] | None = None,
    *,
    floor: float | None = None,
) -> dict[str, GradientMagnitudes]:
    """The largest |K| met over spectra, per method, against its bound, with a histogram.

    Args:
        eigenvalues: (*, n) of covariances, not negative, such as `Conditioning.eigenvalues`; any
            order. Those below n · eps of the largest count as zero, unless a floor is given.
        methods: rows of `METHODS`; None: all of them.
        floor: None: pairs of zeros enter no gradient, as in this package. A number, such as
            `EPS`: every eigenvalue below it is raised to it, as in the paper's code, so that at
            deficient rank most pairs are ties.

    Returns:
        By name of the method, in the order given.

    Memory is that of a few (*, n, n) tensors.

    What it is not: the size of the gradient. K enters multiplied by f(λi) − f(λj), which is small
    where K is large; `largest_entry` is the product.

    Raises:
        ValueError: an unknown method, eigenvalues that are negative or not finite, or a floor that
            is not positive.

    Source: Song, Sebe, Wang, ICCV 2021, §"Upper bound of gradient".
    """
    spectrum = check_spectrum("gradient_magnitudes", eigenvalues)
    if floor is None:
        spectrum = clip_to_rank(spectrum, spectrum.shape[-1])
        positive = spectrum[spectrum > 0]
        least = positive.min().item() if positive.numel() else EPS
    else:
        _check_floor("gradient_magnitudes", floor)
        spectrum, least = spectrum.clamp_min(floor), floor
    rows = METHODS.values() if methods is None else [get_method(method) for method in methods]
    return {row.name: _magnitudes(row, spectrum, least) for row in rows}


def _magnitudes(method: Method, spectrum: Tensor, floor: float) -> GradientMagnitudes:
    size = spectrum.shape[-1]
    row, column = torch.triu_indices(size, size, offset=1, device=spectrum.device)
    smaller, larger = spectrum[..., row], spectrum[..., column]
    entering = larger > 0
    tied = (1 / (larger - smaller)).isinf() & entering
    entries = method.gradient.loewner(SQRT, spectrum, size).matrix
    magnitudes = method.gradient.kernel_magnitudes(spectrum)
    largest = nonfinite = histogram = None
    if magnitudes is not None:
        upper = magnitudes[..., row, column]
        nonfinite = (~upper.isfinite()).sum(-1)
        finite = torch.where(upper.isfinite(), upper, 0)
        largest = torch.nn.functional.pad(finite, (1, 0)).amax(-1)
        histogram = _histogram(finite)
    return GradientMagnitudes(
        method=method.name,
        bound=method.gradient.kernel_limit(spectrum, floor),
        floor=floor,
        largest=largest,
        largest_entry=entries.abs().amax((-2, -1)),
        pairs=entering.sum(-1),
        ties=tied.sum(-1),
        nonfinite=nonfinite,
        log10_edges=LOG10_EDGES,
        histogram=histogram,
    )


def _histogram(magnitudes: Tensor) -> Tensor:
    """(*, pairs) → (*, bins), counts of the positive ones."""
    bins = len(LOG10_EDGES) - 1
    positive = magnitudes > 0
    exponent = torch.where(positive, magnitudes, 1).log10().floor().long() - LOG10_EDGES[0]
    place = torch.where(positive, exponent.clamp(0, bins - 1), bins)
    counts = torch.zeros((*magnitudes.shape[:-1], bins + 1), dtype=torch.int64)
    counts = counts.to(magnitudes.device)
    return counts.scatter_add(-1, place, torch.ones_like(place))[..., :bins]


def _check_floor(caller: str, floor: Any) -> None:
    number = isinstance(floor, int | float) and not isinstance(floor, bool)
    if not (number and 0 < floor < float("inf")):
        raise ValueError(f"{caller}: the floor must be a positive number, got {floor!r}")
