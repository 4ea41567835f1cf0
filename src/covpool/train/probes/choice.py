"""The probes that a configuration can name: one table."""

import logging
from collections.abc import Mapping
from pathlib import Path

from covpool.linalg.methods import METHODS
from covpool.train.config import RunConfig
from covpool.train.module import ClassificationModule
from covpool.train.probes.base import Probe
from covpool.train.probes.conditioning import ConditioningProbe
from covpool.train.probes.fidelity import FidelityProbe
from covpool.train.probes.smoothness import SmoothnessProbe

MEASUREMENTS = 3
"""Of each probe in each epoch, where `train.probe_every` is null."""

PROBES: Mapping[str, type[Probe]] = {
    probe.name: probe for probe in (SmoothnessProbe, ConditioningProbe, FidelityProbe)
}
"""By their names in `train.probes`."""

logger = logging.getLogger("covpool")


def unmeasured(config: RunConfig, pooling: str) -> list[str]:
    """Those of `train.probes` that a network with that pooling has nothing for."""
    return [n for n in config.train.probes if pooling not in METHODS and PROBES[n].needs_pooling]


def warn_of_unmeasured(config: RunConfig, pooling: str) -> None:
    """Say which of `train.probes` are going to write nothing."""
    names = unmeasured(config, pooling)
    if names:
        logger.warning(
            "train.probes: %s left out of trainings with %s, which pools no covariance",
            f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'}",
            pooling,
        )


def make_probes(config: RunConfig, module: ClassificationModule, directory: Path) -> list[Probe]:
    """The configuration's probes, which write to that run directory."""
    every = config.train.probe_every or max(1, module.steps_per_epoch // MEASUREMENTS)
    left_out = unmeasured(config, module.model.method)
    return [
        PROBES[name](directory, every=every)
        for name in dict.fromkeys(config.train.probes)
        if name not in left_out
    ]
