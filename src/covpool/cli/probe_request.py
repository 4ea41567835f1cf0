"""What a probe's command line asks for, checked."""

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from covpool.cli import experiment
from covpool.cli.parsers import DECIDED, NO_EFFECT
from covpool.cli.parsing import FileProgress, Given, refuse_methods
from covpool.data.layouts import layout_name
from covpool.data.selection import validation_numbers
from covpool.experiments.arms import Arm
from covpool.experiments.frozen.features import FeatureFile, Stage, stage_name
from covpool.experiments.frozen.plan import Frozen, chosen_arms
from covpool.experiments.frozen.summary import reference_arms
from covpool.experiments.frozen.work import made_of
from covpool.experiments.runs import RUNS, Run, check_same_options, threads_of
from covpool.experiments.study import RATES, TUNING, Study, final_runs, tuning_runs
from covpool.machine import available_cores
from covpool.text import file_name, quantity
from covpool.train.config import RunConfig
from covpool.train.job import Job, check_names
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

    def study(self, stage: Stage) -> Study:
        """The trials and runs on the features of a stage."""
        config, name = of_stage(self.config, stage), self.job.splits.name
        return Study(
            name=f"probe-{name}",
            title=f"Poolings of frozen features: {name}, {config.model.backbone}",
            arms=self.arms,
            references=reference_arms(self.arms),
            seeds=len(self.seeds),
            rates=self.rates,
            decays=self.decays,
            config=config,
        )

    def planned(self, stage: Stage) -> tuple[list[Run], list[Run]]:
        """Trials, and the runs that count before their rates are chosen."""
        study, folder = self.study(stage), self.folder(stage)
        threads = threads_of(study.config, self.jobs)
        guess = {"rate": study.rates[0], "weight_decay": study.decays[0]}
        rates = dict.fromkeys((arm.label for arm in study.arms), guess)
        runs = final_runs(study, rates, folder / RUNS, threads)
        return tuning_runs(study, folder, threads), [*runs.values()]

    def folder(self, stage: Stage) -> Path:
        """Of the runs of a stage: the output itself where there is one stage."""
        return self.output / stage_name(stage) if len(self.stages) > 1 else self.output

    def frozen(self, file: FeatureFile) -> Frozen:
        """What heads of a stage are trained on."""
        splits = self.job.splits
        return Frozen(
            features=file,
            name=splits.name,
            classes=splits.classes,
            labels=tuple(splits.train.labels),
            test_labels=tuple(splits.test.labels),
            kept=self.kept,
            held=self.held,
            mirrored=self.config.data.augment == "flip",
            reduction=of_stage(self.config, file.stage) if self.shared else None,
            notes=splits.notes,
        )

    @property
    def about(self) -> str:
        """What is compared, in a sentence."""
        splits, config = self.job.splits, self.config
        return (
            f"{splits.name}: {len(splits.classes)} classes, {len(splits.train)} training and "
            f"{quantity(len(splits.test), 'test image')}; {config.model.backbone}, frozen; "
            f"{quantity(len(self.arms), 'pooling')}, "
            f"{quantity(len(self.rates) * len(self.decays), 'trial')} and "
            f"{quantity(len(self.seeds), 'seed')} each, {quantity(config.train.epochs, 'epoch')}."
        )


def prepare(given: Given, progress: FileProgress) -> Request:
    """What is asked for, with the images opened and the backbone made.

    Raises:
        ValueError: an option that cannot be used here, or no pretrained weights.
        DataError: images that cannot be used.
    """
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


def check_options(request: Request) -> None:
    """Refuse an output folder whose trials or runs were begun with other options, before any work.

    Raises:
        ValueError: they were.
    """
    chosen_later = (("optim", "learning_rate"), ("optim", "weight_decay"))
    for stage in request.stages:
        trials, runs = request.planned(stage)
        for run in trials:
            check_same_options(run)
        for run in runs:
            check_same_options(run, chosen_later)


def check_heads(request: Request, file: FeatureFile) -> None:
    """Refuse poolings that cannot be made of such maps, or whose vectors take more than there is.

    Raises:
        ValueError: one of them.
    """
    config, frozen = of_stage(request.config, file.stage), request.frozen(file)
    free = free_bytes(request.cache)
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


def of_stage(config: RunConfig, stage: Stage) -> RunConfig:
    """The configuration of runs on the features of a stage."""
    return replace(config, model=replace(config.model, feature_stage=stage))


def free_bytes(folder: Path) -> int:
    """On the disk of a folder that may not be there yet."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(place).free
