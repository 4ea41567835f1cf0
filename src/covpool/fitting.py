"""Training a network, from Python and for the command line alike.

`covpool.fit` makes a configuration of its arguments; `covpool train` makes one of its options. From
there on both go through `prepared_run` and `PreparedRun.train`.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from covpool.data import DataError
from covpool.linalg.names import PoolingName
from covpool.linalg.tables import choose
from covpool.models import CovPoolModel
from covpool.text import file_name
from covpool.train.claim import claimed
from covpool.train.config import RunConfig
from covpool.train.engine import train
from covpool.train.interruption import Interrupted
from covpool.train.job import Job, RunFinished, check_names, prepare, prepare_resume
from covpool.train.prediction import Prediction, TrainedModel, load_model
from covpool.train.recipe import Recipe, default_recipe, read_recipe, said_defaults
from covpool.train.run_directory import (
    AUTO,
    Row,
    RunDirectory,
    make_numbered,
    refuse_existing,
    replace_text,
)
from covpool.train.same_options import RESUME_KEYS, difference
from covpool.train.storage import StorageError
from covpool.train.trainer import main_process

RUNS = Path("runs")

Tell = Callable[[str], object]

SHORT = {
    "path": ("data", "root"),
    "image_size": ("data", "image_size"),
    "batch_size": ("data", "batch_size"),
    "backbone": ("model", "backbone"),
    "pooling": ("model", "method"),
    "pretrained": ("model", "pretrained"),
    "learning_rate": ("optim", "learning_rate"),
    "epochs": ("train", "epochs"),
    "seed": ("train", "seed"),
}
"""Which option each argument of `fit` is."""


_ON_COMMAND_LINE = re.compile(
    r"--([a-z_]+)(?:\.([a-z_]+))?"
    r"(?: ((?<=--resume )(?:'[^']*'|[^\s,;]+)|(?<=--model\.backbone )[^\s,;]+|true|false|auto"
    r"|[0-9.]*[0-9]))?"
)
"""An option in a sentence, with its value where one follows that is no word of the sentence."""


def in_python(text: str) -> str:
    """A sentence that names options as on the command line, with the arguments of `fit` instead:
    output for --output, resume='runs/x' for --resume runs/x."""

    def argument(match: re.Match[str]) -> str:
        first, option, value = match.groups()
        if value is not None:
            number = option not in (None, "backbone") and value[-1].isdigit()
            words = {"true": "True", "false": "False"}
            value = value if number else words.get(value) or repr(value.strip("'"))
        shorts = [short for short, key in SHORT.items() if key == (first, option)]
        if option is None or shorts:
            name = shorts[0] if shorts else first
            return name if value is None else f"{name}={value}"
        return f"{first}={{{option!r}: {value or '…'}}}"

    return _ON_COMMAND_LINE.sub(argument, text)


@contextmanager
def _speaking_python(progress: bool) -> Iterator[None]:
    """Within it mistakes are told in the words of `fit`; without progress, what was done to the
    images is not told, which is no warning of anything. The run's summary has it."""
    notes = logging.getLogger("covpool.data")
    level = notes.level
    if not progress:
        notes.setLevel(logging.ERROR)
    try:
        yield
    except ValueError as error:
        error.args = tuple(
            in_python(each) if isinstance(each, str) else each for each in error.args
        )
        raise
    finally:
        notes.setLevel(level)


