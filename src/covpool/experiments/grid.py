"""Runs of a grid, several at a time, each in a process that ends with this one."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from covpool.experiments.runs import Run
from covpool.train.allocator import keep_freed_memory
from covpool.train.claim import claimed
from covpool.train.interruption import StopRequest
from covpool.train.run_directory import RunDirectory, refuse_existing

POLL_SECONDS = 0.5

GRACE_SECONDS = 10.0
"""How long a process that must end may take for its present step."""


Work = Callable[[Any], None]
"""What makes one run, in a process of its own: a function of a module, which pickle finds there.
It holds the run's directory by `taken`, goes on where it stopped, and leaves a summary."""


@contextmanager
def taken(run: Run) -> Iterator[RunDirectory]:
    """The run's directory, which no other process writes into meanwhile.

    Raises:
        ValueError: another process holds it, or it is taken by something that is no run.
    """
    # A process of a comparison that was killed may need its grace to end.
    with claimed(run.path, patience=2 * GRACE_SECONDS):
        if not (run.path / "config.yaml").is_file():
            refuse_existing(run.path)
        yield RunDirectory(run.path)


def run_one(run: Run) -> None:
    """Train one run, from its last checkpoint where it has one. Its summary holds the outcome.

    Raises:
        Interrupted: the comparison was asked to stop.
    """
    from covpool.train.engine import train
    from covpool.train.job import prepare_resume
    from covpool.train.module import TrainingDiverged

    with taken(run) as directory:
        job, checkpoint = prepare_resume(run.config, directory)
        directory.write_config(run.config)
        with suppress(TrainingDiverged):  # noted in the summary, which the table reads
            train(job, directory, checkpoint=checkpoint, report=False)


@dataclass(frozen=True, kw_only=True)
class GridState:
    """What a report of the running grid shows."""

    finished: int
    running: list[Run]
    total: int
    epochs_done: int
    epochs_total: int
    seconds_left: float | None


def run_grid(
    runs: Sequence[Run],
    jobs: int,
    report: Callable[[GridState, Run | None], None],
    work: Work | None = None,
) -> dict[str, str]:
    """Make the runs that are not settled, `jobs` at a time.

    Args:
        runs: the grid.
        jobs: processes.
        report: called about twice a second, and with each run that has ended.
        work: what makes a run; None: `run_one`, which trains it.

    Returns:
        Reasons by run name, of the runs that failed.

    Raises:
        Interrupted: SIGINT or SIGTERM; runs in progress have saved their state, or after a second
            signal are where their last checkpoint is.
    """
    failures: dict[str, str] = {}
    pending = [run for run in runs if not run.settled()]
    running: dict[Future[None], Run] = {}
    epochs_total = sum(run.epochs for run in runs)
    epochs_at_start = sum(run.epochs_done() for run in runs)
    began = time.monotonic()

    def state() -> GridState:
        done = sum(run.epochs_done() for run in runs)
        here = done - epochs_at_start
        seconds = time.monotonic() - began
        return GridState(
            finished=len(runs) - len(pending) - len(running),
            running=list(running.values()),
            total=len(runs),
            epochs_done=done,
            epochs_total=epochs_total,
            seconds_left=seconds / here * (epochs_total - done) if here > 0 else None,
        )

    with StopRequest(announce=True) as request:
        pool = _pool(jobs)
        try:
            while pending or running:
                while pending and len(running) < jobs:
                    run = pending.pop(0)
                    running[pool.submit(work or run_one, run)] = run
                report(state(), None)
                ended, _ = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                if request.signal_number:
                    _stop(running)
                    request.check()
                died = any(isinstance(future.exception(), BrokenProcessPool) for future in ended)
                if died:  # one dead process breaks the pool: every run in it has ended
                    ended, _ = wait(running)
                    pool.shutdown()
                    pool = _pool(jobs)
                for future in ended:
                    run, error = running.pop(future), future.exception()
                    if error is not None:
                        failures[run.name] = _reason(error)
                    report(state(), run)
        except BaseException:
            _end(running)
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        request.check()
    return failures


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


def _stop(running: dict[Future[None], Run]) -> None:
    """Ask the processes to save and end, and wait until they have."""
    for process in multiprocessing.active_children():
        if process.pid is not None:
            os.kill(process.pid, signal.SIGTERM)
    wait(running)


def _end(running: dict[Future[None], Run]) -> None:
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
