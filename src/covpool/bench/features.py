"""The data that layers are measured on: features of a prescribed spectrum, and a loss."""

import math
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


def matrix_of_triangle(vector: Tensor, channels: int) -> Tensor:
    """The symmetric matrices (B, C, C) of upper triangles (B, C(C+1)/2)."""
    row, column = torch.triu_indices(channels, channels, device=vector.device)
    matrix = vector.new_zeros(len(vector), channels, channels)
    matrix[:, row, column] = matrix[:, column, row] = vector
    return matrix
