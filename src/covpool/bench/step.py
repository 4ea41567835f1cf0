"""What the pooling costs in a training step of a network: steps over those with `gap`."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from covpool.bench import tables
from covpool.bench.checkouts import as_published
from covpool.bench.measurement import Record, Results, TimedMeasurement, ratio
from covpool.bench.options import StepOptions
from covpool.bench.peers import OpenPeer, PeerRow, Root
from covpool.bench.tables import NAME, Table, column
from covpool.bench.timing import Case, Report
from covpool.bench.timing import Step as Repeated
from covpool.linalg.names import PoolingName
from covpool.machine import summary_line
from covpool.models import create_model
from covpool.poolings import check_pooling
from covpool.text import quantity

BATCHES = {"cpu": 16, "cuda": 128}
PRECISIONS = {"cpu": "float32", "cuda": "bfloat16"}
BASELINE = "gap"
ALONE = "{}: pooling alone"


class PeerPool(nn.Module):
    """Our layer's reduction, then a peer's root: (B, C, H, W) → (B, r(r+1)/2)."""

    def __init__(self, reduction: nn.Module, layer: Root) -> None:
        super().__init__()
        self.reduction = reduction
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.reduction(x)).flatten(1)


class Step(TimedMeasurement[StepOptions]):
    """Training steps of networks that differ in the pooling, and the poolings alone."""

    def check(self, options: StepOptions) -> StepOptions:
        device = options.device.partition(":")[0]
        batch = options.batch or BATCHES.get(device, 1)
        precision = options.precision or PRECISIONS.get(device, "float32")
        if precision not in PRECISIONS.values():
            choices = ", ".join(PRECISIONS.values())
            raise ValueError(f"--precision {precision}: choose from {choices}")
        for name in options.methods:
            check_pooling(name)
        shape = f"{batch}x3x{options.size}x{options.size}"
        return super().check(replace(options, batch=batch, precision=precision, shapes=(shape,)))

    @cached_property
    def cases(self) -> list[Case]:
        made = []
        for name in dict.fromkeys((BASELINE, *self.options.methods)):
            made += self._two_cases(name, check_pooling(name), None)
        for opened in self.peers:
            for row in opened.peer.rows_of("pooling"):
                if row.name in self.options.rows or self.options.rows == ("all",):
                    made += self._two_cases(
                        f"{opened.peer.name}/{row.name}", "exact", (opened, row)
                    )
        return made

    def _two_cases(
        self, name: str, method: PoolingName, peer: tuple[OpenPeer, PeerRow] | None
    ) -> list[Case]:
        """The step of a network, and its pooling alone."""
        # Both are of one network, which is built when the first of them is prepared.
        model = cache(partial(self._model, method, peer))
        device = torch.device(self.options.device)
        shared: Any = {
            "kind": "covpool" if peer is None else "peer",
            "context": partial(as_published, device) if peer is not None else nullcontext,
        }
        step, alone = partial(self._training_step, model), partial(self._pooling_step, model)
        return [
            Case(name=name, prepare=step, **shared),
            Case(name=ALONE.format(name), prepare=alone, **shared),
        ]

    def inputs(self, shape: str, batch: int | None = None) -> tuple[Tensor, ...]:
        own = self.options
        generator = torch.Generator().manual_seed(own.seed)
        count = batch or own.batch or 1
        images = torch.randn(count, 3, own.size, own.size, generator=generator).to(own.device)
        labels = torch.randint(own.classes, (count,), generator=generator).to(own.device)
        if own.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, labels

    def _model(self, method: PoolingName, peer: tuple[OpenPeer, PeerRow] | None) -> Any:
        own = self.options
        torch.manual_seed(own.seed)
        model: Any = create_model(
            own.backbone, own.classes, method=method, last_stride=own.last_stride
        )
        if peer is not None:
            opened, row = peer
            model.pool = PeerPool(model.pool.reduction, opened.function(row, "triangle"))
        model = model.to(own.device).train()
        return model.to(memory_format=torch.channels_last) if own.channels_last else model

    def _autocast(self) -> Any:
        enabled = self.options.precision == "bfloat16"
        kind = torch.device(self.options.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=enabled)

    def _training_step(self, build: Any, images: Tensor, labels: Tensor) -> Repeated:
        model = build()
        # A rate so small that the weights stay what they are, however often the step is repeated.
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with self._autocast():
                loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()

        return step

    def _pooling_step(self, build: Any, images: Tensor, labels: Tensor) -> Repeated:
        model = build()
        weights = list(model.pool.parameters())
        with torch.no_grad(), self._autocast():
            features = model.forward_features(images)

        def step() -> None:
            x = features.detach().requires_grad_()
            with self._autocast():
                pooled = model.pool(x)
            torch.autograd.backward(pooled, torch.ones_like(pooled), inputs=[x, *weights])

        return step

    def measure(self, shape: str, report: Report) -> Record:
        """A row for each network: its step, its pooling, and the ratios."""
        rows = {row["name"]: row for row in self.rows(shape, report)}
        found = [
            row | _beside(row, rows[BASELINE], rows[ALONE.format(name)])
            for name, row in rows.items()
            if ALONE.format(name) in rows
        ]
        return {"shape": shape, "cases": found}

    @staticmethod
    def preamble(results: Results) -> str:
        own = results["settings"]
        return (
            f"{summary_line(results['environment'])}\n{own['backbone']}, {own['classes']} classes, "
            f"{own['precision']}; medians of {quantity(own['rounds'], 'round')}"
        )

    @staticmethod
    def tables(record: Record) -> Iterator[Table]:
        columns = {
            "pooling": NAME,
            "step, s": column("median", "{:.3f}"),
            "over gap": column("over_gap", "{:.3f}"),
            "pooling alone, s": column("pooling_median", "{:.4f}"),
            "of the step": column("pooling_share", "{:.1%}"),
        }
        yield tables.table(f"images {record['shape']}", columns, record["cases"])


def _beside(row: Record, base: Record, pooling: Record) -> Record:
    return {
        "error": row["error"] or pooling["error"],
        "over_gap": ratio(row["median"], base["median"]),
        "pooling_median": pooling["median"],
        "pooling_rounds": pooling["rounds"],
        "pooling_share": ratio(pooling["median"], row["median"]),
    }
