"""f(cov X) as one autograd function of the features X.

Shapes: features (*, C, N), result (*, C, C).
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg.decomposition import decompose
from covpool.linalg.matrix_function import MatrixFunction
from covpool.linalg.parallel import by_samples
from covpool.linalg.scalar import ScalarFunction
from covpool.linalg.spectrum import clip_to_rank, symmetric_part, without_autocast

if TYPE_CHECKING:
    from covpool.linalg.methods import Method


def works_on_gram(features: Tensor) -> bool:
    """Whether the N × N Gram matrix is the one to decompose: the covariance is singular."""
    channels, positions = features.shape[-2:]
    return positions - 1 < channels


def _centre(features: Tensor, dtype: torch.dtype) -> Tensor:
    """X − mean in `dtype`, to the last digit also where the mean is far larger than the rest."""
    mean = features.mean(-1, keepdim=True, dtype=torch.float64)
    rounded = mean.to(dtype)
    centred = features - rounded
    return centred if dtype == torch.float64 else centred - (mean - rounded).to(dtype)


def _non_negative(eigenvalues: Tensor, size: int, method: "Method") -> Tensor:
    # What an iteration gives is a smooth function at zero: it needs no rank.
    return eigenvalues.clamp_min(0) if method.iterative else clip_to_rank(eigenvalues, size)


def _inverse_root(eigenvalues: Tensor) -> Tensor:
    positive = eigenvalues > 0
    return torch.where(positive, torch.where(positive, eigenvalues, 1).rsqrt(), 0)


def _work(features: Tensor) -> int:
    channels, positions = features.shape[-2:]
    return channels * positions * min(channels, positions)


def _value(
    features: Tensor,
    function: ScalarFunction,
    method: "Method",
    decomposition_dtype: torch.dtype,
    working_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """f(cov X), U, V (of no columns where it is not needed) and the eigenvalues."""
    channels, positions = features.shape[-2:]
    if works_on_gram(features):
        centred = _centre(features, decomposition_dtype)
        eigenvalues, right = decompose(centred.mT @ centred / positions)
        eigenvalues = _non_negative(eigenvalues, channels, method)
        scaled = right * (_inverse_root(eigenvalues) * positions**-0.5)[..., None, :]
        left = (centred @ scaled).to(working_dtype)
        right = right.to(working_dtype)
    else:
        centred = _centre(features, working_dtype if method.iterative else decomposition_dtype)
        covariance = symmetric_part(centred @ centred.mT / positions)
        eigenvalues, left = decompose(covariance.to(decomposition_dtype))
        eigenvalues = _non_negative(eigenvalues, channels, method)
        left, right = left.to(centred.dtype), left[..., :0]
    values = method.forward.values(function, eigenvalues, channels).to(working_dtype)
    basis = left.to(working_dtype)
    result = (basis * values[..., None, :]) @ basis.mT
    return result, left, right, eigenvalues


def _adjoint(
    gradient: Tensor,
    features: Tensor,
    left: Tensor,
    right: Tensor,
    eigenvalues: Tensor,
    function: ScalarFunction,
    method: "Method",
    decomposition_dtype: torch.dtype,
    working_dtype: torch.dtype,
) -> Tensor:
    channels, positions = features.shape[-2:]
    on_gram = works_on_gram(features)
    roots = eigenvalues.sqrt()
    if not on_gram and method.iterative:
        roots = torch.ones_like(roots)
    with_zero = torch.nn.functional.pad(eigenvalues, (1, 0)) if on_gram else eigenvalues
    loewner, trace = method.gradient.loewner(function, with_zero, channels)
    first = int(on_gram)
    inner = (loewner[..., first:, first:] * roots[..., None, :]).to(working_dtype)
    with without_autocast(gradient):
        basis, gradient = left.to(working_dtype), gradient.to(working_dtype)
        product = gradient @ basis + gradient.mT @ basis  # 2 sym(G) U, U being the smaller
        projected = basis.mT @ product
        isotropic = None
        if trace is not None:
            weighted = trace[..., first:] * projected.diagonal(dim1=-2, dim2=-1)
            isotropic = weighted.sum(-1, keepdim=True) * roots
            isotropic = torch.diag_embed(isotropic.to(working_dtype))
        if on_gram:
            null = (loewner[..., 0, None, 1:] * roots[..., None, :]).to(working_dtype)
            inner = (inner - null) * projected
            inner = inner if isotropic is None else inner + isotropic
            result = basis @ inner + product * null
            right = right.mT
        else:
            inner = inner * projected
            inner = inner if isotropic is None else inner + isotropic
            result = basis @ inner
            right = left.mT @ _centre(features, left.dtype)
            scales = _inverse_root(eigenvalues) if not method.iterative else roots
            right = (right * (scales * positions**-0.5)[..., None]).to(working_dtype)
        # No mean needs to be subtracted for the centring: V is orthogonal to the ones vector.
        result = (result * positions**-0.5) @ right
    return result.to(features.dtype)


class CovarianceFunction(Function):
    """(features X, function, method, decomposition dtype, working dtype) → f(cov X).

    With Xc the centred features and Xc/√N = U S Vᵀ their singular value decomposition, the
    covariance is U S² Uᵀ and the gradient of X is

        2/√N · (U (L ∘ UᵀGU) S + (I − U Uᵀ) G U diag(ℓ) S) Vᵀ,

    L being the Loewner matrix and ℓᵢ its entry for the pair of λi and zero. L is large where two
    singular values are small, and S makes up for it: nothing large arises, where the gradient of
    the covariance, multiplied by Xc, would be made of large numbers that nearly cancel.

    Where N − 1 < C, S² and V come from the N × N Gram matrix XcᵀXc/N, and U = Xc V S⁻¹/√N. The
    covariance, which is singular, is not formed; no pair of zeros is needed, the problem is well
    posed. Elsewhere S² and U come from the covariance; U is square, so the second term vanishes,
    and Vᵀ = S⁻¹ UᵀXc/√N is formed in the backward pass.

    The decomposition and the products that small singular values hang on (Gram matrix or
    covariance, Xc V or UᵀXc) are computed in the decomposition's dtype, the others in the working
    dtype. To an iteration on the covariance, small singular values are like others: its L is of
    order one, S Vᵀ = UᵀXc/√N is used as it is, and all products are in the working dtype.
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
        def value(features: Tensor) -> tuple[Tensor, ...]:
            return _value(features, function, method, decomposition_dtype, working_dtype)

        result, left, right, eigenvalues = by_samples(value, (features,), (2,), _work(features))
        return result, left, right, eigenvalues

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        features, *ctx.constants = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(features, *output[1:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradient = CovarianceFunctionAdjoint.apply(
            grad_outputs[0], *ctx.saved_tensors, *ctx.constants
        )
        return gradient, None, None, None, None


class CovarianceFunctionAdjoint(Function):
    """(G, X, U, V, λ, function, method, dtypes) → the gradient of X, see `CovarianceFunction`.

    Its own derivative is that of the same chain by way of the covariance, step by step.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        gradient: Tensor,
        features: Tensor,
        left: Tensor,
        right: Tensor,
        eigenvalues: Tensor,
        function: ScalarFunction,
        method: "Method",
        decomposition_dtype: torch.dtype,
        working_dtype: torch.dtype,
    ) -> Tensor:
        def adjoint(*tensors: Any) -> tuple[Tensor]:
            constants: Any = function, method, decomposition_dtype, working_dtype
            return (_adjoint(*tensors, *constants),)

        tensors = gradient, features, left, right, eigenvalues
        (result,) = by_samples(adjoint, tensors, (2, 2, 2, 2, 1), _work(features))
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        gradient, features, _, _, _, *ctx.constants = inputs
        ctx.save_for_backward(gradient, features)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradient, features = ctx.saved_tensors
        function, method, decomposition_dtype, _ = ctx.constants

        def stepwise(x: Tensor) -> Tensor:
            centred = _centre(x, decomposition_dtype)
            covariance = centred @ centred.mT / x.shape[-1]
            if method.iterative:
                return method.forward.matrix(covariance)
            result, *_ = MatrixFunction.apply(symmetric_part(covariance), function, method)
            return result

        def adjoint(cotangent: Tensor, x: Tensor) -> Tensor:
            pull: Any = torch.func.vjp(stepwise, x)[1]
            return pull(cotangent.to(decomposition_dtype))[0]

        with without_autocast(gradient):
            pull: Any = torch.func.vjp(adjoint, gradient, features)[1]
            of_gradient, of_features = pull(grad_outputs[0])
        return of_gradient, of_features, *(None,) * 7
