"""From targets to runs: which recipes serve the images given, and the grid of their arms."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from covpool.data.layouts import layout_name
from covpool.reproduce.arms import NEWTON_SCHULZ, Arm
from covpool.reproduce.results import Results, Setting
from covpool.reproduce.targets import (
    HYBRID_RECIPES,
    PROBED,
    PROBED_RECIPES,
    SMALL,
    TARGETS,
)
from covpool.train.branches import BranchPoint
from covpool.train.cells import Cell, check_same_options, comparable, constants_of, threads_of
from covpool.train.config import RunConfig
from covpool.train.job import Job
from covpool.train.recipe import read_recipe
from covpool.train.run_directory import RunDirectory

RUNS = "runs"
"""Where in the output folder the runs are, by recipe."""

PROBES = ("smoothness", "conditioning", "fidelity")
"""What is measured along some runs, as `train.probes` names it."""

TRUNK = Arm(NEWTON_SCHULZ)
"""What hybrid training is equal to before the switch."""

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
        small: whether the recipe `SMALL` stands in.
        arms: by recipe what is to be trained.
        left_out: targets that these images cannot make, and why.
    """

    small: bool
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
    # First what hybrid runs begin from, last these.
    ordered = {
        recipe: sorted(own, key=lambda arm: (arm.hybrid, arm != TRUNK))
        for recipe, own in arms.items()
    }
    return Plan(
        small=small, arms={recipe: own for recipe, own in ordered.items() if own}, left_out=left_out
    )


def make_setting(
    recipe: str,
    config: RunConfig,
    arms: Sequence[Arm],
    *,
    seeds: int,
    output: Path,
    jobs: int,
    job: Job,
) -> Setting:
    """The cells of a recipe, seed by seed so that all arms are compared early.

    Args:
        recipe: its name.
        config: options of every run; its seed is the first one.
        arms: what to train.
        seeds: number of seeds.
        output: the output folder.
        jobs: runs at a time, among which the cores are divided.
        job: one of the setting's, for what its images are.

    Raises:
        ValueError: an arm that the options do not allow, such as a switch after the last epoch.
    """
    threads = threads_of(config, jobs)
    first = config.train.seed
    configs = {}
    for seed in range(first, first + seeds):
        for arm in arms:
            run = config_of(config, arm)
            probed = arm in PROBED and recipe in PROBED_RECIPES
            probes = tuple(dict.fromkeys((*run.train.probes, *(PROBES if probed else ()))))
            train = replace(run.train, seed=seed, threads=threads, probes=probes)
            configs[arm, seed] = replace(run, train=train)
    cells = cells_of(configs, partial(path_of, output, recipe), shared=recipe in HYBRID_RECIPES)
    images = f"{len(job.splits.classes)} classes, {len(job.splits.train)} training images"
    return _setting(recipe, config, cells, f"{job.splits.name}: {images}")


def cells_of(
    configs: Mapping[tuple[Arm, int], RunConfig],
    place: Callable[[Arm, int], Path],
    *,
    shared: bool = True,
) -> dict[tuple[Arm, int], Cell]:
    """The cells of runs, those that others begin from before these.

    Before the switch every hybrid run is that of Newton-Schulz with its seed, which is trained
    once where it is among them.

    Args:
        configs: of the runs, by arm and seed.
        place: the directory of a run.
        shared: whether hybrid runs may begin there.
    """
    cells = {}
    for (arm, seed), config in configs.items():
        switch = config.optim.milestones[-1] if config.optim.milestones else 0
        branches = shared and bool(switch) and (TRUNK, seed) in configs
        callbacks: tuple[Callable[[Path], Any], ...] = ()
        if branches and arm == TRUNK:
            callbacks = (partial(BranchPoint, epochs=switch),)
        branches &= arm.hybrid
        cells[arm, seed] = Cell(
            label=arm.label,
            seed=seed,
            config=config,
            path=place(arm, seed),
            callbacks=callbacks,
            trunk=place(TRUNK, seed) if branches else None,
            inherited=switch if branches else 0,
        )
    return cells


