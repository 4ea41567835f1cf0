"""`covpool train`."""

import shlex
import sys
from pathlib import Path
from typing import Any

from covpool.cli import UserError
from covpool.cli.parsing import (
    FileProgress,
    RunParser,
    checking_files,
    chosen_recipe,
    users_input,
)
from covpool.data import DataError
from covpool.train.engine import train
from covpool.train.interruption import Interrupted
from covpool.train.job import Job, check_names, prepare, prepare_resume
from covpool.train.module import TrainingDiverged
from covpool.train.run_directory import RunDirectory, free_path, refuse_existing
from covpool.train.trainer import main_process

RUNS = Path("runs")

RESUMABLE = (
    "data.name",
    "data.root",
    "data.workers",
    "data.check",
    "data.skip_damaged",
    "train.epochs",
    "train.accelerator",
    "train.devices",
    "train.nodes",
    "train.strategy",
    "train.threads",
    "train.checkpoint_steps",
)
"""What may differ between a run and its resumption: where it runs, and for how long."""


def run(arguments: list[str]) -> int:
    """Train, and return the exit status."""
    with users_input(), checking_files() as progress:
        job, directory, resume = _prepare(arguments, progress)
    speaks = main_process()
    if speaks:
        print(job.describe())
        if job.start is not None:
            print(job.start)
        print(f"{'going on in' if resume else 'writing to'} {directory.path}", flush=True)
    go_on = f"covpool train --resume {shlex.quote(str(directory.path))}"
    try:
        summary = train(job, directory, resume=resume)
    except Interrupted as error:
        if speaks:
            print(f"covpool: interrupted; go on with: {go_on}", file=sys.stderr)
        return 128 + error.signal_number
    except DataError as error:
        raise UserError(f"{error}; then go on with: {go_on}") from error
    except TrainingDiverged as error:
        kept = "last.ckpt holds the last good state; " if directory.last.is_file() else ""
        print(
            f"covpool: training diverged in {error}; {kept}try a lower optim.learning_rate or "
            "optim.clip_norm",
            file=sys.stderr,
        )
        return 1
    if speaks:
        for name in ("final", "best"):
            row = summary[name]
            print(
                f"{name.capitalize():5}  top-1 {100 * row['test_top1']:.2f}%  "
                f"top-5 {100 * row['test_top5']:.2f}%  (epoch {row['epoch']})"
            )
        print(f"summary, curves and checkpoints: {directory.path}")
    return 0


def _prepare(arguments: list[str], progress: FileProgress) -> tuple[Job, RunDirectory, bool]:
    recipe = chosen_recipe(arguments)
    config, own = _parser(defaults=recipe and recipe.config).parse(arguments)
    if own.resume is not None:
        return _prepare_resume(arguments, own, progress)
    if recipe is not None:
        recipe.check(config)
    check_names(config)
    speaks = main_process()
    if own.output is not None and speaks:
        refuse_existing(own.output)
    job = prepare(config, progress=progress)
    label = f"{job.splits.name}-{config.model.backbone}-{job.schedule.label}"
    path = own.output or free_path(RUNS / label)
    # The other processes are given rank 0's directory when training begins.
    directory = RunDirectory.create(path, config) if speaks else RunDirectory(path)
    return job, directory, False


def _prepare_resume(
    arguments: list[str], own: Any, progress: FileProgress
) -> tuple[Job, RunDirectory, bool]:
    if own.output is not None:
        raise ValueError(
            f"--output {own.output} and --resume {own.resume} exclude each other: a resumed run "
            "goes on in its own directory"
        )
    if own.recipe is not None:
        raise ValueError(
            f"--recipe {own.recipe} and --resume {own.resume} exclude each other: a resumed run "
            "goes on with its own configuration"
        )
    directory = RunDirectory.open(own.resume)
    config, _ = _parser(allowed=RESUMABLE, defaults=directory.read_config()).parse(arguments)
    job, resume = prepare_resume(config, directory, progress=progress)
    if main_process():
        directory.write_config(config)
        if not resume:
            print(f"no checkpoint yet in {directory.path}: starting from the beginning")
    return job, directory, resume


def _parser(**options: Any) -> RunParser:
    parser = RunParser(
        "train",
        "Train a network. Without arguments: the embedded typefaces, about two minutes on 2 cores.",
        **options,
    )
    parser.add_argument(
        "--recipe", type=str | None, help="start from this one of covpool recipes; options hold"
    )
    parser.add_argument("--output", type=Path | None, help="run directory (default: runs/…)")
    parser.add_argument("--resume", type=Path | None, help="go on with this run directory")
    return parser
