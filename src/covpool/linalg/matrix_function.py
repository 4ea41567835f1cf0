"""f(A) of symmetric matrices as an autograd function on the eigendecomposition."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg.decomposition import decompose
from covpool.linalg.scalar import ScalarFunction
from covpool.linalg.spectrum import clip_to_rank, symmetric_part, without_autocast

if TYPE_CHECKING:
    from covpool.linalg.methods import Method


class MatrixFunction(Function):
    """(matrix, function, method) → F = V diag(f) Vᵀ.

    The further outputs (eigenvalues as computed, as clipped to the rank, and V) are there to be
    saved and checked; they are not differentiable.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        matrix: Tensor, function: ScalarFunction, method: "Method"
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        size = matrix.shape[-1]
        eigenvalues, eigenvectors = decompose(matrix)
        clipped = clip_to_rank(eigenvalues, size)
        values = method.forward.values(function, clipped, size)
        result = (eigenvectors * values[..., None, :]) @ eigenvectors.mT
        return symmetric_part(result), eigenvalues, clipped, eigenvectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.function, ctx.method = inputs
        result, _, clipped, eigenvectors = output
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(result, clipped, eigenvectors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        result, clipped, eigenvectors = ctx.saved_tensors
        size = eigenvectors.shape[-1]
        loewner, trace = ctx.method.gradient.loewner(ctx.function, clipped, size)
        trace = torch.zeros_like(clipped) if trace is None else trace
        gradient = symmetric_part(grad_outputs[0])
        adjoint = MatrixFunctionAdjoint.apply(
            gradient, result, eigenvectors, loewner, trace, ctx.method
        )
        return adjoint, None, None


class MatrixFunctionAdjoint(Function):
    """(G, F, V, L, t, method) → V (L ∘ VᵀGV) Vᵀ + (Σᵢ tᵢ (VᵀGV)ᵢᵢ) I, the gradient of A.

    For the exact square root of full rank that is the solution P of the Lyapunov equation
    F P + P F = G, and differentiating that equation gives derivatives of every order, at ties
    too: with the cotangent H and Q the solution for H, G receives Q and F receives −(QP + PQ).
    At deficient rank P has no part in the null space, whose projector Π turns with F:
    F P + P F = G − Π G Π. Its derivative dΠ = −(F⁺ dF Π + Π dF F⁺) adds a term to F's; that term
    is not differentiated further, so there the second derivative is the last. Other gradients
    are not the derivative of anything, so theirs is refused.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        gradient: Tensor,
        result: Tensor,
        eigenvectors: Tensor,
        loewner: Tensor,
        trace: Tensor,
        method: "Method",
    ) -> Tensor:
        with without_autocast(eigenvectors):
            projected = eigenvectors.mT @ gradient @ eigenvectors
            isotropic = (trace * projected.diagonal(dim1=-2, dim2=-1)).sum(-1)[..., None]
            inner = loewner * projected + torch.diag_embed(isotropic.expand(trace.shape))
            return symmetric_part(eigenvectors @ inner @ eigenvectors.mT)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.method = inputs
        ctx.save_for_backward(*tensors, output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradient, result, eigenvectors, loewner, trace, solution = ctx.saved_tensors
        if not ctx.method.exact_gradient:
            raise RuntimeError(
                f"method {ctx.method.name!r} has no second derivative: its gradient is not the "
                "derivative of its forward pass; use method='exact' or 'isqrt-cov'"
            )
        cotangent = symmetric_part(grad_outputs[0])
        adjoint = MatrixFunctionAdjoint.apply(
            cotangent, result, eigenvectors, loewner, trace, ctx.method
        )
        with without_autocast(eigenvectors):
            # The Loewner matrix has 1/(2√λ) on its diagonal, and 0 for zero eigenvalues.
            inverse = 2 * loewner.diagonal(dim1=-2, dim2=-1)
            pseudoinverse = (eigenvectors * inverse[..., None, :]) @ eigenvectors.mT
            null = (eigenvectors * (inverse == 0)[..., None, :]) @ eigenvectors.mT
            turning = null @ (gradient @ null @ adjoint + cotangent @ null @ solution)
            product = adjoint @ solution - turning @ pseudoinverse
        return adjoint, -(product + product.mT), None, None, None, None
