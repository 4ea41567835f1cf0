"""f(cov X) as an autograd function of features X, without forming a singular covariance."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg.scalar import ScalarFunction
from covpool.linalg.spectrum import (
    clip_to_rank,
    refuse_second_derivative,
    symmetric_part,
    without_autocast,
)

if TYPE_CHECKING:
    from covpool.linalg.methods import Method


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

        with_zero = torch.nn.functional.pad(eigenvalues, (1, 0))
        values = method.forward.values(function, with_zero, channels).to(working_dtype)
        # What the null space gets is not zero for polynomials and rational functions of A.
        null = values[..., :1]
        result = symmetric_part((left * (values[..., 1:] - null)[..., None, :]) @ left.mT)
        result.diagonal(dim1=-2, dim2=-1).add_(null)
        return result, left, right.to(working_dtype), eigenvalues

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
