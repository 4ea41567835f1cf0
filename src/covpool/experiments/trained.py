"""The targets that need training: from finished runs to ours beside the paper's."""

from collections.abc import Sequence
from typing import Any

from covpool.experiments.arms import ACCURATE, NEWTON_SCHULZ, Arm
from covpool.experiments.figures import last_stage, smoothness_curves
from covpool.experiments.inference import (
    BySeed,
    geometric_mean,
)
from covpool.experiments.paper import (
    METRICS,
    TABLE_1,
    beside_table1,
    paper_tables,
    printed_name,
)
from covpool.experiments.results import (
    CONDITION_NUMBERS,
    SMALL,
    Results,
    RunSet,
    of_recipe,
)
from covpool.experiments.sheet import Sheet, Table

FINE_GRAINED = ("birds", "dogs", "cars")

Numbers = dict[str, Any]


def table1(results: Results) -> Sheet:
    """Accurate SVD against Newton-Schulz."""
    printed = paper_tables()["table1_resnet50_imagenet_error"]
    runs = _runs(results, "imagenet-resnet50-fast-mpn-cov")
    cells = beside_table1(
        lambda method, metric: runs.errors(Arm(method), metric),
        lambda method, values: runs.spread(Arm(method), values),
    )
    names = [(method, printed_name(method) or "–") for method in TABLE_1]
    names.append(("difference, paired by seed", ""))
    rows = [[*name, *own] for name, own in zip(names, cells, strict=True)]
    return Sheet(
        name="table1",
        title="Table 1: error of ResNet-50 on ImageNet",
        **_about([runs], [*map(Arm, TABLE_1)]),
        tables=[_table([runs], _beside(["top-1 error %", "top-5 error %"]), rows)],
        data={
            "rows": [_numbers(runs, Arm(method), printed[name]) for method, name in TABLE_1.items()]
        },
    )


def table2(results: Results) -> Sheet:
    """Condition numbers at the first epoch of each stage."""
    printed = list(paper_tables()["table2_condition_number_mpncov"].values())
    runs = _runs(results, "imagenet-alexnet")
    arm = Arm(ACCURATE)
    epochs = runs.first_epochs
    rows: list[list[str]] = []
    if not runs.own_images:
        cells = [f"{cell:.2e}" for cell in printed[: len(epochs)]]
        rows = [["the paper, epochs 1, 11, 21", *cells, *["–"] * (len(epochs) - len(printed))]]
    data: list[Numbers] = []
    for title, way, figure in CONDITION_NUMBERS:
        by_epoch = [runs.condition_numbers(arm, epoch, way, figure) for epoch in epochs]
        rows.append([title, *(_factors(values) for values in by_epoch)])
        data.append({"way": way, "figure": figure, "by_seed": by_epoch})
    return Sheet(
        name="table2",
        title="Table 2: condition number of the covariances by epoch, accurate SVD",
        **_about([runs], [arm]),
        tables=[Table(columns=["", *(f"epoch {epoch}" for epoch in epochs)], rows=rows)],
        data={"paper": printed, "epochs": epochs, "rows": data},
        notes=[
            "Ours is at the first epoch of each stage of the rate, as the paper's epochs 1, 11 and "
            "21 are: the median over the samples of each batch measured, the geometric mean over "
            "the batches of that epoch and over seeds, and in brackets the least and largest seed. "
            "The floored figure, with eigenvalues below EPS = 2.2e-16 counted as EPS, is the "
            "paper's; where its smallest eigenvalue is below the floor, it is λmax/EPS. That of "
            "the features' range leaves out what is zero, and does not see the rounding of the "
            "covariance.",
        ],
    )


