"""Preparing a run: every mistake that a user can make is met here, before anything long starts.

Names, files, sizes and earlier checkpoints are checked, and what is wrong is said by ValueError
or OSError. After `prepare`, an exception is a fault of the program, except `TrainingDiverged`,
`Interrupted` and `DataError`.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import covpool
from covpool.data import ImageSplits, Preprocessing, open_images
from covpool.models import CovPoolModel, check_backbone
from covpool.pooling import VECTOR_LAYOUT
from covpool.text import quantity
from covpool.train.building import build_model, single_valued_layers
from covpool.train.checkpoint import (
    METADATA,
    check_options,
    find_checkpoint,
    keep_checkpoints,
    load_weights,
)
from covpool.train.config import RunConfig
from covpool.train.loggers import check_loggers
from covpool.train.metadata import checked_metadata
from covpool.train.mixing import make_mixup
from covpool.train.module import ClassificationModule
from covpool.train.optimizer import check_optimizer, learning_rate_course, make_optimizer
from covpool.train.probes import warn_of_unmeasured
from covpool.train.recorder import PROGRESS, check_progress, restore_best
from covpool.train.reduction_step import reduction_weight
from covpool.train.run_directory import RunDirectory, put_aside
from covpool.train.same_options import RESUME_KEYS
from covpool.train.sampling import (
    EvaluationBatchSampler,
    TrainBatchSampler,
    steps_and_batch,
)
from covpool.train.schedule import MethodSchedule, method_schedule
from covpool.train.starting_weights import read_starting_weights, standardised_as
from covpool.train.trainer import check_machine, main_process, set_threads

logger = logging.getLogger("covpool")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A configuration with the images and the model that it describes."""

    config: RunConfig
    splits: ImageSplits
    schedule: MethodSchedule
    model: CovPoolModel
    start: str | None = None
    """What was loaded of `model.init_from`, in a line."""

    def module(self) -> ClassificationModule:
        """The Lightning module of this job."""
        size = len(self.splits.train)
        return ClassificationModule(
            self.model,
            self.config,
            self.schedule,
            classes=len(self.splits.classes),
            steps_per_epoch=steps_and_batch(size, self.config.data.batch_size)[0],
            metadata={
                "version": covpool.__version__,
                "config": self.config.to_dict(),
                "classes": list(self.splits.classes),
                "vector_layout": VECTOR_LAYOUT,
                "schedule": str(self.schedule),
                "preprocessing": self.splits.preprocessing.to_dict(),
                "images": self.images,
            },
        )

    @cached_property
    def images(self) -> dict[str, dict[str, Any]]:
        """The number of images of each split, and a digest of which they are."""
        root = self.config.data.root
        return {
            name: {"number": len(images), "digest": images.digest(root)}
            for name, images in (("train", self.splits.train), ("test", self.splits.test))
        }

    def describe(self) -> str:
        """One line for people."""
        splits, model = self.splits, self.model
        counts = f"{len(splits.train)} training and {quantity(len(splits.test), 'test image')}"
        ending = ""
        if splits.evaluated == "validation":
            counts = f"{len(splits.train)} training images"
            held_out = quantity(len(splits.test), "held-out training image")
            ending = f", evaluated on {held_out}, not on the test split"
        frozen = ", all but the classifier's frozen" * (self.config.optim.trained != "all")
        return (
            f"{self.config.model.backbone}, {self.schedule}, {parameters(model) / 1e6:.2f} M "
            f"parameters{frozen}; {splits.name}: {len(splits.classes)} classes, "
            f"{counts} {splits.channels}×{splits.image_size}×{splits.image_size}{ending}"
        )


