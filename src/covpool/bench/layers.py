"""The layers: time, memory and errors at each shape, the peers beside ours, ours over the floor.

Each case prepares its step from features (B, C, H, W) and the weight of the loss (B, C, C). The
step does forward and backward once and returns the root and the features' gradient (the floor: the
last products of either).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from covpool.bench import tables
from covpool.bench.features import Exact, Shape, make_features, make_weight, triangle_weight
from covpool.bench.measurement import Record, TimedMeasurement, named
from covpool.bench.memory import RESOLUTION
from covpool.bench.options import FeatureOptions, LayersOptions
from covpool.bench.peers import OpenPeer, Output, Root
from covpool.bench.tables import NAME, RATIO, Row, Table, column, finite, ratio
from covpool.bench.timing import Case, Step, describe
from covpool.linalg.covariance import centre, works_on_gram
from covpool.linalg.engine.symmetric import EIGENDECOMPOSITION
from covpool.linalg.methods import METHODS
from covpool.pooling import cov_pool, triu_vector

ACCURACY_BATCH = 4
"""Samples in the measurement of errors; enough for layers that couple samples to show it."""

Solver = Callable[[Tensor], tuple[Tensor, ...]]
OnFeatures = TypeVar("OnFeatures", bound=FeatureOptions)
OfLayers = TypeVar("OfLayers", bound=LayersOptions)


def with_output(name: str, output: Output) -> str:
    """The name of a case with that output."""
    return name if output == "matrix" else f"{name} (triangle)"


def differentiated(function: Root, features: Tensor, weight: Tensor) -> Step:
    """The step that computes `function`, a root or its triangle, and the gradient of ⟨weight,
    root⟩."""
    triangle = triangle_weight(weight)

    def step() -> tuple[Tensor, Tensor]:
        x = features.detach().requires_grad_()
        root = function(x)
        direction = weight if root.numel() == weight.numel() else triangle
        (gradient,) = torch.autograd.grad(root, x, direction.to(root.dtype).reshape(root.shape))
        return root.detach(), gradient

    return step


def own_case(method: str, output: Output, compute_dtype: torch.dtype | None = None) -> Case:
    """`cov_pool` by that method, with the upper triangle gathered for the output "triangle"."""

    def pool(x: Tensor) -> Tensor:
        root = cov_pool(x, METHODS[method], compute_dtype=compute_dtype)
        return root if output == "matrix" else triu_vector(root)

    return Case(
        name=with_output(method, output),
        prepare=partial(differentiated, pool),
        facts={"method": method, "output": output, "note": ""},
    )


def peer_cases(opened: OpenPeer, vector: bool) -> Iterator[Case]:
    """A peer's layers, with the triangle where it is asked for, or where there is nothing else."""
    for row in opened.peer.rows_of("pooling"):
        output: Output = "triangle" if vector or row.triangle is None else "matrix"
        yield opened.case(
            row,
            differentiated,
            name=with_output(f"{opened.peer.name}/{row.name}", output),
            output=output,
            facts={
                "method": row.name,
                "peer": opened.peer.name,
                "output": output,
                "counterparts": [with_output(method, output) for method in row.counterparts],
                "note": row.note,
            },
        )


def make_cases(
    methods: Sequence[str],
    peers: Iterable[OpenPeer] = (),
    *,
    vector: bool = False,
    compute_dtype: torch.dtype | None = None,
) -> list[Case]:
    """Our methods and the peers' rows.

    Our side has the form of output that the peer's has: where a peer's layer gives the triangle
    alone, the methods that it is compared with are measured with the triangle too.
    """
    theirs = [case for opened in peers for case in peer_cases(opened, vector)]
    compared = {name for case in theirs for name in case.facts["counterparts"]}
    plain: Output = "triangle" if vector else "matrix"
    ours = [own_case(method, plain, compute_dtype) for method in methods]
    gathered = [own_case(method, "triangle", compute_dtype) for method in methods]
    return [*ours, *(case for case in gathered if not vector and case.name in compared), *theirs]


def floor_cases(dtypes: Iterable[torch.dtype], device: torch.device) -> list[Case]:
    """The least work: the bare decomposition in float64 and the matrix products around it.

    One case for each batched solver that there is, so that the faster one is taken, and for each
    dtype of the products that do not hang on small singular values. No elementwise work is in them.
    """
    return [
        Case(
            name=f"floor: {name}, products in {(note := str(dtype).removeprefix('torch.'))}",
            kind="floor",
            prepare=partial(_floor, solver, dtype),
            facts={"method": name, "output": "matrix", "note": note},
        )
        for dtype in dict.fromkeys(dtypes)
        for name, solver in solvers(device).items()
    ]


