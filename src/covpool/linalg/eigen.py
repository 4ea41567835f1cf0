"""The eigendecomposition as an autograd function, its gradient's pole replaced by a kernel."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg.kernels import Kernel
from covpool.linalg.spectrum import refuse_second_derivative, symmetric_part, without_autocast


class Eigh(Function):
    """(matrix, kernel) → eigenvalues (*, n), eigenvectors (*, n, n), both differentiable."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
        eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
        return eigenvalues, eigenvectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernel = inputs[1]
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        grad_eigenvalues, grad_eigenvectors = grad_outputs
        eigenvalues, eigenvectors = ctx.saved_tensors
        with without_autocast(eigenvectors):
            projected = eigenvectors.mT @ grad_eigenvectors
            inner = ctx.kernel.matrix(eigenvalues).mT * projected
            inner = symmetric_part(inner) + torch.diag_embed(grad_eigenvalues)
            gradient = eigenvectors @ inner @ eigenvectors.mT
        if ctx.kernel.exact_second_order:
            return gradient, None
        reason = (
            f"eigh: the second derivative of the gradient that kernel {ctx.kernel} gives is not "
            "defined; use kernel='difference' where second derivatives are needed"
        )
        return refuse_second_derivative(gradient, reason), None
