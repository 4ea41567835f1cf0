"""Finding runs and sheets in what the user names, and reading what they wrote.

Configurations are read as plain YAML, not as `RunConfig`: a report may show runs of an earlier
version, whose options were others.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from covpool.experiments.sheet import Sheet, Table
from covpool.poolings import POOLINGS
from covpool.train.analysis_rows import read_analysis, read_json_lines
from covpool.train.run_directory import Row, RunDirectory

METRICS = ("epoch", "method", "train_loss", "train_top1", "test_loss", "test_top1", "test_top5")
"""What a row of metrics.jsonl must have to be drawn."""

BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")

DAMAGE = (yaml.YAMLError, AttributeError, KeyError, RecursionError, TypeError, ValueError)
"""What reading a file may raise that holds something else than it should."""

DEPTH = 3
"""How many folders deep runs are looked for."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one training run wrote.

    Attributes:
        path: its directory, as found.
        config: option by group and name.
        summary: as in summary.json; of a run that has come to none, what its configuration says.
        history: a row for each epoch.
        confusions: classes called by another's name, most frequent first.
        examples: small pictures by class, JPEG in base 64, of those that are confused most often.
        analysis: records of the probes, in the order written.
        study: the folder of the study or probe that it is a part of, where it was found in one.
    """

    path: Path
    config: Mapping[str, Mapping[str, Any]]
    summary: Mapping[str, Any]
    history: Sequence[Row] = ()
    confusions: Sequence[Row] = ()
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    analysis: Sequence[Row] = field(default=(), repr=False)
    study: Path | None = None

    @property
    def status(self) -> str:
        """finished, diverged, interrupted, failed, missing, or unfinished without a summary."""
        return str(self.summary["status"])

    @property
    def finished(self) -> bool:
        """Whether its accuracies enter means."""
        return self.status == "finished" and "final" in self.summary

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.summary["seed"]

    @cached_property
    def switches(self) -> tuple[tuple[int, str], ...]:
        """(first epoch, counted from 0, method), rising from epoch 0."""
        found = []
        for entry in str(self.summary["schedule"]).split(","):
            epoch, colon, name = entry.partition(":")
            found.append((int(epoch), name) if colon and epoch.isdecimal() else (0, entry))
        return tuple(found)

    @property
    def method(self) -> str:
        """The pooling that ends the schedule."""
        return self.switches[-1][1]

    @property
    def hybrid(self) -> bool:
        """Whether the pooling is switched during training."""
        return len(self.switches) > 1

    @property
    def label(self) -> str:
        """The poolings in their order, and the head as the arms of experiments call it."""
        model = self.config["model"]
        reduced = self.method == "gap" and model.get("gap_reduction")
        matched = model.get("hidden_features") == "matched"
        poolings = " → ".join(name for _, name in self.switches)
        return f"{poolings}{'-reduced' if reduced else ''}{'-matched' if matched else ''}"


@contextmanager
def reading(file: Path, what: str = "what covpool train writes") -> Iterator[None]:
    """Says of a file which it is where its content turns out to be none of that."""
    try:
        yield
    except DAMAGE as error:
        raise ValueError(f"{file} is not {what}: {error!r}") from error


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs in the directories named: runs, or folders of them, such as comparisons.

    Raises:
        ValueError: there is no such directory, it holds no run, or one of a run's files is not
            what `covpool train` writes.
    """
    runs: dict[Path, Run] = {}
    for path in paths:
        if not path.is_dir():
            what = f"{path} is a file" if path.exists() else f"no directory {path}"
            raise ValueError(f"{what}; name a run, or the folder of a comparison")
        found = list(_runs_below(path, DEPTH))
        if not found:
            raise ValueError(
                f"{path} holds no run of covpool train and no comparison of runs (no summary.json "
                "or metrics.jsonl in it or below)"
            )
        for run in found:
            runs.setdefault(run.path.resolve(), run)
    return list(runs.values())


def find_sheets(paths: Iterable[Path]) -> list[Sheet]:
    """The sheets in the folders named, the paper's observations first.

    What holds no tables is none, and neither is a comparison's, as the page has its figures itself.

    Raises:
        ValueError: a file that is not what `covpool reproduce`, `study` or `probe` writes.
    """
    files = [file for path in paths for file in sorted(path.glob("*.json"))]
    files.sort(key=lambda file: file.stem != "observations")
    return [sheet for file in files if (sheet := _read_sheet(file)) is not None]


def _read_sheet(file: Path) -> Sheet | None:
    again = "what a covpool command wrote (the same command again writes it anew, without training)"
    with reading(file, again):
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "tables" not in content:
            return None
        if content["name"] == "comparison":
            return None
        return Sheet(
            name=content["name"],
            title=str(content["title"]),
            scale=str(content["scale"]),
            tables=[
                Table(
                    heading=str(table["heading"]),
                    columns=[*map(str, table["columns"])],
                    rows=[[*map(str, row)] for row in table["rows"]],
                )
                for table in content["tables"]
            ],
            data={},
            notes=[*map(str, content["notes"])],
        )


