"""What second derivatives of f(A) need, from the eigendecomposition of A."""

import torch
from torch import Tensor

from covpool.linalg.scalar import THIRD_DERIVATIVE, ScalarFunction
from covpool.linalg.spectrum import full_precision, refuse_second_derivative, symmetric_part


def pseudoinverse_and_null(eigenvalues: Tensor, eigenvectors: Tensor) -> tuple[Tensor, Tensor]:
    """F⁺ of the root F, and the projector on its null space."""
    zero = eigenvalues == 0
    inverse = torch.where(zero, 0, torch.where(zero, 1, eigenvalues).rsqrt())
    pseudoinverse = (eigenvectors * inverse[..., None, :]) @ eigenvectors.mT
    null = (eigenvectors * zero[..., None, :].to(eigenvectors.dtype)) @ eigenvectors.mT
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
    bound = function.bind(exponent)
    with full_precision(eigenvectors):
        h = eigenvectors.mT @ first @ eigenvectors
        k = eigenvectors.mT @ second @ eigenvectors
        total = torch.zeros_like(h)
        for index, weight in enumerate(bound.second_differences(eigenvalues)):
            product = h[..., :, index, None] * k[..., None, index, :]
            total = total + weight * (product + product.mT)
        result = symmetric_part(eigenvectors @ total @ eigenvectors.mT)
    return refuse_second_derivative(result, THIRD_DERIVATIVE)