@dataclass(frozen=True)
class TrainedRun:
    """A run that has been trained. All that it tells is read from its directory when it is asked
    for, so that `TrainedRun("runs/birds")` is an earlier one.

    Attributes:
        directory: where everything is: config.yaml, metrics.csv, curves.svg, …

    Raises:
        ValueError: no run is there.
    """

    directory: Path

    def __init__(self, directory: str | Path) -> None:
        object.__setattr__(self, "directory", RunDirectory.open(Path(directory)).path)

    @cached_property
    def config(self) -> RunConfig:
        """Every option of the run."""
        return RunDirectory(self.directory).read_config()

    @cached_property
    def metrics(self) -> list[Row]:
        """A row for each epoch: loss, top-1 and top-5 in training and test, learning rate, time."""
        return RunDirectory(self.directory).read_metrics()

    @cached_property
    def summary(self) -> Row:
        """What summary.json holds: status, parameters, machine, the rows "final" and "best", …"""
        return RunDirectory(self.directory).read_summary() or {}

    @property
    def final(self) -> Row:
        """The metrics of the last epoch."""
        return self.summary["final"]

    @property
    def best(self) -> Row:
        """The metrics of the epoch with the highest test top-1. As that was chosen by the test
        images themselves, it flatters."""
        return self.summary["best"]

    @property
    def checkpoint(self) -> Path:
        """The weights of the best epoch."""
        return RunDirectory(self.directory).best

    @cached_property
    def trained(self) -> TrainedModel:
        """The network of the best epoch with its classes and its preprocessing of images."""
        return load_model(self.directory)

    @property
    def model(self) -> CovPoolModel:
        """The network of the best epoch, in evaluation mode, on the CPU."""
        return self.trained.model

    def predict(self, images: Any, *, top: int = 5) -> list[Prediction]:
        """As `TrainedModel.predict`, by the network of the best epoch."""
        return self.trained.predict(images, top=top)

    def report(self) -> Path:
        """Write report.html into the run's directory, as `covpool report` does: tables, figures and
        what was taken for what.

        Returns:
            The file.
        """
        from covpool.report.page import render
        from covpool.report.sources import find_runs

        file = self.directory / "report.html"
        replace_text(file, render(find_runs([self.directory])))
        return file


def fit(
    path: str | Path | None = None,
    *,
    backbone: str | None = None,
    pooling: PoolingName | None = None,
    pretrained: bool | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    optim: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    recipe: str | None = None,
    config: RunConfig | None = None,
    output: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
) -> TrainedRun:
    """Train a network on a folder of class folders, or on any other data set of `covpool train`,
    which does the same: same options, same defaults, same files.

    What is not given stays as the recipe, the configuration or the resumed run has it, else at its
    default. Only Ctrl-C, SIGTERM and SIGUSR1 are taken meanwhile, where this is the main thread;
    afterwards signals, threads and the state of torch's generator are as they were.

    A mistake is told before anything is trained. In mid-run training may end by `Interrupted` (a
    signal; no `Exception`), `TrainingDiverged` (the loss or the weights ceased to be finite),
    `DataError` (an image that cannot be read), `StorageError` (a full disk) or ChildProcessError (a
    process that was killed). All but the second say how to go on.

    Args:
        path: the images, `data.root`; None: the embedded typefaces, by their recipe.
        backbone: small-convnet, alexnet, or a model of timm, `model.backbone`.
        pooling: a name that `covpool methods` lists, or gap for plain averaging, `model.method`.
        pretrained: whether to start from timm's ImageNet weights, `model.pretrained`.
        image_size: side of the square images that the network sees, `data.image_size`.
        batch_size: images in a batch, `data.batch_size`.
        learning_rate: at the start, after any warm-up, `optim.learning_rate`.
        epochs: passes over the training images, `train.epochs`.
        seed: of everything random, `train.seed`.
        data: further options of the images by name, as in {"evaluate": "validation"}; all are
            listed by `covpool train --help-all`.
        model: further options of the network and its pooling.
        optim: further options of the optimiser.
        train: further options of the course of the run and of the machine.
        recipe: start from this one of `covpool recipes`.
        config: start from another run's configuration, such as `run.config`.
        output: the run's new directory; None: a new one below runs/.
        resume: go on with the run in this directory, whose options then hold but for those that
            may change (`train.epochs`, where it runs); "auto": with `output` where it is a run,
            which is returned as it is where it has finished, else start it.
        progress: whether to print what is trained and a line for each epoch.

    Returns:
        What was trained, a `TrainedRun`.

    Raises:
        ValueError, OSError: a mistake in the options or in the images.

    >>> run = covpool.fit("birds", backbone="resnet50", pretrained=True)        # doctest: +SKIP
    >>> run.final["test_top1"], run.directory                                   # doctest: +SKIP
    >>> run.predict("image.jpg")[0].likeliest                                   # doctest: +SKIP
    """
    short = {
        "path": path,
        "image_size": image_size,
        "batch_size": batch_size,
        "backbone": backbone,
        "pooling": pooling,
        "pretrained": pretrained,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "seed": seed,
    }
    groups = {"data": data, "model": model, "optim": optim, "train": train}
    given = options_of(short, {name: options or {} for name, options in groups.items()})
    with _speaking_python(progress):
        return _fit(given, recipe, config, output, resume, progress)


