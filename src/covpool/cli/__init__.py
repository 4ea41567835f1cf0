"""The `covpool` command: dispatch to sub-commands.

This module imports nothing heavy, so that `covpool --help` answers at once; a sub-command's module
is imported when it is called.

Exit status: 0 done; 1 training diverged; 2 a mistake in what the user gave, told in one line on
standard error; 130 (128 + the signal's number) interrupted, 141 where nobody reads the output any
more. Any other exception is a fault of the program and keeps its traceback.
"""

import argparse
import importlib
import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

from covpool._version import __version__
from covpool.text import printable_lines


@dataclass(frozen=True)
class Command:
    """A sub-command: the module of this package whose `run(arguments)` does it, and its help."""

    module: str
    description: str
    shares_cores: bool = True
    """Whether it leaves the cores to others while its threads wait."""
    extra: str = "train"
    """The optional dependencies that it needs."""
    begins: str = ""
    """What it says before PyTorch is loaded, which takes seconds; empty: nothing, or it says so
    itself."""
    loads: bool = True
    """Whether its module imports PyTorch."""


COMMANDS = {
    "train": Command("train", "train a network; without arguments on the embedded typefaces"),
    "evaluate": Command("evaluate", "top-1 and top-5 of a run on its test split"),
    "predict": Command("predict", "the likeliest classes of images, by a run"),
    "export": Command(
        "export", "a trained network as safetensors, torch.export and ONNX", extra="export"
    ),
    "push": Command("push", "upload a published model to a hub, or copy it to a folder"),
    "pull": Command("pull", "get a published model from a hub, or from a folder"),
    "convert": Command("convert", "a checkpoint of another project as a published model"),
    "compare": Command(
        "compare",
        "train a grid of pooling methods and seeds, and tabulate it",
        begins="comparing poolings",
    ),
    "probe": Command(
        "probe",
        "which pooling is best on the features of a frozen backbone, in minutes",
        begins="comparing poolings of frozen features",
    ),
    "report": Command("report", "an HTML page of runs: tables, figures and what they show"),
    "reproduce": Command(
        "reproduce",
        "the paper's tables and figures anew, beside its own cells",
        begins="reproducing the paper's tables and figures",
    ),
    "study": Command(
        "study",
        "ways to train compared, rates chosen on validation images",
        begins="comparing ways to train",
    ),
    "bench": Command(
        "bench",
        "time, memory and errors of the methods, beside their peers",
        shares_cores=False,  # as in a program of the user's own
    ),
    "data": Command("data", "check a data set: classes, sizes, unreadable images, duplicates"),
    "methods": Command("methods", "list the pooling methods, or describe one", loads=False),
    "recipes": Command("recipes", "list the training recipes, or print one", loads=False),
    "completion": Command(
        "completion",
        "a script by which the shell completes words",
        extra="completion",
        loads=False,
    ),
}


class UserError(Exception):
    """A mistake in what the user gave; its text is shown in one line, with exit status 2."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse, with its errors told as all others are."""

    def error(self, message: str) -> NoReturn:
        from covpool.cli.parsing import nearest_option

        hint = ""
        if message.startswith("unrecognized arguments: --"):
            known = [name[2:] for name in self._option_string_actions if name.startswith("--")]
            hint = nearest_option(re.split(r"[\s=]", message)[2][2:], known)
        raise UserError(f"{message}{hint} (see {self.prog} --help)")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The arguments by name, as the command's `run` takes them."""
        return self.parse_args(arguments)


class PrintableFormatter(logging.Formatter):
    """Log records in which the names of others do nothing to the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


class _NobodyReads(BrokenPipeError):
    """Standard output is a pipe whose reader has ended."""


def say(text: object, *, error: bool = False) -> None:
    """Print a text in which names of others may stand, on standard output or standard error."""
    try:
        print(printable_lines(str(text)), file=sys.stderr if error else sys.stdout, flush=True)
    except BrokenPipeError:
        if error:
            raise
        _drop_output()
        raise _NobodyReads from None


def _drop_output() -> None:
    # Python flushes once more when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    try:
        status = _status(arguments)
    except _NobodyReads:
        return 141
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return 141
    return status


def _status(arguments: Sequence[str] | None) -> int:
    # A terminal or pipe of another encoding than UTF-8 gets escapes for what it cannot hold.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:  # which shows the warnings of this package
        logging.lastResort.setFormatter(PrintableFormatter())
    try:
        name, rest = _parse(sys.argv[1:] if arguments is None else list(arguments))
        if name is None:
            return 0
        return _run(name, rest)
    except UserError as error:
        say(f"covpool: error: {error}", error=True)
        return 2
    except KeyboardInterrupt:
        say("covpool: interrupted", error=True)
        return 130
    except SystemExit as leave:  # how argparse ends after --help and after its own errors
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)


def _run(name: str, arguments: list[str]) -> int:
    command = COMMANDS[name]
    # OpenMP's threads spin while they wait, which on cores that others use too makes small matrix
    # work twenty times slower. Read when PyTorch is loaded, hence here.
    if command.shares_cores:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # DDP's advice against looking for unused parameters, which exact resumption needs.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        from covpool.cli.parsers import PARSERS

        given = PARSERS[name]().read(arguments)  # ends here for --help
        answers = getattr(given, "printed", None) is not None  # --print_config, with YAML alone
        if command.begins and not answers:
            say(f"{command.begins}; loading PyTorch")
        with loading() if command.loads else nullcontext():
            module = importlib.import_module(f"covpool.cli.{command.module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("covpool"):
            raise
        raise UserError(
            f"this command needs {error.name}; install it, from the checkout, with: "
            f"pip install '.[{command.extra}]'"
        ) from error
    return module.run(given)


def loading() -> AbstractContextManager[object]:
    """Says on a terminal what the first seconds are spent on."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status("loading PyTorch and its libraries")


def make_parser() -> tuple[ArgumentParser, Any]:
    """The parser of the command line before the sub-command, and its sub-commands, still none."""
    parser = ArgumentParser(
        prog="covpool",
        description="Train and compare networks with global covariance pooling.",
        epilog="covpool COMMAND --help lists a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"covpool {__version__}")
    return parser, parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")


def _parse(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The sub-command's name and its own arguments."""
    parser, commands = make_parser()
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.description, add_help=False)
    named = next((word for word in arguments if not word.startswith("-")), None)
    if named is not None and named not in COMMANDS:
        raise UserError(f"unknown command {named!r}{_choices(named)}")
    if not arguments:
        parser.print_help()
        return None, []
    known, rest = parser.parse_known_args(arguments)
    if known.command is None:
        raise UserError(f"unknown option {rest[0]}; covpool --help lists commands and options")
    return known.command, rest


def _choices(name: str) -> str:
    from covpool.cli.parsing import nearest

    return f"; choose from {', '.join(COMMANDS)}{nearest(name, COMMANDS)}"
