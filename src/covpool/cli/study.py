"""`covpool study`."""

from dataclasses import replace
from pathlib import Path

from covpool.cli import experiment
from covpool.cli.experiment import Request
from covpool.cli.parsing import (
    FileProgress,
    Given,
    checking_files,
    refuse_methods,
    users_input,
)
from covpool.experiments.runs import RUNS
from covpool.experiments.study import RATES, TUNING, read_rates, read_study
from covpool.train.config import OptimConfig, RunConfig
from covpool.train.run_directory import is_free


def run(given: Given) -> int:
    """Plan, tune, train, summarise; return the exit status."""
    with users_input(), checking_files() as progress:
        request = _prepare(given, progress)
    return experiment.run_study(request)


def _prepare(given: Given, progress: FileProgress) -> Request:
    own, read = given.own, read_study(given.own.study)
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
        rates=None if own.rates is None else read_rates(own.rates, study.arms),
        job=experiment.prepare_arms(config, study.arms, output / RUNS, progress),
        output=output,
        runs=output / RUNS,
        jobs=own.jobs,
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