def _runs_below(path: Path, depth: int) -> Iterator[Run]:
    if _is_run(path):
        yield read_run(path)
        return
    places = {name: place for place, name in enumerate(_compared_names(path))}
    children = sorted(child for child in path.iterdir() if child.is_dir() and child.name[0] != ".")
    study = path if (path / "rates.json").is_file() else None
    if study is not None:  # its trials are no runs that count
        children = [child for child in children if child.name != "tuning"]
    found = [run for child in children if depth for run in _runs_below(child, depth - 1)]

    def place(run: Run) -> tuple[int, bool, int, int]:
        """A comparison's own order, else that of the table of methods, simple heads first."""
        known = [*POOLINGS, run.method].index(run.method)
        return places.get(run.path.name, len(places)), run.hybrid, known, len(run.label)

    yield from (replace(run, study=run.study or study) for run in sorted(found, key=place))


def _is_run(path: Path) -> bool:
    written = ("summary.json", "metrics.jsonl", "last.ckpt")
    return (path / "config.yaml").is_file() and any((path / name).is_file() for name in written)


def read_run(path: Path) -> Run:
    """The run in a directory.

    Raises:
        ValueError: a file is not what `covpool train` writes.
    """
    directory, file = RunDirectory(path), path / "config.yaml"
    with reading(file, "a run's configuration"):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        config = {str(group): dict(options) for group, options in content.items()}
        if not {"model", "train"} <= set(config):
            raise ValueError("it has no model or no train")
    history = _checked(path / "metrics.jsonl", read_json_lines(path / "metrics.jsonl"))
    summary = directory.read_summary()
    if summary is None:
        summary = _without_summary(config, history)
    return Run(
        path=path,
        config=config,
        summary=_checked_summary(path / "summary.json", summary),
        history=history,
        confusions=_confusions(path / "confusions.csv"),
        examples=_examples(directory.examples),
        analysis=read_analysis(path),
    )


def _without_summary(config: Mapping[str, Mapping[str, Any]], history: Sequence[Row]) -> Row:
    model, train = config["model"], config["train"]
    schedule = model.get("schedule") or model.get("method")
    if model.get("hybrid"):
        switch = (config.get("optim", {}).get("milestones") or [0])[-1]
        schedule = f"0:{model.get('method')},{switch}:{model['hybrid']}"
    return {
        "status": "unfinished",
        "reason": "it is still running, or was ended by force",
        "data": config.get("data", {}).get("root") or "typefaces",
        "backbone": model.get("backbone"),
        "schedule": schedule,
        "seed": train.get("seed"),
        "epochs": len(history),
        "epochs_planned": train.get("epochs"),
    }


def _compared_names(path: Path) -> list[str]:
    """Names of the runs' directories in the order of comparison.json, where there is one."""
    file = path / "comparison.json"
    if not file.is_file():
        return []
    with reading(file, "what covpool compare writes"):
        content = json.loads(file.read_text(encoding="utf-8"))
        return [str(entry["path"]) for entry in content["runs"]]


def _checked(file: Path, rows: list[Row]) -> list[Row]:
    for number, row in enumerate(rows, start=1):
        for name in METRICS:
            kind = str if name == "method" else int | float
            if not isinstance(row.get(name), kind):
                raise ValueError(
                    f"{file}: line {number} has {name} {row.get(name)!r}; covpool train writes a "
                    f"{'name' if kind is str else 'number'} there"
                )
    return rows


def _checked_summary(file: Path, summary: Any) -> Row:
    needed = ("status", "data", "backbone", "schedule", "seed", "epochs")
    missing = [name for name in needed if not isinstance(summary, dict) or name not in summary]
    if missing:
        raise ValueError(f"{file} is not a run's summary: it has no {missing[0]}")
    for name in ("final", "best"):
        if name in summary:
            _checked(file, [summary[name]])
    return summary


def _confusions(file: Path) -> list[Row]:
    if not file.is_file():
        return []
    with reading(file), file.open(encoding="utf-8", errors="replace", newline="") as lines:
        return [
            {**row, "images": int(row["images"]), "share": float(row["share"])}
            for row in csv.DictReader(lines)
        ]


def _examples(file: Path) -> dict[str, list[str]]:
    """None of a run of an earlier version."""
    if not file.is_file():
        return {}
    with reading(file):
        found = json.loads(file.read_text(encoding="utf-8"))
        pictures = [picture for own in found.values() for picture in own]
        if not all(BASE64.fullmatch(picture) for picture in pictures):
            raise ValueError("it holds other things than pictures in base 64")
    return found
