"""Decompositions and the autograd functions on them; the only ones in the project.

Shapes: (*, n, n) matrices, (*, C, N) features, eigenvalues (*, m) in ascending order.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg.kernels import Kernel
from covpool.linalg.scalar import ScalarFunction

if TYPE_CHECKING:
    from covpool.linalg.methods import Method


def rank_tolerance(size: int, dtype: torch.dtype) -> float:
    """The share of the largest eigenvalue below which one counts as zero: n · finfo(dtype).eps.

    The convention of numerical rank (Golub and Van Loan, Matrix Computations, §5.4; numpy's
    `matrix_rank`): the backward error of a symmetric eigendecomposition.
    """
    return size * torch.finfo(dtype).eps


def clip_to_rank(eigenvalues: Tensor, size: int) -> Tensor:
    """Eigenvalues (*, m) with rounding errors, of either sign, set to exactly zero."""
    threshold = rank_tolerance(size, eigenvalues.dtype) * eigenvalues.amax(-1, keepdim=True)
    # The comparison is this way round so that NaN, where it was not looked for, stays NaN.
    return torch.where(eigenvalues <= threshold.clamp_min(0), 0, eigenvalues)


def symmetric_part(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which matrix products keep the precision of their operands."""
    if not torch.amp.is_autocast_available(tensor.device.type):
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


class _NoSecondDerivative(Function):
    """The identity, with a derivative that is refused by name rather than silently wrong."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, reason: str) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.reason = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None]:
        raise RuntimeError(ctx.reason)


def refuse_second_derivative(gradient: Tensor, reason: str) -> Tensor:
    return _NoSecondDerivative.apply(gradient, reason) if torch.is_grad_enabled() else gradient


class Eigh(Function):
    """(matrix, kernel) → eigenvalues (*, n), eigenvectors (*, n, n), both differentiable."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
        eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
        return eigenvalues, eigenvectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernel = inputs[1]
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        grad_eigenvalues, grad_eigenvectors = grad_outputs
        eigenvalues, eigenvectors = ctx.saved_tensors
        with without_autocast(eigenvectors):
            projected = eigenvectors.mT @ grad_eigenvectors
            inner = ctx.kernel.matrix(eigenvalues).mT * projected
            inner = symmetric_part(inner) + torch.diag_embed(grad_eigenvalues)
            gradient = eigenvectors @ inner @ eigenvectors.mT
        if ctx.kernel.exact_second_order:
            return gradient, None
        reason = (
            f"eigh: the second derivative of the gradient that kernel {ctx.kernel} gives is not "
            "defined; use kernel='difference' where second derivatives are needed"
        )
        return refuse_second_derivative(gradient, reason), None


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
        eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
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


class FactoredMatrixFunction(Function):
    """(features X, function, method, decomposition dtype, working dtype) → f(cov X), N − 1 < C.

    With Xc the centred features over √N, the eigenpairs of the N × N Gram matrix Xcᵀ Xc = V W Vᵀ
    give those of the covariance, U = Xc V W^(−1/2), without forming it. The gradient of X is
    2 (U (L ∘ UᵀGU) + (I − U Uᵀ) G U diag(ℓ)) W^(1/2) Vᵀ, ℓᵢ being L for the pair of λi and zero: it
    needs no pair of zeros, which is why the problem is well posed where the C × C covariance is
    singular.

    The Gram matrix, its decomposition and U are computed in the decomposition's dtype, the
    products with C × C matrices in the working dtype.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        features: Tensor,
        function: ScalarFunction,
        method: "Method",
        decomposition_dtype: torch.dtype,
        working_dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels, positions = features.shape[-2:]
        centred = features.to(decomposition_dtype)
        centred = (centred - centred.mean(-1, keepdim=True)) / positions**0.5
        eigenvalues, right = torch.linalg.eigh(centred.mT @ centred)
        eigenvalues = clip_to_rank(eigenvalues, channels)
        inverse = torch.where(eigenvalues > 0, eigenvalues.rsqrt(), 0)
        left = (centred @ (right * inverse[..., None, :])).to(working_dtype)

        values = method.forward.values(function, eigenvalues, channels)
        result = (left * values.to(working_dtype)[..., None, :]) @ left.mT
        return symmetric_part(result), left, right.to(working_dtype), eigenvalues

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        features, ctx.function, ctx.method, _, _ = inputs
        ctx.dtype = features.dtype
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        left, right, eigenvalues = ctx.saved_tensors
        singular_values = eigenvalues.sqrt()
        with_zero = torch.nn.functional.pad(eigenvalues, (1, 0))
        loewner, trace = ctx.method.gradient.loewner(ctx.function, with_zero, left.shape[-2])
        scaled = (loewner[..., 1:, 1:] * singular_values[..., None, :]).to(left.dtype)
        null = (loewner[..., 0, 1:] * singular_values).to(left.dtype)
        with without_autocast(left):
            product = symmetric_part(grad_outputs[0]) @ left
            projected = left.mT @ product
            inner = (scaled - null[..., None, :]) * projected
            if trace is not None:
                diagonal = projected.diagonal(dim1=-2, dim2=-1)
                isotropic = (trace[..., 1:] * diagonal).sum(-1, keepdim=True)
                inner = inner + torch.diag_embed((isotropic * singular_values).to(left.dtype))
            result = (left @ inner + product * null[..., None, :]) @ right.mT
            # No mean needs to be subtracted for the centring: V is orthogonal to the ones vector.
            result = result * (2 / right.shape[-2] ** 0.5)
        reason = (
            f"cov_pool with method {ctx.method.name!r} has no second derivative where there are "
            "fewer positions than channels; apply matrix_sqrt to covariance(x) instead"
        )
        gradient = refuse_second_derivative(result.to(ctx.dtype), reason)
        return gradient, None, None, None, None
