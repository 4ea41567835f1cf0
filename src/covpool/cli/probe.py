"""`covpool probe`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
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
from covpool.data.selection import hold_out_validation
from covpool.experiments.arms import Arm
from covpool.experiments.frozen import plan as plans
from covpool.experiments.frozen.features import (
    Extractor,
    FeatureFile,
    Stage,
    Views,
    compute,
    feature_files,
    stage_name,
)
from covpool.experiments.frozen.plan import Frozen, HeadPlan
from covpool.experiments.frozen.reduction import reduced_maps
from covpool.experiments.frozen.summary import make_sheet, reference_arms
from covpool.experiments.frozen.work import make_bundle, make_pool, stopper
from covpool.experiments.outcome import Outcome
from covpool.experiments.results import RunSet
from covpool.experiments.runs import Run, check_same_options, threads_of
from covpool.experiments.sheet import Sheet, Table
from covpool.experiments.study import RATES, TUNING, Study, write_rates
from covpool.machine import available_cores
from covpool.text import file_name
from covpool.train.config import RunConfig
from covpool.train.interruption import StopRequest
from covpool.train.job import Job, check_names
from covpool.train.run_directory import is_free

SHARED, OWN = "shared", "own"

DECIDED = {
    "data": {"augment": ("flip", "none"), "evaluate": ("test",)},
    "optim": {"name": ("sgd",), "trained": ("classifier",)},
}
"""Options that the recipe of the heads leaves these values alone."""

NO_EFFECT = {
    "data": ("random_erasing", "mixup", "cutmix", "views", "augment_options"),
    "model": ("schedule", "hybrid", "method", "hidden_features", "gap_reduction"),
    "optim": (
        *("decay_norm_and_bias", "layer_decay", "clip_norm", "weight_average", "options"),
        "decay_options",
    ),
    "train": ("precision", "accumulate", "loggers", "probes", "compile", "channels_last"),
}
"""Options that must stay at their defaults: heads are not trained by them."""


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


def run(given: Given) -> int:
    """Compute the features, train the heads, summarise; return the exit status."""
    with users_input(), checking_files() as progress:
        request = _prepare(given, progress)
    console = PlainConsole()
    console.print(_about(request))
    with users_input():
        extractor = Extractor(request.job, request.stages)
        for shape in extractor.shapes:
            _check_heads(request, shape[0])
        views = Views.of(request.job)
        with console.status("reading the images"):
            digest = views.digest()
        files = feature_files(extractor, views, request.config, request.cache, digest)
    _tell_sizes(request, files, console)
    if request.dry_run:
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
    with console.status("computing features") as status, users_input():

        def show(done: int, total: int) -> None:
            status.update(f"computing features: {done:,} of {total:,} views")

        compute(extractor, views, files, show)
    sheets = []
    for file in files:
        several = len(files) > 1
        folder = request.output / stage_name(file.stage) if several else request.output
        sheets.append(_probe_stage(request, file, folder, console))
    if len(sheets) > 1:
        sheet = _of_stages(request, sheets)
        sheet.write(request.output)
        console.print(f"\n{sheet.markdown()}")
    console.print(f"summary and runs: {request.output}")
    return 1 if any(sheet.problems for sheet in sheets) else 0


def _probe_stage(request: Request, file: FeatureFile, folder: Path, console: Console) -> Sheet:
    config = replace(request.config, model=replace(request.config.model, feature_stage=file.stage))
    splits, threads = request.job.splits, threads_of(config, request.jobs)
    frozen = Frozen(
        features=file,
        name=splits.name,
        classes=splits.classes,
        labels=tuple(splits.train.labels),
        test_labels=tuple(splits.test.labels),
        kept=request.kept,
        held=request.held,
        mirrored=config.data.augment == "flip",
        reduction=config if request.shared else None,
        notes=splits.notes,
    )
    _learn_reductions(request, frozen, config, console)
    tried = plans.trials(
        config, request.arms, request.rates, request.decays, folder, threads=threads
    )
    failed = _make(tried, frozen, request, "trials of rate and decay", console, trial=True)
    with users_input():
        rates = plans.chosen(request.arms, tried, failed)
        write_rates(folder, rates)
    runs = plans.counted(config, request.arms, request.seeds, rates, folder, threads=threads)
    failures = _make([*runs.values()], frozen, request, "runs that count", console, trial=False)
    study = Study(
        name=f"probe-{splits.name}",
        title=f"Poolings of frozen features: {splits.name}, {config.model.backbone}",
        arms=request.arms,
        references=reference_arms(request.arms),
        seeds=len(request.seeds),
        rates=request.rates,
        config=config,
    )
    found = RunSet(name=study.name, about=_about(request), config=config, runs=runs)
    outcome = Outcome(
        study=study,
        runs=found.ended(failures),
        rates=rates,
        train_images=len(splits.train),
        test_images=len(splits.test),
    )
    sheet = make_sheet(outcome, frozen)
    sheet.write(folder)
    outcome.write_lines(folder)
    console.print(f"\n{sheet.markdown()}")
    return sheet


def _learn_reductions(
    request: Request, frozen: Frozen, config: RunConfig, console: Console
) -> None:
    """Those that the poolings of a stage share, from all training images and from the kept ones."""
    if frozen.reduction is None:
        return
    channels, classes = frozen.features.shape[1], len(frozen.classes)
    heads = [HeadPlan.of(arm.config(config), channels, classes) for arm in request.arms]
    widths = {head.reduced for head in heads if head.reduced is not None}
    torch.set_num_threads(config.train.threads or available_cores())
    with StopRequest(announce=True) as stop, console.status("") as status, users_input():
        for width in sorted(widths):
            for trial in (True, False):
                images = "the trials' images" if trial else "all training images"
                status.update(f"learning the channel reduction from {images}")
                whole = frozen.examples(frozen.features.open(), trial=trial)
                reduced_maps(frozen.features, whole, width, frozen.reduction, stopper(stop))


def _make(
    runs: Sequence[Run],
    frozen: Frozen,
    request: Request,
    what: str,
    console: Console,
    *,
    trial: bool,
) -> dict[str, str]:
    """Make the runs that are missing; reasons by name of those that failed."""
    with users_input():
        for run in runs:
            check_same_options(run)
    bundles = plans.bundled(runs, frozen, trial=trial)
    console.print(f"{len(runs)} {what} ({experiment.settled(runs)}), {request.jobs} at a time")
    failed = experiment.run_all(bundles, request.jobs, console, work=make_bundle)
    return {
        run.name: failed[bundle.name]
        for bundle in bundles
        if bundle.name in failed
        for run in bundle.members
    }


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


def _prepare(given: Given, progress: FileProgress) -> Request:
    own, config = given.own, given.config(given.parser.base)
    _check_free(config)
    experiment.check_counts(own)
    if own.reduction not in (SHARED, OWN):
        raise ValueError(f"--reduction must be {SHARED} or {OWN}, not {own.reduction!r}")
    arms = plans.chosen_arms(own.poolings)
    stages = _stages(own.stages, config)
    rates = _numbers("rates", own.rates, least=math.ulp(0.0))
    decays = _numbers("decays", own.decays, least=0.0)
    several = len(stages) > 1
    stage = None if several else stages[0]
    config = replace(config, model=replace(config.model, feature_stage=stage))
    for arm in arms:
        check_names(arm.config(config))
    job = experiment.prepare_arms(config, [Arm("gap")], own.output or Path("FOLDER"), progress)
    label = f"probe-{job.splits.name}-{config.model.backbone}"
    output = own.output or Path("runs") / file_name(label)
    _check_output(output)
    kept, held = _held_out(job)
    first = config.train.seed
    return Request(
        config=config,
        arms=arms,
        stages=stages,
        shared=own.reduction == SHARED,
        rates=rates,
        decays=decays,
        seeds=range(first, first + own.seeds),
        jobs=own.jobs or available_cores(),
        cache=own.features,
        output=output,
        job=job,
        kept=kept,
        held=held,
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


def _held_out(job: Job) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of the training images that trials are trained on, and evaluated on."""
    images, config = job.splits.train, job.config.data
    numbered = _Numbered(images.source, range(len(images)))
    kept, held, _ = hold_out_validation(job.splits.classes, (numbered, images.labels), config)
    return tuple(kept[0].numbers), tuple(held[0].numbers)


