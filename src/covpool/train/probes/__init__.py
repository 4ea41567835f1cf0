"""Callbacks that measure along a training and leave no trace in it.

Each writes a row now and then to analysis.jsonl in the run directory. A row is of the state before
the step that it names is taken, counted from 0. On resumption rows of steps that are going to be
taken again are dropped, so each step has one row of each probe.
"""

from covpool.train.analysis_rows import ANALYSIS, read_analysis
from covpool.train.probes.base import PoolingProbe, Probe
from covpool.train.probes.choice import PROBES, make_probes, warn_of_unmeasured
from covpool.train.probes.conditioning import ConditioningProbe
from covpool.train.probes.fidelity import FidelityProbe
from covpool.train.probes.smoothness import SmoothnessProbe

__all__ = [
    "ANALYSIS",
    "PROBES",
    "ConditioningProbe",
    "FidelityProbe",
    "PoolingProbe",
    "Probe",
    "SmoothnessProbe",
    "make_probes",
    "read_analysis",
    "warn_of_unmeasured",
]
