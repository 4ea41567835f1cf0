"""f(cov X) as one autograd function of the features X.

Shapes: features (*, C, N), result (*, C, C).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg.algorithms import Iteration
from covpool.linalg.decomposition import decompose
from covpool.linalg.matrix_function import eigenpairs, lift
from covpool.linalg.parallel import by_shares
from covpool.linalg.scalar import ScalarFunction
from covpool.linalg.spectrum import clip_to_rank, symmetric_part, unreadable, without_autocast

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
    return eigenvalues.clamp_min(0) if method.smooth else clip_to_rank(eigenvalues, size)


def _inverse_root(eigenvalues: Tensor) -> Tensor:
    positive = eigenvalues > 0
    return torch.where(positive, torch.where(positive, eigenvalues, 1).rsqrt(), 0)


SHARED_ELEMENTS = 2**21
"""Elements of a batch's features (or covariances, the larger) from which the batch is computed by
shares: 16 MiB in float64, which no longer fit the caches."""


def _by_samples(
    function: Callable[..., tuple[Tensor, ...]], features: Tensor, *others: Tensor
) -> tuple[Tensor, ...]:
    """`function(features, *others)`, by shares of the batch where that is quicker."""
    channels = features.shape[-2]
    elements = max(features.numel(), features[..., 0].numel() * channels)
    if features.device.type != "cpu" or unreadable(features) or elements < SHARED_ELEMENTS:
        return function(features, *others)
    return by_shares(function, (features, *others))


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
        centred = _centre(features, working_dtype if method.smooth else decomposition_dtype)
        covariance = symmetric_part(centred @ centred.mT / positions)
        eigenvalues, left = decompose(covariance.to(decomposition_dtype))
        eigenvalues = _non_negative(eigenvalues, channels, method)
        left, right = left.to(centred.dtype), left[..., :0]
    # The first is what the null space gets, which polynomials of A do not leave at zero.
    with_zero = torch.nn.functional.pad(eigenvalues, (1, 0))
    values = method.forward.values(function, with_zero, channels).to(working_dtype)
    null, basis = values[..., :1], left.to(working_dtype)
    result = (basis * (values[..., 1:] - null)[..., None, :]) @ basis.mT
    result.diagonal(dim1=-2, dim2=-1).add_(null)
    return result, left, right, eigenvalues


def _adjoint(
    features: Tensor,
    gradient: Tensor,
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
    if not on_gram and method.smooth:
        roots = torch.ones_like(roots)
    with_zero = torch.nn.functional.pad(eigenvalues, (1, 0)) if on_gram else eigenvalues
    loewner, trace = method.gradient.loewner(function, with_zero, channels)
    first = int(on_gram)
    inner = (loewner[..., first:, first:] * roots[..., None, :]).to(working_dtype)
    with without_autocast(gradient):
        basis, gradient = left.to(working_dtype), gradient.to(working_dtype)
        product = (gradient + gradient.mT) @ basis
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
            scales = _inverse_root(eigenvalues) if not method.smooth else roots
            right = (right * (scales * positions**-0.5)[..., None]).to(working_dtype)
        # No mean needs to be subtracted for the centring: V is orthogonal to the ones vector.
        result = (result * positions**-0.5) @ right
    return result.to(features.dtype)


def _tangent(
    features: Tensor,
    direction: Tensor,
    left: Tensor,
    right: Tensor,
    eigenvalues: Tensor,
    function: ScalarFunction,
    method: "Method",
    decomposition_dtype: torch.dtype,
    working_dtype: torch.dtype,
) -> Tensor:
    """The transpose of `_adjoint` as a map of G, step by step."""
    channels, positions = features.shape[-2:]
    on_gram = works_on_gram(features)
    roots = eigenvalues.sqrt()
    if not on_gram and method.smooth:
        roots = torch.ones_like(roots)
    with_zero = torch.nn.functional.pad(eigenvalues, (1, 0)) if on_gram else eigenvalues
    loewner, trace = method.gradient.loewner(function, with_zero, channels)
    first = int(on_gram)
    weights = (loewner[..., first:, first:] * roots[..., None, :]).to(working_dtype)
    with without_autocast(features):
        basis = left.to(working_dtype)
        if not on_gram:
            scales = _inverse_root(eigenvalues) if not method.smooth else roots
            right = _centre(features, left.dtype).mT @ left
            right = (right * (scales * positions**-0.5)[..., None, :]).to(working_dtype)
        moved = direction.to(working_dtype) @ (right * positions**-0.5)
        projected = basis.mT @ moved
        if on_gram:
            null = (loewner[..., 0, None, 1:] * roots[..., None, :]).to(working_dtype)
            half = basis @ ((weights - null) * projected) + moved * null
        else:
            half = basis @ (weights * projected)
        if trace is not None:
            change = (projected.diagonal(dim1=-2, dim2=-1) * roots).sum(-1, keepdim=True)
            half = half + basis * (trace[..., first:] * change).to(working_dtype)[..., None, :]
        half = half @ basis.mT
        return half + half.mT


def _curvature(
    gradient: Tensor,
    direction: Tensor,
    features: Tensor,
    function: ScalarFunction,
    method: "Method",
    dtype: torch.dtype,
) -> Tensor:
    """The gradient with respect to X of ⟨G, the derivative along H⟩, by way of the covariance.

    It is the Hessian of ⟨G, f(cov X)⟩ times H, so it serves both modes, and both are right or
    refused as `lift` is.
    """

    def stepwise(x: Tensor) -> Tensor:
        centred = _centre(x, dtype)
        covariance = centred @ centred.mT / x.shape[-1]
        if method.smooth and isinstance(method.forward, Iteration):
            return method.forward.matrix(covariance, function, method)
        symmetric = symmetric_part(covariance)
        eigenvalues, eigenvectors = eigenpairs(symmetric)
        eigenvalues = clip_to_rank(eigenvalues, x.shape[-2])
        return lift(symmetric, None, eigenvalues, eigenvectors, function, method)

    def adjoint(x: Tensor) -> Tensor:
        pull: Any = torch.func.vjp(stepwise, x)[1]
        return pull(gradient.to(dtype))[0]

    with without_autocast(gradient):
        pull: Any = torch.func.vjp(adjoint, features)[1]
        return pull(direction)[0]


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
    dtype. To a method that is smooth at zero, small singular values are like others: its L is of
    order one, no rank is needed, S Vᵀ = UᵀXc/√N is used as it is, and all products are in the
    working dtype.
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

        result, left, right, eigenvalues = _by_samples(value, features)
        return result, left, right, eigenvalues

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        features, *ctx.constants = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(features, *output[1:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        features, *spectrum = ctx.saved_tensors
        gradient = _pull(grad_outputs[0], features, spectrum, ctx.constants)
        return gradient, None, None, None, None


class _CovarianceFunctionBothModes(CovarianceFunction):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        CovarianceFunction.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0], *output[1:])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        features, *spectrum = ctx.saved_tensors
        return _push(tangents[0], features, spectrum, ctx.constants), None, None, None


def _pull(gradient: Tensor, features: Tensor, spectrum: Any, constants: Any) -> Tensor:
    compiling = torch.compiler.is_compiling()
    adjoint = CovarianceFunctionAdjoint if compiling else _CovarianceFunctionAdjointBothModes
    return adjoint.apply(gradient, features, *spectrum, *constants)


def _push(direction: Tensor, features: Tensor, spectrum: Any, constants: Any) -> Tensor:
    compiling = torch.compiler.is_compiling()
    tangent = CovarianceFunctionTangent if compiling else _CovarianceFunctionTangentBothModes
    return tangent.apply(direction, features, *spectrum, *constants)


class CovarianceFunctionAdjoint(Function):
    """(G, X, U, V, λ, function, method, dtypes) → the gradient of X, see `CovarianceFunction`."""

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

        (result,) = _by_samples(adjoint, features, gradient, left, right, eigenvalues)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.constants = inputs[5:]
        ctx.save_for_backward(*inputs[:5])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradient, features, *spectrum = ctx.saved_tensors
        direction = grad_outputs[0]
        of_gradient = _push(direction, features, spectrum, ctx.constants).to(gradient.dtype)
        of_features = None
        if ctx.needs_input_grad[1]:
            of_features = _curvature(gradient, direction, features, *ctx.constants[:3])
        return of_gradient, of_features, *(None,) * 7


class _CovarianceFunctionAdjointBothModes(CovarianceFunctionAdjoint):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        CovarianceFunctionAdjoint.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:5])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if grad_outputs[0] is None:
            return (None,) * 9
        return CovarianceFunctionAdjoint.backward(ctx, *grad_outputs)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        gradient, features, *spectrum = ctx.saved_tensors
        turn, change = tangents[:2]
        parts = []
        if turn is not None:
            parts.append(_pull(turn, features, spectrum, ctx.constants))
        if change is not None:
            parts.append(_curvature(gradient, change, features, *ctx.constants[:3]))
        return sum(parts[1:], parts[0]) if parts else None


class CovarianceFunctionTangent(Function):
    """(H, X, U, V, λ, function, method, dtypes) → the derivative along H: the adjoint's transpose.

    Where N − 1 < C, with K = H V/√N and ∘ rowwise for vectors, it is M + Mᵀ,

        M = (U ((L S − ℓS) ∘ UᵀK) + K ∘ ℓS) Uᵀ + U diag(t) Uᵀ Σᵢ sᵢ (UᵀK)ᵢᵢ,

    t being the trace term of the Loewner matrix; elsewhere ℓ drops out.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        direction: Tensor,
        features: Tensor,
        left: Tensor,
        right: Tensor,
        eigenvalues: Tensor,
        function: ScalarFunction,
        method: "Method",
        decomposition_dtype: torch.dtype,
        working_dtype: torch.dtype,
    ) -> Tensor:
        def tangent(*tensors: Any) -> tuple[Tensor]:
            constants: Any = function, method, decomposition_dtype, working_dtype
            return (_tangent(*tensors, *constants),)

        (result,) = _by_samples(tangent, features, direction, left, right, eigenvalues)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.constants = inputs[5:]
        ctx.save_for_backward(*inputs[:5])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        direction, features, *spectrum = ctx.saved_tensors
        gradient = grad_outputs[0]
        of_direction = _pull(gradient, features, spectrum, ctx.constants)
        of_features = None
        if ctx.needs_input_grad[1]:
            of_features = _curvature(gradient, direction, features, *ctx.constants[:3])
        return of_direction, of_features, *(None,) * 7


