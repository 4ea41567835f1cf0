"""One run of a grid over ways to train and seeds, and what must be equal between such runs."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covpool.train.config import RunConfig
from covpool.train.run_directory import RunDirectory, is_free

if TYPE_CHECKING:
    from lightning.pytorch import Callback

BRANCH = "branch"
"""The folder in a run directory where the state is kept that other runs begin from."""

MACHINE_KEYS = (
    ("data", "workers"),
    ("train", "accelerator"),
    ("train", "devices"),
    ("train", "nodes"),
    ("train", "strategy"),
    ("train", "threads"),
    ("train", "checkpoint_steps"),
    ("train", "probes"),
    ("train", "probe_every"),
)
"""What may differ between the runs of one comparison: where they run, and what is measured along
them."""

GRID_KEYS = (("model", "method"), ("train", "seed"))
"""What the grid varies."""

RESUME_KEYS = (
    *(("data", name) for name in ("name", "root", "check", "skip_damaged")),
    *(("train", name) for name in ("epochs", "on_nonfinite", "loggers")),
    *MACHINE_KEYS,
)
"""What may differ between a run and its resumption: where it runs, for how long, and what is
measured along it."""

Options = Mapping[str, Mapping[str, Any]]
"""A configuration as plain values, by group and name."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid.

    Attributes:
        label: what it trains, as the method; runs of one label differ in their seed.
        seed: the run's.
        config: of the whole run.
        path: its directory.
        callbacks: makers of further callbacks from the run's directory, which leave the training
            as it is.
        trunk: directory of another run of the grid that this one is equal to in its first
            `inherited` epochs, and that keeps its state there (`covpool.train.branches`).
        inherited: how many.
    """

    label: str
    seed: int
    config: RunConfig
    path: Path
    callbacks: "tuple[Callable[[Path], Callback], ...]" = ()
    trunk: Path | None = None
    inherited: int = 0

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.label} seed {self.seed}"

    def summary(self) -> dict[str, Any]:
        """The run's summary; its status is "missing" where it has come to none."""
        return RunDirectory(self.path).read_summary() or {"status": "missing"}

    def settled(self) -> bool:
        """Whether running it again would change nothing: finished, or diverged as it will again."""
        summary = self.summary()
        if summary["status"] == "finished":
            return summary["epochs"] >= self.config.train.epochs
        return summary["status"] == "diverged"

    @property
    def epochs(self) -> int:
        """The epochs that it has to train itself."""
        return self.config.train.epochs - self.inherited

    def epochs_done(self) -> int:
        """Those of them that are finished; all of them where the cell is settled."""
        if self.settled():
            return self.epochs
        return max(0, len(RunDirectory(self.path).read_metrics()) - self.inherited)


def make_grid(
    config: RunConfig, methods: Sequence[str], seeds: int, folder: Path, jobs: int
) -> list[Cell]:
    """The cells, seed by seed so that a comparison has all methods early.

    Args:
        config: options of every run; its seed is the first one.
        methods: poolings.
        seeds: number of seeds.
        folder: the comparison's folder.
        jobs: runs at a time, among which the cores are divided.
    """
    threads = threads_of(config, jobs)
    first = config.train.seed
    return [
        Cell(
            label=method,
            seed=seed,
            config=replace(
                config,
                model=replace(config.model, method=method, constants=constants_of(config, method)),
                train=replace(config.train, seed=seed, threads=threads),
            ),
            path=folder / f"{method}-seed{seed}",
        )
        for seed in range(first, first + seeds)
        for method in methods
    ]


def constants_of(config: RunConfig, method: str) -> dict[str, Any]:
    """Those of the configuration's constants that the method has."""
    from covpool.linalg.methods import METHODS

    row = METHODS.get(method)
    return {k: v for k, v in config.model.constants.items() if row and k in row.constants}


def threads_of(config: RunConfig, jobs: int) -> int:
    """Threads of each of so many runs at a time: the configuration's, or a share of the cores."""
    return config.train.threads or max(1, available_cores() // jobs)


def check_one_process(config: RunConfig, folder: Path) -> None:
    """Refuse runs of several processes, which each would start this very command again.

    Raises:
        ValueError: more than one device or node.
    """
    for name in ("devices", "nodes"):
        value = getattr(config.train, name)
        if value > 1:
            raise ValueError(
                f"train.{name} {value} cannot be used here: each run of a grid is one process; "
                "leave it at 1, or train the runs one by one with covpool train --output "
                f"{folder / 'LABEL-seedN'}, after which the same command tabulates them"
            )


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_folder(folder: Path, config: RunConfig) -> None:
    """Make the comparison's folder, or make sure that it is one of these very options.

    Raises:
        ValueError: it holds something else, or a comparison with other options.
    """
    file = folder / "config.yaml"
    if is_free(folder):
        folder.mkdir(parents=True, exist_ok=True)
        RunDirectory(folder).write_config(config)
        return
    if not file.is_file() or (folder / "last.ckpt").exists():
        raise ValueError(f"{folder} exists and is not a comparison; choose another --output")
    before = RunDirectory(folder).read_config()
    if found := difference(before, config, free=(*MACHINE_KEYS, *GRID_KEYS)):
        key, there, here = found
        raise ValueError(
            f"comparison {folder} was begun with {key} {there!r}, not {here!r}; choose another "
            "--output"
        )


def check_same_options(cell: Cell, free: frozenset[tuple[str, str]] = frozenset()) -> None:
    """Make sure that an earlier run of the cell, where there is one, is the cell's.

    Args:
        cell: the run.
        free: options that may differ, beside `MACHINE_KEYS`.

    Raises:
        ValueError: it was begun with other options, but for where it runs.
    """
    if not (cell.path / "config.yaml").is_file():
        return
    before = RunDirectory(cell.path).read_config()
    if found := difference(before, cell.config, free=(*MACHINE_KEYS, *free)):
        key, there, here = found
        raise ValueError(
            f"run {cell.path} was begun with {key} {there!r}, not {here!r}; choose another "
            "--output, or move that run away"
        )


def difference(
    there: RunConfig | Options, here: RunConfig, *, free: Collection[tuple[str, str]]
) -> tuple[str, Any, Any] | None:
    """The first option, as group.name, in which two configurations differ, with both its values.

    Args:
        there: one of them; what an older version wrote lacks the options that are newer than it,
            which were at their defaults.
        here: the other one.
        free: (group, name) of the options that may differ.
    """
    known = with_defaults(there.to_dict() if isinstance(there, RunConfig) else there)
    for group, fields in here.to_dict().items():
        for name, value in fields.items():
            if (group, name) not in free and known[group].get(name) != value:
                return f"{group}.{name}", known[group].get(name), value
    return None


def comparable(config: RunConfig) -> dict[tuple[str, str], Any]:
    """The options that all runs of a comparison share."""
    return {
        (group, name): value
        for group, fields in config.to_dict().items()
        for name, value in fields.items()
        if (group, name) not in (*MACHINE_KEYS, *GRID_KEYS)
    }


def with_defaults(options: Options) -> dict[str, dict[str, Any]]:
    """The groups of options of a config.yaml; what an older version lacked was at its default."""
    defaults = RunConfig().to_dict()
    return {
        group: {**defaults.get(group, {}), **options.get(group, {})}
        for group in (*defaults, *options)
    }
