"""U f(S) Vᴴ of any matrices as autograd functions, given the singular value decomposition of A.

It is built as `lift` is: `lift_singular` is F, `derive_singular` its derivative, an autograd
function itself, and U, S and V are constants to autograd. With M = Uᴴ H V, the derivative of F
along H is

    U (f[σᵢ, σⱼ] ∘ herm(M) + f[σᵢ, −σⱼ] ∘ skew(M)) Vᴴ
        + (I − U Uᴴ) H V diag(f(σ)/σ) Vᴴ + U diag(f(σ)/σ) Uᴴ H (I − V Vᴴ),

which is its own adjoint. The second one is that of [[0, A], [Aᴴ, 0]], see `functions.odd`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg.autograd.lift import rate_of, second_derivative
from covpool.linalg.autograd.modes import in_both_modes, save
from covpool.linalg.functions import ScalarFunction
from covpool.linalg.spectrum import (
    antisymmetric_part,
    inner_product,
    product,
    symmetric_part,
)
from covpool.linalg.transforms import nested_forward_mode


def lift_singular(
    matrix: Tensor,
    parameter: Tensor | None,
    u: Tensor,
    values: Tensor,
    vh: Tensor,
    function: ScalarFunction,
) -> Tensor:
    """F = U diag(f) Vᴴ, differentiable with respect to the matrix and the parameter.

    Args:
        matrix: (*, m, n).
        parameter: (*), of functions that have one.
        u, values, vh: (*, m, k), (*, k) descending, as the function's `clip` gives them, and
            (*, k, n), k = min(m, n); detached.
        function: odd.
    """
    return _lift(matrix, parameter, u, values, vh, function)


class SingularLift(Function):
    """See `lift_singular`."""

    @staticmethod
    def forward(
        matrix: Tensor,
        parameter: Tensor | None,
        u: Tensor,
        values: Tensor,
        vh: Tensor,
        function: ScalarFunction,
    ) -> Tensor:
        return product(u * function.bind(parameter).value(values).unsqueeze(-2), vh).contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.function = inputs
        save(ctx, *tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        matrix, parameter, *triplets = ctx.saved_tensors
        gradient = grad_outputs[0]
        for_matrix = for_parameter = None
        if ctx.needs_input_grad[0]:
            for_matrix = _derive(gradient, matrix, parameter, *triplets, ctx.function)
        if parameter is not None and ctx.needs_input_grad[1]:
            change = _lift(matrix, parameter, *triplets, rate_of(ctx.function))
            for_parameter = inner_product(gradient, change)
        return for_matrix, for_parameter, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        matrix, parameter, *triplets = ctx.saved_tensors
        direction, speed = tangents[:2]
        total = None
        if direction is not None:
            total = _derive(direction, matrix, parameter, *triplets, ctx.function)
        if speed is not None:
            change = _lift(matrix, parameter, *triplets, rate_of(ctx.function))
            with nested_forward_mode():
                change = speed[..., None, None] * change
                total = change if total is None else total + change
        return total


_lift = in_both_modes(SingularLift)


class SingularDerivative(Function):
    """(H, A, …) ↦ the derivative of F along H. A is there for what depends on it: U, S and V."""

    @staticmethod
    def forward(
        direction: Tensor,
        matrix: Tensor,
        parameter: Tensor | None,
        u: Tensor,
        values: Tensor,
        vh: Tensor,
        function: ScalarFunction,
    ) -> Tensor:
        bound = function.bind(parameter)
        rows, columns = product(u.mH, direction), product(direction, vh.mH)
        projected = product(rows, vh.mH)
        inner = bound.loewner(values) * symmetric_part(projected)
        inner = inner + bound.mirrored_loewner(values) * antisymmetric_part(projected)
        beside = bound.divided_difference(values, torch.zeros_like(values))
        left = product(u, inner)
        if u.shape[-2] > u.shape[-1]:
            left = left + (columns - product(u, projected)) * beside.unsqueeze(-2)
        total = product(left, vh)
        if vh.shape[-1] > vh.shape[-2]:
            total = total + product(u, beside.unsqueeze(-1) * (rows - product(projected, vh)))
        return total.contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.function = inputs
        save(ctx, *tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        direction, matrix, parameter, u, values, vh = ctx.saved_tensors
        cotangent = grad_outputs[0]
        for_direction = _derive(cotangent, matrix, parameter, u, values, vh, ctx.function)
        for_matrix = for_parameter = None
        if ctx.needs_input_grad[1]:
            for_matrix = _second(direction, cotangent, parameter, u, values, vh, ctx.function)
        if parameter is not None and ctx.needs_input_grad[2]:
            rate = rate_of(ctx.function)
            change = _derive(direction, matrix, parameter, u, values, vh, rate)
            for_parameter = inner_product(cotangent, change)
        return for_direction, for_matrix, for_parameter, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        direction, matrix, parameter, u, values, vh = ctx.saved_tensors
        turn, change, speed = tangents[:3]
        parts: list[Tensor] = []
        if turn is not None:
            parts.append(_derive(turn, matrix, parameter, u, values, vh, ctx.function))
        if change is not None:
            parts.append(_second(direction, change, parameter, u, values, vh, ctx.function))
        if speed is not None:
            rate = rate_of(ctx.function)
            along = _derive(direction, matrix, parameter, u, values, vh, rate)
            parts.append(speed[..., None, None] * along)
        return sum(parts[1:], parts[0]) if parts else None


_derive = in_both_modes(SingularDerivative)


def _second(
    first: Tensor,
    second: Tensor,
    parameter: Tensor | None,
    u: Tensor,
    values: Tensor,
    vh: Tensor,
    function: ScalarFunction,
) -> Tensor:
    """D²F(A)[H, K], that of the symmetric matrix [[0, A], [Aᴴ, 0]].

    All of it is in the span of the columns of U, H and K, and of the rows of Vᴴ, H and K: a long
    side is shortened to that.
    """
    left = _basis(u, first, second)
    right = _basis(vh.mH, first.mH, second.mH)
    u, v = left.mH @ u, right.mH @ vh.mH
    first, second = left.mH @ first @ right, left.mH @ second @ right
    null_u, null_v = _complement(u), _complement(v)
    beyond = values.new_zeros((*values.shape[:-1], null_u.shape[-1] + null_v.shape[-1]))
    eigenvalues = torch.cat([-values, beyond, values.flip(-1)], -1)
    half = 0.5**0.5
    none_u = u.new_zeros((*u.shape[:-1], null_v.shape[-1]))
    none_v = v.new_zeros((*v.shape[:-1], null_u.shape[-1]))
    upper = [half * u, null_u, none_u, half * u.flip(-1)]
    lower = [-half * v, none_v, null_v, half * v.flip(-1)]
    eigenvectors = torch.cat([torch.cat(upper, -1), torch.cat(lower, -1)], -2)
    found = second_derivative(
        _symmetric(first), _symmetric(second), parameter, eigenvalues, eigenvectors, function
    )
    rows = u.shape[-2]
    return left @ found[..., :rows, rows:] @ right.mH


def _basis(vectors: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Orthonormal columns (*, m, p) whose span holds the columns of all three."""
    rows, count = vectors.shape[-2:]
    if rows <= count:
        return torch.eye(rows, dtype=vectors.dtype, device=vectors.device)
    with torch.no_grad():
        return torch.linalg.qr(torch.cat([vectors, first, second], -1)).Q


def _complement(columns: Tensor) -> Tensor:
    """The rest (*, m, m − k) of an orthonormal basis."""
    return torch.linalg.qr(columns, mode="complete").Q[..., columns.shape[-1] :]


def _symmetric(matrix: Tensor) -> Tensor:
    """[[0, A], [Aᴴ, 0]]."""
    rows, columns = matrix.shape[-2:]
    top = torch.nn.functional.pad(matrix, (rows, 0))
    return torch.cat([top, torch.nn.functional.pad(matrix.mH, (0, columns))], -2)
