"""Directives that write the reference from covpool's own tables, so that it cannot fall behind.

`TABLES` names them, each with the function that returns its MyST text from `covpool.METHODS`,
`covpool.KERNELS`, the packages' `__all__` or `results/bench`. `{generated-file} PATH` includes what
the tests wrote.
"""

import dataclasses
import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import covpool
import covpool.analysis
import covpool.distances
import covpool.nn
from covpool.linalg.forwards.base import Forward
from covpool.linalg.gradients.base import Gradient
from covpool.linalg.gradients.kernels import Kernel
from covpool.poolings.base import PoolingModule
from covpool.poolings.matrix import MatrixPool

DOCS = Path(__file__).resolve().parents[1]

RATIOS = (0.5, 0.9, 0.99, 0.999)
"""Ratios of the smaller to the larger eigenvalue at which biases are measured."""

GROUPS = {
    "covpool.pooling": "Covariance pooling",
    "covpool.poolings": "Covariance pooling",
    "covpool.linalg.api": "Functions of symmetric matrices",
    "covpool.linalg.inverse_root": "Functions of symmetric matrices",
    "covpool.linalg.module": "Functions of symmetric matrices",
    "covpool.linalg.functions": "Functions of symmetric matrices",
    "covpool.linalg.elementwise": "Functions of symmetric matrices",
    "covpool.linalg.rectangular": "Functions of matrices of any shape",
    "covpool.linalg.registration": "Functions of matrices of any shape",
    "covpool.linalg.decompositions": "Decompositions",
    "covpool.linalg.gauge": "Decompositions",
    "covpool.linalg.methods": "Methods",
    "covpool.linalg.gradients.kernels": "Kernels",
    "covpool.linalg.diagnostics": "Diagnostics",
    "covpool.models": "Models",
    "covpool.exporting": "Models",
    "covpool.train.prediction": "Models",
    "covpool.fitting": "Training",
}
"""Headings of the reference by module, in their order; names of other modules follow them."""


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")  # a bar would end the cell


def _constants(part: Any) -> str:
    rows = (covpool.Method, covpool.Pooling)
    found = part.constants if isinstance(part, rows) else _fields(part)
    return ", ".join(
        f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}"
        for key, value in found.items()
    )


def _fields(part: Any) -> dict[str, Any]:
    return {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}


def _link(part: Any) -> str:
    home = type(part)
    return f"{{py:class}}`{home.__name__} <{home.__module__}.{home.__qualname__}>`"


def _directive(kind: str, name: str, *options: str) -> str:
    lines = [f".. {kind}:: {name}", *(f"   {option}" for option in options)]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def _percent(error: float) -> str:
    if abs(error) < 1e-12:
        return "0"
    return f"{error:+.0%}" if abs(error) >= 0.01 else f"{error:+.0e}"


def methods_table() -> str:
    rows = (
        (
            f"[`{name}`](#method-{name})",
            row.paper_name or "",
            row.forward.title,
            row.gradient.title,
            _constants(row),
        )
        for name, row in covpool.METHODS.items()
    )
    return table(("name", "in the paper", "forward", "gradient", "constants"), rows)


TYPICAL = 1e4
"""Condition number of the spectrum at which the cheat sheet measures: that of trained features."""


def methods_choice() -> str:
    """What decides between the methods, measured as this is built on one typical spectrum."""
    from covpool.analysis import spectral_fidelity

    spectrum = torch.logspace(-math.log10(TYPICAL), 0, 64, dtype=torch.float64)
    gradients = spectral_fidelity(spectrum)
    rows = []
    for name, row in covpool.METHODS.items():
        root = covpool.matrix_sqrt(spectrum.diag(), row).diagonal()
        exact = spectrum.sqrt()
        rows.append(
            (
                f"[`{name}`](#method-{name})",
                _share((root - exact).norm() / exact.norm()),
                _share(gradients[name].relative_distance),
                "yes" if row.iteration is None else "no",
                "yes" if _differentiates_twice(name) else "no",
                row.description,
            )
        )
    header = ("method", "root off by", "gradient off by", "decom&shy;poses")
    return table((*header, "second deriva&shy;tives", "what it is"), rows)


def _differentiates_twice(method: str) -> bool:
    matrix = torch.tensor([[1.0, 0.2], [0.2, 2.0]], dtype=torch.float64, requires_grad=True)
    root = covpool.matrix_sqrt(matrix, method)
    (first,) = torch.autograd.grad(root.square().sum() + root[0, 1], matrix, create_graph=True)
    try:
        torch.autograd.grad(first.sum(), matrix)
    except RuntimeError:  # refused
        return False
    return True


