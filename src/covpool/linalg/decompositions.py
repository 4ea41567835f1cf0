"""Decompositions with gradients that stay finite at ties: drop-ins for `torch.linalg`."""

import torch
from torch import Tensor

from covpool.linalg import checks
from covpool.linalg.eigen import Eigh
from covpool.linalg.kernels import KERNELS, Kernel
from covpool.linalg.methods import choose
from covpool.linalg.spectrum import symmetric_part


def eigh(
    matrix: Tensor, kernel: str | Kernel = "difference", *, check: bool = True
) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of symmetric matrices, with a gradient that stays finite.

    The forward pass is `torch.linalg.eigh`. Backward, a gradient G of the eigenvectors becomes
    V (Kᵀ ∘ (VᵀG)) Vᵀ, with K the kernel where `torch.linalg.eigh` has 1/(λi − λj), which is
    infinite at ties. The eigenvalues' gradient needs no kernel.

    Args:
        matrix: (*, n, n) symmetric, definite or not, float64 or float32.
        kernel: a name of `KERNELS` ("difference", "truncated", "taylor", "pade",
            "power-iteration") or a kernel with constants of its own, `Taylor(degree=50)`.
            "difference" is exact away from ties.
        check: whether to refuse matrices that are not finite and symmetric.

    Returns:
        eigenvalues (*, n) in ascending order and eigenvectors (*, n, n) in columns, in the
        input's dtype, as computed in it: no precision is added.

    Ties: each kernel states its value. No kernel can make a loss well defined that depends on
    which basis of a tied eigenspace, or which sign of an eigenvector, is returned. Second
    derivatives (by "difference" alone) are right away from ties and finite but meaningless there.

    Rank deficiency: zero eigenvalues are ties like others.

    Raises:
        ValueError: not square, not float32 or float64, an unknown kernel or, with `check`,
            matrices that are not finite or not symmetric beyond rounding, by index.
        RuntimeError: a second derivative with a kernel other than "difference".

    Source: Ionescu, Vantzos, Sminchisescu, "Matrix backpropagation for deep networks with
    structured layers", ICCV 2015, and the kernels' own.
    """
    chosen = kernel if isinstance(kernel, Kernel) else choose("kernel", kernel, KERNELS)
    checks.square("eigh", matrix)
    if matrix.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"eigh needs float32 or float64, got {matrix.dtype}; convert the matrix first"
        )
    if check:
        checks.finite("eigh", matrix, sample_dims=2)
        checks.symmetric("eigh", matrix)
    eigenvalues, eigenvectors = Eigh.apply(symmetric_part(matrix), chosen)
    return eigenvalues, eigenvectors
