"""What layers are measured on, features of a prescribed spectrum and a loss, and the exact value
and gradient, by the singular value decomposition in float64."""

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from covpool.pooling import triu_vector


def sizes_of(text: str, *forms: str) -> tuple[int, ...]:
    """The numbers of a shape such as "16x22", which has one of the forms, such as "BATCHxN".

    Raises:
        ValueError: other than whole numbers from 1 on, or not as many.
    """
    parts = text.strip().split("x")
    right = all(part.isdecimal() and int(part) for part in parts)
    if not right or len(parts) not in {len(form.split("x")) for form in forms}:
        form = " or ".join(forms)
        raise ValueError(f"shape {text!r} must be {form}, in whole numbers from 1 on")
    return tuple(map(int, parts))


def matrix_sizes(text: str) -> tuple[int, ...]:
    """Batch and size of matrices, "64x22"."""
    return sizes_of(text, "BATCHxN")


class Shape(NamedTuple):
    """Features (batch, channels, positions), written "16x256x49"."""

    batch: int
    channels: int
    positions: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Raises:
            ValueError: not three whole numbers from 1 on, or a single position.
        """
        shape = cls(*sizes_of(text, "BATCHxCHANNELSxPOSITIONS"))
        if shape.positions < 2:
            raise ValueError(f"shape {text!r}: the covariance of one position is zero; give more")
        return shape

    def __str__(self) -> str:
        return "x".join(map(str, self))

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width, as square as the number of positions allows."""
        height = max(d for d in range(1, math.isqrt(self.positions) + 1) if self.positions % d == 0)
        return height, self.positions // height

    @property
    def rank(self) -> int:
        """The covariance's largest rank: centring takes one of the positions."""
        return min(self.channels, self.positions - 1)


def make_features(
    shape: Shape,
    *,
    spectrum: str = "geometric",
    condition: float = 1e4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Features (B, C, H, W) whose entries have unit mean square, another draw for each sample.

    "geometric": the centred features have `shape.rank` singular values, spaced geometrically from
    1 to 1/condition, between random orthonormal vectors. "random": normally distributed entries.
    Made in float64 on the CPU, so that they are the same on every device, then rounded to `dtype`.
    """
    generator = torch.Generator().manual_seed(seed)
    if spectrum == "random":
        features = torch.randn(shape, generator=generator, dtype=torch.float64)
    else:
        rank = shape.rank
        left = _orthonormal(shape.batch, shape.channels, rank, generator, centred=False)
        right = _orthonormal(shape.batch, shape.positions, rank, generator, centred=True)
        values = torch.logspace(0, -math.log10(condition), rank, dtype=torch.float64)
        features = (left * values) @ right.mT
        features = features / features.square().mean((-2, -1), keepdim=True).sqrt()
    return features.unflatten(-1, shape.map_size).to(device, dtype)


def _orthonormal(
    batch: int, rows: int, columns: int, generator: torch.Generator, *, centred: bool
) -> Tensor:
    draw = torch.randn(batch, rows, columns, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(draw - draw.mean(-2, keepdim=True) if centred else draw).Q


def make_weight(
    shape: Shape, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Tensor:
    """Symmetric (B, C, C), normally distributed: the loss is its inner product with the root."""
    generator = torch.Generator().manual_seed(seed + 1)
    size = (shape.batch, shape.channels, shape.channels)
    draw = torch.randn(size, generator=generator, dtype=torch.float64)
    return (0.5 * (draw + draw.mT)).to(device, dtype)


def positive_definite(batch: int, size: int, *, seed: int) -> Tensor:
    """Well-conditioned matrices (B, n, n) in float64, those of a Wishart distribution."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(batch, size, 2 * size + 2, generator=generator).double()
    return factor @ factor.mT / factor.shape[-1]


def triangle_weight(weight: Tensor) -> Tensor:
    """The weight on the upper triangle alone, (B, C(C+1)/2), that makes the same loss."""
    return triu_vector(2 * weight - torch.diag_embed(weight.diagonal(dim1=-2, dim2=-1)))


@dataclass(frozen=True)
class Exact:
    """The exact root (B, C, C) and the exact gradient (B, C, H, W), in float64."""

    root: Tensor
    gradient: Tensor

    @classmethod
    def of(cls, features: Tensor, weight: Tensor) -> "Exact":
        """Of √cov(X) and of the gradient of ⟨weight, √cov(X)⟩, the weight being symmetric.

        With Xc = U S Vᵀ over √N: √Σ = U S Uᵀ and, G the weight, the gradient of Xc is
        2 (U (T ∘ sⱼ) + (I − U Uᵀ) G U) Vᵀ, Tij = (UᵀGU)ij / (si + sj). No covariance is formed, so
        that nothing is squared; singular values at rounding error's height count as zero.
        """
        x = features.detach().double().flatten(2).cpu()
        weight = weight.double().cpu()
        channels, positions = x.shape[-2:]
        centred = (x - x.mean(-1, keepdim=True)) / positions**0.5
        left, values, right = torch.linalg.svd(centred, full_matrices=False)
        epsilon = torch.finfo(torch.float64).eps
        kept = values > max(channels, positions) * epsilon * values[..., :1]
        values, left = torch.where(kept, values, 0), left * kept[..., None, :]
        root = (left * values[..., None, :]) @ left.mT
        product = weight @ left
        projected = left.mT @ product
        sums = values[..., :, None] + values[..., None, :]
        inner = torch.where(sums > 0, projected / sums, 0) * values[..., None, :]
        gradient = 2 * (left @ (inner - projected) + product) @ (right * kept[..., None])
        return cls(root, gradient.reshape(features.shape) / positions**0.5)

    def errors(self, root: Tensor, gradient: Tensor) -> tuple[float, float]:
        """Relative errors of both in the Frobenius norm, the worst sample's.

        The root is (B, C, C), or its upper triangle (B, C(C+1)/2) or (B, C(C+1)/2, 1).
        """
        exact = self.root
        if root.shape != exact.shape:
            # Of the matrix the norm is taken, in which entries beside the diagonal stand twice.
            scale = triu_vector(torch.ones_like(exact[0]), isometric=True)
            exact, root = triu_vector(exact, isometric=True), scale * root.flatten(1).cpu()
        return worst(root, exact), worst(gradient, self.gradient)


def worst(found: Tensor, exact: Tensor) -> float:
    """The largest relative error in the Frobenius norm of any sample, (B, …) each."""
    difference = found.detach().double().cpu() - exact
    return (difference.flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).max().item()
