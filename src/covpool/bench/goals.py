"""Which of the project's goals for speed, accuracy and memory a measurement meets.

Reads what `covpool bench` and `covpool bench step` wrote. The goals hold for float32 features at
default accuracy, batch 16, 256 channels; on a GPU, batch 256. Exit status 1 where one is missed or
could not be judged.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CHANNELS = 256
TIME = {
    ("svd-pade", "DifferentiableSVD/SVD_Pade"): {49: 38, 196: 7, 784: 6},
    ("svd-newton", "DifferentiableSVD/SVD_Newton"): {49: 80, 196: 18, 784: 11},
    ("exact", "fast-MPN-COV/iSQRT-COV"): {49: 20, 196: 4, 784: 2.8},
    ("isqrt-cov", "fast-MPN-COV/iSQRT-COV"): {49: 20, 196: 3.5, 784: 2.5},
}
"""Time of the peer over ours, at least, by the number of positions."""

FLOOR = 1.4
"""Time of `exact` over the floor, at most."""

MEMORY = 2
"""Peak memory of a peer over ours, at least."""

FORWARD_ERROR, GRADIENT_ERROR = 1e-6, 1e-5
STEP_OVER_GAP = {"cpu": 1.05, "cuda": 1.10}
PEER_STEP_OVER_OURS = 20
"""The paper's layer in the step on a GPU: its time over ours, at least."""


@dataclass(frozen=True)
class Judgement:
    """A goal and what was found: `found` is None where the measurement lacks it."""

    goal: str
    found: float | None
    met: bool

    def __str__(self) -> str:
        value = "not measured" if self.found is None else f"{self.found:.3g}"
        return f"{'met' if self.met else 'MISSED':7} {self.goal}: {value}"


def at_least(goal: str, found: float | None, bound: float) -> Judgement:
    return Judgement(f"{goal} ≥ {bound:g}", found, found is not None and found >= bound)


def at_most(goal: str, found: float | None, bound: float) -> Judgement:
    return Judgement(f"{goal} ≤ {bound:g}", found, found is not None and found <= bound)


def judge(results: dict[str, Any]) -> Iterator[Judgement]:
    if "rows" in results:
        yield from judge_steps(results)
    for measured in results.get("shapes", []):
        if "floor" in measured:
            yield from judge_times(measured)
            yield from judge_errors(measured)
        yield from judge_memory(measured)


def plain(name: str) -> str:
    return name.removesuffix(" (triangle)")


def judge_times(measured: dict[str, Any]) -> Iterator[Judgement]:
    shape, positions = measured["shape"], measured["positions"]
    if measured["channels"] != CHANNELS:
        return
    found = {(plain(p["method"]), plain(p["peer"])): p["time"] for p in measured["pairs"]}
    for pair, bounds in TIME.items():
        if positions in bounds:
            goal = f"{shape}: time of {pair[1]} over our {pair[0]}"
            yield at_least(goal, found.get(pair), bounds[positions])
    over = [floor["ratios"]["exact"] for floor in measured["floor"].values()]
    yield at_most(f"{shape}: exact over the lowest floor", max(over, default=None), FLOOR)


def judge_errors(measured: dict[str, Any]) -> Iterator[Judgement]:
    largest = 1e6 if measured["positions"] <= measured["channels"] else 1e5
    for row in measured["cases"]:
        if row["kind"] != "covpool" or row["method"] != "exact":
            continue
        for entry in row["accuracy"]:
            if entry["condition"] <= largest:
                at = f"{measured['shape']}: {row['name']} at cond {entry['condition']:.0e},"
                for part, bound in (("forward", FORWARD_ERROR), ("gradient", GRADIENT_ERROR)):
                    value = entry.get(part)
                    number = value if isinstance(value, float) else None
                    yield at_most(f"{at} {part} error", number, bound)


def judge_memory(measured: dict[str, Any]) -> Iterator[Judgement]:
    for pair in measured["pairs"]:
        if pair["memory"] is not None:
            goal = f"{measured['shape']}: memory of {pair['peer']} over our {pair['method']}"
            yield at_least(goal, pair["memory"], MEMORY)


def judge_steps(results: dict[str, Any]) -> Iterator[Judgement]:
    settings = results["settings"]
    device = settings["device"].partition(":")[0]
    at = f"{settings['backbone']}, batch {settings['batch']}, {device}:"
    rows = {row["name"]: row for row in results["rows"]}
    for name, row in rows.items():
        if "/" not in name and name != "gap":
            goal = f"{at} step with {name} over gap's"
            yield at_most(goal, row["over_gap"], STEP_OVER_GAP[device])
    ours = rows.get("exact", {}).get("median")
    for name, row in rows.items():
        if device == "cuda" and name.startswith("DifferentiableSVD/"):
            ratio = row["median"] / ours if row["median"] and ours else None
            yield at_least(f"{at} step with {name} over exact's", ratio, PEER_STEP_OVER_OURS)
