"""Weights of other projects: read without running anything, and compared with a network's."""

import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor

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
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged and cannot be read ({error})") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} is damaged, or holds more than tensors, numbers and texts, which is not read "
            f"because it could run code ({reason[:120]}); get it again, or save its state_dict "
            "alone"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no state_dict but a {type(content).__name__}")
    strange = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise ValueError(f"{path} holds no state_dict: {strange[0]} is no tensor")
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
