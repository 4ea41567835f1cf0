"""`covpool probe`."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from covpool.cli import experiment
from covpool.cli.console import PlainConsole
from covpool.cli.parsing import Given, checking_files, holding, users_input
from covpool.cli.probe_request import Request, check_heads, check_options, free_bytes, prepare
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
    Views,
    compute,
    feature_files,
    stage_name,
)
from covpool.experiments.frozen.plan import Frozen, HeadPlan, bundled
from covpool.experiments.frozen.reduction import Reduction, forget_maps, maps_bytes
from covpool.experiments.frozen.summary import make_sheet
from covpool.experiments.frozen.work import make_bundle
from covpool.experiments.grid import Work
from covpool.experiments.outcome import Outcome
from covpool.experiments.runs import RUNS, Run, threads_of
from covpool.experiments.sheet import Sheet, Table
from covpool.experiments.study import FIRST_TUNING_SEED, Study
from covpool.text import quantity
from covpool.train.allocator import keep_freed_memory
from covpool.train.interruption import StopRequest
from covpool.train.progress import duration


def run(given: Given) -> int:
    """Compute the features, train the heads, summarise; return the exit status."""
    keep_freed_memory()
    with users_input(), checking_files() as progress:
        request = prepare(given, progress)
    console = PlainConsole()
    console.print(request.about)
    with users_input():
        check_options(request)
        extractor = Extractor(request.job, request.stages)
        views = Views.of(request.job)
        with console.status("reading the images"):
            digest = views.digest()
        files = feature_files(extractor, views, request.config, request.cache, digest)
        for file in files:
            request.frozen(file).check_runs(request.folder(file.stage))
            check_heads(request, file)
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
            _learn_reductions(request, request.frozen(file), console)
    sheets = []
    for file in files:
        stage = StageRequest.of(request, request.frozen(file))
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
        study, folder = request.study(stage), request.folder(stage)
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
            told=request.about,
        )


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
            frozen = request.frozen(file)
            torch.set_num_threads(together)
            for width in _widths(request, frozen):
                alone.append(reduction_line(frozen, width, len(request.seeds)))
                disk += (1 + len(request.seeds)) * maps_bytes(frozen, width)
            torch.set_num_threads(threads_of(request.config, request.jobs))
            for runs in request.planned(file.stage):
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
    free = free_bytes(request.cache)
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


def _tell_sizes(files: Sequence[FeatureFile], console: Console) -> None:
    for file in files:
        rows, channels, height, width = file.shape
        there = "there already" if file.whole else f"{file.done:,} of them there"
        console.print(
            f"features of {stage_name(file.stage)}: {rows:,} maps {channels}×{height}×{width}, "
            f"{file.bytes / 1e6:,.0f} MB, {there}, in {file.folder}"
        )
