"""Checkpoints: written atomically, read with `weights_only=True`, with what they mean beside them.

Under the key "covpool" a checkpoint carries the package's version, the run's configuration, the
class names, the layout of the pooled vector, the schedule of methods, how an image becomes the
network's input, and which images it was trained and tested on. last.ckpt has the run's history too.
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
from covpool.train.config import RunConfig

METADATA = "covpool"

METADATA_KEYS = (
    "version",
    "config",
    "classes",
    "vector_layout",
    "schedule",
    "preprocessing",
    "images",
    "epoch",
)


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
            f"checkpoint {path} is damaged and cannot be read ({reason[:120]}); evaluate and "
            "predict take the run's other checkpoint, --resume needs last.ckpt: start a new run"
        ) from error
    about = checkpoint.get(METADATA) if isinstance(checkpoint, dict) else None
    if not isinstance(about, dict):
        raise ValueError(f"{path} is not a checkpoint that covpool wrote")
    missing = [f"{METADATA}.{key}" for key in METADATA_KEYS if key not in about]
    missing += [key for key in ("state_dict",) if key not in checkpoint]
    if missing:
        raise ValueError(
            f"{path} is not a checkpoint that covpool wrote, or one of another version: it lacks "
            f"{', '.join(missing)}"
        )
    layout = about["vector_layout"]
    if layout != VECTOR_LAYOUT:
        raise ValueError(
            f"checkpoint {path} has the vector layout {layout!r}, this version {VECTOR_LAYOUT!r}: "
            "its classifier's weights would mean something else; use the version that wrote it "
            f"({about['version']})"
        )
    return checkpoint


def check_model(config: RunConfig, checkpoint: dict[str, Any], path: Path) -> None:
    """Raise a ValueError where the checkpoint's model was configured otherwise than the run's.

    Weights of another run may fit by their shapes and mean something else under this pooling.
    """
    here, there = config.to_dict()["model"], checkpoint[METADATA]["config"]["model"]
    for name in {**here, **there}:
        if here.get(name) != there.get(name):
            raise ValueError(
                f"checkpoint {path} is of another model: model.{name} is {there.get(name)!r} in "
                f"it, {here.get(name)!r} in the run's configuration; put the run's own checkpoint "
                "back"
            )


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
