"""The loaders of both splits, each process with its own part."""

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler
from typing_extensions import override

from covpool.data import Images, ImageSplits
from covpool.data.preprocessing import VIEWS
from covpool.train.config import RunConfig
from covpool.train.sampling import EvaluationBatchSampler, TrainBatchSampler


def ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the main process, which ends the run in order and then its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.+?)(?:\.\s|\.?$)")
"""How torch tells it, which has no class of errors for it."""


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Within it images are read, and the death of a process that reads them is told as such.

    Raises:
        ChildProcessError: one was killed, or ended by itself.
    """
    try:
        yield
    except RuntimeError as error:
        found = DEAD_WORKER.match(str(error))
        if found is None:
            raise
        raise ChildProcessError(
            f"process {found[1]}, which read images for data.workers, {found[2]}; most often the "
            "memory was full: give fewer data.workers, or more memory (of a container also its "
            "shared memory, /dev/shm)"
        ) from error


class ImageDataModule(LightningDataModule):
    """The loaders of both splits, each process with its own part."""

    def __init__(self, splits: ImageSplits, config: RunConfig) -> None:
        super().__init__()
        self.splits = splits
        self.config = config

    @property
    def _process(self) -> dict[str, int]:
        trainer = self.trainer
        if trainer is None:  # read without training
            return {"rank": 0, "world": 1}
        return {"rank": trainer.global_rank, "world": trainer.world_size}

    @override
    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        return self.loader_of(lambda: trainer.global_step)

    def loader_of(self, step: Callable[[], int]) -> DataLoader:
        """The training images from the step on that `step()` gives, to the end of its epoch."""
        return self._loader(self.splits.train, self._train_batches(step))

    def _train_batches(self, step: Callable[[], int]) -> TrainBatchSampler:
        return TrainBatchSampler(
            len(self.splits.train),
            self.config.data.batch_size,
            seed=self.config.train.seed,
            step=step,
            parts=self.config.train.accumulate,
            **self._process,
        )

    def names(self, step: int, part: int = 0) -> list[str]:
        """What to call this process's images of a step."""
        batch = next(islice(self._train_batches(lambda: step), part, None))
        return [self.splits.train.source.name(index) for _, index in batch]

    @override
    def val_dataloader(self) -> DataLoader:
        size = len(self.splits.test)
        # As many views in a batch as training has images in one.
        views = VIEWS[self.splits.preprocessing.views].number
        batch_size = self.config.data.batch_size // (self.config.train.accumulate * views)
        return self._loader(
            self.splits.test, EvaluationBatchSampler(size, batch_size, **self._process)
        )

    def _loader(self, dataset: Images, batch_sampler: Sampler[Any]) -> DataLoader:
        workers = self.config.data.workers
        return DataLoader(
            dataset,
            batch_sampler=batch_sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=ignore_interrupts,
            pin_memory=torch.cuda.is_available(),
        )
