"""From the paper's targets to runs: which recipes serve the images given, and the runs of each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from covpool.data.layouts import layout_name
from covpool.experiments.arms import TRUNK, Arm
from covpool.experiments.results import SMALL, Results, RunSet
from covpool.experiments.runs import (
    RUNS,
    Run,
    Runs,
    found_runs,
    make_runs,
    threads_of,
)
from covpool.experiments.targets import PROBED, PROBED_RECIPES, TARGETS
from covpool.text import quantity
from covpool.train.config import RunConfig
from covpool.train.job import Job
from covpool.train.recipe import read_recipe
from covpool.train.run_directory import RunDirectory
from covpool.train.same_options import shared_options

PROBES = ("smoothness", "conditioning", "fidelity")
"""What is measured along some runs, as `train.probes` names it."""

FREE_KEYS = frozenset(
    {
        *(("data", name) for name in ("name", "root", "check", "skip_damaged")),
        *(("model", name) for name in ("init_from", "pretrained")),
    }
)
"""Options that a recipe leaves to the user."""

CHECKS = frozenset({("data", "check"), ("data", "skip_damaged")})
"""Options that say how the images are checked before training."""


def paper_layouts() -> set[str]:
    """The data sets of the paper's tables, as `data.name` has them."""
    return {
        read_recipe(recipe).config.data.name
        for target in TARGETS.values()
        for recipe in target.trainings
    }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the targets need on the images given.

    Attributes:
        arms: by recipe what is to be trained.
        left_out: targets that these images cannot make, and why.
    """

    arms: Mapping[str, Sequence[Arm]]
    left_out: Mapping[str, str]


def plan(config: RunConfig, targets: Iterable[str], methods: Sequence[str] | None = None) -> Plan:
    """Which arms of which recipes to train.

    Args:
        config: of which the images are looked at.
        targets: names in `TARGETS`.
        methods: what to restrict the arms to; None: all.

    Raises:
        ValueError: images that cannot be found.
    """
    layout = layout_name(config.data)
    small = layout not in paper_layouts()
    arms: dict[str, dict[Arm, None]] = {}
    left_out = {}
    for name in targets:
        target = TARGETS[name]
        if not target.trained:
            continue
        if small:
            trainings: Mapping[str, Sequence[Arm]] = {SMALL: target.small}
        else:
            by_layout = {each: read_recipe(each).config.data.name for each in target.trainings}
            trainings = {r: a for r, a in target.trainings.items() if by_layout[r] == layout}
            if not trainings:
                needed = ", ".join(dict.fromkeys(by_layout.values()))
                left_out[name] = f"it is of {needed}, and data.root holds {layout}"
        for recipe, own in trainings.items():
            wanted = [arm for arm in own if methods is None or arm.method in methods]
            arms.setdefault(recipe, {}).update(dict.fromkeys(wanted))
            if not wanted:
                needed = ", ".join(dict.fromkeys(arm.method for arm in own))
                left_out[name] = f"it needs one of {needed}"
    # Newton-Schulz first, with which the paper compares the rest; hybrid training last.
    chosen = {
        recipe: sorted(own, key=lambda arm: (arm.hybrid, arm != TRUNK))
        for recipe, own in arms.items()
        if own
    }
    return Plan(arms=chosen, left_out=left_out)


def make_run_set(
    recipe: str,
    config: RunConfig,
    arms: Sequence[Arm],
    *,
    seeds: int,
    output: Path,
    jobs: int,
    job: Job,
) -> RunSet:
    """The runs of a recipe.

    Args:
        recipe: its name.
        config: options of every run; its seed is the first one.
        arms: what to train.
        seeds: number of seeds.
        output: the output folder.
        jobs: runs at a time, among which the cores are divided.
        job: one of the runs', for what its images are.

    Raises:
        ValueError: an arm that the options do not allow, such as a switch after the last epoch.
    """
    first = config.train.seed
    probed = PROBED.intersection(arms) if recipe in PROBED_RECIPES else ()
    runs = make_runs(
        config,
        dict.fromkeys(arms, range(first, first + seeds)),
        output / RUNS / recipe,
        threads=threads_of(config, jobs),
        probes=dict.fromkeys(probed, PROBES),
    )
    images = f"{len(job.splits.classes)} classes, {len(job.splits.train)} training images"
    return _run_set(recipe, config, runs, f"{job.splits.name}: {images}")


def earlier_run_set(recipe: str, arms: Sequence[Arm], output: Path) -> RunSet | None:
    """The runs of a recipe that an earlier command left in the output folder, or None."""
    folder = output / RUNS / recipe
    if not (folder / "config.yaml").is_file():
        return None
    config = RunDirectory(folder).read_config()
    runs = {
        (arm, seed): Run(arm=arm, seed=seed, config=RunDirectory(path).read_config(), path=path)
        for arm, seed, path in found_runs(folder, arms)
    }
    return _run_set(recipe, config, runs, config.data.name) if runs else None


def _run_set(recipe: str, config: RunConfig, runs: Runs, images: str) -> RunSet:
    changed = changed_options(config, read_recipe(recipe).config)
    paper_scale = recipe != SMALL and not changed
    seeds = sorted({seed for _, seed in runs})
    length = (
        f"{quantity(config.train.epochs, 'epoch')}, seed{'s' * (len(seeds) > 1)} {_ranges(seeds)}"
    )
    if recipe != SMALL:
        where = f"Computed by the recipe {recipe} on {images}"
        scale = "at the paper's scale" if paper_scale else "not at the paper's scale"
    elif config.data.root is None:
        where, scale = f"Computed on the embedded {images}", "not at the paper's scale"
    else:
        where, scale = f"Computed on {images}", "not on the paper's images nor at its scale"
    options = f" (other than the recipe's: {', '.join(changed)})" if changed else ""
    return RunSet(
        name=recipe,
        about=f"{where}; {length}{options}; {scale}.",
        paper_scale=paper_scale,
        config=config,
        runs=runs,
    )


def changed_options(config: RunConfig, recipe: RunConfig) -> list[str]:
    """What differs from the recipe in more than where it runs, as group.name value."""
    ours, theirs = (shared_options(each.to_dict()) for each in (config, recipe))
    return [
        f"{'.'.join(key)} {value}"
        for key, value in ours.items()
        if key not in FREE_KEYS and value != theirs.get(key)
    ]


def _ranges(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def results_of(run_sets: Sequence[RunSet], targets: Iterable[str], output: Path) -> Results:
    """The runs by recipe, with those that earlier commands left for the same targets."""
    found = {runs.name: runs for runs in run_sets}
    if SMALL in found:
        return found
    for name in targets:
        for recipe, arms in TARGETS[name].trainings.items():
            if recipe not in found and (earlier := earlier_run_set(recipe, arms, output)):
                found[recipe] = earlier
    return found
