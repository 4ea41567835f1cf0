"""The directory of a run: its files and how they are named.

config.yaml, metrics.csv, metrics.jsonl, last.ckpt, previous.ckpt, best.ckpt, curves.svg,
confusion.png, confusions.csv, examples.json, summary.md, summary.json. Whatever is written again
during a run replaces its predecessor in one step, so a reader or a crash never meets half a file.
summary.json is the last one that is written: where it says "finished", all others are there, but
for a picture (curves.svg, confusion.png, those in examples.json) that could not be drawn. Then
previous.ckpt goes, or what else the run was told not to keep.
"""

import csv
import io
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

import yaml

from covpool.text import markdown, quantity
from covpool.train.config import RunConfig

Row = dict[str, Any]

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
"""Where the checkpoint to go on from is, and the one before it."""

AUTO = Path("auto")
"""As the run to resume: go on with the output directory where it is a run, else start it."""

LOCK = ".lock"
"""The file that a process holds while it writes the directory; see `covpool.train.claim`."""

PARTIAL = re.compile(r"\.partial-(\d+)-")
"""How the name of what is not written to its end begins, with the number of the process."""

KEPT = 40
"""Characters that follow of the file's own name; the whole of a long one would leave no room."""

RESULTS = ("metrics.csv", "metrics.jsonl", "confusions.csv", "summary.md", "summary.json")
"""What a finished run has beside its configuration, its checkpoints and its pictures."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths and writers of one run."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: RunConfig) -> Self:
        """A new directory with the resolved configuration in it.

        Raises:
            ValueError: it exists and holds something.
        """
        path.mkdir(parents=True, exist_ok=True)
        refuse_existing(path)
        directory = cls(path)
        directory.write_config(config)
        return directory

    @classmethod
    def open(cls, path: Path) -> Self:
        """The directory of an earlier run.

        Raises:
            ValueError: there is none.
        """
        if not path.is_dir():
            raise ValueError(f"no run directory {path}")
        if not (path / "config.yaml").is_file():
            raise ValueError(f"{path} is not a run directory: it has no config.yaml")
        return cls(path)

    @property
    def last(self) -> Path:
        """The checkpoint to go on from."""
        return self.path / LAST

    @property
    def previous(self) -> Path:
        """The checkpoint before that one."""
        return self.path / PREVIOUS

    @property
    def best(self) -> Path:
        """The weights of the epoch with the highest test top-1."""
        return self.path / "best.ckpt"

    @property
    def examples(self) -> Path:
        """Small pictures of the classes that are confused most often."""
        return self.path / "examples.json"

    def has_checkpoint(self) -> bool:
        """Whether there is anything to go on from."""
        return self.last.is_file() or self.previous.is_file()

    def owes(self, epochs: int) -> list[str]:
        """What a run that has finished so many epochs has not written yet."""
        missing = [name for name in RESULTS if not (self.path / name).is_file()]
        summary = self.read_summary() or {}
        if summary.get("status") != "finished" or summary.get("epochs") != epochs:
            missing.append("summary.json")
        return missing

    def read_config(self) -> RunConfig:
        """The run's configuration.

        Raises:
            ValueError: config.yaml cannot be read, or is of another version.
        """
        file = self.path / "config.yaml"
        try:
            return RunConfig.from_dict(yaml.safe_load(file.read_text(encoding="utf-8")))
        except (yaml.YAMLError, AttributeError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is not a readable configuration: {error}") from error
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def write_config(self, config: RunConfig) -> None:
        """Write config.yaml."""
        replace_text(
            self.path / "config.yaml",
            yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True),
        )

    def write_metrics(self, history: Sequence[Row]) -> None:
        """Write metrics.csv and metrics.jsonl, a row for each epoch."""
        replace_text(self.path / "metrics.csv", csv_text(history))
        lines = "".join(json.dumps(row) + "\n" for row in history)
        replace_text(self.path / "metrics.jsonl", lines)

    def read_metrics(self) -> list[Row]:
        """The rows of the epochs so far; none before the first has ended."""
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def write_confusions(self, confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
        """Write confusions.csv: which class was called which other one, most frequent first."""
        rows = [
            {
                "class": classes[true],
                "called": classes[called],
                "images": count,
                "share": round(count / sum(row), 4),
            }
            for true, row in enumerate(confusion)
            for called, count in enumerate(row)
            if count and called != true
        ]
        rows.sort(key=lambda row: -row["images"])
        header = ("class", "called", "images", "share")
        replace_text(self.path / "confusions.csv", csv_text(rows, header))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.md for people and then summary.json, which is to be the run's last file."""
        replace_text(self.path / "summary.md", summary_markdown(summary))
        replace_text(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")

    def read_summary(self) -> dict[str, Any] | None:
        """The summary, or None where the run has not come to one."""
        try:
            return json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None


def is_free(path: Path) -> bool:
    """Whether nothing is there but, at most, a directory with what a start left that was killed."""
    if not path.is_dir():
        return not path.exists()
    return all(file.name == LOCK or PARTIAL.match(file.name) for file in path.iterdir())


def refuse_existing(path: Path) -> None:
    """Raise a ValueError where the path is taken by anything but an empty directory."""
    if not is_free(path):
        is_run = (path / "config.yaml").is_file()
        go_on = f"go on with it by --resume {shlex.quote(str(path))}, or " if is_run else ""
        what = "run directory" if is_run else "--output"
        raise ValueError(f"{what} {path} exists; {go_on}choose another --output")


def make_numbered(path: Path) -> Path:
    """Make the directory; where something is there, the first free one of NAME-2, NAME-3, …

    Processes that do this at the same time get different directories.
    """
    names = (f"{path.name}-{number}" for number in count(2))
    free = path
    while True:
        try:
            free.mkdir(parents=True)
        except FileExistsError:
            free = path.with_name(next(names))
        else:
            return free


def best_row(history: Iterable[Row]) -> Row:
    """The row of the highest test top-1, the earliest of equals."""
    return max(history, key=lambda row: row["test_top1"])


def summary_markdown(summary: Mapping[str, Any]) -> str:
    """The summary as a short Markdown text."""
    lines = [
        f"# {summary['backbone']}, {summary['schedule']}, {markdown(summary['data'])}",
        "",
        f"Status: {summary['status']}, {summary['epochs']} of "
        f"{quantity(summary['epochs_planned'], 'epoch')}, "
        f"{summary['seconds']:.0f} s of training, seed {summary['seed']}, "
        f"{summary['parameters']:,} parameters, covpool {summary['covpool']}, "
        f"torch {summary['torch']}.",
    ]
    if "reason" in summary:
        lines += ["", markdown(" ".join(summary["reason"].split()))]
    if "final" in summary:
        split = f"{summary.get('evaluated', 'test')} split"
        lines += ["", f"| {split} | epoch | top-1 % | top-5 % | loss |", "|---|---|---|---|---|"]
        for name in ("final", "best"):
            row = summary[name]
            lines.append(
                f"| {name.capitalize()} | {row['epoch']} | {100 * row['test_top1']:.2f} "
                f"| {100 * row['test_top5']:.2f} | {row['test_loss']:.4f} |"
            )
        lines += [
            "",
            f"Final is the last epoch. Best is the epoch of the highest top-1 on the {split} "
            "itself, so it flatters.",
        ]
    return "\n".join(lines) + "\n"


def csv_text(rows: Sequence[Mapping[str, Any]], header: Sequence[str] | None = None) -> str:
    """The rows as CSV with a header line."""
    names = header or (list(rows[0]) if rows else [])
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def replace_text(path: Path, text: str) -> None:
    """Write a file by way of a neighbour that takes its place."""
    # Bytes of a path that are no UTF-8 become the escapes by which JSON and YAML write them.
    replace_file(
        path,
        lambda partial: partial.write_text(text, encoding="utf-8", errors="backslashreplace"),
    )


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a neighbouring file, then put it in the path's place."""
    with replacing(path) as partial:
        write(partial)


@contextmanager
def replacing(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """A neighbouring path for a new file or directory, which takes the path's place in one step.

    Its name has the process in it, so that two processes do not write into the same one. Where the
    block raises, the path is left as it was.

    Args:
        path: the place; a directory there must be empty.
        keep: where the file that is replaced goes, if it is to be kept.
    """
    partial = path.with_name(f".partial-{os.getpid()}-{path.name[:KEPT]}")
    try:
        yield partial
        synchronise(partial)
        if keep is not None and path.is_file():
            os.replace(path, keep)
        os.replace(partial, path)
        synchronise(path.parent)
    finally:
        remove(partial)


def put_aside(path: Path) -> None:
    """Let a damaged file, where there is one, make room for a good one; it is kept."""
    with suppress(FileNotFoundError):
        os.replace(path, path.with_name(f"{path.name}.damaged"))


def remove(path: Path) -> None:
    """Remove a file or a directory where it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def remove_leftovers(directory: Path, name: str = "") -> None:
    """Remove what processes that are no more have left half-written, of that name or of any."""
    for path in directory.glob(".partial-*"):
        found = PARTIAL.match(path.name)
        ours = found and (not name or path.name[found.end() :] == name[:KEPT])
        if found and ours and not is_alive(int(found[1])):
            remove(path)


def is_alive(process: int) -> bool:
    """Whether a process of that number runs on this machine, as far as the system tells."""
    if os.name != "posix":
        return True  # elsewhere the question would end it
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # another user's
    return True


def synchronise(path: Path) -> None:
    """Make a file's content, or a directory's entries, outlive a power cut, where possible."""
    if path.is_file():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    elif hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):  # some network file systems cannot do this for a directory
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
