"""`covpool probe`."""

import math
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from covpool.cli import experiment
from covpool.cli.console import PlainConsole
from covpool.cli.parsers import DECIDED, NO_EFFECT
from covpool.cli.parsing import (
    FileProgress,
    Given,
    checking_files,
    holding,
    refuse_methods,
    users_input,
)
from covpool.data.layouts import layout_name
from covpool.data.selection import validation_numbers
from covpool.experiments.arms import Arm
from covpool.experiments.frozen.estimate import (
    RUN_BYTES,
    Line,
    bundle_lines,
    features_seconds,
    reduction_line,
)
from covpool.experiments.frozen.features import (
    Extractor,
    FeatureFile,
    Stage,
    Views,
    compute,
    feature_files,
    stage_name,
)
from covpool.experiments.frozen.plan import Frozen, HeadPlan, bundled, chosen_arms
from covpool.experiments.frozen.reduction import Reduction, forget_maps, maps_bytes
from covpool.experiments.frozen.summary import make_sheet, reference_arms
from covpool.experiments.frozen.work import made_of, make_bundle
from covpool.experiments.grid import Work
from covpool.experiments.outcome import Outcome
from covpool.experiments.runs import RUNS, Run, check_same_options, threads_of
from covpool.experiments.sheet import Sheet, Table
from covpool.experiments.study import (
    FIRST_TUNING_SEED,
    RATES,
    TUNING,
    Study,
    final_runs,
    tuning_runs,
)
from covpool.machine import available_cores
from covpool.text import file_name, quantity
from covpool.train.allocator import keep_freed_memory
from covpool.train.config import RunConfig
from covpool.train.interruption import StopRequest
from covpool.train.job import Job, check_names
from covpool.train.progress import duration
from covpool.train.run_directory import is_free

