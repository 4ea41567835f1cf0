"""Training, evaluation and prediction: data, model and Lightning's Trainer put together.

`prepare` meets every mistake that a user can make (names, files, sizes) before anything long
starts, and says so by ValueError or OSError. After it, an exception is a fault of the program,
except `TrainingDiverged` and `Interrupted`.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, Trainer

import covpool
from covpool.data import DataError, ImageSplits, Preprocessing, load_image, open_images
from covpool.models import CovPoolModel, check_backbone, create_model
from covpool.pooling import VECTOR_LAYOUT
from covpool.train.checkpoint import METADATA, AtomicCheckpointIO, load_weights, read_checkpoint
from covpool.train.config import RunConfig
from covpool.train.figures import draw_confusion, draw_curves
from covpool.train.interruption import Interrupted, StopRequest
from covpool.train.module import ClassificationModule, ImageDataModule, TrainingDiverged
from covpool.train.progress import ProgressReport
from covpool.train.recorder import PROGRESS, Recorder
from covpool.train.run_directory import Row, RunDirectory, best_row
from covpool.train.sampling import (
    EvaluationBatchSampler,
    TrainBatchSampler,
    combine_seeds,
    steps_and_batch,
)
from covpool.train.schedule import MethodSchedule, method_schedule


@dataclass(frozen=True, kw_only=True)
class Job:
    """A configuration with the images and the model that it describes."""

    config: RunConfig
    splits: ImageSplits
    schedule: MethodSchedule
    model: CovPoolModel

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
            },
        )

    def describe(self) -> str:
        """One line for people."""
        splits, model = self.splits, self.model
        return (
            f"{self.config.model.backbone}, {self.schedule}, {parameters(model) / 1e6:.2f} M "
            f"parameters; {splits.name}: {len(splits.classes)} classes, "
            f"{len(splits.train)} training and {len(splits.test)} test images "
            f"{splits.channels}×{splits.image_size}×{splits.image_size}"
        )


def parameters(model: torch.nn.Module) -> int:
    """The number of trainable and frozen parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def main_process() -> bool:
    """Whether this process is the one that speaks and writes (rank 0)."""
    return getattr(rank_zero_only, "rank", 0) == 0


