"""Decompositions and the autograd functions on them; the only ones in the project.

Shapes: (*, n, n) matrices, (*, C, N) features, eigenvalues (*, m) in ascending order.
"""

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
    return torch.where(eigenvalues > threshold.clamp_min(0), eigenvalues, 0)


def symmetric_part(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


def without_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which matrix products keep the precision of their operands."""
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

    The further outputs (eigenvalues, V, the Loewner matrix and the trace's derivative) are there
    to be saved and checked; they are not differentiable.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        matrix: Tensor, function: ScalarFunction, method: "Method"
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        size = matrix.shape[-1]
        eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
        clipped = clip_to_rank(eigenvalues, size)
        values = method.forward.values(function, clipped, size)
        loewner, trace = method.gradient.loewner(function, clipped, size)
        result = (eigenvectors * values[..., None, :]) @ eigenvectors.mT
        return (
            symmetric_part(result),
            eigenvalues,
            eigenvectors,
            loewner,
            torch.zeros_like(eigenvalues) if trace is None else trace,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.function, ctx.method = inputs
        result, eigenvalues, eigenvectors, loewner, trace = output
        ctx.mark_non_differentiable(eigenvalues, eigenvectors, loewner, trace)
        ctx.save_for_backward(result, eigenvectors, loewner, trace)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        result, eigenvectors, loewner, trace = ctx.saved_tensors
        return (
            MatrixFunctionAdjoint.apply(
                symmetric_part(grad_outputs[0]), result, eigenvectors, loewner, trace, ctx.method
            ),
            None,
            None,
        )


class MatrixFunctionAdjoint(Function):
    """(G, F, V, L, t, method) → V (L ∘ VᵀGV) Vᵀ + (Σᵢ tᵢ (VᵀGV)ᵢᵢ) I, the gradient of A.

    For the exact square root that is the solution P of the Lyapunov equation F P + P F = G, and
    differentiating that equation gives derivatives of every order, at ties too: with the
    cotangent H and Q the solution for H, G receives Q and F receives −(QP + PQ). Other gradients
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
        ctx.save_for_backward(*tensors[1:], output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        result, eigenvectors, loewner, trace, solution = ctx.saved_tensors
        if not ctx.method.exact_gradient:
            raise RuntimeError(
                f"method {ctx.method.name!r} has no second derivative: its gradient is not the "
                "derivative of its forward pass; use method='exact' or 'isqrt-cov'"
            )
        adjoint = MatrixFunctionAdjoint.apply(
            symmetric_part(grad_outputs[0]), result, eigenvectors, loewner, trace, ctx.method
        )
        with without_autocast(eigenvectors):
            product = adjoint @ solution
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
    ) -> tuple[Tensor, ...]:
        channels, positions = features.shape[-2:]
        centred = features.to(decomposition_dtype)
        centred = (centred - centred.mean(-1, keepdim=True)) / positions**0.5
        eigenvalues, right = torch.linalg.eigh(centred.mT @ centred)
        eigenvalues = clip_to_rank(eigenvalues, channels)
        singular_values = eigenvalues.sqrt()
        inverse = torch.where(eigenvalues > 0, eigenvalues.rsqrt(), 0)
        left = (centred @ (right * inverse[..., None, :])).to(working_dtype)

        values = method.forward.values(function, eigenvalues, channels)
        with_zero = torch.nn.functional.pad(eigenvalues, (1, 0))
        loewner, trace = method.gradient.loewner(function, with_zero, channels)
        trace = torch.zeros_like(eigenvalues) if trace is None else trace[..., 1:]
        scaled = loewner[..., 1:, 1:] * singular_values[..., None, :]
        null = loewner[..., 0, 1:] * singular_values
        result = (left * values.to(working_dtype)[..., None, :]) @ left.mT
        saved = (right, scaled, null, trace, singular_values)
        return symmetric_part(result), left, *(tensor.to(working_dtype) for tensor in saved)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        features, _, ctx.method, _, _ = inputs
        ctx.dtype = features.dtype
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        left, right, scaled, null, trace, singular_values = ctx.saved_tensors
        with without_autocast(left):
            product = symmetric_part(grad_outputs[0]) @ left
            projected = left.mT @ product
            isotropic = (trace * projected.diagonal(dim1=-2, dim2=-1)).sum(-1, keepdim=True)
            inner = scaled * projected + torch.diag_embed(isotropic * singular_values)
            inner = inner - projected * null[..., None, :]
            result = (left @ inner + product * null[..., None, :]) @ right.mT
            # No mean needs to be subtracted for the centring: V is orthogonal to the ones vector.
            result = result * (2 / right.shape[-2] ** 0.5)
        reason = (
            f"cov_pool with method {ctx.method.name!r} has no second derivative where there are "
            "fewer positions than channels; apply matrix_sqrt to covariance(x) instead"
        )
        gradient = refuse_second_derivative(result.to(ctx.dtype), reason)
        return gradient, None, None, None, None
