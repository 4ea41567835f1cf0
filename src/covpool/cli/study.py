"""`covpool study`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from covpool.cli import UserError, say
from covpool.cli.compare import GridReport
from covpool.cli.console import PlainConsole
from covpool.cli.parsers import study_parser
from covpool.cli.parsing import (
    FileProgress,
    checking_files,
    holding,
    refuse_methods,
    users_input,
)
from covpool.reproduce.results import Setting
from covpool.reproduce.runs import config_of
from covpool.study.design import Study, read_study
from covpool.study.figures import accuracy_dots, by_epoch
from covpool.study.outcome import Outcome, write_lines
from covpool.study.phases import (
    RATES,
    RUNS,
    TUNING,
    Rates,
    chosen_rates,
    earlier_rates,
    final_cells,
    found_cells,
    read_rates,
    tuned_as,
    tuning_cells,
    write_rates,
)
from covpool.study.plan import make_plan
from covpool.study.reproduction import Lines, read_lines, reproduction_table
from covpool.study.summary import make_sheet
from covpool.train.cells import check_one_process, check_same_options, threads_of
from covpool.train.config import OptimConfig, RunConfig
from covpool.train.grid import run_grid
from covpool.train.interruption import Interrupted
from covpool.train.job import Job, check_names, prepare
from covpool.train.progress import duration
from covpool.train.run_directory import is_free


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for, checked; `whole` is the study without --arms."""

    study: Study
    whole: Study
    job: Job
    rates: Rates | None
    against: Lines | None
    output: Path
    jobs: int
    threads: int
    dry_run: bool


def run(arguments: list[str]) -> int:
    """Plan, tune, train, summarise; return the exit status."""
    with users_input(), checking_files() as progress:
        request = _prepare(arguments, progress)
    console = PlainConsole()
    study, output = request.study, request.output
    console.print(f"{study.title}\n{_about(request, study)}")
    if request.dry_run:
        _plan(request, console)
        return 0
    with holding(output):
        return _run(request, console)


def _run(request: Request, console: Console) -> int:
    study, output = request.study, request.output
    try:
        rates = request.rates
        if rates is None:
            trials = tuning_cells(study, output, request.threads)
            failed = _train(trials, request, output / TUNING, "trials of the rate", console)
            with users_input():
                rates = chosen_rates(study, trials, failed)
        cells = final_cells(study, rates, output, request.threads)
        with users_input():
            # Before rates.json is written: rates that other runs here were not trained with are
            # refused.
            rates = earlier_rates(output) | rates
            found_cells(request.whole, rates, output)
            write_rates(output, rates)
        for label, chosen in rates.items():
            console.print(f"rate of {label}: {chosen['rate']:g}, by {_tried(chosen)}")
        failures = _train(cells, request, output / RUNS, "runs that count", console)
    except Interrupted as error:
        say("covpool: interrupted; the same command goes on where it stopped", error=True)
        return 128 + error.signal_number
    with users_input():
        # Runs of other arms and seeds that an earlier command trained here are summarised too.
        cells |= {
            key: cell
            for key, cell in found_cells(request.whole, rates, output).items()
            if key not in cells
        }
    labels = {arm.label for arm, _ in cells}
    shown = request.whole.restricted(
        [arm.label for arm in request.whole.arms if arm.label in labels]
    )
    setting = Setting(
        recipe=study.name,
        about=_about(request, shown),
        paper_scale=False,
        config=study.config,
        cells=cells,
        failures=failures,
    )
    outcome = Outcome(
        study=shown,
        setting=setting,
        rates=rates,
        train_images=len(request.job.splits.train),
        test_images=len(request.job.splits.test),
        not_run=tuple(arm.label for arm in request.whole.arms if arm.label not in labels),
    )
    with users_input():
        sheet = make_sheet(outcome, setting.about)
        sheet = replace(
            sheet,
            figure=accuracy_dots(outcome),
            more_figures={"epochs": by_epoch(outcome)},
        )
        if request.against is not None:
            table = reproduction_table(outcome, request.against)
            sheet = replace(sheet, tables=[table, *sheet.tables])
        sheet.write(output)
        write_lines(outcome, output)
    console.print(f"\n{sheet.markdown()}\nsummary and runs: {output}")
    return 1 if sheet.problems else 0


