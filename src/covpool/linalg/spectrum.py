"""What every spectral computation shares: numerical rank, symmetry, precision, refusals.

Shapes: (*, n, n) matrices, eigenvalues (*, m) in ascending order.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
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


class _NoSecondDerivative(Function):
    """The identity, with a derivative that is refused by name rather than silently wrong."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, reason: str) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.reason = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None]:
        raise RuntimeError(ctx.reason)


class _NoSecondDerivativeEither(_NoSecondDerivative):
    """The same in forward mode, which `torch.compile` does not accept."""

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> None:
        raise RuntimeError(ctx.reason)


def refuse_second_derivative(gradient: Tensor, reason: str) -> Tensor:
    if torch.compiler.is_compiling():
        return _NoSecondDerivative.apply(gradient, reason) if torch.is_grad_enabled() else gradient
    return _NoSecondDerivativeEither.apply(gradient, reason)
