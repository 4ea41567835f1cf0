"""Checkpoints: written atomically, read with `weights_only=True`, with what they mean beside them.

Under the key "covpool" a checkpoint carries the package's version, the run's configuration, the
class names, the layout of the pooled vector, the schedule of methods, how an image becomes the
network's input, and (in last.ckpt) the history of the run.
"""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from typing_extensions import override

from covpool.pooling import VECTOR_LAYOUT

METADATA = "covpool"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's torch checkpoints, replaced in one step by their complete successor.

    Lightning's own writer may go by way of another file system, where the last move is a copy
    that a crash can tear.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a covpool checkpoint, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, not covpool's, or with another layout of the pooled vector.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"checkpoint {path} is damaged and cannot be read ({reason[:120]}); use another "
            "checkpoint of the run, or train again"
        ) from error
    if not isinstance(checkpoint, dict) or METADATA not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint that covpool wrote")
    layout = checkpoint[METADATA]["vector_layout"]
    if layout != VECTOR_LAYOUT:
        raise ValueError(
            f"checkpoint {path} has the vector layout {layout!r}, this version {VECTOR_LAYOUT!r}: "
            "its classifier's weights would mean something else; use the version that wrote it "
            f"({checkpoint[METADATA]['version']})"
        )
    return checkpoint


def load_weights(module: torch.nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's weights into the module.

    Raises:
        ValueError: they are another model's; the message names the first difference.
    """
    weights = checkpoint["state_dict"]
    own = module.state_dict()
    for name in [*own, *weights]:
        here, there = own.get(name), weights.get(name)
        if here is None or there is None or here.shape != there.shape:
            sizes = [None if tensor is None else tuple(tensor.shape) for tensor in (there, here)]
            raise ValueError(
                f"checkpoint {path} is of another model: {name} has shape {sizes[0] or 'none'} in "
                f"it, {sizes[1] or 'none'} in the model of the configuration"
            )
    module.load_state_dict(weights)
