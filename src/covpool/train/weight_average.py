"""An exponential moving average of the weights, by timm's `ModelEmaV3`.

It is a part of the Lightning module, so that it is moved, checked and saved with the rest. In a
checkpoint the average stands where the weights of a model are looked for, and the weights that are
trained stand beside it. Lightning's own `EMAWeightAveraging` leaves them where they are in a
checkpoint that is written with `save_weights_only`, and averages the sums of an evaluation too.
"""

from typing import Any

from timm.utils.model_ema import ModelEmaV3
from torch import nn

TRAINED = "covpool_trained_weights"
"""The key of a checkpoint's trained weights, where `state_dict` holds their average."""

MODEL, AVERAGE = "model.", "average.module."


def make_average(model: nn.Module, decay: float) -> ModelEmaV3:
    """The average of a model that is yet to be trained.

    The decay at step t (from 1) is the smaller of `decay` and 1 − t^(−2/3), so that the first
    weights do not stay in the average of a short run (timm's warm-up).
    """
    average = ModelEmaV3(model, decay=decay, use_warmup=True)
    return average.requires_grad_(False)


def split_average(checkpoint: dict[str, Any]) -> None:
    """Let the average be the checkpoint's weights; those that are trained follow where the
    checkpoint can be gone on with."""
    weights = checkpoint["state_dict"]
    averaged = {
        MODEL + name.removeprefix(AVERAGE): value
        for name, value in weights.items()
        if name.startswith(AVERAGE)
    }
    trained = {name: value for name, value in weights.items() if not name.startswith(AVERAGE)}
    checkpoint["state_dict"] = {**trained, **averaged}
    if "optimizer_states" in checkpoint:
        checkpoint[TRAINED] = {name: trained[name] for name in averaged}


def join_average(checkpoint: dict[str, Any]) -> None:
    """Undo `split_average`, to go on with the checkpoint.

    Raises:
        ValueError: a checkpoint that was written without an average.
    """
    if TRAINED not in checkpoint:
        raise ValueError(
            "the checkpoint holds no average of the weights; set optim.weight_average as it was "
            "when the run began"
        )
    weights, trained = checkpoint["state_dict"], checkpoint[TRAINED]
    averaged = {AVERAGE + name.removeprefix(MODEL): weights[name] for name in trained}
    checkpoint["state_dict"] = {**weights, **trained, **averaged}
