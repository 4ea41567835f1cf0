"""What the pooling costs in a training step of a network: steps over those with `gap`."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from covpool.bench.measurement import Record, TimedMeasurement
from covpool.bench.options import StepOptions
from covpool.bench.peers import Root
from covpool.bench.tables import NAME, column, compare, ratio
from covpool.bench.timing import Case
from covpool.bench.timing import Step as Repeated
from covpool.linalg.names import PoolingName
from covpool.models import create_model
from covpool.poolings import check_pooling

DEFAULTS = {"cpu": (16, "float32"), "cuda": (128, "bfloat16")}
"""Batch and precision by the device."""

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

    figures = "{backbone}, {classes} classes, {precision}; medians of {rounds}"
    title = "images {shape}"
    columns: ClassVar = {
        "pooling": NAME,
        "step, s": column("median", "{:.3f}"),
        "over gap": column("over_gap", "{:.3f}"),
        "pooling alone, s": column("pooling_median", "{:.4f}"),
        "of the step": column("pooling_share", "{:.1%}"),
    }

    def check(self, options: StepOptions) -> StepOptions:
        device = options.device.partition(":")[0]
        batch, precision = DEFAULTS.get(device, DEFAULTS["cpu"])
        for name in options.methods:
            check_pooling(name)
        options = replace(
            options, batch=options.batch or batch, precision=options.precision or precision
        )
        shape = f"{options.batch}x3x{options.size}x{options.size}"
        return super().check(replace(options, shapes=(shape,)))

    def cases(self, point: str) -> list[Case]:
        own = self.options
        made = [
            *(
                Case(name=name, prepare=partial(self._model, check_pooling(name), None))
                for name in dict.fromkeys((BASELINE, *own.methods))
            ),
            *(
                opened.case(
                    row,
                    partial(self._model, "exact"),
                    name=f"{opened.peer.name}/{row.name}",
                    output="triangle",
                )
                for opened in self.peers
                for row in opened.peer.rows_of("pooling")
                if row.name in own.rows or own.rows == ("all",)
            ),
        ]
        return [each for case in made for each in self._step_and_pooling(case)]

    def _step_and_pooling(self, case: Case) -> Iterator[Case]:
        """The step of a network, and its pooling alone."""
        # Both are of one network, which is built when the first of them is prepared.
        model = cache(case.prepare)
        yield replace(case, prepare=lambda *batch: self._training_step(model(), *batch))
        yield replace(
            case,
            name=ALONE.format(case.name),
            prepare=lambda *batch: self._pooling_step(model(), *batch),
        )

    def inputs(self, point: str, batch: int | None = None) -> tuple[Tensor, Tensor]:
        own = self.options
        generator = torch.Generator().manual_seed(own.seed)
        count = batch or own.batch or 1
        images = torch.randn(count, 3, own.size, own.size, generator=generator)
        labels = torch.randint(own.classes, (count,), generator=generator)
        return images.to(own.device, memory_format=self._format), labels.to(own.device)

    @property
    def _format(self) -> torch.memory_format:
        return torch.channels_last if self.options.channels_last else torch.preserve_format

    def _model(self, method: PoolingName, peer: Root | None) -> Any:
        own = self.options
        torch.manual_seed(own.seed)
        model: Any = create_model(
            own.backbone, own.classes, method=method, last_stride=own.last_stride
        )
        if peer is not None:
            model.pool = PeerPool(model.pool.reduction, peer)
        return model.to(own.device, memory_format=self._format).train()

    def _autocast(self) -> Any:
        enabled = self.options.precision == "bfloat16"
        kind = torch.device(self.options.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=enabled)

    def _training_step(self, model: Any, images: Tensor, labels: Tensor) -> Repeated:
        # A rate so small that the weights stay what they are, however often the step is repeated.
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with self._autocast():
                loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()

        return step

    def _pooling_step(self, model: Any, images: Tensor, labels: Tensor) -> Repeated:
        weights = list(model.pool.parameters())
        with torch.no_grad(), self._autocast():
            features = model.forward_features(images)

        def step() -> None:
            x = features.detach().requires_grad_()
            with self._autocast():
                pooled = model.pool(x)
            torch.autograd.backward(pooled, torch.ones_like(pooled), inputs=[x, *weights])

        return step

    def complete(self, point: str, rows: list[Record]) -> Record:
        """A row for each network: its step, its pooling, and the ratios."""
        by_name = {row["name"]: row for row in rows}
        steps = [row for name, row in by_name.items() if ALONE.format(name) in by_name]
        compare(steps, by_name[BASELINE], "over_gap")
        for row in steps:
            pooling = by_name[ALONE.format(row["name"])]
            row |= {
                "error": row["error"] or pooling["error"],
                "pooling_median": pooling["median"],
                "pooling_rounds": pooling["rounds"],
                "pooling_share": ratio(pooling["median"], row["median"]),
            }
        return {"cases": steps}
