"""Images a second of the input pipeline, of the training step, and of both; which is the limit."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from covpool.bench.measurement import Measurement, Record, Results
from covpool.bench.options import ThroughputOptions
from covpool.bench.timing import Report
from covpool.train.job import Job
from covpool.train.loaders import ImageDataModule
from covpool.train.trainer import make_trainer, quiet_lightning


class Enough(Exception):
    """As many steps as were to be timed have been taken."""


class Watch(Callback):
    """Seconds that `steps` steps take, after `warm_up` others."""

    def __init__(self, warm_up: int, steps: int, report: Report) -> None:
        self.warm_up, self.all, self.report = warm_up, warm_up + steps, report
        self.began = self.seconds = float("nan")

    def taken(self, step: int) -> None:
        """That many steps have been taken; raises `Enough` after the last."""
        self.report(f"step {step} of {self.all}")
        if step in (self.warm_up, self.all):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds, self.began = time.perf_counter() - self.began, time.perf_counter()
        if step == self.all:
            raise Enough

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.taken(trainer.global_step)


class HeldImages(ImageDataModule):
    """The run's loaders, with training batches that need no reading: a few, over and over."""

    def train_dataloader(self) -> DataLoader:
        loader = super().train_dataloader()
        few = list(islice(endless(loader), 4 * self.config.train.accumulate))
        held: Any = list(islice(cycle(few), len(loader)))
        return DataLoader(held, batch_size=None, pin_memory=torch.cuda.is_available())


Work = Callable[[Job, ImageDataModule, Watch], None]


def endless(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


class Throughput(Measurement[ThroughputOptions]):
    """The loader alone for each number of workers, the step alone, and both.

    Args:
        options: of the measurement.
        job: the training, in one process.
    """

    def __init__(self, options: ThroughputOptions, job: Job) -> None:
        super().__init__(options)
        self.job, size = job, len(job.splits.train)
        self.batch = min(job.config.data.batch_size, size)
        self.epochs = -(-(options.warm_up + options.steps) // (size // self.batch)) + 1

    def records(self, done: Mapping[str, Record]) -> Iterator[Record]:
        rates = {}
        for workers in self.options.workers:
            record = self._timed("loader alone", self._read, ImageDataModule, workers)
            rates[workers] = record["images_per_second"]
            yield record
        best = max(rates, key=lambda workers: rates[workers])
        yield self._timed("step alone", self._train, HeldImages, best)
        yield self._timed("both", self._train, ImageDataModule, best)

    def _timed(self, what: str, work: Work, images: type[ImageDataModule], workers: int) -> Record:
        own, self.place = self.options, f"{what}: "
        config = replace(
            self.job.config,
            data=replace(self.job.config.data, workers=workers),
            train=replace(self.job.config.train, epochs=self.epochs),
        )
        job = replace(self.job, config=config)
        watch = Watch(own.warm_up, own.steps, self.say)
        with suppress(Enough):
            work(job, images(job.splits, config), watch)
        rate = own.steps * self.batch / watch.seconds
        return {"shape": f"{what}, {workers} workers", "what": what, "images_per_second": rate}

    @staticmethod
    def _read(job: Job, images: ImageDataModule, watch: Watch) -> None:
        """Read images without a network, as many for a step as it takes."""
        each = job.config.train.accumulate
        for number, _ in enumerate(endless(images.loader_of(lambda: 0)), 1):
            if number % each == 0:
                watch.taken(number // each)

    @staticmethod
    def _train(job: Job, images: ImageDataModule, watch: Watch) -> None:
        module = job.module()
        if job.config.train.compile:
            module.compile_backbone()
        with quiet_lightning():
            trainer = make_trainer(job.config, [watch])
            trainer.limit_val_batches = 0
            trainer.fit(module, datamodule=images)

    def finish(self, results: Results, output: Path | None) -> tuple[Sequence[str], int]:
        rates = {record["shape"]: record["images_per_second"] for record in results["shapes"]}
        lines = [f"{name:26} {rate:10.1f} images/s" for name, rate in rates.items()]
        *loader, step, _ = rates.values()
        return [*lines, f"the limit is the {'loader' if max(loader) < step else 'step'}"], 0
