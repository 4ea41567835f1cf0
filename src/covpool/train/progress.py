"""What a run shows of its progress: a bar where there is a terminal, plain lines where not.

Hooks name our module's class where Lightning's name its base: `type: ignore[override]`.
"""

import sys
import time

from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from typing_extensions import override

from covpool.train.module import ClassificationModule
from covpool.train.run_directory import Row

REFRESH_SECONDS = 0.2
LINE_SECONDS = 30.0


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as in 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


EPOCH_HEADER = (
    "                     training         test\n"
    "epoch   method         loss  top-1    loss  top-1   best  rate        s images/s"
)


def epoch_line(row: Row, epochs: int, best: float) -> str:
    """One line about a finished epoch, under EPOCH_HEADER, of at most 80 columns."""
    epoch = f"{row['epoch']}/{epochs}"
    return (
        f"{epoch:7} {row['method']:12} {row['train_loss']:6.3f} {row['train_top1']:6.1%}  "
        f"{row['test_loss']:6.3f} {row['test_top1']:6.1%} {best:6.1%}  "
        f"{row['learning_rate']:<7.2g}{row['seconds']:6.0f} {row['images_per_second']:8.0f}"
    )


def plain_console(*, stderr: bool = False) -> Console:
    """A console for lines, and for a bar where it is a terminal.

    Notebooks and many services set FORCE_COLOR, which rich takes for a terminal: every state of the
    bar would stand in the output. In a notebook it would put each line into a box of its own.
    """
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        stderr=stderr,
        highlight=False,
        soft_wrap=True,
        markup=False,
        force_jupyter=False,
        force_terminal=None if terminal else False,
    )


class Clock:
    """Rate of the training images and an estimate of the time left, of this process's own work."""

    def __init__(self, batch_size: int, test_images: int) -> None:
        self.batch_size = batch_size
        self.test_images = test_images
        self.began = time.monotonic()
        self.steps = 0
        self.train_seconds = 0.0
        self.test_seconds: float | None = None

    def begin(self) -> None:
        """A stretch of training or evaluation begins."""
        self.began = time.monotonic()

    def step_taken(self) -> None:
        """A training step has ended."""
        now = time.monotonic()
        self.train_seconds += now - self.began
        self.began = now
        self.steps += 1

    def evaluated(self) -> None:
        """An evaluation has ended."""
        now = time.monotonic()
        self.test_seconds = now - self.began
        self.began = now

    @property
    def rate(self) -> float:
        """Training images per second."""
        return self.steps * self.batch_size / max(self.train_seconds, 1e-9)

    def left(self, steps: int, evaluations: int) -> float:
        """Seconds that so many steps and evaluations will take; evaluation guessed from training
        (a third of its cost an image) until one was seen."""
        if not self.steps:
            return float("nan")
        test = self.test_seconds
        if test is None:
            test = self.test_images / (3 * self.rate)
        return steps * self.train_seconds / self.steps + evaluations * test


