"""`covpool compare`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from covpool.cli import experiment, say
from covpool.cli.console import PlainConsole
from covpool.cli.parsing import (
    FileProgress,
    Given,
    checking_files,
    chosen_recipe,
    users_input,
)
from covpool.experiments.arms import standalone
from covpool.experiments.compare import make_sheet
from covpool.experiments.estimate import estimate
from covpool.experiments.results import RunSet
from covpool.experiments.runs import make_runs, open_folder, threads_of
from covpool.experiments.sheet import Sheet
from covpool.poolings import check_pooling, method_or_pooling
from covpool.text import file_name, quantity
from covpool.train.config import ModelConfig, RunConfig
from covpool.train.job import Job
from covpool.train.probes import warn_of_unmeasured
from covpool.train.recipe import said_defaults
from covpool.train.run_directory import csv_text, replace_text


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for, checked."""

    runs: RunSet
    job: Job
    jobs: int
    folder: Path
    dry_run: bool


def run(given: Given) -> int:
    """Run or continue the grid, print its table, and return the exit status."""
    with users_input(), checking_files() as progress:
        request = _prepare(given, progress)
    console = PlainConsole()
    if not request.dry_run:
        return experiment.holding_folder(request.folder, lambda: _run(request, console))
    _announce(request, console)
    runs = [*request.runs.runs.values()]
    with console.status("measuring steps") as status:
        lines = estimate(request.runs.config, runs, job=request.job, report=status.update)
    experiment.show_plan(lines, runs, console)
    experiment.show_total(lines, request.jobs, request.folder, console)
    return 0


def _run(request: Request, console: Console) -> int:
    folder, config = request.folder, request.runs.config
    with users_input():
        open_folder(folder, config)
    _announce(request, console)
    failures = experiment.run_all(request.runs.runs.values(), request.jobs, console)
    sheet = make_sheet(request.runs.ended(failures), request.jobs)
    replace_text(folder / "comparison.csv", csv_text(sheet.data["table"]))
    sheet.write(folder)
    show(sheet, console)
    console.print(f"table and runs: {folder}")
    return 1 if sheet.problems else 0


def _announce(request: Request, console: Console) -> None:
    runs, config = request.runs, request.runs.config
    held_out = ", evaluated on held-out training images, not on the test split"
    console.print(
        f"{quantity(len(runs.runs), 'run')} ({quantity(len(runs.arms), 'method')}, "
        f"{quantity(len(runs.seeds), 'seed')}), {quantity(config.train.epochs, 'epoch')} each, "
        f"{request.jobs} at a time, in {request.folder}"
        f"{held_out * (config.data.evaluate != 'test')}"
    )


def show(sheet: Sheet, console: Console) -> None:
    """Print the table, and what is missing from it."""
    (table,) = sheet.tables
    if console.is_terminal:
        drawn = Table(*table.columns)
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
    else:
        console.print(table.markdown())
    for problem in sheet.problems:
        console.print(f"not in the means: {problem}")


def _prepare(given: Given, progress: FileProgress) -> Request:
    own, recipe = given.own, chosen_recipe(given)
    config = given.config(recipe and recipe.config)
    if recipe is not None:
        recipe.check(config)
    methods = [check_pooling(name) for name in experiment.listed(own.methods)]
    experiment.check_counts(own)
    for option in ("schedule", "hybrid"):
        if (value := getattr(config.model, option)) is not None:
            raise ValueError(
                f"model.{option} {value!r} cannot be used here: compare gives each run one method "
                "of --methods"
            )
    if config.model.method not in (ModelConfig.method, *methods):
        raise ValueError(
            f"model.method {config.model.method!r} would have no effect here: --methods says what "
            "is compared"
        )
    _check_constants(config, methods)
    arms = standalone(*methods)
    job = experiment.prepare_arms(config, arms, own.output or Path("FOLDER"), progress)
    if line := said_defaults(job, None if own.recipe else recipe or RunConfig()):
        say(line)
    label = f"compare-{job.splits.name}-{config.model.backbone}"
    folder = own.output or Path("runs") / file_name(label)
    seeds = range(config.train.seed, config.train.seed + own.seeds)
    threads = threads_of(config, own.jobs)
    runs = make_runs(config, dict.fromkeys(arms, seeds), folder, threads=threads)
    if "gap" in methods[1:]:  # prepare() already warned about the first
        warn_of_unmeasured(config, "gap")
    return Request(
        runs=RunSet(name="comparison", config=config, runs=runs),
        job=job,
        jobs=own.jobs,
        folder=folder,
        dry_run=own.dry_run,
    )


def _check_constants(config: RunConfig, methods: Sequence[str]) -> None:
    """Each method takes those of the constants that it has; one that none has is a mistake."""
    known = sorted({key for name in methods for key in method_or_pooling(name).constants})
    for constant in config.model.constants:
        if constant not in known:
            raise ValueError(
                f"model.constants.{constant}: {', '.join(methods)} have no such constant; theirs: "
                f"{', '.join(known) or 'none'}"
            )
