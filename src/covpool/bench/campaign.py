"""A whole run: time, memory and accuracy at each shape, as one dictionary that becomes JSON."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from covpool.bench.accuracy import Exact
from covpool.bench.cases import Case, with_output
from covpool.bench.features import Shape
from covpool.bench.memory import RESOLUTION, Memory, peak_memory
from covpool.bench.settings import Settings
from covpool.bench.timing import Timing, describe, fixed_threads, time_steps
from covpool.machine import describe_environment
from covpool.train.run_directory import replace_text

Report = Callable[[str], None]
Results = dict[str, Any]
Measure = Callable[[Settings, Shape, Sequence[Case], Report], Results]

FORMAT = 1
"""Version of the results' layout."""

ACCURACY_BATCH = 4
"""Samples in the measurement of errors; enough for layers that couple samples to show it."""


def silent(text: str) -> None:
    """A report to nobody."""


def run_campaign(
    settings: Settings,
    report: Report = silent,
    shape_done: Callable[[Results], None] = lambda results: None,
    measure: Measure | None = None,
    earlier: Results | None = None,
) -> Results:
    """Measure all cases at all shapes.

    Args:
        settings: what and how.
        report: told in a few words what goes on.
        shape_done: given the results so far after each shape.
        measure: what is done at each shape; None: `measure_shape`.
        earlier: results to go on from; their shapes are not measured again.

    Returns:
        What `covpool bench --output` writes.

    Raises:
        ValueError: a peer that is not there, or earlier results of other settings, another
            machine or other versions.
    """
    peers = settings.open_peers()
    results: Results = {
        "format": FORMAT,
        "environment": describe_environment(settings.threads, settings.device),
        # A checkout's place on this machine says nothing elsewhere; its commit stands below.
        "settings": settings.to_dict() | {"peers": [one.peer.name for one in peers]},
        "peers": {one.peer.name: {"home": one.peer.home, "version": one.version} for one in peers},
        "shapes": [],
    }
    done = {} if earlier is None else _shapes_to_keep(earlier, results)
    cases = settings.cases(peers)
    with fixed_threads(settings.threads):
        for text in settings.shapes:
            if text not in done:
                at_shape = partial(_say_at, report, text)
                done[text] = (measure or measure_shape)(
                    settings, Shape.parse(text), cases, at_shape
                )
            results["shapes"].append(done[text])
            shape_done(results)
    return results


def _say_at(report: Report, shape: str, text: str) -> None:
    report(f"{shape}: {text}")


SAME = ("cpu", "cores_available", "threads", "device_name", "versions", "covpool_commit")
"""Of the environment, what results must share to be continued."""


def _shapes_to_keep(earlier: Results, results: Results) -> dict[str, Results]:
    """The earlier run's shapes by name.

    Raises:
        ValueError: they would not be comparable with what is measured now.
    """
    current = json.loads(json.dumps(results))  # lists for tuples, as they were written
    for part, names in (("environment", SAME), ("settings", None), ("peers", None)):
        # What an older version did not write was at its default.
        was = {"time": True, **earlier[part]} if part == "settings" else earlier[part]
        now = current[part]
        for name in names or sorted({*was, *now} - {"shapes"}):
            if was.get(name) != now.get(name):
                raise ValueError(
                    f"the earlier results cannot be continued: in {part}, {name} was "
                    f"{was.get(name)!r} and is {now.get(name)!r}; write to another file"
                )
    return {measured["shape"]: measured for measured in earlier["shapes"]}


def measure_shape(
    settings: Settings, shape: Shape, cases: Sequence[Case], report: Report = silent
) -> Results:
    """The results at one shape: a row for each case, comparisons with the peers and the floor."""
    features, weight = settings.inputs(shape)
    timings = {case.name: Timing() for case in cases}
    if settings.time:
        steps, broken = prepare(cases, features, weight)
        timings |= time_steps(
            steps,
            {case.name: case.context for case in cases},
            rounds=settings.rounds,
            warm_up=settings.warm_up,
            device=settings.torch_device,
            report=report,
        )
        timings |= {name: Timing(error=error) for name, error in broken.items()}
        del steps
    del features, weight
    working = [case for case in cases if timings[case.name].error is None]
    layers = [case for case in working if case.kind != "floor"]
    accuracy = measure_accuracy(settings, shape, layers, report)
    memory = peak_memory(settings, shape, layers, report) if settings.memory else {}
    rows = [_row(case, timings[case.name], memory, accuracy) for case in cases]
    return {
        "shape": str(shape),
        "batch": shape.batch,
        "channels": shape.channels,
        "positions": shape.positions,
        "cases": rows,
        "floor": floors(rows),
        "pairs": pairs(cases, rows),
    }


