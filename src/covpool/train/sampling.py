"""Which images make up which batch, as pure functions of seed and position.

Nothing here has a state that a checkpoint would have to hold: the order of an epoch follows from
(seed, epoch), and where to go on follows from the number of steps taken. So a resumed run sees
exactly the batches that the uninterrupted run would have seen.
"""

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler


class TrainBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) for one of `world` processes, from the present step to epoch's end.

    An epoch's order is a permutation by (seed, epoch), cut into batches of `batch_size` images
    over all processes; a rest that fills no batch is left out (another one each epoch).

    Args:
        size: number of training images.
        batch_size: images of one step, all processes together.
        seed: seed of the order.
        step: gives the number of steps taken since the start of the run.
        rank: this process.
        world: number of processes.
        parts: batches that a process's share of a step is cut into (gradient accumulation).

    Raises:
        ValueError: a batch that processes and parts do not divide, or too few images for them.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        step: Callable[[], int],
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
    ) -> None:
        shares = f"{world} processes" + (f" × train.accumulate {parts}" if parts > 1 else "")
        if batch_size % (world * parts):
            raise ValueError(
                f"data.batch_size {batch_size} cannot be divided among {shares}; "
                f"choose a multiple of {world * parts}"
            )
        self.size = size
        self.batch_size = steps_and_batch(size, batch_size)[1]
        if self.batch_size % (world * parts):
            raise ValueError(f"{size} training images are too few for {shares}")
        self.seed = seed
        self.step = step
        self.rank = rank
        self.world = world
        self.parts = parts

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.size // self.batch_size

    def __len__(self) -> int:
        """Batches of a whole epoch, also where the next pass begins within one."""
        return self.steps * self.parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = divmod(self.step(), self.steps)
        generator = torch.Generator().manual_seed(combine_seeds(self.seed, epoch))
        order = torch.randperm(self.size, generator=generator).tolist()
        for step in range(first, self.steps):
            begin = step * self.batch_size
            mine = order[begin + self.rank : begin + self.batch_size : self.world]
            size = len(mine) // self.parts
            for part in range(self.parts):
                yield [(epoch, index) for index in mine[part * size : (part + 1) * size]]


class EvaluationBatchSampler(Sampler[list[int]]):
    """Batches of indices that cover each image once over all processes: nothing is padded.

    Every process has the same number of batches, as collective communication needs, of about
    `batch_size` images over all processes; none is empty.

    Raises:
        ValueError: fewer images than processes.
    """

    def __init__(self, size: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        if size < world:
            raise ValueError(f"{size} test images are too few for {world} processes")
        smallest_share, largest_share = size // world, -(-size // world)
        batches = min(smallest_share, -(-largest_share // max(1, batch_size // world)))
        mine = torch.arange(rank, size, world)
        self.batches: list[list[int]] = [part.tolist() for part in mine.tensor_split(batches)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def steps_and_batch(size: int, batch_size: int) -> tuple[int, int]:
    """Steps of an epoch and the batch's size, which is all images where they are fewer than it."""
    batch = min(batch_size, size)
    return size // batch, batch


def combine_seeds(*parts: int) -> int:
    """One 63-bit seed from several numbers, well mixed: neighbours give unrelated streams."""
    import numpy as np

    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
