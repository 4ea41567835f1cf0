"""What every autograd function here needs of torch: both modes, vmap, compile, full precision."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from covpool.linalg.engine.back_off import BACK_OFF
from covpool.linalg.engine.cores import alone_if_small
from covpool.linalg.precision import full_precision
from covpool.linalg.spectrum import name_samples
from covpool.linalg.transforms import (
    in_transform,
    is_tracing,
    refuse_compiled_forward_mode,
    unreadable,
)


def in_both_modes(function: type[Function]) -> Callable[..., Any]:
    """`function.apply`, differentiable in reverse and in forward mode, vmapped and compiled.

    Products are in full precision, those of `backward` and `jvp` too. `backward` is left out where
    no gradient has arrived (see `save`). One of these is applied:

    - within a transform of torch.func, a twin with all that the function has;
    - while torch.compile traces, a twin without `jvp`, as it takes no function with one;
    - under torch.jit.trace, which cannot save a call of a function, and where nothing records, as
      in a backward pass that is not differentiated again, what the forward pass does;
    - elsewhere a twin that does `forward` and `setup_context` in one: in every call of a function
      with a `setup_context` torch inspects its signature, which takes 40 µs.
    """
    forward: Callable[..., Any] = function.forward
    setup_context: Callable[..., None] = function.setup_context
    backward: Callable[..., Any] = function.backward
    jvp: Callable[..., Any] = function.jvp

    def forward_and_setup(ctx: Any, *inputs: Any) -> Any:
        output = forward(*inputs)
        setup_context(ctx, inputs, output)
        return output

    def compiled_backward(ctx: Any, *gradients: Any) -> Any:
        # Whether autocast is on while this is traced says nothing of when it will run.
        device = gradients[0].device.type
        if not torch.amp.is_autocast_available(device):
            return backward(ctx, *gradients)
        with torch.autocast(device, enabled=False):
            return backward(ctx, *gradients)

    def eager_backward(ctx: Any, *gradients: Any) -> Any:
        for gradient in gradients:
            if gradient is not None:
                return _in_full_precision(backward, gradient, ctx, *gradients)
        return (None,) * len(ctx.needs_input_grad)

    def eager_jvp(ctx: Any, *tangents: Any) -> Any:
        tangent = next(tangent for tangent in tangents if tangent is not None)
        return _in_full_precision(jvp, tangent, ctx, *tangents)

    def twin(**members: Callable[..., Any]) -> type[Function]:
        static = {name: staticmethod(member) for name, member in members.items()}
        return type(function.__name__, (Function,), {"generate_vmap_rule": True, **static})

    new_style = {"forward": forward, "setup_context": setup_context}
    compiled = twin(**new_style, backward=compiled_backward)
    transformed = twin(**new_style, backward=eager_backward, jvp=eager_jvp)
    eager = twin(forward=forward_and_setup, backward=eager_backward, jvp=eager_jvp)

    def apply(tensor: Tensor, *others: Any) -> Any:
        if torch.compiler.is_compiling():
            refuse_compiled_forward_mode()
            with full_precision(tensor):
                return compiled.apply(tensor, *others)
        if in_transform() and not is_tracing():
            chosen = transformed.apply
        else:
            chosen = eager.apply if recording() and not is_tracing() else forward
        return _in_full_precision(chosen, tensor, tensor, *others)

    return apply


def recording() -> bool:
    """Whether what is computed now may be differentiated later, as far as torch's modes tell."""
    return torch.is_grad_enabled() or forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]


def _in_full_precision(function: Callable[..., Any], tensor: Tensor, *inputs: Any) -> Any:
    if tensor.is_cpu and not torch.is_autocast_enabled("cpu"):
        # There is nothing to switch off, and a context takes its time.
        if torch.compiler.is_compiling() or perf_counter() >= BACK_OFF.until:
            return function(*inputs)
        return alone_if_small(function, tensor, *inputs)
    with full_precision(tensor):
        return function(*inputs)


def save(ctx: Any, *tensors: Any) -> None:
    """Save tensors for both modes; gradients and tangents that nobody has are None, not zeros."""
    ctx.save_for_backward(*tensors)
    if torch.compiler.is_compiling():
        return
    ctx.set_materialize_grads(False)
    if in_transform() or forward_ad._current_level >= 0:  # pyright: ignore[reportPrivateUsage]
        ctx.save_for_forward(*tensors)


def with_zeros(
    gradients: tuple[Tensor | None, ...], factors: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The gradients of the factors, zeros where there is none."""
    return tuple(
        torch.zeros_like(factor) if gradient is None else gradient
        for gradient, factor in zip(gradients, factors, strict=True)
    )


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
