"""The options of every command, apart from what does the work.

Nothing here imports PyTorch: help is shown, and mistakes are told, before that is loaded. Hence
tables of the heavy modules are not read here. Names from them stand as words in the help, tests
hold the words against the tables, and the tables themselves refuse other names.
"""

import argparse
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from covpool.bench.options import MEASUREMENTS, add_options
from covpool.cli import ArgumentParser, UserError
from covpool.cli.parsing import RunParser, add_allow_external, nearest
from covpool.train.same_options import RESUME_KEYS

RESUMABLE = tuple(".".join(key) for key in RESUME_KEYS)
"""`RESUME_KEYS` as options."""

EVALUATED = (
    "data.name",
    "data.root",
    "data.evaluate",
    "data.exclude_classes",
    "data.class_limit",
    "data.drop_duplicates",
    "data.views",
    "data.batch_size",
    "data.workers",
    "data.check",
    "data.skip_damaged",
    "train.accelerator",
    "train.precision",
    "train.threads",
)
"""What may differ between training and evaluation: the images and the machine."""

DEFAULT_METHODS = "gap,isqrt-cov,svd-pade,exact"
DEFAULT_POOLINGS = "isqrt-cov,gaussian,gamma,bcnn,covariance"
PROBED_RATES, PROBED_DECAYS = "0.01,0.03,0.1", "1e-3,1e-2"
SEEDS = 5


def train_parser() -> RunParser:
    """Options of `covpool train`."""
    parser = RunParser(
        "train",
        "Train a network. Without arguments: the embedded typefaces, about two minutes on 2 cores.",
        examples={
            "covpool train": "the embedded typefaces",
            "covpool train photos --model.backbone resnet50 --model.pretrained true": (
                "fine-tune on a folder of class folders"
            ),
            "covpool train --resume runs/NAME": "go on with a run that was interrupted",
        },
    )
    parser.add_sources()
    parser.add_argument("--output", type=Path | None, help="run directory (default: runs/…)")
    parser.add_argument(
        "--resume",
        type=Path | None,
        help="go on with this run directory; auto: with --output where it is a run, else start it",
    )
    return parser


def evaluate_parser() -> RunParser:
    """Options of `covpool evaluate`."""
    parser = RunParser(
        "evaluate",
        "Top-1 and top-5 of a run's checkpoints on the split that the run was evaluated on: the "
        "test split, or what --data.evaluate says. Options that are not given stay as they were in "
        "the run.",
        allowed=EVALUATED,
    )
    parser.add_argument(
        "run", type=Path, help="run directory, one checkpoint in it, or a published model"
    )
    add_allow_external(parser)
    return parser


def add_experiment_options(
    parser: RunParser, *, seeds: dict[str, Any], jobs: dict[str, Any]
) -> None:
    """Add what all experiments have."""
    parser.add_argument("--seeds", **{"type": int, **seeds})
    parser.add_argument("--jobs", **{"type": int, "default": 1, "help": "runs at a time", **jobs})
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would run, for how long, and stop"
    )


def compare_parser() -> RunParser:
    """Options of `covpool compare`."""
    parser = RunParser(
        "compare",
        "Train each pooling method with each seed, and tabulate top-1. The same command again "
        "goes on where it stopped. Further options as in covpool train.",
    )
    parser.add_argument(
        "--methods", type=str, default=DEFAULT_METHODS, help="poolings, the first is the reference"
    )
    parser.add_sources()
    add_experiment_options(
        parser, seeds={"default": 3, "help": "seeds, from train.seed on"}, jobs={}
    )
    parser.add_argument("--output", type=Path | None, help="folder (default: runs/compare-…)")
    return parser


PROBED: Mapping[str, Mapping[str, Any]] = {
    "data": {"augment": "flip"},
    "model": {"reduced_channels": 64},
    "optim": {"learning_rate": 0.1, "weight_decay": 5e-3, "trained": "classifier"},
    "train": {"epochs": 10},
}
"""What a probe has by default in place of a run's own defaults."""


