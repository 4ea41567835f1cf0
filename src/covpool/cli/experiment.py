"""What `compare`, `study` and `reproduce` share: options, the plan, the running grid; and a study
as a whole, of which a comparison is one without trials."""

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TextColumn

from covpool.cli import say
from covpool.cli.console import PlainConsole
from covpool.cli.parsing import FileProgress, holding, users_input
from covpool.experiments import study as studies
from covpool.experiments.arms import Arm
from covpool.experiments.estimate import Line, estimate
from covpool.experiments.grid import GridState, Work, run_grid
from covpool.experiments.outcome import Outcome
from covpool.experiments.results import RunSet
from covpool.experiments.runs import Run, check_one_process, check_same_options, threads_of
from covpool.experiments.sheet import Sheet
from covpool.experiments.study import TUNING, Rates, Study
from covpool.experiments.summary import make_sheet
from covpool.text import printable_lines, quantity
from covpool.train.config import RunConfig
from covpool.train.interruption import Interrupted
from covpool.train.job import Job, check_names, prepare
from covpool.train.progress import duration


def _nothing() -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Request:
    """A study that the command line asks for, checked.

    Attributes:
        study: what is to be trained.
        whole: the study without --arms and --seeds, whose runs are summarised where they are there.
        job: of the first arm.
        rates: by arm; None: trials choose them.
        output: the study's folder.
        runs: the folder of its runs.
        sheet: how the files of its summary are called.
        begin: what is to be done or checked in the folder before its work.
        jobs: runs at a time.
        dry_run: whether only the plan is shown.
    """

    study: Study
    whole: Study
    job: Job
    rates: Rates | None
    output: Path
    runs: Path
    sheet: str = "summary"
    begin: Callable[[], None] = _nothing
    jobs: int
    dry_run: bool

    work: ClassVar[Work | None] = None
    """As for `run_grid`."""

    def together(self, runs: Sequence[Run]) -> Sequence[Run]:
        """The runs as they are made: each by itself."""
        return runs

    def summary(self, outcome: Outcome) -> Sheet:
        """The sheet that is written and shown."""
        return make_sheet(outcome, self.sheet)

    @property
    def threads(self) -> int:
        """Of each run."""
        return threads_of(self.study.config, self.jobs)

    def about(self, study: Study) -> str:
        """What is trained, on what, in a sentence."""
        splits, config = self.job.splits, study.config
        held_out = ", evaluated on held-out training images, not on the test split"
        return (
            f"{splits.name}: {len(splits.classes)} classes, {len(splits.train)} training and "
            f"{quantity(len(splits.test), 'test image')}; {config.model.backbone}, "
            f"{quantity(config.train.epochs, 'epoch')}; "
            f"{quantity(len(study.arms), 'way to train', 'ways to train')}"
            f"{held_out * (config.data.evaluate != 'test')}."
        )


def run_study(request: Request) -> int:
    """Plan, or choose the rates, train and summarise; return the exit status."""
    console = PlainConsole()
    if request.dry_run:
        _announce(request, console)
        _plan(request, console)
        return 0
    return holding_folder(request.output, lambda: _announced(request, console))


def _announce(request: Request, console: Console) -> None:
    console.print(f"{request.study.title}\n{request.about(request.study)}")


def _announced(request: Request, console: Console) -> int:
    with users_input():
        request.begin()
    _announce(request, console)
    sheet = train_study(request, console)
    console.print(f"summary and runs: {request.output}")
    return 1 if sheet.problems else 0


