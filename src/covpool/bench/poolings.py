"""Every pooling as a layer in training, beside the square root by `exact`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from covpool.bench import tables
from covpool.bench.features import Shape
from covpool.bench.layers import FeatureMeasurement
from covpool.bench.measurement import Record, Results
from covpool.bench.memory import RESOLUTION
from covpool.bench.options import PoolingsOptions
from covpool.bench.tables import NAME, RATIO, Columns, Row, Table, column, compare
from covpool.bench.timing import Case, Step
from covpool.poolings import POOLINGS, Pool2d, Pooling, check_pooling

BASELINE = "exact"
FACTS: Columns = {
    "pooling": NAME,
    "vector": column("out_features", "{:,}"),
    "parameters": column("parameters", "{:,}"),
}
FIGURES: Columns = {
    **tables.TIMES,
    "time over exact": column("over_exact", RATIO),
    **tables.MEMORY,
    "memory over exact": column("memory_over_exact", RATIO),
}


class Poolings(FeatureMeasurement[PoolingsOptions]):
    """The rows of `POOLINGS`, of which one that cannot take a shape is there with its reason."""

    figures = (
        f"{FeatureMeasurement.figures} Gradients are those of the features, of the layer's "
        "parameters and of the class token."
    )
    columns: ClassVar = {**FACTS, **FIGURES}

    def check(self, options: PoolingsOptions) -> PoolingsOptions:
        every = options.poolings == ("all",)
        names = [check_pooling(name) for name in (POOLINGS if every else options.poolings)]
        return super().check(replace(options, poolings=tuple(dict.fromkeys((BASELINE, *names)))))

    def cases(self, point: str) -> list[Case]:
        return [
            Case(name=name, prepare=partial(self._step, POOLINGS[name]))
            for name in self.options.poolings
        ]

    def _step(self, row: Pooling, features: Tensor, weight: Tensor) -> Step:
        generator = torch.Generator().manual_seed(self.options.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            layer = _layer(row, features.shape[1]).to(features).train()
        leaves = [features.detach().requires_grad_()]
        if layer.token_features:
            size = (len(features), layer.token_features)
            token = torch.randn(size, generator=generator).to(features)
            leaves.append(token.requires_grad_())
        wanted = [*leaves, *layer.parameters()]
        size = (len(features), layer.out_features)
        direction = torch.randn(size, generator=generator).to(features)

        def step() -> tuple[Tensor, ...]:
            vector = layer(*leaves)
            return vector.detach(), *torch.autograd.grad(vector, wanted, direction)

        return step

    def complete(self, point: str, rows: list[Record]) -> Record:
        for row in rows:
            row |= _sizes(POOLINGS[row["name"]], Shape.parse(point).channels)
        base = next(row for row in rows if row["name"] == BASELINE)
        compare(rows, base, "over_exact")
        compare(rows, base, "memory_over_exact", "memory", RESOLUTION)
        return {}


def _layer(row: Pooling, channels: int) -> Pool2d:
    """The layer; a pooling that takes a class token gets one as long as the others."""
    return Pool2d(channels, row, token_features=channels if row.class_token else 0)


def _sizes(row: Pooling, channels: int) -> Record:
    """The length of its vector and the number of its parameters, where it can be made."""
    try:
        with torch.device("meta"):
            layer = _layer(row, channels)
    except ValueError:
        return {"out_features": None, "parameters": None}
    parameters = sum(parameter.numel() for parameter in layer.parameters())
    return {"out_features": layer.out_features, "parameters": parameters}


def overview(results: Results) -> Table:
    """A line for each pooling: its size at the first shape, and its time and memory over those of
    `exact` at every shape."""
    columns = dict(FACTS)
    for record in results["shapes"]:
        rows = {row["name"]: row for row in record["cases"]}
        for title in ("time over exact", "memory over exact"):
            columns[f"{title}, {record['shape']}"] = partial(_figure, rows, FIGURES[title])
    return tables.table("", columns, results["shapes"][0]["cases"])


def _figure(rows: Mapping[str, Row], show: Callable[[Row], str], row: Row) -> str:
    at_shape = rows[row["name"]]
    return "failed" if at_shape["error"] else show(at_shape)
