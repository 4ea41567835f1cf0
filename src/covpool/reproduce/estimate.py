"""How long runs will take, from steps that are measured here."""

import time
from collections.abc import Callable, Iterable

import torch
from torch.nn.functional import cross_entropy

from covpool.linalg.methods import get_method
from covpool.reproduce.arms import NEWTON_SCHULZ, Arm
from covpool.reproduce.results import Setting
from covpool.train.job import Job
from covpool.train.sampling import steps_and_batch

REPEATS = 3


def seconds_of_runs(setting: Setting, job: Job, report: Callable[[str], None]) -> float:
    """Time of training and evaluation of all cells, one after the other, on this machine.

    Args:
        setting: the runs.
        job: one of them, whose model is used up.
        report: called with each method's name before it is measured.
    """
    device = device_of(setting.config.train.accelerator)
    threads = next(iter(setting.cells.values())).config.train.threads
    if threads is not None:
        torch.set_num_threads(threads)
    epochs = {arm: epochs_by_method(setting, arm) for arm in setting.arms}
    names = dict.fromkeys(name for own in epochs.values() for name in own)
    per_epoch = {}
    for name in names:
        report(name)
        per_epoch[name] = seconds_per_epoch(job, name, device)
    return sum(
        per_epoch[name] * number for arm, _ in setting.cells for name, number in epochs[arm].items()
    )


def epochs_by_method(setting: Setting, arm: Arm) -> dict[str, int]:
    """How many epochs each method of an arm has to train."""
    cell = next(cell for (own, _), cell in setting.cells.items() if own == arm)
    if not arm.hybrid:
        return {arm.method: cell.epochs}
    switch = setting.config.optim.milestones[-1]
    last = setting.config.train.epochs - switch
    return {NEWTON_SCHULZ: switch - cell.inherited, arm.method: last}


def device_of(accelerator: str) -> torch.device:
    """Where Lightning's accelerator of that name computes."""
    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def seconds_per_epoch(job: Job, name: str, device: torch.device) -> float:
    """Training and evaluation of one epoch with a pooling, from a few steps measured.

    Args:
        job: whose model is used up; one with gap for gap, else one with a covariance.
        name: the pooling.
        device: where.
    """
    data, splits = job.config.data, job.splits
    steps, size = steps_and_batch(len(splits.train), data.batch_size)
    model = job.model.to(device).train()
    if name != "gap":
        model.method = get_method(name)
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
    return steps * (training + loading) + batches * (evaluation + loading)


def _least(action: Callable[[], None]) -> float:
    action()
    return min(_times(action))


def _times(action: Callable[[], None]) -> Iterable[float]:
    for _ in range(REPEATS):
        began = time.perf_counter()
        action()
        yield time.perf_counter() - began
