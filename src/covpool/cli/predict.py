"""`covpool predict`."""

import argparse

from covpool.cli import say
from covpool.cli.evaluate import find_checkpoints
from covpool.cli.parsing import users_input
from covpool.text import printable
from covpool.train.prediction import predict


def run(given: argparse.Namespace) -> int:
    """Print each image's likeliest classes; exit status 2 where some image has no result."""
    with users_input():
        if given.top < 1:
            raise ValueError(f"--top must be at least 1, not {given.top}")
        _, checkpoints = find_checkpoints(given.run)
        predictions = predict(
            checkpoints[-1][1],
            given.images,
            top=given.top,
            allow_external=given.allow_external,
        )
    bad = 0
    for prediction in predictions:
        if prediction.error is not None:
            bad += 1
            say(f"covpool: error: {prediction.error}", error=True)
            continue
        say(printable(str(prediction.path)))
        for name, share in prediction.likeliest:
            say(f"  {share:7.2%}  {printable(name)}")
    if bad:
        count = len(given.images)
        say(f"covpool: error: no result for {bad} of {count} images", error=True)
        return 2
    return 0
