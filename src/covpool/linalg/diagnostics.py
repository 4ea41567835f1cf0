"""How well conditioned symmetric matrices are, and how good a function of them came out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from covpool.linalg import checks
from covpool.linalg.functions import ScalarFunction
from covpool.linalg.precision import full_precision, range_unit
from covpool.linalg.spectrum import clip_to_rank, of_kind, symmetric_part
from covpool.linalg.transforms import unreadable


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """Figures of each matrix of a batch, (*) like the batch, detached.

    Eigenvalues below n · finfo(dtype).eps of the largest, dtype that of the computation, count as
    zero, as everywhere in this package.

    Attributes:
        size: n of the n × n matrices.
        condition_number: λmax/λmin over all n eigenvalues (the condition number in the 2-norm);
            inf where the matrix is singular.
        rank: how many eigenvalues are not zero, int64.
        effective_rank: exp(−Σ pᵢ log pᵢ), pᵢ = λᵢ/Σλ: the exponential of the spectrum's entropy
            (Roy, Vetterli, "The effective rank", EUSIPCO 2007), from 1 to n; 0 for the zero matrix.
        smallest_relative_gap: the least (λᵢ₊₁ − λᵢ)/λᵢ₊₁ over neighbours; 0 at a tie. Pairs of two
            zero eigenvalues are left out, as they enter no gradient; inf where no pair is left.
        largest_dropped_eigenvalue: the largest |λ| of those that count as zero, which the results
            lack; 0 where there is none. A rounding error of the largest eigenvalue as a rule. Where
            it is more than that, as the 1 of diag(1e24, 1), rows and columns differ in size beyond
            the digits of the dtype: scale them, for a covariance the features, to similar size.
        residual: what the returned matrix Y lacks, or None where no function was computed or none
            is defined. For the square root ‖Y² − A‖/‖A‖; for the inverse root ‖Y A Y − P‖/‖P‖ with
            P the projector on A's range; for the logarithm ‖exp(Y) − (A + I − P)‖/‖A + I − P‖; for
            the inverse ‖A Y − P‖/‖P‖, for abs ‖Y² − A²‖/‖A²‖, for sign ‖Y² − P‖/‖P‖; Frobenius
            norms. None for the others. 0 for the zero matrix.
        iterations: how many steps the forward algorithm took, int64, or None where it does not
            iterate.
    """

    size: int
    condition_number: Tensor
    rank: Tensor
    effective_rank: Tensor
    smallest_relative_gap: Tensor
    largest_dropped_eigenvalue: Tensor
    residual: Tensor | None = None
    iterations: Tensor | None = None

    def __str__(self) -> str:
        """One line a figure: the value, or the least, median and largest over the batch."""
        shape = tuple(self.rank.shape)
        batch = f", batch {shape}: least, median, largest" if shape else ""
        lines = [f"{self.size} × {self.size}{batch}"]
        for name in (
            "condition_number",
            "rank",
            "effective_rank",
            "smallest_relative_gap",
            "largest_dropped_eigenvalue",
            "residual",
            "iterations",
        ):
            figure = getattr(self, name)
            if figure is not None and figure.numel() > 0:
                values = figure.detach().double().flatten()
                if shape:
                    values = torch.stack([values.min(), values.median(), values.max()])
                listed = ", ".join(f"{value:.4g}" for value in values.tolist())
                lines.append(f"  {name.replace('_', ' ')}: {listed}")
        return "\n".join(lines)


def of_spectrum(
    eigenvalues: Tensor,
    computed: Tensor | None = None,
    unit: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    iterations: Tensor | None = None,
) -> Diagnostics:
    """The figures of eigenvalues (*, n), ascending, n ≥ 1.

    Args:
        eigenvalues: those that count as zero being exactly zero.
        computed: as they were before; None: the same.
        unit: (*, 1, 1), of both; None: 1.
    """
    eigenvalues = eigenvalues.detach()
    computed = eigenvalues if computed is None else computed.detach()
    dropped = torch.where(eigenvalues == 0, computed.abs(), 0).amax(-1)
    largest, smallest = eigenvalues[..., -1], eigenvalues[..., 0]
    singular = smallest <= 0
    condition = torch.where(singular, torch.inf, largest / torch.where(singular, 1, smallest))
    share = eigenvalues / torch.where(largest > 0, largest, 1)[..., None]
    total = share.sum(-1, keepdim=True)
    share = share / torch.where(total > 0, total, 1)
    entropy = -torch.special.xlogy(share, share).sum(-1)
    upper, lower = eigenvalues[..., 1:], eigenvalues[..., :-1]
    positive = upper > 0
    gaps = torch.where(positive, (upper - lower) / torch.where(positive, upper, 1), torch.inf)
    no_pair = torch.full_like(largest, torch.inf)[..., None]
    return Diagnostics(
        size=eigenvalues.shape[-1],
        condition_number=condition,
        rank=(eigenvalues > 0).sum(-1),
        effective_rank=torch.where(largest > 0, entropy.exp(), 0),
        smallest_relative_gap=torch.cat([gaps, no_pair], -1).amin(-1),
        largest_dropped_eigenvalue=dropped if unit is None else dropped * unit[..., 0, 0],
        residual=residual,
        iterations=iterations,
    )


def diagnose(
    matrix: Tensor, *, compute_dtype: torch.dtype | None = None, check: bool = True
) -> Diagnostics:
    """Condition number, rank, effective rank and smallest relative gap of each matrix.

    Args:
        matrix: (*, n, n) symmetric (or complex Hermitian) positive semi-definite, n ≥ 1, any
            floating-point dtype, complex64 or complex128.
        compute_dtype: the dtype of the eigendecomposition; None: float64.
        check: as for `matrix_sqrt`. Off, negative eigenvalues count as zero.

    Returns:
        `Diagnostics`, without residual and iterations; it states each figure's definition. No
        gradient flows through it.

    Ties have a relative gap of 0. Rank deficiency: the condition number is inf.

    Raises:
        ValueError: not square, of size zero, not floating point or complex, another compute_dtype
            than float32 and float64 or, with `check`, matrices that are not finite, symmetric or
            positive semi-definite beyond rounding, by index.

    >>> import torch, covpool
    >>> print(covpool.diagnose(torch.diag(torch.tensor([1.0, 1.0, 4.0]))))
    3 × 3
      condition number: 4
      rank: 3
      effective rank: 2.381
      smallest relative gap: 0
      largest dropped eigenvalue: 0
    """
    checks.square("diagnose", matrix, complex_too=True)
    checks.compute_dtype("diagnose", compute_dtype)
    if matrix.shape[-1] == 0:
        raise ValueError(f"diagnose needs matrices of size 1 or more, got {tuple(matrix.shape)}")
    matrix = matrix.detach()
    readable = not unreadable(matrix)
    check = check and readable
    extent = checks.entries("diagnose", matrix) if check and matrix.numel() else None
    with full_precision(matrix):
        dtype = of_kind(compute_dtype or torch.float64, matrix.dtype)
        unit = range_unit(matrix, dtype, readable=readable, extent=extent)
        scaled = matrix if unit is None else matrix / unit
        eigenvalues = torch.linalg.eigvalsh(symmetric_part(scaled.to(dtype)))
    if check:
        checks.positive_semidefinite("diagnose", eigenvalues, matrix.dtype, unit)
    return of_spectrum(clip_to_rank(eigenvalues, matrix.shape[-1]), eigenvalues, unit)


def residual(
    function: ScalarFunction,
    matrix: Tensor,
    result: Tensor,
    eigenvalues: Tensor,
    eigenvectors: Tensor,
) -> Tensor | None:
    """See `Diagnostics.residual`; the eigenpairs give the range alone."""

    def projector() -> Tensor:
        kept = (function.clip(eigenvalues, matrix.shape[-1]) != 0).to(matrix.dtype)
        return (eigenvectors * kept[..., None, :]) @ eigenvectors.mH

    # Norms of A itself would overflow for entries beyond the root of the largest number.
    scale = matrix.abs().amax((-2, -1), keepdim=True)
    scale = torch.where(scale > 0, scale, 1)
    equation = function.equation(matrix, result, projector, scale)
    if equation is None:
        return None
    actual, expected = equation
    norm = torch.linalg.matrix_norm(expected)
    difference = torch.linalg.matrix_norm(actual - expected)
    return difference / torch.where(norm > 0, norm, 1)
