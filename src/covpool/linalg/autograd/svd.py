"""The singular value decomposition as an autograd function, its gradient's poles replaced.

With dP = Uᵀ dA V, the rotations Ω = Uᵀ dU and Θ = Vᵀ dV satisfy, for i ≠ j,

    Ωᵢⱼ + Θᵢⱼ = (dPᵢⱼ + dPⱼᵢ) / (σj − σi),    Ωᵢⱼ − Θᵢⱼ = (dPᵢⱼ − dPⱼᵢ) / (σj + σi).

So a repeated singular value is a pole of the sum alone, and only there a kernel stands in:
1/(σj − σi) = (σj + σi) K(σj², σi²). The textbook form, which multiplies 1/(σj² − σi²) into U and V
apart, has the pole in both and loses the difference, on which the polar factor U Vᵀ depends.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg.autograd.eigh import contract, refuse_unless_exact
from covpool.linalg.autograd.modes import in_both_modes
from covpool.linalg.engine.singular import SINGULAR_VALUE_DECOMPOSITION
from covpool.linalg.gradients.kernels import Kernel
from covpool.linalg.precision import full_precision
from covpool.linalg.spectrum import antisymmetric_part, rank_tolerance, symmetric_part
from covpool.linalg.transforms import nested_forward_mode


class _Weights(NamedTuple):
    """What stands for the quotients.

    difference: (*, k, k), σ₁/(σi − σj) for the vectors i, zero on the diagonal.
    total: (*, k, k), σ₁/(σi + σj), zero on the diagonal and for pairs of zeros.
    inverse: (*, 1, k), σ₁/σ, zero for zeros.
    root: (*, 1, 1), √σ₁, and 1 for the zero matrix. What is multiplied by the weights is divided by
        it before and after, so that neither 1/σ₁ nor σ₁ times a gradient leaves the range.
    """

    difference: Tensor
    total: Tensor
    inverse: Tensor
    root: Tensor


def _inverse(positive: Tensor) -> Tensor:
    """1/x, and 0 where x is 0, with a derivative that is finite there."""
    zero = positive == 0
    return torch.where(zero, 0, 1 / torch.where(zero, 1, positive))


def _weights(singular_values: Tensor, kernel: Kernel, longer_side: int) -> _Weights:
    # The kernels see (σ/σ₁)²: squares of σ itself would overflow or vanish. Differences are taken
    # before the division, because neighbours subtract exactly.
    # The column of zeros serves matrices without any singular value.
    largest = torch.nn.functional.pad(singular_values.detach(), (0, 1))[..., :1]
    tolerance = rank_tolerance(longer_side, singular_values.dtype)
    values = torch.where(singular_values <= tolerance * largest, 0, singular_values)
    scale = torch.where(largest > 0, largest, 1)[..., None]
    column, row = values[..., :, None], values[..., None, :]
    total = column / scale + row / scale
    gap = ((column - row) / scale).abs() * total
    larger = (torch.maximum(column, row) / scale).square()
    upper, lower = kernel.magnitudes(torch.where(larger > 0, larger, 1), gap)
    # Singular values descend: of a tie, the earlier counts as the larger.
    signed = upper.triu(1) - lower.tril(-1)
    reciprocal = _inverse(total)
    reciprocal = reciprocal.triu(1) + reciprocal.tril(-1)
    inverse = _inverse(values[..., None, :] / scale)
    return _Weights(total * signed, reciprocal, inverse, scale.sqrt())


def _capped(gradient: Tensor) -> Tensor:
    """What overflows of tiny matrices is made finite, so that it can still be summed."""
    limit = torch.finfo(gradient.dtype).max / (8 * max(1, *gradient.shape[-2:]))
    return gradient.clamp(-limit, limit)


def _outside(basis: Tensor, columns: Tensor) -> Tensor:
    """The columns' part outside the span of the basis; nothing is outside a complete one."""
    if basis.shape[-2] == basis.shape[-1]:
        return torch.zeros_like(columns)
    return columns - basis @ (basis.mT @ columns)


class Svd(Function):
    """(matrix, kernel) → U (*, m, k), S (*, k), Vh (*, k, n), all differentiable."""

    @staticmethod
    def forward(matrix: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vh = SINGULAR_VALUE_DECOMPOSITION(matrix)
        return u, s, vh

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernel = inputs[1]
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        grad_u, grad_s, grad_vh = grad_outputs
        u, s, vh = ctx.saved_tensors
        v, grad_v = vh.mT, grad_vh.mT
        weights = _weights(s, ctx.kernel, max(u.shape[-2], v.shape[-2]))
        with full_precision(u):
            grad_u, grad_v = grad_u / weights.root, grad_v / weights.root
            projected_u, projected_v = u.mT @ grad_u, v.mT @ grad_v
            difference = projected_u - projected_v
            summed = projected_u + projected_v
            inner = contract(ctx.kernel, weights.difference, summed, s, grad_u, grad_v)
            inner = _capped((inner + weights.total * antisymmetric_part(difference)) / weights.root)
            inner = inner + torch.diag_embed(grad_s)
            inverse = weights.inverse
            left = u @ inner + _outside(u, _capped(grad_u * inverse / weights.root))
            gradient = left @ vh + u @ _outside(v, _capped(grad_v * inverse / weights.root)).mT
        longer_side = max(u.shape[-2], v.shape[-2])
        return refuse_unless_exact("svd", gradient, ctx.kernel, s, longer_side), None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        tangent = grad_inputs[0]
        u, s, vh = ctx.saved_tensors
        v = vh.mT
        with nested_forward_mode(), full_precision(u):
            weights = _weights(s, ctx.kernel, max(u.shape[-2], v.shape[-2]))
            inner = u.mT @ tangent @ v
            tangent_s = inner.diagonal(dim1=-2, dim2=-1).clone()
            tangent, inner = tangent / weights.root, inner / weights.root
            summed = weights.difference.mT * symmetric_part(inner)
            apart = weights.total * antisymmetric_part(inner)
            inverse = weights.inverse
            tangent_u = u @ (summed + apart) + _outside(u, (tangent @ v) * inverse)
            tangent_v = v @ (summed - apart) + _outside(v, (tangent.mT @ u) * inverse)
            tangent_u = _capped(tangent_u / weights.root)
            tangent_v = _capped(tangent_v / weights.root)
            rest = (ctx.kernel, s, max(u.shape[-2], v.shape[-2]))
            return (
                refuse_unless_exact("svd", tangent_u, *rest),
                refuse_unless_exact("svd", tangent_s, *rest),
                refuse_unless_exact("svd", tangent_v.mT, *rest),
            )


_svd = in_both_modes(Svd)


def singular_value_decomposition(matrix: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = _svd(matrix, kernel)
    return u, s, vh