def _fit(
    given: "Given",
    recipe: str | None,
    config: RunConfig | None,
    output: str | Path | None,
    resume: str | Path | None,
    progress: bool,
) -> TrainedRun:
    earlier, target = (None if name is None else Path(name) for name in (resume, output))
    if earlier == AUTO and target is None:
        raise ValueError("resume='auto' needs output, the run directory to go on with or to start")
    begin = starting_point(given, recipe=recipe, config=config, resume=earlier)
    made = with_options(begin.config if isinstance(begin, Recipe) else begin, given)
    if isinstance(begin, Recipe):
        begin.check(made)

    def tell(text: str) -> None:
        if progress:
            print(in_python(text))

    default = begin if recipe is config is None and earlier in (None, AUTO) else None
    with prepared_run(made, output=target, resume=earlier, default=default) as prepared:
        try:
            return prepared.train(tell, report=progress)
        except (Interrupted, DataError, ChildProcessError, StorageError) as error:
            error.add_note(f"go on with: covpool.fit(resume={str(prepared.directory.path)!r})")
            raise


def _nothing(text: str) -> None:
    pass


Given = Mapping[str, Mapping[str, Any]]
"""Options by group and name, those alone that were given."""


def options_of(short: Mapping[str, Any], groups: Given) -> dict[str, dict[str, Any]]:
    """The options that arguments of `fit` stand for.

    Raises:
        ValueError: an unknown option, or one that is given twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for group, options in groups.items():
        if not isinstance(options, Mapping):
            raise ValueError(f"{group} takes a mapping of options, not {options!r}")
        known = RunConfig().to_dict()[group]
        for name in options:
            choose(f"option of {group}", name, known)
        found[group] = {name: _plain(value) for name, value in options.items()}
    for name, value in short.items():
        if value is None:
            continue
        group, option = SHORT[name]
        if option in found[group]:
            raise ValueError(
                f"{group}.{option} is given twice, as {name}={value!r} and as {group}="
                f"{{{option!r}: {found[group][option]!r}}}; give one"
            )
        found[group][option] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def starting_point(
    given: Given, *, recipe: str | None, config: RunConfig | None, resume: Path | None
) -> Recipe | RunConfig:
    """What holds where an option is not given.

    Raises:
        ValueError: more than one of these, no such recipe, or no such run.
    """
    sources = {"recipe": recipe, "config": config, "resume": None if resume == AUTO else resume}
    named = [name for name, value in sources.items() if value is not None]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} exclude each other: give one to start from")
    if resume is not None and resume != AUTO:
        return RunDirectory.open(resume).read_config()
    if config is not None:
        if not isinstance(config, RunConfig):
            raise ValueError(
                f"config takes a run's configuration, such as run.config, not {config!r}"
            )
        return config
    return (default_recipe(given) if recipe is None else read_recipe(recipe)) or RunConfig()


def with_options(config: RunConfig, given: Given) -> RunConfig:
    """The configuration with some options changed.

    Raises:
        ValueError: a value that does not fit.
    """
    return RunConfig.from_dict(
        {group: {**options, **given[group]} for group, options in config.to_dict().items()}
    )


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run that nothing stands in the way of any more.

    Attributes:
        directory: the run's, which no other process writes meanwhile.
        job: what to train; None: it has finished.
        checkpoint: where to go on from.
        note: what is to be told first.
    """

    directory: RunDirectory
    job: Job | None
    checkpoint: Path | None = None
    note: str | None = None

    def train(self, tell: Tell, *, report: bool = True) -> TrainedRun:
        """Train to the end.

        Args:
            tell: called with each line for people.
            report: whether to show progress.

        Raises:
            Interrupted, TrainingDiverged, DataError, StorageError, ChildProcessError: as
                `covpool.train.engine.train`.
        """
        if not main_process():
            tell = _nothing
        if self.note is not None:
            tell(self.note)
        path, job = self.directory.path, self.job
        if job is None:
            return TrainedRun(path)
        tell(job.describe())
        if job.start is not None:
            tell(job.start)
        tell(f"{'going on in' if self.checkpoint else 'writing to'} {path}")
        written = train(job, self.directory, checkpoint=self.checkpoint, report=report)
        run = TrainedRun(written.path)
        if main_process():  # it has written the summary, and alone tells
            for name, row in (("Final", run.final), ("Best", run.best)):
                tell(
                    f"{name:5}  top-1 {100 * row['test_top1']:.2f}%  "
                    f"top-5 {100 * row['test_top5']:.2f}%  (epoch {row['epoch']})"
                )
            tell(f"summary, curves and checkpoints: {path}")
        return run


