"""What the pooling costs in a training step of a ResNet-50: steps over those with `gap`.

A step is forward, cross-entropy, backward and the update of SGD with momentum, on fixed random
images; models take turns. A peer's layer takes the place of the covariance and its root, behind
the same reduction to 256 channels. Beside the step, the pooling alone: reduction, covariance,
root and triangle, forward and backward, on the backbone's own features. The classifier, whose
input is 16 times as long as that of `gap`, counts in the step and not in the pooling.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from covpool.bench.campaign import FORMAT, Report
from covpool.bench.checkouts import as_published
from covpool.bench.peers import OpenPeer, PeerRow, Root, open_peer
from covpool.bench.timing import Context, Timing, describe, fixed_threads, time_steps
from covpool.linalg.names import PoolingName
from covpool.machine import available_cores, describe_environment, summary_line
from covpool.models import create_model
from covpool.poolings import check_pooling

BATCHES = {"cpu": 16, "cuda": 128}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BASELINE = "gap"


class PeerPool(nn.Module):
    """Our layer's reduction, then a peer's root: (B, C, H, W) → (B, r(r+1)/2)."""

    def __init__(self, reduction: nn.Module, layer: Root) -> None:
        super().__init__()
        self.reduction = reduction
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.reduction(x)).flatten(1)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is measured, and on what."""
    parser.add_argument("--methods", default="exact,svd-pade,isqrt-cov", help="beside gap")
    parser.add_argument(
        "--peer", action="append", default=[], dest="peers", metavar="NAME=CHECKOUT"
    )
    parser.add_argument("--rows", default="SVD_Pade,iSQRT-COV", help="of the peers; or: all")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--last-stride", type=int, help="1 for 14×14 positions (default: 7×7)")
    parser.add_argument("--batch", type=int, help="default: 16 on CPU, 128 on CUDA")
    parser.add_argument("--size", type=int, default=224, help="side of the images (default: 224)")
    parser.add_argument("--classes", type=int, default=1000, help="(default: 1000)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--precision", help="float32, or bfloat16 by autocast: default on CUDA")
    parser.add_argument("--channels-last", action="store_true", help="memory format of the images")
    parser.add_argument("--seed", type=int, default=0)


def prepare(options: argparse.Namespace) -> Callable[[Report], dict[str, Any]]:
    """What measures, given a report.

    Raises:
        ValueError: options that do not fit.
    """
    device = torch.device(options.device)
    on_cuda = device.type == "cuda"
    options.batch = options.batch or BATCHES["cuda" if on_cuda else "cpu"]
    options.precision = options.precision or ("bfloat16" if on_cuda else "float32")
    methods: list[PoolingName] = [check_pooling(name) for name in options.methods.split(",")]
    peers = [open_peer(text, device) for text in options.peers]
    if on_cuda and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device}: torch finds no CUDA device")
    if options.precision not in PRECISIONS:
        raise ValueError(f"--precision {options.precision}: choose from {', '.join(PRECISIONS)}")
    return lambda report: _measure(options, device, methods, peers, report)


def _measure(
    options: argparse.Namespace,
    device: torch.device,
    methods: list[PoolingName],
    peers: list[OpenPeer],
    report: Report,
) -> dict[str, Any]:
    bench = Bench(options, device)
    with fixed_threads(options.threads):
        for method in dict.fromkeys((BASELINE, *methods)):
            report(f"building {method}")
            bench.add(method, method)
        for opened in peers:
            for row in opened.peer.rows:
                if options.rows == "all" or row.name in options.rows.split(","):
                    name = f"{opened.peer.name}/{row.name}"
                    report(f"building {name}")
                    bench.add(name, "exact", (opened, row))
        timings = bench.run(report)
    settings = {k: v for k, v in vars(options).items() if k not in ("peers", "output")}
    return {
        "format": FORMAT,
        "environment": describe_environment(options.threads, options.device),
        "settings": settings,
        "peers": {one.peer.name: {"home": one.peer.home, "version": one.version} for one in peers},
        "rows": summarise(timings),
    }


