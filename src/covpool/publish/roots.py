"""Covariance pooling in matrix products alone, for runtimes without an eigendecomposition.

Every root here is a polynomial of the covariance, and works on the smaller of the C × C covariance
and the N × N Gram matrix of the centred features: with p(A) = A q(A), the root of X Xᵀ is
X q(XᵀX) Xᵀ.
"""

import torch
from torch import Tensor, nn

from covpool.linalg.algorithms import NewtonSchulz
from covpool.linalg.lyapunov import sign_steps
from covpool.models import CovPoolModel
from covpool.pooling import CovPool2d, triu_vector

SUBSTITUTE = "newton-schulz-minimax"
"""What stands in for a method that decomposes: of the iterations, the nearest to the exact root."""

RESOLVED = 1e-4
"""The smallest singular value of the features, relative to their norm, that is resolved."""

RESOLVED_FLOAT32 = 3e-4
SHIFT_FLOAT32 = 3e-7
"""In float32 rounding makes eigenvalues negative, at which the iteration grows; this multiple of
the trace, added to all, keeps them above zero."""

Steps = list[tuple[float, float, float]]


class ProductsPool(nn.Module):
    """What `CovPool2d` computes, in matrix products: (B, C, H, W) → (B, out_features).

    Args:
        pool: whose channel reduction is shared, and whose method is followed.
        dtype: of the iteration. float32 is for runtimes without float64; a method that iterates in
            float32 itself keeps to it in both.

    `isqrt-cov` is computed as it is, and every other method by `newton-schulz-minimax`. That is the
    exact root to rounding; methods whose own is another one (`svd-topn`, `mtp-lyapunov`,
    `mpa-lyapunov`) are off by their distance from it.

    Attributes:
        description: how the root is computed, for people.
    """

    def __init__(self, pool: CovPool2d, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.reduction = pool.reduction
        self.vectorize = pool.vectorize
        forward = pool.method.forward
        self.shift = 0.0
        if isinstance(forward, NewtonSchulz):
            self.steps: Steps = [(1.5, -0.5, 0.0)] * forward.iterations
            self.dtype = forward.least_dtype
            self.description = f"{forward.title}, {forward.iterations} iterations, as trained"
        else:
            wide = dtype == torch.float64
            self.steps = sign_steps(RESOLVED if wide else RESOLVED_FLOAT32, dtype)
            self.shift = 0.0 if wide else SHIFT_FLOAT32
            self.dtype = dtype
            self.description = f"{SUBSTITUTE}, {len(self.steps)} steps"

    def forward(self, x: Tensor) -> Tensor:
        features = self.reduction(x).flatten(2).to(self.dtype)
        channels, positions = features.shape[1:]
        centred = features - features.mean(2, keepdim=True)
        on_gram = positions - 1 < channels
        gram = centred.mT @ centred if on_gram else centred @ centred.mT
        # The sum of squares is the trace. Where it is 0, so are the features.
        trace = centred.square().sum((1, 2), keepdim=True)
        divisor = torch.where(trace == 0, 1, trace)
        inverse = self._inverse_root(gram / divisor)
        if on_gram:
            root = (centred @ inverse @ centred.mT) / divisor.sqrt()
        else:
            root = (gram / divisor) @ inverse * divisor.sqrt()
        root = (root + root.mT) * (0.5 * positions**-0.5)
        root = root.to(x.dtype)
        return triu_vector(root) if self.vectorize else root

    def _inverse_root(self, normalised: Tensor) -> Tensor:
        """q(A) ≈ A^(−1/2) of matrices (B, n, n) of trace 1."""
        size = normalised.shape[-1]
        identity = torch.eye(size, dtype=normalised.dtype, device=normalised.device)
        y = normalised + self.shift * identity if self.shift else normalised
        z = None
        for a, b, c in self.steps:
            product = y if z is None else z @ y
            factor = a * identity + b * product
            if c:
                factor = factor + c * (product @ product)
            y = y @ factor
            z = factor if z is None else factor @ z
        assert z is not None
        return z


def in_products(model: CovPoolModel, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model with `ProductsPool` in the pooling's place; parameters are shared.

    A model with average pooling stays as it is.
    """
    if not isinstance(model.pool, CovPool2d):
        return model
    return _Assembled(model, ProductsPool(model.pool, dtype))


class _Assembled(nn.Module):
    """Backbone, pooling, classifier; dropout does nothing in evaluation."""

    def __init__(self, model: CovPoolModel, pool: nn.Module) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.layout = model.layout
        self.pool = pool
        self.classifier = model.classifier
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone.forward_features(x)
        return self.classifier(self.pool(self.layout.to_map(features, (x.shape[2], x.shape[3]))))
