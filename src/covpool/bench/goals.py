"""Which of the project's goals for speed, accuracy and memory a measurement meets.

Reads what `covpool bench` and `covpool bench step` wrote. The goals hold for float32 features at
default accuracy, batch 16, 256 channels; on a GPU, batch 256.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from covpool.bench.tables import ratio

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

ERRORS = {"forward": 1e-6, "gradient": 1e-5}
STEP_OVER_GAP = {"cpu": 1.05, "cuda": 1.10}
PEER_STEP_OVER_OURS = 20
"""The paper's layer in the step on a GPU: its time over ours, at least."""


@dataclass(frozen=True)
class Judgement:
    """A goal and what was found, which is None where the measurement lacks it."""

    goal: str
    found: float | None
    bound: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        if self.found is None:
            return False
        return self.found >= self.bound if self.at_least else self.found <= self.bound

    def __str__(self) -> str:
        value = "not measured" if self.found is None else f"{self.found:.3g}"
        goal = f"{self.goal} {'≥' if self.at_least else '≤'} {self.bound:g}"
        return f"{'met' if self.met else 'MISSED':7} {goal}: {value}"


def judge(results: dict[str, Any]) -> Iterator[Judgement]:
    # The rows of steps stood at the top once.
    for record in results.get("shapes", [{"cases": results.get("rows", [])}]):
        if "pairs" not in record:
            yield from _of_steps(record, results["settings"])
            continue
        if "floor" in record:
            yield from _times(record) if record["channels"] == CHANNELS else ()
            yield from _errors(record)
        for pair in record["pairs"]:
            if pair["memory"] is not None:
                goal = f"{record['shape']}: memory of {pair['peer']} over our {pair['method']}"
                yield Judgement(goal, pair["memory"], MEMORY, at_least=True)


def _times(record: dict[str, Any]) -> Iterator[Judgement]:
    found = {
        tuple(pair[name].removesuffix(" (triangle)") for name in ("method", "peer")): pair["time"]
        for pair in record["pairs"]
    }
    for (ours, peer), bounds in TIME.items():
        if bound := bounds.get(record["positions"]):
            goal = f"{record['shape']}: time of {peer} over our {ours}"
            yield Judgement(goal, found.get((ours, peer)), bound, at_least=True)
    over = [floor["ratios"]["exact"] for floor in record["floor"].values()]
    goal = f"{record['shape']}: exact over the lowest floor"
    yield Judgement(goal, max(over, default=None), FLOOR)


def _errors(record: dict[str, Any]) -> Iterator[Judgement]:
    largest = 1e6 if record["positions"] <= record["channels"] else 1e5
    exact = [row for row in record["cases"] if (row["kind"], row["method"]) == ("covpool", "exact")]
    for row in exact:
        for entry in row["accuracy"]:
            for part, bound in ERRORS.items() if entry["condition"] <= largest else ():
                at = f"{record['shape']}: {row['name']} at cond {entry['condition']:.0e}"
                value = entry.get(part)
                number = value if isinstance(value, float) else None
                yield Judgement(f"{at}, {part} error", number, bound)


def _of_steps(record: dict[str, Any], settings: dict[str, Any]) -> Iterator[Judgement]:
    rows = {row["name"]: row for row in record["cases"] if "over_gap" in row}
    device = settings["device"].partition(":")[0]
    for name, row in rows.items():
        at = f"{settings['backbone']}, batch {settings['batch']}, {device}: step with {name}"
        if "/" not in name and name != "gap":
            yield Judgement(f"{at} over gap's", row["over_gap"], STEP_OVER_GAP[device])
        if device == "cuda" and name.startswith("DifferentiableSVD/"):
            over = ratio(row["median"], rows.get("exact", {}).get("median"))
            yield Judgement(f"{at} over exact's", over, PEER_STEP_OVER_OURS, at_least=True)
