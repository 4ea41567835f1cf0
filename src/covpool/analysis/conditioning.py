"""How well conditioned the covariances are that a pooling layer works on.

Each figure is measured twice: on the features, whose singular values σ give the eigenvalues
λ = σ² without the covariance being formed, and on the covariance formed in a given precision.
Forming it squares the singular values, and the rounding errors, of about finfo(dtype).eps times
the largest eigenvalue, replace every eigenvalue below them. So a condition number of 1e14 is a
property of the features in the first figure, and may be rounding alone in the second.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from covpool.analysis.records import Distribution, Record, check_spectrum, summarise
from covpool.analysis.state import pooled_features
from covpool.linalg import checks
from covpool.linalg.covariance import centre
from covpool.linalg.diagnostics import of_spectrum
from covpool.linalg.spectrum import clip_to_rank, symmetric_part
from covpool.pooling import covariance

EPS = torch.finfo(torch.float64).eps
"""The paper's floor under eigenvalues."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SpectrumFigures(Record):
    """Figures of each spectrum of a batch, all of shape (*).

    Attributes:
        condition_number: λmax/λmin over all n eigenvalues; inf where the matrix is singular.
        condition_number_of_range: λmax over the smallest eigenvalue that is not zero; NaN for the
            zero matrix.
        condition_number_floored: max(λmax, floor)/max(λmin, floor), eigenvalues that are rounding
            errors or negative included: what the paper's Table 2 measures. Where the smallest
            eigenvalue is below the floor it is λmax/floor, a figure of the largest eigenvalue and
            of the floor alone.
        rank: eigenvalues that are not zero.
        effective_rank: exp of the spectrum's entropy (Roy, Vetterli, EUSIPCO 2007), 1 to n.
        smallest_relative_gap: the least (λᵢ₊₁ − λᵢ)/λᵢ₊₁; pairs of zeros left out, inf without any.
        largest_eigenvalue: λmax.
        floored_share: the share of the n eigenvalues that are below the floor.
        negative_share: the share that came out negative: always 0 from features, and rounding
            errors from a covariance that was formed.
    """

    condition_number: Tensor
    condition_number_of_range: Tensor
    condition_number_floored: Tensor
    rank: Tensor
    effective_rank: Tensor
    smallest_relative_gap: Tensor
    largest_eigenvalue: Tensor
    floored_share: Tensor
    negative_share: Tensor

    def summarise(self) -> dict[str, Distribution]:
        """Each figure's distribution over all samples."""
        return {name: summarise(getattr(self, name)) for name in self.__dataclass_fields__}


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditioning(Record):
    """The conditioning of each covariance of a batch, by way of the features and as formed.

    Attributes:
        channels: C.
        positions: N.
        floor: below which an eigenvalue counts as floored.
        formed_dtype: the precision in which the covariance was formed.
        of_features: from the singular values of the centred features, in float64.
        of_covariance: from the covariance formed in `formed_dtype`, decomposed in float64, so that
            the forming alone makes the difference.
        eigenvalues: (*, C), ascending, from the features; what counts as zero is exactly zero.
    """

    channels: int
    positions: int
    floor: float
    formed_dtype: torch.dtype
    of_features: SpectrumFigures
    of_covariance: SpectrumFigures
    eigenvalues: Tensor

    def summarise(self) -> dict[str, dict[str, Distribution]]:
        """The distribution of each figure over all samples, for both ways."""
        return {
            "of_features": self.of_features.summarise(),
            "of_covariance": self.of_covariance.summarise(),
        }

    def __str__(self) -> str:
        lines = [f"{self.channels} channels, {self.positions} positions: least, median, largest"]
        for way, figures in self.summarise().items():
            lines.append(f"  {way.replace('_', ' ')}:")
            for name, found in figures.items():
                ends = (found.quantiles[0], found.median, found.largest) if found.quantiles else ()
                shown = ", ".join(f"{value:.4g}" for value in ends) or "no samples"
                lines.append(f"    {name.replace('_', ' ')}: {shown}")
        return "\n".join(lines)


def feature_spectrum(features: Tensor) -> Tensor:
    """Eigenvalues of the covariance of features, from their singular values: λ = σ².

    With Xc the centred features, σ are the singular values of Xc/√N, computed in float64. Relative
    to the largest they are right to eps = 2.2e-16, so λ is right where λ/λmax is above 1e-28 or so;
    from the formed covariance that is 1e-13. σ at or below max(C, N) · eps of the largest counts as
    zero (the convention of numpy's `matrix_rank`), and centring leaves N − 1 of them at most.

    Args:
        features: (*, C, H, W), or (*, C, N) where it has two or three dimensions; any
            floating-point dtype, taken as exact.

    Returns:
        (*, C) float64, ascending, detached; zeros where there is no singular value.

    What it is not: what a layer that forms the covariance sees, see `measure_conditioning`.

    Raises:
        ValueError: a bad shape or dtype, or features that are not finite, by sample.
    """
    x = _positions("feature_spectrum", features)
    return _spectrum("feature_spectrum", x)


