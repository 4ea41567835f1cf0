"""Roots by matrix products, with the gradient that solves their Lyapunov equation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg.autograd.modes import in_both_modes, save
from covpool.linalg.functions import ScalarFunction
from covpool.linalg.gradients.lyapunov import ApproximateRoot, Lyapunov
from covpool.linalg.methods import Method
from covpool.linalg.spectrum import name_samples, symmetric_part
from covpool.linalg.transforms import nested_forward_mode, unreadable


def iterate(matrix: Tensor, function: ScalarFunction, method: Method) -> Tensor:
    """f(A) by the method's own matrix products, with its gradient. (*, n, n) → (*, n, n)."""
    return iterate_each(matrix, (function,), method)[0]


def iterate_each(matrix: Tensor, functions: Sequence[ScalarFunction], method: Method) -> list[Any]:
    """The same for each of them, the root and its inverse, by one iteration."""
    forward: Any = method.iteration
    inverses = [function.inverse_of is not None for function in functions]
    if method.differentiates_steps:
        root, reciprocal = forward.iterate(matrix, any(inverses))
    else:
        root, _, *reciprocals = _iterative_root(
            matrix, forward, method.gradient, method.name, any(inverses)
        )
        reciprocal = reciprocals[0] if reciprocals else None
    return [reciprocal if inverse else root for inverse in inverses]


class IterativeRoot(Function):
    """(A, iteration, rule, name, inverse) → F, √s (not differentiable) and, if asked, Z = F⁻¹.

    The Lyapunov equation F dF + dF F = dA gives dF, and dZ = −Z dF Z.
    """

    @staticmethod
    def forward(
        matrix: Tensor, iteration: ApproximateRoot, rule: Lyapunov, name: str, inverse: bool
    ) -> tuple[Tensor, ...]:
        return iteration.roots(matrix, inverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, _, ctx.rule, ctx.name, _ = inputs
        ctx.mark_non_differentiable(output[1])
        save(ctx, *output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        root, scale, *inverse = ctx.saved_tensors
        parts = [symmetric_part(g) for g in grad_outputs[:1] if g is not None]
        if inverse and grad_outputs[2] is not None:
            parts.append(-inverse[0] @ symmetric_part(grad_outputs[2]) @ inverse[0])
        gradient = sum(parts[1:], parts[0])
        return _solution(gradient, root, scale, ctx.rule, ctx.name), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        root, scale, *inverse = ctx.saved_tensors
        with nested_forward_mode():
            direction = symmetric_part(tangents[0])
        change = _solution(direction, root, scale, ctx.rule, ctx.name)
        if not inverse:
            return change, None
        with nested_forward_mode():
            return change, None, -inverse[0] @ change @ inverse[0]


_iterative_root = in_both_modes(IterativeRoot)


def _solution(gradient: Tensor, root: Tensor, scale: Tensor, rule: Lyapunov, name: str) -> Tensor:
    return _lyapunov_solution(gradient, root, scale, rule, name)


class LyapunovSolution(Function):
    """(G, F, √s, rule, name) → P with F P + P F = G; 0 where A is zero.

    With the cotangent H and Q the solution for H, G receives Q and F receives −(QP + PQ). That is
    the second derivative where F is the exact root; elsewhere it is refused.
    """

    @staticmethod
    def forward(gradient: Tensor, root: Tensor, scale: Tensor, rule: Lyapunov, name: str) -> Tensor:
        return rule.solve(gradient, root, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, root, scale, ctx.rule, ctx.name = inputs
        save(ctx, root, scale, output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        root, scale, solution = ctx.saved_tensors
        adjoint = _solution(symmetric_part(grad_outputs[0]), root, scale, ctx.rule, ctx.name)
        change = None
        if ctx.needs_input_grad[1]:
            product = adjoint @ solution
            change = -(product + product.mH)
            change = _refuse_unless_exact(change, root, scale, ctx.rule, ctx.name)
        return adjoint, change, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        root, scale, solution = ctx.saved_tensors
        turn, change = tangents[:2]
        right = None if turn is None else symmetric_part(turn)
        if change is not None:
            product = change @ solution
            drift = -(product + product.mH)
            drift = _refuse_unless_exact(drift, root, scale, ctx.rule, ctx.name)
            right = drift if right is None else right + drift
        return _solution(right, root, scale, ctx.rule, ctx.name)  # pyright: ignore[reportArgumentType]


_lyapunov_solution = in_both_modes(LyapunovSolution)


def _refuse_unless_exact(
    derivative: Tensor, root: Tensor, scale: Tensor, rule: Lyapunov, name: str
) -> Tensor:
    """The second derivative; where it is refused by sample, inside torch.func, NaN."""
    if not rule.exact:
        raise RuntimeError(
            f"method {name!r} has no second derivative: its gradient is not the derivative of its "
            "forward pass; use method='exact' or 'isqrt-cov'"
        )
    with torch.no_grad():
        least = torch.linalg.eigvalsh(root)[..., :1, None]
        # The zero matrix has a zero derivative by convention.
        unresolved = (least < rule.forward.least_root(root.dtype) * scale)[..., 0, 0]
    if not unreadable(unresolved) and bool(unresolved.any()):
        raise RuntimeError(
            f"method {name!r} has no second derivative where eigenvalues are below its resolution, "
            f"‖A‖/condition; use method='exact'{name_samples(unresolved)}"
        )
    return torch.where(unresolved[..., None, None], torch.nan, derivative)