def train_study(request: Request, console: Console) -> Sheet:
    """Choose the rates, train, summarise; return the summary, which is written and shown."""
    study, whole, output, rates = request.study, request.whole, request.output, request.rates
    if rates is None:
        trials = studies.tuning_runs(study, output, request.threads)
        failed = _train(trials, request, output / TUNING, "trials of the rate", console)
        with users_input():
            rates = studies.chosen_rates(study, trials, failed)
    runs = studies.final_runs(study, rates, request.runs, request.threads)
    if study.rates:
        with users_input():
            # Before rates.json is written: rates that other runs here were not trained with are
            # refused.
            rates = {**studies.earlier_rates(output), **rates}
            studies.earlier_runs(whole, rates, request.runs)
            studies.write_rates(output, rates)
        for label, chosen in rates.items():
            decay = f", decay {chosen['weight_decay']:g}" if "weight_decay" in chosen else ""
            console.print(f"rate of {label}: {chosen['rate']:g}{decay}, by {_tried(chosen)}")
    failures = _train([*runs.values()], request, request.runs, "runs that count", console)
    with users_input():
        # Runs of other arms and seeds that an earlier command trained here are summarised too.
        runs |= {
            key: run
            for key, run in studies.earlier_runs(whole, rates, request.runs).items()
            if key not in runs
        }
        labels = {arm.label for arm, _ in runs}
        named = [arm.label for arm in whole.arms]
        shown = whole.restricted([label for label in named if label in labels])
        found = RunSet(name=study.name, about=request.about(shown), config=study.config, runs=runs)
        outcome = Outcome(
            study=shown,
            runs=found.ended(failures),
            rates=rates,
            train_images=len(request.job.splits.train),
            test_images=len(request.job.splits.test),
            not_run=tuple(label for label in named if label not in labels),
        )
        sheet = request.summary(outcome)
        sheet.write(output)
        outcome.write_lines(output)
    show(sheet, console)
    return sheet


def show(sheet: Sheet, console: Console) -> None:
    """Print a sheet, its tables drawn on a terminal."""
    text = sheet.markdown()
    console.print(Markdown(printable_lines(text)) if console.is_terminal else f"\n{text}")


def _tried(chosen: Mapping[str, Any]) -> str:
    tried = chosen["validation_top1"].items()
    shown = (f"{'diverged' if top1 is None else f'{top1:.2f}%'} at {rate}" for rate, top1 in tried)
    return ", ".join(shown) or "no trial"


def _train(
    runs: Sequence[Run], request: Request, folder: Path, what: str, console: Console
) -> dict[str, str]:
    with users_input():
        for run in runs:
            check_same_options(run)
    console.print(f"{len(runs)} {what} ({settled(runs)}), {request.jobs} at a time, in {folder}")
    together = request.together(runs)
    failed = run_all(together, request.jobs, console, work=request.work)
    return {
        run.name: failed[made.name]
        for made in together
        if made.name in failed
        for run in made.members
    }


def _plan(request: Request, console: Console) -> None:
    study, output, threads = request.study, request.output, request.threads
    guess = {arm.tuned_as.label: {"rate": study.config.optim.learning_rate} for arm in study.arms}
    rates = guess | studies.earlier_rates(output) | dict(request.rates or {})
    runs = studies.final_runs(study, rates, request.runs, threads)
    runs = [run for arm in study.arms for (own, _), run in runs.items() if own == arm]
    trials = [] if request.rates else studies.tuning_runs(study, output, threads)
    lines = show_plan(study.config, runs, request.job, console, trials)
    show_total(lines, request.jobs, output, console)


def check_counts(own: Any) -> None:
    """Raise a ValueError where there are no seeds or no jobs."""
    for option in ("seeds", "jobs"):
        value = getattr(own, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option} must be at least 1, not {value}")