def _spectrum(caller: str, x: Tensor) -> Tensor:
    """`feature_spectrum` of features (*, C, N)."""
    checks.finite(caller, x, sample_dims=2)
    channels, positions = x.shape[-2:]
    centred = x
    for _ in range(2):  # the first mean is rounded to its own digits, few beside a small rest
        centred = centre(centred, torch.float64)
    singular = torch.linalg.svdvals(centred).flip(-1) * positions**-0.5
    if positions <= channels:
        singular = singular[..., 1:]  # the direction that centring has taken away
    if singular.shape[-1]:
        least = max(channels, positions) * EPS * singular[..., -1:]
        singular = torch.where(singular <= least, 0, singular)
    missing = channels - singular.shape[-1]
    return torch.nn.functional.pad(singular.square(), (missing, 0))


def _positions(caller: str, features: Tensor) -> Tensor:
    """(*, C, H, W) or (*, C, N) → (*, C, N), detached."""
    checks.floating(caller, features)
    x = features.detach()
    x = x.flatten(-2) if x.ndim >= 4 else x
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ValueError(
            f"{caller} needs features (*, C, H, W) or (*, C, N) with channels and positions, got "
            f"shape {tuple(features.shape)}"
        )
    return x


def spectrum_figures(eigenvalues: Tensor, *, floor: float = EPS) -> SpectrumFigures:
    """The figures of given eigenvalues of covariances (*, n), in any order, zeros being zeros.

    Raises:
        ValueError: eigenvalues that are negative or not finite, none of them, or a floor that is
            not positive.
    """
    spectrum = check_spectrum("spectrum_figures", eigenvalues)
    return _figures(spectrum, spectrum, floor)


def _figures(raw: Tensor, clipped: Tensor, floor: float) -> SpectrumFigures:
    """Of eigenvalues (*, n) as computed, and with rounding errors set to zero; both ascending."""
    if not 0 < floor < float("inf"):
        raise ValueError(f"the floor under eigenvalues must be a positive number, got {floor!r}")
    found = of_spectrum(clipped)
    largest = clipped[..., -1]
    smallest = torch.where(clipped > 0, clipped, torch.inf).amin(-1)
    floored = raw.clamp_min(floor)
    return SpectrumFigures(
        condition_number=found.condition_number,
        condition_number_of_range=torch.where(largest > 0, largest / smallest, torch.nan),
        condition_number_floored=floored[..., -1] / floored[..., 0],
        rank=found.rank,
        effective_rank=found.effective_rank,
        smallest_relative_gap=found.smallest_relative_gap,
        largest_eigenvalue=largest,
        floored_share=(raw < floor).double().mean(-1),
        negative_share=(raw < 0).double().mean(-1),
    )


def measure_conditioning(
    source: Tensor | nn.Module,
    *inputs: object,
    formed_dtype: torch.dtype = torch.float64,
    floor: float = EPS,
) -> Conditioning:
    """Condition number, effective rank, smallest gap and floored eigenvalues, sample by sample.

    The same figures by way of the features and by way of the covariance as formed; the module says
    why they differ. At N − 1 < C the covariance is singular whatever the features are: its
    condition number is infinite, that of its range is the features' own, and the formed covariance
    gives rounding errors where the zeros are. The paper's figure, `condition_number_floored`, is
    then λmax/floor.

    Args:
        source: features, (*, C, H, W) or (*, C, N) as for `cov_pool`; or a model with one
            `CovPool2d`, whose pooled features are looked at.
        inputs: what the model is called with.
        formed_dtype: the precision in which the covariance is formed, float64 as this package does
            or float32.
        floor: the paper's EPS = finfo(float64).eps unless given. It has the unit of λ.

    Returns:
        `Conditioning`; `summarise()` gives distributions over the samples.

    Cost: for a model one forward pass, after which it is as it was; a singular value decomposition
    of the features and a decomposition of the covariance in float64, each sample.

    What it is not: the error of any method. `exact` is well conditioned on the features where the
    covariance is singular.

    Raises:
        ValueError: features of a bad shape, dtype or without finite values, another formed_dtype
            than float32 and float64, a floor that is not positive; a model without exactly one
            CovPool2d.

    Source: Song, Sebe, Wang, ICCV 2021, Table 2, for the floored figure; Golub, Van Loan, "Matrix
    Computations", §5.3, for what forming a Gram matrix does.
    """
    if formed_dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "measure_conditioning: formed_dtype must be torch.float32 or torch.float64, got "
            f"{formed_dtype!r}"
        )
    if isinstance(source, nn.Module):
        features = pooled_features(source, *inputs)
    else:
        if inputs:
            raise ValueError(
                "measure_conditioning takes inputs for a model alone, not beside features"
            )
        features = source
    x = _positions("measure_conditioning", features)
    spectrum = _spectrum("measure_conditioning", x)
    formed = symmetric_part(covariance(features.detach().to(formed_dtype)))
    raw = torch.linalg.eigvalsh(formed.double())
    clipped = clip_to_rank(raw.to(formed_dtype), x.shape[-2]).double()
    return Conditioning(
        channels=x.shape[-2],
        positions=x.shape[-1],
        floor=floor,
        formed_dtype=formed_dtype,
        of_features=_figures(spectrum, spectrum, floor),
        of_covariance=_figures(raw, clipped, floor),
        eigenvalues=spectrum,
    )