DECIDED = {
    "data": {"augment": ("flip", "none"), "evaluate": ("test",)},
    "optim": {"name": ("sgd",), "trained": ("classifier",)},
}
"""Options that the recipe of the heads leaves these values alone."""

NO_EFFECT = {
    "data": ("random_erasing", "mixup", "cutmix", "views", "augment_options"),
    "model": ("schedule", "hybrid", "method", "hidden_features", "gap_reduction"),
    "optim": (
        *(
            "nesterov",
            "decay_norm_and_bias",
            "layer_decay",
            "clip_norm",
            "weight_average",
            "options",
        ),
        "decay_options",
    ),
    "train": ("precision", "accumulate", "loggers", "probes", "compile", "channels_last"),
}
"""Options that must stay at their defaults: heads are not trained by them."""


def probe_parser() -> RunParser:
    """Options of `covpool probe`."""
    parser = RunParser(
        "probe",
        "Compare poolings of the features of a frozen backbone: these are computed once, then a "
        "head is trained behind each pooling, with the rate and the weight decay that held-out "
        "training images choose. The same command again goes on where it stopped.",
        examples={
            "covpool probe photos --model.backbone resnet50 --model.pretrained true": (
                "five poolings on a folder of class folders"
            ),
            "covpool probe photos … --poolings all --seeds 10 --dry-run": (
                "what all of them would take"
            ),
        },
        hidden=[
            *(f"{group}.{name}" for group, names in NO_EFFECT.items() for name in names),
            # One value that cannot be chosen is no choice to show.
            *(
                f"{group}.{name}"
                for group, fields in DECIDED.items()
                for name, values in fields.items()
                if len(values) == 1
            ),
        ],
    )
    parser.add_base(PROBED)
    parser.add_argument(
        "--poolings",
        type=str,
        default=DEFAULT_POOLINGS,
        help="which, with commas between, or all; averages to compare with are always among them",
    )
    parser.add_argument(
        "--stages",
        type=str | None,
        help="stages of the backbone whose features are pooled, as 3,last (default: "
        "model.feature_stage)",
    )
    parser.add_argument(
        "--reduction",
        type=str,
        default="shared",
        help="shared: all poolings take the maps after one learned reduction; own: each learns "
        "its own with its head, which is many times slower",
    )
    for name, default, what in (
        ("rates", PROBED_RATES, "learning rates"),
        ("decays", PROBED_DECAYS, "weight decays"),
    ):
        text = f"{what} that each pooling is tried with, with commas between"
        parser.add_argument(f"--{name}", type=str, default=default, help=text)
    most = "runs at a time (default: as many as cores)"
    add_experiment_options(
        parser,
        seeds={"default": SEEDS, "help": "seeds, from train.seed on"},
        jobs={"type": int | None, "default": None, "help": most},
    )
    parser.add_argument(
        "--features",
        type=Path,
        default=Path("runs") / "features",
        help="folder where features are kept and looked for",
    )
    parser.add_argument("--output", type=Path | None, help="folder (default: runs/probe-…)")
    return parser


def study_parser() -> RunParser:
    """Options of `covpool study`."""
    parser = RunParser(
        "study",
        "Compare ways to train: choose each one's learning rate on validation images, train with "
        "several seeds, summarise with intervals. The same command again goes on where it "
        "stopped. Further options as in covpool train.",
    )
    parser.add_argument("study", type=Path, metavar="FILE", help="YAML file of the study")
    parser.add_argument("--arms", type=str | None, help="only these, separated by commas")
    add_experiment_options(
        parser, seeds={"type": int | None, "help": "seeds of every arm"}, jobs={}
    )
    parser.add_argument(
        "--rates", type=Path | None, help="rates.json of an earlier study: nothing is tuned"
    )
    parser.add_argument("--output", type=Path | None, help="folder (default: runs/study-NAME)")
    return parser


