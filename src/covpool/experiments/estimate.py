"""What runs will take, in time and on disk, from steps that are measured here."""

import time
import timeit
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from covpool.experiments.arms import Arm
from covpool.experiments.runs import Run
from covpool.linalg.methods import METHODS, get_method
from covpool.train.config import RunConfig
from covpool.train.job import Job, parameters, prepare
from covpool.train.sampling import steps_and_batch

REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class Line:
    """One arm's part of a plan.

    Attributes:
        arm: the way to train.
        trials: runs on held-out training images that its rate is chosen by; none where an earlier
            line has them.
        runs: runs that count.
        settled: how many of both are there already.
        epochs: what is left to train of both.
        steps: training steps of an epoch of a run that counts.
        parameters: of the network.
        seconds: of training and evaluating what is left, one run after the other.
        disk: bytes that runs without a checkpoint will keep.
        beside: bytes that one of them takes beside these until it has finished.
    """

    arm: Arm
    trials: int
    runs: int
    settled: int
    epochs: int
    steps: int
    parameters: int
    seconds: float
    disk: int
    beside: int


def estimate(
    shared: RunConfig,
    runs: Sequence[Run],
    *,
    job: Job,
    trials: Sequence[Run] = (),
    report: Callable[[str], None],
) -> list[Line]:
    """A line for each arm, from steps of every pooling measured on this machine.

    Args:
        shared: what the runs share.
        runs: those that count.
        job: of the first arm, whose model is used up.
        trials: of the rates; none where the rates are known.
        report: called with each arm's name before it is measured.
    """
    torch.set_num_threads(runs[0].config.train.threads or torch.get_num_threads())
    # Methods have no parameters and share a model. The images have been checked already.
    jobs = {_model_of(job.config): job}

    @cache
    def cost(arm: Arm) -> _Cost:
        report(arm.label)
        config = arm.config(shared)
        if _model_of(config) not in jobs:
            if not config.data.skip_damaged:
                config = replace(config, data=replace(config.data, check="none"))
            jobs[_model_of(config)] = prepare(config)
        return _measure(jobs[_model_of(config)], arm.method)

    switch = shared.optim.milestones[-1] if shared.optim.milestones else 0
    share = 1 - shared.data.validation_fraction
    lines, listed = [], set[Arm]()
    for arm in dict.fromkeys(run.arm for run in runs):
        own = [run for run in runs if run.arm == arm]
        tried = [run for run in trials if run.arm == arm.tuned_as and run.arm not in listed]
        listed.add(arm.tuned_as)
        alone = replace(arm, hybrid=False)
        # Epochs by the arm whose method trains them; of a trial they are of fewer images.
        epochs = Counter({arm.tuned_as: share * sum(map(_left, tried))})
        for run in own:
            after = min(_left(run), shared.train.epochs - switch) if arm.hybrid else _left(run)
            epochs.update({alone: after, arm.tuned_as: _left(run) - after})
        both = (*tried, *own)
        missing = [run for run in both if run.summary()["status"] == "missing"]
        lines.append(
            Line(
                arm=arm,
                trials=len(tried),
                runs=len(own),
                settled=sum(run.settled() for run in both),
                epochs=sum(map(_left, both)),
                steps=steps_and_batch(len(job.splits.train), shared.data.batch_size)[0],
                parameters=cost(alone).parameters,
                seconds=sum(count * cost(each).seconds for each, count in epochs.items() if count),
                disk=sum(cost(alone).disk(run)[0] for run in missing),
                beside=max((cost(alone).disk(run)[1] for run in missing), default=0),
            )
        )
    return lines


def _left(run: Run) -> int:
    return run.epochs - run.epochs_done()


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """Seconds of an epoch, and bytes of the weights and of the optimiser's state."""

    parameters: int
    seconds: float
    weights: int
    momenta: int

    def disk(self, run: Run) -> tuple[int, int]:
        """Bytes of a finished run's checkpoints, and of those that are removed when it has."""
        kept = {"best": 0, "last": 1, "all": 2}[run.config.train.keep]  # beside best.ckpt
        last = self.weights + self.momenta
        return self.weights + kept * last, (2 - kept) * last


def _model_of(config: RunConfig) -> tuple[Any, ...]:
    """Configurations of which this is equal train the same parameters."""
    pooling = "any root" if config.model.method in METHODS else config.model.method
    return pooling, config.model.hidden_features, config.model.gap_reduction


def _measure(job: Job, method: str) -> _Cost:
    """Training and evaluation of one epoch with a pooling, from a few steps; the checkpoints."""
    data, splits = job.config.data, job.splits
    gpu = job.config.train.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    steps, size = steps_and_batch(len(splits.train), data.batch_size)
    model = job.model.to(device).train()
    if method in METHODS:
        model.method = get_method(method)
    began = time.perf_counter()
    pairs = [splits.train[0, number] for number in range(size)]
    loading = (time.perf_counter() - began) / max(1, data.workers)
    images = torch.stack([image for image, _ in pairs]).to(device)
    labels = torch.tensor([label for _, label in pairs], device=device)

    def step() -> None:
        loss = cross_entropy(model(images), labels)
        loss.backward()
        loss.item()

    def evaluate() -> None:
        with torch.no_grad():
            model(images).sum().item()

    training, evaluation = _least(step), _least(evaluate)
    batches = len(splits.test) / size
    seconds = steps * (training + loading) + batches * (evaluation + loading)
    weights, momenta = _bytes_kept(job.module())
    return _Cost(parameters=parameters(model), seconds=seconds, weights=weights, momenta=momenta)


def _bytes_kept(module: Any) -> tuple[int, int]:
    """Of the weights and of the optimiser's state, which a step of length zero makes."""
    optimizer = module.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    state = [value for own in optimizer.state.values() for value in own.values()]
    return _size(module.state_dict().values()), _size(state)


def _size(values: Iterable[Any]) -> int:
    return sum(value.nbytes for value in values if isinstance(value, Tensor | nn.Parameter))


def _least(action: Callable[[], None]) -> float:
    """The shortest of a few times, the first not counted."""
    return min(timeit.repeat(action, number=1, repeat=REPEATS + 1)[1:])
