"""Lightning's Trainer as this package uses it: without what is done here, and quiet."""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loggers import Logger
from torch import Tensor

from covpool.train.config import RunConfig, TrainConfig
from covpool.train.storage import AtomicCheckpointIO


def main_process() -> bool:
    """Whether this process is the one that speaks and writes (rank 0)."""
    return getattr(rank_zero_only, "rank", 0) == 0


def make_trainer(
    config: RunConfig, callbacks: Sequence[Callback], loggers: Sequence[Logger] = ()
) -> Trainer:
    """Lightning's Trainer without its own checkpoints, bars and samplers.

    Raises:
        ValueError: an accelerator, strategy or number of devices that this machine has not.
    """
    run = config.train
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        # Lightning's own requeueing saves in the midst of a step; see `interruption`.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return Trainer(
        accelerator=run.accelerator,
        devices=run.devices,
        num_nodes=run.nodes,
        strategy=strategy_of(run),
        precision=run.precision,
        max_epochs=run.epochs,
        accumulate_grad_batches=run.accumulate,
        gradient_clip_val=config.optim.clip_norm,
        gradient_clip_algorithm="norm",
        sync_batchnorm=run.sync_batchnorm,
        deterministic=run.deterministic or None,
        callbacks=list(callbacks),
        plugins=plugins,
        use_distributed_sampler=False,
        logger=list(loggers) or False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def over_processes(trainer: Trainer, value: Tensor, operation: str) -> Tensor:
    """The value's sum, min or max over all processes."""
    strategy: Any = trainer.strategy  # its annotations lack the operations' names, which it takes
    return strategy.reduce(value, reduce_op=operation)


def strategy_of(run: TrainConfig) -> str:
    """Lightning's name of the strategy.

    Plain DDP rebuilds its buckets after the first step, so that the step after a resumption adds
    the gradients of three or more processes in another order than the same step of an
    uninterrupted run did. Looking for unused parameters keeps the buckets as they are. It also
    admits backbones that do not use all their parameters.
    """
    several = run.devices * run.nodes > 1
    if several and run.strategy in ("auto", "ddp"):
        return "ddp_find_unused_parameters_true"
    return run.strategy


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
        # weights are in evaluation mode; mixing is the module's, not the loaders'; the rest is
        # Lightning's own business.
        for message in (
            ".*does not have many workers.*",
            ".*ended before the epoch ended.*",
            ".*in eval mode at the start of training.*",
            ".*isinstance.treespec, LeafSpec.*",
            ".*smaller than the logging interval.*",
            ".*overridden `on_after_batch_transfer`.*",
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
            trainer = make_trainer(config, [])
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise ValueError(
            f"train.accelerator {run.accelerator!r}, train.devices {run.devices}, train.strategy "
            f"{run.strategy!r} and train.precision {run.precision!r} do not go together on this "
            f"machine: {error}"
        ) from error

    if run.sync_batchnorm and isinstance(trainer.accelerator, CPUAccelerator):
        raise ValueError(
            "train.sync_batchnorm true needs GPUs: PyTorch synchronises batch norm on them alone; "
            "leave it false on a CPU"
        )
    if run.strategy == "fsdp" and run.on_nonfinite == "skip":
        raise ValueError(
            "train.on_nonfinite 'skip' does not go together with train.strategy 'fsdp': a step "
            "without backward pass would leave its shards gathered; choose ddp, or stop"
        )


def set_threads(config: RunConfig) -> None:
    """As many threads as the cores allow, divided among this machine's processes."""
    threads = config.train.threads
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        cpu = config.train.accelerator == "cpu" or not torch.cuda.is_available()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = max(1, (cores or 1) // (config.train.devices if cpu else 1))
    if threads is not None:
        torch.set_num_threads(threads)