def listed(text: str) -> list[str]:
    """Names with commas between, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",")))


def prepare_arms(
    config: RunConfig, arms: Sequence[Arm], folder: Path, progress: FileProgress
) -> Job:
    """The job of the first arm: opening the images and building a model now meets every mistake
    before the long part.

    Raises:
        ValueError, OSError: an arm that cannot be trained, or images that cannot be opened.
    """
    check_one_process(config, folder)
    for arm in arms:
        check_names(arm.config(config))
    return prepare(arms[0].config(config), progress=progress)


def holding_folder(folder: Path, work: Callable[[], int]) -> int:
    """The exit status of work in a folder that no other command writes into meanwhile."""
    with holding(folder):
        try:
            return work()
        except Interrupted as error:
            say("covpool: interrupted; the same command goes on where it stopped", error=True)
            return 128 + error.signal_number


def run_all(
    runs: Iterable[Run],
    jobs: int,
    console: Console,
    *,
    free: Collection[tuple[str, str]] = (),
    work: Work | None = None,
) -> dict[str, str]:
    """Make the runs that are missing; reasons by name of those that failed.

    Args:
        runs: all of them.
        jobs: at a time.
        console: where it is told.
        free: options in which runs that are there may differ.
        work: as for `run_grid`.

    Raises:
        Interrupted: as `run_grid`.
        UserError: a run there was begun with other options.
    """
    planned = list(runs)
    with users_input():
        for run in planned:
            check_same_options(run, free)
    with GridReport(console) as report:
        return run_grid(planned, jobs, report.show, work)


def settled(runs: Iterable[Run]) -> str:
    """How many runs need no training."""
    number = sum(run.settled() for run in runs)
    return f"{number} {'is' if number == 1 else 'are'} there already"


def show_plan(
    shared: RunConfig,
    runs: Sequence[Run],
    job: Job,
    console: Console,
    trials: Sequence[Run] = (),
) -> list[Line]:
    """Measure steps, and print a line for each arm; the arguments are those of `estimate`."""
    with console.status("measuring steps") as status:
        lines = estimate(shared, runs, job=job, trials=trials, report=status.update)
    first = {run.arm: run for run in reversed(runs)}
    for line in lines:
        tried = f"{quantity(line.trials, 'trial')}, " if trials else ""
        there = f" ({line.settled} of these are there already)" if line.settled else ""
        probes = first[line.arm].config.train.probes
        remark = f"; {', '.join(probes)} measured" if probes else ""
        console.print(
            f"  {line.arm.label}: {tried}{quantity(line.runs, 'run')}{there}, "
            f"{quantity(line.epochs, 'epoch')}{remark}; "
            f"{line.parameters / 1e6:.2f} M parameters, {duration(line.seconds)}"
        )
    return lines


def show_total(lines: Sequence[Line], jobs: int, folder: Path, console: Console) -> None:
    """Print what all of them take together."""
    seconds, disk = (sum(getattr(line, name) for line in lines) for name in ("seconds", "disk"))
    beside = jobs * max(line.beside for line in lines)
    until = f" (and {beside / 1e6:,.1f} MB more until they have finished)" if beside else ""
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    steps = sorted({line.steps for line in lines})
    console.print(
        f"about {duration(seconds / jobs)} with {jobs} at a time, by steps measured here "
        f"({' or '.join(map(str, steps))} an epoch), probes not included; runs that end early by "
        f"diverging take less\nabout {disk / 1e6:,.1f} MB on disk for new runs{until}, of "
        f"{free / 1e6:,.0f} MB free"
    )
    if disk + beside > free:
        console.print(f"this is more than there is free: choose another --output than {folder}")


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

    def show(self, state: GridState, ended: Run | None) -> None:
        """Show the state, and the outcome of the run that has just ended, if one has."""
        left = "" if state.seconds_left is None else f"{duration(state.seconds_left)} left"
        if ended is not None:
            self.console.print(
                f"[{state.finished}/{state.total}] {ended.name}: {_outcome(ended)}  {left}",
                markup=False,
            )
        self.bar.update(
            self.task,
            description=f"{state.finished}/{quantity(state.total, 'run')}",
            completed=state.epochs_done,
            total=state.epochs_total,
            figures=f"{', '.join(run.name for run in state.running)}  {left}",
            refresh=True,
        )


def _outcome(run: Run) -> str:
    summary = run.summary()
    if summary["status"] != "finished":
        return str(summary.get("reason", summary["status"]))
    final, best = summary["final"]["test_top1"], summary["best"]["test_top1"]
    return f"Final {100 * final:.2f}%  Best {100 * best:.2f}%  {summary['seconds']:.0f} s"