SHARED, OWN = "shared", "own"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for, checked."""

    config: RunConfig
    arms: tuple[Arm, ...]
    stages: tuple[Stage, ...]
    shared: bool
    rates: tuple[float, ...]
    decays: tuple[float, ...]
    seeds: range
    jobs: int
    cache: Path
    output: Path
    job: Job
    kept: tuple[int, ...]
    held: tuple[int, ...]
    dry_run: bool


def run(given: Given) -> int:
    """Compute the features, train the heads, summarise; return the exit status."""
    keep_freed_memory()
    with users_input(), checking_files() as progress:
        request = _prepare(given, progress)
    console = PlainConsole()
    console.print(_about(request))
    with users_input():
        _check_options(request)
        extractor = Extractor(request.job, request.stages)
        views = Views.of(request.job)
        with console.status("reading the images"):
            digest = views.digest()
        files = feature_files(extractor, views, request.config, request.cache, digest)
        for file in files:
            _frozen(request, file).check_runs(_folder(request, file.stage))
            _check_heads(request, file)
    _tell_sizes(files, console)
    if request.dry_run:
        _plan(request, extractor, views, files, console)
        return 0
    return experiment.holding_folder(
        request.output, lambda: _run(request, extractor, views, files, console)
    )


def _run(
    request: Request,
    extractor: Extractor,
    views: Views,
    files: Sequence[FeatureFile],
    console: Console,
) -> int:
    request.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads_of(request.config, 1))
    with ExitStack() as stack:
        for file in files:
            stack.enter_context(holding(file.folder))
        with FeatureProgress(console) as progress, users_input():
            compute(extractor, views, files, progress.show)
        for file in files:
            _learn_reductions(request, _frozen(request, file), console)
    sheets = []
    for file in files:
        stage = StageRequest.of(request, _frozen(request, file))
        sheets.append(experiment.train_study(stage, console))
        forget_maps(file.folder)
    if len(sheets) > 1:
        sheet = _of_stages(request, sheets)
        sheet.write(request.output)
        console.print(f"\n{sheet.markdown()}")
    console.print(f"summary and runs: {request.output}")
    return 1 if any(sheet.problems for sheet in sheets) else 0


class FeatureProgress:
    """A bar with the time left where there is a terminal, else a line each tenth."""

    def __init__(self, console: Console) -> None:
        self.console, self.tenths, self.began = console, 0, time.monotonic()
        self.first: int | None = None
        self.bar = Progress(
            TextColumn("computing features"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total} views  {task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("features", total=None, left="")

    def __enter__(self) -> "FeatureProgress":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def show(self, done: int, total: int) -> None:
        """So many views of all are there."""
        if self.first is None:
            self.first, self.began = done, time.monotonic()
        seconds, here = time.monotonic() - self.began, done - self.first
        left = f"{duration(seconds / here * (total - done))} left" if here else ""
        self.bar.update(self.task, completed=done, total=total, left=left)
        tenths = 10 * done // total
        if not self.console.is_terminal and tenths > self.tenths:
            self.tenths = tenths
            self.console.print(f"features: {done:,} of {total:,} views  {left}")


@dataclass(frozen=True, kw_only=True)
class StageRequest(experiment.Request):
    """The study of a stage's features.

    Attributes:
        frozen: what heads are trained on.
        told: what is compared, in a sentence.
    """

    frozen: Frozen
    told: str
    work: ClassVar[Work | None] = staticmethod(make_bundle)

    def about(self, study: Study) -> str:
        return self.told

    def together(self, runs: Sequence[Run]) -> Sequence[Run]:
        return bundled(runs, self.frozen)

    def summary(self, outcome: Outcome) -> Sheet:
        return make_sheet(outcome, self.frozen)

    @classmethod
    def of(cls, request: Request, frozen: Frozen) -> "StageRequest":
        """That of a stage."""
        stage = frozen.features.stage
        study, folder = _study(request, stage), _folder(request, stage)
        return cls(
            study=study,
            whole=study,
            job=request.job,
            rates=None,
            output=folder,
            runs=folder / RUNS,
            jobs=request.jobs,
            dry_run=request.dry_run,
            frozen=frozen,
            told=_about(request),
        )


def _study(request: Request, stage: Stage) -> Study:
    config, name = of_stage(request.config, stage), request.job.splits.name
    return Study(
        name=f"probe-{name}",
        title=f"Poolings of frozen features: {name}, {config.model.backbone}",
        arms=request.arms,
        references=reference_arms(request.arms),
        seeds=len(request.seeds),
        rates=request.rates,
        decays=request.decays,
        config=config,
    )


def _planned(request: Request, stage: Stage) -> tuple[list[Run], list[Run]]:
    """Trials, and the runs that count before their rates are chosen."""
    study, folder = _study(request, stage), _folder(request, stage)
    threads = threads_of(study.config, request.jobs)
    guess = {"rate": study.rates[0], "weight_decay": study.decays[0]}
    rates = dict.fromkeys((arm.label for arm in study.arms), guess)
    runs = final_runs(study, rates, folder / RUNS, threads)
    return tuning_runs(study, folder, threads), [*runs.values()]


def of_stage(config: RunConfig, stage: Stage) -> RunConfig:
    """The configuration of runs on the features of a stage."""
    return replace(config, model=replace(config.model, feature_stage=stage))


def _folder(request: Request, stage: Stage) -> Path:
    """Of the runs of a stage: the output itself where there is one stage."""
    return request.output / stage_name(stage) if len(request.stages) > 1 else request.output


def _frozen(request: Request, file: FeatureFile) -> Frozen:
    splits = request.job.splits
    return Frozen(
        features=file,
        name=splits.name,
        classes=splits.classes,
        labels=tuple(splits.train.labels),
        test_labels=tuple(splits.test.labels),
        kept=request.kept,
        held=request.held,
        mirrored=request.config.data.augment == "flip",
        reduction=of_stage(request.config, file.stage) if request.shared else None,
        notes=splits.notes,
    )


def _check_options(request: Request) -> None:
    """Refuse an output folder whose trials or runs were begun with other options, before any work.

    Raises:
        ValueError: they were.
    """
    chosen_later = (("optim", "learning_rate"), ("optim", "weight_decay"))
    for stage in request.stages:
        trials, runs = _planned(request, stage)
        for run in trials:
            check_same_options(run)
        for run in runs:
            check_same_options(run, chosen_later)


def _widths(request: Request, frozen: Frozen) -> list[int]:
    """Channels after the reductions that the poolings share."""
    if frozen.reduction is None:
        return []
    channels, classes = frozen.features.shape[1], len(frozen.classes)
    heads = [HeadPlan.of(arm.config(frozen.reduction), channels, classes) for arm in request.arms]
    return sorted({head.reduced for head in heads if head.reduced is not None})


def _learn_reductions(request: Request, frozen: Frozen, console: Console) -> None:
    """That of the trials, from the images that they are trained on, and of each seed, from all."""
    seeds = [FIRST_TUNING_SEED, *request.seeds]
    with StopRequest(announce=True) as stop, console.status("") as status, users_input():
        for width in _widths(request, frozen):
            for place, seed in enumerate(seeds):
                told = f"channel reduction to {width}, {place + 1} of {len(seeds)}"
                status.update(f"learning the {told}")
                console.print(told)
                reduction = Reduction(frozen=frozen, channels=width, seed=seed, trial=not place)
                reduction.learned(stop.check)
        stop.check()


def _plan(
    request: Request,
    extractor: Extractor,
    views: Views,
    files: Sequence[FeatureFile],
    console: Console,
) -> None:
    """Say what it would take: a line for each part that is not there yet, then the whole."""
    together = threads_of(request.config, 1)
    torch.set_num_threads(together)
    alone = [Line(name="features", runs=0, seconds=features_seconds(extractor, views, files))]
    beside: list[Line] = []
    disk = sum(file.bytes for file in files if not file.whole)
    with console.status("measuring steps") as status:
        for file in files:
            frozen = _frozen(request, file)
            torch.set_num_threads(together)
            for width in _widths(request, frozen):
                alone.append(reduction_line(frozen, width, len(request.seeds)))
                disk += (1 + len(request.seeds)) * maps_bytes(frozen, width)
            torch.set_num_threads(threads_of(request.config, request.jobs))
            for runs in _planned(request, file.stage):
                beside += bundle_lines(bundled(runs, frozen), frozen, status.update)
    of_pooling: dict[str, tuple[int, float]] = {}
    for line in beside:
        number, seconds = of_pooling.get(line.name, (0, 0.0))
        of_pooling[line.name] = number + line.runs, seconds + line.seconds
    for line in alone:
        console.print(f"  {line.name}: {duration(line.seconds)}")
    for name, (number, seconds) in of_pooling.items():
        console.print(
            f"  {name}: {quantity(number, 'trial or run', 'trials and runs')}, {duration(seconds)}"
        )
    total = sum(line.seconds for line in alone)
    total += sum(line.seconds for line in beside) / request.jobs
    disk += RUN_BYTES * sum(line.runs for line in beside)
    free = _free_bytes(request.cache)
    console.print(
        f"about {duration(total)} with {request.jobs} at a time, by steps measured here\n"
        f"about {disk / 1e6:,.0f} MB on disk, of {free / 1e6:,.0f} MB free"
    )
    if disk > free:
        console.print("this is more than there is free: choose other --features and --output")


def _of_stages(request: Request, sheets: Sequence[Sheet]) -> Sheet:
    """The accuracies of all stages in one table."""
    tables = [next(t for t in sheet.tables if t.heading == "Accuracies") for sheet in sheets]
    by_stage = [{row[0]: row[3] for row in table.rows} for table in tables]
    names = dict.fromkeys(name for rows in by_stage for name in rows)
    columns = ["Final, mean ± deviation", *map(stage_name, request.stages)]
    rows = [[name, *(own.get(name, "–") for own in by_stage)] for name in names]
    return Sheet(
        name="summary",
        title=f"Poolings of frozen features, by stage: {request.config.model.backbone}",
        tables=[Table(columns=columns, rows=rows)],
        data={"stages": [stage_name(stage) for stage in request.stages]},
        problems=[problem for sheet in sheets for problem in sheet.problems],
    )


def _prepare(given: Given, progress: FileProgress) -> Request:
    own, config = given.own, given.config(given.parser.base)
    _check_free(config)
    experiment.check_counts(own)
    if own.reduction not in (SHARED, OWN):
        raise ValueError(f"--reduction must be {SHARED} or {OWN}, not {own.reduction!r}")
    arms = chosen_arms(own.poolings)
    stages = _stages(own.stages, config)
    rates = _numbers("rates", own.rates, least=math.ulp(0.0))
    decays = _numbers("decays", own.decays, least=0.0)
    first, *more = stages
    config = of_stage(config, None if more else first)
    layout_name(config.data)  # that the images are there at all
    if not config.model.pretrained and config.model.init_from is None:
        raise ValueError(
            "probe needs pretrained weights: add --model.pretrained true or --model.init_from PATH"
        )
    for arm in arms:
        check_names(arm.config(config))
    job = experiment.prepare_arms(config, [Arm("gap")], own.output or Path("FOLDER"), progress)
    label = f"probe-{job.splits.name}-{config.model.backbone}"
    output = own.output or Path("runs") / file_name(label)
    _check_output(output)
    trained = job.splits.train
    kept, held = validation_numbers(
        job.splits.classes, (trained.source, trained.labels), config.data
    )
    seed = config.train.seed
    return Request(
        config=config,
        arms=arms,
        stages=stages,
        shared=own.reduction == SHARED,
        rates=rates,
        decays=decays,
        seeds=range(seed, seed + own.seeds),
        jobs=own.jobs or available_cores(),
        cache=own.features,
        output=output,
        job=job,
        kept=tuple(kept),
        held=tuple(held),
        dry_run=own.dry_run,
    )


def _check_free(config: RunConfig) -> None:
    """Refuse options that are decided here, or that heads are not trained by."""
    refuse_methods(config, "--poolings says what is compared")
    options = config.to_dict()
    for group, fields in DECIDED.items():
        for name, allowed in fields.items():
            if (value := options[group][name]) not in allowed:
                raise ValueError(
                    f"{group}.{name} {value!r} cannot be used here: a probe takes "
                    f"{' or '.join(allowed)}"
                )
    defaults = RunConfig().to_dict()
    for group, names in NO_EFFECT.items():
        for name in names:
            if (value := options[group][name]) != defaults[group][name]:
                raise ValueError(
                    f"{group}.{name} {value!r} would have no effect here: a probe trains heads "
                    "on frozen features without it; leave it out"
                )


def _stages(text: str | None, config: RunConfig) -> tuple[Stage, ...]:
    if text is None:
        return (config.model.feature_stage,)
    words = experiment.listed(text)
    for word in words:
        if word != "last" and not word.isdecimal():
            raise ValueError(
                f"--stages {text!r}: {word!r} is no stage; write numbers as in timm's feature_info "
                "and last, as in 3,last"
            )
    return tuple(None if word == "last" else int(word) for word in words)


def _numbers(name: str, text: str, *, least: float) -> tuple[float, ...]:
    try:
        found = tuple(dict.fromkeys(float(word) for word in text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(least <= value < math.inf for value in found):
        what = "above 0" if least else "of at least 0"
        raise ValueError(f"--{name} {text!r} must be numbers {what} with commas between")
    return found


def _check_output(output: Path) -> None:
    """Refuse a folder that holds anything but a probe: its summary would be written over."""
    if is_free(output) or any(output.glob(f"**/{TUNING}")) or any(output.glob(f"**/{RATES}")):
        return
    raise ValueError(f"--output {output} exists and is not a probe's; choose another --output")


def _check_heads(request: Request, file: FeatureFile) -> None:
    """Refuse poolings that cannot be made of such maps, or whose vectors take more than there is.

    Raises:
        ValueError: one of them.
    """
    config, frozen = of_stage(request.config, file.stage), _frozen(request, file)
    free = _free_bytes(request.cache)
    for arm in request.arms:
        made = made_of(arm.config(config), frozen)
        numbers = made.out_features
        needed = 4 * numbers * file.shape[0]
        if made.fixed and needed > free:
            raise ValueError(
                f"pooling {arm.label}: {numbers:,} numbers for each of {file.shape[0]:,} views "
                f"take {needed / 1e9:,.0f} GB, and {free / 1e9:,.0f} GB are free; give a smaller "
                f"model.reduced_channels than {config.model.reduced_channels}, or leave it out of "
                "--poolings"
            )


def _free_bytes(folder: Path) -> int:
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(place).free


def _about(request: Request) -> str:
    splits, config = request.job.splits, request.config
    return (
        f"{splits.name}: {len(splits.classes)} classes, {len(splits.train)} training and "
        f"{quantity(len(splits.test), 'test image')}; {config.model.backbone}, frozen; "
        f"{quantity(len(request.arms), 'pooling')}, "
        f"{quantity(len(request.rates) * len(request.decays), 'trial')} and "
        f"{quantity(len(request.seeds), 'seed')} each, {quantity(config.train.epochs, 'epoch')}."
    )


def _tell_sizes(files: Sequence[FeatureFile], console: Console) -> None:
    for file in files:
        rows, channels, height, width = file.shape
        there = "there already" if file.whole else f"{file.done:,} of them there"
        console.print(
            f"features of {stage_name(file.stage)}: {rows:,} maps {channels}×{height}×{width}, "
            f"{file.bytes / 1e6:,.0f} MB, {there}, in {file.folder}"
        )
