"""The root of a covariance in matrix products alone, for graphs that other programs run.

ONNX has neither an eigendecomposition nor a Cholesky factorisation, and no autograd function gets
into a graph with its backward pass. Every root here is a polynomial of the covariance. It works on
the smaller of the C × C covariance and the N × N Gram matrix of the centred features: with
p(A) = A q(A), the root of X Xᵀ is X q(XᵀX) Xᵀ.
"""

from typing import cast

import torch
from torch import Tensor

from covpool.linalg.covariance import plainly_centred, works_on_gram
from covpool.linalg.forwards.base import Steps
from covpool.linalg.forwards.coupled import iterate_coupled
from covpool.linalg.spectrum import frobenius_norm, real_part

SUBSTITUTE = "newton-schulz-minimax"
"""What stands in for a method that decomposes: of the iterations, the nearest to the exact root."""


class NoProductForm(ValueError):
    """A layer has no form in matrix products; the message says which function, and what has one."""


def root_in_products(features: Tensor, steps: Steps, shift: float = 0.0) -> Tensor:
    """The square root of the covariance of features, in their dtype: (*, C, N) → (*, C, C)."""
    centred = plainly_centred(features)
    on_gram = works_on_gram(features)
    gram = centred.mH @ centred if on_gram else centred @ centred.mH
    # The sum of squares is the trace. Where it is 0, so are the features.
    trace = real_part(centred * centred.conj()).sum((-2, -1), keepdim=True)
    divisor = torch.where(trace == 0, 1, trace)
    inverse = _inverse_root(gram / divisor, steps, shift)
    if on_gram:
        root = (centred @ inverse @ centred.mH) / divisor.sqrt()
    else:
        root = (gram / divisor) @ inverse * divisor.sqrt()
    return (root + root.mH) * (0.5 * features.shape[-1] ** -0.5)


def roots_in_products(matrix: Tensor, steps: Steps, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """The square root of symmetric matrices (*, n, n) and its inverse, in their dtype."""
    trace = real_part(matrix.diagonal(dim1=-2, dim2=-1)).sum(-1)[..., None, None]
    divisor = torch.where(trace == 0, 1, trace)
    normalised = matrix / divisor
    inverse = _inverse_root(normalised, steps, shift)
    return normalised @ inverse * divisor.sqrt(), inverse / divisor.sqrt()


def largest_eigenvalue(matrix: Tensor, doublings: int = 24) -> Tensor:
    """λ₁ of positive semi-definite matrices (*, n, n): (*, 1, 1).

    ‖A^m‖ of the Frobenius norm is λ₁^m times a number from 1 to √n, so its m-th root is right to
    log(n)/(2m), 2e-7 for n = 256 and m = 2^24; ties do no harm.
    """
    size = frobenius_norm(matrix, (-2, -1))
    power, exponent, logarithm = matrix / torch.where(size == 0, 1, size), 1.0, 0.0
    for _ in range(doublings):
        power = power @ power
        norm = frobenius_norm(power, (-2, -1))
        power = power / torch.where(norm == 0, 1, norm)
        exponent = 2 * exponent
        logarithm = logarithm + torch.where(norm == 0, 1, norm).log() / exponent
    return size * torch.exp(torch.as_tensor(logarithm))


def _inverse_root(normalised: Tensor, steps: Steps, shift: float) -> Tensor:
    """q(A) ≈ A^(−1/2) of matrices (*, n, n) of trace 1."""
    if shift:
        size = normalised.shape[-1]
        identity = torch.eye(size, dtype=normalised.dtype, device=normalised.device)
        normalised = normalised + shift * identity
    _, inverse = iterate_coupled(normalised, steps, inverse=True)
    return cast(Tensor, inverse)
