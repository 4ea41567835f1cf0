"""Computations by sample on a CPU, spread over the cores.

torch calls LAPACK for one matrix of a batch after the other, and a small matrix keeps no second
core busy. Here every core takes a share of the batch and works through it with one thread, a few
samples at a time, whose temporaries stay in its cache.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch
from torch import Tensor

from covpool.linalg.checks import unreadable

PARALLEL_WORK = 10**6
"""Batch size times n³ from which several threads are worth their start, measured on 2 cores for the
symmetric eigendecomposition: 16 matrices of n = 32 take as long either way, of n = 49 0.6 of the
time."""

SHARE_ELEMENTS = 2**19
"""Elements of the largest tensor of a share: 4 MiB in float64."""

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}


class SampleError(RuntimeError):
    """An error of some samples of a batch, which keeps their indices through shares of it."""

    def __init__(self, message: str, samples: list[int], batch: int) -> None:
        """`message` holds a place `{samples}` for the indices."""
        super().__init__(message.format(samples=_listed(samples, batch)))
        self.message, self.samples = message, samples

    def among(self, batch: int, offset: int) -> "SampleError":
        """The same error, told of the whole batch."""
        return type(self)(self.message, [offset + index for index in self.samples], batch)


def _listed(samples: list[int], batch: int) -> str:
    more = ", …" if len(samples) > 8 else ""
    return f"{len(samples)} of {batch} samples: [{', '.join(map(str, samples[:8]))}{more}]"


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


def _empty(batch: int, sample: Tensor) -> Tensor:
    """A tensor for a batch of what `sample` holds; column-major where that is, as LAPACK's is."""
    if sample.ndim > 2 and not sample.is_contiguous() and sample.mT.is_contiguous():
        return _empty(batch, sample.mT).mT
    return sample.new_empty(batch, *sample.shape[1:])


def by_shares(
    function: Callable[..., tuple[Tensor, ...]], tensors: tuple[Tensor, ...], work: int
) -> tuple[Tensor, ...]:
    """`function(*tensors)`, computed in shares of the batch that keep every core busy.

    Args:
        function: takes and gives tensors whose first dimension is the batch, computes each sample
            for itself, and must not rely on autograd. A share is small enough for the caches: what
            a sample needs is done before the next one begins.
        tensors: (batch, …) on a CPU, not empty.
        work: multiplications that one sample takes, roughly.
    """
    batch = tensors[0].shape[0]
    threads = min(torch.get_num_threads(), batch)
    largest = max(tensor[0].numel() for tensor in tensors)
    share = max(1, min(-(-batch // threads), SHARE_ELEMENTS // largest))
    if batch * work < PARALLEL_WORK or share >= batch:
        return function(*tensors)
    outputs: list[Tensor] = []
    allocation = threading.Lock()

    @torch.no_grad()
    def compute(low: int, high: int) -> None:
        for start in range(low, high, share):
            part = slice(start, min(start + share, high))
            try:
                results = function(*(tensor[part] for tensor in tensors))
            except SampleError as error:
                raise error.among(batch, start) from error
            with allocation:
                if not outputs:
                    outputs.extend([_empty(batch, result) for result in results])
            for output, result in zip(outputs, results, strict=True):
                output[part] = result

    bounds = [batch * i // threads for i in range(threads + 1)]
    if threads == 1:
        compute(0, batch)
        return tuple(outputs)
    pool = _pool(torch.get_num_threads())
    pending = [pool.submit(compute, low, high) for low, high in pairwise(bounds)]
    failures = [error for task in pending if (error := task.exception()) is not None]
    if failures:
        raise failures[0]
    return tuple(outputs)


def by_samples(
    function: Callable[..., tuple[Tensor, ...]],
    tensors: tuple[Tensor, ...],
    sample_dims: tuple[int, ...],
    work: int,
) -> tuple[Tensor, ...]:
    """`function(*tensors)` for any batch dimensions on any device; by shares where that is quicker.

    Args:
        function: works on any number of leading batch dimensions, see `by_shares`.
        tensors: with the same batch dimensions.
        sample_dims: how many dimensions of each make up a sample.
        work: as for `by_shares`.
    """
    first = tensors[0]
    if first.device.type != "cpu" or unreadable(first) or first.numel() == 0:
        return function(*tensors)
    batch_shape = first.shape[: first.ndim - sample_dims[0]]
    flat = tuple(
        tensor.detach().reshape(batch_shape.numel(), *tensor.shape[tensor.ndim - dims :])
        for tensor, dims in zip(tensors, sample_dims, strict=True)
    )
    results = by_shares(function, flat, work)
    return tuple(result.reshape(*batch_shape, *result.shape[1:]) for result in results)
