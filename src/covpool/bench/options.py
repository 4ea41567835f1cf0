"""The options of every measurement, each declared once.

The command line makes its arguments of these classes, and results hold their values. Nothing here
imports PyTorch, so that help is quick; names are held against covpool's tables by the measurement
itself.
"""

import argparse
import importlib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, ClassVar, Self, get_args, get_origin, get_type_hints

from covpool.linalg.tables import choose
from covpool.machine import available_cores

DTYPES = ("float32", "float64")
SPECTRA = {
    "geometric": "geometric singular values, cond(X) {condition:.0e}",
    "random": "normally distributed entries",
}
"""Of features, in the words of the results."""

FEWEST_ROUNDS = 7
LEAST = {"warm_up": 0, "busy": 0, "workers": 0, "seed": -math.inf}
"""Where a number begins that can be measured with, if not at 1."""

CHOICES = {
    **dict.fromkeys(("dtype", "dtypes", "compute_dtype"), DTYPES),
    "spectrum": SPECTRA,
    "precision": ("float32", "bfloat16"),
}
MAY_BE_EMPTY = ("peers", "methods", "rows", "accuracy_conditions")

Names = tuple[str, ...]
Numbers = tuple[int, ...]

# An option is a type with its help, and further arguments of `add_argument`.
Shapes = Annotated[Names, "BATCHxCHANNELSxPOSITIONS, …"]
Methods = Annotated[Names, "of covpool methods; or: all"]
Conditions = Annotated[tuple[float, ...], "cond(X) at each of which errors are measured"]
Rounds = Annotated[int, "timed steps of each"]
WarmUp = Annotated[int, "untimed ones before"]
Threads = Annotated[int, "of the CPU"]
Dtype = Annotated[str, "float32 or float64"]
Memory = Annotated[bool, "measure the peak memory"]
Spectrum = Annotated[str, "of the features: geometric or random"]
_PEER = {
    "flag": "--peer",
    "metavar": "NAME[=CHECKOUT]",
    "action": "append",
    "default": [],
    "type": str,
}
Peers = Annotated[
    Names,
    "another project to measure beside ours, from your own clone of it (or installed: spd-learn, "
    "pyRiemann, geoopt); can be given again; DifferentiableSVD, fast-MPN-COV, "
    "FastDifferentiableMatSqrt, spd-learn, pyRiemann, geoopt, Shampoo",
    _PEER,
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a measurement is told, as it stands in its results.

    Raises:
        ValueError: a value that nothing can be measured with.
    """

    free: ClassVar[Collection[str]] = ()
    """Options that may change when earlier results are continued."""

    continues: ClassVar[bool] = False
    """Whether the same command goes on with its earlier results without being asked to."""

    least: ClassVar[Mapping[str, float]] = LEAST

    shapes: Names = ()
    peers: Names = ()
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in self.declared():
            value = getattr(self, name)
            several = value if isinstance(value, tuple) else (value,)
            if not several and name not in MAY_BE_EMPTY:
                raise ValueError(f"no {name} to measure; give at least one")
            for one in several if value is not None else ():
                if name in CHOICES:
                    choose(name.removesuffix("s"), one, dict.fromkeys(CHOICES[name]))
                least = self.least.get(name, 1)
                if not isinstance(one, str | bool) and not least <= one < math.inf:
                    finite = " and finite" if isinstance(one, float) else ""
                    raise ValueError(f"{name} must be at least {least}{finite}, got {one}")

    @classmethod
    def declared(cls) -> Mapping[str, Any]:
        """The options by name, each with its type and what is said of it."""
        kinds = get_type_hints(cls, include_extras=True)
        return {name: kind for name, kind in kinds.items() if get_origin(kind) is Annotated}

    @classmethod
    def name(cls) -> str:
        """Of the measurement: `covpool bench NAME`, and its module in this package."""
        return cls.__name__.removesuffix("Options").lower()

    @classmethod
    def about(cls) -> str:
        """What is measured, in a line."""
        return (cls.__doc__ or "").partition(".")[0]

    @classmethod
    def measured_by(cls) -> Any:
        """The class that measures: that of this name in the module of this name."""
        module = importlib.import_module(f"covpool.bench.{cls.name()}")
        return getattr(module, cls.name().capitalize())

    def measurement(self) -> Any:
        """What measures with these options.

        Raises:
            ValueError: options that do not fit, or a peer that is not there.
        """
        return self.measured_by()(self)

    @classmethod
    def read(cls, given: Any, **more: Any) -> Self:
        """The options of parsed arguments, and those that are given by name."""
        values = {item.name: getattr(given, item.name, None) for item in fields(cls)} | more
        values["peers"] = tuple(values["peers"] or ())  # which argparse gathers in a list
        return cls(**{name: value for name, value in values.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class TimedOptions(Options):
    """Options of measurements whose cases take turns in rounds."""

    rounds: Rounds = 9
    warm_up: WarmUp = 2
    threads: Threads = field(default_factory=available_cores)
    device: Annotated[str, "cpu or cuda"] = "cpu"
    memory: bool = False
    time: bool = True
    seed: Annotated[int, "of all that is random"] = 0


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(TimedOptions):
    """Options of measurements on feature maps."""

    free: ClassVar = ("shapes",)

    shapes: Shapes = ("16x256x49", "16x256x196", "16x256x784")
    dtype: Dtype = "float32"
    spectrum: Spectrum = "geometric"
    condition: Annotated[float, "cond(X) of what is timed"] = 1e4
    memory: Memory = True


@dataclass(frozen=True, kw_only=True)
class LayersOptions(FeatureOptions):
    """Time, peak memory and errors of each method's forward and backward pass.

    Peers stand beside them, and the floor: the eigendecomposition and the matrix products that
    cannot be done without.
    """

    methods: Methods = ("all",)
    peers: Peers = ()
    compute_dtype: Annotated[str | None, "of our methods (default: cov_pool's own)"] = None
    accuracy_conditions: Conditions = (1e4, 1e5, 1e6)
    vector: Annotated[bool, "gather the upper triangle on all sides"] = False
    floor: Annotated[bool, "measure the least work"] = True


@dataclass(frozen=True, kw_only=True)
class GrowthOptions(LayersOptions):
    """Time over the batch and over the size of the matrix, plotted.

    Two series: batches at fixed channels and positions; and channels n with 2n positions, so that
    the covariance itself, n × n, is decomposed. The plot stands beside the results. The same
    command goes on where it stopped.
    """

    continues: ClassVar = True
    free: ClassVar = ("shapes", "batches", "channels", "positions", "sizes", "batch")

    batches: Annotated[Numbers, "of series 1"] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    channels: Annotated[int, "of series 1"] = 256
    positions: Annotated[int, "of series 1"] = 196
    sizes: Annotated[Numbers, "n of series 2"] = (16, 32, 64, 128, 256, 512, 1024)
    batch: Annotated[int, "of series 2"] = 4
    shapes: Names = ()
    methods: Methods = ("exact", "svd-pade", "isqrt-cov")
    accuracy_conditions: Conditions = ()
    memory: Memory = False
    rounds: Rounds = 7


@dataclass(frozen=True, kw_only=True)
class PoolingsOptions(FeatureOptions):
    """Time and memory of every pooling as a layer, beside the square root by exact.

    Forward and backward in training, the vector's length and the parameters. The gradients are
    those of the features, of the layer's own parameters and of the class token, which poolings of
    tokens are given. No reduction of the channels stands before them. One that cannot take a shape
    is named with its reason.
    """

    poolings: Methods = ("all",)
    shapes: Shapes = ("16x256x49", "16x256x196")
    spectrum: Spectrum = "random"


@dataclass(frozen=True, kw_only=True)
class StepOptions(TimedOptions):
    """The share of the pooling in a training step, and the step over that with gap.

    A step is forward, cross-entropy, backward and the update of SGD with momentum, on fixed random
    images; models take turns. A peer's layer takes the place of the covariance and its root, behind
    the same reduction to 256 channels. Beside the step, the pooling alone: reduction, covariance,
    root and triangle, forward and backward, on the backbone's own features. The classifier, whose
    input is 16 times as long as that of `gap`, counts in the step and not in the pooling.
    """

    methods: Annotated[Names, "of covpool methods, beside gap"] = ("exact", "svd-pade", "isqrt-cov")
    peers: Peers = ()
    rows: Annotated[Names, "of the peers; or: all"] = ("SVD_Pade", "iSQRT-COV")
    backbone: Annotated[str, "the network"] = "resnet50"
    last_stride: Annotated[int | None, "1 for 14×14 positions (default: 7×7)"] = None
    batch: Annotated[int | None, "default: 16 on CPU, 128 on CUDA"] = None
    size: Annotated[int, "side of the images"] = 224
    classes: Annotated[int, "of the images"] = 1000
    precision: Annotated[str | None, "float32, or bfloat16 by autocast: default on CUDA"] = None
    channels_last: Annotated[bool, "memory format of the images"] = False
    rounds: Rounds = 7
    warm_up: WarmUp = 1


@dataclass(frozen=True, kw_only=True)
class SmallOptions(TimedOptions):
    """Functions of small matrices, forward and backward, beside their peers.

    Peers that are installed take part: torch's own (`matrix_sqrth`, `matrix_exp`, `eigh`, `svd`),
    `torch.linalg.eigh` with autograd, spd-learn, pyRiemann with torch tensors, and geoopt. The
    function of 30 lines is what anyone would write: an eigendecomposition, and the exact gradient
    by divided differences, without any check. Of float32 matrices ours is measured in float64, its
    default, and in float32 too. On a CPU it is the processor's time that is measured, on a GPU the
    clock's.
    """

    free: ClassVar = ("shapes",)

    shapes: Annotated[Names, "BATCHxN, …"] = (
        *("1x3", "64x3", "10000x3", "1x22", "64x22", "64x64", "8x128"),
    )
    functions: Annotated[Names, "sqrt, inv_sqrt, power, log, exp, eigh, svd; or: all"] = ("all",)
    dtype: Dtype = "float64"
    threads: Threads = 1
    rounds: Rounds = 15


@dataclass(frozen=True, kw_only=True)
class RootsOptions(TimedOptions):
    """Inverse p-th roots, their errors and residuals, beside those of optimisers.

    Of positive definite matrices with geometric spectra, the value alone: `matrix_inv_root` by
    eigendecomposition and by products, at its default, float64, and for float32 matrices in float32
    too. A root that it refuses, its residual being too large, stands as failed. Beside it
    distributed Shampoo, from your own clone (`--peer Shampoo=CHECKOUT`), one matrix after the
    other, as it calls its functions itself. Neither adds a ridge. Errors are relative to the exact
    root of the matrix as it is given, in the Frobenius norm; the residual is ‖Xᵖ A − I‖ in float64;
    of both the worst sample's. On a CPU it is the processor's time that is measured, on a GPU the
    clock's.
    """

    threads: Threads = 1
    shapes: Annotated[Names, "BATCHxN, …"] = ("1x256", "16x64")
    roots: Annotated[Numbers, "p, …"] = (2, 4)
    conditions: Annotated[tuple[float, ...], "of the matrices"] = (1e2, 1e4, 1e6, 1e8)
    dtypes: Annotated[Names, "of the matrices"] = DTYPES
    peers: Annotated[Names, "beside ours: Shampoo, from your own clone of it", _PEER] = ()


@dataclass(frozen=True, kw_only=True)
class BusyOptions(TimedOptions):
    """The forward pass beside processes that keep the cores busy, and torch's eigh of the same.

    Of features BATCHxCHANNELSxPOSITIONS `cov_pool`, of matrices BATCHxN `matrix_sqrt`. The ratio of
    both times should not grow with the number of busy processes: what grows it are threads that
    wait for each other.
    """

    shapes: Annotated[Names, "BATCHxCHANNELSxPOSITIONS or BATCHxN, …"] = (
        *("16x256x49", "16x256x784", "64x22"),
    )
    busy: Annotated[Numbers, "numbers of busy processes"] = (0, 1, 2, 4)
    rounds: Rounds = 21


@dataclass(frozen=True, kw_only=True)
class ResumeOptions(Options):
    """Runs killed at random moments, resumed, and compared with a run left alone.

    Each trial is `covpool train` on the embedded typefaces in a directory of its own. Its
    processes, the loaders' included, get SIGKILL at a random moment of the training, up to three
    times in a row, and each time the run goes on by the same command with `--resume auto`. In the
    end its weights, momenta and metrics (but for times) are compared bit by bit with those of an
    uninterrupted run. Kills count that left steps to take. Exit status 1 if any end differs. The
    same command goes on where it stopped.
    """

    continues: ClassVar = True
    free: ClassVar = ("kills", "processes")

    kills: Annotated[int, "of each number of processes"] = 10
    processes: Annotated[Numbers, "numbers of processes"] = (1, 2)
    workers: Annotated[int, "loader processes each"] = 2
    seed: Annotated[int, "of the moments"] = 0


@dataclass(frozen=True, kw_only=True)
class ThroughputOptions(Options):
    """Images a second of the loader, of the training step, and of both; which is the limit.

    The loader alone is read without a network, for each number of workers; the step alone is
    trained on batches that are held in memory, by the same Lightning loop; both together are the
    training itself, with the number of workers that read fastest. On a GPU the copy to the device
    counts in the step.
    """

    least: ClassVar = {"workers": 0}  # the clock starts when a first step has been taken

    workers: Annotated[Numbers, "numbers of loader processes"] = (0, 1, 2)
    steps: Annotated[int, "timed steps"] = 30
    warm_up: Annotated[int, "steps before them", {"flag": "--warm_up"}] = 5
    config: Any = None


MEASUREMENTS: Mapping[str, type[Options]] = {
    options.name(): options
    for options in (
        *(LayersOptions, GrowthOptions, PoolingsOptions, StepOptions),
        *(SmallOptions, RootsOptions, BusyOptions, ResumeOptions, ThroughputOptions),
    )
}
"""Everything that `covpool bench` measures, by name."""


def add_options(parser: Any, options: type[Options]) -> None:
    """Add every option of a measurement to a parser of arguments."""
    defaults = asdict(options())
    for name, annotated in options.declared().items():
        kind, about, *more = get_args(annotated)
        given = {"dest": name, "default": defaults[name], "help": about}
        if kind is bool:
            given["action"] = argparse.BooleanOptionalAction
        else:
            given["type"] = READERS.get(kind, str)
            if defaults[name] not in (None, ()):
                given["help"] += f" (default: {_shown(defaults[name])})"
        for further in more:
            given |= further
        parser.add_argument(given.pop("flag", f"--{name.replace('_', '-')}"), **given)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Separated:
    """Reads values with commas between, each once."""

    kind: Callable[[str], Any]
    what: str

    def __call__(self, text: Any) -> tuple[Any, ...]:
        if isinstance(text, tuple):  # jsonargparse checks a value by reading it again
            return text
        try:
            parts = [self.kind(part.strip()) for part in text.split(",") if part.strip()]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} must be {self!r}") from error
        return tuple(dict.fromkeys(parts))

    def __repr__(self) -> str:
        return f"{self.what} with commas between"  # what help shows


READERS: Mapping[Any, Callable[[str], Any]] = {
    int: int,
    int | None: int,
    float: float,
    Names: Separated(str, "words"),
    Numbers: Separated(int, "whole numbers"),
    tuple[float, ...]: Separated(float, "numbers"),
}
"""What reads an option of that type; others are text."""
