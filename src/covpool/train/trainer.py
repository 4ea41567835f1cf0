"""Lightning's Trainer as this package uses it: without what is done here, and quiet."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, Trainer

from covpool.train.checkpoint import AtomicCheckpointIO
from covpool.train.config import RunConfig


def main_process() -> bool:
    """Whether this process is the one that speaks and writes (rank 0)."""
    return getattr(rank_zero_only, "rank", 0) == 0


def make_trainer(config: RunConfig, callbacks: list[Callback]) -> Trainer:
    """Lightning's Trainer without its own loggers, checkpoints, bars and samplers.

    Raises:
        ValueError: an accelerator, strategy or number of devices that this machine has not.
    """
    run = config.train
    return Trainer(
        accelerator=run.accelerator,
        devices=run.devices,
        num_nodes=run.nodes,
        strategy=run.strategy,
        precision=run.precision,
        max_epochs=run.epochs,
        gradient_clip_val=config.optim.clip_norm,
        gradient_clip_algorithm="norm",
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence what Lightning tells everybody: devices found, tips, advice about workers."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The number of workers is the user's choice; the loader does resume within an epoch, as its
        # sampler computes where from the number of steps; a frozen backbone and the average of the
        # weights are in evaluation mode; the last is Lightning's own business.
        for message in (
            ".*does not have many workers.*",
            ".*ended before the epoch ended.*",
            ".*in eval mode at the start of training.*",
            ".*isinstance.treespec, LeafSpec.*",
        ):
            warnings.filterwarnings("ignore", message)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def check_machine(config: RunConfig) -> None:
    """Raise a ValueError where this machine has not what the configuration asks for."""
    run = config.train
    try:
        with quiet_lightning():
            make_trainer(config, [])
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise ValueError(
            f"train.accelerator {run.accelerator!r}, train.devices {run.devices}, train.strategy "
            f"{run.strategy!r} and train.precision {run.precision!r} do not go together on this "
            f"machine: {error}"
        ) from error


def set_threads(config: RunConfig) -> None:
    """As many threads as the cores allow, divided among this machine's processes."""
    threads = config.train.threads
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        cpu = config.train.accelerator == "cpu" or not torch.cuda.is_available()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = max(1, (cores or 1) // (config.train.devices if cpu else 1))
    if threads is not None:
        torch.set_num_threads(threads)
