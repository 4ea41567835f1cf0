"""The singular value decomposition as an autograd function, its gradient's poles replaced.

With dP = Uᴴ dA V, the rotations Ω = Uᴴ dU and Θ = Vᴴ dV satisfy

    Ωᵢⱼ + Θᵢⱼ = (dP + dPᴴ)ᵢⱼ / (σj − σi),    Ωᵢⱼ − Θᵢⱼ = (dP − dPᴴ)ᵢⱼ / (σj + σi),

the first for i ≠ j. Where i = j, Ω + Θ is the phase by which uᵢ and vᵢ turn together, which nothing
determines and which is taken as 0; Ω − Θ = 2i Im(dPᵢᵢ) / 2σi is the term of complex matrices that
real ones do not have.

So a repeated singular value is a pole of the sum alone, and only there a kernel stands in:
1/(σj − σi) = (σj + σi) K(σj², σi²). The textbook form, which multiplies 1/(σj² − σi²) into U and V
apart, has the pole in both and loses the difference, on which the polar factor U Vᵀ depends.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg.autograd.eigh import (
    Gap,
    contract,
    plain_gap,
    plain_odd,
    refuse_unless_exact,
)
from covpool.linalg.autograd.modes import in_both_modes, refuse, save, with_zeros
from covpool.linalg.engine.singular import SINGULAR_VALUE_DECOMPOSITION, by_driver
from covpool.linalg.gradients.kernels import Kernel
from covpool.linalg.spectrum import (
    antisymmetric_part,
    planar,
    product,
    rank_tolerance,
    symmetric_part,
)
from covpool.linalg.transforms import nested_forward_mode


class _Weights(NamedTuple):
    """What stands for the quotients.

    difference: (*, k, k), σ₁/(σi − σj) for the vectors i, zero on the diagonal.
    total: (*, k, k), σ₁/(σi + σj), zero for pairs of zeros.
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
    inverse = _inverse(values[..., None, :] / scale)
    return _Weights(total * signed, _inverse(total), inverse, scale.sqrt())


def _capped(gradient: Tensor) -> Tensor:
    """What overflows of tiny matrices is made finite, so that it can still be summed."""
    if gradient.is_complex():
        return torch.complex(_capped(gradient.real), _capped(gradient.imag))
    limit = torch.finfo(gradient.dtype).max / (8 * max(1, *gradient.shape[-2:]))
    return gradient.clamp(-limit, limit)


def _outside(basis: Tensor, columns: Tensor) -> Tensor:
    """The columns' part outside the span of the basis; nothing is outside a complete one."""
    if basis.shape[-2] == basis.shape[-1]:
        return torch.zeros_like(columns)
    return columns - basis @ (basis.mH @ columns)


def _is_regular(gap: Gap, dtype: torch.dtype, longer_side: int) -> bool:
    """Whether no singular value counts as zero, and no quotient by one needs to be capped."""
    zero = max(rank_tolerance(longer_side, dtype) * gap.highest, torch.finfo(dtype).tiny ** 0.5)
    return gap.lowest > zero


def _plain_gradient(
    gap: Gap,
    u: Tensor,
    s: Tensor,
    vh: Tensor,
    grad_u: Tensor | None,
    grad_s: Tensor | None,
    grad_vh: Tensor | None,
) -> Tensor:
    """The gradient with K = 1/(σi − σj), all σ being far from zero; see `svd`."""
    u, vh = planar(u), planar(vh)
    if grad_u is None and grad_vh is None:
        return product(u * cast(Tensor, grad_s).unsqueeze(-2), vh).contiguous()
    # What has no gradient has one of zero.
    grad_u = torch.zeros_like(u) if grad_u is None else planar(grad_u)
    grad_v = (torch.zeros_like(vh) if grad_vh is None else planar(grad_vh)).mH
    projected_u, projected_v = product(u.mH, grad_u), product(vh, grad_v)
    summed, apart = projected_u + projected_v, projected_u.sub_(projected_v)
    # Doubled, as twice the skew-Hermitian parts are divided by them.
    doubled = 2 * s
    column, row = doubled.unsqueeze(-1), doubled.unsqueeze(-2)
    inner = plain_odd(summed, gap, s, grad_u, grad_v).div_(row - column)
    diagonal = inner.diagonal(dim1=-2, dim2=-1)
    if grad_s is None:
        diagonal.zero_()
    else:
        diagonal.copy_(grad_s)
    inner.add_((apart - apart.mH).div_(row + column))
    left = product(u, inner)
    if u.shape[-2] > u.shape[-1]:
        left = left + _outside(u, grad_u / s.unsqueeze(-2))
    gradient = product(left, vh)
    if vh.shape[-1] > vh.shape[-2]:
        gradient = gradient + product(u, _outside(vh.mH, grad_v / s.unsqueeze(-2)).mH)
    return gradient.contiguous()


