"""The symmetric eigendecomposition that every method stands on: quick, checked, and retried.

Shapes: (*, n, n) symmetric matrices; eigenvalues (*, n) ascending, eigenvectors (*, n, n).
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from covpool.linalg.checks import unreadable
from covpool.linalg.parallel import SampleError, by_shares
from covpool.linalg.spectrum import rank_tolerance

DECOMPOSITION_SLACK = 64
"""How many times n · finfo(dtype).eps the probed errors of a decomposition may be. Those of LAPACK
and cuSOLVER were at most 1 here, those of failed decompositions are of order one."""

Decomposition = tuple[Tensor, Tensor]


# Documented by torch, but not listed in its `__all__`.
LinAlgError = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]


class DecompositionError(SampleError, LinAlgError):
    """No way of decomposing succeeded; the message names the samples."""


def decompose(matrix: Tensor) -> Decomposition:
    """Eigenvalues and eigenvectors, of matrices that are taken to be symmetric. No gradient.

    On a CPU the batch is spread over the cores. Where values can be read, that is outside
    torch.compile and torch.func transforms, each sample's result is probed: A x and x have to be
    what V Λ Vᵀ x and V Vᵀ x are, for one fixed x. Samples that fail, or all of them where the
    solver raises, are decomposed again in the ways of `FALLBACKS`, one after the other, each sample
    for itself. Samples that are not finite give NaN.

    Raises:
        DecompositionError: samples for which every way failed.
    """
    if unreadable(matrix) or matrix.numel() == 0:
        eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
        return eigenvalues, eigenvectors
    flat = matrix.detach().reshape(-1, *matrix.shape[-2:])
    if matrix.device.type == "cpu":
        eigenvalues, eigenvectors = by_shares(_decompose, (flat,), work=matrix.shape[-1] ** 3)
    else:
        eigenvalues, eigenvectors = _decompose(flat)
    return eigenvalues.reshape(matrix.shape[:-1]), eigenvectors.reshape(matrix.shape)


def _solve(matrix: Tensor) -> Decomposition:
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    return eigenvalues, eigenvectors


def _decompose(matrices: Tensor) -> Decomposition:
    """The same of (batch, n, n)."""
    try:
        eigenvalues, eigenvectors = _solve(matrices)
        failed = _failed(matrices, eigenvalues, eigenvectors)
    except LinAlgError:
        eigenvalues = torch.empty_like(matrices[..., 0])
        eigenvectors = torch.empty_like(matrices)
        failed = torch.ones(len(matrices), dtype=torch.bool, device=matrices.device)
    if failed.any():
        hopeless = []
        for index in failed.nonzero()[:, 0].tolist():
            found = _retry(matrices[index])
            if found is None:
                hopeless.append(index)
            else:
                eigenvalues[index], eigenvectors[index] = found
        if hopeless:
            raise DecompositionError(
                f"no eigendecomposition found in {{samples}}, {matrices.shape[-1]} × "
                f"{matrices.shape[-1]} in {matrices.dtype} on {matrices.device}; tried "
                f"{', '.join(FALLBACKS)}; check that the matrices are symmetric, or add a multiple "
                "of the identity",
                hopeless,
                len(matrices),
            )
    return eigenvalues, eigenvectors


def _failed(matrices: Tensor, eigenvalues: Tensor, eigenvectors: Tensor) -> Tensor:
    """Which samples' eigenvectors are not orthogonal or not theirs. (batch,)"""
    size = matrices.shape[-1]
    # Any vector without symmetries shows a wrong result; its entries are of order 1/√n.
    probe = torch.arange(1, size + 1, dtype=matrices.dtype, device=matrices.device).mul(2.4).cos()
    probe = (probe / probe.norm())[:, None]
    coordinates = eigenvectors.mT @ probe
    orthogonality = (eigenvectors @ coordinates - probe).abs().amax((-2, -1))
    scale = eigenvalues.abs().amax(-1)
    residual = eigenvectors @ (coordinates * eigenvalues[..., None]) - matrices @ probe
    # The comparison is this way round so that NaN counts as failed.
    tolerance = DECOMPOSITION_SLACK * rank_tolerance(size, matrices.dtype)
    passed = (orthogonality <= tolerance) & (residual.abs().amax((-2, -1)) <= tolerance * scale)
    return ~passed


def _in_float64(matrix: Tensor) -> Decomposition:
    eigenvalues, eigenvectors = _solve(matrix.double())
    return eigenvalues.to(matrix.dtype), eigenvectors.to(matrix.dtype)


def _scaled(matrix: Tensor) -> Decomposition:
    scale = matrix.abs().amax()
    eigenvalues, eigenvectors = _solve(matrix / scale)
    return eigenvalues * scale, eigenvectors


def _by_svd(matrix: Tensor) -> Decomposition:
    """The singular value decomposition of A + ‖A‖ I, which is positive semi-definite."""
    size = matrix.shape[-1]
    shift = torch.linalg.matrix_norm(matrix)
    shifted = matrix + shift * torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    left, singular_values, _ = torch.linalg.svd(shifted)
    return (singular_values - shift).flip(-1), left.flip(-1)


def _with_jitter(matrix: Tensor) -> Decomposition:
    """The matrix with n · eps of its norm, times 1 to 2, added to its diagonal; with a warning."""
    size = matrix.shape[-1]
    jitter = rank_tolerance(size, matrix.dtype) * torch.linalg.matrix_norm(matrix)
    ramp = torch.linspace(1, 2, size, dtype=matrix.dtype, device=matrix.device)
    eigenvalues, eigenvectors = _solve(matrix + torch.diag(jitter * ramp))
    warnings.warn(
        f"an eigendecomposition of a {size} × {size} matrix in {matrix.dtype} succeeded only "
        f"with {2 * jitter.item():.1e} added to its diagonal",
        RuntimeWarning,
        stacklevel=2,
    )
    return eigenvalues, eigenvectors


FALLBACKS: dict[str, Callable[[Tensor], Decomposition]] = {
    "the same solver alone": _solve,
    "float64": _in_float64,
    "scaling": _scaled,
    "a singular value decomposition": _by_svd,
    "jitter on the diagonal": _with_jitter,
}
"""What is tried for a sample that failed, in this order."""


def _retry(matrix: Tensor) -> Decomposition | None:
    if not matrix.isfinite().all():
        return torch.full_like(matrix[0], torch.nan), torch.full_like(matrix, torch.nan)
    for way in FALLBACKS.values():
        try:
            eigenvalues, eigenvectors = way(matrix)
        except LinAlgError:
            continue
        # Jitter changes the matrix by more than the probe of a true decomposition allows.
        probed = (
            matrix if way is not _with_jitter else (eigenvectors * eigenvalues) @ eigenvectors.mT
        )
        found: Any = (probed[None], eigenvalues[None], eigenvectors[None])
        if not bool(_failed(*found)):
            return eigenvalues, eigenvectors
    return None
