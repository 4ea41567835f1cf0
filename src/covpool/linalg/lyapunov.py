"""The Lyapunov equation F P + P F = G by matrix products, and roots whose gradient solves it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg.minimax_coefficients import SIGN_QUINTICS
from covpool.linalg.spectrum import (
    apply_function,
    full_precision,
    name_samples,
    symmetric_part,
    unreadable,
)

if TYPE_CHECKING:
    from covpool.linalg.iterations import Lyapunov, RootIteration

NEWTON_SCHULZ_STEP = (1.5, -0.5, 0.0)
"""The cubic (3x − x³)/2, which squares what is left of 1 − x."""


def sign_steps(least: float, dtype: torch.dtype) -> list[tuple[float, float, float]]:
    """Odd quintics (a, b, c) whose composition p is 1 to rounding on [least, 1].

    p maps [0, 1] into [0, 1]; at 0 it is 0 and has the slope Π a.
    """
    steps = [row[1:] for row in SIGN_QUINTICS[_first_row(least) :]]
    if torch.finfo(dtype).eps < 1e-9:  # the last row leaves 2.7e-10
        steps.append(NEWTON_SCHULZ_STEP)
    return steps


def _first_row(least: float) -> int:
    return max(k for k, row in enumerate(SIGN_QUINTICS) if row[0] <= least)


def sign_quotient(x: Tensor, steps: Sequence[tuple[float, float, float]]) -> Tensor:
    """p(x)/x elementwise, with p the composition of the steps; finite at 0."""
    quotient = torch.ones_like(x)
    for a, b, c in steps:
        square = (x * quotient) ** 2
        quotient = quotient * (a + square * (b + square * c))
    return quotient


def solve_lyapunov(
    root: Tensor, right: Tensor, scale: Tensor, least: float, singular: bool
) -> Tensor:
    """P with F P + P F = G, in matrix products.

    sign([[F, G], [0, −F]]) = [[I, 2P], [0, −I]] (Roberts, "Linear model reduction and solution of
    the algebraic Riccati equation by use of the sign function", Int. J. Control 32, 1980). The
    composition p of `sign_steps` takes the place of the sign, so with F = V diag(f) Vᵀ

        P = V ( (pᵢ + pⱼ)/2 · 1/(fᵢ + fⱼ) ∘ VᵀGV ) Vᵀ,   pᵢ = p(fᵢ/scale),

    where pᵢ is 1 down to fᵢ = least · scale, and 0 at 0. 7 products a step.

    In a singular F, pairs (1, 0) of p need 1/fᵢ, and pairs (0, 0) get 0 by the convention of
    `DividedDifferences`. Both come of P ← 2 (S P + P S) − 3 S P S with S = p(F/scale), 2 products,
    which multiplies the entries by `null_factor`.

    Args:
        root: (*, n, n) symmetric, F, eigenvalues in [0, scale].
        right: (*, n, n) symmetric, G.
        scale: (*, 1, 1), positive.
        least: the least eigenvalue of F/scale that is resolved.
        singular: whether F may have lower ones.
    """
    block, corner = root / scale, right
    identity = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    for a, b, c in sign_steps(least, root.dtype):
        square = block @ block
        commutator = block @ corner
        commutator = commutator - commutator.mT
        if c:
            # Antisymmetric times symmetric: the transpose differs in sign.
            quartic = square @ commutator
            slope = b * commutator + c * (quartic - quartic.mT)
            factor = a * identity + b * square + c * (square @ square)
        else:
            slope, factor = b * commutator, a * identity + b * square
        corner = symmetric_part(block @ slope + corner @ factor)
        block = symmetric_part(block @ factor)
    if singular:
        product = block @ corner
        corner = 2 * (product + product.mT) - 3 * symmetric_part(product @ block)
    return corner / (2 * scale)


def null_factor(signs: Tensor) -> Tensor:
    """2 (pᵢ + pⱼ) − 3 pᵢ pⱼ of every pair: 1 at (1, 1), 2 at (1, 0), 0 at (0, 0)."""
    row, column = signs[..., :, None], signs[..., None, :]
    return 2 * (row + column) - 3 * row * column


class IterativeRoot(Function):
    """(A, iteration, rule, name, inverse) → F, √‖A‖ (not differentiable) and, if asked, Z = F⁻¹.

    The Lyapunov equation F dF + dF F = dA gives dF, and dZ = −Z dF Z. Forward mode is in a
    subclass, as torch.compile takes no function with a `jvp`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        matrix: Tensor, iteration: "RootIteration", rule: "Lyapunov", name: str, inverse: bool
    ) -> tuple[Tensor, ...]:
        return iteration.roots(matrix, inverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, _, ctx.rule, ctx.name, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        root, scale, *inverse = ctx.saved_tensors
        gradient = symmetric_part(grad_outputs[0])
        if inverse:
            with full_precision(root):
                gradient = gradient - inverse[0] @ symmetric_part(grad_outputs[2]) @ inverse[0]
        return _solution(gradient, root, scale, ctx.rule, ctx.name), None, None, None, None


class IterativeRootBothModes(IterativeRoot):
    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        root, scale, *inverse = ctx.saved_tensors
        change = _solution(symmetric_part(tangents[0]), root, scale, ctx.rule, ctx.name)
        if not inverse:
            return change, None
        with full_precision(root):
            return change, None, -inverse[0] @ change @ inverse[0]


def _solution(gradient: Tensor, root: Tensor, scale: Tensor, rule: "Lyapunov", name: str) -> Tensor:
    arguments = (gradient, root, scale, rule, name)
    return apply_function(LyapunovSolution, _LyapunovSolutionBothModes, *arguments)


class LyapunovSolution(Function):
    """(G, F, √‖A‖, rule, name) → P with F P + P F = G; 0 where A is zero.

    With the cotangent H and Q the solution for H, G receives Q and F receives −(QP + PQ). That is
    the second derivative where F is the exact root; elsewhere it is refused.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        gradient: Tensor, root: Tensor, scale: Tensor, rule: "Lyapunov", name: str
    ) -> Tensor:
        with full_precision(root):
            return rule.solve(gradient, root, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, root, scale, ctx.rule, ctx.name = inputs
        ctx.save_for_backward(root, scale, output)
        ctx.save_for_forward(root, scale, output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        root, scale, solution = ctx.saved_tensors
        adjoint = _solution(symmetric_part(grad_outputs[0]), root, scale, ctx.rule, ctx.name)
        change = None
        if ctx.needs_input_grad[1]:
            with full_precision(root):
                product = adjoint @ solution
            change = -(product + product.mT)
            change = _refuse_unless_exact(change, root, scale, ctx.rule, ctx.name)
        return adjoint, change, None, None, None


class _LyapunovSolutionBothModes(LyapunovSolution):
    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        root, scale, solution = ctx.saved_tensors
        turn, change = tangents[:2]
        right = None if turn is None else symmetric_part(turn)
        if change is not None:
            with full_precision(root):
                product = change @ solution
            drift = -(product + product.mT)
            drift = _refuse_unless_exact(drift, root, scale, ctx.rule, ctx.name)
            right = drift if right is None else right + drift
        return _solution(right, root, scale, ctx.rule, ctx.name)  # pyright: ignore[reportArgumentType]


def _refuse_unless_exact(
    derivative: Tensor, root: Tensor, scale: Tensor, rule: "Lyapunov", name: str
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
