"""f(A) of symmetric matrices as autograd functions, given the eigendecomposition of A.

`lift` is f(A), `Lift` applied. Its first derivative, in both directions, is `derive`, an autograd
function too, so that derivatives of second order are right or refused. Eigenpairs are constants to
autograd throughout: their dependence on A is accounted for in the formulas.

Of complex Hermitian matrices everything holds with the adjoint in place of the transpose: f, λ and
the Loewner matrix L are real, and inner products are their real parts. Gradients are torch's,
∂ℓ/∂Re A + i ∂ℓ/∂Im A, so that dℓ = Re⟨∂ℓ/∂A, dA⟩.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg.autograd.modes import (
    in_both_modes,
    recording,
    refuse_second_derivative,
    save,
)
from covpool.linalg.functions import THIRD_DERIVATIVE, ScalarFunction
from covpool.linalg.methods import Method
from covpool.linalg.precision import on_cpu
from covpool.linalg.spectrum import (
    PLANAR_SIZE,
    congruence,
    inner_product,
    planar,
    product,
    symmetric_part,
    symmetric_part_,
)
from covpool.linalg.transforms import is_ordinary, nested_forward_mode


def _by_lyapunov(function: ScalarFunction, method: Method) -> bool:
    """Whether the second derivative comes by the root's Lyapunov equation: needs F, not A."""
    return function.solves_lyapunov and method.exact_gradient


def rate_of(function: ScalarFunction) -> ScalarFunction:
    if function.rate is None:
        raise RuntimeError(THIRD_DERIVATIVE)
    return function.rate


def _in_reused_memory(eigenvectors: Tensor) -> bool:
    """Whether products with (*, n, n) may be written over each other.

    Fresh memory for a large batch costs more than the arithmetic. Neither transforms of torch.func
    nor graphs take such operations.
    """
    three = eigenvectors.ndim == 3 and eigenvectors.shape[-1] > PLANAR_SIZE
    return three and is_ordinary(eigenvectors) and on_cpu(eigenvectors)


