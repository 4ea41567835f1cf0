"""f(cov X) as one autograd function of the features X, computed by `covpool.linalg.covariance`."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg import covariance as spectral
from covpool.linalg.autograd.lift import lift
from covpool.linalg.autograd.modes import in_both_modes, save
from covpool.linalg.autograd.root import iterate
from covpool.linalg.covariance import Computation
from covpool.linalg.engine.symmetric import EIGENDECOMPOSITION
from covpool.linalg.spectrum import clip_to_rank, symmetric_part


class CovarianceFunction(Function):
    """(X, computation) → f(cov X), and U, V, S² to be saved, which are not differentiable.

    Second derivatives, by way of the covariance, are right or refused as those of `lift` are.
    """

    @staticmethod
    def forward(
        features: Tensor, computation: Computation
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        result, left, right, eigenvalues = spectral.by_samples(
            spectral.value, computation, features
        )
        return result, left, right, eigenvalues

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        features, ctx.computation = inputs
        ctx.mark_non_differentiable(*output[1:])
        save(ctx, features, *output[1:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None]:
        return _derive(grad_outputs[0], ctx.saved_tensors, ctx.computation, adjoint=True), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        change = _derive(tangents[0], ctx.saved_tensors, ctx.computation, adjoint=False)
        return change, None, None, None


covariance_function = in_both_modes(CovarianceFunction)


def _derive(
    along: Tensor, saved: tuple[Tensor, ...], computation: Computation, *, adjoint: bool
) -> Tensor:
    return _covariance_derivative(along, *saved, computation, adjoint)


class CovarianceDerivative(Function):
    """(D, X, U, V, S², computation, adjoint) → the gradient of X for D = G, or along D = H.

    The two are each other's transpose, as maps of D. As functions of X their derivative is, for
    both, that of ⟨G, the derivative along H⟩, see `_curvature`.
    """

    @staticmethod
    def forward(
        along: Tensor,
        features: Tensor,
        left: Tensor,
        right: Tensor,
        eigenvalues: Tensor,
        computation: Computation,
        adjoint: bool,
    ) -> Tensor:
        derivative = spectral.adjoint if adjoint else spectral.tangent
        tensors = features, along, left, right, eigenvalues
        (result,) = spectral.by_samples(derivative, computation, *tensors)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.computation, ctx.adjoint = inputs
        save(ctx, *tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        along, *saved = ctx.saved_tensors
        cotangent = grad_outputs[0]
        for_along = _derive(cotangent, tuple(saved), ctx.computation, adjoint=not ctx.adjoint)
        for_features = None
        if ctx.needs_input_grad[1]:
            gradient, direction = (along, cotangent) if ctx.adjoint else (cotangent, along)
            for_features = _curvature(gradient, direction, saved[0], ctx.computation)
        return for_along.to(along.dtype), for_features, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        along, *saved = ctx.saved_tensors
        turn, change = tangents[:2]
        parts = []
        if turn is not None:
            parts.append(_derive(turn, tuple(saved), ctx.computation, adjoint=ctx.adjoint))
        if change is not None and ctx.adjoint:
            parts.append(_curvature(along, change, saved[0], ctx.computation))
        elif change is not None:
            parts.append(_second_derivative(along, change, saved[0], ctx.computation))
        return sum(parts[1:], parts[0]) if parts else None


_covariance_derivative = in_both_modes(CovarianceDerivative)


def _curvature(
    gradient: Tensor, direction: Tensor, features: Tensor, computation: Computation
) -> Tensor:
    """The gradient with respect to X of ⟨G, the derivative along H⟩, by way of the covariance.

    It is the Hessian of ⟨G, f(cov X)⟩ times H, so it serves both modes, and both are right or
    refused as `lift` is.
    """
    method, dtype = computation.method, computation.decomposition_dtype

    def stepwise(x: Tensor) -> Tensor:
        centred = spectral.centre(x, dtype)
        covariance = centred @ centred.mH / x.shape[-1]
        if method.smooth and method.iteration is not None:
            return iterate(covariance, computation.function, method)
        symmetric = symmetric_part(covariance)
        eigenvalues, eigenvectors = EIGENDECOMPOSITION(symmetric)
        eigenvalues = clip_to_rank(eigenvalues, x.shape[-2])
        return lift(symmetric, None, eigenvalues, eigenvectors, computation.function, method)

    def adjoint(x: Tensor) -> Tensor:
        pull: Any = torch.func.vjp(stepwise, x)[1]
        return pull(gradient.to(dtype))[0]

    pull: Any = torch.func.vjp(adjoint, features)[1]
    return pull(direction)[0]


def _second_derivative(
    direction: Tensor, change: Tensor, features: Tensor, computation: Computation
) -> Tensor:
    """D²f[H, K], the transpose of G ↦ the Hessian of ⟨G, f⟩ times H, at K."""

    def hessian_product(gradient: Tensor) -> Tensor:
        return _curvature(gradient, direction, features, computation)

    like = features[..., :1] @ features[..., :1].mH
    zero = torch.zeros_like(like, dtype=computation.working_dtype)
    pull: Any = torch.func.vjp(hessian_product, zero)[1]
    return pull(change)[0]
