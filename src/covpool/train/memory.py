"""The most memory that a training took."""

from contextlib import suppress
from pathlib import Path

import torch

from covpool.train.allocator import release_freed_memory

PROCESS = Path("/proc/self")


def reset_peak(device: torch.device) -> bool:
    """Begin to measure anew.

    Returns:
        Whether that was possible; else a peak may be that of an earlier training.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    release_freed_memory()  # which would count as in use
    with suppress(OSError):  # not Linux, or not allowed
        (PROCESS / "clear_refs").write_text("5", encoding="ascii")
        return True
    return False


def peak_bytes(device: torch.device) -> int | None:
    """The peak since `reset_peak`, or None where the system does not tell.

    Of a CUDA device: what PyTorch allocated there. Else the memory of the whole process, Python,
    libraries and images in memory included, so that differences between runs mean more than the
    figure itself.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in (PROCESS / "status").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "VmHWM":
                return 1024 * int(value.split()[0])
    return None