class Lift(Function):
    """F = V diag(f) Vᵀ, differentiable with respect to the matrix and the exponent."""

    @staticmethod
    def forward(
        matrix: Tensor,
        exponent: Tensor | None,
        eigenvalues: Tensor,
        eigenvectors: Tensor,
        function: ScalarFunction,
        method: Method,
    ) -> Tensor:
        """Compute it.

        Args:
            matrix: (*, n, n), whose symmetric part is taken.
            exponent: (*), the parameter of functions that have one.
            eigenvalues: (*, n) of the matrix, ascending, as the function's `clip` gives them, with
                what its `prepare` takes off again; detached.
            eigenvectors: (*, n, n); detached.
            function: f.
            method: whose forward algorithm and gradient are taken.
        """
        bound, eigenvalues = function.prepare(exponent, eigenvalues)
        values = method.forward.values(bound, eigenvalues, eigenvectors.shape[-1])
        if _in_reused_memory(eigenvectors):
            # What LAPACK has written is contiguous this way round.
            scaled = eigenvectors.mH * values.unsqueeze(-1)
            half = torch.empty_like(scaled).baddbmm_(eigenvectors, scaled, beta=0, alpha=0.5)
            return torch.add(half, half.mH, out=scaled).contiguous()
        result = product(eigenvectors * values.unsqueeze(-2), eigenvectors.mH)
        return symmetric_part_(result).contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        matrix, exponent, eigenvalues, eigenvectors, ctx.function, ctx.method = inputs
        anchor = output if _by_lyapunov(ctx.function, ctx.method) else matrix
        save(ctx, anchor, exponent, eigenvalues, eigenvectors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        anchor, exponent, eigenvalues, eigenvectors = ctx.saved_tensors
        once = not recording() and is_ordinary(grad_outputs[0])
        if once:
            # Twice the symmetric part takes one fresh tensor, not two.
            given, share = planar(grad_outputs[0]), 0.5
            gradient = given + given.mH
        else:
            gradient, share = symmetric_part(grad_outputs[0]), 1.0
        spectrum = (eigenvalues, eigenvectors, ctx.function, ctx.method)
        for_matrix = for_exponent = None
        if ctx.needs_input_grad[0]:
            _refuse_mixed(ctx.function, ctx.method)
            if once:
                for_matrix = _derivative(gradient, exponent, *spectrum, True, share)
            else:
                for_matrix = derive(gradient, anchor, exponent, *spectrum, True)
        if exponent is not None and ctx.needs_input_grad[1]:
            rate = rate_of(ctx.function)
            change = lift(anchor, exponent, eigenvalues, eigenvectors, rate, ctx.method)
            for_exponent = share * inner_product(gradient, change)
        return for_matrix, for_exponent, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        anchor, exponent, eigenvalues, eigenvectors = ctx.saved_tensors
        direction, speed = tangents[:2]
        total = None
        if direction is not None:
            _refuse_mixed(ctx.function, ctx.method)
            with nested_forward_mode():
                direction = symmetric_part(direction)
            total = derive(
                direction,
                anchor,
                exponent,
                eigenvalues,
                eigenvectors,
                ctx.function,
                ctx.method,
                False,
            )
        if speed is not None:
            rate = rate_of(ctx.function)
            change = lift(anchor, exponent, eigenvalues, eigenvectors, rate, ctx.method)
            with nested_forward_mode():
                change = speed[..., None, None] * change
                total = change if total is None else total + change
        return total


lift = in_both_modes(Lift)


def _derivative(
    direction: Tensor,
    exponent: Tensor | None,
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    function: ScalarFunction,
    method: Method,
    adjoint: bool,
    share: float = 1.0,
) -> Tensor:
    """What `Derivative` gives for a share of the direction."""
    bound, eigenvalues = function.prepare(exponent, eigenvalues)
    loewner, trace = method.gradient.loewner(bound, eigenvalues, eigenvectors.shape[-1])
    dual = eigenvectors.mH
    if trace is None and _in_reused_memory(eigenvectors):
        outer = torch.bmm(dual, direction)
        inner = torch.bmm(outer, eigenvectors).mul_(loewner)
        torch.bmm(eigenvectors, inner, out=outer)
        half = inner.baddbmm_(outer, dual, beta=0, alpha=share / 2)
        return torch.add(half, half.mH, out=outer)
    inner = product(product(dual, direction), eigenvectors)
    diagonal = None if trace is None else inner.diagonal(dim1=-2, dim2=-1).clone()
    # In place: fresh memory costs more than the arithmetic.
    inner = inner.mul_(loewner)
    del loewner
    if trace is not None and diagonal is not None:
        if adjoint:
            isotropic = (trace * diagonal).sum(-1, keepdim=True).expand(trace.shape)
        else:
            isotropic = trace * diagonal.sum(-1, keepdim=True)
        inner = inner + torch.diag_embed(isotropic)
    inner = product(eigenvectors, inner)
    return symmetric_part_(product(inner, dual), share / 2).contiguous()


class Derivative(Function):
    """(H, anchor, …) ↦ V (L ∘ VᵀHV) Vᵀ + trace term, the derivative of F along H or its adjoint.

    They differ in the trace term t alone: V diag(t) Vᵀ tr(H) forward, (Σᵢ tᵢ (VᵀHV)ᵢᵢ) I backward.

    Second order, of `exact` alone: other gradients are not the derivative of anything, so theirs
    is refused. With H the direction, K the cotangent, hᵢⱼ and kᵢⱼ in the eigenbasis, A receives
    V M Vᵀ, Mᵢⱼ = Σₗ f[λi, λl, λj] (hᵢₗ kₗⱼ + kᵢₗ hₗⱼ). A third derivative is refused. `anchor` is
    A, which the derivative depends on through the constants λ and V.

    For the square root P is the solution of the Lyapunov equation F P + P F = H, and
    differentiating that equation gives derivatives of every order, at ties too: with the
    cotangent K and Q the solution for K, H receives Q and F receives −(QP + PQ). At deficient rank
    P has no part in the null space, whose projector Π turns with F: F P + P F = H − Π H Π. Its
    derivative dΠ = −(F⁺ dF Π + Π dF F⁺) adds a term to F's; that term is not differentiated
    further, so there the second derivative is the last. `anchor` is F.
    """

    @staticmethod
    def forward(
        direction: Tensor,
        anchor: Tensor,
        exponent: Tensor | None,
        eigenvalues: Tensor,
        eigenvectors: Tensor,
        function: ScalarFunction,
        method: Method,
        adjoint: bool,
    ) -> Tensor:
        return _derivative(
            direction, exponent, eigenvalues, eigenvectors, function, method, adjoint
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.function, ctx.method, ctx.adjoint = inputs
        solution = output if _by_lyapunov(ctx.function, ctx.method) else None
        save(ctx, *tensors, solution)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        direction, anchor, exponent, eigenvalues, eigenvectors, solution = ctx.saved_tensors
        cotangent = symmetric_part(grad_outputs[0])
        spectrum = (eigenvalues, eigenvectors)
        for_direction = derive(
            cotangent, anchor, exponent, *spectrum, ctx.function, ctx.method, not ctx.adjoint
        )
        for_anchor = for_exponent = None
        if ctx.needs_input_grad[1]:
            _refuse_unless_exact(ctx.method)
            if solution is None:
                for_anchor = second_derivative(
                    direction, cotangent, exponent, *spectrum, ctx.function
                )
            else:
                pseudoinverse, null = pseudoinverse_and_null(*spectrum)
                turning = null @ (direction @ null @ for_direction + cotangent @ null @ solution)
                product = for_direction @ solution - turning @ pseudoinverse
                for_anchor = -(product + product.mH) + _last(anchor, eigenvalues)
        if exponent is not None and ctx.needs_input_grad[2]:
            _refuse_unless_exact(ctx.method)
            rate = rate_of(ctx.function)
            change = derive(direction, anchor, exponent, *spectrum, rate, ctx.method, ctx.adjoint)
            for_exponent = inner_product(cotangent, change)
        return for_direction, for_anchor, for_exponent, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        direction, anchor, exponent, eigenvalues, eigenvectors, solution = ctx.saved_tensors
        turn, change, speed = tangents[:3]
        rest = (eigenvalues, eigenvectors, ctx.function, ctx.method, ctx.adjoint)
        parts: list[Tensor] = []
        if change is not None:
            _refuse_unless_exact(ctx.method)
            change = symmetric_part(change)
            if solution is None:
                parts.append(
                    second_derivative(direction, change, exponent, *rest[:2], ctx.function)
                )
            else:
                pseudoinverse, null = pseudoinverse_and_null(eigenvalues, eigenvectors)
                slope = -null @ change @ pseudoinverse
                # Π H dΠ but for what stays within the null space, which `derive` leaves out.
                drift = change @ solution + null @ direction @ slope
                sideways = -null @ solution @ slope.mH
                drift = -(drift + drift.mH)
                turn = drift if turn is None else turn + drift
                parts.append(sideways + sideways.mH + _last(anchor, eigenvalues))
        if turn is not None:
            parts.append(derive(symmetric_part(turn), anchor, exponent, *rest))
        if speed is not None:
            _refuse_unless_exact(ctx.method)
            rate = rate_of(ctx.function)
            along = derive(
                direction,
                anchor,
                exponent,
                eigenvalues,
                eigenvectors,
                rate,
                ctx.method,
                ctx.adjoint,
            )
            parts.append(speed[..., None, None] * along)
        return sum(parts[1:], parts[0]) if parts else None


derive = in_both_modes(Derivative)


def _last(anchor: Tensor, eigenvalues: Tensor) -> Tensor:
    """Zero, with a derivative that is refused: what the root's second derivative is to get.

    At deficient rank its own lacks how the null space turns; at full rank it is right.
    """
    marked = refuse_second_derivative(
        anchor,
        "the square root has no third derivative at deficient rank; add a multiple of the identity "
        "to the matrix",
        (eigenvalues == 0).any(-1),
    )
    return 0 * marked


def _refuse_mixed(function: ScalarFunction, method: Method) -> None:
    """∂F/∂p is F's second derivative where it is differentiated again with respect to A."""
    if function.is_rate:
        _refuse_unless_exact(method)


def _refuse_unless_exact(method: Method) -> None:
    if not method.exact_gradient:
        raise RuntimeError(
            f"method {method.name!r} has no second derivative: its gradient is not the "
            "derivative of its forward pass; use method='exact', or 'isqrt-cov' for the root "
            "and its inverse"
        )


def pseudoinverse_and_null(eigenvalues: Tensor, eigenvectors: Tensor) -> tuple[Tensor, Tensor]:
    """F⁺ of the root F, and the projector on its null space."""
    zero = eigenvalues == 0
    inverse = torch.where(zero, 0, torch.where(zero, 1, eigenvalues).rsqrt())
    pseudoinverse = (eigenvectors * inverse[..., None, :]) @ eigenvectors.mH
    null = (eigenvectors * zero[..., None, :].to(eigenvectors.dtype)) @ eigenvectors.mH
    return pseudoinverse, null


def second_derivative(
    first: Tensor,
    second: Tensor,
    exponent: Tensor | None,
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    function: ScalarFunction,
) -> Tensor:
    """D²f(A)[H, K] = V M Vᵀ, Mᵢⱼ = Σₗ f[λi, λl, λj] (hᵢₗ kₗⱼ + kᵢₗ hₗⱼ).

    One l at a time, as all the differences together would take O(n³) memory.
    """
    bound, eigenvalues = function.prepare(exponent, eigenvalues)
    h, k = congruence(first, eigenvectors.mH), congruence(second, eigenvectors.mH)
    total = torch.zeros_like(h)
    for index, weight in enumerate(bound.second_differences(eigenvalues)):
        product = h[..., :, index, None] * k[..., None, index, :]
        total = total + weight * (product + product.mH)
    result = symmetric_part(congruence(total, eigenvectors))
    return refuse_second_derivative(result, THIRD_DERIVATIVE)