class EvaluationProgress(Callback):
    """Images evaluated and the time left, on standard error.

    Args:
        images: how many there are.
        batch_size: of the evaluation.
    """

    def __init__(self, images: int, batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size
        self.console = plain_console(stderr=True)
        self.bar = Progress(
            TextColumn("evaluating"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("evaluating", total=images)
        self.began = self.shown = time.monotonic()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: ClassificationModule) -> None:  # type: ignore[override]
        self.began = self.shown = time.monotonic()
        self.bar.start()

    @override
    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: ClassificationModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        done = min((batch_idx + 1) * self.batch_size, self.images)
        self.bar.update(self.task, completed=done)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.shown >= LINE_SECONDS and done < self.images:
            self.shown = now
            left = duration((now - self.began) * (self.images - done) / done)
            self.console.print(f"evaluated {done} of {self.images} images  {left} left")

    def close(self) -> None:
        """Take the bar off the terminal; at the end, however it came."""
        self.bar.stop()


class ProgressReport(Callback):
    """Loss, top-1, rate and time left during an epoch, and a line after it.

    Args:
        console: where to; None is standard output.
    """

    def __init__(self, batch_size: int, test_images: int, console: Console | None = None) -> None:
        self.console = console or plain_console()
        self.clock = Clock(batch_size, test_images)
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.shown = 0.0
        self.announced = 0
        self.step = 0

    def _status(self, module: ClassificationModule) -> tuple[int, int, str]:
        """Epoch (from 0), steps of it taken, and the figures as text; just after a step."""
        per_epoch = module.steps_per_epoch
        epoch, step = divmod(module.global_step - 1, per_epoch)
        loss, hits, _, images = module.train_sums.tolist()
        remaining = (module.config.train.epochs - epoch) * per_epoch - (step + 1)
        left = self.clock.left(remaining, module.config.train.epochs - epoch)
        text = (
            f"loss {loss / max(images, 1):.3f}  top-1 {100 * hits / max(images, 1):.1f}%  "
            f"{self.clock.rate:.0f} images/s  {duration(left)} left"
        )
        return epoch, step + 1, text

    @override
    def on_train_start(self, trainer: Trainer, pl_module: ClassificationModule) -> None:  # type: ignore[override]
        self.step = pl_module.global_step
        self.clock.begin()
        self.shown = time.monotonic()
        self.console.print(EPOCH_HEADER)
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed}/{task.total}  {task.fields[figures]}"),
                console=self.console,
                transient=True,
                auto_refresh=False,
                expand=True,
            )
            self.task = self.bar.add_task(
                "starting", total=pl_module.steps_per_epoch, figures="waiting for the first images"
            )
            self.bar.start()
            self.bar.refresh()

    @override
    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: ClassificationModule, batch: object, batch_idx: int
    ) -> None:
        # By the number of steps, so that a run says it once however often it is resumed.
        epoch, step = divmod(pl_module.global_step, pl_module.steps_per_epoch)
        method = pl_module.schedule.switches_to(epoch)
        if method is not None and step == 0 and self.announced != epoch:
            self.announced = epoch
            self.console.print(f"from epoch {epoch + 1} on the pooling is {method}")

    @override
    def on_train_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: ClassificationModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        if pl_module.global_step == self.step:
            return  # a step whose gradient is still being accumulated
        self.step = pl_module.global_step
        self.clock.step_taken()
        period = REFRESH_SECONDS if self.bar else LINE_SECONDS
        now = time.monotonic()
        if now - self.shown < period:
            return
        self.shown = now
        epoch, step, figures = self._status(pl_module)
        epochs, steps = pl_module.config.train.epochs, pl_module.steps_per_epoch
        name = f"epoch {epoch + 1}/{epochs}"
        if self.bar and self.task is not None:
            method = pl_module.schedule.name_at(epoch)
            self.bar.update(
                self.task,
                description=f"{name} {method}",
                completed=step,
                total=steps,
                figures=figures,
                refresh=True,
            )
        elif step < steps:
            self.console.print(f"{name}  step {step}/{steps}  {figures}")

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: ClassificationModule) -> None:  # type: ignore[override]
        self.clock.begin()
        if self.bar and self.task is not None:
            loader = trainer.val_dataloaders
            self.bar.update(
                self.task,
                description=f"epoch {pl_module.global_step // pl_module.steps_per_epoch} test",
                completed=0,
                total=len(loader) if loader else None,
                figures="",
                refresh=True,
            )

    @override
    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: ClassificationModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.bar and self.task is not None and time.monotonic() - self.shown > REFRESH_SECONDS:
            self.shown = time.monotonic()
            self.bar.update(self.task, completed=batch_idx + 1, refresh=True)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: ClassificationModule) -> None:  # type: ignore[override]
        self.clock.evaluated()

    def epoch_ended(self, row: Row, epochs: int, best: float) -> None:
        """Print the epoch's line; called once its row is complete."""
        self.console.print(epoch_line(row, epochs, best))
        self.clock.begin()
        self.shown = time.monotonic()

    def close(self) -> None:
        """Take the bar off the terminal; at the end of training, however it ends."""
        if self.bar:
            self.bar.stop()
            self.bar = None
