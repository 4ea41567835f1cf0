"""`covpool push`."""

import argparse

from rich.console import Console

from covpool.cli import say
from covpool.cli.parsing import users_input
from covpool.publish.hub import push


def run(given: argparse.Namespace) -> int:
    """Upload, print where it is, and return the exit status."""
    console = Console(stderr=True)
    with users_input(), console.status("pushing the model"):
        place = push(given.directory, given.target, private=given.private)
    say(f"published: {place}")
    return 0
