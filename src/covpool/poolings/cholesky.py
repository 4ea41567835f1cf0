"""The log-Cholesky normalisation."""

import torch
from torch import Tensor

from covpool.linalg.products import NoProductForm
from covpool.linalg.transforms import refuse_onnx
from covpool.pooling import covariance
from covpool.poolings.base import Pooling, require
from covpool.poolings.matrix import Normalisation, matrix_pooling


class LogCholesky(Normalisation):
    """tril(L, −1) + tril(L, −1)ᵀ + 2 diag(log Lᵢᵢ), L the Cholesky factor of Σ + εI.

    In float64. NaN where ε is lost beside Σ (a trace above about 1e9), so that there is no factor.
    """

    def __init__(self, *, epsilon: float = 1e-6) -> None:
        super().__init__()
        require(epsilon > 0, "epsilon", "positive", epsilon)
        self.epsilon = epsilon

    def in_matrix_products(self, dtype: torch.dtype) -> str | None:
        raise NoProductForm("the Cholesky factorisation; pow-tmlr has one")

    def forward(self, features: Tensor) -> Tensor:
        refuse_onnx("Cholesky factorisation")
        wide = features.to(torch.promote_types(features.dtype, torch.float64))
        matrix = covariance(wide)
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        factor, failed = torch.linalg.cholesky_ex(matrix + self.epsilon * identity)
        factor = torch.where(failed[..., None, None] == 0, factor, torch.nan)
        below = factor.tril(-1)
        logs = factor.diagonal(dim1=-2, dim2=-1).log()
        return (below + below.mT + torch.diag_embed(2 * logs)).to(features.dtype)


CHOLESKY: tuple[Pooling, ...] = (
    matrix_pooling(
        "cho-tmlr",
        LogCholesky,
        normalisation="log-Cholesky",
        paper="Chen, Song, Wu, Liu, Sebe: Understanding matrix function normalizations in "
        "covariance pooling through the lens of Riemannian geometry, ICLR 2025",
        description="the Cholesky factor with the logarithm of its diagonal",
        caution="Depends on the order of the channels. Where Σ is singular, as with fewer "
        "positions than channels, ε sets the last entries of the diagonal, and so decides "
        "unless it is near the mean eigenvalue.",
    ),
)