def reproduce_parser() -> RunParser:
    """Options of `covpool reproduce`."""
    parser = RunParser(
        "reproduce",
        "Make the paper's tables and figures anew and print them beside its cells. With the "
        "paper's images as --data.root, by its recipes; without, by the same protocol on the "
        "embedded typefaces. The same command again goes on where it stopped. Further options as "
        "in covpool train.",
    )
    parser.add_argument(
        "targets",
        nargs="+",
        type=str,
        help="table1, table2, table3, table4, table5, table6, figure1, figure2, or all",
    )
    parser.add_argument(
        "--methods", type=str | None, help="only these poolings, separated by commas"
    )
    most = "runs at a time (default: as many as cores on the embedded images, else 1)"
    add_experiment_options(
        parser,
        seeds={"default": SEEDS, "help": "seeds, from train.seed on"},
        jobs={"type": int | None, "default": None, "help": most},
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs") / "reproduce", help="folder for everything"
    )
    return parser


def predict_parser() -> ArgumentParser:
    """Options of `covpool predict`."""
    parser = ArgumentParser(
        prog="covpool predict",
        description="The likeliest classes of images, by a run's best checkpoint or a published "
        "model. The training images are not needed.",
    )
    parser.add_argument("run", type=Path, help="run directory, checkpoint, or published model")
    parser.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="IMAGE",
        help="image files, or folders with image files in them and below",
    )
    parser.add_argument("--top", type=int, default=5, help="number of classes (default: 5)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write a line for each image: .csv or .jsonl"
    )
    parser.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE",
        help="write an HTML page with a small picture of each image under what it was called",
    )
    add_allow_external(parser)
    return parser


def export_parser() -> ArgumentParser:
    """Options of `covpool export`."""
    parser = ArgumentParser(
        prog="covpool export",
        description="A trained network for others: weights as safetensors with configuration and "
        "model card, and for other runtimes as torch.export and ONNX. Each file is run and "
        "compared with the network.",
    )
    parser.add_argument("run", type=Path, help="run directory, or a published model")
    parser.add_argument("--output", type=Path, help="new folder (default: export/ in the run)")
    parser.add_argument(
        "--formats",
        default="safetensors,torch-export,onnx",
        help="which, with commas between (default: %(default)s); safetensors always is",
    )
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), help="which weights of a run (default: best)"
    )
    parser.add_argument(
        "--images",
        type=Path,
        nargs="+",
        help="files or folders to compare on (default: the run's test images)",
    )
    parser.add_argument(
        "--number", type=int, default=256, help="images to compare on, at most (default: 256)"
    )
    parser.add_argument(
        "--root-dtype",
        choices=("float64", "float32"),
        default="float64",
        help="of the square root in ONNX; float32 is for runtimes without float64, and less exact "
        "(default: float64)",
    )
    parser.add_argument(
        "--licence", "--license", help="of the weights, as apache-2.0 (default: none)"
    )
    parser.add_argument("--title", help="of the model card (default: the run's name)")
    add_allow_external(parser)
    return parser


def push_parser() -> ArgumentParser:
    """Options of `covpool push`."""
    parser = ArgumentParser(
        prog="covpool push",
        description="Upload a published model (of covpool export or convert) to the Hugging Face "
        "hub, or copy it to a folder.",
    )
    parser.add_argument("directory", type=Path, help="the published model")
    parser.add_argument("target", metavar="REPO_ID", help="OWNER/NAME, or a folder as ./FOLDER")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    return parser


def pull_parser() -> ArgumentParser:
    """Options of `covpool pull`."""
    parser = ArgumentParser(
        prog="covpool pull",
        description="Get a published model from the Hugging Face hub, or from a folder.",
    )
    parser.add_argument("source", metavar="REPO_ID", help="OWNER/NAME, or a folder as ./FOLDER")
    parser.add_argument("--output", type=Path, help="new folder (default: the model's name)")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    return parser


