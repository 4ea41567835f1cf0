"""Making the runs of a bundle, in a process of its own, as `covpool.experiments.grid` asks."""

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

import covpool
from covpool.experiments.frozen.features import stage_name
from covpool.experiments.frozen.heads import (
    Head,
    Result,
    Stop,
    applied,
    train_head,
    train_linear,
)
from covpool.experiments.frozen.plan import Bundle, Frozen, HeadPlan, learns
from covpool.experiments.frozen.reduction import Reduction
from covpool.experiments.grid import taken
from covpool.experiments.runs import Run
from covpool.linalg.methods import Method
from covpool.machine import describe_machine
from covpool.pooling import CovPool2d
from covpool.poolings import Pool2d
from covpool.train.config import RunConfig
from covpool.train.interruption import StopRequest
from covpool.train.run_directory import RunDirectory, best_row
from covpool.train.sampling import combine_seeds


@dataclass(frozen=True, kw_only=True)
class Made:
    """How a configuration's head is made of frozen features.

    Attributes:
        plan: its parts.
        channels: of the backbone's maps.
        inputs: channels of the maps that it is given.
        reduces: whether it learns a reduction of its own.
        fixed: whether its vectors can be computed once: nothing before the classifier is trained.
    """

    plan: HeadPlan
    channels: int
    inputs: int
    reduces: bool
    fixed: bool

    def pool(self) -> CovPool2d | Pool2d:
        """The pooling as a layer, with its own reduction or behind one; its weights are drawn."""
        reduced = self.plan.reduced if self.reduces else None
        if isinstance(self.plan.row, Method):
            return CovPool2d(self.inputs, reduced, self.plan.row)
        return Pool2d(self.inputs, self.plan.row, reduced)

    def head(self, pool: nn.Module | None, classes: int, config: RunConfig) -> Head:
        """The head; without `pool` one of vectors."""
        return Head(
            pool,
            self.out_features,
            classes,
            hidden=self.plan.hidden,
            drop_rate=config.model.drop_rate,
        )

    @cached_property
    def out_features(self) -> int:
        """The vectors' length."""
        with torch.device("meta"):
            return self.pool().out_features

    @property
    def shares(self) -> bool:
        """Whether it stands behind the reduction that it shares with others."""
        return self.plan.reduced is not None and not self.reduces

    @property
    def reduction_parameters(self) -> int:
        """Those of the shared reduction that the head stands behind."""
        width = self.plan.reduced
        return self.channels * width + 2 * width if width is not None and self.shares else 0


def made_of(config: RunConfig, frozen: Frozen) -> Made:
    """The head of a run."""
    channels = frozen.features.shape[1]
    plan = HeadPlan.of(config, channels, len(frozen.classes))
    reduces = frozen.reduction is None and plan.reduced is not None
    inputs = channels if reduces or plan.reduced is None else plan.reduced
    return Made(
        plan=plan,
        channels=channels,
        inputs=inputs,
        reduces=reduces,
        fixed=not reduces and not learns(plan, inputs),
    )


def in_unnamed_file(folder: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An array in a file that ends with the process."""
    with tempfile.TemporaryFile(dir=folder) as file:  # the mapping outlives it
        return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)


def make_bundle(bundle: Bundle) -> None:
    """Train the runs of a bundle that are missing, and write their directories.

    Raises:
        Interrupted: it was asked to stop; what is not finished begins anew.
    """
    missing = [run for run in bundle.members if not run.settled()]
    torch.set_num_threads(bundle.config.train.threads or torch.get_num_threads())
    with ExitStack() as stack:
        directories = {run.path: stack.enter_context(taken(run)) for run in missing}
        request = stack.enter_context(StopRequest())
        for run in missing:
            bundle.frozen.mark(run.path)  # first: what has a configuration says what it is made of
            directories[run.path].write_config(run.config)
        began = time.perf_counter()
        results, parameters = _train(bundle, missing, request.check)
        seconds = (time.perf_counter() - began) / max(1, len(missing))
        for run, result in zip(missing, results, strict=True):
            write(directories[run.path], run, result, bundle, parameters, seconds)


def _train(bundle: Bundle, runs: list[Run], stop: Stop) -> tuple[list[Result], int]:
    """Results in the order of the runs, and the parameters of a head."""
    frozen, config = bundle.frozen, bundle.config
    made = made_of(config, frozen)
    width, trial, folder = made.plan.reduced, bundle.trial, frozen.features.folder
    inputs = frozen.features.open()
    if made.shares and width is not None:
        inputs = Reduction(frozen=frozen, channels=width, seed=bundle.seed, trial=trial).maps(stop)
    if made.fixed:
        inputs = applied(made.pool().eval(), inputs, partial(in_unnamed_file, folder), stop)
    examples, classes = frozen.examples(inputs, trial=trial), len(frozen.classes)
    if made.fixed and made.plan.hidden is None and not config.model.drop_rate:
        distinct = {draws(run.config): run.config for run in runs}
        found = train_linear(examples, [*distinct.values()], stop)
        trained = dict(zip(distinct, found, strict=True))
        count = (made.out_features + 1) * classes
        results = [_named(trained[draws(run.config)], run) for run in runs]
        return results, count + made.reduction_parameters
    results, count = [], 0
    for run in runs:
        torch.manual_seed(combine_seeds(run.config.train.seed))
        head = made.head(None if made.fixed else made.pool(), classes, run.config)
        head.measure(examples)
        results.append(train_head(examples, head, run.config, stop))
        count = sum(parameter.numel() for parameter in head.parameters())
    return results, count + made.reduction_parameters


def draws(config: RunConfig) -> tuple[float, ...]:
    """What the linear classifiers of a bundle differ in."""
    return config.optim.learning_rate, config.optim.weight_decay, config.train.seed


def _named(result: Result, run: Run) -> Result:
    """A result that several poolings share, with the name of the run's own."""
    history = [{**row, "method": run.config.model.method} for row in result.history]
    return Result(history=history, confusion=result.confusion, reason=result.reason)


def write(
    directory: RunDirectory,
    run: Run,
    result: Result,
    bundle: Bundle,
    parameters: int,
    seconds: float,
) -> None:
    """A run's results, summary.json last."""
    frozen, config, history = bundle.frozen, run.config, result.history
    if history:
        directory.write_metrics(history)
    summary = {
        "status": "diverged" if result.reason else "finished",
        **({"reason": result.reason} if result.reason else {}),
        "data": frozen.name,
        "evaluated": "validation" if bundle.trial else "test",
        "backbone": config.model.backbone,
        "schedule": config.model.method,
        "seed": config.train.seed,
        "epochs": len(history),
        "epochs_planned": config.train.epochs,
        "parameters": parameters,
        "seconds": round(seconds, 3),
        "notes": [
            f"a head on frozen features ({stage_name(frozen.features.stage)}), by covpool probe; "
            "parameters are the head's",
            *frozen.notes,
        ],
        "covpool": covpool.__version__,
        "torch": torch.__version__,
        "machine": describe_machine(torch.device("cpu")),
        "peak_memory_bytes": None,
    }
    if history:
        summary |= {"final": history[-1], "best": best_row(history)}
    if result.confusion is not None and not result.reason:
        directory.write_confusions(result.confusion.tolist(), frozen.classes)
    directory.write_summary(summary)
