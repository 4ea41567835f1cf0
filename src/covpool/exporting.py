"""`exportable`: a network without decompositions, for formats that have none."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from covpool.linalg.products import NoProductForm

DECOMPOSITIONS = re.compile(
    r"aten\._?linalg_(eig|svd|cholesky|solve|inv|qr|lu|ldl|lstsq|pinv|slogdet|matrix_exp)"
    r"|aten\.(cholesky|geqrf|orgqr|ormqr|triangular_solve|lu_solve)"
)
"""The operators of torch that factorise or solve."""


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """What `exportable` gives.

    Attributes:
        network: a copy of the network, in evaluation mode, that computes by matrix products.
        replaced: by layer what stands in for its own way; empty where nothing had to.
        deviation: the largest change of a number that the network gives for the example, NaN where
            one of them is; None without an example. Booleans count as 0 and 1.
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

    Weights that are computed from others (`torch.nn.utils.parametrize`), such as that of
    `covpool.nn.BiMap` by a linear solve, are constants in the copy.

    Args:
        network: any module; what it calls by itself (`covpool.cov_pool`, …) is not replaced.
        example: its input, or a tuple of its inputs, on which the deviation is measured. With it
            the copy is known to be free of decompositions, as one is refused when it is called.
        dtype: of the products. `torch.float32` is for runtimes without float64, and loses
            eigenvalues below 1e-7 of the largest.

    Returns:
        `Exportable`: the copy, what was replaced in it, and the deviation.

    Raises:
        ValueError: a layer has no form in matrix products; the message names it and what has one.
            The copy decomposes a matrix of the example; it names the operator and the layer.
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
        after = _numbers(_without_decompositions(changed, inputs))
    return Exportable(
        network=changed,
        replaced=replaced,
        deviation=_largest([_change(a, b) for a, b in zip(after, before, strict=True)]),
        scale=_largest(before),
    )


def compute_in_products(network: nn.Module, dtype: torch.dtype) -> dict[str, str]:
    """Let every layer of the network compute by matrix products; by layer what stands in.

    A layer of one's own may have this form too: by a method `in_matrix_products` as `CovPool2d`'s.

    Raises:
        ValueError: as `exportable`.
    """
    replaced = {}
    for path, layer in list(network.named_modules()):
        where = path or type(layer).__name__
        if parametrize.is_parametrized(layer):
            replaced[where] = "constant " + ", ".join(_make_constant(layer))
        convert = getattr(layer, "in_matrix_products", None)
        try:
            found = None if convert is None else convert(dtype)
        except NoProductForm as error:
            raise ValueError(
                f"{_named(path, layer)} has no form in matrix products, for {error}"
            ) from None
        if found is not None:
            replaced[where] = found
    return replaced


def _make_constant(layer: nn.Module) -> list[str]:
    """Remove a layer's parametrizations, keeping what they give; the names of those tensors."""
    shared = type(layer)
    # Copies share the class that torch made for the layer, from which a property is deleted.
    members = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    layer.__class__ = cast(Any, type(shared.__name__, shared.__bases__, members))
    parametrizations = cast(nn.ModuleDict, layer.parametrizations)
    names = list(parametrizations)
    for name in names:
        # The result is written over the original tensor, which another layer may be using too.
        parametrizations[name] = copy.deepcopy(parametrizations[name])
        parametrize.remove_parametrizations(layer, name)
    return names


def _named(path: str, layer: nn.Module) -> str:
    return (f"layer {path!r}" if path else "the layer") + f" ({type(layer).__name__})"


class _Refusing(TorchDispatchMode):
    """Refuses operators that factorise or solve, and names the innermost layer that calls one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[str] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = str(func)
        if DECOMPOSITIONS.match(name):
            where = self.layers[-1] if self.layers else "the network"
            raise ValueError(
                f"exportable: {where} computes {name}, which is no matrix product; take "
                "it out of what is exported, or give it a method in_matrix_products as CovPool2d's"
            )
        return func(*args, **(kwargs or {}))


def _without_decompositions(network: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """What the network gives; a ValueError where it decomposes a matrix on the way."""
    mode, hooks = _Refusing(), []
    for path, layer in network.named_modules():
        name = _named(path, layer)
        hooks += [
            layer.register_forward_pre_hook(lambda *_, name=name: mode.layers.append(name)),
            layer.register_forward_hook(lambda *_: mode.layers.pop() and None),
        ]
    try:
        with mode:
            return network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()


def _numbers(output: Any) -> list[Tensor]:
    """The tensors in what a network gives; booleans and whole numbers in float64."""
    leaves = [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return [t if t.is_floating_point() or t.is_complex() else t.double() for t in leaves]


def _change(after: Tensor, before: Tensor) -> Tensor:
    # Infinities that stay the same, as those of a mask, have not changed.
    return torch.where(after == before, 0, after - before)


def _largest(tensors: list[Tensor]) -> float:
    found = [t.abs().amax().double().cpu() for t in tensors if t.numel()]
    # By torch, of which the largest of numbers with NaN among them is NaN.
    return torch.stack(found).amax().item() if found else 0.0
