"""The eigendecomposition as an autograd function, its gradient's pole replaced by a kernel."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg.autograd.modes import (
    in_both_modes,
    recording,
    refuse_second_derivative,
    save,
    with_zeros,
)
from covpool.linalg.engine.factorisation import sum_is_finite
from covpool.linalg.engine.symmetric import EIGENDECOMPOSITION
from covpool.linalg.gradients.kernels import Difference, Kernel
from covpool.linalg.precision import on_cpu
from covpool.linalg.spectrum import (
    antisymmetric_part,
    congruence,
    planar,
    product,
    rank_tolerance,
    symmetric_part,
)
from covpool.linalg.transforms import in_transform, is_ordinary, nested_forward_mode, unreadable


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
        save(ctx, *output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        eigenvalues, eigenvectors = ctx.saved_tensors
        gap = plain_gap(ctx.kernel, eigenvalues, *grad_outputs)
        if gap is not None:
            gradient = _plain_gradient(gap, eigenvalues, eigenvectors, *grad_outputs)
            return gradient, None, None, None
        grad_eigenvalues, grad_eigenvectors = with_zeros(grad_outputs, ctx.saved_tensors)
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
    odd = without_rounding(antisymmetric_part(projected), values, *gradients)
    if kernel.antisymmetric:
        return weights.mT * odd
    even = symmetric_part(projected)
    return antisymmetric_part(weights).mT * odd + symmetric_part(weights) * even


def without_rounding(odd: Tensor, values: Tensor, *gradients: Tensor) -> Tensor:
    """The skew-Hermitian part of P, zero where it is rounding between close values; `contract`."""
    with torch.no_grad():
        eps = torch.finfo(values.dtype).eps
        largest = torch.nn.functional.pad(values.abs(), (0, 1)).amax(-1)[..., None, None]
        close = (values[..., :, None] - values[..., None, :]).abs() <= eps**0.5 * largest
        noise = rank_tolerance(max(g.shape[-2] for g in gradients), values.dtype)
        norms = noise * torch.stack([_column_norms(g) for g in gradients]).sum(0)
        rounding = odd.abs() <= norms[..., :, None] + norms[..., None, :]
    return torch.where(close & rounding, 0, odd)


class Gap(NamedTuple):
    """The least distance of two neighbours in a batch of values, and its ends."""

    least: float
    lowest: float
    highest: float

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(-self.lowest, self.highest)


def plain_gap(kernel: Kernel, values: Tensor, *gradients: Tensor | None) -> Gap | None:
    """What a backward pass that nothing differentiates needs to know of sorted values (*, n).

    None where plain quotients will not do: with other kernels, at ties, where a quotient overflows,
    where values cannot be read. A gradient costs what its operations cost, and the kernels' care
    for all of this takes most of them.

    One matrix that needs the care brings it to the whole batch: the others' gradients differ by
    rounding alone.
    """
    if recording() or not isinstance(kernel, Difference) or not on_cpu(values):
        return None
    for gradient in gradients:
        if gradient is not None and not is_ordinary(gradient):
            return None
    if values.shape[-1] < 2 or values.numel() == 0:
        return None
    lowest, highest = values.aminmax()
    first, last = values.diff(dim=-1).aminmax()
    # In ascending order all differences are positive, in descending order all negative.
    gap = Gap(max(first.item(), -last.item()), lowest.item(), highest.item())
    range_of = torch.finfo(values.dtype)
    # This way round so that NaN is not plain.
    return gap if gap.least >= range_of.tiny and gap.largest <= range_of.max / 8 else None


def plain_odd(projected: Tensor, gap: Gap, values: Tensor, *gradients: Tensor) -> Tensor:
    """P − Pᴴ without rounding errors, see `contract`; fresh memory."""
    odd = projected - projected.mH
    if gap.least <= torch.finfo(values.dtype).eps ** 0.5 * gap.largest:
        odd = without_rounding(odd.mul_(0.5), values, *gradients).mul_(2)
    return odd


def _plain_gradient(
    gap: Gap,
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    grad_eigenvalues: Tensor | None,
    grad_eigenvectors: Tensor | None,
) -> Tensor:
    """V (Kᵀ ∘ (VᴴG) + diag(g)) Vᴴ with K = 1/(λi − λj), halved and added to its adjoint."""
    vectors = planar(eigenvectors)
    dual = vectors.mH
    if grad_eigenvectors is None:
        inner = vectors * (cast(Tensor, grad_eigenvalues) * 0.5).unsqueeze(-2)
    else:
        projected = product(dual, planar(grad_eigenvectors))
        odd = plain_odd(projected, gap, eigenvalues, grad_eigenvectors)
        # Twice the skew-Hermitian part; half of it here and half in the adjoint that is added.
        scaled = eigenvalues * 4
        inner = odd.div_(scaled.unsqueeze(-2) - scaled.unsqueeze(-1))
        diagonal = inner.diagonal(dim1=-2, dim2=-1)
        if grad_eigenvalues is None:
            diagonal.zero_()
        else:
            diagonal.copy_(grad_eigenvalues * 0.5)
        inner = product(vectors, inner)
    gradient = product(inner, dual)
    return (gradient + gradient.mH).contiguous()


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
    if not (torch.compiler.is_compiling() or recording() or in_transform()):
        return gradient
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
