"""Rows of a user's own in covpool's tables, and all that iterates them. Run by `test_adding.py`.

In a process of its own, as the tables are changed before anything else has read them. Each axis
gets a class and each table a row. Nothing else here tells covpool of them.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import covpool.linalg.functions as functions
import covpool.linalg.gradients.kernels as kernels
from covpool.linalg.forwards.base import Eigendecomposition, Forward, RootIteration
from covpool.linalg.functions import Domain, ScalarFunction
from covpool.linalg.gradients.base import DividedDifferences, Gradient, Loewner, Pairwise
from covpool.linalg.gradients.kernels import Kernel
from covpool.linalg.gradients.lyapunov import Lyapunov
from covpool.linalg.tables import table

if "covpool.linalg.methods" in sys.modules:
    pytest.skip("changes tables that are in use; test_adding.py runs it", allow_module_level=True)


class Cube(ScalarFunction):
    name = "cube"
    domain = Domain.REAL
    smooth_at_zero = True

    def value(self, x):
        return x**3

    def divided_difference(self, a, b):
        return a * a + a * b + b * b


@dataclass(frozen=True, kw_only=True)
class Softened(Kernel):
    width: float = 1e-3
    title: ClassVar[str] = "softened difference"

    def magnitudes(self, larger, gap):
        kernel = 1 / (gap + self.width * larger)
        return kernel, kernel

    def bound(self, eigenvalue):
        return 1 / (self.width * eigenvalue)


@dataclass(frozen=True, kw_only=True)
class Raised(Forward):
    share: float = 1e-3
    title: ClassVar[str] = "eigenvalues raised"

    def values(self, function, eigenvalues, size):
        return function.value(eigenvalues.maximum(self.share * eigenvalues[..., -1:]))


@dataclass(frozen=True, kw_only=True)
class Single(Forward):
    """In float32 where the input is, although small eigenvalues need more."""

    title: ClassVar[str] = "eigendecomposition in the input's precision"
    least_dtype: ClassVar[torch.dtype] = torch.float32

    def values(self, function, eigenvalues, size):
        return function.value(eigenvalues)


@dataclass(frozen=True, kw_only=True)
class Ceiling(Gradient):
    ceiling: float = 1e6
    title: ClassVar[str] = "divided differences, clipped"

    def loewner(self, function, eigenvalues, size):
        entries = function.loewner(eigenvalues)
        return Loewner(entries.clamp(-self.ceiling, self.ceiling))


@dataclass(frozen=True, kw_only=True)
class Crude(RootIteration):
    """√x by x (3 − x)/2, which is right at 0 and 1."""

    title: ClassVar[str] = "one polynomial"
    functions: ClassVar[frozenset[str]] = frozenset({"sqrt"})
    smooth: ClassVar[bool] = True
    least_dtype: ClassVar[torch.dtype] = torch.float32
    iterated_channels: ClassVar[int] = 100
    accurate: ClassVar[bool] = False

    def least_root(self, dtype):
        return 1e-3

    def scalar_root(self, x):
        return x * (3 - x) / 2

    def normalised_roots(self, x, inverse):
        return 1.5 * x - 0.5 * x @ x, None


ROWS = {
    "softened": (Raised(), Pairwise(kernel=Softened())),
    "clipped": (Eigendecomposition(), Ceiling()),
    "single": (Single(), DividedDifferences()),
    "crude": (Crude(), Lyapunov(forward=Crude())),
}

functions.FUNCTIONS = table({**functions.FUNCTIONS, "cube": Cube()}, kind="function")
kernels.KERNELS = table({**kernels.KERNELS, "softened": Softened()}, kind="kernel")

import covpool.linalg.methods as methods  # noqa: E402

methods.METHODS = table(
    {
        **methods.METHODS,
        **{
            name: methods.Method(
                name=name,
                paper_name=None,
                forward=forward,
                gradient=gradient,
                description=f"the method {name}",
                reference=f"the source of {name}",
            )
            for name, (forward, gradient) in ROWS.items()
        },
    },
    kind="method",
)

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "_extensions"))
import covpool_tables  # noqa: E402

import covpool  # noqa: E402
import covpool.analysis as analysis  # noqa: E402
from covpool.cli import main  # noqa: E402
from covpool.experiments.arms import Arm, read_arm  # noqa: E402
from covpool.linalg.products import SUBSTITUTE  # noqa: E402
from covpool.publish.export import in_products  # noqa: E402
from covpool.report.page import render  # noqa: E402
from covpool.report.sources import find_runs  # noqa: E402
from made_up_runs import make_run  # noqa: E402

SPECTRUM = torch.tensor([1e-4, 0.5, 0.5, 1.0], dtype=torch.float64)


def features(channels, positions):
    generator = torch.Generator().manual_seed(0)
    shape = (2, channels, positions)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_the_tables_are_those_with_the_rows():
    assert set(ROWS) <= set(covpool.METHODS)
    assert "softened" in covpool.KERNELS
    assert "cube" in covpool.FUNCTIONS
    offered = {name for name, row in covpool.METHODS.items() if row.supports("cube")}
    assert offered == {"exact", "clipped", "single"}


@pytest.mark.parametrize("method", ["exact", "clipped", "single"])
@pytest.mark.parametrize("function", ["cube", torch.sin, "sqrt"])
def test_functions(function, method):
    matrix = torch.diag(torch.tensor([0.5, 2.0, 2.0], dtype=torch.float64)).requires_grad_()
    layer = covpool.MatrixFunction(function, method)
    (gradient,) = torch.autograd.grad(layer(matrix).trace(), matrix)
    (exact,) = torch.autograd.grad(covpool.matrix_function(matrix, function).trace(), matrix)
    torch.testing.assert_close(gradient, exact)
    _, info = covpool.matrix_function(matrix, function, method, return_info=True)
    assert (info.residual is None) == (function != "sqrt")


@pytest.mark.parametrize(("channels", "positions"), [(6, 4), (4, 9)])
@pytest.mark.parametrize("name", ROWS)
def test_pooling(name, channels, positions):
    x = features(channels, positions)
    (gradient,) = torch.autograd.grad(covpool.cov_pool(x, name).square().sum(), x)
    assert gradient.isfinite().all()
    assert gradient.any()
    layer = covpool.CovPool2d(channels, None, name)
    assert name in repr(layer)


@pytest.mark.parametrize(("channels", "positions"), [(6, 4), (4, 9)])
def test_a_forward_algorithm_in_float32_is_not_therefore_smooth(channels, positions):
    assert not covpool.METHODS["single"].smooth
    x = features(channels, positions)
    one, other = (covpool.cov_pool(x, name) for name in ("single", "exact"))
    assert torch.equal(one, other)
    assert torch.equal(*(torch.autograd.grad(value.square().sum(), x)[0] for value in (one, other)))


def test_a_kernel_in_decompositions():
    matrix = torch.diag(SPECTRUM).requires_grad_()
    for pair in (covpool.eigh(matrix, kernel="softened"), covpool.svd(matrix, kernel="softened")):
        (gradient,) = torch.autograd.grad(pair[0].sum() + pair[1][..., 0].sum(), matrix)
        assert gradient.isfinite().all()


def test_analysis():
    bounds = {row.method: row for row in analysis.gradient_bounds(floor=1e-2)}
    assert list(bounds) == list(covpool.METHODS)
    soft = bounds["softened"]
    assert (soft.form, soft.trigger) == ("softened difference", None)
    assert soft.attained == pytest.approx(soft.bound)
    assert soft.bound == pytest.approx(1e5)
    magnitudes = analysis.gradient_magnitudes(SPECTRUM)
    assert magnitudes["softened"].largest == pytest.approx(2e3)  # at the tie
    for name in ("clipped", "single", "crude"):
        assert bounds[name].bound is None
        assert magnitudes[name].largest is None
    assert list(analysis.spectral_fidelity(SPECTRUM)) == list(covpool.METHODS)
    fidelity = analysis.feature_fidelity(features(4, 9).detach())
    assert fidelity["single"].relative_distance.max() == 0
    assert analysis.approximation_error(covpool.KERNELS["softened"]).formula is None


def test_figures_of_the_report(tmp_path):
    for name in ROWS:
        make_run(tmp_path / name, method=name, probes=True)
    page = render(find_runs([tmp_path]))
    assert all(name in page for name in ROWS)


def test_commands(capsys):
    assert main(["methods"]) == 0
    listed = capsys.readouterr().out
    options = ("--shapes", "2x4x9", "--rounds", "1", "--warm-up", "0", "--no-memory")
    assert main(["bench", "--accuracy-conditions", "10", *options]) == 0
    measured = capsys.readouterr().out
    assert "failed" not in measured
    for name in ROWS:
        assert f"the method {name}" in listed
        assert f"| {name} |" in measured
        assert read_arm(f"hybrid-{name}") == Arm(name, hybrid=True)


def test_documentation():
    rows, kernel_rows = covpool_tables.methods_rows(), covpool_tables.kernels_table()
    for name in ROWS:
        assert f"the source of {name}" in rows
    assert "Softened" in rows
    assert "`softened`" in kernel_rows


@pytest.mark.parametrize("name", [*ROWS, SUBSTITUTE, "isqrt-cov"])
def test_export(name):
    model = covpool.create_model("small-convnet", num_classes=3, method=name)
    network = in_products(model, torch.float32)
    kept = name == "isqrt-cov"
    assert network.method == (name if kept else SUBSTITUTE)
    assert network.pool.compute_dtype == (None if kept else torch.float32)
