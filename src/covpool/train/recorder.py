"""The callback that turns a running training into its run directory, and stops it on request.

Hooks name our module's class where Lightning's name its base: `type: ignore[override]`.
"""

import math
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from typing_extensions import override

from covpool.data import DataError
from covpool.train.checkpoint import METADATA, read_checkpoint
from covpool.train.interruption import Interrupted, StopRequest
from covpool.train.module import ClassificationModule, TrainingDiverged
from covpool.train.progress import ProgressReport
from covpool.train.run_directory import Row, RunDirectory, best_row, put_aside, replace_file
from covpool.train.storage import AtomicCheckpointIO, StorageError
from covpool.train.trainer import over_processes

PROGRESS = "covpool_progress"

PROGRESS_KEYS = ("history", "seconds", "sums_epoch", "skipped", "train_sums")

ROW_KEYS = (
    *("epoch", "method", "skipped_steps", "learning_rate", "seconds"),
    *(f"{split}_{name}" for split in ("train", "test") for name in ("loss", "top1", "top5")),
)
"""What each row of the history has, whichever version wrote it."""

WEIGHTS_KEYS = (
    *("epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops"),
    METADATA,
)
"""What Lightning writes into a checkpoint of weights only, and this package beside it."""


class Recorder(Callback):
    """Writes metrics and checkpoints at the end of each epoch, and last.ckpt within long ones.

    Checkpoints come from here rather than from Lightning's ModelCheckpoint because an epoch's row
    has to be in the checkpoint that follows it, and because the callback's state then holds no
    path, so that a run directory can be moved.

    Attributes:
        history: a row for each finished epoch.
    """

    def __init__(
        self,
        directory: RunDirectory,
        request: StopRequest,
        report: ProgressReport | None,
    ) -> None:
        self.directory = directory
        self.request = request
        self.report = report
        self.history: list[Row] = []
        self.seconds = 0.0
        self.began = 0.0
        self.evaluation_began = 0.0
        self.test_seconds = 0.0
        self.step = 0

    @override
    def setup(self, trainer: Trainer, pl_module: ClassificationModule, stage: str) -> None:  # type: ignore[override]
        path = trainer.strategy.broadcast(self.directory.path)
        self.directory = RunDirectory(path)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: ClassificationModule) -> None:  # type: ignore[override]
        # Lightning's own handler of SIGTERM would raise wherever the loops happen to be.
        self.request.install()
        self.step = trainer.global_step
        self.began = time.monotonic()

    @override
    def on_train_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: ClassificationModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        now = time.monotonic()
        self.seconds += now - self.began
        self.began = now
        step = pl_module.global_step
        if step == self.step:
            return  # a step whose gradient is still being accumulated
        self.step = step
        if step % pl_module.steps_per_epoch == 0:
            return  # the epoch's end evaluates first, then saves and honours a request
        every = pl_module.config.train.checkpoint_steps
        stop = self._stop_requested(trainer)
        if stop or (every and step % every == 0):
            pl_module.check_weights()
            self._save(trainer, self.directory.last)
        if stop:
            raise Interrupted(stop)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: ClassificationModule) -> None:  # type: ignore[override]
        self.evaluation_began = time.monotonic()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: ClassificationModule) -> None:  # type: ignore[override]
        self.test_seconds = time.monotonic() - self.evaluation_began

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: ClassificationModule) -> None:  # type: ignore[override]
        pl_module.check_weights()
        self.history.append(self._row(trainer, pl_module))
        self.seconds = 0.0
        row, best = self.history[-1], best_row(self.history)
        for log in trainer.loggers:
            figures = {name: value for name, value in row.items() if not isinstance(value, str)}
            log.log_metrics(figures, step=pl_module.global_step)
        problem = None
        if trainer.is_global_zero:
            try:
                self.directory.write_metrics(self.history)
            except OSError as error:
                problem = f"cannot write {self.directory.path / 'metrics.csv'}: {error.strerror}"
        self._agree_on(trainer, problem)
        # In this order: what a crash leaves undone here is made up for from last.ckpt.
        self._save(trainer, self.directory.last)
        if best is row:
            self._save(trainer, self.directory.best, weights_only=True)
        epochs = pl_module.config.train.epochs
        if self.report is not None and trainer.is_global_zero:
            self.report.epoch_ended(row, epochs, best["test_top1"])
        stop = self._stop_requested(trainer)
        if stop and row["epoch"] < epochs:
            raise Interrupted(stop)
        self.began = time.monotonic()

    @override
    def on_exception(  # type: ignore[override]
        self, trainer: Trainer, pl_module: ClassificationModule, exception: BaseException
    ) -> None:
        # An image that cannot be read stops the run between two steps: nothing need be lost.
        if not isinstance(exception, DataError) or not trainer.global_step:
            return
        if trainer.world_size > 1 or not pl_module.between_steps:
            return  # the others are not where this process is, or gradients would be lost
        if trainer.validating:
            # Lightning goes on with the batch after the last one that is counted as evaluated, but
            # the sums start anew: let it be in the first one.
            batches = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            batches.reset()
            batches.increment_ready()
            batches.increment_started()
        with suppress(TrainingDiverged):
            pl_module.check_weights()
            self._save(trainer, self.directory.last)

    def _save(self, trainer: Trainer, path: Path, *, weights_only: bool = False) -> None:
        trainer.save_checkpoint(path, weights_only=weights_only)
        writer = trainer.strategy.checkpoint_io
        self._agree_on(trainer, writer.failure if isinstance(writer, AtomicCheckpointIO) else None)

    def _agree_on(self, trainer: Trainer, problem: str | None) -> None:
        """Raise in every process where the first one, which writes, met a problem."""
        problem = trainer.strategy.broadcast(problem)
        if problem:
            raise StorageError(problem)

    def _row(self, trainer: Trainer, module: ClassificationModule) -> Row:
        epoch = module.epoch - 1
        row: Row = {"epoch": epoch + 1, "method": module.schedule.name_at(epoch)}
        sums = {"train": module.over_all_processes(module.train_sums), "test": module.test_sums}
        images = {}
        for split, tensor in sums.items():
            loss, top1, top5, images[split] = tensor.tolist()
            seen = images[split] or math.nan  # none where every step was skipped
            row[f"{split}_loss"] = loss / seen
            row[f"{split}_top1"] = top1 / seen
            row[f"{split}_top5"] = top5 / seen
        row["skipped_steps"] = module.guard.skipped
        row["learning_rate"] = module.learning_rate_at(epoch)
        row["seconds"] = round(self.seconds, 3)
        row["test_seconds"] = round(self.test_seconds, 3)
        row["images_per_second"] = round(images["train"] / max(self.seconds, 1e-9), 1)
        return row

    def _stop_requested(self, trainer: Trainer) -> int:
        """The signal that asked any of the processes to stop, else 0."""
        asked = self.request.signal_number or 0
        if trainer.world_size > 1:
            flag = torch.tensor(asked, device=trainer.strategy.root_device)
            asked = int(over_processes(trainer, flag, "max"))
        return asked

    @override
    def on_save_checkpoint(  # type: ignore[override]
        self, trainer: Trainer, pl_module: ClassificationModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[PROGRESS] = {
            "history": self.history,
            "seconds": self.seconds,
            "sums_epoch": pl_module.sums_epoch,
            "skipped": pl_module.guard.skipped,
            "train_sums": pl_module.of_each_process(pl_module.train_sums),
        }

    @override
    def on_load_checkpoint(  # type: ignore[override]
        self, trainer: Trainer, pl_module: ClassificationModule, checkpoint: dict[str, Any]
    ) -> None:
        progress = checkpoint[PROGRESS]
        self.history = progress["history"]
        self.seconds = progress["seconds"]
        pl_module.sums_epoch = progress["sums_epoch"]
        pl_module.guard.skipped = progress["skipped"]
        sums = progress["train_sums"]
        if len(sums) == trainer.world_size:
            pl_module.train_sums.copy_(sums[trainer.global_rank])
        elif trainer.is_global_zero:  # other processes than before: the total, once
            pl_module.train_sums.copy_(sums.sum(0))


def check_progress(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise a ValueError where a checkpoint's progress is not what this package writes.

    A row's figures may be NaN, as where every step of an epoch was skipped.
    """

    def check(ok: bool, problem: str) -> None:
        if not ok:
            raise ValueError(
                f"checkpoint {path}: {PROGRESS}{problem}; it is not what covpool wrote: put the "
                "run's own back, or start a new run"
            )

    def check_numbers(values: Mapping[str, object], names: Iterable[str], where: str) -> None:
        for name in names:
            value = values[name]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            check(number, f"{where}.{name} must be a number, not {value!r}")

    def check_keys(values: object, names: Iterable[str], where: str) -> None:
        check(isinstance(values, dict), f"{where} must be a mapping, not {values!r}")
        assert isinstance(values, dict)
        missing = [name for name in names if name not in values]
        check(not missing, f"{where} is not whole: it lacks {', '.join(missing)}")

    progress: Any = checkpoint.get(PROGRESS)
    check_keys(progress, PROGRESS_KEYS, "")
    history, sums = progress["history"], progress["train_sums"]
    check(isinstance(history, list), f".history must be a list, not {history!r}")
    for number, row in enumerate(history):
        where = f".history[{number}]"
        check_keys(row, ROW_KEYS, where)
        method = row["method"]
        check(isinstance(method, str), f"{where}.method must be text, not {method!r}")
        check_numbers(row, [name for name in ROW_KEYS if name != "method"], where)
    check_numbers(progress, ("seconds", "sums_epoch", "skipped"), "")
    rows = isinstance(sums, torch.Tensor) and sums.ndim == 2 and sums.shape[1] == 4
    check(rows, ".train_sums must be a tensor of 4 columns")


def restore_best(directory: RunDirectory, checkpoint: dict[str, Any]) -> str | None:
    """Make sure that best.ckpt is that of the best epoch so far.

    Where it is missing, damaged or of another epoch it is written anew from last.ckpt or
    previous.ckpt, if one of them is of that epoch.

    Args:
        directory: the run's.
        checkpoint: the content of the one that the run goes on from.

    Returns:
        What was wrong and what was done, or None.
    """
    history = checkpoint[PROGRESS]["history"]
    if not history:
        return None
    wanted, file = best_row(history)["epoch"], directory.best
    try:
        epoch = read_checkpoint(file)[METADATA]["epoch"] + 1
        # A later one is of an epoch that is about to be trained again.
        if epoch == wanted or epoch > len(history):
            return None
        problem = f"{file} is of epoch {epoch}, and epoch {wanted} is the best"
    except (FileNotFoundError, ValueError) as error:
        problem = str(error)
    put_aside(file)
    for path in (directory.last, directory.previous):
        try:
            found = read_checkpoint(path)
            check_progress(found, path)
        except (FileNotFoundError, ValueError):
            continue
        # One that was saved in the midst of the next epoch has other weights.
        rows = len(found[PROGRESS]["history"])
        if wanted == rows == found[METADATA]["epoch"] + 1:
            content = {key: found[key] for key in WEIGHTS_KEYS if key in found}
            replace_file(file, partial(torch.save, content))
            return f"{problem}; it is written anew from {path}"
    return (
        f"{problem}; the weights of epoch {wanted} are in no other checkpoint, so that there is no "
        "best.ckpt until a later epoch is better"
    )
