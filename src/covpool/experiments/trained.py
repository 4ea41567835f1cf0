"""The targets that need training: from the runs of each recipe to ours beside the paper's."""

from collections.abc import Sequence
from itertools import chain, product
from typing import Any

from covpool.experiments.arms import ACCURATE, NEWTON_SCHULZ, Arm
from covpool.experiments.figures import last_stage, smoothness_curves
from covpool.experiments.inference import BySeed, Spread, differences, geometric_mean
from covpool.experiments.paper import METRICS, paper_tables, printed_name
from covpool.experiments.results import CONDITION_NUMBERS, SMALL, RunSet
from covpool.experiments.sheet import Table

FINE_GRAINED = ("birds", "dogs", "cars")


def table1(runs: RunSet) -> dict[str, Any]:
    """Accurate SVD against Newton-Schulz."""
    printed = paper_tables()["table1_resnet50_imagenet_error"]
    names = {method: str(printed_name(method)) for method in (ACCURATE, NEWTON_SCHULZ)}
    numbers = [_numbers(runs, Arm(method), printed[name]) for method, name in names.items()]
    rows = [[*both] for both in names.items()]
    last = ["difference, paired by seed", ""]
    for place, metric in enumerate(METRICS):
        for row, own in zip(rows, numbers, strict=True):
            errors = runs.spread(Arm(own["method"]), own["errors"][metric])
            row += [f"{own['paper'][place]:.2f}", errors]
        svd, newton = numbers
        gap = Spread.of(differences(svd["errors"][metric], newton["errors"][metric]))
        last += [f"{svd['paper'][place] - newton['paper'][place]:+.2f}", gap.interval_text()]
    rows.append(last)
    table = _beside([runs], ["top-1 error %", "top-5 error %"], rows)
    return {"tables": [table], "data": {"rows": numbers}}


def table2(runs: RunSet) -> dict[str, Any]:
    """Condition numbers at the first epoch of each stage."""
    printed = list(paper_tables()["table2_condition_number_mpncov"].values())
    epochs = runs.first_epochs
    cells = [f"{cell:.2e}" for cell in printed[: len(epochs)]]
    papers = ["the paper, epochs 1, 11, 21", *cells, *["–"] * (len(epochs) - len(printed))]
    ours = {
        (title, *place): [runs.at_epoch(Arm(ACCURATE), e, *place) for e in epochs]
        for title, *place in CONDITION_NUMBERS
    }
    rows = [[title, *map(_factors, found)] for (title, *_), found in ours.items()]
    columns = ["", *(f"epoch {epoch}" for epoch in epochs)]
    return {
        "tables": [Table(columns=columns, rows=rows if runs.own_images else [papers, *rows])],
        "data": {
            "paper": printed,
            "epochs": epochs,
            "rows": [
                {"way": way, "figure": figure, "by_seed": found}
                for (*_, way, figure), found in ours.items()
            ],
        },
    }


def table4(*run_sets: RunSet | None) -> dict[str, Any]:
    """All methods by both protocols, on ResNet-50 and ResNet-101."""
    tables, data = [], {}
    for network, runs in zip(("ResNet-50", "ResNet-101"), run_sets, strict=True):
        if runs is None:
            continue
        printed = paper_tables()["table4_imagenet_error"][network]
        rows, data[network] = [], []
        for method in dict.fromkeys(arm.method for arm in runs.arms):
            name = f"Vanilla {network}" if method == "gap" else printed_name(method)
            cells = printed.get(name)
            if cells is None and network == "ResNet-101":
                continue
            once = method in ("gap", NEWTON_SCHULZ)
            arms = (Arm(method), Arm(method, hybrid=not once))
            both = [
                _numbers(runs, arm, cells and cells[place : place + 2])
                for place, arm in zip((0, 2), arms, strict=True)
            ]
            data[network] += both
            ours = [
                runs.spread(arm, errors)
                for arm, own in zip(arms, both, strict=True)
                for errors in own["errors"].values()
            ]
            shown = [f"{cell:.2f}" for cell in cells] if cells else ["–"] * len(ours)
            beside = chain(*zip(shown, ours, strict=True))
            rows.append([method, name if cells and name else "–", *beside])
        names = [f"{p} {m} error %" for p in ("standalone", "hybrid") for m in ("top-1", "top-5")]
        tables.append(_beside([runs], names, rows, heading=f"{network} in the paper"))
    return {"tables": tables, "data": data}


