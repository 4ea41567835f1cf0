"""The smoothness of the training loss, along a training."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from typing_extensions import override

from covpool.analysis import effective_smoothness
from covpool.train.module import ClassificationModule
from covpool.train.probes.base import Probe, network


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
            measured = effective_smoothness(network(pl_module), closure, step_lengths=lengths)
            found = measured.to_dict()
        except (ValueError, RuntimeError, FloatingPointError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            found = {"error": str(error)}
        self.write(trainer, pl_module, began, found)
