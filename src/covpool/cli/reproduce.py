"""`covpool reproduce`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from covpool.cli import experiment
from covpool.cli.console import PlainConsole
from covpool.cli.parsing import (
    FileProgress,
    Given,
    checking_files,
    nearest,
    refuse_methods,
    users_input,
)
from covpool.experiments.observations import observations
from covpool.experiments.reproduce import CHECKS, Plan, make_run_set, plan, results_of
from covpool.experiments.results import SMALL, RunSet
from covpool.experiments.runs import RUNS, Run, check_same_options, open_folder
from covpool.experiments.sheet import Sheet
from covpool.experiments.targets import TARGETS
from covpool.machine import available_cores
from covpool.poolings import check_pooling
from covpool.text import quantity
from covpool.train.config import RunConfig
from covpool.train.job import Job
from covpool.train.recipe import read_recipe
from covpool.train.run_directory import replace_text

ALL = "all"

MOST_JOBS = 8
"""As many runs at a time as --jobs is by itself at most."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for, checked; each recipe's runs with one of their jobs."""

    targets: list[str]
    plan: Plan
    prepared: list[tuple[RunSet, Job]]
    jobs: int
    output: Path
    dry_run: bool

    @property
    def runs(self) -> list[Run]:
        """All runs, seed by seed."""
        found = [run for run_set, _ in self.prepared for run in run_set.runs.values()]
        return sorted(found, key=lambda run: run.seed)


def run(given: Given) -> int:
    """Train what is missing, write the sheets, and return the exit status."""
    with users_input(), checking_files() as progress:
        request = _prepare(given, progress)
    console = PlainConsole()
    for runs, _ in request.prepared:
        console.print(
            f"{runs.about}\n{quantity(len(runs.runs), 'run')} ("
            f"{quantity(len(runs.arms), 'way to train', 'ways to train')}, "
            f"{quantity(len(runs.seeds), 'seed')}; {experiment.settled(runs.runs.values())}), "
            f"{request.jobs} at a time, in {request.output / RUNS / runs.name}"
        )
    if request.dry_run:
        _estimate(request, console)
        return 0
    return experiment.holding_folder(request.output, lambda: _run(request, console))


def _run(request: Request, console: Console) -> int:
    with users_input():
        for runs, _ in request.prepared:
            open_folder(request.output / RUNS / runs.name, runs.config)
    failures = (
        experiment.run_all(request.runs, request.jobs, console, free=CHECKS) if request.runs else {}
    )
    with users_input():
        sheets = make_sheets(request, [runs.ended(failures) for runs, _ in request.prepared])
        for sheet in sheets:
            sheet.write(request.output)
            experiment.show(sheet, console)
        replace_text(request.output / "summary.md", summary(sheets, request.plan))
    for name, reason in request.plan.left_out.items():
        console.print(f"{name} is left out: {reason}")
    console.print(f"tables, figures and runs: {request.output}")
    return 1 if any(sheet.problems for sheet in sheets) else 0


def make_sheets(request: Request, run_sets: Sequence[RunSet]) -> list[Sheet]:
    """The targets' sheets, and that of the observations where anything was trained."""
    targets = [name for name in request.targets if name not in request.plan.left_out]
    results = results_of(run_sets, targets, request.output) if run_sets else {}
    sheets = [TARGETS[name].make(results) for name in targets]
    return [*sheets, observations(results)] if run_sets else sheets


def summary(sheets: Sequence[Sheet], made: Plan) -> str:
    """An overview in Markdown."""
    lines = ["# The paper's tables and figures", ""]
    lines += [f"- [{sheet.title}]({sheet.name}.md): {sheet.scale}" for sheet in sheets]
    lines += [f"- {name} is left out: {reason}" for name, reason in made.left_out.items()]
    seen = next((sheet for sheet in sheets if sheet.name == "observations"), None)
    if seen is not None:
        lines += ["", seen.markdown().replace("\n## ", "\n### ").replace("# ", "## ", 1)]
    return "\n".join(lines).rstrip() + "\n"


def _prepare(given: Given, progress: FileProgress) -> Request:
    own, config = given.own, _config(given, SMALL)
    targets = _targets(own.targets)
    experiment.check_counts(own)
    jobs = own.jobs or (min(MOST_JOBS, available_cores()) if config.data.root is None else 1)
    methods = own.methods and [check_pooling(name) for name in experiment.listed(own.methods)]
    made = plan(config, targets, methods)
    for name, reason in made.left_out.items():
        if ALL not in own.targets:
            raise ValueError(f"{name} cannot be made: {reason}")
    prepared = []
    for recipe, arms in made.arms.items():
        config = _config(given, recipe)
        if recipe != SMALL:
            read_recipe(recipe).check(config)
        checked = _unchecked(config) if prepared else config
        job = experiment.prepare_arms(checked, arms, own.output / RUNS / recipe, progress)
        runs = make_run_set(
            recipe, config, arms, seeds=own.seeds, output=own.output, jobs=jobs, job=job
        )
        for each in runs.runs.values():
            check_same_options(each, CHECKS)
        prepared.append((runs, job))
    return Request(
        targets=targets,
        plan=made,
        prepared=prepared,
        jobs=jobs,
        output=own.output,
        dry_run=own.dry_run,
    )


def _unchecked(config: RunConfig) -> RunConfig:
    """Without the check of image files, which an earlier recipe's job has done."""
    if config.data.skip_damaged:
        return config
    return replace(config, data=replace(config.data, check="none"))


def _config(given: Given, recipe: str) -> RunConfig:
    config = given.config(read_recipe(recipe).config)
    refuse_methods(config, "the targets say what is trained, and --methods restricts it")
    return config


def _targets(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in TARGETS and name != ALL:
            raise ValueError(
                f"unknown target {name!r}{nearest(name, [*TARGETS, ALL])}; choose from "
                f"{', '.join(TARGETS)}, {ALL}"
            )
    return [name for name in TARGETS if ALL in names or name in names]


def _estimate(request: Request, console: Console) -> None:
    lines = [
        line
        for runs, job in request.prepared
        for line in experiment.show_plan(runs.config, [*runs.runs.values()], job, console)
    ]
    if lines:
        experiment.show_total(lines, request.jobs, request.output, console)
    for name in request.targets:
        if not TARGETS[name].trained:
            console.print(f"{name} is computed, in seconds")
    for name, reason in request.plan.left_out.items():
        console.print(f"{name} is left out: {reason}")
