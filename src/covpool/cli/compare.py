"""`covpool compare`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from covpool.cli import experiment, say
from covpool.cli.experiment import Request
from covpool.cli.parsing import (
    FileProgress,
    Given,
    checking_files,
    chosen_recipe,
    users_input,
)
from covpool.experiments.arms import standalone
from covpool.experiments.runs import open_folder
from covpool.experiments.study import Study
from covpool.poolings import check_pooling, method_or_pooling
from covpool.text import file_name, quantity
from covpool.train.config import ModelConfig, RunConfig
from covpool.train.probes import warn_of_unmeasured
from covpool.train.recipe import said_defaults


def run(given: Given) -> int:
    """Run or continue the grid, print its summary, and return the exit status."""
    with users_input(), checking_files() as progress:
        request = _prepare(given, progress)
    return experiment.run_study(request)


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
    if "gap" in methods[1:]:  # prepare() already warned about the first
        warn_of_unmeasured(config, "gap")
    study = Study(
        name="comparison",
        title=f"Pooling methods compared: {config.model.backbone}, "
        f"{quantity(config.train.epochs, 'epoch')}",
        arms=arms,
        references=arms[:1],
        seeds=own.seeds,
        config=config,
    )
    rate = {"rate": config.optim.learning_rate, "validation_top1": {}}
    return Request(
        study=study,
        whole=study,
        job=job,
        rates=dict.fromkeys(methods, rate),
        output=folder,
        runs=folder,
        sheet="comparison",
        begin=partial(open_folder, folder, config),
        jobs=own.jobs,
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
