"""Contexts in which a model can be run without leaving a trace, and its pooling be watched."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from covpool.linalg.spectrum import symmetric_part
from covpool.pooling import CovPool2d


@contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Whatever is written to the model's buffers, or put in their place, is gone afterwards.

    Their storage is exchanged and put back, not written to, so that a graph that is alive keeps its
    version counters.
    """
    held = [
        (module, name, buffer, buffer.data)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        for _, _, buffer, data in held:
            buffer.data = data.clone()
        yield
    finally:
        for module, name, buffer, data in held:
            buffer.data = data
            module._buffers[name] = buffer


@contextmanager
def unchanged_generators(tensors: Iterable[Tensor]) -> Iterator[None]:
    """The state of the CPU's random generator, and of those of the tensors' devices, is kept."""
    kinds: dict[str, set[int]] = {}
    for tensor in tensors:
        if tensor.device.type != "cpu":
            kinds.setdefault(tensor.device.type, set()).add(tensor.device.index or 0)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind, indices in kinds.items():
            fork = torch.random.fork_rng(devices=sorted(indices), device_type=kind)
            stack.enter_context(fork)
        yield


def pooling_layer(model: nn.Module) -> CovPool2d:
    """The model's one covariance pooling layer, or the model itself where it is one.

    Raises:
        ValueError: none, or several: then pass the layer itself.
    """
    found = {name: part for name, part in model.named_modules() if isinstance(part, CovPool2d)}
    if len(found) != 1:
        names = ", ".join(repr(name) for name in found) or "none"
        raise ValueError(
            f"{type(model).__name__} must hold exactly one CovPool2d to look at, found {names}"
        )
    return next(iter(found.values()))


class PoolingRecord:
    """What went through a pooling layer, detached.

    Attributes:
        features: (B, C, N), those pooled in the last forward pass; None before the first.
        gradient: (B, C, C), symmetric, the loss's of the pooled matrices; None before the backward
            pass of that forward pass.
    """

    def __init__(self) -> None:
        self.features: Tensor | None = None
        self.gradient: Tensor | None = None


@contextmanager
def watch_pooling(model: nn.Module) -> Iterator[PoolingRecord]:
    """Keep the features that the model's pooling layer pools, after its channel reduction, and the
    gradient that comes back to what it gives.

    Hooks on the layer and its `reduction`: nothing is computed and the model's result does not
    change. They are gone afterwards, but the gradient is noted whenever the backward pass comes. A
    model that torch.compile has compiled before does not call them.

    Raises:
        ValueError: as `pooling_layer`.
    """
    record = PoolingRecord()
    layer = pooling_layer(model)

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        record.features = output.detach().flatten(2)
        record.gradient = None

    def watch(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            features = record.features

            def note(gradient: Tensor) -> None:
                if record.features is features:  # of the last forward pass
                    record.gradient = matrix_gradient(layer, gradient.detach())

            output.register_hook(note)

    handles = [layer.reduction.register_forward_hook(keep), layer.register_forward_hook(watch)]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def matrix_gradient(layer: CovPool2d, gradient: Tensor) -> Tensor:
    """The symmetric gradient (B, C, C) of the pooled matrix, from that of the layer's output."""
    if not layer.vectorize:
        return symmetric_part(gradient)
    size = layer.channels
    row, column = torch.triu_indices(size, size, device=gradient.device)
    matrix = gradient.new_zeros(*gradient.shape[:-1], size, size)
    matrix[..., row, column] = gradient
    return symmetric_part(matrix)


def pooled_features(model: nn.Module, *inputs: Any) -> Tensor:
    """The features (B, C, N) that the model pools when it is called with the inputs.

    One forward pass without gradient, in the mode that the model is in; its buffers and torch's
    generators are left as they were.

    Raises:
        ValueError: as `pooling_layer`; the layer was not called.
    """
    with (
        watch_pooling(model) as record,
        unchanged_buffers(model),
        unchanged_generators(model.parameters()),
        torch.no_grad(),
    ):
        model(*inputs)
    if record.features is None:
        raise ValueError(f"{type(model).__name__} did not call its pooling layer")
    return record.features
