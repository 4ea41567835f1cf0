"""LAPACK calls on a batch, spread over the cores.

torch calls LAPACK for one matrix of a batch after the other, and a small matrix keeps no second
core busy. Here every core takes a share of the batch and works through it with one thread.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch
from torch import Tensor

PARALLEL_WORK = 10**6
"""Batch size times n³ from which several threads are worth their start, measured on 2 cores: 16
matrices of n = 32 take as long either way, of n = 49 0.6 of the time."""

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}


def _forget_pools() -> None:
    _pools.clear()


if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_forget_pools)


def _pool(threads: int) -> ThreadPoolExecutor:
    with _lock:
        if threads not in _pools:
            for outgrown in _pools.values():
                outgrown.shutdown(wait=False)
            _pools.clear()
            _pools[threads] = _single_threaded_workers(threads)
        return _pools[threads]


def _single_threaded_workers(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch, OpenMP and MKL use one thread each, the caller's settings untouched.

    `torch.set_num_threads` sets OpenMP's and MKL's count of the calling thread, and the count that
    threads to come start from. The latter is put back. A worker has to ask for its count first:
    that is when it takes the count to start from, which would overwrite a count set before. Were
    the workers left with several threads each, OpenMP would find more threads than cores, stop
    spinning at its barriers, and slow everything else in the process several times over.
    """
    started = threading.Barrier(threads)

    def settle() -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="covpool-lapack")
    for settled in [pool.submit(settle) for _ in range(threads)]:
        settled.result()
    torch.set_num_threads(threads)
    return pool


def spread(solve: Callable[[slice], None], batch: int, size: int) -> None:
    """Call `solve` on slices that make up range(batch), side by side where that is faster.

    `solve` writes its results where it was given them; it must not touch autograd.
    """
    threads = min(torch.get_num_threads(), batch)
    if threads < 2 or batch * size**3 < PARALLEL_WORK:
        solve(slice(0, batch))
        return
    # Equal shares: one more matrix on one core is what all others wait for.
    bounds = [batch * i // threads for i in range(threads + 1)]
    pool = _pool(torch.get_num_threads())
    pending = [
        pool.submit(torch.no_grad()(solve), slice(low, high)) for low, high in pairwise(bounds)
    ]
    failures = [error for task in pending if (error := task.exception()) is not None]
    if failures:
        raise failures[0]


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh` of (batch, n, n) on a CPU."""
    batch, size, _ = matrices.shape
    eigenvalues = matrices.new_empty(batch, size)
    # LAPACK's own layout, so that nothing is copied.
    eigenvectors = matrices.new_empty(batch, size, size).mT

    def solve(part: slice) -> None:
        torch.linalg.eigh(matrices[part], out=(eigenvalues[part], eigenvectors[part]))

    spread(solve, batch, size)
    return eigenvalues, eigenvectors
