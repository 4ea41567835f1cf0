"""Statistics of a batch, of which each process of a distributed training may hold a part."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from covpool.linalg.checks import require_integer


class _SumOverProcesses(torch.autograd.Function):
    """Each process gets the sum, so the gradient of each part is the sum of all gradients.

    torch's own function for that, in `torch.distributed.nn.functional`, is deprecated.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _SumOverProcesses.apply(*gradients)  # pyright: ignore[reportReturnType]


def _shared(synchronize: bool) -> bool:
    """Whether there are other processes whose part counts."""
    if not (synchronize and dist.is_available() and dist.is_initialized()):
        return False
    return dist.get_world_size() > 1


def _summed(values: Tensor, synchronize: bool) -> Tensor:
    if not _shared(synchronize):
        return values
    return _SumOverProcesses.apply(values)  # pyright: ignore[reportReturnType]


def mean_and_count(
    caller: str, total: Tensor, count: int, synchronize: bool, given: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean, and of how many: from the sum over this process's part, and the number in it.

    Args:
        given: the layer's input, for the message.

    Raises:
        ValueError: there are less than two. A batch of one equals its mean, and says nothing.
    """
    packed = torch.cat([total.flatten(), total.new_full((1,), count)])
    packed = _summed(packed, synchronize)
    everywhere = packed[-1].detach()
    # The number in all processes is read from the device only where this one's leaves a doubt.
    if count < 2 and not (_shared(synchronize) and everywhere.item() > 1):
        raise ValueError(
            f"{caller} needs statistics of more than one sample to train, got input of shape "
            f"{tuple(given.shape)}; take a larger batch, or call eval() to use the running ones"
        )
    return (packed[:-1] / everywhere).reshape(total.shape), everywhere


def mean(total: Tensor, count: Tensor, synchronize: bool) -> Tensor:
    """The mean of a further statistic of the samples that `mean_and_count` has counted."""
    return _summed(total, synchronize) / count


def check_options(caller: str, momentum: float, eps: float, **counts: int) -> None:
    """Refuse what is out of range: counts are whole numbers from 1 on."""
    for name, value in counts.items():
        require_integer(f"{caller}: {name}", value, 1)
    if not (isinstance(momentum, int | float) and 0 <= momentum <= 1):
        raise ValueError(f"{caller}: momentum must be a number in [0, 1], got {momentum!r}")
    if not (isinstance(eps, int | float) and 0 < eps < math.inf):
        raise ValueError(f"{caller}: eps must be a positive number, got {eps!r}")