class Svd(Function):
    """(matrix, kernel, driver, caller) → U (*, m, k), S (*, k), Vh (*, k, n), all differentiable.

    Matrices that are not finite are refused in the name of `caller`, unless it is None.
    """

    @staticmethod
    def forward(
        matrix: Tensor, kernel: Kernel, driver: str | None, caller: str | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        factorisation = by_driver(driver) if driver else SINGULAR_VALUE_DECOMPOSITION
        u, s, vh = factorisation(matrix, caller=caller)
        return u, s, vh

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernel = inputs[1]
        save(ctx, *output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        u, s, vh = ctx.saved_tensors
        gap = plain_gap(ctx.kernel, s, *grad_outputs)
        if gap is not None and _is_regular(gap, s.dtype, max(u.shape[-2], vh.shape[-1])):
            return _plain_gradient(gap, u, s, vh, *grad_outputs), None, None, None
        grad_u, grad_s, grad_vh = with_zeros(grad_outputs, ctx.saved_tensors)
        v, grad_v = vh.mH, grad_vh.mH
        weights = _weights(s, ctx.kernel, max(u.shape[-2], v.shape[-2]))
        grad_u, grad_v = grad_u / weights.root, grad_v / weights.root
        projected_u, projected_v = u.mH @ grad_u, v.mH @ grad_v
        difference = projected_u - projected_v
        summed = projected_u + projected_v
        inner = contract(ctx.kernel, weights.difference, summed, s, grad_u, grad_v)
        inner = _capped((inner + weights.total * antisymmetric_part(difference)) / weights.root)
        inner = inner + torch.diag_embed(grad_s)
        inverse = weights.inverse
        left = u @ inner + _outside(u, _capped(grad_u * inverse / weights.root))
        gradient = left @ vh + u @ _outside(v, _capped(grad_v * inverse / weights.root)).mH
        longer_side = max(u.shape[-2], v.shape[-2])
        gradient = refuse_unless_exact("svd", gradient, ctx.kernel, s, longer_side)
        return gradient, None, None, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        tangent = grad_inputs[0]
        u, s, vh = ctx.saved_tensors
        v = vh.mH
        with nested_forward_mode():
            weights = _weights(s, ctx.kernel, max(u.shape[-2], v.shape[-2]))
            inner = u.mH @ tangent @ v
            tangent_s = inner.diagonal(dim1=-2, dim2=-1).real.clone()
            tangent, inner = tangent / weights.root, inner / weights.root
            summed = weights.difference.mT * symmetric_part(inner)
            apart = weights.total * antisymmetric_part(inner)
            inverse = weights.inverse
            tangent_u = u @ (summed + apart) + _outside(u, (tangent @ v) * inverse)
            tangent_v = v @ (summed - apart) + _outside(v, (tangent.mH @ u) * inverse)
            tangent_u = _capped(tangent_u / weights.root)
            tangent_v = _capped(tangent_v / weights.root)
            rest = (ctx.kernel, s, max(u.shape[-2], v.shape[-2]))
            return (
                refuse_unless_exact("svd", tangent_u, *rest),
                refuse_unless_exact("svd", tangent_s, *rest),
                refuse_unless_exact("svd", tangent_v.mH, *rest),
            )


_svd = in_both_modes(Svd)


class _Completion(Function):
    """Orthonormal columns (*, m, k) → the others (*, m, m − k) of an orthonormal basis.

    They can be any basis of that space, so they have no derivative: a gradient that is not zero is
    refused. torch ignores it.
    """

    @staticmethod
    def forward(columns: Tensor) -> Tensor:
        basis = torch.linalg.qr(columns, mode="complete").Q
        return basis[..., columns.shape[-1] :].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (columns,) = ctx.saved_tensors
        reached = (grad_outputs[0] != 0).flatten(-2).any(-1)
        reason = (
            "svd: the columns of U or V beyond min(m, n) have no gradient, as any basis of their "
            "space could be returned; use full_matrices=False, and I − U Uᴴ to project on that"
        )
        return refuse(torch.zeros_like(columns), reason, reached)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Tensor:
        # Whether it is used cannot be known here: NaN goes no further than the columns themselves.
        tangent = grad_inputs[0]
        rows, count = tangent.shape[-2:]
        return tangent.new_full((*tangent.shape[:-2], rows, rows - count), torch.nan)


_completion = in_both_modes(_Completion)


def singular_value_decomposition(
    matrix: Tensor, kernel: Kernel, driver: str | None, caller: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = _svd(matrix, kernel, driver, caller)
    return u, s, vh


def complete(columns: Tensor) -> Tensor:
    """Orthonormal columns (*, m, k), extended to an orthonormal basis (*, m, m)."""
    if columns.shape[-2] == columns.shape[-1]:
        return columns
    return torch.cat([columns, _completion(columns)], -1)
