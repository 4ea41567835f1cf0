"""What torch is doing with a tensor: transforms of torch.func, tracing, forward mode."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.eager_transforms import jvp_increment_nesting
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

is_tracing = torch._C._is_tracing  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
"""torch.jit.is_tracing, without two calls of Python."""

in_transform = torch._C._are_functorch_transforms_active  # pyright: ignore[reportPrivateUsage]
"""Whether a transform of torch.func is at work, on whatever tensor. torch has no public test for it
(2.11 to 2.15)."""


def nested_forward_mode() -> AbstractContextManager[Any]:
    """A context for the body of a Function's `jvp`, in which outer forward derivatives go on.

    torch switches forward mode off there, so that `jacfwd(jacfwd(f))` silently lacks every term
    that comes from the `jvp` itself (pytorch issue 197867, torch 2.11 to 2.15).
    """
    return forward_ad._set_fwd_grad_enabled(True)  # pyright: ignore[reportPrivateUsage]


def inner_forward_mode() -> AbstractContextManager[Any]:
    """A context for a `torch.func.jvp` of our own, of what may be differentiated from outside too.

    That opens a level of forward mode unless an outer `torch.func.jvp` has opened one, and torch
    refuses a second where `torch.autograd.forward_ad.dual_level` has.
    """
    if forward_ad._current_level < 0:  # pyright: ignore[reportPrivateUsage]
        return nullcontext()
    return jvp_increment_nesting()


def refuse_compiled_forward_mode() -> None:
    """Refuse forward mode while torch.compile traces.

    It takes no function with a `jvp`, and of one without the tangent would be zero, silently.

    Raises:
        RuntimeError: of which torch.compile shows its own version.
    """
    if forward_ad._current_level >= 0:  # pyright: ignore[reportPrivateUsage]
        raise RuntimeError(
            "covpool: forward mode does not go through torch.compile; leave this function out of "
            "the compiled part by torch.compiler.disable"
        )


def recorded() -> bool:
    """Whether a graph is being recorded for other programs to run, without backward passes."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return is_tracing()


def refuse_onnx(what: str) -> None:
    """Refuse an operation that ONNX lacks, while a graph is being recorded for it.

    Raises:
        RuntimeError: in torch.onnx.export, which shows the message at the end of its own.
    """
    if recorded() and _in_onnx_export():
        if not torch.compiler.is_dynamo_compiling():
            # torch.compile's tracer, by which the exporter tries again, takes it for False.
            torch.compiler.assume_constant_result(_in_onnx_export)
        raise RuntimeError(
            f"covpool: ONNX has no {what}; what can be exported is cov_pool and CovPool2d with "
            "method 'newton-schulz-minimax', which is the root of 'exact' to rounding, or "
            "'isqrt-cov': covpool.exportable(network) is a copy with it in its layers"
        )


def _in_onnx_export() -> bool:
    return torch.onnx.is_in_onnx_export()


def as_leaf(module: nn.Module, *inputs: Any) -> Any:
    """One call of the module in the graph of torch.fx that is being traced.

    None where nothing is traced, or the module itself is what is traced.
    """
    if not isinstance(inputs[0], torch.fx.Proxy):
        return None
    tracer: Any = inputs[0].tracer
    if tracer.root is module:
        return None
    return tracer.create_proxy("call_module", tracer.path_of_module(module), inputs, {})


# torch has no public test for it (2.11 to 2.15).
_wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # pyright: ignore[reportAttributeAccessIssue]


def transformed(tensor: Tensor) -> bool:
    """Whether the tensor is inside a transform of torch.func, and not being compiled."""
    return not torch.compiler.is_compiling() and _wrapped(tensor)


# What torch.autograd.grad(is_grads_batched=True) and functional.jacobian(vectorize=True) hand to
# backward passes; torch has no public test for it (2.11 to 2.15).
_batched_gradient = torch._C._functorch.is_legacy_batchedtensor  # pyright: ignore[reportAttributeAccessIssue]


_OWN = (Tensor, nn.Parameter)


def is_ordinary(tensor: object) -> bool:
    """Whether it is torch's own kind of tensor, and neither transforms nor tracers are at work.

    Nor is autocast on a CPU. On one its values can be looked at then.
    """
    return (
        not torch.compiler.is_compiling()
        and type(tensor) in _OWN
        and not in_transform()
        and not is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and not _batched_gradient(tensor)
    )


def unreadable(tensor: Tensor) -> bool:
    """Whether there are no values to look at."""
    return (
        torch.compiler.is_compiling()
        or is_tracing()
        or tensor.is_meta
        or isinstance(tensor, FakeTensor)
        or _wrapped(tensor)
        or _batched_gradient(tensor)
    )
