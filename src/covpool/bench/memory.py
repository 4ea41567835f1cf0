"""Peak memory of one forward and backward pass, in a pass of its own.

On a CPU, by the operating system's record: the growth of the process's largest resident size
during one step, in a process started for it, so that the work space of LAPACK and of every thread
counts, ours and the peers' alike, which the record of torch's own allocator misses. Before the
step, the process is filled up to its earlier peak, so that growth begins at the first byte; large
blocks go back to the system as soon as they are freed. Features, the weight of the loss and what
a small step needs once (loaded code) are not in it. Right to about 1 MiB, the kernel's own
accounting; at 4x128x49 it agrees with the record of torch's allocator within 0.2 MiB.

On CUDA, by torch's allocator: the largest allocation during the step over that before it. Work
that a peer moves to the CPU is not in it.
"""

import gc
import multiprocessing
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from covpool.bench.options import Options
from covpool.bench.timing import Case, Step, describe, fixed_threads

Memory = dict[str, int | str]
"""Bytes by the case's name, or what it failed with."""

# glibc's: allocations above this are mapped and unmapped one by one; MKL keeps no buffers.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
    "MKL_DISABLE_FAST_MM": "1",
}
CHUNK = 1 << 18

RESOLUTION = 1 << 20
"""Peaks below this many bytes are not told apart."""


def peak_memory(measurement: Any, point: Any, cases: Sequence[Case]) -> Memory:
    """The peak memory of each case's step at that point of the measurement, in bytes."""
    if torch.device(measurement.options.device).type == "cuda":
        return {case.name: growth(measurement, point, case) for case in cases}
    found: Memory = {}
    while left := [case.name for case in cases if case.name not in found]:
        _in_a_process(measurement, point, left, found)
    return found


def _in_a_process(measurement: Any, point: Any, names: Sequence[str], found: Memory) -> None:
    """Measures in a new process until all is done or it dies; then the case in hand has failed."""
    context = multiprocessing.get_context("spawn")
    answers, theirs = context.Pipe(duplex=False)
    work = (theirs, measurement.options, point, names)
    process = context.Process(target=_work, args=work, daemon=True)
    with mock.patch.dict(os.environ, ALLOCATOR):
        process.start()
    theirs.close()
    try:
        for name in names:
            measurement.say(f"memory of {name}")
            try:
                found[name] = answers.recv()
            except EOFError:
                process.join()
                found[name] = f"the process that measured it ended with status {process.exitcode}"
                return
    finally:
        process.kill()
        process.join()


def _work(answers: Connection, options: Options, point: Any, names: Sequence[str]) -> None:
    os.dup2(2, 1)  # what a peer prints, or LAPACK by itself below Python, is no result
    measurement = options.measurement()
    cases = {case.name: case for case in measurement.cases(point)}
    with fixed_threads(options.threads):
        for name in names:
            answers.send(growth(measurement, point, cases[name]))


def growth(measurement: Any, point: Any, case: Case) -> int | str:
    """The growth of this process's memory during the case's step, or what that failed with."""
    device = torch.device(measurement.options.device)
    try:
        with case.context():
            case.prepare(*measurement.inputs(point, batch=1))()
            step = case.prepare(*measurement.inputs(point))
            gc.collect()
            return allocated(step, device) if device.type == "cuda" else _on_cpu(step)
    except Exception as error:
        return describe(error)


def allocated(step: Step, device: torch.device) -> int:
    """The growth of what torch has allocated on a CUDA device during the step."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _on_cpu(step: Step) -> int:
    ballast, before = _fill_to_peak()
    result = step()
    peak = _largest_resident()
    del result, ballast
    return peak - before


def _largest_resident() -> int:
    """The process's largest resident size so far, in bytes."""
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _fill_to_peak() -> tuple[list[bytearray], int]:
    """Memory that brings the resident size to its peak, to be kept; and that peak in bytes."""
    ballast: list[bytearray] = []
    with suppress(OSError):
        # Linux forgets the earlier peak, which would otherwise be filled again for every case.
        Path("/proc/self/clear_refs").write_text("5")
    start = _largest_resident()
    while _largest_resident() <= start:
        ballast.append(bytearray(b"\1") * CHUNK)
    return ballast, _largest_resident()
