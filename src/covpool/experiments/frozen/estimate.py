"""What a probe will take, from steps that are measured here on made-up maps."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from covpool.experiments.frozen.features import BATCH, Extractor, FeatureFile, Views
from covpool.experiments.frozen.heads import Examples, Head, applied, train_head, train_linear
from covpool.experiments.frozen.plan import Bundle, Frozen, HeadPlan
from covpool.experiments.frozen.reduction import MeanAndCovariance
from covpool.experiments.frozen.work import draws, made_of
from covpool.text import quantity
from covpool.train.config import RunConfig
from covpool.train.sampling import steps_and_batch

STEPS = 2
"""Steps that are timed of each pooling."""

RUN_BYTES = 40_000
"""What a run's directory takes, about."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A part of the work: its name, how many runs it makes, and seconds of one process."""

    name: str
    runs: int
    seconds: float


def features_seconds(extractor: Extractor, views: Views, files: Sequence[FeatureFile]) -> float:
    """Of the features that are missing, with the threads that are set."""
    missing = views.rows - min(file.done for file in files)
    if not missing:
        return 0.0
    number = min(BATCH, views.rows)
    images = torch.stack([views[row] for row in range(number)])
    extractor(images[:1])
    began = time.perf_counter()
    extractor(torch.stack([views[row] for row in range(number)]))
    return (time.perf_counter() - began) / number * missing


def bundle_lines(
    bundles: Sequence[Bundle], frozen: Frozen, report: Callable[[str], None]
) -> list[Line]:
    """A line for each bundle that is not settled; those of the same head are measured once."""
    lines, known = [], dict[tuple[str, int], float]()
    for bundle in bundles:
        missing = [run for run in bundle.members if not run.settled()]
        if not missing:
            continue
        report(bundle.name)
        plan = _plan(bundle.config, frozen)
        heads = len({draws(run.config) for run in missing})
        if (plan.key, heads) not in known:
            known[plan.key, heads] = _per_step(bundle.config, heads, frozen)
        steps = steps_and_batch(_trained(bundle), bundle.config.data.batch_size)[0]
        seconds = bundle.config.train.epochs * steps * known[plan.key, heads]
        lines.append(Line(name=bundle.labels, runs=len(missing), seconds=seconds))
    return lines


def reduction_line(frozen: Frozen, width: int, seeds: int) -> Line:
    """The shared reductions: that of the trials, and one for each seed of the runs that count, each
    with the maps behind it."""
    config = frozen.reduction
    assert config is not None
    _, channels, *size = frozen.features.shape
    pool = MeanAndCovariance(channels, width)
    examples = _made_up(frozen, (channels, *size), config)
    head = Head(pool, pool.out_features, len(frozen.classes))
    head.measure(examples)
    once = replace(config, train=replace(config.train, epochs=1))
    began = time.perf_counter()
    train_head(examples, head, once, _never)
    step = (time.perf_counter() - began) / STEPS
    count = seeds * len(frozen.labels) + len(frozen.kept)
    steps = count / min(config.data.batch_size, len(frozen.labels))
    began = time.perf_counter()
    applied(pool.reduction.eval(), examples.array, partial(np.empty, dtype=np.float32), _never)
    per_map = (time.perf_counter() - began) / len(examples.array)
    seconds = config.train.epochs * steps * step
    seconds += (seeds + 1) * frozen.features.shape[0] * per_map
    many = quantity(seeds + 1, "channel reduction")
    return Line(name=f"{many} to {width}", runs=seeds + 1, seconds=seconds)


def _plan(config: RunConfig, frozen: Frozen) -> HeadPlan:
    return HeadPlan.of(config, frozen.features.shape[1], len(frozen.classes))


def _trained(bundle: Bundle) -> int:
    return len(bundle.frozen.kept if bundle.trial else bundle.frozen.labels)


def _per_step(config: RunConfig, heads: int, frozen: Frozen) -> float:
    """Seconds of a step of all heads of a bundle, its share of the pooling included."""
    made = made_of(config, frozen)
    once = replace(config, train=replace(config.train, epochs=1))
    examples = _made_up(frozen, (made.inputs, *frozen.features.shape[2:]), config)
    computing = 0.0
    if made.fixed:
        pool, maps = made.pool().eval(), examples.array
        pool(torch.from_numpy(maps[:1]))  # what the first call alone does is not measured
        began = time.perf_counter()
        vectors = applied(pool, maps, partial(np.empty, dtype=np.float32), _never)
        per_map = (time.perf_counter() - began) / len(maps)
        # Every view is computed once, in place of once for each step that uses it.
        steps = config.train.epochs * steps_and_batch(len(frozen.labels), config.data.batch_size)[0]
        computing = per_map * frozen.features.shape[0] / steps
        examples = replace(examples, array=vectors)
    linear = made.fixed and made.plan.hidden is None and not config.model.drop_rate
    began = time.perf_counter()
    if linear:
        seeds = [replace(once.train, seed=number) for number in range(heads)]
        configs = [replace(once, train=train) for train in seeds]
        train_linear(examples, configs, _never)
    else:
        head = made.head(None if made.fixed else made.pool(), len(frozen.classes), config)
        head.measure(examples)
        began = time.perf_counter()
        train_head(examples, head, once, _never)
    return (time.perf_counter() - began) / STEPS + computing


def _made_up(frozen: Frozen, shape: tuple[int, ...], config: RunConfig) -> Examples:
    """Maps of a few batches to train on, and to evaluate on in the data set's proportion."""
    batch = steps_and_batch(len(frozen.labels), config.data.batch_size)[1]
    trained = STEPS * batch
    tested = max(1, round(trained * len(frozen.test_labels) / len(frozen.labels)))
    generator = np.random.default_rng(0)
    array = np.abs(generator.standard_normal((trained + tested, *shape), dtype=np.float32))
    labels = torch.arange(trained + tested) % len(frozen.classes)
    rows = torch.arange(trained + tested)
    return Examples(
        array=array,
        train=rows[:trained],
        mirror=0,
        labels=labels[:trained],
        test=rows[trained:],
        test_labels=labels[trained:],
        classes=len(frozen.classes),
    )


def _never() -> None:
    pass
