"""Classifiers behind poolings of frozen features, trained by stochastic gradient descent.

Where nothing before the classifier is trained, its input is a vector that is computed once, and
the classifiers of many runs are trained at once (`train_linear`), by one batched matrix
product. Else a head is trained by itself (`train_head`). Both do the same steps.

Legend: h heads, B images of a batch, D numbers of a vector, K classes.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from covpool.train.config import RunConfig
from covpool.train.optimizer import learning_rate_course
from covpool.train.run_directory import Row
from covpool.train.sampling import TrainBatchSampler, combine_seeds

MIRRORS = 7
"""What the seed ends with by which an epoch's mirror images are drawn."""

STATISTICS = 2048
"""Training images, at most, that the vectors' mean and length are of."""

LENGTH = 25.0
"""The root mean square length that vectors have after it."""

BUDGET = 1 << 30
"""Bytes that the weights of classifiers trained at once may take, with gradient and momentum."""

EVALUATED_AT_ONCE = 512

COUNTED_AT_ONCE = 1 << 20
"""Logits, about, whose hits are counted together: of a small batch, the calls would cost more than
the numbers; of many classes and heads, more would take gigabytes."""

Stop = Callable[[], None]
"""Called between epochs; raises where the training is to stop."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Inputs of heads, vectors or maps, with what is trained and evaluated on.

    Attributes:
        array: a row for each view of an image.
        train: rows of the training images.
        mirror: what is added to such a row for that of the mirror image; 0: there are none.
        labels: of the training images.
        test: rows of the images that are evaluated.
        test_labels: theirs.
        classes: how many.
    """

    array: np.ndarray
    train: Tensor
    mirror: int
    labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int

    def rows(self, rows: Tensor) -> Tensor:
        """The inputs of these rows, of whatever shape, in front of an input's own."""
        found = self.array[rows.flatten().numpy()]
        return torch.from_numpy(found).unflatten(0, rows.shape)

    def epoch(self, config: RunConfig, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and labels of an epoch's batches, by the run's seed: the order of `covpool train`,
        each image or its mirror image at random."""
        size, seed = len(self.train), config.train.seed
        sampler = TrainBatchSampler(size, config.data.batch_size, seed=seed, step=lambda: 0)
        steps = sampler.steps
        sampler.step = lambda: epoch * steps
        generator = torch.Generator().manual_seed(combine_seeds(seed, epoch, MIRRORS))
        mirrored = self.mirror * torch.randint(2, (size,), generator=generator)
        for batch in sampler:
            chosen = torch.tensor([index for _, index in batch])
            yield self.train[chosen] + mirrored[chosen], self.labels[chosen]

    @property
    def sample(self) -> Tensor:
        """The rows that statistics are of."""
        return self.train[:: -(-len(self.train) // STATISTICS)]


@dataclass(kw_only=True)
class Result:
    """What training came to.

    Attributes:
        history: a row for each finished epoch, as a run's metrics.
        confusion: evaluated images of class i called j, after the last epoch.
        reason: why it ended early; empty: it did not.
    """

    history: list[Row] = field(default_factory=list)
    confusion: Tensor | None = None
    reason: str = ""


class Standardise(nn.Module):
    """Vectors less their mean, over one number: mean and root mean square length as measured before
    the training, `LENGTH` after it. No direction is changed relative to another.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean) * self.scale

    def measure(self, vectors: Tensor) -> None:
        """Take mean and length from these vectors; where all are the same they become zero."""
        wide = vectors.to(torch.float64)
        mean = wide.mean(0)
        length = (wide - mean).square().sum(1).mean().sqrt()
        scale = LENGTH / length if length > 0 else torch.zeros_like(length)
        self.mean.copy_(mean)
        self.scale.copy_(scale)


class Head(nn.Module):
    """Maps or vectors → logits: pooling, `Standardise`, hidden layer, dropout, linear classifier.

    Args:
        pool: the pooling, with its reduction if it has its own; None where inputs are vectors.
        features: the vectors' length.
        classes: how many.
        hidden: width of the hidden layer (linear, batch norm, ReLU); None: there is none.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        pool: nn.Module | None,
        features: int,
        classes: int,
        *,
        hidden: int | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.pool = nn.Identity() if pool is None else pool
        self.standardise = Standardise(features)
        self.hidden = nn.Identity()
        if hidden is not None:
            self.hidden = nn.Sequential(
                nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)
            )
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(hidden or features, classes)

    def forward(self, x: Tensor) -> Tensor:
        vectors = self.standardise(self.pool(x))
        return self.classifier(self.dropout(self.hidden(vectors)))

    @torch.no_grad()
    def measure(self, examples: Examples) -> None:
        """Set `standardise` by training images, pooled as in training."""
        self.train()
        parts = examples.sample.split(EVALUATED_AT_ONCE)
        self.standardise.measure(torch.cat([self.pool(examples.rows(part)) for part in parts]))

    def groups(self, config: RunConfig) -> list[dict]:
        """The optimiser's groups: the pooling at the rate, what follows it at a multiple."""
        optim = config.optim
        rates = (optim.learning_rate, optim.learning_rate * optim.classifier_multiplier)
        after = [*self.hidden.parameters(), *self.classifier.parameters()]
        parts = ([*self.pool.parameters()], after)
        return [{"params": p, "lr": r} for p, r in zip(parts, rates, strict=True) if p]


