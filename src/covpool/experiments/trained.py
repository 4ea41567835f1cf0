"""The targets that need training: from finished runs to ours beside the paper's."""

from collections.abc import Sequence
from itertools import chain, product
from typing import Any

from covpool.experiments.arms import ACCURATE, NEWTON_SCHULZ, Arm
from covpool.experiments.figures import last_stage, smoothness_curves
from covpool.experiments.inference import BySeed, Spread, differences, geometric_mean
from covpool.experiments.paper import METRICS, TABLE_1, paper_tables, printed_name
from covpool.experiments.results import CONDITION_NUMBERS, SMALL, Results, RunSet, of_recipe
from covpool.experiments.sheet import Sheet, Table, notes

FINE_GRAINED = ("birds", "dogs", "cars")


def table1(results: Results) -> Sheet:
    """Accurate SVD against Newton-Schulz."""
    printed = paper_tables()["table1_resnet50_imagenet_error"]
    runs = results.get(SMALL) or results["imagenet-resnet50-fast-mpn-cov"]
    numbers = [_numbers(runs, Arm(method), printed[name]) for method, name in TABLE_1.items()]
    rows = [[method, printed_name(method) or "–"] for method in TABLE_1]
    last = ["difference, paired by seed", ""]
    for place, metric in enumerate(METRICS):
        for row, own in zip(rows, numbers, strict=True):
            errors = runs.spread(Arm(own["method"]), own["errors"][metric])
            row += [f"{own['paper'][place]:.2f}", errors]
        svd, newton = numbers
        gap = Spread.of(differences(svd["errors"][metric], newton["errors"][metric]))
        last += [f"{svd['paper'][place] - newton['paper'][place]:+.2f}", gap.interval_text()]
    rows.append(last)
    return _sheet(
        "table1",
        "Table 1: error of ResNet-50 on ImageNet",
        [runs],
        [Arm(method) for method in TABLE_1],
        tables=[_beside([runs], ["top-1 error %", "top-5 error %"], rows)],
        data={"rows": numbers},
    )


def table2(results: Results) -> Sheet:
    """Condition numbers at the first epoch of each stage."""
    printed = list(paper_tables()["table2_condition_number_mpncov"].values())
    runs = results.get(SMALL) or results["imagenet-alexnet"]
    arm = Arm(ACCURATE)
    epochs = runs.first_epochs
    cells = [f"{cell:.2e}" for cell in printed[: len(epochs)]]
    papers = ["the paper, epochs 1, 11, 21", *cells, *["–"] * (len(epochs) - len(printed))]
    ours = {
        (title, way, figure): [runs.condition_numbers(arm, e, way, figure) for e in epochs]
        for title, way, figure in CONDITION_NUMBERS
    }
    rows = [[title, *map(_factors, found)] for (title, _, _), found in ours.items()]
    columns = ["", *(f"epoch {epoch}" for epoch in epochs)]
    return _sheet(
        "table2",
        "Table 2: condition number of the covariances by epoch, accurate SVD",
        [runs],
        [arm],
        tables=[Table(columns=columns, rows=rows if runs.own_images else [papers, *rows])],
        data={
            "paper": printed,
            "epochs": epochs,
            "rows": [
                {"way": way, "figure": figure, "by_seed": found}
                for (_, way, figure), found in ours.items()
            ],
        },
    )


def table4(results: Results) -> Sheet:
    """All methods by both protocols."""
    printed = paper_tables()["table4_imagenet_error"]
    tables, data, used = [], {}, []
    for network, recipe in (
        ("ResNet-50", "imagenet-resnet50"),
        ("ResNet-101", "imagenet-resnet101"),
    ):
        runs = of_recipe(results, recipe)
        if runs is None:
            continue
        used.append(runs)
        rows, data[network] = [], []
        for method in dict.fromkeys(arm.method for arm in runs.arms):
            name = f"Vanilla {network}" if method == "gap" else printed_name(method)
            cells = printed[network].get(name)
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
    return _sheet(
        "table4",
        "Table 4: errors of ResNet-50 and ResNet-101 on ImageNet, standalone and hybrid",
        used,
        [arm for runs in used for arm in runs.arms],
        tables=tables,
        data=data,
    )


def table5(results: Results) -> Sheet:
    """Accuracies of fine-tuning."""
    printed = paper_tables()["table5_fine_grained_accuracy"]
    found = [of_recipe(results, name) for name in FINE_GRAINED]
    ours = list({runs.name: runs for runs in found if runs}.values())
    arms = dict.fromkeys(arm for runs in ours for arm in runs.arms)
    arms = [arm for arm in arms if not arm.hybrid and arm.method != "gap"]
    rows: list[list[str]] = []
    data: list[dict[str, Any]] = []
    for arm in arms:
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
    return _sheet(
        "table5",
        "Table 5: accuracy on Birds, Dogs and Cars",
        ours,
        arms,
        tables=[_table(ours, ["method", "paper's name", *papers, *here], rows)],
        data={"rows": data},
        about={"small": SMALL in results},
    )


def figure1(results: Results) -> Sheet:
    """Smoothness along training."""
    runs = results.get(SMALL) or results["imagenet-alexnet"]
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
    return _sheet(
        "figure1",
        "Figure 1: effective β-smoothness of accurate SVD and of Newton-Schulz",
        [runs],
        arms,
        tables=[Table(columns=columns, rows=rows)],
        data={"stages": stages, "rows": data, "ratio_by_stage": ratios},
        figure=smoothness_curves(runs, arms),
    )


def figure2(results: Results) -> Sheet:
    """The last stage of hybrid training."""
    runs = results.get(SMALL) or results["imagenet-alexnet"]
    arms = [arm for arm in runs.arms if arm.hybrid or arm.method == NEWTON_SCHULZ]
    rows = [
        [arm.method, *(runs.spread(arm, runs.errors(arm, metric)) for metric in METRICS)]
        for arm in arms
    ]
    return _sheet(
        "figure2",
        "Figure 2: errors in the last stage of hybrid training",
        [runs],
        arms,
        tables=[Table(columns=["method", "top-1 error %", "top-5 error %"], rows=rows)],
        data={"rows": [_numbers(runs, arm, None) for arm in arms]},
        figure=last_stage(runs, arms),
    )


def _sheet(
    name: str,
    title: str,
    run_sets: Sequence[RunSet],
    arms: Sequence[Arm],
    about: dict[str, Any] | None = None,
    **parts: Any,
) -> Sheet:
    """The sheet of these arms' runs, of different recipes or of one that stands in for several."""
    own = list({runs.name: runs for runs in run_sets}.values())
    return Sheet(
        name=name,
        title=title,
        scale=" ".join(runs.about for runs in own),
        paper_scale=all(runs.paper_scale for runs in own),
        problems=[problem for runs in own for problem in runs.problems(arms)],
        notes=notes(name, **(about or {})),
        **parts,
    )


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
