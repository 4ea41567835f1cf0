"""matrix_sqrt of small matrices, forward and backward, beside what else computes it.

Peers that are installed take part: torch's own `matrix_sqrth`, `torch.linalg.eigh` with autograd,
spd-learn, pyRiemann with torch tensors, and geoopt. The function of 30 lines is what anyone would
write: an eigendecomposition, and the exact gradient by divided differences, without any check. On a
CPU it is the processor's time that is measured, on a GPU the clock's.
"""

import argparse
import importlib
import importlib.util
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from covpool.bench.timing import time_steps
from covpool.linalg.api import matrix_sqrt
from covpool.machine import describe_environment

Root = Callable[[Tensor], Tensor]
SHAPES = "1x3,64x3,10000x3,1x22,64x22,64x64,8x128"
OURS = ("covpool", "covpool, unchecked")


class Loewner(torch.autograd.Function):
    """The function of 30 lines."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        eigenvalues, vectors = torch.linalg.eigh(matrix)
        roots = eigenvalues.sqrt()
        ctx.save_for_backward(roots, vectors)
        return (vectors * roots[..., None, :]) @ vectors.mH

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        roots, vectors = ctx.saved_tensors
        weights = (roots[..., :, None] + roots[..., None, :]).reciprocal_()
        return vectors @ (weights * (vectors.mH @ gradients[0] @ vectors)) @ vectors.mH


def _by_autograd(matrix: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return (vectors * eigenvalues.sqrt()[..., None, :]) @ vectors.mH


INSTALLED: dict[str, tuple[str, Callable[[Any], Root]]] = {
    "spd-learn": ("spd_learn.functional", lambda module: module.matrix_sqrt.apply),
    "pyRiemann": ("pyriemann.utils.base", lambda module: module.sqrtm),
    "geoopt": ("geoopt.linalg", lambda module: module.sym_sqrtm),
}
"""The module of each peer that may be installed, and its root."""


def roots() -> dict[str, Root]:
    """What is there to be measured, ours first."""
    found: dict[str, Root] = {
        OURS[0]: matrix_sqrt,
        OURS[1]: partial(matrix_sqrt, check=False),
        "30 lines": Loewner.apply,
        "eigh with autograd": _by_autograd,
    }
    if hasattr(torch.linalg, "matrix_sqrth"):
        found["matrix_sqrth"] = torch.linalg.matrix_sqrth
    for name, (module, root) in INSTALLED.items():
        if importlib.util.find_spec(module.partition(".")[0]) is not None:
            found[name] = root(importlib.import_module(module))
    return found


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", default=SHAPES, help=f"BATCHxN (default: {SHAPES})")
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="(default: 1)")
    parser.add_argument("--rounds", type=int, default=15, help="(default: 15)")


def measure(options: argparse.Namespace, report: Callable[[str], None]) -> dict[str, Any]:
    """Times of every root at every shape.

    Raises:
        ValueError: a shape that is none.
    """
    shapes = [_shape(text) for text in options.shapes.split(",")]
    if options.threads < 1 or options.rounds < 1:
        raise ValueError(
            f"threads and rounds must be at least 1, got {options.threads} and {options.rounds}"
        )
    device, found = torch.device(options.device), roots()
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        measured: dict[str, Any] = {}
        for batch, size in shapes:
            generator = torch.Generator().manual_seed(0)
            factor = torch.randn(batch, size, 2 * size + 2, generator=generator).double()
            matrix = (factor @ factor.mT / (2 * size + 2)).to(device, getattr(torch, options.dtype))
            steps = {name: partial(_step, root, matrix) for name, root in found.items()}
            times = time_steps(
                steps,
                dict.fromkeys(steps, nullcontext),
                rounds=options.rounds,
                device=device,
                report=report,
                # Of the processor's time other programs take nothing.
                clock=time.process_time if device.type == "cpu" else time.perf_counter,
            )
            measured[f"{batch}x{size}"] = {
                name: {"median": each.median, "error": each.error} for name, each in times.items()
            }
    finally:
        torch.set_num_threads(before)
    environment = describe_environment(options.threads, options.device)
    return {"environment": environment, "dtype": options.dtype, "shapes": measured}


def _step(root: Root, matrix: Tensor) -> Tensor:
    leaf = matrix.detach().requires_grad_()
    return torch.autograd.grad(root(leaf).sum(), leaf)[0]


def _shape(text: str) -> tuple[int, int]:
    batch, _, size = text.partition("x")
    if not (batch.isdecimal() and size.isdecimal() and int(batch) and int(size)):
        raise ValueError(f"shapes are BATCHxN with whole numbers from 1 on, got {text!r}")
    return int(batch), int(size)


def tables(results: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    names = list(next(iter(results["shapes"].values())))
    rows = [
        [shape, *(f"{1e3 * each[n]['median']:.3f}" if each[n]["median"] else "-" for n in names)]
        for shape, each in results["shapes"].items()
    ]
    return [(f"forward + backward, ms, {results['dtype']}", ["batch x n", *names], rows)]


def failures(results: dict[str, Any]) -> list[str]:
    return [
        f"{name} at {shape}: {found['error']}"
        for shape, each in results["shapes"].items()
        for name, found in each.items()
        if found["error"]
    ]
