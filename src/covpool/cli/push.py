"""`covpool push`."""

from pathlib import Path

from rich.console import Console

from covpool.cli import ArgumentParser, say
from covpool.cli.parsing import users_input
from covpool.publish.hub import push


def run(arguments: list[str]) -> int:
    """Upload, print where it is, and return the exit status."""
    parser = ArgumentParser(
        prog="covpool push",
        description="Upload a published model (of covpool export or convert) to the Hugging Face "
        "hub, or copy it to a folder.",
    )
    parser.add_argument("directory", type=Path, help="the published model")
    parser.add_argument("target", metavar="REPO_ID", help="OWNER/NAME, or a folder as ./FOLDER")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    given = parser.parse_args(arguments)
    console = Console(stderr=True)
    with users_input(), console.status("pushing the model"):
        place = push(given.directory, given.target, private=given.private)
    say(f"published: {place}")
    return 0
