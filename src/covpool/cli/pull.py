"""`covpool pull`."""

from pathlib import Path

from rich.console import Console

from covpool.cli import ArgumentParser, say
from covpool.cli.parsing import users_input
from covpool.publish.hub import pull


def run(arguments: list[str]) -> int:
    """Download, print where it is, and return the exit status."""
    parser = ArgumentParser(
        prog="covpool pull",
        description="Get a published model from the Hugging Face hub, or from a folder.",
    )
    parser.add_argument("source", metavar="REPO_ID", help="OWNER/NAME, or a folder as ./FOLDER")
    parser.add_argument("--output", type=Path, help="new folder (default: the model's name)")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    given = parser.parse_args(arguments)
    name = given.source.rstrip("/").rpartition("/")[2]
    output = given.output or Path(name or "model")
    console = Console(stderr=True)
    with users_input(), console.status("getting the model"):
        pull(given.source, output, revision=given.revision)
    say(f"model: {output}; covpool predict {output} IMAGE")
    return 0