@torch.no_grad()
def applied(
    layer: nn.Module,
    maps: np.ndarray,
    make: Callable[[tuple[int, ...]], np.ndarray],
    stop: Stop,
) -> np.ndarray:
    """What a layer makes of all maps, in the array that `make` gives for its shape."""

    def of(first: int, count: int) -> np.ndarray:
        return layer(torch.from_numpy(np.array(maps[first : first + count]))).numpy()

    found = make((len(maps), *of(0, 1).shape[1:]))
    for first in range(0, len(maps), EVALUATED_AT_ONCE):
        stop()
        found[first : first + EVALUATED_AT_ONCE] = of(first, EVALUATED_AT_ONCE)
    return found


def steps_of(examples: Examples, config: RunConfig) -> int:
    """Steps of an epoch."""
    size = len(examples.train)
    return TrainBatchSampler(size, config.data.batch_size, seed=0, step=lambda: 0).steps


def train_head(examples: Examples, head: Head, config: RunConfig, stop: Stop) -> Result:
    """Train one head, which has been measured.

    Args:
        examples: maps or vectors.
        head: changed in place.
        config: of its run: batch, seed, rate and its course, momentum, decay, epochs.
        stop: as above.
    """
    optim, steps, result = config.optim, steps_of(examples, config), Result()
    torch.manual_seed(combine_seeds(config.train.seed, 0))
    optimizer = torch.optim.SGD(
        head.groups(config),
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
    )
    course = learning_rate_course(optim, epochs=config.train.epochs, steps_per_epoch=steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, course)
    for epoch in range(config.train.epochs):
        stop()
        head.train()
        began, sums = time.perf_counter(), _Sums(1)
        for rows, labels in examples.epoch(config, epoch):
            logits = head(examples.rows(rows))
            loss = cross_entropy(logits, labels, label_smoothing=optim.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            sums.add(logits.detach()[None], labels[None])
        trained = time.perf_counter() - began
        result.reason = sums.problem(0, epoch)
        if result.reason:
            break
        head.eval()
        found = _Sums(1)
        with torch.no_grad():
            for rows, labels in _evaluated(examples):
                found.add(head(examples.rows(rows))[None], labels[None])
        seconds = (trained, time.perf_counter() - began - trained)
        result.history.append(_row(config, epoch, course(epoch * steps), sums, found, 0, seconds))
        result.confusion = found.confusion(0)
    return result


def train_linear(examples: Examples, configs: Sequence[RunConfig], stop: Stop) -> list[Result]:
    """Train linear classifiers of vectors: for each configuration what `train_head` does with a
    `Head` without pooling and hidden layer, to rounding.

    Args:
        examples: vectors, which are standardised in their place.
        configs: which may differ in seed, rate and decay of the weights alone.
        stop: as above.
    """
    features = examples.array.shape[1]
    standardise = Standardise(features)
    standardise.measure(examples.rows(examples.sample))
    for first in range(0, len(examples.array), EVALUATED_AT_ONCE):
        part = examples.array[first : first + EVALUATED_AT_ONCE]
        part[:] = standardise(torch.from_numpy(part)).numpy()
    at_once = max(1, BUDGET // (3 * 4 * features * examples.classes))
    results = []
    for first in range(0, len(configs), at_once):
        results += _train_chunk(examples, configs[first : first + at_once], stop)
    return results


@torch.no_grad()
def _train_chunk(examples: Examples, configs: Sequence[RunConfig], stop: Stop) -> list[Result]:
    first, steps, heads = configs[0], steps_of(examples, configs[0]), len(configs)
    optim, epochs, classes = first.optim, first.train.epochs, examples.classes
    course = learning_rate_course(optim, epochs=epochs, steps_per_epoch=steps)
    layers = [_classifier(examples, config) for config in configs]
    weights = torch.stack([layer.weight.T for layer in layers])  # (h, D, K)
    biases = torch.stack([layer.bias for layer in layers])[:, None]  # (h, 1, K)
    momenta = [torch.zeros_like(parameter) for parameter in (weights, biases)]
    multiplier, smoothing = optim.classifier_multiplier, optim.label_smoothing
    rates = _column([config.optim.learning_rate * multiplier for config in configs])
    decays = _column([config.optim.weight_decay for config in configs])
    results = [Result() for _ in configs]
    for epoch in range(epochs):
        stop()
        began, sums = time.perf_counter(), _Sums(heads)
        batches = zip(*(examples.epoch(config, epoch) for config in configs), strict=True)
        for step, batch in enumerate(batches, epoch * steps):
            rows, labels = (torch.stack(parts) for parts in zip(*batch, strict=True))
            vectors = examples.rows(rows)  # (h, B, D)
            logits = torch.baddbmm(biases, vectors, weights)  # (h, B, K)
            sums.add(logits, labels)
            # The gradient of the mean cross-entropy by the logits, to which weights and biases
            # add theirs in the momenta: v ← μv + g + λw, w ← w − ηv, as torch.optim.SGD.
            error = logits.softmax(-1).sub_(smoothing / classes)
            ones = error.new_full((*labels.shape, 1), smoothing - 1)
            error.scatter_add_(2, labels[..., None], ones).div_(labels.shape[1])
            momenta[0].baddbmm_(vectors.mT, error, beta=optim.momentum)
            momenta[1].mul_(optim.momentum).add_(error.sum(1, keepdim=True))
            for parameter, momentum in zip((weights, biases), momenta, strict=True):
                momentum.addcmul_(parameter, decays)
                parameter.addcmul_(momentum, rates, value=-course(step))
        trained = (time.perf_counter() - began) / heads
        found = _Sums(heads)
        for rows, labels in _evaluated(examples):
            logits = examples.rows(rows).expand(heads, -1, -1) @ weights
            found.add(logits + biases, labels.expand(heads, -1))
        seconds = (trained, (time.perf_counter() - began) / heads - trained)
        for place, (config, result) in enumerate(zip(configs, results, strict=True)):
            result.reason = result.reason or sums.problem(place, epoch)
            if not result.reason:
                rate = course(epoch * steps)
                row = _row(config, epoch, rate, sums, found, place, seconds)
                result.history.append(row)
                result.confusion = found.confusion(place)
    return results


def _classifier(examples: Examples, config: RunConfig) -> nn.Linear:
    torch.manual_seed(combine_seeds(config.train.seed))
    return nn.Linear(examples.array.shape[1], examples.classes)


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values)[:, None, None]


def _evaluated(examples: Examples) -> Iterator[tuple[Tensor, Tensor]]:
    parts = (examples.test.split(EVALUATED_AT_ONCE), examples.test_labels.split(EVALUATED_AT_ONCE))
    return zip(*parts, strict=True)


class _Sums:
    """Of several heads: loss, hits and calls over the images so far."""

    def __init__(self, heads: int) -> None:
        self.values = torch.zeros(heads, 3, dtype=torch.float64)
        self.images = 0
        self.calls: list[tuple[Tensor, Tensor]] = []
        self.classes = 0
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Logits (h, B, K) of images with these labels (h, B)."""
        self.waiting.append((logits, labels))
        if sum(part.numel() for part, _ in self.waiting) >= COUNTED_AT_ONCE:
            self._count()

    def _count(self) -> None:
        if not self.waiting:
            return
        logits, labels = (torch.cat(parts, 1) for parts in zip(*self.waiting, strict=True))
        self.waiting.clear()
        self.classes = logits.shape[-1]
        losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        own = logits.gather(2, labels[..., None])
        before = (logits > own).sum(-1)
        # Equal logits count as in a stable order, by the number of the class.
        earlier = torch.arange(self.classes) < labels[..., None]
        before += ((logits == own) & earlier).sum(-1)
        parts = (losses.unflatten(0, labels.shape), before < 1, before < 5)
        self.values += torch.stack([part.sum(1).to(torch.float64) for part in parts], 1)
        self.images += labels.shape[1]
        self.calls.append((labels, logits.argmax(-1)))

    def problem(self, head: int, epoch: int) -> str:
        """Why a head's training ends after this epoch; empty: it does not."""
        self._count()
        finite = math.isfinite(self.values[head, 0])
        return "" if finite else f"Training diverged in epoch {epoch + 1}: its loss is not finite."

    def of(self, head: int, split: str) -> Row:
        """A head's figures."""
        self._count()
        loss, *tops = (self.values[head] / self.images).tolist()
        top1, top5 = tops
        return {f"{split}_loss": loss, f"{split}_top1": top1, f"{split}_top5": top5}

    def confusion(self, head: int) -> Tensor:
        """Images of class i called j."""
        self._count()
        pairs = torch.cat(
            [self.classes * labels[head] + called[head] for labels, called in self.calls]
        )
        return pairs.bincount(minlength=self.classes**2).unflatten(0, (self.classes, self.classes))


def _row(
    config: RunConfig,
    epoch: int,
    rate: float,
    train: _Sums,
    test: _Sums,
    head: int,
    seconds: tuple[float, float],
) -> Row:
    """As the recorder of `covpool train` writes it."""
    return {
        "epoch": epoch + 1,
        "method": config.model.method,
        **train.of(head, "train"),
        **test.of(head, "test"),
        "skipped_steps": 0,
        "learning_rate": config.optim.learning_rate * rate,
        "seconds": round(seconds[0], 4),
        "test_seconds": round(seconds[1], 4),
        "images_per_second": round(train.images / max(seconds[0], 1e-9), 1),
    }
