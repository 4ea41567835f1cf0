"""Computations by sample on a CPU, spread over the cores.

torch calls LAPACK for one matrix of a batch after the other, and a small matrix keeps no second
core busy. Here every core takes a share of the batch and works through it with one thread, a few
samples at a time, whose temporaries stay in its cache.
"""

import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from covpool.linalg.engine.back_off import is_small
from covpool.linalg.engine.cores import spread, usable_threads

SHARE_BYTES = 2**22
"""Size of the largest tensor of a share: 4 MiB. With twice as much, 16 samples of 256 × 784 took as
long, and 51 MiB in all instead of 40; with half, up to 1.2 times as long."""


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


def empty_column_major(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised matrices (*, m, n), each column contiguous, as LAPACK reads and writes them.

    Not the transpose of another tensor: autograd functions must not return views.
    """
    transposed = torch.empty((*shape[:-2], shape[-1], shape[-2]), device="meta")
    return like.new_empty_strided(shape, transposed.mT.stride())


def _empty(batch_shape: torch.Size, sample: Tensor) -> Tensor:
    """A tensor for a batch of what `sample` (batch, …) holds, column-major where that is."""
    shape = (*batch_shape, *sample.shape[1:])
    if sample.ndim < 3 or sample.is_contiguous() or not sample.mT.is_contiguous():
        return sample.new_empty(shape)
    return empty_column_major(sample, *shape)


def shares(batch: int, largest: int) -> Iterator[slice]:
    """The batch in parts of at most `largest` samples."""
    return (slice(start, min(start + largest, batch)) for start in range(0, batch, largest))


def by_shares(
    function: Callable[..., tuple[Tensor, ...]],
    tensors: tuple[Tensor, ...],
    sample_dims: int = 2,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, ...]:
    """`function(*tensors)`, computed in shares of the batch that keep every core busy.

    Args:
        function: takes and gives tensors whose first dimension is the batch, computes each sample
            for itself, and must not rely on autograd. A share is small enough for the caches: what
            a sample needs is done before the next one begins.
        tensors: with the same batch dimensions, on a CPU, not empty.
        sample_dims: how many dimensions of the first make up a sample.
        dtype: what `function` computes in; None: the dtype of the first tensor.
    """
    batch_shape = tensors[0].shape[: tensors[0].ndim - sample_dims]
    batch = batch_shape.numel()
    flat = [x.detach().reshape(batch, *x.shape[len(batch_shape) :]) for x in tensors]
    threads = min(usable_threads(), batch)
    largest = max(tensor[0].numel() for tensor in flat)
    sample_bytes = largest * (dtype or flat[0].dtype).itemsize
    share = max(1, min(-(-batch // (2 * threads)), SHARE_BYTES // sample_bytes))
    outputs: list[Tensor] = []
    flat_outputs: list[Tensor] = []
    refused: list[tuple[SampleError, list[int]]] = []
    lock = threading.Lock()

    def compute(part: slice) -> None:
        try:
            results = function(*(tensor[part] for tensor in flat))
        except SampleError as error:
            # The other shares go on, for an error that names all samples.
            refused.append((error, [part.start + index for index in error.samples]))
            return
        with lock:
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

    spread(compute, shares(batch, share), small=all(map(is_small, flat)))
    if refused:
        error = refused[0][0]
        samples = sorted(index for _, indices in refused for index in indices)
        raise error.among(batch, samples) from error
    return tuple(outputs)