class _Numbered:
    """A source of images that remembers which of them were selected."""

    def __init__(self, source, numbers: Sequence[int]) -> None:
        self.source, self.numbers = source, numbers

    def __getattr__(self, name: str):
        return getattr(self.source, name)

    def select(self, indices: Sequence[int]) -> "_Numbered":
        return _Numbered(self.source, [self.numbers[index] for index in indices])


def _check_output(output: Path) -> None:
    """Refuse a folder that holds anything but a probe: its summary would be written over."""
    if is_free(output) or any(output.glob(f"**/{TUNING}")) or any(output.glob(f"**/{RATES}")):
        return
    raise ValueError(f"--output {output} exists and is not a probe's; choose another --output")


def _check_heads(request: Request, channels: int) -> None:
    """Refuse poolings that cannot be made of so many channels.

    Raises:
        ValueError: one of them.
    """
    for arm in request.arms:
        head = HeadPlan.of(arm.config(request.config), channels, len(request.job.splits.classes))
        with torch.device("meta"):
            make_pool(head, channels, reduces=False)


def _about(request: Request) -> str:
    splits, config = request.job.splits, request.config
    return (
        f"{splits.name}: {len(splits.classes)} classes, {len(splits.train)} training and "
        f"{len(splits.test)} test images; {config.model.backbone}, frozen; {len(request.arms)} "
        f"poolings, {len(request.rates) * len(request.decays)} trials and {len(request.seeds)} "
        f"seeds each, {config.train.epochs} epochs."
    )


def _tell_sizes(request: Request, files: Sequence[FeatureFile], console: Console) -> None:
    for file in files:
        rows, channels, height, width = file.shape
        there = "there already" if file.whole else f"{file.done:,} of them there"
        console.print(
            f"features of {stage_name(file.stage)}: {rows:,} maps {channels}×{height}×{width}, "
            f"{file.bytes / 1e6:,.0f} MB, {there}, in {file.folder}"
        )
