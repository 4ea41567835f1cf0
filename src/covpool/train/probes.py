"""Callbacks that measure along a training and leave no trace in it.

Each writes a row now and then to analysis.jsonl in the run directory. A row is of the state before
the step that it names is taken, counted from 0. On resumption rows of steps that are going to be
taken again are dropped, so each step has one row of each probe.
"""

import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from typing_extensions import override

from covpool.analysis import (
    GradientMagnitudes,
    effective_smoothness,
    gradient_magnitudes,
    measure_conditioning,
    summarise,
)
from covpool.analysis.records import plain
from covpool.analysis.state import PoolingRecord, pooling_layer, watch_pooling
from covpool.linalg.kernels import require_integer
from covpool.linalg.methods import Method, get_method
from covpool.train.module import ClassificationModule
from covpool.train.run_directory import Row, replace_text

ANALYSIS = "analysis.jsonl"
"""The file of the rows in the run directory."""


def read_analysis(directory: Path) -> list[Row]:
    """The rows that probes have written, in the order of writing; none where there is no file.

    A last line that a crash has cut short is left out.
    """
    file = directory / ANALYSIS
    if not file.is_file():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Probe(Callback):
    """What measures every so many steps, of one training, and writes its rows.

    Args:
        directory: the run directory.
        every: steps from one measurement to the next; the first is at step 0.

    Raises:
        ValueError: `every` is not a whole number of at least 1.
    """

    name: ClassVar[str]

    def __init__(self, directory: Path | str, every: int) -> None:
        require_integer(f"{type(self).__name__}: every", every, 1)
        self.directory = Path(directory)
        self.every = every
        self.measured = -1

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.directory = Path(trainer.strategy.broadcast(str(self.directory)))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.measured = -1
        if not trainer.is_global_zero:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        rows = read_analysis(self.directory)
        kept = [r for r in rows if r["probe"] != self.name or r["step"] < trainer.global_step]
        if rows or (self.directory / ANALYSIS).is_file():
            text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept)
            replace_text(self.directory / ANALYSIS, text)

    def due(self, trainer: Trainer) -> bool:
        """Whether this step is to be measured and has not been."""
        step = trainer.global_step
        return step % self.every == 0 and step != self.measured

    def write(
        self, trainer: Trainer, module: LightningModule, began: float, figures: dict[str, Any]
    ) -> None:
        """A row of plain data, by one process for all; the time is that of the measurement."""
        self.measured = trainer.global_step
        if not trainer.is_global_zero:
            return
        layer = _layer(module)
        row = {
            "probe": self.name,
            "step": trainer.global_step,
            "epoch": _epoch(trainer, module),
            "method": layer.method.name if layer is not None else None,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": round(time.perf_counter() - began, 4),
            **figures,
        }
        with (self.directory / ANALYSIS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(row), allow_nan=False) + "\n")


def _epoch(trainer: Trainer, module: LightningModule) -> int:
    """Counted from 1, as in metrics.jsonl."""
    ours = isinstance(module, ClassificationModule)
    return (module.epoch if ours else trainer.current_epoch) + 1


def _layer(module: nn.Module) -> Any:
    try:
        return pooling_layer(module)
    except ValueError:
        return None  # a network without covariance pooling has a smoothness too