def _share(error: torch.Tensor) -> str:
    """A relative error for people; what is rounding counts as none."""
    value = error.item()
    if value < 1e-9:
        return "0"
    return f"{value:.0%}" if value >= 0.005 else f"{value:.0e}"


CALLS = {
    "sqrt": "`matrix_sqrt`",
    "inv_sqrt": "`matrix_inv_sqrt`",
    "power": "`matrix_power`",
    "log": "`matrix_log`",
    "exp": "`matrix_exp`",
}
"""The functions that have a name of their own beside `matrix_function`."""


def functions_table() -> str:
    """Every scalar function: which eigenvalues it takes, how it is called, and by which methods."""
    rows = []
    for name, function in covpool.FUNCTIONS.items():
        offering = [f"`{method}`" for method, row in covpool.METHODS.items() if row.supports(name)]
        missing = [f"`{method}`" for method in covpool.METHODS if f"`{method}`" not in offering]
        if not missing:
            methods = "all"
        elif len(missing) < len(offering):
            methods = f"all but {', '.join(missing)}"
        else:
            methods = ", ".join(offering)
        parameter = f", parameter={function.parameter}" if function.parameter else ""
        call = CALLS.get(name, f'`matrix_function(A, "{name}"{parameter})`')
        rows.append((f"`{name}`", function.domain.value, call, methods))
    return table(("function", "eigenvalues", "call", "methods"), rows)


def methods_rows() -> str:
    """A section for each method: what it is, where it is biased, its parts and its source."""
    sections = []
    for name, row in covpool.METHODS.items():
        parts = [row.forward]
        if row.gradient != row.forward:
            parts.append(row.gradient)
        kernel = row.gradient.pair_kernel
        parts += [kernel] if kernel is not None else []
        description = row.description[0].upper() + row.description[1:]
        sections += [
            f"(method-{name})=",
            f"### {name}",
            f"{description}. {row.caution}",
            f"- Made of: {', '.join(map(_link, parts))}",
            f"- Constants: {_constants(row) or 'none'}",
            f"- Functions: {', '.join(f'`{function}`' for function in row.functions)}",
            f"- Source: {row.reference}",
            "",
        ]
    return _paragraphs(sections)


def methods_bias() -> str:
    """The gradient of √A at A = diag(x, 1) against the exact one, measured as this is built."""
    ratios = (1e-4, 1e-2, *RATIOS, 1.0)
    rows = []
    for name in covpool.METHODS:
        errors = (_gradient_error(name, ratio) for ratio in ratios)
        rows.append((f"`{name}`", *map(_percent, errors)))
    return table(("x", *(f"{ratio:g}" for ratio in ratios)), rows)


