"""The eigendecomposition as an autograd function, its gradient's pole replaced by a kernel."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg.autograd.modes import in_both_modes, refuse_second_derivative
from covpool.linalg.engine.factorisation import sum_is_finite
from covpool.linalg.engine.symmetric import EIGENDECOMPOSITION
from covpool.linalg.gradients.kernels import Kernel
from covpool.linalg.precision import on_cpu
from covpool.linalg.spectrum import (
    antisymmetric_part,
    congruence,
    product,
    rank_tolerance,
    symmetric_part,
)
from covpool.linalg.transforms import nested_forward_mode, unreadable


def from_triangle(matrix: Tensor, lower: bool) -> Tensor:
    """The symmetric or Hermitian matrices (*, n, n) whose lower or upper triangle is given.

    What is in the other one, and the imaginary part of the diagonal, is not looked at.
    """
    strict = matrix.tril(-1) if lower else matrix.triu(1)
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    return strict + torch.diag_embed(diagonal.real) + strict.mH


class Eigh(Function):
    """(matrix, kernel, lower, caller) → eigenvalues (*, n), eigenvectors (*, n, n).

    Both are differentiable. Matrices that are not finite are refused in the name of `caller`,
    unless it is None. One triangle is read, and yet the gradient is the symmetric (Hermitian) one,
    which fills both, as torch's does.
    """

    @staticmethod
    def forward(
        matrix: Tensor, kernel: Kernel, lower: bool, caller: str | None
    ) -> tuple[Tensor, Tensor]:
        # LAPACK, as it is asked, reads the lower triangle alone.
        given = (matrix if lower else matrix.mH).detach()
        readable = on_cpu(given) and given.numel() > 0 and not unreadable(given)
        if readable and sum_is_finite(given):
            found, solved = EIGENDECOMPOSITION.attempt(given)
            if solved and not EIGENDECOMPOSITION.doubtful(given, found):
                return found[0], found[1]
        eigenvalues, eigenvectors = EIGENDECOMPOSITION(from_triangle(matrix, lower), caller=caller)
        return eigenvalues, eigenvectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernel = inputs[1]
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_eigenvalues, grad_eigenvectors = grad_outputs
        eigenvalues, eigenvectors = ctx.saved_tensors
        projected = product(eigenvectors.mH, grad_eigenvectors)
        weights = ctx.kernel.matrix(eigenvalues)
        inner = contract(ctx.kernel, weights, projected, eigenvalues, grad_eigenvectors)
        inner = inner + torch.diag_embed(grad_eigenvalues)
        gradient = symmetric_part(congruence(inner, eigenvectors))
        size = eigenvalues.shape[-1]
        gradient = refuse_unless_exact("eigh", gradient, ctx.kernel, eigenvalues, size)
        return gradient, None, None, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> tuple[Tensor, Tensor]:
        eigenvalues, eigenvectors = ctx.saved_tensors
        with nested_forward_mode():
            tangent = symmetric_part(grad_inputs[0])
            inner = congruence(tangent, eigenvectors.mH)
            tangent_vectors = eigenvectors @ (ctx.kernel.matrix(eigenvalues).mT * inner)
            tangent_values = inner.diagonal(dim1=-2, dim2=-1).real.clone()
            rest = (ctx.kernel, eigenvalues, eigenvalues.shape[-1])
            return (
                refuse_unless_exact("eigh", tangent_values, *rest),
                refuse_unless_exact("eigh", tangent_vectors, *rest),
            )


_eigh = in_both_modes(Eigh)


def contract(
    kernel: Kernel, weights: Tensor, projected: Tensor, values: Tensor, *gradients: Tensor
) -> Tensor:
    """herm(Kᵀ ∘ P), without what is rounding error in P and would be multiplied by the pole.

    Of a loss that does not depend on the basis within a tie, P = VᴴG is Hermitian there. In
    floating point it is so up to m · eps of the columns' norms, and an antisymmetric K of 1e16
    makes an error of order 1 of that. So for pairs closer than √eps of the largest value, where
    such an error exceeds half of the digits, a skew-Hermitian part that small counts as 0.

    Args:
        kernel: which it is.
        weights: (*, n, n), K; the row is the vector that is differentiated.
        projected: (*, n, n), P, of several pairs of V and G their sum.
        values: (*, n), those that belong to the vectors.
        gradients: (*, m, n) each, every G.
    """
    odd = antisymmetric_part(projected)
    with torch.no_grad():
        eps = torch.finfo(values.dtype).eps
        largest = torch.nn.functional.pad(values.abs(), (0, 1)).amax(-1)[..., None, None]
        close = (values[..., :, None] - values[..., None, :]).abs() <= eps**0.5 * largest
        noise = rank_tolerance(max(g.shape[-2] for g in gradients), values.dtype)
        norms = noise * torch.stack([_column_norms(g) for g in gradients]).sum(0)
        rounding = odd.abs() <= norms[..., :, None] + norms[..., None, :]
    odd = torch.where(close & rounding, 0, odd)
    if kernel.antisymmetric:
        return weights.mT * odd
    even = symmetric_part(projected)
    return antisymmetric_part(weights).mT * odd + symmetric_part(weights) * even


def _column_norms(matrix: Tensor) -> Tensor:
    """(*, m, n) → (*, n), without overflow of the sums or squares."""
    scale = (matrix.abs() / max(1, matrix.shape[-2])).sum(-2, keepdim=True)
    unit = matrix / torch.where(scale > 0, scale, 1)
    return unit.abs().square().sum(-2).sqrt() * scale[..., 0, :]


def refuse_unless_exact(
    caller: str, gradient: Tensor, kernel: Kernel, values: Tensor, longer_side: int
) -> Tensor:
    """The first derivative, marked as having none of its own: at ties, with most kernels ever.

    At ties the second derivative of a loss that does not see their basis depends on how vectors
    turn within them, which a single vector's derivative does not tell.
    """
    # Not the kernel's repr, which torch.compile cannot trace.
    name = type(kernel).__name__
    if not kernel.exact_second_order:
        reason = (
            f"{caller}: the second derivative of the gradient that kernel {name} gives is not "
            "defined; use kernel='difference' where second derivatives are needed"
        )
        return refuse_second_derivative(gradient, reason)
    with torch.no_grad():
        largest = torch.nn.functional.pad(values.abs(), (0, 1)).amax(-1, keepdim=True)
        gaps = values.diff(dim=-1).abs()
        tied = (gaps <= rank_tolerance(longer_side, values.dtype) * largest).any(-1)
    reason = (
        f"{caller}: the second derivative is not defined at ties, values that are the same up to "
        "rounding; use covpool.matrix_power or another function of the matrix where the loss is one"
    )
    return refuse_second_derivative(gradient, reason, tied)


def eigendecomposition(
    matrix: Tensor, kernel: Kernel, *, lower: bool, caller: str | None
) -> tuple[Tensor, Tensor]:
    eigenvalues, eigenvectors = _eigh(matrix, kernel, lower, caller)
    return eigenvalues, eigenvectors
