"""What all probes share: when to measure, where to write, how to watch the pooling layer."""

import json
import time
import warnings
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from typing_extensions import override

from covpool.analysis.records import plain
from covpool.analysis.state import PoolingRecord, pooling_layer, watch_pooling
from covpool.linalg.checks import require_integer
from covpool.train.analysis_rows import ANALYSIS, read_analysis
from covpool.train.module import ClassificationModule
from covpool.train.run_directory import replace_text


class Probe(Callback):
    """What measures every so many steps, of one training, and writes its rows.

    Args:
        directory: the run directory.
        every: steps from one measurement to the next; the first is at step 0.

    Raises:
        ValueError: `every` is not a whole number of at least 1.
    """

    name: ClassVar[str]
    needs_pooling: ClassVar[bool] = False

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
        layer = _layer(network(module))
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


def network(module: LightningModule) -> nn.Module:
    """What is trained: of this package's module the model alone, not its average beside it."""
    return module.model if isinstance(module, ClassificationModule) else module


class PoolingProbe(Probe):
    """A probe that sees what goes through the pooling layer in the training's own passes.

    A model that torch.compile has compiled does not call hooks: then there are no rows, and a
    warning.

    Raises:
        ValueError: `every` below 1; in `setup`, a model without exactly one CovPool2d.
    """

    needs_pooling = True

    def __init__(self, directory: Path | str, every: int) -> None:
        super().__init__(directory, every)
        self.watching: Any = None
        self.record: PoolingRecord | None = None
        self.warned = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        pooling_layer(network(pl_module))

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.stop_watching()  # of a step that was left by an exception
        if self.due(trainer):
            self.watching = watch_pooling(network(pl_module))
            self.record = self.watching.__enter__()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.stop_watching()

    def stop_watching(self) -> PoolingRecord | None:
        """Take the hooks away; what they saw, or None where they saw nothing or were not there.

        To be called before the backward pass: once it is done, other callbacks may call the model.
        """
        if self.watching is None or self.record is None:
            return None
        self.watching.__exit__(None, None, None)
        record = self.record
        self.watching = self.record = None
        if record.features is not None:
            return record
        if not self.warned:
            self.warned = True
            warnings.warn(
                f"{type(self).__name__} saw no features: the model did not call its pooling "
                "layer's hooks, as one that torch.compile has compiled does not; measure without "
                "it",
                UserWarning,
                stacklevel=2,
            )
        return None
