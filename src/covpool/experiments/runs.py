"""One run of a grid over ways to train, rates and seeds; which runs a plan makes, and which are
there."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from covpool.experiments.arms import Arm
from covpool.machine import available_cores
from covpool.train.config import RunConfig
from covpool.train.run_directory import RunDirectory, is_free
from covpool.train.same_options import GRID_KEYS, MACHINE_KEYS, difference

RUNS = "runs"
"""Where in an experiment's folder the runs that count are."""

Optim = Mapping[str, float]
"""Options of the optimiser, by name."""

SHORT = {"learning_rate": "rate", "weight_decay": "decay"}
"""What those that trials try are called in names of runs and files."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the grid.

    Attributes:
        arm: what it trains; runs of one arm differ in their seed.
        seed: the run's.
        config: of the whole run.
        path: its directory.
        tried: of a trial, the options of the optimiser that it tries.
    """

    arm: Arm
    seed: int
    config: RunConfig
    path: Path
    tried: Optim = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For people."""
        tried = "".join(f" {SHORT[name]} {value:g}" for name, value in self.tried.items())
        return f"{self.arm.label}{tried} seed {self.seed}"

    @property
    def members(self) -> "Sequence[Run]":
        """The runs that are made with it: itself."""
        return (self,)

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
        """The epochs that it has to train."""
        return self.config.train.epochs

    def epochs_done(self) -> int:
        """Those of them that are finished; all of them where the run is settled."""
        return self.epochs if self.settled() else len(RunDirectory(self.path).read_metrics())


Runs = Mapping[tuple[Arm, int], Run]
"""By arm and seed."""


def make_runs(
    shared: RunConfig,
    seeds: Mapping[Arm, Collection[int]],
    folder: Path,
    *,
    threads: int,
    optim: Mapping[Arm, Optim] = MappingProxyType({}),
    probes: Mapping[Arm, Sequence[str]] = MappingProxyType({}),
) -> dict[tuple[Arm, int], Run]:
    """The runs, seed by seed so that all arms are compared early.

    Args:
        shared: the options of every run.
        seeds: of each arm, in the order in which a seed's runs are trained.
        folder: that of the runs.
        threads: of each run.
        optim: options of the optimiser of arms that do not take the shared ones.
        probes: what is measured along an arm beside what all have.

    Raises:
        ValueError: an arm that the options do not allow, such as a switch after the last epoch.
    """
    runs = {}
    for seed in sorted({seed for own in seeds.values() for seed in own}):
        for arm, own in seeds.items():
            if seed in own:
                own_optim, measured = optim.get(arm, {}), probes.get(arm, ())
                config = configured(
                    shared, arm, seed=seed, threads=threads, optim=own_optim, probes=measured
                )
                path = path_of(folder, arm, seed)
                runs[arm, seed] = Run(arm=arm, seed=seed, config=config, path=path)
    return runs


def configured(
    shared: RunConfig,
    arm: Arm,
    *,
    seed: int,
    threads: int | None,
    optim: Optim = MappingProxyType({}),
    probes: Sequence[str] = (),
) -> RunConfig:
    """The configuration of an arm's run."""
    config = arm.config(shared)
    measured = tuple(dict.fromkeys((*config.train.probes, *probes)))
    train = replace(config.train, seed=seed, threads=threads, probes=measured)
    return replace(config, optim=replace(config.optim, **optim), train=train)


def path_of(folder: Path, arm: Arm, seed: int) -> Path:
    """The directory of a run."""
    return folder / f"{arm.label}-seed{seed}"


def found_runs(folder: Path, arms: Iterable[Arm]) -> list[tuple[Arm, int, Path]]:
    """The runs of these arms that are in a folder, of whatever seeds."""
    found = []
    for arm in arms:
        for path in sorted(folder.glob(f"{arm.label}-seed*")):
            seed = path.name.removeprefix(f"{arm.label}-seed")
            if seed.isdecimal() and (path / "config.yaml").is_file():
                found.append((arm, int(seed), path))
    return found


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


def open_folder(folder: Path, config: RunConfig) -> None:
    """Make the folder of runs, or make sure that it is one of these very options.

    Raises:
        ValueError: it holds something else, or runs with other options.
    """
    if is_free(folder):
        folder.mkdir(parents=True, exist_ok=True)
        RunDirectory(folder).write_config(config)
        return
    is_run = any((folder / name).exists() for name in ("metrics.jsonl", "last.ckpt"))
    if not (folder / "config.yaml").is_file() or is_run:
        raise ValueError(f"{folder} exists and is not a comparison; choose another --output")
    _check_same(folder, config, (*MACHINE_KEYS, *GRID_KEYS), "comparison", "")


def check_same_options(run: Run, free: Collection[tuple[str, str]] = ()) -> None:
    """Make sure that an earlier run in the same place, where there is one, is this one.

    Args:
        run: the run.
        free: options that may differ, beside `MACHINE_KEYS`.

    Raises:
        ValueError: it was begun with other options, but for where it runs.
    """
    if (run.path / "config.yaml").is_file():
        _check_same(run.path, run.config, (*MACHINE_KEYS, *free), "run", ", or move that run away")


def _check_same(
    folder: Path, config: RunConfig, free: Collection[tuple[str, str]], what: str, remedy: str
) -> None:
    if found := difference(RunDirectory(folder).read_config(), config, free=free):
        key, there, here = found
        raise ValueError(
            f"{what} {folder} was begun with {key} {there!r}, not {here!r}; choose another "
            f"--output{remedy}"
        )