def _tried(chosen: dict[str, Any]) -> str:
    tried = chosen["validation_top1"].items()
    shown = (f"{'diverged' if top1 is None else f'{top1:.2f}%'} at {rate}" for rate, top1 in tried)
    return ", ".join(shown) or "no trial"


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
            check_same_options(cell)
    with GridReport(console) as report:
        return run_grid(ordered, request.jobs, report.show)


def _prepare(arguments: list[str], progress: FileProgress) -> Request:
    if not arguments:
        raise UserError("name the study's YAML file: covpool study FILE [options]")
    first = arguments[0]
    path = None if first.startswith("-") else Path(first)
    if path is None and not {"--help", "-h"} & set(arguments):
        raise UserError(
            f"the study's file comes before all options, not {first!r}: covpool study FILE …"
        )
    defaults = read_study(path).config if path is not None else None
    parser = study_parser(defaults=defaults)
    config, own = parser.parse(arguments)
    whole = study = replace(read_study(own.study), config=config)
    _check_free(config)
    if own.arms is not None:
        study = study.restricted([label.strip() for label in own.arms.split(",")])
    if own.seeds is not None:
        study = replace(study, seeds=own.seeds, leading_seeds=own.seeds)
    if own.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, not {own.jobs}")
    output = own.output or Path("runs") / f"study-{study.name}"
    _check_output(output)
    check_one_process(config, output / RUNS)
    for arm in study.arms:
        check_names(config_of(config, arm))
    rates = None if own.rates is None else read_rates(own.rates, study.arms)
    against = None if own.against is None else read_lines(own.against)
    # Opening the images and building one model now meets every mistake before the long part.
    job = prepare(config_of(config, study.arms[0]), progress=progress)
    return Request(
        study=study,
        whole=whole,
        job=job,
        rates=rates,
        against=against,
        output=output,
        jobs=own.jobs,
        threads=threads_of(config, own.jobs),
        dry_run=own.dry_run,
    )


def _check_free(config: RunConfig) -> None:
    """Refuse options that the study itself decides."""
    refuse_methods(config, "study.arms says what is trained, and --arms restricts it")
    if config.optim.learning_rate != OptimConfig.learning_rate:
        raise ValueError(
            f"optim.learning_rate {config.optim.learning_rate:g} would have no effect here: "
            "study.rates are tried, or --rates FILE says which to take"
        )
    if config.data.evaluate != "test":
        raise ValueError(
            f"data.evaluate {config.data.evaluate} cannot be used here: trials are evaluated on "
            "held-out training images by themselves, and the runs that count on the test split"
        )


def _check_output(output: Path) -> None:
    """Refuse a folder that holds anything but a study: its summary would be written over."""
    if is_free(output):
        return
    if not (output / TUNING).is_dir() and not (output / RATES).is_file():
        raise ValueError(f"--output {output} exists and is not a study's; choose another --output")


def _about(request: Request, study: Study) -> str:
    splits = request.job.splits
    return (
        f"{splits.name}: {len(splits.classes)} classes, {len(splits.train)} training and "
        f"{len(splits.test)} test images; {study.config.model.backbone}, "
        f"{study.config.train.epochs} epochs; {len(study.arms)} ways to train."
    )


def _plan(request: Request, console: Console) -> None:
    study = request.study
    given = request.rates
    trials = {} if given else tuning_cells(study, request.output, request.threads)
    guess = {tuned_as(arm).label: {"rate": study.rates[0]} for arm in study.arms}
    known = guess | earlier_rates(request.output) | (given or {})
    cells = final_cells(study, known, request.output, request.threads)
    with console.status("measuring steps") as status:
        lines = make_plan(
            study,
            [(arm, cell) for (arm, _, _), cell in trials.items()],
            [(arm, cell) for (arm, _), cell in cells.items()],
            job=request.job,
            threads=request.threads,
            report=lambda name: status.update(f"measuring steps of {name}"),
        )
    for line in lines:
        console.print(
            f"  {line.arm.label}: {line.trials} trials, {line.runs} runs"
            f"{f' ({line.settled} of these are there already)' if line.settled else ''}, "
            f"{duration(line.seconds)}"
        )
    total = sum(line.seconds for line in lines)
    console.print(
        f"about {duration(total / request.jobs)} with {request.jobs} at a time, by steps measured "
        "here, probes not included; runs that end early by diverging take less"
    )
