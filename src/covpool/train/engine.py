"""Training and evaluation of a prepared job."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor

import covpool
from covpool.data import DataError
from covpool.data.reading import REMEDY
from covpool.machine import describe_machine
from covpool.train.checkpoint import (
    METADATA,
    check_options,
    keep_checkpoints,
    load_weights,
    read_checkpoint,
)
from covpool.train.config import OptimConfig, RunConfig
from covpool.train.figures import draw_confusion, draw_curves, write_examples
from covpool.train.interruption import Interrupted, StopRequest
from covpool.train.job import Job, check_classes, parameters, prepare
from covpool.train.loaders import ImageDataModule, naming_dead_workers
from covpool.train.loggers import close_loggers, make_loggers
from covpool.train.memory import peak_bytes, reset_peak
from covpool.train.module import ClassificationModule, TrainingDiverged
from covpool.train.probes import make_probes
from covpool.train.progress import EvaluationProgress, ProgressReport
from covpool.train.published import read_trained
from covpool.train.recorder import Recorder
from covpool.train.reduction_step import make_reduction_steps
from covpool.train.run_directory import RunDirectory, best_row
from covpool.train.storage import StorageError
from covpool.train.trainer import main_process, make_trainer, quiet_lightning

MID_RUN_REMEDY = "start a new run with --data.skip_damaged true, or repair or restore the file"

logger = logging.getLogger("covpool")


def train(
    job: Job,
    directory: RunDirectory,
    *,
    checkpoint: Path | None = None,
    report: bool = True,
    callbacks: Sequence[Callback] = (),
) -> RunDirectory:
    """Train to the end of the schedule and write the run directory.

    Where the checkpoint has all epochs, its weights are evaluated and the results written.

    Args:
        job: what to train.
        directory: where to write.
        checkpoint: where to go on from.
        report: whether to show progress.
        callbacks: further ones, beside the configuration's probes.

    Returns:
        Where it was written: the first process's directory, in all of them.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGUSR1; last.ckpt is saved.
        TrainingDiverged: the loss or the weights ceased to be finite; last.ckpt, where there is
            one, is the last good state.
        DataError: an image could not be read; last.ckpt, once a step has been taken, is the state
            before it.
        StorageError: a file of the run could not be written; the checkpoints are as they were.
        ChildProcessError: a process that reads images was killed; last.ckpt is as it was.
    """
    config = job.config
    module = job.module()
    if config.train.compile:
        module.compile_backbone()
    data = ImageDataModule(job.splits, config)
    progress = None
    if report and main_process():
        test_images = len(job.splits.test)
        progress = ProgressReport(config.data.batch_size, test_images)
    summary: dict[str, Any] = {"status": "finished"}
    with StopRequest(announce=progress is not None) as request, quiet_lightning():
        recorder = Recorder(directory, request, progress)
        own: list[Callback] = [progress, recorder] if progress else [recorder]
        step = read_checkpoint(checkpoint)["global_step"] if checkpoint else 0
        loggers = make_loggers(config, directory, step) if main_process() else []
        if loggers:  # it refuses a process that has none
            own.append(LearningRateMonitor("step"))
        probes = make_probes(config, module, directory.path)
        steps = make_reduction_steps(config.optim)
        trainer = make_trainer(config, [*steps, *own, *probes, *callbacks], loggers)
        device = trainer.strategy.root_device
        measured = reset_peak(device)
        try:
            with naming_dead_workers():
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
                if not module.confusion.any():
                    # All epochs were there already: the run was killed before its results were.
                    measured = False
                    trainer.validate(module, datamodule=data, verbose=False)
        except Interrupted as error:
            summary = {"status": "interrupted", "reason": str(error)}
            raise
        except DataError as error:
            summary = {"status": "failed", "reason": plain_message(error)}
            raise DataError(summary["reason"]) from error
        except TrainingDiverged as error:
            summary = {"status": "diverged", "reason": f"Training diverged in {error}."}
            raise
        except (StorageError, ChildProcessError) as error:
            summary = {"status": "failed", "reason": str(error)}
            raise
        except BaseException as error:
            summary = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
            raise
        finally:
            if progress:
                progress.close()
            close_loggers(loggers, failed=summary["status"] != "finished")
            if main_process():
                summary |= summarise(job, recorder)
                summary["machine"] = describe_machine(device)
                summary["peak_memory_bytes"] = peak_bytes(device) if measured else None
                write_results(job, module, recorder, directory, summary)
    if main_process():
        keep_checkpoints(directory, config.train.keep)
    return recorder.directory


def write_results(
    job: Job,
    module: ClassificationModule,
    recorder: Recorder,
    directory: RunDirectory,
    summary: dict[str, Any],
) -> None:
    """All that a finished run has beside its checkpoints, summary.json last.

    Where the disk is full, what has ended the run is the news. A picture that cannot be drawn for
    another reason does not take the results with it.
    """
    try:
        if recorder.history:
            directory.write_metrics(recorder.history)
        try:
            write_pictures(job, module, recorder, directory)
        except OSError:
            raise
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            logger.warning("a picture of %s could not be drawn (%s)", directory.path, problem)
        directory.write_summary(summary)
    except OSError as error:
        problem = f"cannot write the results to {directory.path}: {error.strerror or error}"
        if summary["status"] == "finished":
            raise StorageError(problem) from error
        logger.warning("%s", problem)


def plain_message(error: DataError) -> str:
    """Its message alone, with what helps in mid-run.

    One from a loader's process comes as a text that holds its traceback.
    """
    message = str(error).strip().splitlines()[-1].rpartition(f"{DataError.__name__}: ")[2]
    return f"{message.removesuffix(f'; {REMEDY}')}; {MID_RUN_REMEDY}"


def summarise(job: Job, recorder: Recorder) -> dict[str, Any]:
    """The summary's entries except the status."""
    config, history = job.config, recorder.history
    summary: dict[str, Any] = {
        "data": job.splits.name,
        "evaluated": job.splits.evaluated,
        "backbone": config.model.backbone,
        "schedule": str(job.schedule),
        "seed": config.train.seed,
        "epochs": len(history),
        "epochs_planned": config.train.epochs,
        "parameters": parameters(job.model),
        "seconds": round(sum(row["seconds"] for row in history), 3),
        "notes": [*([job.start] if job.start else []), *job.splits.notes],
        "covpool": covpool.__version__,
        "torch": torch.__version__,
    }
    skipped = sum(row["skipped_steps"] for row in history)
    if skipped:
        summary["skipped_steps"] = skipped
    if history:
        summary |= {"final": history[-1], "best": best_row(history)}
    return summary


