"""Measure on a GPU all that a CPU cannot show, in one command of less than nine minutes.

    python tools/gpu.py --out DIR
    python tools/gpu.py --out DIR --peer fast-MPN-COV=CHECKOUT
    python tools/gpu.py --out DIR --device cpu --tiny     # a rehearsal, in about a minute

Needs torch, timm and this checkout, with nothing installed of it. The parts are the rows of
`PARTS`; `DIR/gpu.json` is written after every figure, so that an interruption loses none but the
one in hand. A part for which no time is left is named in it, and so is one that fails.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import covpool  # noqa: E402
from covpool.bench.features import Shape, make_features, make_weight  # noqa: E402
from covpool.bench.layers import differentiated, make_cases, solvers  # noqa: E402
from covpool.bench.memory import allocated  # noqa: E402
from covpool.bench.options import StepOptions  # noqa: E402
from covpool.bench.peers import open_peers  # noqa: E402
from covpool.bench.timing import Case, describe, time_cases  # noqa: E402
from covpool.linalg.autograd.pooled import covariance_function  # noqa: E402
from covpool.linalg.autograd.root import iterate  # noqa: E402
from covpool.linalg.covariance import Computation, centre  # noqa: E402
from covpool.linalg.functions import SQRT  # noqa: E402
from covpool.linalg.methods import METHODS  # noqa: E402
from covpool.machine import describe_environment, summary_line  # noqa: E402
from covpool.train.run_directory import replace_text  # noqa: E402

Step = Callable[[], Any]
Figures = Iterator[tuple[str, dict[str, Any]]]

TABLE = ("exact", "svd-pade", "svd-newton", "isqrt-cov", "newton-schulz-minimax")
SMALL = ((512, 3), (4096, 22), (64, 48), (500, 100))
"""Batch and size: point sets, EEG, the ICLR 2022 poster of batched eigendecomposition, textures."""

FULL = SimpleNamespace(
    batch=256, channels=256, positions=(49, 196, 784), rounds=5, small=SMALL, step_batch=128,
    step_size=224, backbone="resnet50", classes=1000, step_methods=TABLE, sizes=(64, 128, 256, 512),
)  # fmt: skip
TINY = SimpleNamespace(
    batch=2, channels=8, positions=(4, 9), rounds=1, small=((2, 3), (2, 5)), step_batch=2,
    step_size=32, backbone="small-convnet", classes=2, step_methods=TABLE[:1], sizes=(4, 8),
)  # fmt: skip


class Bench:
    """What the parts share: the device, the sizes, and a way to time steps side by side."""

    def __init__(self, device: torch.device, sizes: Any, peers: list[str]) -> None:
        self.device, self.sizes = device, sizes
        self.peers = open_peers(peers, device)

    def features(self, batch: int, channels: int, positions: int) -> tuple[Tensor, Tensor]:
        shape = Shape(batch, channels, positions)
        options: Any = {"dtype": torch.float32, "device": self.device}
        return make_features(shape, **options), make_weight(shape, **options)

    def matrices(self, batch: int, size: int, dtype: torch.dtype) -> Tensor:
        made = torch.randn(batch, size, 2 * size, generator=torch.manual_seed(0), dtype=dtype)
        return (made @ made.mT / (2 * size)).to(self.device)

    def beside(self, steps: dict[str, Step], cases: Sequence[Case] = (), *inputs: Tensor) -> Any:
        """Median milliseconds, quartiles and peak memory of each, from rounds in which they
        alternate; of steps, and of cases with their inputs."""
        cases = [*cases, *(made(name, step) for name, step in steps.items())]
        peaks = {case.name: self._peak(case, *inputs) for case in cases}
        timings = time_cases(
            cases, *inputs, rounds=self.sizes.rounds, warm_up=1, device=self.device
        )
        return {
            name: {
                "ms": None if timing.median is None else 1e3 * timing.median,
                "quartiles_ms": timing.quartiles and [1e3 * value for value in timing.quartiles],
                "peak_bytes": peaks[name],
                "error": timing.error,
            }
            for name, timing in timings.items()
        }

    def _peak(self, case: Case, *inputs: Tensor) -> int | None:
        if self.device.type != "cuda":
            return None
        try:
            with case.context():
                step = case.prepare(*inputs)
                step()
                return allocated(step, self.device)
        except Exception:
            return None  # the timing says what it failed with


def made(name: str, step: Step) -> Case:
    """The case of a step that needs no inputs."""
    return Case(name=name, prepare=lambda *inputs: step)


def gradient_of(function: Callable[[Tensor], Tensor], x: Tensor) -> Step:
    """Forward and backward of the sum of the result's squares."""

    def step() -> Tensor:
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf).square().sum(), leaf)
        return gradient

    return step


def matrix_sqrth(matrix: Tensor) -> Tensor:
    """torch's own root, since 2.14."""
    return torch.linalg.matrix_sqrth(matrix)


