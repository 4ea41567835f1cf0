"""`covpool evaluate`."""

import shlex
from pathlib import Path
from typing import Any

from covpool.cli import say
from covpool.cli.parsing import Given, users_input
from covpool.text import quantity
from covpool.train.allocator import keep_freed_memory
from covpool.train.engine import evaluate
from covpool.train.metadata import IMAGES, refuse_external
from covpool.train.published import PublishedDirectory, read_trained
from covpool.train.run_directory import RunDirectory


def run(given: Given) -> int:
    """Evaluate, print, and return the exit status."""
    keep_freed_memory()
    with users_input():
        own = given.own
        directory, checkpoints = find_checkpoints(own.run)
        published = directory.read_config()
        config = given.config(published)
        if isinstance(directory, PublishedDirectory) and not own.allow_external:
            theirs = [name for name in IMAGES if name not in given.options.get("data", {})]
            refuse_external(published, own.run, images=theirs)
        if config.data.evaluate == "validation":
            say("on held-out training images (data.evaluate validation), not on the test split")
        results: dict[int | None, dict[str, Any]] = {}
        for label, path in checkpoints:
            # Where the last epoch was the best, both are the weights of one step.
            step = read_trained(path).get("global_step")
            if step not in results:
                results[step] = evaluate(path, config, report=True)
            found = results[step]
            say(
                f"{label:5}  top-1 {100 * found['test_top1']:.2f}%  "
                f"top-5 {100 * found['test_top5']:.2f}%  loss {found['test_loss']:.4f}  "
                f"(epoch {found['epoch']}, {found['method']}, "
                f"{quantity(found['images'], 'image')})",
            )
    return 0


def find_checkpoints(
    path: Path,
) -> tuple[RunDirectory | PublishedDirectory, list[tuple[str, Path]]]:
    """The directory of a path, and its checkpoints, last first, as (label, path).

    Args:
        path: a run directory, a checkpoint in one, or a published model.

    Raises:
        ValueError: no such run, or no checkpoint in it.
    """
    if PublishedDirectory.is_at(path):
        return PublishedDirectory(path), [("Model", path)]
    if path.suffix == ".ckpt":
        return RunDirectory.open(path.parent), [(path.stem, path)]
    directory = RunDirectory.open(path)
    both = [("Final", directory.last), ("Best", directory.best)]
    found = [(label, file) for label, file in both if file.is_file()]
    if not found:
        raise ValueError(
            f"run {path} has no checkpoint yet; go on with it: covpool train --resume "
            f"{shlex.quote(str(path))}"
        )
    return directory, found
