"""The channel reduction that all poolings share, and the maps that it leaves.

1×1 convolution, batch norm and ReLU, learned once with a classifier of the mean and of the plain
covariance of the reduced channels side by side, so that it is made for neither first nor second
order alone; then it is held fixed.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from covpool.experiments.frozen.features import FeatureFile
from covpool.experiments.frozen.heads import EVALUATED_AT_ONCE, Examples, Head, Stop, train_head
from covpool.pooling import channel_reduction, covariance, triu_vector
from covpool.train.config import RunConfig
from covpool.train.run_directory import remove, replace_file, replacing
from covpool.train.sampling import combine_seeds

WEIGHTS, REDUCED = "weights.pt", "maps.npy"


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


def reduction_folder(
    features: FeatureFile, examples: Examples, reduced: int, config: RunConfig
) -> Path:
    """Where the reduction that is learned by these options from these images is kept."""
    options = config.to_dict()
    about = {
        "batch_size": options["data"]["batch_size"],
        "optim": options["optim"],
        "channels": reduced,
        "train": [options["train"][name] for name in ("epochs", "seed")],
        "labels": examples.labels.tolist(),
        "images": examples.train.tolist(),
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return features.folder / f"reduction-{key}"


def reduced_maps(
    features: FeatureFile, examples: Examples, reduced: int, config: RunConfig, stop: Stop
) -> np.ndarray:
    """The maps after the reduction, memory-mapped; learned and computed where they are not there.

    Args:
        features: the backbone's maps.
        examples: which of them it is learned from.
        reduced: channels after it.
        config: by which it is learned.
        stop: called between epochs and between batches.
    """
    folder = reduction_folder(features, examples, reduced, config)
    if not (folder / REDUCED).is_file():
        channels = features.shape[1]
        torch.manual_seed(combine_seeds(config.train.seed))
        pool = MeanAndCovariance(channels, reduced)
        if not (folder / WEIGHTS).is_file():
            head = Head(pool, pool.out_features, examples.classes)
            head.measure(examples)
            result = train_head(examples, head, config, stop)
            if result.reason:
                raise ValueError(
                    f"the channel reduction could not be learned: {result.reason} Give a lower "
                    f"optim.learning_rate than {config.optim.learning_rate:g}"
                )
            folder.mkdir(parents=True, exist_ok=True)
            weights = pool.state_dict()
            replace_file(folder / WEIGHTS, lambda partial: torch.save(weights, partial))
        pool.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True))
        _reduce(features.open(), pool.reduction.eval(), reduced, folder / REDUCED, stop)
    return np.load(folder / REDUCED, mmap_mode="r", allow_pickle=False)


@torch.no_grad()
def _reduce(maps: np.ndarray, reduction: nn.Module, reduced: int, path: Path, stop: Stop) -> None:
    rows, _, height, width = maps.shape
    with replacing(path) as partial:
        remove(partial)
        written = np.lib.format.open_memmap(
            partial, mode="w+", dtype=np.float32, shape=(rows, reduced, height, width)
        )
        for first in range(0, rows, EVALUATED_AT_ONCE):
            stop()
            part = torch.from_numpy(np.array(maps[first : first + EVALUATED_AT_ONCE]))
            written[first : first + len(part)] = reduction(part).numpy()
        written.flush()  # type: ignore[attr-defined]
