"""The layers: time, memory and errors at each shape, the peers beside ours, ours over the floor."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from covpool.bench import tables
from covpool.bench.accuracy import Exact
from covpool.bench.features import Shape, make_features, make_weight
from covpool.bench.layer_cases import floor_cases, make_cases
from covpool.bench.measurement import Record, Results, TimedMeasurement, ratio
from covpool.bench.memory import RESOLUTION
from covpool.bench.options import DTYPES, SPECTRA, FeatureOptions, LayersOptions
from covpool.bench.tables import NAME, RATIO, Row, Table, column
from covpool.bench.timing import Case, Report, describe
from covpool.linalg.methods import METHODS, choose, get_method
from covpool.machine import summary_line
from covpool.text import quantity

ACCURACY_BATCH = 4
"""Samples in the measurement of errors; enough for layers that couple samples to show it."""

OnFeatures = TypeVar("OnFeatures", bound=FeatureOptions)
OfLayers = TypeVar("OfLayers", bound=LayersOptions)


class FeatureMeasurement(TimedMeasurement[OnFeatures]):
    """A measurement on feature maps."""

    def check(self, options: OnFeatures) -> OnFeatures:
        for text in options.shapes:
            Shape.parse(text)
        choose("dtype", options.dtype, dict.fromkeys(DTYPES))
        choose("spectrum", options.spectrum, dict.fromkeys(SPECTRA))
        require_condition(options.condition)
        return super().check(options)

    def inputs(self, shape: str, batch: int | None = None, **changed: Any) -> tuple[Tensor, Tensor]:
        """Features and the weight of the loss, as `make_features` and `make_weight` give them.

        Args:
            shape: of the features.
            batch: samples, if not the shape's own.
            **changed: a spectrum or condition other than the options'.
        """
        own, size = self.options, Shape.parse(shape)
        size = replace(size, batch=batch or size.batch)
        made: Any = {"seed": own.seed, "dtype": getattr(torch, own.dtype), "device": own.device}
        chosen: Any = {"spectrum": own.spectrum, "condition": own.condition, **changed}
        return make_features(size, **chosen, **made), make_weight(size, **made)


def require_condition(condition: float) -> None:
    if not (condition >= 1 and math.isfinite(condition)):
        raise ValueError(f"a condition number must be finite and at least 1: {condition}")


class Layers(FeatureMeasurement[OfLayers]):
    """Our methods and the peers' layers, and the floor."""

    def check(self, options: OfLayers) -> OfLayers:
        if options.methods == ("all",):
            options = replace(options, methods=tuple(METHODS))
        for name in options.methods:
            get_method(name)
        if options.compute_dtype is not None:
            choose("compute_dtype", options.compute_dtype, dict.fromkeys(DTYPES))
        for condition in options.accuracy_conditions:
            require_condition(condition)
        return super().check(options)

    @cached_property
    def cases(self) -> list[Case]:
        own = self.options
        compute_dtype = getattr(torch, own.compute_dtype or "", None)
        made = make_cases(own.methods, self.peers, vector=own.vector, compute_dtype=compute_dtype)
        if own.floor:
            dtypes = (getattr(torch, own.dtype), torch.float64)
            made += floor_cases(dtypes, torch.device(own.device))
        return made

    def measure(self, shape: str, report: Report) -> Record:
        rows = self.rows(shape, report)
        working = {row["name"] for row in rows if row["error"] is None and row["kind"] != "floor"}
        found = self.errors(shape, [case for case in self.cases if case.name in working], report)
        for row in rows:
            row["accuracy"] = found.get(row["name"], [])
        size = Shape.parse(shape)
        return {
            "shape": shape,
            "batch": size.batch,
            "channels": size.channels,
            "positions": size.positions,
            "cases": rows,
            "floor": floors(rows),
            "pairs": pairs(rows),
        }

    def errors(
        self, shape: str, cases: Sequence[Case], report: Report
    ) -> Mapping[str, list[Record]]:
        """Each case's errors at each condition number, against `Exact`."""
        batch = min(Shape.parse(shape).batch, ACCURACY_BATCH)
        found: dict[str, list[Record]] = {case.name: [] for case in cases}
        for condition in self.options.accuracy_conditions:
            inputs = self.inputs(shape, batch, spectrum="geometric", condition=condition)
            exact = Exact.of(*inputs)
            for case in cases:
                report(f"errors of {case.name} at cond(X) {condition:g}")
                entry: Record = {"condition": condition, "batch": batch}
                try:
                    with case.context():
                        forward, gradient = exact.errors(*case.prepare(*inputs)())
                    entry |= {"forward": finite(forward), "gradient": finite(gradient)}
                except Exception as error:
                    entry |= {"error": describe(error)}
                found[case.name].append(entry)
        return found

    @staticmethod
    def preamble(results: Results) -> str:
        return (
            f"{measured_on(results)} Errors are those of the root / of the gradient of the "
            "features, against the exact root's in float64, the worst sample's."
        )

    @staticmethod
    def tables(record: Record) -> Iterator[Table]:
        shape, rows = record["shape"], record["cases"]
        columns = {"case": NAME, **tables.TIMES, **tables.MEMORY}
        for entry in next((row["accuracy"] for row in rows if row["accuracy"]), []):
            condition = entry["condition"]
            columns[f"error at cond {condition:.0e}"] = partial(_errors, condition)
        yield tables.table(f"{shape}: forward + backward", columns, rows)
        if record["pairs"]:
            columns = {"ours": column("method"), "peer": column("peer")}
            columns |= {name: column(name, RATIO) for name in ("time", "memory")}
            yield tables.table(f"{shape}: peer over ours", columns, record["pairs"])
        if floor := record.get("floor"):
            columns, over = {"ours": NAME}, {}
            for dtype, best in floor.items():
                title = f"{1e3 * best['median']:.4g} ms: {best['solver']}, products in {dtype}"
                columns[title] = column(dtype, RATIO)
                for name, found in best["ratios"].items():
                    over.setdefault(name, {"name": name})[dtype] = found
            title = f"{shape}: ours over the floor, the decomposition and matrix products alone"
            yield tables.table(title, columns, over.values())


