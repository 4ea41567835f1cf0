"""`covpool compare`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from covpool.cli import say
from covpool.cli.console import PlainConsole
from covpool.cli.parsers import compare_parser
from covpool.cli.parsing import (
    FileProgress,
    checking_files,
    chosen_recipe,
    holding,
    users_input,
)
from covpool.linalg.methods import METHODS
from covpool.pooling import check_pooling
from covpool.text import file_name
from covpool.train import comparison as table
from covpool.train.cells import Cell, check_one_process, constants_of, make_grid, open_folder
from covpool.train.config import ModelConfig, RunConfig
from covpool.train.grid import GridState, run_grid
from covpool.train.interruption import Interrupted
from covpool.train.job import check_names, prepare
from covpool.train.probes import warn_of_unmeasured
from covpool.train.progress import duration
from covpool.train.run_directory import csv_text, replace_text


def run(arguments: list[str]) -> int:
    """Run or continue the grid, print its table, and return the exit status."""
    with users_input(), checking_files() as progress:
        config, cells, jobs, folder = _prepare(arguments, progress)
    console = PlainConsole()
    methods = len({cell.label for cell in cells})
    with holding(folder):
        with users_input():
            open_folder(folder, config)
        console.print(
            f"{len(cells)} runs ({methods} methods, {len(cells) // methods} seeds), "
            f"{config.train.epochs} epochs each, {jobs} at a time, in {folder}{_on(config)}"
        )
        try:
            with GridReport(console) as report:
                failures = run_grid(cells, jobs, report.show)
        except Interrupted as error:
            say("covpool: interrupted; the same command goes on where it stopped", error=True)
            return 128 + error.signal_number
        comparison = table.tabulate(cells, failures)
        write(comparison, cells, config, jobs, folder)
    show(comparison, console)
    console.print(f"table and runs: {folder}")
    return 1 if comparison.problems else 0


def _on(config: RunConfig) -> str:
    """What is evaluated, where it is not the test split."""
    if config.data.evaluate == "test":
        return ""
    return ", evaluated on held-out training images, not on the test split"


def _prepare(
    arguments: list[str], progress: FileProgress
) -> tuple[RunConfig, list[Cell], int, Path]:
    recipe = chosen_recipe(arguments)
    parser = compare_parser(defaults=recipe and recipe.config)
    config, own = parser.parse(arguments)
    if recipe is not None:
        recipe.check(config)
    methods = list(dict.fromkeys(name.strip() for name in own.methods.split(",")))
    for name in methods:
        check_pooling(name)
    for option, value in (("--seeds", own.seeds), ("--jobs", own.jobs)):
        if value < 1:
            raise ValueError(f"{option} must be at least 1, not {value}")
    for option in ("schedule", "hybrid"):
        if (value := getattr(config.model, option)) is not None:
            raise ValueError(
                f"model.{option} {value!r} cannot be used here: compare gives each run one method "
                "of --methods"
            )
    if config.model.method not in (ModelConfig.method, *methods):
        raise ValueError(
            f"model.method {config.model.method!r} would have no effect here: --methods says what "
            "is compared"
        )
    _check_constants(config, methods)
    check_one_process(config, own.output or Path("FOLDER"))
    # Opening the images and building one model now meets every mistake before the long part.
    constants = constants_of(config, methods[0])
    first = replace(config.model, method=methods[0], constants=constants)
    job = prepare(replace(config, model=first), progress=progress)
    label = f"compare-{job.splits.name}-{config.model.backbone}"
    folder = own.output or Path("runs") / file_name(label)
    cells = make_grid(config, methods, own.seeds, folder, own.jobs)
    for cell in cells:
        check_names(cell.config)
    if "gap" in methods[1:]:  # of the first method, `prepare` has said it
        warn_of_unmeasured(config, "gap")
    return config, cells, own.jobs, folder


def _check_constants(config: RunConfig, methods: Sequence[str]) -> None:
    """Each method takes those of the constants that it has; one that none has is a mistake."""
    known = sorted({key for name in methods if name in METHODS for key in METHODS[name].constants})
    for constant in config.model.constants:
        if constant not in known:
            raise ValueError(
                f"model.constants.{constant}: {', '.join(methods)} have no such constant; theirs: "
                f"{', '.join(known) or 'none'}"
            )


class GridReport:
    """A bar over the grid where there is a terminal; a line for each finished run in any case."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("epoch {task.completed}/{task.total}  {task.fields[figures]}"),
            console=console,
            transient=True,
            auto_refresh=False,
            expand=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("starting", total=None, figures="")

    def __enter__(self) -> "GridReport":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def show(self, state: GridState, ended: Cell | None) -> None:
        """Show the state, and the outcome of the run that has just ended, if one has."""
        left = "" if state.seconds_left is None else f"{duration(state.seconds_left)} left"
        if ended is not None:
            self.console.print(
                f"[{state.finished}/{state.total}] {ended.name}: {_outcome(ended)}  {left}",
                markup=False,
            )
        self.bar.update(
            self.task,
            description=f"{state.finished}/{state.total} runs",
            completed=state.epochs_done,
            total=state.epochs_total,
            figures=f"{', '.join(cell.name for cell in state.running)}  {left}",
            refresh=True,
        )


def _outcome(cell: Cell) -> str:
    summary = cell.summary()
    if summary["status"] != "finished":
        return str(summary.get("reason", summary["status"]))
    final, best = summary["final"]["test_top1"], summary["best"]["test_top1"]
    return f"Final {100 * final:.2f}%  Best {100 * best:.2f}%  {summary['seconds']:.0f} s"


def show(comparison: table.Comparison, console: Console) -> None:
    """Print the table, and what is missing from it."""
    rows = [table.cells_of_row(row) for row in comparison.rows]
    if console.is_terminal:
        drawn = Table(*table.HEADER)
        for row in rows:
            drawn.add_row(*row)
        console.print(drawn)
    else:
        console.print(markdown_table(rows))
    for problem in comparison.problems:
        console.print(f"not in the means: {problem}")


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows under `table.HEADER` as a Markdown table."""
    lines = [table.HEADER, ["---"] * len(table.HEADER), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(
    comparison: table.Comparison,
    cells: Sequence[Cell],
    config: RunConfig,
    jobs: int,
    folder: Path,
) -> None:
    """Write comparison.md, comparison.csv and comparison.json."""
    replace_text(folder / "comparison.csv", csv_text(comparison.rows))
    content: dict[str, Any] = {
        "config": config.to_dict(),
        "jobs": jobs,
        "table": comparison.rows,
        "problems": comparison.problems,
        "runs": [
            {"method": cell.label, "seed": cell.seed, "path": cell.path.name, **cell.summary()}
            for cell in cells
        ],
    }
    replace_text(folder / "comparison.json", json.dumps(content, indent=2) + "\n")
    seeds = sorted({cell.seed for cell in cells})
    threads = cells[0].config.train.threads
    split = config.data.evaluated_split
    text = [
        f"# Pooling methods compared: {config.model.backbone}, {config.train.epochs} epochs",
        "",
        markdown_table([table.cells_of_row(row) for row in comparison.rows]),
        "",
        f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))}, {split}. Final is "
        f"the last epoch; Best the highest of all epochs on the {split} itself, so it flatters. "
        "s/epoch is the median over epochs of training without evaluation, "
        f"{jobs} run(s) at a time with {threads} thread(s) each. The difference is paired by seed "
        "against the first method, with its 95% interval by Student's t.",
        *(f"\nNot in the means: {problem}" for problem in comparison.problems),
    ]
    replace_text(folder / "comparison.md", "\n".join(text) + "\n")