def check_names(config: RunConfig) -> None:
    """Look up every name of a configuration, before anything is opened.

    Raises:
        ValueError: an unknown method, constant or backbone.
    """
    method_schedule(config.model)
    check_backbone(config.model.backbone)


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
            holds, and pretrained weights are not loaded.
        progress: called with (files checked, files in all).

    Raises:
        ValueError, OSError: a mistake in the configuration or in the images.
    """
    check_names(config)
    check_machine(config)
    set_threads(config)
    schedule = method_schedule(config.model)
    preprocessing = None
    if checkpoint is not None:
        preprocessing = Preprocessing.from_dict(checkpoint[METADATA]["preprocessing"])
    splits = open_images(
        config.data, seed=config.train.seed, preprocessing=preprocessing, progress=progress
    )
    check_batches(config, splits)
    model = build_model(
        config,
        schedule,
        classes=len(splits.classes),
        channels=splits.channels,
        image_size=splits.image_size,
        pretrained=config.model.pretrained and checkpoint is None,
    )
    return Job(config=config, splits=splits, schedule=schedule, model=model)


def build_model(
    config: RunConfig,
    schedule: MethodSchedule,
    *,
    classes: int,
    channels: int,
    image_size: int,
    pretrained: bool,
) -> CovPoolModel:
    """The model of a configuration, its weights drawn from the seed, tried on blank images.

    Raises:
        ValueError: the backbone cannot be built so, or cannot take images of this size.
    """
    choice = config.model
    torch.manual_seed(combine_seeds(config.train.seed))
    try:
        model = create_model(
            choice.backbone,
            classes,
            method=schedule.method_at(0) or "gap",
            pretrained=pretrained,
            reduced_channels=choice.reduced_channels,
            last_stride=choice.last_stride,
            in_chans=channels,
            image_size=image_size,
            drop_rate=choice.drop_rate,
            **choice.backbone_options,
        )
        with torch.no_grad():
            model.eval()(torch.zeros(2, channels, image_size, image_size))
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"backbone {choice.backbone!r} with options {choice.backbone_options} cannot take "
            f"{image_size}×{image_size} images ({error}); choose another data.image_size, backbone "
            "or options"
        ) from error
    return model.train()


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
    )
    EvaluationBatchSampler(len(splits.test), batch_size, world=world)


def set_threads(config: RunConfig) -> None:
    """As many threads as the cores allow, divided among this machine's processes."""
    threads = config.train.threads
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        cpu = config.train.accelerator == "cpu" or not torch.cuda.is_available()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = max(1, (cores or 1) // (config.train.devices if cpu else 1))
    if threads is not None:
        torch.set_num_threads(threads)


def train(job: Job, directory: RunDirectory, *, resume: bool = False, report: bool = True) -> Row:
    """Train to the end of the schedule and write the run directory.

    Args:
        job: what to train.
        directory: where to write; its last.ckpt is where to start with `resume`.
        resume: go on from last.ckpt.
        report: whether to show progress.

    Returns:
        The summary, as in summary.json.

    Raises:
        Interrupted: SIGINT or SIGTERM; last.ckpt is saved.
        TrainingDiverged: the loss ceased to be finite; last.ckpt is the last good state.
        DataError: an image could not be read; last.ckpt is the state before it.
    """
    config = job.config
    module = job.module()
    data = ImageDataModule(job.splits, config)
    progress = None
    if report and main_process():
        test_images = len(job.splits.test)
        progress = ProgressReport(config.data.batch_size, test_images)
    summary: dict[str, Any] = {"status": "finished"}
    with StopRequest(announce=progress is not None) as request, quiet_lightning():
        recorder = Recorder(directory, request, progress)
        callbacks: list[Callback] = [progress, recorder] if progress else [recorder]
        trainer = make_trainer(config, callbacks)
        try:
            checkpoint = directory.last if resume else None
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except Interrupted as error:
            summary = {"status": "interrupted", "reason": str(error)}
            raise
        except DataError as error:
            summary = {"status": "failed", "reason": plain_message(error)}
            raise DataError(summary["reason"]) from error
        except TrainingDiverged as error:
            summary = {"status": "diverged", "reason": f"Training diverged in {error}."}
            raise
        except BaseException as error:
            summary = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
            raise
        finally:
            if progress:
                progress.close()
            if main_process():
                summary |= summarise(job, recorder)
                directory.write_summary(summary)
                write_pictures(job, module, recorder, directory)
    return summary


def plain_message(error: DataError) -> str:
    """Its message alone: one from a loader's process comes as a text that holds its traceback."""
    return str(error).strip().splitlines()[-1].rpartition(f"{DataError.__name__}: ")[2]


def summarise(job: Job, recorder: Recorder) -> dict[str, Any]:
    """The summary's entries except the status."""
    config, history = job.config, recorder.history
    summary: dict[str, Any] = {
        "data": job.splits.name,
        "backbone": config.model.backbone,
        "schedule": str(job.schedule),
        "seed": config.train.seed,
        "epochs": len(history),
        "epochs_planned": config.train.epochs,
        "parameters": parameters(job.model),
        "seconds": round(sum(row["seconds"] for row in history), 3),
        "notes": list(job.splits.notes),
        "covpool": covpool.__version__,
        "torch": torch.__version__,
    }
    if history:
        summary |= {"final": history[-1], "best": best_row(history)}
    return summary


def write_pictures(
    job: Job, module: ClassificationModule, recorder: Recorder, directory: RunDirectory
) -> None:
    """Learning curves and confusion, as far as there are any."""
    if recorder.history:
        draw_curves(recorder.history, directory.path / "curves.svg")
    confusion = module.confusion.cpu()
    if confusion.any():
        draw_confusion(confusion, job.splits.classes, directory.path / "confusion.png")
        directory.write_confusions(confusion.tolist(), job.splits.classes)


def prepare_resume(
    config: RunConfig,
    directory: RunDirectory,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Job, bool]:
    """The job of an earlier run, and whether there is a checkpoint to start it from.

    Raises:
        ValueError, OSError: as `prepare`; a checkpoint that is damaged, of another model or of
            other classes; a run that has nothing left to do.
    """
    if not directory.last.is_file():
        return prepare(config, progress=progress), False
    checkpoint = read_checkpoint(directory.last)
    done = len(checkpoint[PROGRESS]["history"])
    if done >= config.train.epochs:
        raise ValueError(
            f"run {directory.path} has finished its {done} epochs; --train.epochs with a larger "
            "number would go on"
        )
    job = prepare(config, checkpoint=checkpoint, progress=progress)
    check_classes(job.splits, checkpoint, directory.last)
    module = job.module()
    load_weights(module, checkpoint, directory.last)
    return job, True


def check_classes(splits: ImageSplits, checkpoint: dict[str, Any], path: Path) -> None:
    """Raise a ValueError where the images' classes are not those of the checkpoint, in order."""
    there, here = checkpoint[METADATA]["classes"], list(splits.classes)
    if there != here:
        different = sorted(set(there) ^ set(here))[:5]
        raise ValueError(
            f"checkpoint {path} was trained on {len(there)} classes, {splits.name} has "
            f"{len(here)}; they differ in {', '.join(different) or 'their order'}"
        )


def evaluate(path: Path, config: RunConfig) -> dict[str, Any]:
    """Top-1, top-5 and loss of a checkpoint on the test split of the configuration's images.

    Raises:
        ValueError, OSError: as `prepare`; a checkpoint that is damaged, of another model or of
            other classes.
    """
    checkpoint = read_checkpoint(path)
    one_process = replace(config.train, devices=1, nodes=1, strategy="auto")
    config = replace(config, train=one_process)
    job = prepare(config, checkpoint=checkpoint)
    check_classes(job.splits, checkpoint, path)
    module = job.module()
    load_weights(module, checkpoint, path)
    epoch = checkpoint[METADATA]["epoch"]
    module.use_method_of(epoch)
    with quiet_lightning():
        trainer = make_trainer(config, [])
        trainer.validate(module, datamodule=ImageDataModule(job.splits, config), verbose=False)
    loss, top1, top5, images = module.test_sums.tolist()
    return {
        "checkpoint": str(path),
        "epoch": epoch + 1,
        "method": job.schedule.name_at(epoch),
        "images": int(images),
        "test_loss": loss / images,
        "test_top1": top1 / images,
        "test_top5": top5 / images,
    }


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The likeliest classes of one image with their probabilities, or why there are none."""

    path: Path
    likeliest: list[tuple[str, float]]
    error: str | None = None


def predict(path: Path, images: Sequence[Path], *, top: int = 5) -> Iterator[Prediction]:
    """The likeliest classes of image files by a checkpoint, which is all that is needed.

    Args:
        path: the checkpoint.
        images: image files; one that cannot be read gives a `Prediction` with its error.
        top: number of classes.

    Raises:
        ValueError, OSError: a checkpoint that cannot be read, or is of another version.
    """
    checkpoint = read_checkpoint(path)
    about = checkpoint[METADATA]
    config = RunConfig.from_dict(about["config"])
    classes: list[str] = about["classes"]
    preprocessing = Preprocessing.from_dict(about["preprocessing"])
    schedule = method_schedule(config.model)
    model = build_model(
        config,
        schedule,
        classes=len(classes),
        channels=preprocessing.channels,
        image_size=preprocessing.image_size,
        pretrained=False,
    )
    prefix = "model."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items()}
    load_weights(model, {**checkpoint, "state_dict": weights}, path)
    method = schedule.method_at(about["epoch"])
    if method is not None:
        model.method = method
    return _predictions(model.eval(), preprocessing, classes, images, top)


def _predictions(
    model: CovPoolModel,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    images: Sequence[Path],
    top: int,
) -> Iterator[Prediction]:
    dtype = next(model.parameters()).dtype
    for image in images:
        try:
            pixels = load_image(image, preprocessing)
        except (ValueError, OSError) as error:
            yield Prediction(path=image, likeliest=[], error=str(error))
            continue
        with torch.no_grad():
            shares = model(pixels[None].to(dtype))[0].softmax(0)
        best = shares.topk(min(top, len(classes)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        yield Prediction(path=image, likeliest=[(classes[int(i)], share) for i, share in pairs])


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
        # sampler computes where from the number of steps; the last is Lightning's own business.
        for message in (
            ".*does not have many workers.*",
            ".*ended before the epoch ended.*",
            ".*isinstance.treespec, LeafSpec.*",
        ):
            warnings.filterwarnings("ignore", message)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