def prepare(
    cases: Sequence[Case], features: torch.Tensor, weight: torch.Tensor
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Steps by name, and why the others could not be made."""
    steps, broken = {}, {}
    for case in cases:
        try:
            steps[case.name] = case.prepare(features, weight)
        except Exception as error:
            broken[case.name] = describe(error)
    return steps, broken


def measure_accuracy(
    settings: Settings, shape: Shape, cases: Sequence[Case], report: Report = silent
) -> dict[str, list[Results]]:
    """Each case's errors at each condition number, against `Exact`."""
    small = replace(shape, batch=min(shape.batch, ACCURACY_BATCH))
    found: dict[str, list[Results]] = {case.name: [] for case in cases}
    for condition in settings.accuracy_conditions:
        features, weight = settings.inputs(small, spectrum="geometric", condition=condition)
        exact = Exact.of(features, weight)
        for case in cases:
            report(f"errors of {case.name} at cond(X) {condition:g}")
            entry: Results = {"condition": condition, "batch": small.batch}
            try:
                with case.context():
                    result = case.prepare(features, weight)()
                forward, gradient = exact.errors(*result)
                entry |= {"forward": _finite(forward), "gradient": _finite(gradient)}
            except Exception as error:
                entry |= {"error": describe(error)}
            found[case.name].append(entry)
    return found


def _finite(value: float) -> float | str:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else "not finite"


def _row(
    case: Case, timing: Timing, memory: Memory, accuracy: Mapping[str, list[Results]]
) -> Results:
    peak = memory.get(case.name)
    quartiles = timing.quartiles or (None, None)
    return {
        "name": case.name,
        "kind": case.kind,
        "method": case.method,
        "peer": case.peer,
        "output": case.output,
        "note": case.note,
        "error": timing.error,
        "median": timing.median,
        "lower_quartile": quartiles[0],
        "upper_quartile": quartiles[1],
        "rounds": timing.seconds,
        "calls": timing.calls,
        "memory": peak if isinstance(peak, int) else None,
        "memory_error": peak if isinstance(peak, str) else None,
        "accuracy": accuracy.get(case.name, []),
    }


def floors(rows: Sequence[Results]) -> Results:
    """For each dtype of the products, the fastest solver's floor, and our times over it."""
    found: Results = {}
    for row in rows:
        if row["kind"] == "floor" and row["median"] is not None:
            best = found.get(row["note"])
            if best is None or row["median"] < best["median"]:
                found[row["note"]] = {"solver": row["method"], "median": row["median"]}
    for best in found.values():
        best["ratios"] = {
            row["name"]: row["median"] / best["median"]
            for row in rows
            if row["kind"] == "covpool" and row["median"] is not None
        }
    return found


def pairs(cases: Sequence[Case], rows: Sequence[Results]) -> list[Results]:
    """Each peer's row beside those of our methods that it is compared with, peer over ours."""
    by_name = {row["name"]: row for row in rows}
    found = []
    for case in cases:
        for method in case.counterparts if case.kind == "peer" else ():
            ours = by_name.get(with_output(method, case.output))
            theirs = by_name[case.name]
            if ours is not None:
                found.append(
                    {
                        "method": ours["name"],
                        "peer": theirs["name"],
                        "time": _ratio(theirs["median"], ours["median"]),
                        "memory": _ratio(theirs["memory"], ours["memory"], RESOLUTION),
                    }
                )
    return found


def _ratio(theirs: float | None, ours: float | None, least: float = 0) -> float | None:
    """None where either is missing, or ours is too small to be told from nothing."""
    if theirs is None or ours is None or ours <= least:
        return None
    return theirs / ours


def read_results(file: Path) -> Results | None:
    """Results that were written before; None where there are none.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{file} does not hold results: {error}; write to another file") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{file} does not hold results of format {FORMAT}; write to another file")
    return content


def write_results(results: Results, file: Path) -> None:
    """Write the results as JSON, in one step so that a reader never meets half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    replace_text(file, text + "\n")
