"""`covpool train`.

What trains is imported once the options are read and the first line is said: it takes seconds.
"""

import os
import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from covpool.cli import UserError, loading, say
from covpool.cli.defaults import said_defaults
from covpool.cli.parsers import RESUMABLE
from covpool.cli.parsing import FileProgress, Given, checking_files, chosen_recipe, users_input
from covpool.text import file_name
from covpool.train.allocator import keep_freed_memory
from covpool.train.claim import claimed
from covpool.train.config import RunConfig
from covpool.train.interruption import Interrupted
from covpool.train.run_directory import RunDirectory, make_numbered, refuse_existing
from covpool.train.same_options import RESUME_KEYS, difference

if TYPE_CHECKING:
    from covpool.train.job import Job
    from covpool.train.recipe import Recipe

RUNS = Path("runs")

AUTO = Path("auto")
"""`--resume auto`: go on with --output where it is a run, else start it."""

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""The variables that tell a process which of several it is, in the order in which Lightning looks
for them."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for, read without PyTorch."""

    config: RunConfig
    recipe: "Recipe | None"
    output: Path | None
    resume: Path | None

    @property
    def title(self) -> str:
        """What is going to be trained."""
        if self.resume not in (None, AUTO):
            return f"going on with {self.resume}"
        data, model, epochs = self.config.data, self.config.model, self.config.train.epochs
        images = "the embedded typefaces" if data.root is None else data.root
        return f"training {model.backbone} with {model.method} on {images}, {epochs} epochs"


class NothingToDo(Exception):
    """With `--resume auto`, a run that has finished is no mistake."""


def run(given: Given) -> int:
    """Train, and return the exit status, which is the first process's: others return 0."""
    with users_input():
        asked = _read(given)
    if first_process():
        say(f"{asked.title}; loading PyTorch")
    with loading():
        from covpool.train.trainer import main_process

    speaks = main_process()
    keep_freed_memory()
    with ExitStack() as claims:
        try:
            with users_input(), checking_files() as progress:
                prepared = _prepare(asked, progress, claims)
        except NothingToDo as error:
            if speaks:
                say(error)
            return 0
        return _train(*prepared, speaks=speaks)


def first_process() -> bool:
    """Whether this process is the one that speaks, as far as its environment tells."""
    return int(next((os.environ[name] for name in RANKS if name in os.environ), 0)) == 0


def _read(given: Given) -> Request:
    own, recipe = given.own, None
    if own.resume in (None, AUTO):
        if own.resume == AUTO and own.output is None:
            raise ValueError(
                "--resume auto needs --output, the run directory to go on with or to start"
            )
        recipe = chosen_recipe(given)
        config = given.config(recipe and recipe.config)
    else:
        for option in ("output", "recipe"):
            if (value := getattr(own, option)) is not None:
                raise ValueError(
                    f"--{option} {value} and --resume {own.resume} exclude each other: a resumed "
                    f"run goes on {'in' if option == 'output' else 'with'} its own "
                    f"{'directory' if option == 'output' else 'configuration'}"
                )
        there = RunDirectory.open(own.resume).read_config()
        config = given.config(there, allowed=RESUMABLE)
    return Request(config, recipe, own.output, own.resume)


def _train(job: "Job", directory: RunDirectory, checkpoint: Path | None, *, speaks: bool) -> int:
    from covpool.data import DataError
    from covpool.train.engine import train
    from covpool.train.module import TrainingDiverged
    from covpool.train.storage import StorageError

    if speaks:
        say(job.describe())
        if job.start is not None:
            say(job.start)
        say(f"{'going on in' if checkpoint else 'writing to'} {directory.path}")
    go_on = f"covpool train --resume {shlex.quote(str(directory.path))}"
    try:
        summary = train(job, directory, checkpoint=checkpoint)
    except Interrupted as error:
        if speaks:
            say(f"covpool: interrupted; go on with: {go_on}", error=True)
        return 128 + error.signal_number if speaks else 0
    except (DataError, ChildProcessError) as error:
        raise UserError(f"{error}; then go on with: {go_on}") from error
    except StorageError as error:
        if not speaks:
            return 0
        kept = "; the checkpoints before are intact" if directory.has_checkpoint() else ""
        raise UserError(f"{error}{kept}; make room, then go on with: {go_on}") from error
    except TrainingDiverged as error:
        if not speaks:
            return 0
        kept = "last.ckpt holds the last good state; " if directory.last.is_file() else ""
        skipping = job.config.train.on_nonfinite == "skip"
        say(
            f"covpool: training diverged in {error}; {kept}try a lower optim.learning_rate or "
            f"optim.clip_norm{'' if skipping else ', or --on-nonfinite skip'}",
            error=True,
        )
        return 1
    if speaks:
        for name in ("final", "best"):
            row = summary[name]
            say(
                f"{name.capitalize():5}  top-1 {100 * row['test_top1']:.2f}%  "
                f"top-5 {100 * row['test_top5']:.2f}%  (epoch {row['epoch']})"
            )
        say(f"summary, curves and checkpoints: {directory.path}")
    return 0


Prepared = tuple["Job", RunDirectory, Path | None]


def _prepare(asked: Request, progress: FileProgress, claims: ExitStack) -> Prepared:
    """The job, and its directory, which is this process's alone until `claims` are released."""
    from covpool.train.job import RunFinished, check_names, prepare
    from covpool.train.trainer import main_process

    speaks = main_process()  # the first of several processes, which alone writes

    def claim(path: Path) -> RunDirectory:
        if speaks:
            claims.enter_context(claimed(path))
        return RunDirectory(path)

    config = asked.config
    if asked.resume == AUTO and asked.output is not None:
        if (asked.output / "config.yaml").is_file():
            directory = claim(RunDirectory.open(asked.output).path)
            _check_same(config, directory)
            try:
                return _resume(config, directory, progress)
            except RunFinished as error:
                raise NothingToDo(str(error)) from error
    elif asked.resume is not None:
        return _resume(config, claim(asked.resume), progress)
    if asked.recipe is not None:
        asked.recipe.check(config)
    check_names(config)
    if asked.output is not None and speaks:
        refuse_existing(asked.output)
    job = prepare(config, progress=progress)
    if speaks and (line := said_defaults(job, asked.recipe)):
        say(line)
    label = f"{job.splits.name}-{config.model.backbone}-{job.schedule.label}"
    path = asked.output or RUNS / file_name(label)
    if not speaks:  # it is given the first process's directory when training begins
        return job, RunDirectory(path), None
    directory = claim(path if asked.output else make_numbered(path))
    return job, RunDirectory.create(directory.path, config), None


def _check_same(config: RunConfig, directory: RunDirectory) -> None:
    """Raise a ValueError where the options are not those that the run was started with."""
    if found := difference(directory.read_config(), config, free=RESUME_KEYS):
        key, then, now = found
        raise ValueError(
            f"run {directory.path} was started with {key} {_written(then)}, not {_written(now)}; "
            "give the same options, or another --output"
        )


def _written(value: object) -> str:
    """A value as an option is given."""
    return "null" if value is None else repr(value)


def _resume(config: RunConfig, directory: RunDirectory, progress: FileProgress) -> Prepared:
    from covpool.train.job import prepare_resume
    from covpool.train.trainer import main_process

    job, checkpoint = prepare_resume(config, directory, progress=progress)
    if main_process():
        directory.write_config(config)
        if checkpoint is None:
            say(f"no checkpoint yet in {directory.path}: starting from the beginning")
    return job, directory, checkpoint
