"""The channel reduction that the poolings of a seed share.

1×1 convolution, batch norm and ReLU, learned with a classifier of the mean and of the plain
covariance of the reduced channels side by side, so that it is made for neither first nor second
order alone; then it is held fixed. Each seed has its own, and so do the trials.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from covpool.experiments.frozen.heads import Examples, Head, Stop, train_head
from covpool.experiments.frozen.plan import Frozen
from covpool.pooling import channel_reduction, covariance, triu_vector
from covpool.train.config import RunConfig
from covpool.train.run_directory import replace_file
from covpool.train.sampling import combine_seeds


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


def weights_file(folder: Path, examples: Examples, reduced: int, config: RunConfig) -> Path:
    """Where the reduction is kept that is learned by these options from these images."""
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
    return folder / f"reduction-{key}.pt"


def learned_reduction(
    frozen: Frozen, reduced: int, seed: int, stop: Stop, *, trial: bool
) -> nn.Module:
    """The reduction of a seed, as it evaluates; learned where its weights are not on disk.

    Args:
        frozen: the backbone's maps, and by which options it is learned.
        reduced: channels after it.
        seed: that of the runs behind it.
        stop: called between epochs.
        trial: whether it is learned from the images that trials are trained on, or from all.

    Raises:
        ValueError: its training diverged.
    """
    assert frozen.reduction is not None
    config = replace(frozen.reduction, train=replace(frozen.reduction.train, seed=seed))
    examples = frozen.examples(frozen.features.open(), trial=trial)
    torch.manual_seed(combine_seeds(seed))
    pool = MeanAndCovariance(frozen.features.shape[1], reduced)
    file = weights_file(frozen.features.folder, examples, reduced, config)
    if file.is_file():
        pool.load_state_dict(torch.load(file, weights_only=True))
    else:
        head = Head(pool, pool.out_features, examples.classes)
        head.measure(examples)
        result = train_head(examples, head, config, stop)
        if result.reason:
            raise ValueError(
                f"the channel reduction could not be learned: {result.reason} Give a lower "
                f"optim.learning_rate than {config.optim.learning_rate:g}"
            )
        weights = pool.state_dict()
        replace_file(file, lambda partial: torch.save(weights, partial))
    return pool.reduction.eval()