@contextmanager
def prepared_run(
    config: RunConfig,
    *,
    output: Path | None = None,
    resume: Path | None = None,
    default: Recipe | RunConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[PreparedRun]:
    """Within it a run can be trained, and its directory is this process's alone.

    Args:
        config: the run's.
        output: its new directory; None: a new one below runs/.
        resume: the directory of an earlier run to go on with; `AUTO`: `output`, where it is a run.
        default: what the configuration's options were laid over, where that was not named.
        progress: called with (files checked, files in all).

    Raises:
        ValueError, OSError: a mistake in the configuration, in the images or in the directory.
        RunFinished: nothing is left to do of the run that `resume` names.
    """
    threads = torch.get_num_threads()
    with ExitStack() as claims, torch.random.fork_rng(devices=[]):
        try:
            yield _prepare(config, output, resume, default, progress, claims)
        finally:
            torch.set_num_threads(threads)


def _prepare(
    config: RunConfig,
    output: Path | None,
    resume: Path | None,
    default: Recipe | RunConfig | None,
    progress: Callable[[int, int], None] | None,
    claims: ExitStack,
) -> PreparedRun:
    writes = main_process()  # the first of several processes

    def claim(path: Path) -> RunDirectory:
        if writes:
            claims.enter_context(claimed(path))
        return RunDirectory(path)

    automatic = resume == AUTO
    earlier = output if automatic else resume
    if earlier is not None and (not automatic or (earlier / "config.yaml").is_file()):
        directory = claim(RunDirectory.open(earlier).path)
        _check_same(config, directory)
        try:
            job, checkpoint = prepare_resume(config, directory, progress=progress)
        except RunFinished as error:
            if not automatic and not error.reduced:
                raise
            return PreparedRun(directory=directory, job=None, note=str(error))
        if writes:
            directory.write_config(config)
        note = f"no checkpoint yet in {earlier}: starting from the beginning"
        return PreparedRun(
            directory=directory, job=job, checkpoint=checkpoint, note=None if checkpoint else note
        )
    check_names(config)
    if output is not None and writes:
        refuse_existing(output)
    job = prepare(config, progress=progress)
    label = f"{job.splits.name}-{config.model.backbone}-{job.schedule.label}"
    path = output or RUNS / file_name(label)
    if not writes:  # it is given the first process's directory when training begins
        return PreparedRun(directory=RunDirectory(path), job=job)
    directory = claim(path if output else make_numbered(path))
    return PreparedRun(
        directory=RunDirectory.create(directory.path, config),
        job=job,
        note=said_defaults(job, default),
    )


def _check_same(config: RunConfig, directory: RunDirectory) -> None:
    """Raise a ValueError where the options are not those that the run was started with."""
    if found := difference(directory.read_config(), config, free=RESUME_KEYS):
        key, *values = found
        then, now = ("null" if value is None else repr(value) for value in values)
        raise ValueError(
            f"run {directory.path} was started with {key} {then}, not {now}; give the same "
            "options, or another --output"
        )