def convert_parser() -> ArgumentParser:
    """Options of `covpool convert`."""
    parser = ArgumentParser(
        prog="covpool convert",
        description="A checkpoint of another project as a published model. differentiable-svd: "
        "ResNets of the paper, SVD-Padé at 7×7 (stride 2); fast-mpn-cov: mpncovresnet50 and "
        "mpncovresnet101, iSQRT-COV at 14×14 (stride 1); efficientnet-lite0, -lite1 and -lite2: "
        "a plain ImageNet network, as timm's of that name.",
    )
    parser.add_argument("checkpoint", type=Path, help=".pth, .pt, .pth.tar or .safetensors")
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        choices=(
            "differentiable-svd",
            "fast-mpn-cov",
            *(f"efficientnet-lite{size}" for size in range(3)),
        ),
        help="whose it is",
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    parser.add_argument("--method", help="pooling, of covpool methods (default: the project's own)")
    parser.add_argument(
        "--last-stride",
        type=int,
        choices=(1, 2),
        help="of the ResNet's last stage (default: what the names of the weights imply, else 2)",
    )
    parser.add_argument(
        "--triangle",
        choices=("upper", "lower"),
        default="upper",
        help="order of the pooled vector; lower: fast-MPN-COV until January 2019 (default: upper)",
    )
    parser.add_argument("--classes", type=Path, help="file with a class name a line")
    parser.add_argument("--image-size", type=int, default=224, help="side (default: 224)")
    parser.add_argument("--resize", type=int, help="shorter side before the crop (default: 8/7)")
    return parser


def report_parser() -> ArgumentParser:
    """Options of `covpool report`."""
    parser = ArgumentParser(
        prog="covpool report",
        description="One HTML page of tables and figures of runs, or of a comparison's folder.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN|FOLDER", help="what to report")
    parser.add_argument(
        "--output",
        type=Path,
        help="file to write (default: report.html in the directory named, or here where several "
        "are)",
    )
    parser.add_argument("--baseline", help="method that differences are taken to (default: first)")
    return parser


def data_parser() -> ArgumentParser:
    """Options of `covpool data`."""
    parser = ArgumentParser(
        prog="covpool data",
        description="data check: classes, counts, sizes, unreadable images and duplicates of a "
        "data set. Exit status 1 where something is wrong.",
    )
    parser.add_argument("action", choices=["check"], help="what to do")
    parser.add_argument(
        "path",
        nargs="?",
        metavar="PATH",
        help="the folder or archive, as for --data.root (default: the embedded typefaces)",
    )
    parser.add_argument("--data", "--data.root", dest="root", metavar="PATH", help="the same")
    parser.add_argument(
        "--data.name",
        dest="name",
        default="auto",
        metavar="NAME",
        help="its layout: auto, folder, archive, typefaces, imagenet, birds, dogs, cars, "
        "aircraft, hfds/NAME, wds/NAME (default: auto)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole report there")
    parser.add_argument(
        "--contact-sheet",
        type=Path,
        metavar="FILE",
        help="draw a few training images of each class as PNG there",
    )
    return parser


def methods_parser() -> ArgumentParser:
    """Options of `covpool methods`."""
    parser = ArgumentParser(
        prog="covpool methods",
        description="List the poolings that --model.method takes, or describe one.",
    )
    parser.add_argument("name", nargs="?", help="the pooling to describe")
    return parser


def recipes_parser() -> ArgumentParser:
    """Options of `covpool recipes`."""
    parser = ArgumentParser(
        prog="covpool recipes",
        description="List the recipes that covpool train --recipe takes, or print one, as "
        "--config takes it.",
    )
    parser.add_argument("name", nargs="?", help="the recipe to print")
    return parser


