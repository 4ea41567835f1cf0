"""What every measurement is: records, each with a row for every case, in one file.

A `Case` is a contender: ours, a peer's or the floor. A `Measurement` has cases and, for the name of
each record (mostly a shape), the inputs that they prepare their steps from; the cases take turns,
and `complete` adds to the rows of their times what else is of interest. Its `columns` show the rows
as a `Table`, and `figures` says in words what stands there.
"""

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch

from covpool.bench.memory import peak_memory
from covpool.bench.options import SPECTRA, Options, TimedOptions
from covpool.bench.peers import open_peers
from covpool.bench.tables import Columns, Table, peer_notes, table
from covpool.bench.timing import Case, Report, Timing, fixed_threads, silent, time_cases
from covpool.linalg.tables import choose
from covpool.machine import describe_environment, summary_line
from covpool.text import quantity
from covpool.train.run_directory import replace_text

Record = dict[str, Any]
Results = dict[str, Any]
Chosen = TypeVar("Chosen", bound=Options)
Timed = TypeVar("Timed", bound=TimedOptions)

FORMAT = 1
"""Version of the results' layout."""

SAME = ("cpu", "cores_available", "threads", "device_name", "versions", "covpool_commit")
"""Of the environment, what results must share to be continued."""


class Measurement(Generic[Chosen]):
    """A measurement with its options, by which `run` gives what `covpool bench --output` writes.

    Each has `records`; where cases are timed, see `TimedMeasurement`.

    Raises:
        ValueError: options that do not fit, or a peer that is not there.
    """

    tasks: ClassVar[Collection[str]] = ("pooling",)
    """What of the peers is measured."""

    figures: ClassVar[str] = ""
    """What the figures are; the settings are filled in."""

    title: ClassVar[str] = "{shape}"
    """Of a record's table; what the record holds is filled in."""

    columns: ClassVar[Columns] = {}
    """Of a record's table."""

    def __init__(self, options: Chosen) -> None:
        self.options = options = self.check(options)
        self.peers = open_peers(options.peers, torch.device(options.device), self.tasks)
        self.report: Report = silent
        self.place = ""

    def check(self, options: Chosen) -> Chosen:
        """The options, with what depends on others filled in, or a ValueError."""
        return options

    def records(self, done: Mapping[str, Record]) -> Iterator[Record]:
        """What is measured, one after the other; "shape" is a record's name.

        Args:
            done: by name, records that are there already.
        """
        raise NotImplementedError

    def say(self, text: str) -> None:
        """Tell in a few words what goes on."""
        self.report(f"{self.place}{text}")

    @classmethod
    def preamble(cls, results: Results) -> str:
        """What the figures were measured on, and what they are."""
        settings = results["settings"]
        words = settings | {
            "rounds": quantity(settings.get("rounds", 0), "round"),
            "spectrum": SPECTRA.get(settings.get("spectrum"), "").format_map(settings),
            "clock": "the processor's time" if settings["device"] == "cpu" else "time",
        }
        machine = summary_line(results["environment"])
        return f"{machine}\n{cls.figures.format_map(words)}".rstrip()

    @classmethod
    def tables(cls, record: Record) -> Iterator[Table]:
        """A record for people, if it is not left to `finish`."""
        if cls.columns:
            yield table(cls.title.format_map(record), cls.columns, record["cases"])

    def finish(self, results: Results, output: Path | None) -> tuple[Sequence[str], int]:
        """What is said at the end, and the exit status."""
        return peer_notes(results["shapes"][-1]), 0

    def run(
        self, report: Report = silent, earlier: Results | None = None
    ) -> Iterator[tuple[Record, Results]]:
        """Measure all that the earlier results lack: each record, and the results so far.

        Args:
            report: told what goes on.
            earlier: results to go on from, of which none is lost.

        Raises:
            ValueError: the earlier results are of other settings, another machine or versions.
        """
        options, self.report = self.options, report
        homes = {
            one.peer.name: {"home": one.peer.home, "version": one.version} for one in self.peers
        }
        results: Results = {
            "format": FORMAT,
            "environment": describe_environment(options.threads, options.device),
            # A checkout's place on this machine says nothing elsewhere; its commit stands below.
            "settings": asdict(options) | {"peers": [*homes]},
            "peers": homes,
            "shapes": [],
        }
        done = {} if earlier is None else self._records_to_keep(earlier, results)
        with fixed_threads(options.threads):
            for record in self.records(dict(done)):
                done[record["shape"]] = record
                results["shapes"] = list(done.values())
                yield record, results

    def _records_to_keep(self, earlier: Results, results: Results) -> dict[str, Record]:
        # What an older version did not write was at its default; lists stand for tuples.
        settings = asdict(type(self.options)()) | earlier["settings"]
        before = {**earlier, "settings": settings}
        before, current = json.loads(json.dumps([before, results]))
        for part, names in (("environment", SAME), ("settings", None), ("peers", None)):
            was, now = before[part], current[part]
            for name in names or sorted({*was, *now} - {*self.options.free}):
                if was.get(name) != now.get(name):
                    raise ValueError(
                        f"the earlier results cannot be continued: in {part}, {name} was "
                        f"{was.get(name)!r} and is {now.get(name)!r}; write to another file"
                    )
        return {record["shape"]: record for record in earlier["shapes"]}


