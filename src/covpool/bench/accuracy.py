"""Errors of value and gradient, against the singular value decomposition of float64 features; and
the exact inverse root of a matrix."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from covpool.bench.features import matrix_of_triangle


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
        channels = self.root.shape[-1]
        root = root.detach().double().cpu()
        if root.shape != self.root.shape:
            root = matrix_of_triangle(root.flatten(1), channels)
        gradient = gradient.detach().double().cpu()
        return worst(root, self.root), worst(gradient, self.gradient)


def exact_inverse_root(matrix: Tensor, root: int) -> Tensor:
    """A^(−1/p) of symmetric positive definite matrices (*, n, n) without ties, in float64.

    The eigenvectors V of float64 leave VᵀAV diagonal but for rounding. In the processor's extended
    precision that rest is counted in by the divided differences: what is left of it is quadratic,
    about (finfo(float64).eps · κ)² at condition number κ.
    """
    vectors = torch.linalg.eigh(matrix.double().cpu()).eigenvectors.numpy().astype(np.longdouble)
    turned = vectors.swapaxes(-1, -2)
    vectors = vectors @ (3 * np.eye(vectors.shape[-1]) - turned @ vectors) / 2  # to orthonormal
    turned = vectors.swapaxes(-1, -2)
    inner = turned @ matrix.double().cpu().numpy() @ vectors
    values = np.diagonal(inner, axis1=-2, axis2=-1)
    roots = values ** (np.longdouble(-1) / root)
    gaps = values[..., :, None] - values[..., None, :]
    own = np.eye(values.shape[-1], dtype=bool)
    slopes = (roots[..., :, None] - roots[..., None, :]) / np.where(own, 1, gaps)
    inner = np.where(own, roots[..., None, :], slopes * inner)
    return torch.from_numpy((vectors @ inner @ turned).astype(np.float64))


def worst(found: Tensor, exact: Tensor) -> float:
    """The largest relative error in the Frobenius norm of any sample, (B, …) each."""
    difference = (found - exact).flatten(1).norm(dim=1)
    return (difference / exact.flatten(1).norm(dim=1)).max().item()
