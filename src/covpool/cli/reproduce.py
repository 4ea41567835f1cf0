"""`covpool reproduce`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from covpool.cli import say
from covpool.cli.compare import GridReport
from covpool.cli.console import PlainConsole
from covpool.cli.parsers import reproduce_parser
from covpool.cli.parsing import (
    FileProgress,
    checking_files,
    holding,
    nearest,
    refuse_methods,
    users_input,
)
from covpool.pooling import check_pooling
from covpool.reproduce.arms import NEWTON_SCHULZ
from covpool.reproduce.estimate import seconds_of_runs
from covpool.reproduce.observations import observations
from covpool.reproduce.results import Results, Setting
from covpool.reproduce.runs import (
    RUNS,
    Plan,
    check_earlier,
    config_of,
    make_setting,
    plan,
    results_of,
)
from covpool.reproduce.sheet import Sheet
from covpool.reproduce.targets import SMALL, TARGETS
from covpool.train.cells import Cell, available_cores, check_one_process, open_folder
from covpool.train.config import RunConfig
from covpool.train.grid import run_grid
from covpool.train.interruption import Interrupted
from covpool.train.job import Job, check_names, prepare
from covpool.train.progress import duration
from covpool.train.recipe import read_recipe
from covpool.train.run_directory import replace_text

ALL = "all"

MOST_JOBS = 8
"""As many runs at a time as --jobs is by itself at most."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for, checked."""

    targets: list[str]
    plan: Plan
    settings: list[Setting]
    jobs_of_settings: list[Job]
    jobs: int
    output: Path
    dry_run: bool

    @property
    def cells(self) -> list[Cell]:
        """All runs, seed by seed."""
        cells = [cell for setting in self.settings for cell in setting.cells.values()]
        return sorted(cells, key=lambda cell: cell.seed)


def run(arguments: list[str]) -> int:
    """Train what is missing, write the sheets, and return the exit status."""
    with users_input(), checking_files() as progress:
        request = _prepare(arguments, progress)
    console = PlainConsole()
    _describe(request, console)
    if request.dry_run:
        _estimate(request, console)
        return 0
    with holding(request.output):
        return _run(request, console)


def _run(request: Request, console: Console) -> int:
    failures: dict[str, str] = {}
    if request.cells:
        with users_input():
            for setting in request.settings:
                open_folder(request.output / RUNS / setting.recipe, setting.config)
        try:
            with GridReport(console) as report:
                failures = run_grid(request.cells, request.jobs, report.show)
        except Interrupted as error:
            say("covpool: interrupted; the same command goes on where it stopped", error=True)
            return 128 + error.signal_number
    settings = [replace(setting, failures=failures) for setting in request.settings]
    with users_input():
        sheets = make_sheets(request, settings)
        for sheet in sheets:
            sheet.write(request.output)
            console.print(f"\n{sheet.markdown()}")
        replace_text(request.output / "summary.md", summary(sheets, request.plan))
    for name, reason in request.plan.left_out.items():
        console.print(f"{name} is left out: {reason}")
    console.print(f"tables, figures and runs: {request.output}")
    return 1 if any(sheet.problems for sheet in sheets) else 0


def make_sheets(request: Request, settings: Sequence[Setting]) -> list[Sheet]:
    """The targets' sheets, and that of the observations where anything was trained."""
    targets = [name for name in request.targets if name not in request.plan.left_out]
    results = results_of(settings, targets, request.output) if settings else Results()
    sheets = [TARGETS[name].make(results) for name in targets]
    return [*sheets, observations(results)] if settings else sheets


def summary(sheets: Sequence[Sheet], made: Plan) -> str:
    """An overview in Markdown."""
    lines = ["# The paper's tables and figures", ""]
    lines += [f"- [{sheet.title}]({sheet.name}.md): {sheet.scale}" for sheet in sheets]
    lines += [f"- {name} is left out: {reason}" for name, reason in made.left_out.items()]
    seen = next((sheet for sheet in sheets if sheet.name == "observations"), None)
    if seen is not None:
        lines += ["", seen.markdown().replace("\n## ", "\n### ").replace("# ", "## ", 1)]
    return "\n".join(lines).rstrip() + "\n"


