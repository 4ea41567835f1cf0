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
from covpool.linalg.spectrum import real_part


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


def _inverse_root(normalised: Tensor, steps: Steps, shift: float) -> Tensor:
    """q(A) ≈ A^(−1/2) of matrices (*, n, n) of trace 1."""
    if shift:
        size = normalised.shape[-1]
        identity = torch.eye(size, dtype=normalised.dtype, device=normalised.device)
        normalised = normalised + shift * identity
    _, inverse = iterate_coupled(normalised, steps, inverse=True)
    return cast(Tensor, inverse)
