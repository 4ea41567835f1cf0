"""What every autograd function here needs of torch: both modes, vmap, torch.compile."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg.spectrum import name_samples
from covpool.linalg.transforms import is_tracing, unreadable


def in_both_modes(function: type[Function]) -> Callable[..., Any]:
    """`function.apply`, differentiable in reverse and in forward mode, vmapped and compiled.

    torch.compile takes no function with a `jvp`: where it traces, a twin without one is applied.
    torch.jit.trace cannot save a call of one: it gets what the forward pass does. `backward` is
    left out where no gradient has arrived (see `save`).
    """
    backward = function.__dict__["backward"].__func__

    def backward_where_needed(ctx: Any, *gradients: Any) -> Any:
        if all(gradient is None for gradient in gradients):
            return (None,) * len(ctx.needs_input_grad)
        return backward(ctx, *gradients)

    members = {name: value for name, value in vars(function).items() if name != "__dict__"}
    members |= {"generate_vmap_rule": True}
    compiled_members = {name: value for name, value in members.items() if name != "jvp"}
    compiled = type(function.__name__, (Function,), compiled_members)
    eager = type(
        function.__name__, (Function,), members | {"backward": staticmethod(backward_where_needed)}
    )

    def apply(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return compiled.apply(*inputs)
        if is_tracing():
            return function.forward(*inputs)
        return eager.apply(*inputs)

    return apply


def save(ctx: Any, *tensors: Any) -> None:
    """Save tensors for both modes; gradients and tangents that nobody has are None, not zeros."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    if not torch.compiler.is_compiling():
        ctx.set_materialize_grads(False)


class _NoSecondDerivative(Function):
    """The identity, with a derivative that is refused by name rather than silently wrong."""

    @staticmethod
    def forward(gradient: Tensor, reason: str, samples: Tensor | None) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.reason, samples = inputs
        ctx.save_for_backward(samples)
        ctx.save_for_forward(samples)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return refuse(grad_outputs[0], ctx.reason, *ctx.saved_tensors), None, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Tensor:
        return refuse(grad_inputs[0], ctx.reason, *ctx.saved_tensors)


_no_second_derivative = in_both_modes(_NoSecondDerivative)


def refuse(derivative: Tensor, reason: str, samples: Tensor | None) -> Tensor:
    """Raise a RuntimeError where the mask (*), or None for all, names samples, else the derivative.

    Where the mask cannot be read, inside torch.func transforms, the derivative of theirs is NaN.
    """
    if samples is None:
        raise RuntimeError(reason)
    if not unreadable(samples) and bool(samples.any()):
        raise RuntimeError(reason + name_samples(samples))
    samples = samples.reshape(*samples.shape, *(1,) * (derivative.ndim - samples.ndim))
    return torch.where(samples, torch.nan, derivative)


def refuse_second_derivative(
    gradient: Tensor, reason: str, samples: Tensor | None = None
) -> Tensor:
    """The gradient, whose derivative is refused: of the samples in the mask (*), if there is one.

    Where the mask cannot be read, inside torch.func transforms, theirs is NaN.
    """
    if torch.compiler.is_compiling() and not torch.is_grad_enabled():
        return gradient
    return _no_second_derivative(gradient, reason, samples)
