"""Computations by sample on a CPU, spread over the cores.

torch calls LAPACK for one matrix of a batch after the other, and a small matrix keeps no second
core busy. Here every core takes a share of the batch and works through it with one thread, a few
samples at a time, whose temporaries stay in its cache.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

SHARE_ELEMENTS = 2**19
"""Elements of the largest tensor of a share: 4 MiB in float64."""

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}


class SampleError(RuntimeError):
    """An error of some samples of a batch, which keeps their indices through shares of it."""

    def __init__(self, message: str, samples: list[int], batch: int) -> None:
        """`message` holds a place `{samples}` for the indices."""
        super().__init__(message.format(samples=_listed(samples, batch)))
        self.message, self.samples, self.batch = message, samples, batch

    def __reduce__(self) -> tuple[type["SampleError"], tuple[str, list[int], int]]:
        # Processes hand errors on by pickling; the default passes the formatted message alone.
        return type(self), (self.message, self.samples, self.batch)

    def among(self, batch: int, samples: list[int]) -> "SampleError":
        """The same error of the given samples of the whole batch."""
        return type(self)(self.message, samples, batch)


def _listed(samples: list[int], batch: int) -> str:
    more = ", …" if len(samples) > 8 else ""
    return f"{len(samples)} of {batch} samples: [{', '.join(map(str, samples[:8]))}{more}]"


def _begin_anew() -> None:
    global _lock
    _lock = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):  # threads do not survive a fork, a lock that one held does
    os.register_at_fork(after_in_child=_begin_anew)


def _submit(threads: int, tasks: list[Callable[[], None]]) -> list[Future[None]]:
    # Under the lock, lest another caller with another count shut the pool down in between.
    with _lock:
        if threads not in _pools:
            for outgrown in _pools.values():
                outgrown.shutdown(wait=False)
            _pools.clear()
            _pools[threads] = _single_threaded_workers(threads)
        return [_pools[threads].submit(task) for task in tasks]


def _in_new_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as fresh:
        return fresh.submit(function).result()


def _single_threaded_workers(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch, OpenMP and MKL use one thread each, the caller's settings untouched.

    `torch.set_num_threads` sets OpenMP's and MKL's count of the calling thread, and the count that
    threads to come start from. The latter is put back, in a thread that ends with that: it may
    differ from the caller's own. A worker has to ask for its count first: that is when it takes the
    count to start from, which would overwrite a count set before. Were the workers left with
    several threads each, OpenMP would find more threads than cores, stop spinning at its barriers,
    and slow everything else in the process several times over.
    """
    started = threading.Barrier(threads)
    to_start_from = _in_new_thread(torch.get_num_threads)

    def settle() -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="covpool-lapack")
    for settled in [pool.submit(settle) for _ in range(threads)]:
        settled.result()
    _in_new_thread(partial(torch.set_num_threads, to_start_from))
    return pool


def _empty(batch_shape: torch.Size, sample: Tensor) -> Tensor:
    """A tensor for a batch of what `sample` (batch, …) holds, matrices column-major where its are.

    Not a view of anything, which autograd would treat specially.
    """
    shape = (*batch_shape, *sample.shape[1:])
    if sample.ndim < 3 or sample.is_contiguous() or not sample.mT.is_contiguous():
        return sample.new_empty(shape)
    transposed = torch.empty((*shape[:-2], shape[-1], shape[-2]), device="meta")
    return sample.new_empty_strided(shape, transposed.mT.stride())


def by_shares(
    function: Callable[..., tuple[Tensor, ...]],
    tensors: tuple[Tensor, ...],
    sample_dims: int = 2,
) -> tuple[Tensor, ...]:
    """`function(*tensors)`, computed in shares of the batch that keep every core busy.

    Args:
        function: takes and gives tensors whose first dimension is the batch, computes each sample
            for itself, and must not rely on autograd. A share is small enough for the caches: what
            a sample needs is done before the next one begins.
        tensors: with the same batch dimensions, on a CPU, not empty.
        sample_dims: how many dimensions of the first make up a sample.
    """
    batch_shape = tensors[0].shape[: tensors[0].ndim - sample_dims]
    batch = batch_shape.numel()
    flat = [x.detach().reshape(batch, *x.shape[len(batch_shape) :]) for x in tensors]
    threads = min(torch.get_num_threads(), batch)
    largest = max(tensor[0].numel() for tensor in flat)
    share = max(1, min(-(-batch // threads), SHARE_ELEMENTS // largest))
    outputs: list[Tensor] = []
    flat_outputs: list[Tensor] = []
    allocation = threading.Lock()
    refused: list[tuple[SampleError, list[int]]] = []

    @torch.no_grad()
    def compute(low: int, high: int) -> None:
        for start in range(low, high, share):
            part = slice(start, min(start + share, high))
            try:
                results = function(*(tensor[part] for tensor in flat))
            except SampleError as error:
                # The other shares go on, for an error that names all samples.
                refused.append((error, [start + index for index in error.samples]))
                continue
            with allocation:
                if not outputs:
                    outputs.extend([_empty(batch_shape, result) for result in results])
                    flat_outputs.extend(
                        [
                            output.view(batch, *result.shape[1:])
                            for output, result in zip(outputs, results, strict=True)
                        ]
                    )
            for output, result in zip(flat_outputs, results, strict=True):
                output[part] = result

    if threads == 1:
        compute(0, batch)
    else:
        bounds = [batch * i // threads for i in range(threads + 1)]
        tasks = [partial(compute, low, high) for low, high in pairwise(bounds)]
        pending = _submit(torch.get_num_threads(), tasks)
        try:
            failures = [error for task in pending if (error := task.exception()) is not None]
        except BaseException:  # Ctrl-C, while waiting
            for task in pending:
                task.cancel()
            raise
        if failures:
            raise failures[0]
    if refused:
        error = refused[0][0]
        samples = sorted(index for _, indices in refused for index in indices)
        raise error.among(batch, samples) from error
    return tuple(outputs)
