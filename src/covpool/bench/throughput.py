"""Images a second of the input pipeline, of the training step, and of both; which is the limit.

The loader alone is read without a network, for each number of workers; the step alone is trained on
batches that are held in memory, by the same Lightning loop; both together are the training itself,
with the number of workers that read fastest. On a GPU the copy to the device counts in the step.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, Dataset

from covpool.machine import describe_environment
from covpool.train.job import Job
from covpool.train.loaders import ImageDataModule
from covpool.train.trainer import make_trainer, quiet_lightning


class Enough(Exception):
    """As many steps as were to be timed have been taken."""


class Timer(Callback):
    """Seconds that `steps` steps take, after `warm_up` others."""

    def __init__(self, warm_up: int, steps: int, tell: Any) -> None:
        self.warm_up, self.steps, self.tell = warm_up, steps, tell
        self.seconds = float("nan")
        self.began = 0.0

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        self.tell(step, self.warm_up + self.steps)
        if step in (self.warm_up, self.warm_up + self.steps):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            now = time.perf_counter()
            if step > self.warm_up:
                self.seconds = now - self.began
                raise Enough
            self.began = now


class Held(Dataset[Any]):
    """A few batches of the run, over and over, from memory."""

    def __init__(self, batches: list[Any], number: int) -> None:
        self.batches, self.number = batches, number

    def __getitem__(self, index: int) -> Any:
        return self.batches[index % len(self.batches)]

    def __len__(self) -> int:
        return self.number


class HeldImages(ImageDataModule):
    """The run's loaders, with training batches that need no reading."""

    def __init__(self, job: Job, batches: list[Any]) -> None:
        super().__init__(job.splits, job.config)
        self.batches = batches

    def train_dataloader(self) -> DataLoader:
        held = Held(self.batches, len(super().train_dataloader()))
        pin = torch.cuda.is_available()
        return DataLoader(held, batch_size=None, pin_memory=pin)


def read_images(job: Job, workers: int, warm_up: int, steps: int, tell: Any) -> float:
    """Seconds that the loader takes for so many steps' images."""
    config = with_options(job, epochs=1, workers=workers).config
    batches = endless(ImageDataModule(job.splits, config).loader_of(lambda: 0))
    began = 0.0
    for step in range(warm_up + steps):
        if step == warm_up:
            began = time.perf_counter()
        for _ in range(config.train.accumulate):
            next(batches)
        tell(step + 1, warm_up + steps)
    return time.perf_counter() - began


def endless(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


def train_steps(job: Job, data: ImageDataModule, warm_up: int, steps: int, tell: Any) -> float:
    """Seconds that so many steps of the training take."""
    module = job.module()
    if job.config.train.compile:
        module.compile_backbone()
    timer = Timer(warm_up, steps, tell)
    with quiet_lightning():
        trainer = make_trainer(job.config, [timer])
        trainer.limit_val_batches = 0
        with suppress(Enough):
            trainer.fit(module, datamodule=data)
    return timer.seconds


def with_options(job: Job, *, epochs: int, workers: int) -> Job:
    """The job with another length and number of loader processes."""
    config = replace(
        job.config,
        data=replace(job.config.data, workers=workers),
        train=replace(job.config.train, epochs=epochs),
    )
    return replace(job, config=config)


def measure(
    job: Job, workers: Sequence[int], warm_up: int, steps: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """Images a second, and which is the limit.

    Args:
        job: the training, in one process.
        workers: numbers of loader processes to try.
        warm_up: steps that are not timed.
        steps: those that are.
        report: told what goes on.
    """
    config, size = job.config, len(job.splits.train)
    batch = min(config.data.batch_size, size)
    epochs = -(-(warm_up + steps) // (size // batch)) + 1
    device = "cuda" if config.train.accelerator != "cpu" and torch.cuda.is_available() else "cpu"

    def tell(what: str) -> Any:
        return lambda done, of: report(f"{what}: step {done} of {of}")

    def rate(seconds: float) -> float:
        return steps * batch / seconds

    loader = {
        number: rate(read_images(job, number, warm_up, steps, tell(f"loader, {number} workers")))
        for number in workers
    }
    best = max(loader, key=lambda number: loader[number])
    job = with_options(job, epochs=epochs, workers=best)
    source = endless(ImageDataModule(job.splits, job.config).loader_of(lambda: 0))
    held = HeldImages(job, [next(source) for _ in range(4 * config.train.accumulate)])
    step = rate(train_steps(job, held, warm_up, steps, tell("step alone")))
    images = ImageDataModule(job.splits, job.config)
    both = rate(train_steps(job, images, warm_up, steps, tell("both")))
    return {
        "environment": describe_environment(torch.get_num_threads(), device),
        "config": config.to_dict(),
        "steps": steps,
        "images_per_step": batch,
        "loader": {str(number): found for number, found in loader.items()},
        "step": step,
        "both": {"workers": best, "images_per_second": both},
        "limit": "loader" if loader[best] < step else "step",
    }
