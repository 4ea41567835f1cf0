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

import contextlib
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

import covpool
from covpool.bench.cases import Case
from covpool.bench.features import Shape
from covpool.bench.settings import Settings
from covpool.bench.timing import describe, fixed_threads

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


def peak_memory(
    settings: Settings,
    shape: Shape,
    cases: Sequence[Case],
    report: Callable[[str], None] = lambda text: None,
) -> Memory:
    """The peak memory of each case's step, in bytes."""
    if settings.torch_device.type == "cuda":
        return {case.name: _on_cuda(settings, shape, case) for case in cases}
    names = [case.name for case in cases]
    found: Memory = {}
    while left := [name for name in names if name not in found]:
        before = len(found)
        _run_worker(settings, shape, left, found, report)
        if len(found) == before:
            found |= dict.fromkeys(left, "the process that measures memory did not start")
    return found


def _run_worker(
    settings: Settings,
    shape: Shape,
    names: Sequence[str],
    found: Memory,
    report: Callable[[str], None],
) -> None:
    """Measures in a new process until all is done or it dies; then the case in hand has failed."""
    source = str(Path(covpool.__file__).parents[1])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | ALLOCATOR | {"PYTHONPATH": path},
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            json.dump(
                {"settings": settings.to_dict(), "shape": str(shape), "names": list(names)},
                process.stdin,
            )
            process.stdin.close()
        current = None
        for line in process.stdout:
            message = json.loads(line)
            current = message["case"]
            if "peak" in message:
                found[current] = message["peak"]
                current = None
            else:
                report(f"memory of {current}")
        status = process.wait()
        if current is not None:
            found[current] = f"the process that measured it ended with status {status}"
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _on_cuda(settings: Settings, shape: Shape, case: Case) -> int | str:
    device = settings.torch_device
    try:
        with case.context():
            case.prepare(*settings.inputs(replace(shape, batch=1)))()
            step = case.prepare(*settings.inputs(shape))
            gc.collect()
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            step()
            torch.cuda.synchronize(device)
            return torch.cuda.max_memory_allocated(device) - before
    except Exception as error:
        return describe(error)


def _on_cpu(settings: Settings, shape: Shape, case: Case) -> int | str:
    try:
        with case.context():
            case.prepare(*settings.inputs(replace(shape, batch=1)))()
            step = case.prepare(*settings.inputs(shape))
            gc.collect()
            ballast, before = _fill_to_peak()
            result = step()
            peak = _largest_resident()
            del result, ballast
            return peak - before
    except Exception as error:
        return describe(error)


def _largest_resident() -> int:
    """The process's largest resident size so far, in bytes."""
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _fill_to_peak() -> tuple[list[bytearray], int]:
    """Memory that brings the resident size to its peak, to be kept; and that peak in bytes."""
    ballast: list[bytearray] = []
    start = _largest_resident()
    while _largest_resident() <= start:
        ballast.append(bytearray(b"\1") * CHUNK)
    return ballast, _largest_resident()


def _worker() -> None:
    """Reads what to measure on standard input; writes a line of JSON before and after each."""
    job = json.load(sys.stdin)
    settings = Settings.from_dict(job["settings"])
    shape = Shape.parse(job["shape"])
    # What a peer prints, or LAPACK by itself below Python, does not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    cases = {case.name: case for case in settings.cases(settings.open_peers())}
    with fixed_threads(settings.threads):
        for name in job["names"]:
            print(json.dumps({"case": name}), file=answers, flush=True)
            peak = _on_cpu(settings, shape, cases[name])
            print(json.dumps({"case": name, "peak": peak}), file=answers, flush=True)


if __name__ == "__main__":
    _worker()