class Bench:
    """The models, and their steps, which take turns."""

    def __init__(self, options: Any, device: torch.device) -> None:
        self.options, self.device = options, device
        generator = torch.Generator().manual_seed(options.seed)
        size = (options.batch, 3, options.size, options.size)
        self.images = torch.randn(size, generator=generator).to(device)
        if options.channels_last:
            self.images = self.images.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(options.classes, (options.batch,), generator=generator)
        self.labels = labels.to(device)
        self.contexts: dict[str, Context] = {}
        self.steps: dict[str, Callable[[], Any]] = {}
        self.broken: dict[str, str] = {}

    def add(
        self, name: str, method: PoolingName, peer: tuple[OpenPeer, PeerRow] | None = None
    ) -> None:
        """The steps of one model; where it cannot be made, the reason is kept."""
        context = nullcontext if peer is None else partial(as_published, self.device)
        try:
            with context():
                model = self._model(method, peer)
                self.steps[f"step {name}"] = self._training_step(model)
                self.steps[f"pooling {name}"] = self._pooling_step(model)
        except Exception as error:
            self.broken[f"step {name}"] = describe(error)
            return
        self.contexts |= {f"{part} {name}": context for part in ("step", "pooling")}

    def run(self, report: Report) -> dict[str, Timing]:
        timings = time_steps(
            self.steps,
            self.contexts,
            rounds=self.options.rounds,
            warm_up=self.options.warm_up,
            device=self.device,
            report=report,
        )
        return timings | {name: Timing(error=error) for name, error in self.broken.items()}

    def _model(self, method: PoolingName, peer: tuple[OpenPeer, PeerRow] | None) -> Any:
        torch.manual_seed(self.options.seed)
        model: Any = create_model(
            self.options.backbone,
            self.options.classes,
            method=method,
            last_stride=self.options.last_stride,
        )
        if peer is not None:
            opened, row = peer
            model.pool = PeerPool(model.pool.reduction, opened.layer(row, "triangle"))
        model = model.to(self.device).train()
        if self.options.channels_last:
            model = model.to(memory_format=torch.channels_last)
        return model

    def _autocast(self) -> Any:
        dtype = PRECISIONS[self.options.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def _training_step(self, model: Any) -> Callable[[], None]:
        # A rate so small that the weights stay what they are, however often the step is repeated.
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with self._autocast():
                loss = nn.functional.cross_entropy(model(self.images), self.labels)
            loss.backward()
            optimizer.step()

        return step

    def _pooling_step(self, model: Any) -> Callable[[], None]:
        with torch.no_grad(), self._autocast():
            features = model.forward_features(self.images)

        def step() -> None:
            x = features.detach().requires_grad_()
            with self._autocast():
                pooled = model.pool(x)
            torch.autograd.backward(pooled, torch.ones_like(pooled), inputs=[x, *pool_weights])

        pool_weights = list(model.pool.parameters())
        return step


def summarise(timings: dict[str, Timing]) -> list[dict[str, Any]]:
    """A row for each model: its step, its pooling, and the ratios."""
    base = timings[f"step {BASELINE}"].median
    rows = []
    for key, timing in timings.items():
        part, _, name = key.partition(" ")
        if part != "step":
            continue
        pooling = timings.get(f"pooling {name}", Timing())
        rows.append(
            {
                "name": name,
                "error": timing.error or pooling.error,
                "median": timing.median,
                "quartiles": timing.quartiles,
                "rounds": timing.seconds,
                "over_gap": timing.median / base if timing.median and base else None,
                "pooling_median": pooling.median,
                "pooling_rounds": pooling.seconds,
                "pooling_share": pooling.median / timing.median
                if pooling.median and timing.median
                else None,
            }
        )
    return rows


def tables(results: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """The table, with title and header."""
    settings = results["settings"]
    forms = {
        "median": "{:.3f}",
        "over_gap": "{:.3f}",
        "pooling_median": "{:.4f}",
        "pooling_share": "{:.1%}",
    }

    def cell(row: dict[str, Any], key: str) -> str:
        return (
            "failed" if row["error"] else "-" if row[key] is None else forms[key].format(row[key])
        )

    title = (
        f"{summary_line(results['environment'])}\n{settings['backbone']}, batch "
        f"{settings['batch']}, {settings['size']} px, {settings['classes']} classes, "
        f"{settings['precision']}; medians of {settings['rounds']} rounds"
    )
    header = ["pooling", "step, s", "over gap", "pooling alone, s", "of the step"]
    rows = [[row["name"], *(cell(row, key) for key in forms)] for row in results["rows"]]
    yield title, header, rows


def failures(results: dict[str, Any]) -> list[str]:
    """A line for each model that could not be measured."""
    return [f"{row['name']} failed: {row['error']}" for row in results["rows"] if row["error"]]
