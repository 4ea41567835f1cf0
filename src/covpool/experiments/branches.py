"""Runs that share their first epochs: the state at the end of one epoch is kept, and others begin
there.

Hybrid training with one seed is the same for every method until the switch, bit for bit, so that it
need be done once.

Hooks name our module's class where Lightning's name its base: `type: ignore[override]`.
"""

import shutil
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from typing_extensions import override

from covpool.experiments.runs import BRANCH
from covpool.train.checkpoint import METADATA, read_checkpoint
from covpool.train.config import RunConfig
from covpool.train.module import ClassificationModule
from covpool.train.recorder import PROGRESS, check_progress
from covpool.train.run_directory import RunDirectory, remove, replace_file, replacing
from covpool.train.schedule import method_schedule


class BranchPoint(Callback):
    """Keeps the run's checkpoints as they are at the end of an epoch.

    Args:
        directory: the run directory.
        epochs: after so many of them.
    """

    def __init__(self, directory: Path, *, epochs: int) -> None:
        self.directory = RunDirectory(directory)
        self.epochs = epochs

    @override
    def on_train_start(self, trainer: Trainer, pl_module: ClassificationModule) -> None:  # type: ignore[override]
        # A run that was stopped at the end of that very epoch.
        if trainer.global_step and trainer.global_step % pl_module.steps_per_epoch == 0:
            self._keep(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: ClassificationModule) -> None:  # type: ignore[override]
        self._keep(trainer, pl_module)

    def _keep(self, trainer: Trainer, module: ClassificationModule) -> None:
        if module.epoch != self.epochs or not trainer.is_global_zero:
            return
        if not self.directory.best.is_file():
            return  # it is lost: who would begin here trains these epochs itself
        kept = self.directory.path / BRANCH
        with replacing(kept) as partial:
            partial.mkdir()
            for file in (self.directory.last, self.directory.best):
                shutil.copy2(file, partial / file.name)
            remove(kept)


def begin_at_branch(trunk: Path, directory: RunDirectory, config: RunConfig) -> bool:
    """Give a new run the state that another kept, as if it had trained the epochs itself.

    Args:
        trunk: the other run's directory.
        directory: the new run's, with its configuration in it.
        config: equal to the other's but for what begins with the next epoch.

    Returns:
        Whether there is such a state; else the run has to begin at the beginning.
    """
    try:
        found = {
            path: read_checkpoint(trunk / BRANCH / path.name)
            for path in (directory.best, directory.last)
        }
        check_progress(found[directory.last], trunk / BRANCH / directory.last.name)
    except (FileNotFoundError, ValueError):
        return False
    # The checkpoint to go on from comes last: where it is, the others are.
    directory.write_metrics(found[directory.last][PROGRESS]["history"])
    for path, checkpoint in found.items():
        checkpoint[METADATA] |= {
            "config": config.to_dict(),
            "schedule": str(method_schedule(config)),
        }
        replace_file(path, lambda partial, content=checkpoint: torch.save(content, partial))
    return True
