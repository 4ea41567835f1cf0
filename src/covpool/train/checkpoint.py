"""Checkpoints: what they hold; checked and read with `weights_only=True`.

Under the key "covpool" a checkpoint carries the package's version, the run's configuration, the
class names, the layout of the pooled vector, the schedule of methods, how an image becomes the
network's input, and which images it was trained and tested on. last.ckpt has the run's history too.
"""

import json
import logging
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from covpool.pooling import VECTOR_LAYOUT
from covpool.train.config import RunConfig
from covpool.train.run_directory import PREVIOUS, RunDirectory, best_row, remove
from covpool.train.same_options import difference

METADATA = "covpool"

logger = logging.getLogger("covpool")

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


class DamagedCheckpoint(ValueError):
    """A checkpoint whose content is not what was written."""


@contextmanager
def naming_damage(problem: str, remedy: str = "") -> Iterator[None]:
    """Within it a file of weights is read, and whatever its reader raises becomes one error.

    Args:
        problem: the message's beginning, with the file's name.
        remedy: its end, after the reader's own reason.

    Raises:
        DamagedCheckpoint: the reader raised something.
        MemoryError, PermissionError: of the machine and not of the file, which may be whole.
    """
    try:
        yield
    except (MemoryError, PermissionError):
        raise
    # On changed bytes zipfile, the unpickler and torch raise what they like: KeyError,
    # AssertionError, struct.error, RecursionError, …
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DamagedCheckpoint(f"{problem} ({reason[:120]}){remedy}") from error


def check_integrity(path: Path) -> None:
    """Compare each record of a checkpoint with its checksum, which torch.load does not.

    Of 3,000 files with one flipped bit, torch.load noticed 106 and returned other values for 2,782
    without a word; the checksums, which torch.save writes, give away every one of these.

    Raises:
        zipfile.BadZipFile, OSError: damaged.
    """
    with zipfile.ZipFile(path) as archive:
        record = archive.testzip()
    if record is not None:
        raise zipfile.BadZipFile(f"the checksum of {record} does not fit")


def find_checkpoint(last: Path) -> tuple[dict[str, Any], Path, str | None] | None:
    """What to go on from: last.ckpt, or previous.ckpt beside it where the last one is damaged.

    Returns:
        The content, its file and, where it is not last.ckpt, why; None where there is neither.

    Raises:
        ValueError: neither can be read, or as `read_checkpoint`.
    """
    previous, problems = last.with_name(PREVIOUS), []
    for path in (last, previous):
        try:
            return read_checkpoint(path), path, "; ".join(problems) or None
        except FileNotFoundError:
            problems.append(f"there is no {path}")
        except DamagedCheckpoint as error:
            problems.append(str(error))
    if not last.is_file() and not previous.is_file():
        return None
    raise ValueError(f"{'; '.join(problems)}: nothing is left to go on from; start a new run")


def keep_checkpoints(directory: RunDirectory, keep: str) -> bool:
    """Remove the checkpoints that a finished run does not keep, once those that it keeps have been
    read and are whole.

    Args:
        directory: of a run whose results are written.
        keep: as `TrainConfig.keep`.

    Returns:
        Whether no other checkpoints are left; where one that is to be kept is not whole, nothing is
        removed, and a warning says why.
    """
    last, previous, best = directory.last, directory.previous, directory.best
    kept, dropped = {
        "all": ((), ()),
        "last": ((last,), (previous,)),
        "best": ((best,), (previous, last)),
    }[keep]
    if not any(file.is_file() for file in dropped):
        return True
    try:
        for file in kept:
            epoch = read_checkpoint(file)[METADATA]["epoch"] + 1
            wanted = best_row(directory.read_metrics())["epoch"]
            if file == best and epoch != wanted:
                raise ValueError(f"{best} is of epoch {epoch}, and epoch {wanted} is the best")
    except (OSError, ValueError) as error:
        logger.warning("%s; no checkpoint is removed for train.keep %s", error, keep)
        return False
    for file in dropped:
        remove(file)
    return True


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a covpool checkpoint, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        DamagedCheckpoint: its content is not what was written.
        ValueError: not covpool's, or with another layout of the pooled vector.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    with naming_damage(f"checkpoint {path} is damaged"):
        check_integrity(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        about = checkpoint.get(METADATA) if isinstance(checkpoint, dict) else None
        json.dumps(about)  # plain values, and none that contains itself
    if not isinstance(about, dict):
        raise ValueError(f"{path} is not a checkpoint that covpool wrote")
    missing = [f"{METADATA}.{key}" for key in METADATA_KEYS if key not in about]
    missing += [key for key in ("state_dict",) if key not in checkpoint]
    if missing:
        raise ValueError(
            f"{path} is not a checkpoint that covpool wrote, or one of another version: it lacks "
            f"{', '.join(missing)}"
        )
    if not holds_weights(checkpoint["state_dict"]):
        raise ValueError(
            f"{path} is not a checkpoint that covpool wrote: its weights are no tensors"
        )
    layout = about["vector_layout"]
    if layout != VECTOR_LAYOUT:
        raise ValueError(
            f"checkpoint {path} has the vector layout {layout!r}, this version {VECTOR_LAYOUT!r}: "
            "its classifier's weights would mean something else; use the version that wrote it "
            f"({about['version']})"
        )
    return checkpoint


def holds_weights(content: object) -> bool:
    """Whether it is a state dict: tensors by name."""
    return isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    )


def check_options(
    config: RunConfig,
    checkpoint: dict[str, Any],
    path: Path,
    *,
    free: Collection[tuple[str, str]],
) -> None:
    """Raise a ValueError where the checkpoint's run had other options than the configuration.

    Weights of another run may fit by their shapes and mean something else under this pooling, and
    with another batch size the steps would be those of other epochs.

    Args:
        config: the run's.
        checkpoint: its content.
        path: its file.
        free: (group, name) of the options that may differ.
    """
    if found := difference(checkpoint[METADATA]["config"], config, free=free):
        key, there, here = found
        what = "model" if key.startswith("model.") else "run"
        raise ValueError(
            f"checkpoint {path} is of another {what}: {key} is {there!r} in it, {here!r} in the "
            "run's configuration; put the run's own checkpoint, or its own config.yaml, back"
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
