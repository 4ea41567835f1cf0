"""Weights of other projects: read without running anything, and compared with a network's."""

from pathlib import Path

import torch
from torch import Tensor

from covpool.train.checkpoint import holds_weights, naming_damage

Weights = dict[str, Tensor]


def read_weights(path: Path) -> Weights:
    """The weights of a checkpoint; nothing in it is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or with something else than weights in it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        with naming_damage(f"{path} is damaged and cannot be read"):
            return load_file(path)
    with naming_damage(
        f"{path} is damaged, or holds more than tensors, numbers and texts, which is not read "
        "because it could run code",
        "; get it again, or save its state_dict alone",
    ):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no state_dict but a {type(content).__name__}")
    if not holds_weights(content):
        strange = next((n for n, value in content.items() if not isinstance(value, Tensor)), None)
        what = "a name in it is no text" if strange is None else f"{strange} is no tensor"
        raise ValueError(f"{path} holds no state_dict: {what}")
    return dict(content)


def check_weights(model: torch.nn.Module, weights: Weights) -> None:
    """Raise a ValueError that names the first weight that the model has not, or of another shape.

    Counts of batches, which networks of before PyTorch 0.4.1 lack, are added as 0.
    """
    own = model.state_dict()
    for name in own:
        if name.endswith("num_batches_tracked"):
            weights.setdefault(name, torch.zeros((), dtype=torch.long))
    for name in [*own, *weights]:
        here, there = own.get(name), weights.get(name)
        if here is None or there is None or here.shape != there.shape:
            shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (there, here)]
            raise ValueError(
                f"{name} has shape {shapes[0] or 'none'} in it, {shapes[1] or 'none'} in the "
                "network that its other weights are of"
            )
