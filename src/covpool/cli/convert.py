"""`covpool convert`."""

import argparse

from covpool.cli import say
from covpool.cli.parsing import users_input
from covpool.publish.convert import Options, convert
from covpool.train.run_directory import refuse_existing


def run(given: argparse.Namespace) -> int:
    """Convert, print what was found, and return the exit status."""
    with users_input():
        refuse_existing(given.output)
        classes = None
        if given.classes is not None:
            classes = given.classes.read_text(encoding="utf-8").splitlines()
            classes = [line.strip() for line in classes if line.strip()]
        options = Options(
            method=given.method,
            last_stride=given.last_stride,
            triangle=given.triangle,
            classes=classes,
            image_size=given.image_size,
            resize=given.resize,
        )
        say(f"reading {given.checkpoint}", error=True)
        title = f"{given.checkpoint.name.partition('.')[0]} ({given.source})"
        found = convert(given.checkpoint, given.source, given.output, options, title=title)
    say(found.replace("OUTPUT", str(given.output)))
    say(f"written: {given.output}")
    return 0