def table4(results: Results) -> Sheet:
    """All methods by both protocols."""
    printed = paper_tables()["table4_imagenet_error"]
    networks = {"ResNet-50": "imagenet-resnet50", "ResNet-101": "imagenet-resnet101"}
    tables, data, found = [], {}, []
    for network, recipe in networks.items():
        runs = of_recipe(results, recipe)
        if runs is None:
            continue
        found.append(runs)
        rows, data[network] = [], []
        for method in dict.fromkeys(arm.method for arm in runs.arms):
            name = f"Vanilla {network}" if method == "gap" else printed_name(method)
            cells = printed[network].get(name)
            if cells is None and network == "ResNet-101":
                continue
            once = method in ("gap", NEWTON_SCHULZ)
            row = [method, name if cells and name else "–"]
            for place, arm in ((0, Arm(method)), (2, Arm(method, hybrid=not once))):
                own = cells and cells[place : place + 2]
                numbers = _numbers(runs, arm, own)
                for cell, values in zip(
                    own or (None, None), numbers["errors"].values(), strict=True
                ):
                    row += ["–" if cell is None else f"{cell:.2f}", runs.spread(arm, values)]
                data[network].append(numbers)
            rows.append(row)
        columns = [f"{p} {m} error %" for p in ("standalone", "hybrid") for m in ("top-1", "top-5")]
        heading = f"{network} in the paper"
        tables.append(_table([runs], _beside(columns), rows, heading=heading))
    return Sheet(
        name="table4",
        title="Table 4: errors of ResNet-50 and ResNet-101 on ImageNet, standalone and hybrid",
        **_about(found, [arm for runs in found for arm in runs.arms]),
        tables=tables,
        data=data,
        notes=[
            "Error of the last epoch, mean ± standard deviation over seeds. Hybrid training is "
            "Newton-Schulz until the last decay of the rate, then the method of the row; "
            "Newton-Schulz and gap (the vanilla network) are the same runs in both columns.",
        ],
    )


def table5(results: Results) -> Sheet:
    """Accuracies of fine-tuning."""
    printed = paper_tables()["table5_fine_grained_accuracy"]
    found = [of_recipe(results, name) for name in FINE_GRAINED]
    ours = list({runs.name: runs for runs in found if runs}.values())
    arms = list(dict.fromkeys(arm for runs in ours for arm in runs.arms if not arm.hybrid))
    arms = [arm for arm in arms if arm.method != "gap"]
    rows, data = [], []
    for arm in arms:
        cells = printed.get(printed_name(arm.method))
        row = [arm.method, printed_name(arm.method) if cells else "–"]
        for place in range(0, 6, 2):
            pair = cells and cells[place : place + 2]
            row.append(
                "–"
                if not pair
                else " / ".join("no convergence" if c is None else f"{c:.2f}" for c in pair)
            )
        numbers: Numbers = {"method": arm.method, "paper": cells}
        for runs in ours:
            for measure in ("final", "best"):
                values = runs.accuracies(arm, measure)
                row.append(runs.spread(arm, values))
                numbers[f"{runs.name} {measure}"] = values
        rows.append(row)
        data.append(numbers)
    columns = [
        "method",
        "paper's name",
        *(f"{n.capitalize()}: paper, Final / Best" for n in FINE_GRAINED),
    ]
    columns += [f"ours, {runs.name}, {m}" for runs in ours for m in ("Final", "Best")]
    notes = [
        "Top-1 accuracy in percent. Final is the last epoch; Best the highest of all epochs on the "
        "test split itself, so it flatters. Mean ± standard deviation over seeds.",
    ]
    if SMALL in results:
        notes.append(
            "The paper's networks are fine-tuned from an ImageNet model; ours here are trained "
            "from scratch, unless --model.init_from said otherwise."
        )
    return Sheet(
        name="table5",
        title="Table 5: accuracy on Birds, Dogs and Cars",
        **_about(ours, arms),
        tables=[_table(ours, columns, rows)],
        data={"rows": data},
        notes=notes,
    )