def tests(bench: Bench) -> Figures:
    """The suite's tests on a GPU."""
    if importlib.util.find_spec("pytest") is None:
        yield "tests/test_cuda.py", {"status": "not run: pytest is not installed"}
        return
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_cuda.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=150, env=environment
        )
        said, status = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        said, status = f"{error.stdout!r}", "stopped after 150 s"
    yield "tests/test_cuda.py", {"status": status, "said": said[-4000:]}


def agreement(bench: Bench) -> Figures:
    """Values and gradients on the device beside those on the CPU, relative to the largest."""
    for name in METHODS:
        found = {}
        for positions in (4, 30):
            x = torch.randn(3, 8, positions, generator=torch.manual_seed(1), dtype=torch.float64)
            pair = []
            for device in ("cpu", bench.device):
                leaf = x.to(device).requires_grad_()
                root = covpool.cov_pool(leaf, name)
                (gradient,) = torch.autograd.grad(root.pow(2).sum() + root.sum(), leaf)
                pair.append((root.detach().cpu(), gradient.cpu()))
            found[f"N={positions}"] = [
                float((one - other).abs().max() / one.abs().max())
                for one, other in zip(*pair, strict=True)
            ]
        yield name, found


def counts(bench: Bench) -> Figures:
    """Operations, kernel launches and host reads of one call."""
    sizes = bench.sizes
    x, _ = bench.features(sizes.batch, sizes.channels, sizes.positions[0])
    matrix = bench.matrices(*sizes.small[0], torch.float64)
    for name in TABLE:
        for check in (True, False):
            calls = {
                "cov_pool": gradient_of(
                    partial(covpool.cov_pool, method=name, check_finite=check), x
                ),
                "matrix_sqrt": gradient_of(
                    partial(covpool.matrix_sqrt, method=name, check=check), matrix
                ),
            }
            for function, call in calls.items():
                call()
                with Counter() as counter:
                    call()
                found = {"operations": counter.operations, "host_reads": counter.reads}
                if bench.device.type == "cuda":
                    found |= profiled(call)
                yield f"{function} {name}, {'checked' if check else 'unchecked'}", found


READS = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal")


class Counter(TorchDispatchMode):
    """Counts operations, and those that hand a value to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        self.reads += func.name().split(".")[0] in READS
        return func(*args, **(kwargs or {}))


def profiled(call: Step) -> dict[str, int]:
    """Kernel launches, synchronisations and copies as CUDA's own tracer sees them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    wanted = ("cudaLaunchKernel", "Synchronize", "cudaMemcpyAsync")
    rows = {event.key: event.count for event in profiler.key_averages()}
    return {want: sum(n for key, n in rows.items() if want in key) for want in wanted}


def graphs(bench: Bench) -> Figures:
    """Whether an unchecked call neither synchronises nor keeps a CUDA graph from being captured."""
    sizes = bench.sizes
    x, _ = bench.features(sizes.batch, sizes.channels, sizes.positions[0])
    for name in TABLE:
        call = gradient_of(partial(covpool.cov_pool, method=name, check_finite=False), x)
        if bench.device.type != "cuda":
            yield name, {"status": "needs CUDA"}
            continue
        call()
        yield name, {"without_synchronising": tried(partial(without_synchronising, call)),
                     "captured": tried(partial(captured, call))}  # fmt: skip


def tried(action: Callable[[], Any]) -> str:
    try:
        action()
    except Exception as error:
        return describe(error)
    return "yes"


