"""`covpool study`."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from covpool.cli.compare import GridReport
from covpool.cli.parsing import FileProgress, RunParser, checking_files, users_input
from covpool.reproduce.results import Setting
from covpool.reproduce.runs import config_of
from covpool.study.design import Study, read_study
from covpool.study.figures import accuracy_dots
from covpool.study.outcome import Outcome, make_sheet, write_lines
from covpool.study.phases import (
    RATES,
    RUNS,
    TUNING,
    chosen_rates,
    final_cells,
    read_rates,
    tuning_cells,
    write_rates,
)
from covpool.study.plan import make_plan
from covpool.train import grid
from covpool.train.interruption import Interrupted
from covpool.train.job import Job, check_names, prepare
from covpool.train.progress import duration


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for, checked."""

    study: Study
    job: Job
    rates: dict[str, dict[str, object]] | None
    output: Path
    jobs: int
    threads: int
    dry_run: bool


def run(arguments: list[str]) -> int:
    """Plan, tune, train, summarise; return the exit status."""
    with users_input(), checking_files() as progress:
        request = _prepare(arguments, progress)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    study, output = request.study, request.output
    console.print(f"{study.title}\n{_about(request)}")
    if request.dry_run:
        _plan(request, console)
        return 0
    failures: dict[str, str] = {}
    try:
        rates = request.rates
        if rates is None:
            trials = tuning_cells(study, output, request.threads)
            failures |= _train(trials, request, output / TUNING, "trials of the rate", console)
            with users_input():
                rates = chosen_rates(study, trials)
        with users_input():
            write_rates(output, rates)
        for label, chosen in rates.items():
            console.print(f"rate of {label}: {chosen['rate']}, by {chosen['validation_top1']}")
        cells = final_cells(study, rates, output, request.threads)
        failures |= _train(cells, request, output / RUNS, "runs that count", console)
    except Interrupted as error:
        print("covpool: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 128 + error.signal_number
    setting = Setting(
        recipe=study.name,
        about=_about(request),
        paper_scale=False,
        config=study.config,
        cells=cells,
        failures=failures,
    )
    outcome = Outcome(
        study=study, setting=setting, rates=rates, train_images=len(request.job.splits.train)
    )
    with users_input():
        sheet = make_sheet(outcome, setting.about)
        sheet = replace(sheet, figure=accuracy_dots(outcome))
        sheet.write(output)
        write_lines(outcome, output)
    console.print(f"\n{sheet.markdown()}\nsummary and runs: {output}")
    return 1 if sheet.problems else 0


def _train(
    cells: Any, request: Request, folder: Path, what: str, console: Console
) -> dict[str, str]:
    ordered = list(cells.values())
    settled = sum(cell.settled() for cell in ordered)
    console.print(
        f"{len(ordered)} {what} ({settled} are there already), {request.jobs} at a time, in "
        f"{folder}"
    )
    with users_input():
        for cell in ordered:
            grid.check_same_options(cell)
    with GridReport(console) as report:
        return grid.run_grid(ordered, request.jobs, report.show)


def _prepare(arguments: list[str], progress: FileProgress) -> Request:
    path = next((Path(word) for word in arguments if not word.startswith("-")), None)
    defaults = read_study(path).config if path is not None else None
    parser = RunParser(
        "study",
        "Compare ways to train: choose each one's learning rate on validation images, train with "
        "several seeds, summarise with intervals. The same command again goes on where it "
        "stopped. Further options as in covpool train.",
        defaults=defaults,
    )
    parser.add_argument("study", type=Path, help="YAML file, given before all options")
    parser.add_argument("--arms", type=str | None, help="only these, separated by commas")
    parser.add_argument("--seeds", type=int | None, help="seeds of every arm")
    parser.add_argument(
        "--rates", type=Path | None, help=f"{RATES} of an earlier study: nothing is tuned"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--output", type=Path | None, help="folder (default: runs/study-NAME)")
    parser.add_argument(
        "--dry-run", action="store_true", help="measure steps, print the plan, then stop"
    )
    config, own = parser.parse(arguments)
    study = replace(read_study(own.study), config=config)
    if own.arms is not None:
        study = study.restricted([label.strip() for label in own.arms.split(",")])
    if own.seeds is not None:
        study = replace(study, seeds=own.seeds, leading_seeds=own.seeds)
    if own.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, not {own.jobs}")
    output = own.output or Path("runs") / f"study-{study.name}"
    grid.check_one_process(config, output / RUNS)
    for arm in study.arms:
        check_names(config_of(config, arm))
    rates = None if own.rates is None else read_rates(own.rates, study.arms)
    # Opening the images and building one model now meets every mistake before the long part.
    job = prepare(config_of(config, study.arms[0]), progress=progress)
    return Request(
        study=study,
        job=job,
        rates=rates,
        output=output,
        jobs=own.jobs,
        threads=grid.threads_of(config, own.jobs),
        dry_run=own.dry_run,
    )


def _about(request: Request) -> str:
    splits, study = request.job.splits, request.study
    return (
        f"{splits.name}: {len(splits.classes)} classes, {len(splits.train)} training and "
        f"{len(splits.test)} test images; {study.config.model.backbone}, "
        f"{study.config.train.epochs} epochs; {len(study.arms)} ways to train."
    )


def _plan(request: Request, console: Console) -> None:
    study = request.study
    known = request.rates or {arm.label: {"rate": study.rates[0]} for arm in study.arms}
    known |= {"isqrt-cov": known.get("isqrt-cov", {"rate": study.rates[0]})}
    cells = final_cells(study, known, request.output, request.threads)
    with console.status("measuring steps") as status:
        lines = make_plan(
            study,
            [(arm, cell) for (arm, _), cell in cells.items()],
            tuned=request.rates is not None,
            threads=request.threads,
            report=lambda name: status.update(f"measuring steps of {name}"),
        )
    for line in lines:
        console.print(
            f"  {line.arm.label}: {line.trials} trials, {line.runs} runs, {duration(line.seconds)}"
        )
    total = sum(line.seconds for line in lines)
    console.print(
        f"about {duration(total / request.jobs)} with {request.jobs} at a time, by steps measured "
        "here; runs that end early by diverging take less"
    )
