"""`exportable`: a network without decompositions, for formats that have none."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from covpool.linalg.products import NoProductForm


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """What `exportable` gives.

    Attributes:
        network: a copy of the network, in evaluation mode, that computes by matrix products.
        replaced: by layer what stands in for its own way; empty where nothing had to.
        deviation: the largest change of a number that the network gives for the example; None
            without an example.
        scale: the largest magnitude of those numbers, beside which the deviation is to be read.
    """

    network: nn.Module
    replaced: dict[str, str]
    deviation: float | None = None
    scale: float | None = None


def exportable(
    network: nn.Module,
    example: Tensor | tuple[Any, ...] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> Exportable:
    """A copy of any network with our layers that ONNX and its like can hold: no decompositions.

    `CovPool2d`, `Pool2d` and `MatrixFunction` are computed by matrix products in it: the root by
    the method "newton-schulz-minimax", which is the exact one to rounding, unless the method
    consists of products itself ("isqrt-cov"), and polynomials of the covariance as such. So a
    network whose pooling is another root than the exact one ("svd-topn", "mtp-lyapunov", …)
    changes; how much is measured on the example. The network itself stays as it is.

    Args:
        network: any module; what it calls by itself (`covpool.cov_pool`, …) is not replaced.
        example: its input, or a tuple of its inputs, on which the deviation is measured.
        dtype: of the products. `torch.float32` is for runtimes without float64, and loses
            eigenvalues below 1e-7 of the largest.

    Returns:
        `Exportable`: the copy, what was replaced in it, and the deviation.

    Raises:
        ValueError: a layer has no form in matrix products; the message names it and what has one.
            Another dtype than float32 and float64.
        TypeError: the network is no module.

    Source: Higham, Functions of matrices, SIAM 2008, chapter 6, and that of the method.

    >>> import torch, covpool
    >>> layer = covpool.CovPool2d(6, None, "svd-pade")
    >>> found = covpool.exportable(layer, torch.randn(2, 6, 5, 5))
    >>> found.replaced, found.deviation < 1e-5
    ({'CovPool2d': 'newton-schulz-minimax'}, True)
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"exportable needs a torch.nn.Module, got {type(network).__name__}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"exportable: dtype must be torch.float32 or torch.float64, got {dtype}")
    changed = copy.deepcopy(network).eval()
    inputs = example if isinstance(example, tuple) else (example,)
    with torch.no_grad():
        before = None if example is None else _numbers(changed(*inputs))
        replaced = compute_in_products(changed, dtype)
        if before is None:
            return Exportable(network=changed, replaced=replaced)
        after = _numbers(changed(*inputs))
    return Exportable(
        network=changed,
        replaced=replaced,
        deviation=_largest([a - b for a, b in zip(after, before, strict=True)]),
        scale=_largest(before),
    )


def compute_in_products(network: nn.Module, dtype: torch.dtype) -> dict[str, str]:
    """Let every layer of the network compute by matrix products; by layer what stands in.

    A layer of one's own may have this form too: by a method `in_matrix_products` as `CovPool2d`'s.

    Raises:
        ValueError: as `exportable`.
    """
    replaced = {}
    for path, layer in network.named_modules():
        convert = getattr(layer, "in_matrix_products", None)
        try:
            found = None if convert is None else convert(dtype)
        except NoProductForm as error:
            where = f"layer {path!r}" if path else "the layer"
            raise ValueError(
                f"{where} ({type(layer).__name__}) has no form in matrix products, for {error}"
            ) from None
        if found is not None:
            replaced[path or type(layer).__name__] = found
    return replaced


def _numbers(output: Any) -> list[Tensor]:
    """The tensors in what a network gives."""
    return [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _largest(tensors: list[Tensor]) -> float:
    return max((t.abs().amax().item() for t in tensors if t.numel()), default=0.0)