def _prepare(arguments: list[str], progress: FileProgress) -> Request:
    config, own = _parse(arguments, SMALL)
    targets = _targets(own.targets)
    jobs = _jobs(own, config)
    methods = _methods(own.methods)
    if own.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, not {own.seeds}")
    made = plan(config, targets, methods)
    for name, reason in made.left_out.items():
        if ALL not in own.targets:
            raise ValueError(f"{name} cannot be made: {reason}")
    settings, opened = [], []
    for recipe, arms in made.arms.items():
        config, _ = _parse(arguments, recipe)
        if recipe != SMALL:
            read_recipe(recipe).check(config)
        check_one_process(config, own.output / RUNS / recipe)
        for arm in arms:
            check_names(config_of(config, arm))
        # Opening the images and building one model now meets every mistake before the long part.
        job = prepare(_unchecked(config_of(config, arms[0]), opened), progress=progress)
        opened.append(job)
        setting = make_setting(
            recipe, config, arms, seeds=own.seeds, output=own.output, jobs=jobs, job=job
        )
        check_earlier(setting)
        settings.append(setting)
    return Request(
        targets=targets,
        plan=made,
        settings=settings,
        jobs_of_settings=opened,
        jobs=jobs,
        output=own.output,
        dry_run=own.dry_run,
    )


def _unchecked(config: RunConfig, opened: Sequence[Job]) -> RunConfig:
    """Without the check of image files where an earlier recipe's job has done it."""
    if not opened or config.data.skip_damaged:
        return config
    return replace(config, data=replace(config.data, check="none"))


def _parse(arguments: list[str], recipe: str) -> tuple[RunConfig, Any]:
    parser = reproduce_parser(defaults=read_recipe(recipe).config)
    config, own = parser.parse(arguments)
    refuse_methods(config, "the targets say what is trained, and --methods restricts it")
    return config, own


def _targets(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in TARGETS and name != ALL:
            raise ValueError(
                f"unknown target {name!r}{nearest(name, [*TARGETS, ALL])}; choose from "
                f"{', '.join(TARGETS)}, {ALL}"
            )
    return [name for name in TARGETS if ALL in names or name in names]


def _methods(text: str | None) -> list[str] | None:
    if text is None:
        return None
    return [check_pooling(name.strip()) for name in text.split(",")]


def _jobs(own: Any, config: RunConfig) -> int:
    if own.jobs is None:
        return min(MOST_JOBS, available_cores()) if config.data.root is None else 1
    if own.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, not {own.jobs}")
    return own.jobs


def _describe(request: Request, console: Console) -> None:
    for setting in request.settings:
        runs, arms, seeds = len(setting.cells), len(setting.arms), len(setting.seeds)
        settled = sum(cell.settled() for cell in setting.cells.values())
        console.print(setting.about)
        console.print(
            f"{runs} runs ({arms} ways to train, {seeds} seeds; {settled} are there already), "
            f"{request.jobs} at a time, in {request.output / RUNS / setting.recipe}"
        )


def _remark(cell: Cell) -> str:
    if cell.trunk is not None:
        return f"; the first {cell.inherited} of each run are those of {NEWTON_SCHULZ}"
    probes = cell.config.train.probes
    return f"; {', '.join(probes)} measured" if probes else ""


def _estimate(request: Request, console: Console) -> None:
    total = 0.0
    for setting, job in zip(request.settings, request.jobs_of_settings, strict=True):
        for arm in setting.arms:
            own = [cell for (each, _), cell in setting.cells.items() if each == arm]
            epochs = sum(cell.epochs for cell in own)
            console.print(f"  {arm.label}: {len(own)} runs, {epochs} epochs{_remark(own[0])}")
        with console.status("measuring steps") as status:
            seconds = seconds_of_runs(
                setting, job, lambda name: status.update(f"measuring steps of {name}")
            )
        total += seconds
        console.print(f"  by steps measured here: {duration(seconds)} one after the other")
    if request.settings:
        console.print(f"about {duration(total / request.jobs)} with {request.jobs} at a time")
    for name in request.targets:
        if not TARGETS[name].trained:
            console.print(f"{name} is computed, in seconds")
    for name, reason in request.plan.left_out.items():
        console.print(f"{name} is left out: {reason}")