class TimedMeasurement(Measurement[Timed]):
    """Cases that take turns, for each record; a record has a row for each."""

    by_processor: ClassVar[bool] = False
    """Whether on a CPU it is the processor's time that counts, of which other programs take
    little; it adds up what threads take, so it is for one thread."""

    @staticmethod
    def read_shape(text: str) -> Any:
        """A shape's text taken apart, or a ValueError."""
        return text

    def check(self, options: Timed) -> Timed:
        for shape in options.shapes:
            self.read_shape(shape)
        try:
            device = torch.device(options.device)
        except RuntimeError as error:
            raise ValueError(f"unknown device {options.device!r}; cpu or cuda") from error
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device {options.device!r} cannot be measured on; cpu or cuda")
        if device.type == "cuda" and (count := torch.cuda.device_count()) <= (device.index or 0):
            raise ValueError(f"no device {options.device!r}: torch finds {count} CUDA devices")
        return options

    def points(self) -> Iterator[tuple[str, Any]]:
        """What there is a record of: its name and its place on the axes, mostly a shape."""
        yield from zip(self.options.shapes, self.options.shapes, strict=True)

    def cases(self, point: Any) -> Sequence[Case]:
        """What is measured there, in the order of the rows."""
        raise NotImplementedError

    def inputs(self, point: Any, batch: int | None = None) -> tuple[Any, ...]:
        """What the cases prepare their steps from, with that batch or the point's own."""
        raise NotImplementedError

    def around(self, point: Any) -> AbstractContextManager[None]:
        """What goes on beside the cases."""
        return nullcontext()

    def complete(self, point: Any, rows: list[Record]) -> Record:
        """What else the record holds; the rows may be added to."""
        return {}

    def records(self, done: Mapping[str, Record]) -> Iterator[Record]:
        for name, point in self.points():
            self.place = f"{name}: "
            yield done.get(name) or {"shape": name, **self.measure(point)}

    def measure(self, point: Any) -> Record:
        """The record: each case's times and peak memory, and what completes them."""
        options, cases = self.options, self.cases(point)
        device = torch.device(options.device)
        by_processor = self.by_processor and device.type == "cpu"
        timings = {case.name: Timing() for case in cases}
        memory: Mapping[str, int | str] = {}
        with self.around(point):
            if options.time:
                timings = time_cases(
                    cases,
                    *self.inputs(point),
                    rounds=options.rounds,
                    warm_up=options.warm_up,
                    device=device,
                    report=self.say,
                    clock=time.process_time if by_processor else time.perf_counter,
                )
            if options.memory:
                able = [c for c in cases if c.kind != "floor" and timings[c.name].error is None]
                memory = peak_memory(self, point, able)
        rows = [
            {"name": case.name, "kind": case.kind, **case.facts, **timings[case.name].figures()}
            for case in cases
        ]
        for row in rows:
            found = memory.get(row["name"])
            row["memory"] = found if isinstance(found, int) else None
            row["memory_error"] = found if isinstance(found, str) else None
        return {"cases": rows, **self.complete(point, rows)}


def named(kind: str, names: Sequence[str], rows: Mapping[str, Any]) -> tuple[str, ...]:
    """The names, which are rows of that table, or the table's for "all".

    Raises:
        ValueError: one is not in the table.
    """
    if tuple(names) == ("all",):
        return tuple(rows)
    for name in names:
        choose(kind, name, rows)
    return tuple(names)


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
    if not isinstance(content, dict) or content.get("format") != FORMAT or "shapes" not in content:
        raise ValueError(f"{file} does not hold results of format {FORMAT}; write to another file")
    return content


def write_results(results: Results, file: Path) -> None:
    """Write the results as JSON, in one step so that a reader never meets half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    replace_text(file, text + "\n")
