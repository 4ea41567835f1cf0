"""Writing checkpoints, each in one step."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from typing_extensions import override

from covpool.train.run_directory import LAST, PREVIOUS, replacing


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
        keep = target.with_name(PREVIOUS) if target.name == LAST else None
        self.failure = None
        try:
            with replacing(target, keep=keep) as partial, partial.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # torch's writer turns an error of the file into its own, with the file's as context.
            cause = next((e for e in causes(error) if isinstance(e, OSError)), None)
            if cause is None:
                raise
            self.failure = f"cannot write {target}: {cause.strerror or cause}"


def causes(error: BaseException | None) -> list[BaseException]:
    """The error and those that led to it."""
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
