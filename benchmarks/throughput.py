#!/usr/bin/env python3
"""Images a second of the input pipeline, of the training step, and of both; which is the limit.

    python benchmarks/throughput.py --output results/throughput/cpu.json \\
        --data.root birds --model.backbone resnet50 --data.image_size 448

takes the options of `covpool train`. The loader alone is read without a network, for each number
of --workers; the step alone is trained on batches that are held in memory, by the same Lightning
loop; both together are the training itself, with the number of workers that read fastest. On a GPU
the copy to the device counts in the step.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import run

from covpool.cli.parsing import RunParser, checking_files, chosen_recipe, users_input

# isort: split
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, Dataset

from covpool.bench.environment import describe_environment, summary_line
from covpool.bench.progress import Progress
from covpool.train.job import Job, prepare
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


def main() -> int:
    arguments = sys.argv[1:]
    with users_input():
        recipe = chosen_recipe(arguments)
    parser = RunParser("train", __doc__ or "", defaults=recipe and recipe.config)
    parser.parser.prog = "throughput.py"
    parser.add_argument("--recipe", type=str | None, help="the training to measure")
    parser.add_argument("--workers", type=str, default="0,1,2", help="numbers of loader processes")
    parser.add_argument("--steps", type=int, default=30, help="timed steps")
    parser.add_argument("--warm_up", type=int, default=5, help="steps before them")
    parser.add_argument("--output", type=Path | None, help="JSON file")
    config, own = parser.parse(arguments)
    with users_input(), checking_files() as check:
        if own.output is None:
            raise ValueError("--output is missing: the JSON file to write")
        if config.train.devices * config.train.nodes > 1:
            raise ValueError("throughput is measured in one process; leave train.devices at 1")
        numbers = [int(text) for text in own.workers.split(",")]
        job = prepare(config, progress=check)
    batch = min(config.data.batch_size, len(job.splits.train))
    images, total = own.steps * batch, own.warm_up + own.steps
    per_epoch = len(job.splits.train) // batch
    epochs = -(-total // per_epoch) + 1
    device = "cuda" if config.train.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    results: dict[str, Any] = {
        "environment": describe_environment(torch.get_num_threads(), device),
        "config": config.to_dict(),
        "steps": own.steps,
        "images_per_step": batch,
        "loader": {},
    }
    print(summary_line(results["environment"]))
    print(job.describe())
    with Progress() as progress:

        def tell(what: str) -> Any:
            return lambda done, of: progress(f"{what}: step {done} of {of}")

        for workers in numbers:
            told = tell(f"loader, {workers} workers")
            seconds = read_images(job, workers, own.warm_up, own.steps, told)
            results["loader"][str(workers)] = images / seconds
        best = max(numbers, key=lambda workers: results["loader"][str(workers)])
        job = with_options(job, epochs=epochs, workers=best)
        source = endless(ImageDataModule(job.splits, job.config).loader_of(lambda: 0))
        parts = config.train.accumulate
        held = HeldImages(job, [next(source) for _ in range(4 * parts)])
        seconds = train_steps(job, held, own.warm_up, own.steps, tell("step alone"))
        results["step"] = images / seconds
        both = ImageDataModule(job.splits, job.config)
        seconds = train_steps(job, both, own.warm_up, own.steps, tell("both"))
        results["both"] = {"workers": best, "images_per_second": images / seconds}
    results["limit"] = "loader" if results["loader"][str(best)] < results["step"] else "step"
    own.output.parent.mkdir(parents=True, exist_ok=True)
    own.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for workers, rate in results["loader"].items():
        print(f"loader alone, {workers} workers  {rate:10.1f} images/s")
    print(f"step alone               {results['step']:10.1f} images/s")
    print(f"both, {best} workers          {results['both']['images_per_second']:10.1f} images/s")
    print(f"the limit is the {results['limit']}; results: {own.output}")
    return 0


if __name__ == "__main__":
    run(main, resumable=False)
