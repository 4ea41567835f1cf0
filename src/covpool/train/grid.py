"""Which pooling is best on these images? A grid of runs over methods and seeds."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covpool.train.config import RunConfig
from covpool.train.interruption import Interrupted, StopRequest
from covpool.train.run_directory import RunDirectory

if TYPE_CHECKING:
    from lightning.pytorch import Callback

POLL_SECONDS = 0.5

BRANCH = "branch"
"""The folder in a run directory where the state is kept that other runs begin from."""

GRACE_SECONDS = 10.0
"""How long a process that must end may take for its present step."""

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
    if not folder.exists() or not any(folder.iterdir()):
        folder.mkdir(parents=True, exist_ok=True)
        RunDirectory(folder).write_config(config)
        return
    if not file.is_file() or (folder / "last.ckpt").exists():
        raise ValueError(f"{folder} exists and is not a comparison; choose another --output")
    before, now = comparable(RunDirectory(folder).read_config()), comparable(config)
    different = [key for key in now if before.get(key) != now[key]]
    if different:
        key = different[0]
        raise ValueError(
            f"comparison {folder} was begun with {'.'.join(key)} {before.get(key)!r}, not "
            f"{now[key]!r}; choose another --output"
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
    before, now = RunDirectory(cell.path).read_config().to_dict(), cell.config.to_dict()
    for group, fields in now.items():
        for name, value in fields.items():
            there = before[group].get(name)
            if there != value and (group, name) not in (*MACHINE_KEYS, *free):
                raise ValueError(
                    f"run {cell.path} was begun with {group}.{name} {there!r}, not {value!r}; "
                    "choose another --output, or move that run away"
                )


def comparable(config: RunConfig) -> dict[tuple[str, str], Any]:
    """The options that all runs of a comparison share."""
    return {
        (group, name): value
        for group, fields in config.to_dict().items()
        for name, value in fields.items()
        if (group, name) not in (*MACHINE_KEYS, *GRID_KEYS)
    }


def with_defaults(options: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The groups of options of a config.yaml; what an older version lacked was at its default."""
    defaults = RunConfig().to_dict()
    return {group: {**defaults.get(group, {}), **fields} for group, fields in options.items()}


def run_cell(cell: Cell) -> None:
    """Train one cell, from its last checkpoint where it has one. Its summary holds the outcome.

    Raises:
        Interrupted: the comparison was asked to stop.
    """
    from covpool.train.branches import begin_at_branch
    from covpool.train.engine import train
    from covpool.train.job import prepare, prepare_resume
    from covpool.train.module import TrainingDiverged

    if cell.trunk is not None and not cell.path.exists():
        begin_at_branch(cell.trunk, RunDirectory.create(cell.path, cell.config), cell.config)
    if (cell.path / "config.yaml").is_file():
        directory = RunDirectory.open(cell.path)
        job, checkpoint = prepare_resume(cell.config, directory)
        directory.write_config(cell.config)
    else:
        job, checkpoint = prepare(cell.config), None
        directory = RunDirectory.create(cell.path, cell.config)
    with suppress(TrainingDiverged):  # noted in the summary, which the table reads
        callbacks = [make(cell.path) for make in cell.callbacks]
        train(job, directory, checkpoint=checkpoint, report=False, callbacks=callbacks)


@dataclass(frozen=True, kw_only=True)
class GridState:
    """What a report of the running grid shows."""

    finished: int
    running: list[Cell]
    total: int
    epochs_done: int
    epochs_total: int
    seconds_left: float | None


def run_grid(
    cells: Sequence[Cell], jobs: int, report: Callable[[GridState, Cell | None], None]
) -> dict[str, str]:
    """Run the cells that are not settled, `jobs` at a time.

    Args:
        cells: the grid.
        jobs: processes.
        report: called about twice a second, and with each cell that has ended.

    Returns:
        Reasons by cell name, of the cells that failed.

    Raises:
        Interrupted: SIGINT or SIGTERM; running cells have saved their state, or are where their
            last checkpoint is after a second signal.
    """
    failures: dict[str, str] = {}
    pending = [cell for cell in cells if not cell.settled()]
    running: dict[Future[None], Cell] = {}
    epochs_total = sum(cell.epochs for cell in cells)
    epochs_at_start = sum(cell.epochs_done() for cell in cells)
    began = time.monotonic()

    def state() -> GridState:
        done = sum(cell.epochs_done() for cell in cells)
        here = done - epochs_at_start
        seconds = time.monotonic() - began
        return GridState(
            finished=len(cells) - len(pending) - len(running),
            running=list(running.values()),
            total=len(cells),
            epochs_done=done,
            epochs_total=epochs_total,
            seconds_left=seconds / here * (epochs_total - done) if here > 0 else None,
        )

    with StopRequest(announce=True) as request:
        pool = _pool(jobs)
        try:
            while pending or running:
                while len(running) < jobs:
                    cell = _next(pending, [*pending, *running.values()])
                    if cell is None:
                        break
                    pending.remove(cell)
                    running[pool.submit(run_cell, cell)] = cell
                report(state(), None)
                ended, _ = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                if request.signal_number:
                    _stop(running)
                    raise Interrupted(request.signal_number)
                died = any(isinstance(future.exception(), BrokenProcessPool) for future in ended)
                if died:  # one dead process breaks the pool: every cell in it has ended
                    ended, _ = wait(running)
                    pool.shutdown()
                    pool = _pool(jobs)
                for future in ended:
                    cell, error = running.pop(future), future.exception()
                    if error is not None:
                        failures[cell.name] = _reason(error)
                    report(state(), cell)
        except BaseException:
            _end(running)
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    return failures


def _next(pending: Sequence[Cell], unfinished: Sequence[Cell]) -> Cell | None:
    """The first cell that need not wait for the state that it begins from."""
    paths = {cell.path for cell in unfinished}
    for cell in pending:
        if cell.trunk not in paths or (cell.trunk / BRANCH).is_dir():
            return cell
    return None


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker
    )


def _begin_worker() -> None:
    # Ctrl-C reaches every process of a terminal; the parent passes it on once, as SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("covpool").setLevel(logging.ERROR)  # the parent has said it once
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait until the parent has died, save at the next safe point, and end."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def _stop(running: dict[Future[None], Cell]) -> None:
    """Ask the processes to save and end, and wait until they have."""
    for process in multiprocessing.active_children():
        if process.pid is not None:
            os.kill(process.pid, signal.SIGTERM)
    wait(running)


def _end(running: dict[Future[None], Cell]) -> None:
    """Make processes that still run end: by a signal, or by force after a grace."""
    processes = multiprocessing.active_children()
    if all(future.done() for future in running):
        return
    try:
        for process in processes:
            process.terminate()
        wait(running, GRACE_SECONDS)
    finally:
        if not all(future.done() for future in running):
            for process in processes:
                process.kill()


def _reason(error: BaseException) -> str:
    if isinstance(error, BrokenProcessPool):
        return "its process, or one beside it, died (out of memory?)"
    return f"{type(error).__name__}: {error}"
