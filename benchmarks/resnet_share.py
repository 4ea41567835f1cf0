#!/usr/bin/env python3
"""What the pooling costs in a training step of a ResNet-50: steps over those with `gap`.

    python benchmarks/resnet_share.py --output results/resnet-share/cpu.json
    python benchmarks/resnet_share.py --device cuda --peer DifferentiableSVD=../DifferentiableSVD \\
        --output results/resnet-share/cuda.json

A step is forward, cross-entropy, backward and the update of SGD with momentum, on fixed random
images; models take turns. A peer's layer takes the place of the covariance and its root, behind
the same reduction to 256 channels. Beside the step, the pooling alone: reduction, covariance,
root and triangle, forward and backward, on the backbone's own features. The classifier, whose
input is 16 times as long as that of `gap`, counts in the step and not in the pooling.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from common import make_parser, run, users_input

# isort: split
import torch
from torch import Tensor, nn

from covpool.bench.campaign import FORMAT, write_results
from covpool.bench.checkouts import as_published
from covpool.bench.environment import describe_environment, summary_line
from covpool.bench.peers import OpenPeer, PeerRow, Root, open_peer
from covpool.bench.progress import Progress
from covpool.bench.report import markdown
from covpool.bench.settings import available_cores
from covpool.bench.timing import Context, Timing, describe, fixed_threads, time_steps
from covpool.models import create_model
from covpool.pooling import check_pooling

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


def main() -> int:
    options = parse()
    device = torch.device(options.device)
    with users_input():
        methods = [check_pooling(name) for name in options.methods.split(",")]
        peers = [open_peer(text, device) for text in options.peers]
        rows = [(opened, row) for opened in peers for row in wanted(opened, options.rows)]
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"--device {options.device}: torch finds no CUDA device")
        if options.precision not in PRECISIONS:
            raise ValueError(
                f"--precision {options.precision}: choose from {', '.join(PRECISIONS)}"
            )
    generator = torch.Generator().manual_seed(options.seed)
    size = (options.batch, 3, options.size, options.size)
    images = torch.randn(size, generator=generator).to(device)
    if options.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(options.classes, (options.batch,), generator=generator).to(device)
    progress = Progress()
    bench = Bench(options, device, images, labels)
    with fixed_threads(options.threads):
        for method in dict.fromkeys((BASELINE, *methods)):
            progress(f"building {method}")
            bench.add(method, method)
        for opened, row in rows:
            progress(f"building {opened.peer.name}/{row.name}")
            bench.add_peer(opened, row)
        timings = bench.run(progress)
    progress.clear()
    results = {
        "format": FORMAT,
        "environment": describe_environment(options.threads, options.device),
        "settings": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(options).items()
            if key not in ("peers", "output")
        },
        "peers": {one.peer.name: {"home": one.peer.home, "version": one.version} for one in peers},
        "rows": summarise(timings),
    }
    show(results)
    if options.output is not None:
        with users_input():
            write_results(results, options.output)
        print(f"\nresults: {options.output}")
    return 0


def parse() -> Any:
    parser = make_parser(__doc__)
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
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    on_cuda = options.device.startswith("cuda")
    options.batch = options.batch or BATCHES["cuda" if on_cuda else "cpu"]
    options.precision = options.precision or ("bfloat16" if on_cuda else "float32")
    return options


def wanted(opened: OpenPeer, names: str) -> list[PeerRow]:
    return [row for row in opened.peer.rows if names == "all" or row.name in names.split(",")]


class Bench:
    """The models, and their steps, which take turns."""

    def __init__(self, options: Any, device: torch.device, images: Tensor, labels: Tensor) -> None:
        self.options = options
        self.device = device
        self.images = images
        self.labels = labels
        self.contexts: dict[str, Context] = {}
        self.steps: dict[str, Callable[[], Any]] = {}
        self.broken: dict[str, str] = {}

    def add(self, name: str, method: str, peer: tuple[OpenPeer, PeerRow] | None = None) -> None:
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

    def add_peer(self, opened: OpenPeer, row: PeerRow) -> None:
        self.add(f"{opened.peer.name}/{row.name}", "exact", (opened, row))

    def run(self, progress: Progress) -> dict[str, Timing]:
        timings = time_steps(
            self.steps,
            self.contexts,
            rounds=self.options.rounds,
            warm_up=self.options.warm_up,
            device=self.device,
            report=progress,
        )
        return timings | {name: Timing(error=error) for name, error in self.broken.items()}

    def _model(self, method: str, peer: tuple[OpenPeer, PeerRow] | None) -> Any:
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


def show(results: dict[str, Any]) -> None:
    settings = results["settings"]
    print(summary_line(results["environment"]))
    print(
        f"{settings['backbone']}, batch {settings['batch']}, {settings['size']} px, "
        f"{settings['classes']} classes, {settings['precision']}; medians of "
        f"{settings['rounds']} rounds\n"
    )
    rows = [
        [
            row["name"],
            *(
                "failed" if row["error"] else "-" if row[key] is None else form.format(row[key])
                for key, form in (
                    ("median", "{:.3f}"),
                    ("over_gap", "{:.3f}"),
                    ("pooling_median", "{:.4f}"),
                    ("pooling_share", "{:.1%}"),
                )
            ),
        ]
        for row in results["rows"]
    ]
    header = ["pooling", "step, s", "over gap", "pooling alone, s", "of the step"]
    print(markdown("Training step", header, rows))
    for row in results["rows"]:
        if row["error"]:
            print(f"\n{row['name']} failed: {row['error']}", file=sys.stderr)


if __name__ == "__main__":
    run(main, resumable=False)
