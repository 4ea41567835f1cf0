"""The inverse p-th root by matrix products, differentiated by the same iteration."""

from typing import Any

from torch import Tensor
from torch.autograd import Function

from covpool.linalg.autograd.modes import in_both_modes, save
from covpool.linalg.forwards.coupled_newton import InverseRootIteration
from covpool.linalg.spectrum import symmetric_part
from covpool.linalg.transforms import nested_forward_mode


class InverseRoot(Function):
    """(A, iteration, H₁, …, Hₖ) → the k-th derivative of A^(−1/p) along Hermitian H; k may be 0.

    ⟨G, Dᵏ[H₁, …, Hₖ]⟩ is the same for every order of G and the H, as it is a derivative of the
    trace of a function of A. So each derivative of this one is another: along A it has one
    direction more, along a direction the new one takes its place.
    """

    @staticmethod
    def forward(matrix: Tensor, iteration: InverseRootIteration, *directions: Tensor) -> Tensor:
        return iteration.derivative(matrix, directions)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        matrix, ctx.iteration, *directions = inputs
        save(ctx, matrix, *directions)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradient = symmetric_part(grad_outputs[0])
        needed = ctx.needs_input_grad
        of_matrix = _along(ctx, gradient, None) if needed[0] else None
        of_directions = (
            _along(ctx, gradient, index) if need else None for index, need in enumerate(needed[2:])
        )
        return of_matrix, None, *of_directions

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        places = [None, *range(len(tangents) - 2)]
        parts: list[Tensor] = []
        for place, tangent in zip(places, (tangents[0], *tangents[2:]), strict=True):
            if tangent is not None:
                with nested_forward_mode():
                    direction = symmetric_part(tangent)
                parts.append(_along(ctx, direction, place))
        with nested_forward_mode():
            return sum(parts[1:], parts[0])


def _along(ctx: Any, direction: Tensor, place: int | None) -> Tensor:
    """The derivative along one direction more, or along it in place of another."""
    matrix, *directions = ctx.saved_tensors
    if place is not None:
        del directions[place]
    return inverse_root(matrix, ctx.iteration, direction, *directions)


inverse_root = in_both_modes(InverseRoot)