def solvers(device: torch.device) -> dict[str, Solver]:
    """torch's batched eigendecomposition, and the one that is spread over the CPU's cores."""
    found: dict[str, Solver] = {"torch.linalg.eigh": torch.linalg.eigh}
    return found | {"covpool's": EIGENDECOMPOSITION} if device.type == "cpu" else found


def _floor(solver: Solver, dtype: torch.dtype, features: Tensor, weight: Tensor) -> Step:
    x = centre(features.detach().flatten(2), torch.float64)
    weight = weight.to(dtype)

    @torch.no_grad()
    def gram() -> tuple[Tensor, Tensor]:
        _, right = solver(x.mT @ x)
        left = (x @ right).to(dtype)
        root = left @ left.mT
        product = weight @ left
        return root, (left @ (left.mT @ product) + product) @ right.to(dtype).mT

    @torch.no_grad()
    def covariance() -> tuple[Tensor, Tensor]:
        _, exact = solver(x @ x.mT)
        left = exact.to(dtype)
        root = left @ left.mT
        inner = left @ (left.mT @ weight @ left)
        if dtype == x.dtype:
            return root, inner @ left.mT @ x
        # In lower precision the matrix before x loses what small singular values are multiplied
        # by, and with it the gradient: the product with x has to come first, in float64.
        return root, inner @ (exact.mT @ x).to(dtype)

    # The same choice as the layers': the smaller of the two matrices with the same eigenvalues.
    return gram if works_on_gram(x) else covariance


class FeatureMeasurement(TimedMeasurement[OnFeatures]):
    """A measurement on feature maps."""

    figures = (
        "{dtype} features, {spectrum}; forward + backward, alternating; median and quartiles of "
        "{rounds}."
    )

    read_shape = staticmethod(Shape.parse)

    def inputs(self, point: str, batch: int | None = None, **changed: Any) -> tuple[Tensor, Tensor]:
        """Features and the weight of the loss; `changed` are another spectrum or condition."""
        own, shape = self.options, Shape.parse(point)
        shape = shape._replace(batch=batch or shape.batch)
        made: Any = {"seed": own.seed, "dtype": getattr(torch, own.dtype), "device": own.device}
        chosen: Any = {"spectrum": own.spectrum, "condition": own.condition, **changed}
        return make_features(shape, **chosen, **made), make_weight(shape, **made)


class Layers(FeatureMeasurement[OfLayers]):
    """Our methods and the peers' layers, and the floor."""

    figures = (
        f"{FeatureMeasurement.figures} Errors are those of the root / of the gradient of the "
        "features, against the exact root's in float64, the worst sample's."
    )

    def check(self, options: OfLayers) -> OfLayers:
        methods = named("method", options.methods, METHODS)
        return super().check(replace(options, methods=methods))

    def cases(self, point: str) -> list[Case]:
        own = self.options
        compute_dtype = getattr(torch, own.compute_dtype or "", None)
        made = make_cases(own.methods, self.peers, vector=own.vector, compute_dtype=compute_dtype)
        if own.floor:
            dtypes = (getattr(torch, own.dtype), torch.float64)
            made += floor_cases(dtypes, torch.device(own.device))
        return made

    def complete(self, point: str, rows: list[Record]) -> Record:
        working = {row["name"] for row in rows if row["error"] is None and row["kind"] != "floor"}
        cases = [case for case in self.cases(point) if case.name in working]
        found = self.errors(point, cases)
        for row in rows:
            row["accuracy"] = found.get(row["name"], [])
        return {**Shape.parse(point)._asdict(), "floor": floors(rows), "pairs": pairs(rows)}

    def errors(self, shape: str, cases: Sequence[Case]) -> Mapping[str, list[Record]]:
        """Each case's errors at each condition number, against `Exact`."""
        batch = min(Shape.parse(shape).batch, ACCURACY_BATCH)
        found: dict[str, list[Record]] = {case.name: [] for case in cases}
        for condition in self.options.accuracy_conditions:
            inputs = self.inputs(shape, batch, spectrum="geometric", condition=condition)
            exact = Exact.of(*inputs)
            for case in cases:
                self.say(f"errors of {case.name} at cond(X) {condition:g}")
                entry: Record = {"condition": condition, "batch": batch}
                try:
                    forward, gradient = exact.errors(*case.once(*inputs))
                    entry |= {"forward": finite(forward), "gradient": finite(gradient)}
                except Exception as error:
                    entry |= {"error": describe(error)}
                found[case.name].append(entry)
        return found

    @classmethod
    def tables(cls, record: Record) -> Iterator[Table]:
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


def _errors(condition: float, row: Row) -> str:
    entry = next((entry for entry in row["accuracy"] if entry["condition"] == condition), None)
    if entry is None or "error" in entry:
        return "-" if entry is None else "failed"
    parts = (entry["forward"], entry["gradient"])
    return " / ".join(part if isinstance(part, str) else f"{part:.1e}" for part in parts)


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
