"""What every spectral computation shares: numerical rank, symmetry, precision, refusals.

Shapes: (*, n, n) matrices, eigenvalues (*, m) in ascending order.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import Function, forward_ad


def rank_tolerance(size: int, dtype: torch.dtype) -> float:
    """The share of the largest eigenvalue below which one counts as zero: n · finfo(dtype).eps.

    The convention of numerical rank (Golub and Van Loan, Matrix Computations, §5.4; numpy's
    `matrix_rank`): the backward error of a symmetric eigendecomposition.
    """
    return size * torch.finfo(dtype).eps


def clip_to_rank(eigenvalues: Tensor, size: int) -> Tensor:
    """Eigenvalues (*, m) with rounding errors, of either sign, set to exactly zero."""
    threshold = rank_tolerance(size, eigenvalues.dtype) * eigenvalues.amax(-1, keepdim=True)
    # The comparison is this way round so that NaN, where it was not looked for, stays NaN.
    return torch.where(eigenvalues <= threshold.clamp_min(0), 0, eigenvalues)


def symmetric_part(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which matrix products keep the precision of their operands."""
    if not torch.amp.is_autocast_available(tensor.device.type):
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def nested_forward_mode() -> AbstractContextManager[Any]:
    """A context for the body of a Function's `jvp`, in which outer forward derivatives go on.

    torch switches forward mode off there, so that `jacfwd(jacfwd(f))` silently lacks every term
    that comes from the `jvp` itself (pytorch issue 197867, torch 2.11 to 2.15).
    """
    return forward_ad._set_fwd_grad_enabled(True)  # pyright: ignore[reportPrivateUsage]


def unreadable(tensor: Tensor) -> bool:
    # torch has no public test for a tensor inside a functorch transform (2.11 to 2.15).
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # pyright: ignore[reportAttributeAccessIssue]
    return (
        torch.compiler.is_compiling()
        or tensor.is_meta
        or isinstance(tensor, FakeTensor)
        or wrapped(tensor)
    )


def name_samples(bad: Tensor) -> str:
    """'samples [3, 17] of 64', from a mask over the batch; '' where there is no batch."""
    if bad.ndim == 0:
        return ""
    found = bad.nonzero().tolist()
    shown = [index[0] if bad.ndim == 1 else tuple(index) for index in found[:8]]
    more = ", …" if len(found) > 8 else ""
    listed = ", ".join(map(str, shown))
    return f" in {len(found)} of {bad.numel()} samples: [{listed}{more}]"


class _NoSecondDerivative(Function):
    """The identity, with a derivative that is refused by name rather than silently wrong."""

    generate_vmap_rule = True

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
        return _refuse(grad_outputs[0], ctx.reason, *ctx.saved_tensors), None, None


class _NoSecondDerivativeEither(_NoSecondDerivative):
    """The same in forward mode, which `torch.compile` does not accept."""

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Tensor:
        return _refuse(grad_inputs[0], ctx.reason, *ctx.saved_tensors)


def _refuse(derivative: Tensor, reason: str, samples: Tensor | None) -> Tensor:
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
    if torch.compiler.is_compiling():
        if not torch.is_grad_enabled():
            return gradient
        return _NoSecondDerivative.apply(gradient, reason, samples)
    return _NoSecondDerivativeEither.apply(gradient, reason, samples)
