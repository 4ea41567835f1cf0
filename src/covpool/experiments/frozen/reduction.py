"""The channel reduction that the poolings of a seed share.

1×1 convolution, batch norm and ReLU, learned with a classifier of the mean and of the plain
covariance of the reduced channels side by side, so that it is made for neither first nor second
order alone; then it is held fixed. Each seed has its own, and so do the trials. What it makes of
the backbone's maps is computed once, and kept beside them while poolings are trained behind it.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from covpool.experiments.frozen.heads import Examples, Head, Stop, applied, train_head
from covpool.experiments.frozen.plan import Frozen
from covpool.pooling import channel_reduction, covariance, triu_vector
from covpool.train.config import RunConfig
from covpool.train.run_directory import replace_file
from covpool.train.sampling import combine_seeds

MAPS = ".npy"
"""What files of reduced maps end with, in place of their weights' .pt."""


class MeanAndCovariance(nn.Module):
    """Mean and upper triangle of the covariance of reduced channels, side by side, each divided by
    a number, that of the first batch, so that both weigh the same at the start."""

    lengths: Tensor

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.reduction = channel_reduction(channels, reduced)
        self.out_features = reduced + reduced * (reduced + 1) // 2
        self.register_buffer("lengths", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.reduction(x)
        parts = (maps.mean((2, 3)), triu_vector(covariance(maps)))
        if not self.lengths.any():
            spread = [
                (part - part.mean(0)).detach().square().sum(1).mean().sqrt() for part in parts
            ]
            self.lengths.copy_(torch.stack(spread).clamp_min(1e-12))
        return torch.cat([p / length for p, length in zip(parts, self.lengths, strict=True)], 1)


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """The reduction of a seed.

    Attributes:
        frozen: the backbone's maps, and by which options it is learned.
        channels: after it.
        seed: that of the runs behind it.
        trial: whether it is learned from the images that trials are trained on, or from all.
    """

    frozen: Frozen
    channels: int
    seed: int
    trial: bool

    @cached_property
    def config(self) -> RunConfig:
        """By which it is learned."""
        config = self.frozen.reduction
        assert config is not None
        return replace(config, train=replace(config.train, seed=self.seed))

    @cached_property
    def examples(self) -> Examples:
        """From which it is learned."""
        return self.frozen.examples(self.frozen.features.open(), trial=self.trial)

    @cached_property
    def weights(self) -> Path:
        """Where the weights are kept that are learned by these options from these images."""
        options = self.config.to_dict()
        about = {
            "batch_size": options["data"]["batch_size"],
            "optim": options["optim"],
            "channels": self.channels,
            "train": [options["train"][name] for name in ("epochs", "seed")],
            "labels": self.examples.labels.tolist(),
            "images": self.examples.train.tolist(),
        }
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        return self.frozen.features.folder / f"reduction-{key}.pt"

    def learned(self, stop: Stop) -> nn.Module:
        """The layer, as it evaluates; trained where its weights are not on disk.

        Args:
            stop: called between epochs.

        Raises:
            ValueError: its training diverged.
        """
        torch.manual_seed(combine_seeds(self.seed))
        pool = MeanAndCovariance(self.frozen.features.shape[1], self.channels)
        if self.weights.is_file():
            pool.load_state_dict(torch.load(self.weights, weights_only=True))
        else:
            head = Head(pool, pool.out_features, self.examples.classes)
            head.measure(self.examples)
            one = self.examples.test[:1], self.examples.test_labels[:1]  # nobody reads its accuracy
            examples = replace(self.examples, test=one[0], test_labels=one[1])
            result = train_head(examples, head, self.config, stop)
            if result.reason:
                raise ValueError(
                    f"the channel reduction could not be learned: {result.reason} Give a lower "
                    f"optim.learning_rate than {self.config.optim.learning_rate:g}"
                )
            weights = pool.state_dict()
            replace_file(self.weights, lambda path: torch.save(weights, path))
        return pool.reduction.eval()

    def maps(self, stop: Stop) -> np.ndarray:
        """All maps behind it, memory-mapped; computed where they are not on disk."""
        file = self.weights.with_suffix(MAPS)
        if not file.is_file():
            layer, maps = self.learned(stop), self.frozen.features.open()
            replace_file(file, lambda path: applied(layer, maps, open_maps(path), stop))
        return np.load(file, mmap_mode="r", allow_pickle=False)


def open_maps(file: Path) -> Callable[[tuple[int, ...]], np.ndarray]:
    """Makes an array of a shape in a file that `numpy.load` reads."""
    return partial(np.lib.format.open_memmap, file, "w+", np.float32)


def maps_bytes(frozen: Frozen, channels: int) -> int:
    """What the maps behind a reduction to so many channels take."""
    return frozen.features.bytes // frozen.features.shape[1] * channels


def forget_maps(folder: Path) -> None:
    """Free the disk of the reduced maps: another probe has them again within seconds."""
    for file in folder.glob(f"reduction-*{MAPS}"):
        file.unlink(missing_ok=True)