def path_of(output: Path, recipe: str, arm: Arm, seed: int) -> Path:
    """The directory of a run."""
    return output / RUNS / recipe / f"{arm.label}-seed{seed}"


def config_of(config: RunConfig, arm: Arm) -> RunConfig:
    """The arm's configuration.

    Raises:
        ValueError: a hybrid arm without a decay to switch at.
    """
    method = NEWTON_SCHULZ if arm.hybrid else arm.method
    constants = constants_of(config, method) | constants_of(config, arm.method)
    model = replace(
        config.model,
        method=method,
        hybrid=arm.method if arm.hybrid else None,
        constants=constants,
        hidden_features="matched" if arm.matched else config.model.hidden_features,
        gap_reduction=arm.reduced or (arm.method == "gap" and config.model.gap_reduction),
    )
    return replace(config, model=model)


def check_earlier(setting: Setting) -> None:
    """Make sure that the runs that are there already are the setting's.

    Raises:
        ValueError: one was begun with other options, but for where it runs.
    """
    for cell in setting.cells.values():
        check_same_options(cell, CHECKS)


def earlier_setting(recipe: str, arms: Sequence[Arm], output: Path) -> Setting | None:
    """The setting of a recipe that an earlier command left in the output folder, or None."""
    folder = output / RUNS / recipe
    if not (folder / "config.yaml").is_file():
        return None
    config = RunDirectory(folder).read_config()
    cells = {}
    for arm in arms:
        for path in sorted(folder.glob(f"{arm.label}-seed*")):
            seed = path.name.removeprefix(f"{arm.label}-seed")
            if seed.isdecimal():
                run = RunDirectory(path).read_config()
                cells[arm, int(seed)] = Cell(label=arm.label, seed=int(seed), config=run, path=path)
    return _setting(recipe, config, cells, config.data.name) if cells else None


def _setting(
    recipe: str, config: RunConfig, cells: Mapping[tuple[Arm, int], Cell], images: str
) -> Setting:
    changed = changed_options(config, read_recipe(recipe).config)
    paper_scale = recipe != SMALL and not changed
    seeds = sorted({seed for _, seed in cells})
    length = f"{config.train.epochs} epochs, seed{'s' * (len(seeds) > 1)} {_ranges(seeds)}"
    if recipe != SMALL:
        where = f"Computed by the recipe {recipe} on {images}"
        scale = "at the paper's scale" if paper_scale else "not at the paper's scale"
    elif config.data.root is None:
        where, scale = f"Computed on the embedded {images}", "not at the paper's scale"
    else:
        where, scale = f"Computed on {images}", "not on the paper's images nor at its scale"
    options = f" (other than the recipe's: {', '.join(changed)})" if changed else ""
    return Setting(
        recipe=recipe,
        about=f"{where}; {length}{options}; {scale}.",
        paper_scale=paper_scale,
        config=config,
        cells=cells,
    )


def changed_options(config: RunConfig, recipe: RunConfig) -> list[str]:
    """What differs from the recipe in more than where it runs, as group.name value."""
    ours, theirs = comparable(config), comparable(recipe)
    return [
        f"{'.'.join(key)} {value}"
        for key, value in ours.items()
        if key not in FREE_KEYS and value != theirs.get(key)
    ]


def _ranges(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def results_of(settings: Sequence[Setting], targets: Iterable[str], output: Path) -> Results:
    """The settings that have run, with those that earlier commands left for the same targets."""
    if any(setting.recipe == SMALL for setting in settings):
        return Results(small=settings[0])
    found = {setting.recipe: setting for setting in settings}
    for name in targets:
        for recipe, arms in TARGETS[name].trainings.items():
            if recipe not in found and (earlier := earlier_setting(recipe, arms, output)):
                found[recipe] = earlier
    return Results(settings=found)