class _CovarianceFunctionTangentBothModes(CovarianceFunctionTangent):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        CovarianceFunctionTangent.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:5])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if grad_outputs[0] is None:
            return (None,) * 9
        return CovarianceFunctionTangent.backward(ctx, *grad_outputs)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        direction, features, *spectrum = ctx.saved_tensors
        turn, change = tangents[:2]
        parts = []
        if turn is not None:
            parts.append(_push(turn, features, spectrum, ctx.constants))
        if change is not None:
            # D²F[H, K] is the transpose of G ↦ the Hessian of ⟨G, F⟩ times H, at K.
            def hessian_product(gradient: Tensor) -> Tensor:
                return _curvature(gradient, direction, features, *ctx.constants[:3])

            like = features[..., :1] @ features[..., :1].mT
            zero = torch.zeros_like(like, dtype=ctx.constants[3])
            pull: Any = torch.func.vjp(hessian_product, zero)[1]
            parts.append(pull(change)[0])
        return sum(parts[1:], parts[0]) if parts else None


def covariance_function(
    features: Tensor,
    function: ScalarFunction,
    method: "Method",
    decomposition_dtype: torch.dtype,
    working_dtype: torch.dtype,
) -> Tensor:
    """f(cov X), see `CovarianceFunction`."""
    compiling = torch.compiler.is_compiling()
    chosen = CovarianceFunction if compiling else _CovarianceFunctionBothModes
    result, *_ = chosen.apply(features, function, method, decomposition_dtype, working_dtype)
    return result