class SmoothnessProbe(Probe):
    """The effective β-smoothness of the training loss, every so many steps.

    At a step to be measured, after its backward pass and before the weights move: the training loss
    (of another module than this package's, `training_step`) on the step's own batch, in a
    distributed run the first process's part of it, in the training's precision, at the weights and
    at steps along the negative gradient. The gradient is the loss's own: without clipping, momentum
    and weight decay.

    Args:
        directory: the run directory, where analysis.jsonl is written.
        every: steps from one measurement to the next.
        multiples: step lengths, as multiples of the learning rate of the first parameter group;
            Santurkar et al. (2018) take 1/2 to 4.

    The rows hold the fields of `covpool.analysis.Smoothness`, or an `error` where the loss could
    not be computed. Cost: 1 + len(multiples) forward and backward passes for each measurement, so
    that every=100 with 4 multiples adds about 5% to the training; `seconds` in each row says what
    it was. The training is the same bit for bit with and without it, unless another module's
    `training_step` has effects beyond buffers and torch's random generators, such as logging.

    Raises:
        ValueError: `every` or `multiples` out of range; in `setup`, a strategy that shards
            parameters over processes.
    """

    name = "smoothness"

    def __init__(
        self,
        directory: Path | str,
        *,
        every: int = 100,
        multiples: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0),
    ) -> None:
        super().__init__(directory, every)
        if not multiples or not all(0 < multiple < float("inf") for multiple in multiples):
            raise ValueError(
                f"SmoothnessProbe: multiples must be positive numbers, got {multiples}"
            )
        self.multiples = tuple(multiples)
        self.batch: Any = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            raise ValueError(
                "SmoothnessProbe cannot move parameters that are sharded over processes, as "
                f"{type(trainer.strategy).__name__} does; measure on one device or with ddp"
            )
        super().setup(trainer, pl_module, stage)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batch = (batch, batch_idx) if self.due(trainer) else None

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.batch is None:
            return
        batch, index = self.batch
        self.batch = None
        began = time.perf_counter()
        rate = trainer.optimizers[0].param_groups[0]["lr"]

        def closure() -> Tensor:
            with trainer.precision_plugin.forward_context():
                if isinstance(pl_module, ClassificationModule):
                    return pl_module.logits_and_loss(*batch)[1]
                result: Any = pl_module.training_step(batch, index)
            return result["loss"] if isinstance(result, dict) else result

        try:
            lengths = [multiple * rate for multiple in self.multiples]
            found = effective_smoothness(pl_module, closure, step_lengths=lengths).to_dict()
        except (ValueError, RuntimeError, FloatingPointError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            found = {"error": str(error)}
        self.write(trainer, pl_module, began, found)


class ConditioningProbe(Probe):
    """How well conditioned the pooled covariances of the training batch are, every so many steps.

    The features are those of the training's own forward pass: none is added. The rows hold, for
    the features and for the covariance as formed, distributions over the samples of the figures of
    `covpool.analysis.measure_conditioning`; and in `kernels`, by method, the largest |K| of each
    sample beside its bound, ties and non-finite entries (`covpool.analysis.gradient_magnitudes`).

    Args:
        directory: the run directory, where analysis.jsonl is written.
        every: steps from one measurement to the next.
        samples: how many of the batch's first samples are measured, in a distributed run of the
            first process's part.
        methods: whose K is measured on these covariances; None: that of the method in use.

    Cost: for each sample a singular value decomposition of the features and a decomposition of the
    covariance, both in float64 on the CPU, and K; `seconds` in each row says what it was. The
    training is the same bit for bit with and without it. A model that torch.compile has compiled
    does not call hooks: then there are no rows, and a warning.

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
        self.watching: Any = None
        self.record: PoolingRecord | None = None
        self.warned = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        pooling_layer(pl_module)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._stop()  # of a step that was left by an exception
        if self.due(trainer):
            self.watching = watch_pooling(pl_module)
            self.record = self.watching.__enter__()

    @override
    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        # Other callbacks may call the model once the backward pass is done.
        if self.watching is None:
            return
        features = self._stop()
        if features is None:
            self._warn()
            return
        began = time.perf_counter()
        try:
            found = self._measure(pl_module, features[: self.samples].cpu())
        except (ValueError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            found = {"error": str(error)}
        self.write(trainer, pl_module, began, found)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> Tensor | None:
        """Take the hook away; the features that it saw."""
        if self.watching is None or self.record is None:
            return None
        self.watching.__exit__(None, None, None)
        features = self.record.features
        self.watching = self.record = None
        return features

    def _warn(self) -> None:
        if not self.warned:
            self.warned = True
            warnings.warn(
                "ConditioningProbe saw no features: the model did not call its pooling layer's "
                "hooks, as one that torch.compile has compiled does not; measure without it",
                UserWarning,
                stacklevel=2,
            )

    def _measure(self, module: LightningModule, features: Tensor) -> dict[str, Any]:
        found = measure_conditioning(features)
        methods = self.methods or [pooling_layer(module).method]
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
