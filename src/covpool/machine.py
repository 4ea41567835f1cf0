"""On what something was computed: machine, versions, and what else kept it busy."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covpool._version import __version__
from covpool.linalg.engine.quota import available_cores as available_cores
from covpool.text import quantity

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "numpy", "scipy", "torchvision", "timm")
VARIABLES = ("OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "CUDA_VISIBLE", "PYTORCH_", "TORCH_")


def describe_environment(threads: int, device: str) -> dict[str, Any]:
    """What belongs into the results besides the figures themselves."""
    import torch

    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cores_available": available_cores(),
        "threads": threads,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "device": device,
        "device_name": device_name(device),
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in PACKAGES}
        | {"covpool": __version__, "cuda": torch.version.cuda},
        "covpool_commit": commit_of(Path(__file__).parent),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "linear_algebra": _linear_algebra(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)},
    }


def describe_machine(device: "torch.device") -> dict[str, Any]:
    """What a run's summary says of it: processor, cores, threads, accelerator, system, Python."""
    import torch

    none = "none" if device.type == "cpu" else str(device)
    return {
        "processor": cpu_model(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "accelerator": device_name(str(device)) or none,
        "system": platform.platform(),
        "Python": platform.python_version(),
    }


def summary_line(environment: dict[str, Any]) -> str:
    """The same in one line, for people."""
    versions = environment["versions"]
    name = environment["device_name"] or environment["cpu"]
    return (
        f"{name}, {environment['cores_available']} of "
        f"{quantity(environment['cores'], 'core')}, "
        f"{quantity(environment['threads'], 'thread')}; torch {versions['torch']}, "
        f"covpool {versions['covpool']}, Python {environment['python']}"
    )


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def device_name(device: str) -> str | None:
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _linear_algebra() -> list[str]:
    """The lines of torch's build configuration that name BLAS, LAPACK and the threading."""
    import torch

    words = ("MKL", "BLAS", "LAPACK", "OpenMP")
    lines = torch.__config__.show().splitlines()
    return [line.strip(" -") for line in lines if any(w in line for w in words) and len(line) < 200]


def commit_of(folder: Path) -> str | None:
    """The commit that a folder is checked out at, "+modified" where files differ from it.

    None where it is not a checkout, or git is not installed.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    return f"{commit}+modified" if _git(folder, "status", "--porcelain", "-uno", ".") else commit


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
