"""What every measurement is: records, of cases at a shape or of something else, in one file."""

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch

from covpool.bench.memory import peak_memory
from covpool.bench.options import Options, TimedOptions
from covpool.bench.peers import open_peers
from covpool.bench.tables import Table, peer_notes
from covpool.bench.timing import Case, Report, Timing, fixed_threads, silent, time_cases
from covpool.machine import describe_environment, summary_line
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

    def __init__(self, options: Chosen) -> None:
        self.options = options = self.check(options)
        self.peers = open_peers(options.peers, torch.device(options.device), self.tasks)

    def check(self, options: Chosen) -> Chosen:
        """The options, with what depends on others filled in, or a ValueError."""
        return options

    def records(self, done: Mapping[str, Record], report: Report) -> Iterator[Record]:
        """What is measured, one after the other; "shape" is a record's name.

        Args:
            done: by name, records that are there already.
            report: told in a few words what goes on.
        """
        raise NotImplementedError

    @staticmethod
    def preamble(results: Results) -> str:
        """What the figures were measured on, and what they are."""
        return summary_line(results["environment"])

    @staticmethod
    def tables(record: Record) -> Iterator[Table]:
        """A record for people, if it is not left to `finish`."""
        return iter(())

    def finish(self, results: Results, output: Path | None) -> tuple[Sequence[str], int]:
        """What is said at the end, and the exit status."""
        return peer_notes(results["shapes"][-1]), 0

    def run(
        self,
        report: Report = silent,
        recorded: Callable[[Record, Results], None] = lambda record, results: None,
        earlier: Results | None = None,
    ) -> Results:
        """Measure all that the earlier results lack.

        Args:
            report: told in a few words what goes on.
            recorded: given each record, and the results so far.
            earlier: results to go on from, of which none is lost.

        Raises:
            ValueError: the earlier results are of other settings, another machine or versions.
        """
        options, names = self.options, [one.peer.name for one in self.peers]
        homes = {
            one.peer.name: {"home": one.peer.home, "version": one.version} for one in self.peers
        }
        results: Results = {
            "format": FORMAT,
            "environment": describe_environment(options.threads, options.device),
            # A checkout's place on this machine says nothing elsewhere; its commit stands below.
            "settings": asdict(options) | {"peers": names},
            "peers": homes,
            "shapes": [],
        }
        done = {} if earlier is None else self._records_to_keep(earlier, results)
        with fixed_threads(options.threads):
            for record in self.records(dict(done), report):
                done[record["shape"]] = record
                results["shapes"] = list(done.values())
                recorded(record, results)
        return results

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
    """Cases that take turns, at each shape; a record has a row for each."""

    by_processor: ClassVar[bool] = False
    """Whether on a CPU it is the processor's time that counts, of which other programs take
    little; it adds up what threads take, so it is for one thread."""

    @property
    def clock(self) -> Callable[[], float]:
        """What tells the seconds."""
        on_cpu = torch.device(self.options.device).type == "cpu"
        return time.process_time if self.by_processor and on_cpu else time.perf_counter

    def check(self, options: Timed) -> Timed:
        for name, least in (("rounds", 1), ("warm_up", 0), ("threads", 1)):
            if getattr(options, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(options, name)}")
        try:
            device = torch.device(options.device)
        except RuntimeError as error:
            raise ValueError(f"unknown device {options.device!r}; cpu or cuda") from error
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device {options.device!r} cannot be measured on; cpu or cuda")
        if device.type == "cuda" and (count := torch.cuda.device_count()) <= (device.index or 0):
            raise ValueError(f"no device {options.device!r}: torch finds {count} CUDA devices")
        if not options.shapes:
            raise ValueError("no shapes to measure; give at least one, such as 16x256x49")
        return options

    @cached_property
    def cases(self) -> list[Case]:
        """What is measured, in the order of the rows."""
        raise NotImplementedError

    def cases_of(self, shape: str) -> Sequence[Case]:
        """Those of one record, if it has not all of them."""
        return self.cases

    def inputs(self, shape: str, batch: int | None = None) -> tuple[Any, ...]:
        """What the cases prepare their steps from.

        Args:
            shape: one of the names.
            batch: samples, if not the shape's own.
        """
        raise NotImplementedError

    @property
    def names(self) -> Iterable[str]:
        """Of the records; a shape where it says all that the inputs are made from."""
        return self.options.shapes

    def records(self, done: Mapping[str, Record], report: Report) -> Iterator[Record]:
        for name in self.names:
            yield done.get(name) or self.measure(name, partial(_say_at, report, name))

    def measure(self, shape: str, report: Report) -> Record:
        """The record of that name."""
        return {"shape": shape, "cases": self.rows(shape, report)}

    def rows(self, shape: str, report: Report) -> list[Record]:
        """Each case's times and peak memory."""
        options, cases = self.options, self.cases_of(shape)
        timings = {case.name: Timing() for case in cases}
        if options.time:
            timings = time_cases(
                cases,
                *self.inputs(shape),
                rounds=options.rounds,
                warm_up=options.warm_up,
                device=torch.device(options.device),
                report=report,
                clock=self.clock,
            )
        memory: Mapping[str, int | str] = {}
        if options.memory:
            failed = {name for name, timing in timings.items() if timing.error is not None}
            able = [c for c in cases if c.kind != "floor" and c.name not in failed]
            memory = peak_memory(self, shape, able, report)
        return [_row(case, timings[case.name], memory.get(case.name)) for case in cases]


def _say_at(report: Report, shape: str, text: str) -> None:
    report(f"{shape}: {text}")


def _row(case: Case, timing: Timing, memory: int | str | None) -> Record:
    low, high = timing.quartiles or (None, None)
    return {
        "name": case.name,
        "kind": case.kind,
        **case.facts,
        "error": timing.error,
        "median": timing.median,
        "lower_quartile": low,
        "upper_quartile": high,
        "rounds": timing.seconds,
        "calls": timing.calls,
        "memory": memory if isinstance(memory, int) else None,
        "memory_error": memory if isinstance(memory, str) else None,
    }


def ratio(value: float | None, over: float | None, least: float = 0) -> float | None:
    """None where either is missing, or the second is too small to be told from nothing."""
    return None if value is None or over is None or over <= least else value / over


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