def figure1(results: Results) -> Sheet:
    """Smoothness along training."""
    runs = _runs(results, "imagenet-alexnet")
    arms = [Arm(ACCURATE), Arm(NEWTON_SCHULZ)]
    stages = runs.stages
    rows, data = [], []
    for arm in arms:
        by_stage = [
            {seed: geometric_mean(own.values()) for seed, own in found.items() if own}
            for found in (runs.smoothness(arm, stage) for stage in stages)
        ]
        rows.append([arm.method, *(_factors(values) for values in by_stage)])
        data.append({"method": arm.method, "by_stage": by_stage})
    one, other = arms
    ratios = [runs.smoothness_ratio(one, other, stage) for stage in stages]
    rows.append([f"{ACCURATE} / {NEWTON_SCHULZ}", *(_factors(values) for values in ratios)])
    columns = ["", *(f"epochs {first} to {last}" for first, last in stages)]
    return Sheet(
        name="figure1",
        title="Figure 1: effective β-smoothness of accurate SVD and of Newton-Schulz",
        **_about([runs], arms),
        tables=[Table(columns=columns, rows=rows)],
        data={"stages": stages, "rows": data, "ratio_by_stage": ratios},
        notes=[
            "Low is smooth. β is the largest change of the gradient over the length of the step, "
            "at steps of 1/2 to 4 times the learning rate along the gradient (Santurkar et al., "
            "2018), on the training's own batch. Geometric means over the steps measured and over "
            "seeds, in brackets the least and largest seed. Steps shrink with the rate, so stages "
            "are not comparable with each other, methods within a stage are. The paper prints no "
            "numbers: its curve of SVD lies far above that of Newton-Schulz.",
        ],
        figure=smoothness_curves(runs, arms),
    )


def figure2(results: Results) -> Sheet:
    """The last stage of hybrid training."""
    runs = _runs(results, "imagenet-alexnet")
    arms = [arm for arm in runs.arms if arm.hybrid or arm.method == NEWTON_SCHULZ]
    rows = [
        [arm.method, *(runs.spread(arm, runs.errors(arm, metric)) for metric in METRICS)]
        for arm in arms
    ]
    columns = ["method", "top-1 error %", "top-5 error %"]
    return Sheet(
        name="figure2",
        title="Figure 2: errors in the last stage of hybrid training",
        **_about([runs], arms),
        tables=[Table(columns=columns, rows=rows)],
        data={"rows": [_numbers(runs, arm, None) for arm in arms]},
        notes=[
            "Errors of the last epoch, mean ± standard deviation over seeds; the figure has the "
            "mean by epoch. The paper prints no numbers: its curves lie close to each other.",
        ],
        figure=last_stage(runs, arms),
    )


def _runs(results: Results, recipe: str) -> RunSet:
    runs = of_recipe(results, recipe)
    assert runs is not None, recipe
    return runs


def _about(run_sets: Sequence[RunSet], arms: Sequence[Arm]) -> dict[str, Any]:
    """Of different recipes, or of one that stands in for several."""
    own = list({runs.name: runs for runs in run_sets}.values())
    return {
        "scale": " ".join(runs.about for runs in own),
        "paper_scale": all(runs.paper_scale for runs in own),
        "problems": [problem for runs in own for problem in runs.problems(arms)],
    }


def _beside(names: Sequence[str]) -> list[str]:
    return ["method", "paper's name", *(c for n in names for c in (f"{n}: paper", "ours"))]


def _table(
    run_sets: Sequence[RunSet],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
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


def _numbers(runs: RunSet, arm: Arm, cells: Sequence[float] | None) -> Numbers:
    errors = {metric: runs.errors(arm, metric) for metric in METRICS}
    return {"method": arm.method, "protocol": arm.protocol, "paper": cells, "errors": errors}


def _factors(values: BySeed) -> str:
    """Geometric mean over seeds, and the least and largest of them."""
    if not values:
        return "not measured"
    mean = _number(geometric_mean(values.values()))
    if len(values) == 1:
        return mean
    return f"{mean} [{_number(min(values.values()))}, {_number(max(values.values()))}]"


def _number(value: float) -> str:
    return f"{value:.2f}" if 0.01 <= abs(value) < 1000 else f"{value:.2e}"
