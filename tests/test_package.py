"""The package's shape: what importing costs, which way imports point, what is public."""

import ast
import doctest
import importlib
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import covpool

SOURCE = Path(covpool.__file__).parent
HEAVY = ("timm", "torchvision", "lightning", "numpy.testing", "matplotlib", "jsonargparse", "rich")
GROUND = ("_version", "lazy", "text", "machine", "head")
# Each package may import those before it; `data` stands beside the layers.
ORDER = (
    *("linalg", "pooling", "nn", "poolings", "distances", "exporting"),
    *("models", "analysis"),
    *("train", "experiments", "report", "fitting", "publish", "bench", "cli"),
)


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        (
            "import covpool, covpool.analysis, covpool.nn; covpool.CovPool2d, covpool.matrix_sqrt, "
            "covpool.METHODS",
            HEAVY,
        ),
        ("import covpool.cli", ("torch", *HEAVY)),
    ],
)
def test_import_needs_torch_alone(statement, heavy):
    program = f"import sys; {statement}; print([m for m in sys.argv[1:] if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", program, *heavy], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def imported_parts(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "covpool" and len(parts) > 1:
                found.add(parts[1])
    return found


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_imports_point_one_way(path):
    part = path.relative_to(SOURCE).with_suffix("").parts[0]
    if part in ("__init__", "__main__", *GROUND):
        return
    allowed = {*GROUND, part}
    if part == "data":
        pass
    elif part in ORDER:
        allowed |= set(ORDER[: ORDER.index(part)])
        if part in ("train", "experiments", "fitting", "publish", "cli"):
            allowed.add("data")
    assert imported_parts(path) <= allowed


LINALG = (
    *("names", "tables", "spectrum", "transforms", "minimax_coefficients", "sign", "precision"),
    *("checks", "engine.quota", "engine.back_off", "engine.cores", "autograd.modes"),
    *("autograd.product", "quadrature", "functions", "elementwise", "engine"),
    *("gradients", "forwards", "methods", "autograd", "covariance", "autograd.pooled"),
    *("products", "diagnostics", "evaluate", "inverse_root", "decompositions", "gauge"),
    *("module", "api", "rectangular", "registration"),
)
"""Each part of linalg/ may import those before it, and modules of its own that do not import it."""


def is_within(module: str, package: str) -> bool:
    """Of `bench`, "covpool.bench.poolings" is; "covpool.poolings" is not."""
    within = f"covpool.{package}".rstrip(".")
    return module == within or module.startswith(f"{within}.")


def modules_of(package: str) -> dict[str, set[str]]:
    """Below covpool.PACKAGE: each module, and those that it names, in annotations too.

    A package stands by its name for its `__init__`, which may define and import as a module does.
    """
    root = SOURCE / package
    paths = {
        ".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): p
        for p in root.rglob("*.py")
    }
    found = {}
    for name, path in paths.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and is_within(node.module or "", package):
                inside = node.module.removeprefix("covpool").removeprefix(f".{package}").lstrip(".")
                names |= {f"{inside}.{alias.name}".lstrip(".") for alias in node.names} & set(paths)
                names |= {inside} & set(paths)
        found[name] = names
    return {name: names for name, names in found.items() if name != "__init__"}


def place(module: str) -> int:
    return LINALG.index(module if module in LINALG else module.split(".")[0])


def test_linalg_imports_downwards_only():
    modules = modules_of("linalg")
    assert {module for module in LINALG if "." in module} <= set(modules)
    for module, imported in modules.items():
        upwards = [other for other in imported if place(other) > place(module)]
        assert not upwards, f"linalg/{module} imports {upwards}"


@pytest.mark.parametrize("package", ["linalg", "nn", "poolings", "experiments", "report", "bench"])
def test_no_package_imports_in_a_circle(package):
    modules = modules_of(package)
    done: set[str] = set()
    while len(done) < len(modules):
        ready = {name for name, imported in modules.items() if imported <= done} - done
        assert ready, f"in a circle: {sorted(set(modules) - done)}"
        done |= ready


@pytest.mark.parametrize("positions", [9, 40])
def test_a_pooling_goes_straight_through_the_house(positions):
    """How often a call goes to another file than the one before it."""
    features = torch.randn(2, 20, positions, requires_grad=True)

    def changes(function):
        files: list[str] = []

        def note(frame, event, argument):
            if event == "call" and Path(frame.f_code.co_filename).is_relative_to(SOURCE):
                files.append(frame.f_code.co_filename)

        sys.setprofile(note)
        try:
            result = function()
        finally:
            sys.setprofile(None)
        return result, sum(one != other for one, other in pairwise(files))

    covpool.cov_pool(features).sum().backward()
    pooled, forward = changes(lambda: covpool.cov_pool(features))
    _, backward = changes(lambda: torch.autograd.grad(pooled.sum(), features))
    assert forward <= 15
    assert backward <= 8


def test_the_report_reads_what_others_wrote():
    """It shows training runs without being able to train: only files, statistics and tables."""
    allowed = {
        *(f"train.{name}" for name in ("analysis_rows", "run_directory", "same_options")),
        *("experiments", *(f"experiments.{name}" for name in ("inference", "paper", "sheet"))),
    }
    for path in (SOURCE / "report").glob("*.py"):
        modules = {
            node.module.removeprefix("covpool.")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("covpool.")
        }
        parts = {module.split(".")[0] for module in modules}
        assert parts <= {
            *("_version", "text", "linalg", "pooling", "poolings", "analysis", "experiments"),
            *("report", "train"),
        }
        assert {m for m in modules if m.split(".")[0] in ("train", "experiments")} <= allowed


def test_public_names_exist():
    for name in covpool.__all__:
        assert getattr(covpool, name) is not None
        assert name in dir(covpool)
    with pytest.raises(AttributeError, match="no attribute 'matrix_root'"):
        covpool.matrix_root  # noqa: B018 - the access is the test


@pytest.mark.parametrize(
    "module",
    [
        "covpool.linalg.api",
        "covpool.linalg.diagnostics",
        "covpool.linalg.module",
        "covpool.linalg.rectangular",
        "covpool.linalg.registration",
        "covpool.nn.whitening",
        "covpool.pooling",
    ],
)
def test_docstring_examples(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0
