"""Writing checkpoints, each in one step."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from typing_extensions import override

from covpool.train.run_directory import LAST, PREVIOUS


class StorageError(RuntimeError):
    """A file of the run could not be written: a full disk, a quota, a lost mount."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's torch checkpoints, replaced in one step by their complete successor.

    Lightning's own writer may go by way of another file system, where the last move is a copy
    that a crash can tear. The last.ckpt that a new one replaces becomes previous.ckpt, so that at
    every moment one of the two is complete.

    Attributes:
        failure: why the latest checkpoint could not be written, or None. It is noted rather than
            raised because this process alone writes: the others would wait for it for ever.
    """

    failure: str | None = None

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        self.failure = None
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if target.name == LAST and target.is_file():
                os.replace(target, target.with_name(PREVIOUS))
            os.replace(partial, target)
            synchronise(target.parent)
        except (OSError, RuntimeError) as error:
            # torch's writer turns an error of the file into its own, with the file's as context.
            cause = next((e for e in causes(error) if isinstance(e, OSError)), None)
            if cause is None:
                raise
            self.failure = f"cannot write {target}: {cause.strerror or cause}"
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def causes(error: BaseException | None) -> list[BaseException]:
    """The error and those that led to it."""
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def synchronise(directory: Path) -> None:
    """Make the directory's entries outlive a power cut, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