def without_synchronising(call: Step) -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(call: Step) -> None:
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        call()
    torch.cuda.synchronize()
    expected, graph = call(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    graph.replay()
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def table(bench: Bench) -> Figures:
    """Pooling, forward and backward: ours, the peers, torch's root, the bare decomposition."""
    sizes = bench.sizes
    for positions in sizes.positions:
        features, weight = bench.features(sizes.batch, sizes.channels, positions)
        for dtype in (torch.float32, torch.bfloat16):
            x = features.to(dtype)
            steps: dict[str, Step] = {}
            cases = make_cases(TABLE, bench.peers if dtype == torch.float32 else ())
            if hasattr(torch.linalg, "matrix_sqrth"):
                steps["covariance, matrix_sqrth"] = differentiated(
                    lambda x: matrix_sqrth(covpool.covariance(x.double())), x, weight
                )
            gram = centre(x.flatten(2), torch.float64)
            gram = gram.mT @ gram if positions - 1 < sizes.channels else gram @ gram.mT
            for name, solver in solvers(bench.device).items():
                steps[f"bare {name}, float64"] = partial(solver, gram)
            name = f"{sizes.batch}x{sizes.channels}x{positions} {str(dtype).removeprefix('torch.')}"
            yield name, bench.beside(steps, cases, x, weight)


def small(bench: Bench) -> Figures:
    """The root of matrices, forward and backward, beside torch's."""
    for batch, size in bench.sizes.small:
        for dtype in (torch.float64, torch.float32):
            matrix = bench.matrices(batch, size, dtype)
            steps = {
                "matrix_sqrt": gradient_of(covpool.matrix_sqrt, matrix),
                "matrix_sqrt, unchecked": gradient_of(
                    partial(covpool.matrix_sqrt, check=False), matrix
                ),
                "matrix_sqrt isqrt-cov": gradient_of(
                    partial(covpool.matrix_sqrt, method="isqrt-cov"), matrix
                ),
                "eigh": gradient_of(lambda a: covpool.eigh(a)[0], matrix),
                "torch.linalg.eigh": gradient_of(lambda a: torch.linalg.eigh(a)[0], matrix),
            }
            if hasattr(torch.linalg, "matrix_sqrth"):
                steps["torch.linalg.matrix_sqrth"] = gradient_of(matrix_sqrth, matrix)
            yield f"{batch}x{size}x{size} {dtype}".replace("torch.", ""), bench.beside(steps)


def ways(bench: Bench) -> Figures:
    """The root of one covariance by an eigendecomposition and by matrix products: which to take."""
    batch = bench.sizes.batch
    for size in bench.sizes.sizes:
        x, _ = bench.features(max(1, batch * 64 // (64 + size)), size, 2 * size)
        x = x.flatten(2)
        steps = {}
        for name in ("isqrt-cov", "newton-schulz-minimax", "mpa-lyapunov"):
            row = METHODS[name]
            dtype = row.dtype(x.dtype, None)
            computation = Computation(SQRT, row, dtype, torch.float32, False)
            steps[f"{name} by eigh"] = gradient_of(
                lambda x, computation=computation: covariance_function(x, computation)[0], x
            )
            steps[f"{name} by products"] = gradient_of(
                lambda x, row=row, dtype=dtype: iterate(covpool.covariance(x).to(dtype), SQRT, row),
                x,
            )
        yield f"{len(x)}x{size}x{2 * size}", bench.beside(steps)


def network(bench: Bench) -> Figures:
    """A training step of a ResNet-50 in bfloat16, over that with global average pooling."""
    sizes = bench.sizes
    options = StepOptions(
        device=str(bench.device),
        batch=sizes.step_batch,
        size=sizes.step_size,
        methods=TABLE,
        rounds=sizes.rounds,
        backbone=sizes.backbone,
        precision="bfloat16",
    )
    ((record, _),) = options.measurement().run()
    yield sizes.backbone, {"rows": record["cases"]}


PARTS: dict[str, Callable[[Bench], Figures]] = {
    "tests": tests,
    "agreement": agreement,
    "counts": counts,
    "graphs": graphs,
    "table": table,
    "small": small,
    "network": network,
    "ways": ways,
}
"""In the order of their worth: what does not fit into the time is at the end."""


def run(bench: Bench, parts: list[str], seconds: float, file: Path) -> dict[str, Any]:
    """All parts, written to the file after each figure."""
    started = time.monotonic()
    results: dict[str, Any] = {
        "environment": describe_environment(torch.get_num_threads(), str(bench.device)),
        "peers": {one.peer.name: one.version for one in bench.peers},
        "sizes": vars(bench.sizes),
        "parts": {},
    }
    print(summary_line(results["environment"]), flush=True)
    for part in parts:
        figures: dict[str, Any] = {}
        results["parts"][part] = figures
        made = PARTS[part](bench)
        while True:
            if (spent := time.monotonic() - started) > seconds:
                figures["not measured"] = f"no time left after {spent:.0f} of {seconds:.0f} s"
                break
            try:
                name, found = next(made)
            except StopIteration:
                break
            except Exception as error:  # a generator that has raised is at its end
                name, found = "failed", {"error": describe(error)}
            figures[name] = found
            print(
                f"{time.monotonic() - started:5.0f} s  {part}: {name}: {in_short(found)}",
                flush=True,
            )
            replace_text(file, json.dumps(results, indent=1, default=str) + "\n")
    replace_text(file, json.dumps(results, indent=1, default=str) + "\n")
    return results


def in_short(found: dict[str, Any]) -> str:
    """A figure's content in a line."""
    times = {k: v["ms"] for k, v in found.items() if isinstance(v, dict) and v.get("ms")}
    if times:
        return ", ".join(f"{name} {ms:.3g} ms" for name, ms in times.items())
    text = " ".join(json.dumps(found, default=str).split())
    return text if len(text) < 300 else f"{text[:120]} … {text[-170:]}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu for a rehearsal")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU does in a minute")
    parser.add_argument("--seconds", type=float, default=500, help="after which no figure is begun")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"(default: {','.join(PARTS)})")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=CHECKOUT")
    options = parser.parse_args()
    parts = options.parts.split(",")
    for part in parts:
        if part not in PARTS:
            parser.error(f"--parts {part}: choose from {', '.join(PARTS)}")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch {torch.__version__} finds no CUDA device")
    try:
        bench = Bench(device, TINY if options.tiny else FULL, options.peer)
    except ValueError as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "gpu.json"
    run(bench, parts, options.seconds, file)
    print(f"results: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