def table5(*run_sets: RunSet | None) -> dict[str, Any]:
    """Accuracies of fine-tuning, on `FINE_GRAINED`."""
    printed = paper_tables()["table5_fine_grained_accuracy"]
    ours = list({runs.name: runs for runs in run_sets if runs}.values())
    arms = dict.fromkeys(arm for runs in ours for arm in runs.arms)
    rows: list[list[str]] = []
    data: list[dict[str, Any]] = []
    for arm in arms:
        if arm.hybrid or arm.method == "gap":
            continue
        cells = printed.get(printed_name(arm.method))
        shown = ["no convergence" if c is None else f"{c:.2f}" for c in cells or ()]
        pairs = [" / ".join(shown[place : place + 2]) or "–" for place in range(0, 6, 2)]
        rows.append([arm.method, str(printed_name(arm.method)) if cells else "–", *pairs])
        data.append({"method": arm.method, "paper": cells})
        for runs, measure in product(ours, ("final", "best")):
            values = runs.accuracies(arm, measure)
            rows[-1].append(runs.spread(arm, values))
            data[-1][f"{runs.name} {measure}"] = values
    papers = [f"{name.capitalize()}: paper, Final / Best" for name in FINE_GRAINED]
    here = [f"ours, {runs.name}, {m}" for runs in ours for m in ("Final", "Best")]
    return {
        "tables": [_table(ours, ["method", "paper's name", *papers, *here], rows)],
        "data": {"rows": data},
        "about": {"small": any(runs.name == SMALL for runs in ours)},
    }


def figure1(runs: RunSet) -> dict[str, Any]:
    """Smoothness along training."""
    accurate, iterated = arms = Arm(ACCURATE), Arm(NEWTON_SCHULZ)
    stages = runs.stages
    ours = {
        arm.method: [
            {seed: geometric_mean(own.values()) for seed, own in found.items() if own}
            for found in (runs.smoothness(arm, stage) for stage in stages)
        ]
        for arm in arms
    }
    ratios = [runs.smoothness_ratio(accurate, iterated, stage) for stage in stages]
    told = ours | {f"{ACCURATE} / {NEWTON_SCHULZ}": ratios}
    rows = [[name, *map(_factors, found)] for name, found in told.items()]
    columns = ["", *(f"epochs {first} to {last}" for first, last in stages)]
    data = [{"method": method, "by_stage": found} for method, found in ours.items()]
    return {
        "tables": [Table(columns=columns, rows=rows)],
        "data": {"stages": stages, "rows": data, "ratio_by_stage": ratios},
        "figure": smoothness_curves(runs, arms),
    }


def figure2(runs: RunSet) -> dict[str, Any]:
    """The last stage of hybrid training."""
    arms = [arm for arm in runs.arms if arm.hybrid or arm.method == NEWTON_SCHULZ]
    rows = [
        [arm.method, *(runs.spread(arm, runs.errors(arm, metric)) for metric in METRICS)]
        for arm in arms
    ]
    return {
        "tables": [Table(columns=["method", "top-1 error %", "top-5 error %"], rows=rows)],
        "data": {"rows": [_numbers(runs, arm, None) for arm in arms]},
        "figure": last_stage(runs, arms),
    }


def _beside(
    run_sets: Sequence[RunSet],
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    heading: str = "",
) -> Table:
    """A table of methods, each of whose figures has the paper's on its left."""
    both = (column for name in names for column in (f"{name}: paper", "ours"))
    return _table(run_sets, ["method", "paper's name", *both], rows, heading)


def _table(
    run_sets: Sequence[RunSet],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    heading: str = "",
) -> Table:
    """The table; beside images of the user's own without the columns of the paper's cells."""
    if any(runs.own_images for runs in run_sets):
        kept = [place for place, name in enumerate(columns) if ": paper" not in name]
        rows = [[row[place] for place in kept] for row in rows]
        # "ours" stands to the right of the paper's column, which says of what.
        columns = [
            columns[p - 1].partition(": paper")[0] if columns[p] == "ours" else columns[p]
            for p in kept
        ]
    return Table(heading=heading, columns=columns, rows=rows)


def _numbers(runs: RunSet, arm: Arm, cells: Sequence[float] | None) -> dict[str, Any]:
    errors = {metric: runs.errors(arm, metric) for metric in METRICS}
    return {"method": arm.method, "protocol": arm.protocol, "paper": cells, "errors": errors}


def _factors(values: BySeed) -> str:
    """Geometric mean over seeds, and the least and largest of them."""
    if not values:
        return "not measured"
    mean, least, most = map(
        _number, (geometric_mean(values.values()), min(values.values()), max(values.values()))
    )
    return mean if len(values) == 1 else f"{mean} [{least}, {most}]"


def _number(value: float) -> str:
    return f"{value:.2f}" if 0.01 <= abs(value) < 1000 else f"{value:.2e}"
