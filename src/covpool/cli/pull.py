"""`covpool pull`."""

import argparse
from pathlib import Path

from rich.console import Console

from covpool.cli import say
from covpool.cli.parsing import users_input
from covpool.publish.hub import pull


def run(given: argparse.Namespace) -> int:
    """Download, print where it is, and return the exit status."""
    name = given.source.rstrip("/").rpartition("/")[2]
    output = given.output or Path(name or "model")
    console = Console(stderr=True)
    with users_input(), console.status("getting the model"):
        pull(given.source, output, revision=given.revision)
    say(f"model: {output}; covpool predict {output} IMAGE")
    return 0
