"""What every autograd function here needs of torch: both modes, vmap, torch.compile."""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function

# Documented by torch, but not listed in its `__all__`.
is_tracing = torch.jit.is_tracing  # pyright: ignore[reportPrivateImportUsage]


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