def finite(value: float) -> float | str:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else "not finite"


def floors(rows: Sequence[Record]) -> Record:
    """For each dtype of the products, the fastest solver's floor, and our times over it."""
    timed = [row for row in rows if row["median"] is not None]
    found: Record = {}
    for row in sorted(timed, key=lambda row: row["median"], reverse=True):
        if row["kind"] == "floor":
            found[row["note"]] = {"solver": row["method"], "median": row["median"]}
    for best in found.values():
        best["ratios"] = {
            row["name"]: row["median"] / best["median"] for row in timed if row["kind"] == "covpool"
        }
    return found


def pairs(rows: Sequence[Record]) -> list[Record]:
    """Each peer's row beside those of our methods that it is compared with, peer over ours."""
    by_name = {row["name"]: row for row in rows}
    return [
        {
            "method": name,
            "peer": theirs["name"],
            "time": ratio(theirs["median"], ours["median"]),
            "memory": ratio(theirs["memory"], ours["memory"], RESOLUTION),
        }
        for theirs in rows
        for name in theirs.get("counterparts", ())
        if (ours := by_name.get(name)) is not None
    ]


def measured_on(results: Results) -> str:
    """The machine, the features and the clock."""
    settings = results["settings"]
    spectrum = (
        f"geometric singular values, cond(X) {settings['condition']:.0e}"
        if settings["spectrum"] == "geometric"
        else "normally distributed entries"
    )
    return (
        f"{summary_line(results['environment'])}\n"
        f"{settings['dtype']} features, {spectrum}; forward + backward, alternating; median and "
        f"quartiles of {quantity(settings['rounds'], 'round')}."
    )


def _errors(condition: float, row: Row) -> str:
    entry = next((entry for entry in row["accuracy"] if entry["condition"] == condition), None)
    if entry is None or "error" in entry:
        return "-" if entry is None else "failed"
    parts = (entry["forward"], entry["gradient"])
    return " / ".join(part if isinstance(part, str) else f"{part:.1e}" for part in parts)
