"""`covpool study`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from covpool.cli import experiment
from covpool.cli.console import PlainConsole
from covpool.cli.parsing import (
    FileProgress,
    Given,
    checking_files,
    refuse_methods,
    users_input,
)
from covpool.experiments import study as studies
from covpool.experiments.estimate import estimate
from covpool.experiments.outcome import Outcome, read_lines
from covpool.experiments.results import RunSet
from covpool.experiments.runs import RUNS, Run, threads_of
from covpool.experiments.study import RATES, TUNING, Rates, Study
from covpool.experiments.study_tables import reproduction_table
from covpool.experiments.summary import make_sheet
from covpool.text import quantity
from covpool.train.config import OptimConfig, RunConfig
from covpool.train.job import Job
from covpool.train.run_directory import is_free


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for, checked; `whole` is the study without --arms."""

    study: Study
    whole: Study
    job: Job
    rates: Rates | None
    against: Sequence[Mapping[str, Any]] | None
    output: Path
    jobs: int
    threads: int
    dry_run: bool


def run(given: Given) -> int:
    """Plan, tune, train, summarise; return the exit status."""
    with users_input(), checking_files() as progress:
        request = _prepare(given, progress)
    console = PlainConsole()
    console.print(f"{request.study.title}\n{_about(request, request.study)}")
    if request.dry_run:
        _plan(request, console)
        return 0
    return experiment.holding_folder(request.output, lambda: _run(request, console))


def _run(request: Request, console: Console) -> int:
    study, whole, output = request.study, request.whole, request.output
    rates = request.rates
    if rates is None:
        trials = studies.tuning_runs(study, output, request.threads)
        failed = _train(trials, request, output / TUNING, "trials of the rate", console)
        with users_input():
            rates = studies.chosen_rates(study, trials, failed)
    runs = studies.final_runs(study, rates, output, request.threads)
    with users_input():
        # Before rates.json is written: rates that other runs here were not trained with are
        # refused.
        rates = {**studies.earlier_rates(output), **rates}
        studies.earlier_runs(whole, rates, output)
        studies.write_rates(output, rates)
    for label, chosen in rates.items():
        console.print(f"rate of {label}: {chosen['rate']:g}, by {_tried(chosen)}")
    failures = _train([*runs.values()], request, output / RUNS, "runs that count", console)
    with users_input():
        # Runs of other arms and seeds that an earlier command trained here are summarised too.
        runs |= {
            k: run for k, run in studies.earlier_runs(whole, rates, output).items() if k not in runs
        }
        labels = {arm.label for arm, _ in runs}
        named = [arm.label for arm in whole.arms]
        shown = whole.restricted([label for label in named if label in labels])
        about = _about(request, shown)
        found = RunSet(name=study.name, about=about, config=study.config, runs=runs)
        outcome = Outcome(
            study=shown,
            runs=found.ended(failures),
            rates=rates,
            train_images=len(request.job.splits.train),
            test_images=len(request.job.splits.test),
            not_run=tuple(label for label in named if label not in labels),
        )
        sheet = make_sheet(outcome)
        if request.against is not None:
            table = reproduction_table(outcome, request.against)
            sheet = replace(sheet, tables=[table, *sheet.tables])
        sheet.write(output)
        outcome.write_lines(output)
    console.print(f"\n{sheet.markdown()}\nsummary and runs: {output}")
    return 1 if sheet.problems else 0


def _tried(chosen: Mapping[str, Any]) -> str:
    tried = chosen["validation_top1"].items()
    shown = (f"{'diverged' if top1 is None else f'{top1:.2f}%'} at {rate}" for rate, top1 in tried)
    return ", ".join(shown) or "no trial"


def _train(
    runs: Sequence[Run], request: Request, folder: Path, what: str, console: Console
) -> dict[str, str]:
    console.print(
        f"{len(runs)} {what} ({experiment.settled(runs)}), {request.jobs} at a time, in {folder}"
    )
    return experiment.run_all(runs, request.jobs, console)


def _prepare(given: Given, progress: FileProgress) -> Request:
    own, read = given.own, studies.read_study(given.own.study)
    config = given.config(read.config)
    whole = study = replace(read, config=config)
    _check_free(config)
    experiment.check_counts(own)
    if own.arms is not None:
        study = study.restricted(experiment.listed(own.arms))
    if own.seeds is not None:
        study = replace(study, seeds=own.seeds, leading_seeds=own.seeds)
    output = own.output or Path("runs") / f"study-{study.name}"
    _check_output(output)
    return Request(
        study=study,
        whole=whole,
        rates=None if own.rates is None else studies.read_rates(own.rates, study.arms),
        against=None if own.against is None else read_lines(own.against),
        job=experiment.prepare_arms(config, study.arms, output / RUNS, progress),
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
        f"{quantity(len(splits.test), 'test image')}; {study.config.model.backbone}, "
        f"{quantity(study.config.train.epochs, 'epoch')}; "
        f"{quantity(len(study.arms), 'way to train', 'ways to train')}."
    )


def _plan(request: Request, console: Console) -> None:
    study, output, threads = request.study, request.output, request.threads
    guess = {arm.tuned_as.label: {"rate": study.rates[0]} for arm in study.arms}
    rates = guess | studies.earlier_rates(output) | dict(request.rates or {})
    runs = studies.final_runs(study, rates, output, threads)
    runs = [run for arm in study.arms for (own, _), run in runs.items() if own == arm]
    trials = [] if request.rates else studies.tuning_runs(study, output, threads)
    with console.status("measuring steps") as status:
        lines = estimate(study.config, runs, job=request.job, trials=trials, report=status.update)
    experiment.show_plan(lines, runs, console)
    experiment.show_total(lines, request.jobs, output, console)
