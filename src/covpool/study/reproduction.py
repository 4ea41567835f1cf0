"""Whether runs agree with those of an earlier study: a cell of it, trained anew."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from covpool.reproduce.sheet import Table
from covpool.study.inference import prediction_interval
from covpool.study.outcome import RUN_LINES, Outcome

Lines = Sequence[Mapping[str, Any]]


def read_lines(path: Path) -> Lines:
    """The runs of a study's runs.jsonl.

    Raises:
        ValueError, OSError: a file that is none.
    """
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            if not {"arm", "seed", "learning_rate", "status"} <= line.keys():
                raise ValueError("it lacks arm, seed, learning_rate or status")
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"{path} is no {RUN_LINES} of a study: line {number}: {error}"
            ) from None
        lines.append(line)
    return lines


def reproduction_table(outcome: Outcome, earlier: Lines) -> Table:
    """Each arm's mean beside the interval that the earlier runs predict for it."""
    rows = []
    for arm in outcome.arms:
        before = {
            line["seed"]: (line["learning_rate"], 100 * line["final"]["test_top1"])
            for line in earlier
            if line["arm"] == arm.label and line["status"] == "finished"
        }
        now = outcome.setting.accuracies(arm, "final")
        values = [accuracy for _, accuracy in before.values()]
        expected = prediction_interval(values, len(now)) if now else None
        mean = fmean(now.values()) if now else None
        verdict = "not measured"
        if mean is not None and expected is not None:
            verdict = "within" if expected[0] <= mean <= expected[1] else "outside"
        remarks = []
        if again := sorted(set(now) & set(before)):
            same = all(abs(now[seed] - before[seed][1]) < 1e-9 for seed in again)
            seeds = ", ".join(map(str, again))
            remarks.append(f"seed {seeds} again, {'equal' if same else 'not equal'}")
        if other := {rate for rate, _ in before.values()} - {outcome.rate(arm)}:
            remarks.append(f"trained at {', '.join(f'{rate:g}' for rate in sorted(other))} there")
        rows.append(
            (
                arm.label,
                f"{fmean(values):.2f}, {len(values)} seeds" if values else "–",
                f"{expected[0]:.2f} to {expected[1]:.2f}" if expected else "–",
                f"{mean:.2f}, seed {', '.join(map(str, now))}" if mean is not None else "–",
                verdict,
                "; ".join(remarks) or "–",
            )
        )
    return Table(
        heading="Against earlier runs",
        columns=("", "Final there", "95% of new runs", "Final here", "", "remark"),
        rows=rows,
    )