def completion_parser() -> ArgumentParser:
    """Options of `covpool completion`."""
    parser = ArgumentParser(
        prog="covpool completion",
        description="Print a script by which the shell completes commands, options and their "
        "values. bash: covpool completion bash > ~/.local/share/bash-completion/completions/"
        "covpool; zsh: into a file _covpool in a folder of $fpath.",
    )
    parser.add_argument("shell", choices=("bash", "zsh"), help="for which shell")
    return parser


class BenchParser(ArgumentParser):
    """Options of `covpool bench` alone, and those of the measurement that is named first."""

    def read(self, arguments: Sequence[str]) -> Any:
        """The arguments by name, and which measurement they are for."""
        if not arguments or arguments[0].startswith("-"):
            return self.parse_args(arguments)
        name, *rest = arguments
        if name not in BENCH_PARSERS:
            raise UserError(
                f"unknown measurement {name!r}; choose from {', '.join(BENCH_PARSERS)}, or none "
                f"for the layers alone{nearest(name, BENCH_PARSERS)}"
            )
        return BENCH_PARSERS[name](name).read(rest)


def bench_parser() -> ArgumentParser:
    """Options of `covpool bench`."""
    others = [f"{name}: {each.about()}" for name, each in MEASUREMENTS.items() if name != "layers"]
    parser = measurement_parser("layers", kind=BenchParser)
    parser.prog = "covpool bench"
    parser.epilog = f"covpool bench NAME measures more: {'; '.join(others)}; goals: {GOALS}"
    parser.add_argument("--only", choices=("time", "memory"), help="measure nothing else")
    return parser


def measurement_parser(name: str, kind: type[ArgumentParser] = ArgumentParser) -> ArgumentParser:
    """Options of one measurement."""
    options = MEASUREMENTS[name]
    parser = kind(
        prog=f"covpool bench {name}",
        description=inspect.getdoc(options),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(measurement=name, resume=False, only=None)
    add_options(parser, options)
    parser.add_argument("--output", type=Path, help="JSON file for all that was measured")
    if "shapes" in options.free and not options.continues:
        parser.add_argument(
            "--resume", action="store_true", help="go on with what --output holds already"
        )
    return parser


def throughput_parser(name: str) -> RunParser:
    """Options of `covpool bench throughput`, and those of a run."""
    options = MEASUREMENTS[name]
    about = f"{inspect.getdoc(options)}\n\nFurther options as in covpool train."
    parser = RunParser(f"bench {name}", about)
    parser.add_recipe()
    add_options(parser, options)
    parser.add_argument("--output", type=Path | None, help="JSON file")
    return parser


GOALS = "which of the project's goals results meet"


def goals_parser(name: str) -> ArgumentParser:
    """Options of `covpool bench goals`."""
    parser = ArgumentParser(
        prog=f"covpool bench {name}",
        description=f"Tell {GOALS}: those for speed, accuracy and memory, for float32 features at "
        "default accuracy, batch 16, 256 channels; on a GPU, batch 256. Exit status 1 where one "
        "is missed or could not be judged.",
    )
    parser.add_argument("results", type=Path, nargs="+", help="files that covpool bench wrote")
    parser.set_defaults(measurement=name)
    return parser


BENCH_PARSERS: Mapping[str, Callable[[str], ArgumentParser | RunParser]] = {
    **dict.fromkeys(MEASUREMENTS, measurement_parser),
    "throughput": throughput_parser,
    "goals": goals_parser,
}

PARSERS: Mapping[str, Callable[[], ArgumentParser | RunParser]] = {
    "train": train_parser,
    "evaluate": evaluate_parser,
    "predict": predict_parser,
    "export": export_parser,
    "push": push_parser,
    "pull": pull_parser,
    "convert": convert_parser,
    "compare": compare_parser,
    "probe": probe_parser,
    "report": report_parser,
    "reproduce": reproduce_parser,
    "study": study_parser,
    "bench": bench_parser,
    "data": data_parser,
    "methods": methods_parser,
    "recipes": recipes_parser,
    "completion": completion_parser,
}
"""Each command's options: the keys of `COMMANDS`."""
