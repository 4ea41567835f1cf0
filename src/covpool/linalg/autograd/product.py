"""A matrix product that autograd differentiates in full precision."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg.autograd.modes import in_both_modes
from covpool.linalg.precision import uses_tf32


def multiplication(like: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """A, B ↦ A B on the device of `like`, TF32 being off in its derivatives too.

    In what torch.compile traces autocast is off there too, in whatever state it will run.
    """
    return _product if uses_tf32(like) or torch.compiler.is_compiling() else torch.matmul


class _Product(Function):
    @staticmethod
    def forward(left: Tensor, right: Tensor) -> Tensor:
        return left @ right

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        multiply = multiplication(left)
        of_left = multiply(grad_outputs[0], right.mH).sum_to_size(left.shape)
        return of_left, multiply(left.mH, grad_outputs[0]).sum_to_size(right.shape)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        left, right = ctx.saved_tensors
        multiply = multiplication(left)
        return multiply(tangents[0], right) + multiply(left, tangents[1])


_product = in_both_modes(_Product)
