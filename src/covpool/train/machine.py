"""What a run was computed on, for its summary."""

import platform
from typing import Any

import torch

from covpool.bench.environment import available_cores, cpu_model, device_name


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, accelerator, system and Python, by name."""
    none = "none" if device.type == "cpu" else str(device)
    return {
        "processor": cpu_model(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "accelerator": device_name(str(device)) or none,
        "system": platform.platform(),
        "Python": platform.python_version(),
    }
