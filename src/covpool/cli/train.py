"""`covpool train`."""

import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from covpool.cli import UserError, say
from covpool.cli.parsing import (
    FileProgress,
    RunParser,
    checking_files,
    chosen_recipe,
    users_input,
)
from covpool.data import DataError
from covpool.text import file_name
from covpool.train.allocator import keep_freed_memory
from covpool.train.claim import claimed
from covpool.train.config import RunConfig
from covpool.train.engine import train
from covpool.train.interruption import Interrupted
from covpool.train.job import Job, RunFinished, check_names, prepare, prepare_resume
from covpool.train.module import TrainingDiverged
from covpool.train.run_directory import RunDirectory, make_numbered, refuse_existing
from covpool.train.same_options import RESUME_KEYS, difference
from covpool.train.storage import StorageError
from covpool.train.trainer import main_process

RUNS = Path("runs")

RESUMABLE = tuple(".".join(key) for key in RESUME_KEYS)
"""`RESUME_KEYS` as options."""

AUTO = Path("auto")
"""`--resume auto`: go on with --output where it is a run, else start it."""

ALIASES = {"--on-nonfinite": "--train.on_nonfinite"}


class NothingToDo(Exception):
    """With `--resume auto`, a run that has finished is no mistake."""


def run(arguments: list[str]) -> int:
    """Train, and return the exit status, which is the first process's: others return 0."""
    words = [word.partition("=") for word in arguments]
    arguments = [ALIASES.get(name, name) + equals + rest for name, equals, rest in words]
    speaks = main_process()
    keep_freed_memory()
    with ExitStack() as claims:
        try:
            with users_input(), checking_files() as progress:
                prepared = _prepare(arguments, progress, claims)
        except NothingToDo as error:
            if speaks:
                say(error)
            return 0
        return _train(*prepared, speaks=speaks)


def _train(job: Job, directory: RunDirectory, checkpoint: Path | None, *, speaks: bool) -> int:
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


Prepared = tuple[Job, RunDirectory, Path | None]


def _prepare(arguments: list[str], progress: FileProgress, claims: ExitStack) -> Prepared:
    """The job, and its directory, which is this process's alone until `claims` are released."""
    speaks = main_process()  # the first of several processes, which alone writes

    def claim(path: Path) -> RunDirectory:
        if speaks:
            claims.enter_context(claimed(path))
        return RunDirectory(path)

    recipe = chosen_recipe(arguments)
    config, own = _parser(defaults=recipe and recipe.config).parse(arguments)
    if own.resume == AUTO:
        if own.output is None:
            raise ValueError(
                "--resume auto needs --output, the run directory to go on with or to start"
            )
        if (own.output / "config.yaml").is_file():
            directory = claim(RunDirectory.open(own.output).path)
            _check_same(config, directory)
            try:
                return _resume(config, directory, progress)
            except RunFinished as error:
                raise NothingToDo(str(error)) from error
    elif own.resume is not None:
        if own.output is not None:
            raise ValueError(
                f"--output {own.output} and --resume {own.resume} exclude each other: a resumed "
                "run goes on in its own directory"
            )
        if own.recipe is not None:
            raise ValueError(
                f"--recipe {own.recipe} and --resume {own.resume} exclude each other: a resumed "
                "run goes on with its own configuration"
            )
        directory = claim(RunDirectory.open(own.resume).path)
        parser = _parser(allowed=RESUMABLE, defaults=directory.read_config())
        return _resume(parser.parse(arguments)[0], directory, progress)
    if recipe is not None:
        recipe.check(config)
    check_names(config)
    if own.output is not None and speaks:
        refuse_existing(own.output)
    job = prepare(config, progress=progress)
    label = f"{job.splits.name}-{config.model.backbone}-{job.schedule.label}"
    path = own.output or RUNS / file_name(label)
    if not speaks:  # it is given the first process's directory when training begins
        return job, RunDirectory(path), None
    directory = claim(path if own.output else make_numbered(path))
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
    job, checkpoint = prepare_resume(config, directory, progress=progress)
    if main_process():
        directory.write_config(config)
        if checkpoint is None:
            say(f"no checkpoint yet in {directory.path}: starting from the beginning")
    return job, directory, checkpoint


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
    parser.add_argument(
        "--resume",
        type=Path | None,
        help="go on with this run directory; auto: with --output where it is a run, else start it",
    )
    return parser
