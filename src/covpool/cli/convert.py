"""`covpool convert`."""

from pathlib import Path

from covpool.cli import ArgumentParser, say
from covpool.cli.parsing import users_input
from covpool.linalg.methods import METHODS
from covpool.publish.convert import CONVERTERS, Options, convert
from covpool.publish.keys import TRIANGLES
from covpool.train.run_directory import refuse_existing


def run(arguments: list[str]) -> int:
    """Convert, print what was found, and return the exit status."""
    given = _parser().parse_args(arguments)
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


def _parser() -> ArgumentParser:
    rows = "; ".join(f"{row.name}: {row.description}" for row in CONVERTERS.values())
    parser = ArgumentParser(
        prog="covpool convert",
        description=f"A checkpoint of another project as a published model. {rows}.",
    )
    parser.add_argument("checkpoint", type=Path, help=".pth, .pt, .pth.tar or .safetensors")
    parser.add_argument(
        "--from", dest="source", required=True, choices=tuple(CONVERTERS), help="whose it is"
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    parser.add_argument(
        "--method", choices=tuple(METHODS), help="pooling (default: the project's own)"
    )
    parser.add_argument(
        "--last-stride",
        type=int,
        choices=(1, 2),
        help="of the ResNet's last stage (default: what the names of the weights imply, else 2)",
    )
    parser.add_argument(
        "--triangle",
        choices=tuple(TRIANGLES),
        default="upper",
        help="order of the pooled vector; lower: fast-MPN-COV until January 2019 (default: upper)",
    )
    parser.add_argument("--classes", type=Path, help="file with a class name a line")
    parser.add_argument("--image-size", type=int, default=224, help="side (default: 224)")
    parser.add_argument("--resize", type=int, help="shorter side before the crop (default: 8/7)")
    return parser
