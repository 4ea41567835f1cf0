"""The conditioning of the pooled covariances, along a training."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from covpool.analysis import (
    GradientMagnitudes,
    gradient_magnitudes,
    measure_conditioning,
    summarise,
)
from covpool.analysis.state import pooling_layer
from covpool.linalg.checks import require_integer
from covpool.linalg.methods import Method, get_method
from covpool.train.probes.base import PoolingProbe, network


class ConditioningProbe(PoolingProbe):
    """How well conditioned the pooled covariances of the training batch are, every so many steps.

    The features are those of the training's own forward pass: none is added. The rows hold, for
    the features and for the covariance as formed, distributions over the samples of the figures of
    `covpool.analysis.measure_conditioning`; and in `kernels`, by method, the largest |K| of each
    sample beside its bound, its histogram, ties and non-finite entries
    (`covpool.analysis.gradient_magnitudes`).

    Args:
        directory: the run directory, where analysis.jsonl is written.
        every: steps from one measurement to the next.
        samples: how many of the batch's first samples are measured, in a distributed run of the
            first process's part.
        methods: whose K is measured on these covariances; None: that of the method in use.

    Cost: for each sample a singular value decomposition of the features and a decomposition of the
    covariance, both in float64 on the CPU, and K; `seconds` in each row says what it was. The
    training is the same bit for bit with and without it.

    Raises:
        ValueError: `every` or `samples` below 1, an unknown method; in `setup`, a model without
            exactly one CovPool2d.
    """

    name = "conditioning"

    def __init__(
        self,
        directory: Path | str,
        *,
        every: int = 100,
        samples: int = 32,
        methods: Sequence[str | Method] | None = None,
    ) -> None:
        super().__init__(directory, every)
        require_integer("ConditioningProbe: samples", samples, 1)
        self.samples = samples
        self.methods = None if methods is None else [get_method(method) for method in methods]

    @override
    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        record = self.stop_watching()
        if record is None or record.features is None:
            return
        began = time.perf_counter()
        try:
            found = self._measure(pl_module, record.features[: self.samples].cpu())
        except (ValueError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            found = {"error": str(error)}
        self.write(trainer, pl_module, began, found)

    def _measure(self, module: LightningModule, features: Tensor) -> dict[str, Any]:
        found = measure_conditioning(features)
        methods = self.methods or [pooling_layer(network(module)).method]
        return {
            "samples": len(features),
            "channels": found.channels,
            "positions": found.positions,
            "floor": found.floor,
            **found.summarise(),
            "kernels": {
                name: _summary(size)
                for name, size in gradient_magnitudes(found.eigenvalues, methods).items()
            },
        }


def _summary(size: GradientMagnitudes) -> dict[str, Any]:
    """Sizes of K over all samples."""
    return {
        "bound": size.bound,
        "largest": None if size.largest is None else summarise(size.largest),
        "largest_entry": summarise(size.largest_entry),
        "pairs": int(size.pairs.sum()),
        "ties": int(size.ties.sum()),
        "nonfinite": None if size.nonfinite is None else int(size.nonfinite.sum()),
        "log10_edges": size.log10_edges,
        "histogram": None if size.histogram is None else size.histogram.sum(0),
    }
