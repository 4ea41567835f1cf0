"""In which precision matrix products are computed: TF32 and autocast are off."""

import math
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from covpool.linalg.spectrum import real_dtype


def on_cpu(tensor: Tensor) -> bool:
    """Whether the ways of computing that suit a CPU are taken: tests take the others there too."""
    return tensor.device.type == "cpu"


def range_edge(dtype: torch.dtype, power: int = 3) -> float:
    """The binary logarithm of the largest number whose power `dtype` holds."""
    return math.log2(torch.finfo(dtype).max) / power


def range_unit(
    tensor: Tensor,
    dtype: torch.dtype,
    power: int = 3,
    *,
    readable: bool,
    extent: tuple[float, float] | None = None,
) -> Tensor | None:
    """(*, 1, 1), powers of four by which to divide (*, m, n), so that `dtype` holds their powers.

    Of matrices whose cubes it holds, roots, inverse roots and their derivatives neither overflow
    nor vanish on the way to a result that does not; of features it is the sixth power. Dividing by
    a power of two is exact. Samples within the range get 1, and others are taken to its edge:
    constants with a unit, such as that of `svd-trunc`, see no jump.

    None where no sample needs it: known from the tensor's dtype, or, on a CPU, by a look at the
    values, for which a GPU would have to synchronise.

    Args:
        readable: whether values can be looked at.
        extent: the smallest and largest of the samples' largest magnitudes, where they are known.
    """
    own = torch.finfo(tensor.dtype)
    edge = range_edge(dtype, power)
    least, most = math.log2(own.tiny) + math.log2(own.eps), math.log2(own.max)
    if -edge <= least and most <= edge:
        return None
    if extent is not None and 2**-edge <= extent[0] and extent[1] <= 2**edge:
        return None
    largest = tensor.detach().abs().amax((-2, -1), keepdim=True)
    if readable and on_cpu(tensor):
        if largest.numel() == 0:
            return None
        smallest_most = torch.where(largest == 0, 1, largest).aminmax()
        if 2**-edge <= smallest_most.min.item() and smallest_most.max.item() <= 2**edge:
            return None
    wide = largest.to(real_dtype(torch.promote_types(tensor.dtype, dtype)))
    # Below the least normal number a logarithm may be infinite; above, the largest is rounded up.
    exponent = wide.log2().clamp(least, most - 1)
    exponent = torch.where(wide == 0, 0, exponent)
    return torch.exp2(2 * ((exponent - exponent.clamp(-edge, edge)) / 2).round())


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which matrix products keep the precision of their operands, TF32 off too.

    torch.compile does not trace the setting of TF32: what it compiles follows the user's.
    """
    device = tensor.device.type
    autocast = nullcontext()
    if device == "cpu" and not torch.is_autocast_enabled("cpu"):
        return autocast
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        autocast = torch.autocast(device, enabled=False)
    return _WithoutTf32(autocast) if uses_tf32(tensor) else autocast


def uses_tf32(tensor: Tensor) -> bool:
    """Whether float32 products on the tensor's device are rounded to TF32, by the user's setting.

    That is 10 bits of mantissa, which no spectral computation survives.
    """
    if torch.compiler.is_compiling() or tensor.device.type != "cuda":
        return False
    return _Tf32.depth > 0 or torch.backends.cuda.matmul.fp32_precision == "tf32"


class _Tf32:
    """The setting is the process's: of several threads, the first saves it, the last restores."""

    lock = threading.Lock()
    depth = 0
    saved: Any = "none"


class _WithoutTf32(AbstractContextManager[None]):
    def __init__(self, inner: AbstractContextManager[Any]) -> None:
        self._inner = inner

    def __enter__(self) -> None:
        setting = torch.backends.cuda.matmul
        with _Tf32.lock:
            if _Tf32.depth == 0:
                _Tf32.saved = setting.fp32_precision
                # The new interface alone: it leaves what the old one has stored as it was.
                setting.fp32_precision = "ieee"
            _Tf32.depth += 1
        self._inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)
        setting = torch.backends.cuda.matmul
        with _Tf32.lock:
            _Tf32.depth -= 1
            if _Tf32.depth == 0:
                # "none" is inherited from `torch.backends.fp32_precision`, and goes on to be.
                setting.fp32_precision = "none"
                if setting.fp32_precision != _Tf32.saved:
                    setting.fp32_precision = _Tf32.saved
