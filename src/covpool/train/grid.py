"""Runs of a grid, several at a time, each in a process that ends with this one."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass

from covpool.train.allocator import keep_freed_memory
from covpool.train.cells import BRANCH, Cell
from covpool.train.claim import claimed
from covpool.train.interruption import Interrupted, StopRequest
from covpool.train.run_directory import RunDirectory, refuse_existing

POLL_SECONDS = 0.5

GRACE_SECONDS = 10.0
"""How long a process that must end may take for its present step."""


def run_cell(cell: Cell) -> None:
    """Train one cell, from its last checkpoint where it has one. Its summary holds the outcome.

    Raises:
        Interrupted: the comparison was asked to stop.
    """
    from covpool.train.branches import begin_at_branch
    from covpool.train.engine import train
    from covpool.train.job import prepare_resume
    from covpool.train.module import TrainingDiverged

    directory = RunDirectory(cell.path)
    # A process of a comparison that was killed may need its grace to end.
    with claimed(cell.path, patience=2 * GRACE_SECONDS):
        if not (cell.path / "config.yaml").is_file():
            refuse_existing(cell.path)
        if cell.trunk is not None and not directory.has_checkpoint():
            directory.write_config(cell.config)
            begin_at_branch(cell.trunk, directory, cell.config)
        job, checkpoint = prepare_resume(cell.config, directory)
        directory.write_config(cell.config)
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
    keep_freed_memory()


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