def write_pictures(
    job: Job, module: ClassificationModule, recorder: Recorder, directory: RunDirectory
) -> None:
    """Learning curves and confusion, as far as there are any."""
    confusion = module.confusion.cpu()
    whole = confusion.sum() == len(job.splits.test)  # else the evaluation was cut short
    if whole:  # before the pictures, which may fail
        directory.write_confusions(confusion.tolist(), job.splits.classes)
    if recorder.history:
        draw_curves(recorder.history, directory.path / "curves.svg")
    if whole:
        draw_confusion(confusion, job.splits.classes, directory.path / "confusion.png")
        write_examples(confusion, job.splits.test, job.splits.classes, directory.examples)


def evaluate(path: Path, config: RunConfig, *, report: bool = False) -> dict[str, Any]:
    """Top-1, top-5 and loss of a checkpoint on what the configuration has evaluated of its images.

    Args:
        path: the checkpoint, or a published model's directory.
        config: its configuration, perhaps with other images.
        report: whether to show progress.

    Raises:
        ValueError, OSError: as `prepare`; a checkpoint that is damaged, of another model or of
            other classes, or whose weights give no finite loss.
    """
    checkpoint = read_trained(path)
    options = config.to_dict()
    free = {(group, name) for group in options if group != "model" for name in options[group]}
    check_options(config, checkpoint, path, free=free)
    one_process = replace(
        config.train,
        devices=1,
        nodes=1,
        strategy="auto",
        accumulate=1,
        sync_batchnorm=False,
        loggers=(),
        probes=(),
    )
    # Nothing is trained: what the optimiser needs may be missing here, and a checkpoint's weights
    # are the average already. Hybrid training switches at a milestone.
    optim = OptimConfig(decay=config.optim.decay, milestones=config.optim.milestones)
    config = replace(config, train=one_process, optim=optim)
    job = prepare(config, checkpoint=checkpoint)
    check_classes(job.splits, checkpoint, path)
    about = checkpoint[METADATA]
    trained = RunConfig.from_dict(about["config"]).data
    same = all(
        getattr(config.data, name) == getattr(trained, name)
        for name in ("root", "evaluate", "drop_duplicates")
    )
    known = about["images"].get("test")
    if same and known and job.images["test"] != known:
        then, now = known["number"], job.images["test"]["number"]
        logger.warning(
            "the test images of %s (%s) are not those that the run was trained with (%d)",
            job.splits.name,
            "as many, but other files or labels" if then == now else now,
            then,
        )
    module = job.module()
    load_weights(module, checkpoint, path)
    epoch = about["epoch"]
    module.use_method_of(epoch)
    shown = EvaluationProgress(int(job.images["test"]["number"]), config.data.batch_size)
    with quiet_lightning():
        trainer = make_trainer(config, [shown] if report else [])
        try:
            with naming_dead_workers():
                data = ImageDataModule(job.splits, config)
                trainer.validate(module, datamodule=data, verbose=False)
        except TrainingDiverged as error:
            raise ValueError(
                f"checkpoint {path} gives no finite result in {error}; it is damaged, or its run "
                "diverged: use another checkpoint"
            ) from error
        finally:
            shown.close()
    loss, top1, top5, images = module.test_sums.tolist()
    return {
        "checkpoint": str(path),
        "epoch": epoch + 1,
        "method": job.schedule.name_at(epoch),
        "images": int(images),
        "evaluated": job.splits.evaluated,
        "test_loss": loss / images,
        "test_top1": top1 / images,
        "test_top5": top5 / images,
    }
