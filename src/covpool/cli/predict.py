"""`covpool predict`."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from covpool.cli import UserError, say
from covpool.cli.evaluate import find_checkpoints
from covpool.cli.output import PAGE, refuse_file, require_ending
from covpool.cli.parsing import users_input
from covpool.data import DataError
from covpool.data.contact_sheet import encoded_thumbnail
from covpool.data.folders import image_files
from covpool.data.reading import read_image
from covpool.report.contact_sheet import Shown, render_sheet
from covpool.text import printable, quantity
from covpool.train.allocator import keep_freed_memory
from covpool.train.prediction import WRITERS, Prediction, TrainedModel, load_model
from covpool.train.run_directory import replace_text


def run(given: argparse.Namespace) -> int:
    """Print each image's likeliest classes, or write them to files; exit status 2 where some image
    has no result."""
    keep_freed_memory()
    with users_input():
        if given.top < 1:
            raise ValueError(f"--top must be at least 1, not {given.top}")
        for option, endings in (("output", WRITERS), ("sheet", PAGE)):
            refuse_file(f"--{option}", getattr(given, option))
            require_ending(f"--{option}", getattr(given, option), endings)
        _, checkpoints = find_checkpoints(given.run)
        files = image_files(given.images)
        trained = load_model(checkpoints[-1][1], allow_external=given.allow_external)
    predictions = trained.predictions(files, top=given.top)
    if given.output is None and given.sheet is None:
        bad = sum([_print(prediction) for prediction in predictions])
    else:
        bad = _write(_with_progress(predictions, files), trained, given)
        for path in filter(None, (given.output, given.sheet)):
            say(path)
    if bad:
        say(f"covpool: error: no result for {bad} of {quantity(len(files), 'image')}", error=True)
        return 2
    return 0


def _print(prediction: Prediction) -> bool:
    """Print a prediction; whether there is none."""
    if prediction.error is not None:
        say(f"covpool: error: {prediction.error}", error=True)
        return True
    say(printable(str(prediction.path)))
    for name, share in prediction.likeliest:
        say(f"  {share:7.2%}  {printable(name)}")
    return False


def _with_progress(
    predictions: Iterator[Prediction], files: Sequence[Path]
) -> Iterable[Prediction]:
    if not sys.stderr.isatty():
        return predictions
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(predictions, "predicting", len(files), console=console, transient=True)


def _write(
    predictions: Iterable[Prediction], trained: TrainedModel, given: argparse.Namespace
) -> int:
    """Write what was asked for; the number of images without a result.

    Lines are written as they come, so that a command which is stopped leaves those that it has.
    """
    bad, shown = 0, []
    with users_input(), ExitStack() as files:
        write = None
        if given.output is not None:
            file = files.enter_context(given.output.open("x", encoding="utf-8", newline=""))
            write = WRITERS[given.output.suffix](file, min(given.top, len(trained.classes)))
        for prediction in predictions:
            if write is not None:
                write(prediction)
            if prediction.error is not None:
                bad += 1
                say(f"covpool: error: {prediction.error}", error=True)
            if given.sheet is not None:
                shown.append(_shown(prediction))
        if given.sheet is not None:
            replace_text(given.sheet, render_sheet(shown, model=str(given.run)))
    return bad


def _shown(prediction: Prediction) -> Shown:
    picture = None
    if prediction.error is None:
        try:
            picture = encoded_thumbnail(read_image(prediction.path, 3))
        except DataError as error:  # it has gone since it was predicted
            raise UserError(str(error)) from error
    return Shown(
        path=str(prediction.path),
        picture=picture,
        likeliest=prediction.likeliest,
        error=prediction.error,
    )