def parameters(model: torch.nn.Module) -> int:
    """The number of trainable and frozen parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def check_names(config: RunConfig) -> None:
    """Look up every name of a configuration, before anything is opened.

    Raises:
        ValueError: an unknown method, constant, backbone or optimiser; a backbone that would be
            frozen with random weights.
    """
    model = config.model
    if config.optim.trained == "classifier" and not model.pretrained and model.init_from is None:
        raise ValueError(
            "optim.trained classifier freezes the backbone, whose weights would be random; give "
            "model.init_from PATH or model.pretrained true"
        )
    method_schedule(config)
    check_backbone(config.model.backbone)
    check_optimizer(config.optim)


def prepare(
    config: RunConfig,
    *,
    checkpoint: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Job:
    """Open the images and build the model, and try it on two blank ones.

    Args:
        config: the run's configuration.
        checkpoint: one whose weights the model is going to have: its preprocessing of images
            holds, and neither pretrained weights nor those to start from are loaded.
        progress: called with (files checked, files in all).

    Raises:
        ValueError, OSError: a mistake in the configuration or in the images.
    """
    check_names(config)
    check_machine(config)
    check_loggers(config)
    set_threads(config)
    schedule = method_schedule(config)
    choice, data, source, preprocessing = config.model, config.data, None, None
    if checkpoint is not None:
        preprocessing = Preprocessing.from_dict(checkpoint[METADATA]["preprocessing"])
    else:
        if choice.init_from is not None:
            source = read_starting_weights(choice.init_from)
        data = standardised_as(source, config)
        warn_of_milestones(config)
    splits = open_images(
        data, seed=config.train.seed, preprocessing=preprocessing, progress=progress
    )
    check_batches(config, splits)
    model = build_model(
        config,
        schedule,
        classes=len(splits.classes),
        channels=splits.channels,
        image_size=splits.image_size,
        pretrained=choice.pretrained and checkpoint is None,
    )
    if checkpoint is None:
        check_training(config, splits, model)
    warn_of_unmeasured(config, model.method)
    start = source and source.load(model, choice, splits.classes)
    if start and data != config.data:
        start += "; images are standardised as its own were"
    return Job(config=config, splits=splits, schedule=schedule, model=model, start=start)


def warn_of_milestones(config: RunConfig) -> None:
    """Say which decays a run is too short for, as one has that shortens a recipe."""
    epochs, milestones = config.train.epochs, config.optim.milestones
    beyond = [epoch for epoch in milestones if epoch >= epochs]
    if beyond:
        logger.warning(
            "train.epochs %d ends before the learning rate decays at epoch %s (optim.milestones)",
            epochs,
            " and ".join(map(str, beyond)),
        )


def check_batches(config: RunConfig, splits: ImageSplits) -> None:
    """Raise a ValueError where the images cannot be divided among the processes."""
    world = config.train.devices * config.train.nodes
    batch_size = config.data.batch_size
    TrainBatchSampler(
        len(splits.train),
        batch_size,
        seed=0,
        step=lambda: 0,
        world=world,
        parts=config.train.accumulate,
    )
    EvaluationBatchSampler(len(splits.test), batch_size, world=world)


def check_training(config: RunConfig, splits: ImageSplits, model: CovPoolModel) -> None:
    """Refuse what would end the first step: an optimiser, schedule or mixing that cannot be made,
    or parts of a batch that are too small or odd.

    Raises:
        ValueError: one of these.
    """
    steps, batch = steps_and_batch(len(splits.train), config.data.batch_size)
    if config.optim.reduction_steps:
        reduction_weight(model)
    make_optimizer(model, config.optim)
    learning_rate_course(config.optim, epochs=config.train.epochs, steps_per_epoch=steps)
    share = batch // (config.train.devices * config.train.nodes * config.train.accumulate)
    if make_mixup(config, len(splits.classes)) is not None and share % 2:
        raise ValueError(
            f"data.mixup and data.cutmix mix pairs of images, and a batch of {batch} leaves "
            f"{share} at a time, an odd number; choose another data.batch_size"
        )
    check_batch_statistics(config, splits, model)


def check_batch_statistics(config: RunConfig, splits: ImageSplits, model: CovPoolModel) -> None:
    """Refuse parts of a batch of one image where a layer normalises by statistics of the batch.

    Raises:
        ValueError: such a layer sees a single value of each channel, which normalised is zero.
    """
    processes = 1 if config.train.sync_batchnorm else config.train.devices * config.train.nodes
    parts = processes * config.train.accumulate
    batch = steps_and_batch(len(splits.train), config.data.batch_size)[1]
    if batch // parts > 1:
        return
    layers = single_valued_layers(model, splits.channels, splits.image_size)
    if config.optim.trained == "classifier":  # the rest keeps its statistics
        layers = [name for name in layers if not name.startswith(("backbone.", "pool."))]
    if layers:
        cut = f" in {parts} parts (train.devices, nodes, accumulate)" if parts > 1 else ""
        raise ValueError(
            f"a batch of {batch} training images{cut} leaves one image at a time, and batch norm "
            f"needs several in {', '.join(layers)}; take data.batch_size of at least {2 * parts}, "
            "fewer parts, or a model without these layers (model.hidden_features, model.backbone)"
        )


class RunFinished(ValueError):
    """A run that was to be resumed has nothing left to do.

    Attributes:
        reduced: whether checkpoints were removed that it need not keep, which may have been meant.
    """

    def __init__(self, told: str, *, reduced: bool = False) -> None:
        super().__init__(told)
        self.reduced = reduced


def prepare_resume(
    config: RunConfig,
    directory: RunDirectory,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Job, Path | None]:
    """The job of an earlier run, and the checkpoint to start it from, where there is one.

    That is last.ckpt, or previous.ckpt where the last one is damaged, which is then put aside as
    last.ckpt.damaged, lest it take the place of the good one when the next is written. A best.ckpt
    that is missing or damaged is written anew where another checkpoint has its weights.

    Raises:
        ValueError, OSError: as `prepare`; checkpoints that are damaged, of a run with other options
            than the configuration's but for `RESUME_KEYS`, of other classes or of other images.
        RunFinished: nothing is left to do. A run that was killed after its last epoch, before its
            results were written, is not finished: `train` then writes what is missing.
    """
    found = find_checkpoint(directory.last)
    if found is None:
        refuse_reduced(config, directory)
        return prepare(config, progress=progress), None
    checkpoint, path, problem = found
    if PROGRESS not in checkpoint:
        raise ValueError(
            f"checkpoint {path} holds weights only (a best.ckpt); put the run's own "
            f"{path.name} back, or start a new run"
        )
    check_progress(checkpoint, path)
    checkpoint = {**checkpoint, METADATA: checked_metadata(checkpoint[METADATA], path)}
    check_options(config, checkpoint, path, free=RESUME_KEYS)
    done = len(checkpoint[PROGRESS]["history"])
    if done >= config.train.epochs and not directory.owes(done):
        _mend_best(directory, checkpoint)
        if main_process() and reduce_finished(directory, config.train.keep):
            left = ", ".join(
                file.name for file in (directory.best, directory.last) if file.is_file()
            )
            raise RunFinished(
                f"run {directory.path} has finished, and keeps {left} of its checkpoints now",
                reduced=True,
            )
        refuse_reduced(config, directory)
        raise RunFinished(
            f"run {directory.path} has finished its {quantity(done, 'epoch')}; --train.epochs with "
            "a larger number would go on"
        )
    job = prepare(config, checkpoint=checkpoint, progress=progress)
    check_classes(job.splits, checkpoint, path)
    check_images(job, checkpoint, directory)
    check_training(config, job.splits, job.model)
    module = job.module()
    module.on_load_checkpoint(checkpoint)
    load_weights(module, checkpoint, path)
    _mend_best(directory, checkpoint)
    if problem and main_process():
        step = checkpoint["global_step"]
        logger.warning("%s; going on from %s, after step %d", problem, path, step)
        put_aside(directory.last)
    return job, path


def reduce_finished(directory: RunDirectory, keep: str) -> bool:
    """Let an earlier run that has finished keep what a new one would; whether that removed any."""
    files = (directory.last, directory.previous, directory.best)
    before = [file.is_file() for file in files]
    config = directory.read_config()
    if config.train.keep != keep:
        # First: by it one sees why the checkpoints are not there.
        directory.write_config(replace(config, train=replace(config.train, keep=keep)))
    keep_checkpoints(directory, keep)
    return before != [file.is_file() for file in files]


def refuse_reduced(config: RunConfig, directory: RunDirectory) -> None:
    """Refuse to begin a finished run anew because it keeps no checkpoint to go on from.

    Raises:
        RunFinished: it has as many epochs as the configuration asks for.
        ValueError: it has fewer.
    """
    summary = directory.read_summary() or {}
    if summary.get("status") != "finished" or directory.has_checkpoint():
        return
    if not directory.best.is_file() or directory.read_config().train.keep != "best":
        return  # somebody removed the checkpoints
    done = summary["epochs"]
    told = (
        f"run {directory.path} has finished its {quantity(done, 'epoch')} and keeps best.ckpt "
        "alone (train.keep best)"
    )
    if done >= config.train.epochs:
        raise RunFinished(told)
    raise ValueError(
        f"{told}: it cannot go on to {config.train.epochs}; start a new run, with --keep last"
    )


def _mend_best(directory: RunDirectory, checkpoint: dict[str, Any]) -> None:
    if main_process() and (lost := restore_best(directory, checkpoint)):
        logger.warning("%s", lost)


def check_images(job: Job, checkpoint: dict[str, Any], directory: RunDirectory) -> None:
    """Raise a ValueError where the images are not those that the run began with.

    Epochs are counted in steps, and batches are drawn by the images' numbers: with other images
    the run would go on from another place than where it stopped.
    """
    there, here = checkpoint[METADATA]["images"], job.images
    if not there:  # as a published model may have it, and no run
        raise ValueError(
            f"checkpoint {directory.last} does not say which images its run began with; put the "
            "run's own back, or start a new run"
        )
    if there != here:
        then, now = (
            f"{images['train']['number']} training and {images['test']['number']} test images"
            for images in (there, here)
        )
        now = "the same numbers of images, but other files or labels" if then == now else now
        raise ValueError(
            f"run {directory.path} began with {then}; {job.splits.name} now has {now}; restore "
            "them, or start a new run"
        )


def check_classes(splits: ImageSplits, checkpoint: dict[str, Any], path: Path) -> None:
    """Raise a ValueError where the images' classes are not those of the checkpoint, in order."""
    there, here = checkpoint[METADATA]["classes"], list(splits.classes)
    if there != here:
        different = sorted(set(there) ^ set(here))[:5]
        raise ValueError(
            f"checkpoint {path} was trained on {len(there)} classes, {splits.name} has "
            f"{len(here)}; they differ in {', '.join(different) or 'their order'}"
        )