def _gradient_error(method: str, ratio: float) -> float:
    """Relative error of ∂(√A)₁₂/∂A₁₂ where A = diag(ratio, 1); the exact one is 1/(1 + √ratio)."""
    matrix = torch.tensor([[ratio, 0.0], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    covpool.matrix_sqrt(matrix, method)[..., 0, 1].backward()
    assert matrix.grad is not None
    return ((matrix.grad[0, 1] + matrix.grad[1, 0]) * (1 + ratio**0.5) - 1).item()


def methods_values() -> str:
    """Relative error of √x in √A at A = diag(x, 1, …, 1), for the methods that have one."""
    ratios = (0.5, 0.1, 1e-2, 1e-3, 1e-4, 1e-6)
    spectra = torch.ones(len(ratios), 10, dtype=torch.float64)
    spectra[:, 0] = torch.tensor(ratios, dtype=torch.float64)
    rows = []
    for name in covpool.METHODS:
        roots = covpool.matrix_sqrt(torch.diag_embed(spectra), name)[:, 0, 0]
        errors = [_percent(error) for error in (roots / spectra[:, 0].sqrt() - 1).tolist()]
        if set(errors) != {"0"}:
            rows.append((f"`{name}`", *errors))
    return table(("x", *(f"{ratio:g}" for ratio in ratios)), rows)


def poolings_table() -> str:
    """Every pooling that is not the root by a method, with its size for 256 channels."""
    rows = []
    for name, row in _other_poolings():
        length, parameters = row.count(256)
        words = (row.representation, row.normalisation, row.regulariser)
        numbers = f"{length:,}", f"{parameters:,}"
        rows.append((f"[`{name}`](#pooling-{name})", *words, *numbers, _exportable(row)))
    axes = ("representation", "normalisation", "regulariser")
    return table(("name", *axes, "vector", "parameters", "in ONNX"), rows)


def _exportable(row: covpool.Pooling) -> str:
    try:
        covpool.exportable(covpool.Pool2d(256, row))
    except ValueError:  # refused
        return "no"
    return "yes"


def poolings_rows() -> str:
    """A section for each of them: what it is, what to know, its constants and its source."""
    sections = []
    for name, row in _other_poolings():
        facts = [f"- Constants: {_constants(row) or 'none'}", f"- Source: {row.paper}"]
        if row.class_token:
            facts.insert(0, "- The class token stands before the vector, where there is one.")
        facts.insert(0, "- Channels are reduced before it." if row.reduced else "- No reduction.")
        sections += [
            f"(pooling-{name})=",
            f"### {name}",
            f"{row.description[0].upper()}{row.description[1:]}. {row.caution}",
            "\n".join(facts),
        ]
    return _paragraphs(sections)


def poolings_reference() -> str:
    """What a pooling of one's own is made with."""
    made = _directive("autofunction", "covpool.poolings.matrix.matrix_pooling")
    return _paragraphs([_classes([PoolingModule, MatrixPool]), made])


def _other_poolings() -> Iterable[tuple[str, Any]]:
    return [(name, row) for name, row in covpool.POOLINGS.items() if name not in covpool.METHODS]


def methods_reference() -> str:
    """The classes of which METHODS is made, each once, after their base classes."""
    parts = [type(part) for row in covpool.METHODS.values() for part in (row.forward, row.gradient)]
    return _classes([Forward, Gradient, *parts])


def kernels_table() -> str:
    rows = []
    for name, kernel in covpool.KERNELS.items():
        bound = kernel.bound(1.0)
        rows.append(
            (
                f"`{name}`",
                _link(kernel),
                _constants(kernel),
                "unbounded" if bound == float("inf") else f"{bound:.4g}",
                *(_percent(_kernel_error(kernel, ratio)) for ratio in RATIOS),
                f"{_kernel_value(kernel, 1.0):.4g}",
            )
        )
    errors = (f"x = {ratio:g}" for ratio in RATIOS)
    return table(("name", "class", "constants", "bound", *errors, "K(1, 1)"), rows)


def _kernel_value(kernel: Any, ratio: float) -> float:
    """K(λi, λj) for λi = 1 and λj = ratio."""
    return kernel.matrix(torch.tensor([ratio, 1.0], dtype=torch.float64))[1, 0].item()


def _kernel_error(kernel: Any, ratio: float) -> float:
    return _kernel_value(kernel, ratio) * (1 - ratio) - 1


def kernels_reference() -> str:
    return _classes([Kernel, *map(type, covpool.KERNELS.values())])


def _classes(classes: Iterable[type]) -> str:
    names = dict.fromkeys(f"{each.__module__}.{each.__qualname__}" for each in classes)
    return _paragraphs(_directive("autoclass", name, ":members:") for name in names)


def api_reference() -> str:
    """Every public name, grouped by the module that holds it."""
    groups: dict[str, list[str]] = {title: [] for title in GROUPS.values()}
    for name in covpool.__all__:
        title = GROUPS.get(covpool._HOMES.get(name, ""), "More")
        groups.setdefault(title, []).append(name)
    sections = []
    for title, names in groups.items():
        sections += [f"## {title}", *map(_documented, names)] if names else []
    return _paragraphs(sections)


def package_reference(package: Any) -> str:
    """Every name of a package below covpool, functions before the classes that they return."""
    names = sorted(package.__all__, key=lambda name: inspect.isclass(getattr(package, name)))
    return _paragraphs(_documented(name, package) for name in names)


def distances_table() -> str:
    """What `covpool.distances` has, with formula, domain and what it does at coincidence."""
    kink = "d² smooth, d has derivative 0"
    rows = []
    for row in covpool.distances.DISTANCES.values():
        singular = "finite" if row.domain == "λ ≥ 0" else "refused, by sample"
        rows.append([f"`{row.name}`", f"d² = {row.formula}", row.domain, singular, kink])
    rows += [
        [
            *("`frechet`", "d² = ‖μ₁ − μ₂‖² + `bures-wasserstein`(Σ₁, Σ₂)²"),
            *("λ ≥ 0", "finite", kink),
        ],
        [
            *("`frechet_from_samples`", "the same, by Σσ(X Yᴴ) of centred samples"),
            *("any", "finite", kink),
        ],
        [
            *("`relative_entropy`", "tr A (log A − log B) − tr A + tr B", "λ ≥ 0"),
            *("inf where A reaches beyond the range of B", "0, smooth"),
        ],
        ["`fidelity`", "(tr (A^(1/2) B A^(1/2))^(1/2))²", "λ ≥ 0", "finite", "(tr A)², smooth"],
        ["`von_neumann_entropy`", "−tr A log A", "λ ≥ 0", "0 log 0 = 0", ""],
    ]
    return table(("", "formula", "eigenvalues", "singular matrices", "at A = B"), rows)


def distances_reference() -> str:
    """Every name of `covpool.distances`; the metrics are rows, which their table describes."""
    rows = {name.replace("-", "_"): row for name, row in covpool.distances.DISTANCES.items()}
    return _paragraphs(
        _metric(name, rows[name]) if name in rows else _documented(name, covpool.distances)
        for name in covpool.distances.__all__
    )


def _metric(name: str, row: covpool.distances.Distance) -> str:
    call = re.sub(r": \w+(?:\.\w+)*| -> .*", "", str(inspect.signature(row)))  # without its hints
    about = (
        f"The distance d of {row.name}, or with `squared` d² = {row.formula}, of matrices of "
        f"{row.domain}. Shapes and errors: `covpool.distances.Distance`. Source: {row.reference}."
    )
    return _directive("py:function", f"covpool.distances.{name}{call}", "", about)


def _documented(name: str, package: Any = covpool) -> str:
    value = getattr(package, name)
    if inspect.isclass(value):
        return _directive("autoclass", f"{package.__name__}.{name}", ":members:")
    if callable(value):
        return _directive("autofunction", f"{package.__name__}.{name}")
    about = f"``{value!r}``"
    if isinstance(value, Mapping):
        about = "A read-only mapping: " + ", ".join(f'``"{key}"``' for key in value) + "."
        page = name.lower()  # METHODS has the page methods.md
        about += f" See :doc:`{page}`." if (DOCS / f"{page}.md").exists() else ""
    return _directive("py:data", f"{package.__name__}.{name}", "", about)


def bench_results(measured: str, folder: str) -> str:
    """What `covpool bench` wrote into that folder of results, a section for each file."""
    from covpool.bench.options import MEASUREMENTS
    from covpool.bench.tables import failures, peer_notes

    kind, sections = MEASUREMENTS[measured].measured_by(), []
    for path in sorted((DOCS.parent / "results" / folder).glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        sections += [f"### {path.stem}", kind.preamble(results)]
        for record in results["shapes"]:
            for title, header, rows in kind.tables(record):
                sections += [f"**{title}**", table(header, rows)]
            sections += failures(record)
        sections += peer_notes(results["shapes"][-1]) if results["shapes"] else []
    return _paragraphs(sections) or UNRECORDED


def bench_poolings(folder: Path = DOCS.parent / "results" / "poolings") -> str:
    """What `covpool bench poolings --output` wrote into the folder, a table for each file."""
    from covpool.bench.poolings import Poolings, overview
    from covpool.bench.tables import failures

    sections = []
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        _, header, rows = overview(results)
        sections += [Poolings.preamble(results), table(header, rows)]
        for record in results["shapes"]:
            sections += [f"{record['shape']}: {line}" for line in failures(record)]
    return _paragraphs(sections) or UNRECORDED


UNRECORDED = "*(No measurement is recorded in this checkout.)*"


def layouts_table() -> str:
    from covpool.data.layouts import LAYOUTS

    rows = (
        (
            f"`{name}`",
            layout.title,
            layout.source,
            re.sub(r"([*_#])", r"\\\1", layout.describe_signs()),
        )
        for name, layout in LAYOUTS.items()
    )
    return table(("`data.name`", "what", "source", "recognised by"), rows)


def _paragraphs(parts: Iterable[str]) -> str:
    return "\n\n".join(parts)


TABLES: Mapping[str, Callable[[], str]] = {
    "methods-table": methods_table,
    "methods-choice": methods_choice,
    "functions-table": functions_table,
    "methods-rows": methods_rows,
    "methods-bias": methods_bias,
    "methods-values": methods_values,
    "methods-reference": methods_reference,
    "poolings-table": poolings_table,
    "poolings-rows": poolings_rows,
    "poolings-reference": poolings_reference,
    "kernels-table": kernels_table,
    "kernels-reference": kernels_reference,
    "api-reference": api_reference,
    "analysis-reference": partial(package_reference, covpool.analysis),
    "nn-reference": partial(package_reference, covpool.nn),
    "distances-table": distances_table,
    "distances-reference": distances_reference,
    "bench-results": partial(bench_results, "layers", "bench"),
    "bench-small": partial(bench_results, "small", "small"),
    "bench-roots": partial(bench_results, "roots", "roots"),
    "bench-poolings": bench_poolings,
    "layouts-table": layouts_table,
}


class Table(SphinxDirective):
    """Puts one of `TABLES` where it stands."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # what it depends on is not this page alone
        return self.parse_text_to_nodes(TABLES[self.name](), allow_section_headings=True)


class GeneratedFile(SphinxDirective):
    """Puts a MyST file where it stands, by its path from the root; says so where it is missing."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        path = DOCS.parent / self.arguments[0]
        if path.exists():
            text = path.read_text(encoding="utf-8")
        else:
            text = f"*(`{self.arguments[0]}` is not in this checkout: it has yet to be generated.)*"
        return self.parse_text_to_nodes(text, allow_section_headings=True)


COLON = "\ue000"
"""Stands for a colon while napoleon reads, which would take for a type what precedes the first one
in an attribute's docstring."""


def escape_docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list) -> None:
    """Make reStructuredText take |, * and a final _ as the plain characters that they are.

    They stand for magnitudes, shapes and subscripts outside of backticks. What is indented between
    paragraphs in several lines, a table or a formula, keeps its lines.
    """
    example = False
    kept: list[str] = []
    for block, indented in _blocks(lines):
        if indented:
            kept += ["::", "", *block]
            continue
        for line in block:
            example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
            if not example:
                parts = re.split(r"(`+[^`]*`+)", line)
                parts[::2] = [re.sub(r"[|*]|_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
                line = "".join(parts)
            kept.append(line)
    lines[:] = kept
    if lines and what in {"attribute", "data", "property"}:
        lines[0] = lines[0].replace(":", COLON)


def _blocks(lines: list[str]) -> Iterator[tuple[list[str], bool]]:
    """The lines up to a blank one each, and whether they are several indented ones by themselves.

    Those behind the head of a section, as "Args:", and in its further paragraphs are not.
    """
    section = False
    start = 0
    for end in range(len(lines) + 1):
        if end < len(lines) and lines[end].strip():
            continue
        block = lines[start : end + 1]
        text = [line for line in block if line.strip()]
        if text and not text[0].startswith(" "):
            section = bool(re.fullmatch("(Args|Returns|Raises|Attributes):", text[0]))
        alone = len(text) > 1 and all(line.startswith("    ") for line in text)
        yield block, alone and not section
        start = end + 1


def restore_colons(app: Any, what: str, name: str, thing: Any, options: Any, lines: list) -> None:
    lines[:] = [line.replace(COLON, ":") for line in lines]


def check_complete(app: Sphinx, environment: BuildEnvironment) -> None:
    """Warn of public names that no page documents."""
    documented = environment.domains["py"].data["objects"]
    missing = [name for name in covpool.__all__ if f"covpool.{name}" not in documented]
    if missing:
        logging.getLogger(__name__).warning("the reference lacks %s", ", ".join(missing))


NETWORK = re.compile(
    r"""<(?:script|link|img|iframe)[^>]*\s(?:src|href)=["'](?:https?:)?//[^>]*>|@import\s+url"""
)
"""What makes a page load something from elsewhere when it is read."""


def check_offline(app: Sphinx, failed: Exception | None) -> None:
    """Warn of pages that would load something from the network."""
    for page in Path(app.outdir).glob("*.html"):
        for found in NETWORK.findall(page.read_text(encoding="utf-8")):
            logging.getLogger(__name__).warning("%s loads %s", page.name, found)


def setup(app: Sphinx) -> dict[str, Any]:
    for name in TABLES:
        app.add_directive(name, Table)
    app.add_directive("generated-file", GeneratedFile)
    # Before and after napoleon (500), whose own markup must stay as it is.
    app.connect("autodoc-process-docstring", escape_docstring, priority=400)
    app.connect("autodoc-process-docstring", restore_colons, priority=600)
    app.connect("env-check-consistency", check_complete)
    app.connect("build-finished", check_offline)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
