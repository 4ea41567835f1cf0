"""What every row of METHODS and KERNELS does under each transform of torch, measured.

`python tests/transforms.py` writes the table of it, docs/_generated/transforms.md, with which
test_transforms.py compares what it measures itself.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.func import grad, jacrev, jvp, vmap

import covpool
import covpool.distances as distances
from covpool import FUNCTIONS, KERNELS, METHODS
from covpool.distances import DISTANCES
from covpool.linalg.functions.odd import ODD_FUNCTIONS
from covpool.linalg.inverse_root import INVERSE_ROOTS
from spectra import relative_error, with_spectrum

COMMAND = "python tests/transforms.py"
PATH = Path(__file__).resolve().parents[1] / "docs" / "_generated" / "transforms.md"

YES, OWN, REVERSE, REFUSED, NONE = "yes", "own", "reverse", "refused", "none"

BETWEEN = " / "
"""What stands between the entries of a cell, one for each of `KINDS`."""

REFUSALS = re.compile(
    r"^method '\S+' has no second derivative.*use method='exact'"
    r"|^(eigh|svd): the second derivative .* use (kernel='difference'|covpool\.matrix_power)"
    r"|^matrix_inv_sqrt: matrix singular; .*; add a multiple of the identity"
    r"|^matrix_inv_root: the residual .* is above .*; give a ridge"
    r"|^[a-z-]+: first matrix singular, where the distance is infinite; add a multiple"
    r"|^(eigh|svd) needs float32 or float64, real or complex, got torch\.\w+; convert"
)
"""What a refusal says: who refuses, and what to do. Any other error fails the test."""

ROUNDING = 1e-11
"""Largest relative difference of two ways to compute the same thing in float64."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A row of the table.

    group, name: its row of the table.
    kind: of `KINDS`, its entry in each cell.
    call: the function, (*, …) → (*, …), differentiable by what it is given.
    batch: two samples for it, without ties and of full rank.
    tied, deficient: a function and an input where the matrix within has exact ties or a lower
        rank, which no change of that input raises.
    """

    group: str
    name: str
    kind: str
    call: Callable[[Tensor], Tensor]
    batch: Tensor
    tied: tuple[Callable[[Tensor], Tensor], Tensor]
    deficient: tuple[Callable[[Tensor], Tensor], Tensor]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.manual_seed(seed))


def joined(x: Tensor) -> Tensor:
    """Complex matrices of real ones [Re, Im], by which the checks see complex input."""
    return torch.complex(*x.chunk(2, -1))


def halves(x: Tensor) -> Tensor:
    return torch.cat([x.real, x.imag], -1)


def _itself(x: Tensor) -> Tensor:
    return x


KINDS = {
    "real": (torch.float64, _itself, _itself),
    "complex": (torch.complex128, joined, halves),
}
"""Kinds of input: the dtype, and how real numbers are read as such, and written again."""


PARAMETERS = {"power": 0.3, "inv_root": 3.0, "clamp_min": 2.5}


def _public(function: str) -> tuple[Callable[..., Tensor], tuple[float, ...]]:
    """The public function, and the exponent that some take after the matrix."""
    if function in METHODS["svd"].functions:
        found = getattr(covpool, f"matrix_{function}")
        return found, (0.3,) if function == "power" else ()
    parameter = PARAMETERS.get(function)

    def any_function(a: Tensor, method: str, **options: bool) -> Tensor:
        return covpool.matrix_function(a, function, method, parameter=parameter, **options)

    return any_function, ()


def _group(function: str) -> str:
    name = f"matrix_{function}"
    # matrix_inv_root has rows of its own.
    named = hasattr(covpool, name) and function != "inv_root"
    return name if named else f"matrix_function, {function}"


def _functions() -> list[Subject]:
    return [
        _function(function, method, kind)
        for function in FUNCTIONS
        for method, row in METHODS.items()
        if row.supports(function)
        for kind in KINDS
    ]


def _matrices(eigenvalues: list[float], dtype: torch.dtype) -> Tensor:
    return torch.stack([with_spectrum(np.array(eigenvalues), seed, dtype) for seed in range(2)])


def _function(function: str, method: str, kind: str) -> Subject:
    dtype, read, write = KINDS[kind]
    public, exponent = _public(function)
    ties = torch.diag(torch.tensor([1, 1, 3, 3], dtype=dtype))

    def call(a: Tensor) -> Tensor:
        matrix = read(a)
        return write(public((matrix + matrix.mH) / 2, *exponent, method))

    # Without the check, which refuses singular matrices, decompositions work on the range.
    checked = METHODS[method].iteration is not None and function != "sqrt"

    def of_factor(x: Tensor) -> Tensor:
        factor = read(x)
        return write(public(factor @ factor.mH, *exponent, method, check=checked))

    return Subject(
        group=_group(function),
        name=method,
        kind=kind,
        call=call,
        batch=write(_matrices([1.0, 2, 3, 4], dtype)),
        tied=(call, write(ties)),
        deficient=(of_factor, write(random(4, 2, dtype=dtype))),
    )


def _inverse_roots() -> list[Subject]:
    return [_inverse_root(method, kind) for method in INVERSE_ROOTS for kind in KINDS]


def _inverse_root(method: str, kind: str) -> Subject:
    dtype, read, write = KINDS[kind]

    def call(a: Tensor) -> Tensor:
        matrix = read(a)
        return write(covpool.matrix_inv_root((matrix + matrix.mH) / 2, 4, method))

    def of_factor(x: Tensor) -> Tensor:
        return write(covpool.matrix_inv_root(read(x) @ read(x).mH, 4, method))

    return Subject(
        group="matrix_inv_root",
        name=method,
        kind=kind,
        call=call,
        batch=write(_matrices([1.0, 2, 3, 4], dtype)),
        tied=(call, write(torch.diag(torch.tensor([1, 1, 3, 3], dtype=dtype)))),
        deficient=(of_factor, write(random(4, 2, dtype=dtype))),
    )


def _poolings() -> list[Subject]:
    return [
        _pooling(positions, method, kind)
        for positions in (4, 8)
        for method in METHODS
        for kind in KINDS
    ]


def _pooling(positions: int, method: str, kind: str) -> Subject:
    dtype, read, write = KINDS[kind]
    balanced = torch.tensor([[1, -1, 0, 0], [0, 0, 1, -1]], dtype=dtype)
    rows = torch.from_numpy(scipy.linalg.hadamard(8)[1:5]).to(dtype)
    stretched = rows * torch.tensor([1, 1, 2, 2], dtype=dtype)[:, None]
    mixing = random(2, positions, seed=1, dtype=dtype)
    gram = positions == 4

    def call(x: Tensor) -> Tensor:
        return write(covpool.cov_pool(read(x), method))

    def of_pairs(x: Tensor) -> Tensor:
        return write(covpool.cov_pool(read(x) @ balanced, method))

    def of_factor(x: Tensor) -> Tensor:
        return write(covpool.cov_pool(read(x) @ mixing, method))

    return Subject(
        group=f"cov_pool, {'N ≤ C' if gram else 'N > C'}",
        name=method,
        kind=kind,
        call=call,
        batch=write(random(2, 4, positions, dtype=dtype)),
        tied=(of_pairs, write(torch.eye(4, 2, dtype=dtype))) if gram else (call, write(stretched)),
        deficient=(of_factor, write(random(4, 2, dtype=dtype))),
    )


def _decompositions() -> list[Subject]:
    return [
        decomposition(kernel, kind)
        for decomposition in (_eigh, _svd)
        for kernel in KERNELS
        for kind in KINDS
    ]


def _distances() -> list[Subject]:
    return [_distance(name, kind) for name in (*DISTANCES, *DIVERGENCES) for kind in KINDS]


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relative-entropy": distances.relative_entropy,
    "fidelity": distances.fidelity,
    "von-neumann-entropy": lambda a, b: distances.von_neumann_entropy(a),
    "frechet-from-samples": partial(distances.frechet_from_samples, squared=True),
}


def _distance(name: str, kind: str) -> Subject:
    """Squares, of the distance from a matrix that is fixed."""
    dtype, read, write = KINDS[kind]
    measure = DIVERGENCES.get(name) or partial(DISTANCES[name], squared=True)
    other = with_spectrum(np.array([1.0, 3, 4, 7]), 5, dtype)

    def call(a: Tensor) -> Tensor:
        matrix = read(a)
        # Beside half precision it would decide the result's.
        fixed = other.to(matrix.dtype)
        return measure((matrix + matrix.mH) / 2, (fixed + fixed.mH) / 2)

    def of_factor(x: Tensor) -> Tensor:
        return measure(read(x) @ read(x).mH, other)

    return Subject(
        group="distances",
        name=name,
        kind=kind,
        call=call,
        batch=write(_matrices([1.0, 2, 3, 4], dtype)),
        tied=(call, write(torch.diag(torch.tensor([1, 1, 3, 3], dtype=dtype)))),
        deficient=(of_factor, write(random(4, 2, dtype=dtype))),
    )


def _sizes(vectors: Tensor) -> Tensor:
    """|v|⁴ summed over each vector: without their signs and phases."""
    return (vectors * vectors.conj()).real.square().sum(-2)


THRESHOLDS = dict.fromkeys(("hard_threshold", "clip"), 2.0)
ODD_PARAMETERS = THRESHOLDS | {"soft_threshold": 0.5, "power": 1.5, "pinv": 0.1}


def _of_any_shape() -> list[Subject]:
    """Functions of 4 × 3 matrices; polar's both factors, and registration of half of the rows."""
    calls: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
        ("svd_function", name): partial(
            covpool.svd_function, function=name, parameter=ODD_PARAMETERS.get(name)
        )
        for name in ODD_FUNCTIONS
    }
    calls["svd_function", "torch.atan"] = partial(covpool.svd_function, function=torch.atan)
    calls["polar", "exact"] = lambda a: torch.cat(covpool.polar(a), -2)
    calls["low_rank", "exact"] = partial(covpool.low_rank, rank=2)
    calls["orthogonal_procrustes", "exact"] = _turned
    calls["kabsch", "exact"] = _moved
    return [_rectangular(*row, call, kind) for row, call in calls.items() for kind in KINDS]


def _beside(a: Tensor) -> Tensor:
    """Four points in rows, to which those of A are brought."""
    return torch.eye(4, 3).to(a)


def _times(points: Tensor, matrix: Tensor) -> Tensor:
    """Their product, which autocast leaves alone."""
    return (points.unsqueeze(-1) * matrix.unsqueeze(-3)).sum(-2)


def _turned(a: Tensor) -> Tensor:
    """A R, which is unique at deficient rank too."""
    return _times(a, covpool.orthogonal_procrustes(a, _beside(a)).R)


def _moved(a: Tensor) -> Tensor:
    found = covpool.kabsch(a, _beside(a), scale=True)
    moved = found.scale[..., None, None] * _times(a, found.rotation.mT)
    return moved + found.translation[..., None, :]


def _rectangular(group: str, name: str, function: Callable[[Tensor], Tensor], kind: str) -> Subject:
    dtype, read, write = KINDS[kind]
    mixing = random(2, 3, seed=1, dtype=dtype)

    def call(a: Tensor) -> Tensor:
        return write(function(read(a)))

    def of_factor(x: Tensor) -> Tensor:
        return write(function(read(x) @ mixing))

    return Subject(
        group=group,
        name=name,
        kind=kind,
        call=call,
        batch=write(_tall(dtype)),
        tied=(call, write(_two_pairs(dtype)[:, :3])),
        deficient=(of_factor, write(random(4, 2, dtype=dtype))),
    )


def _tall(dtype: torch.dtype) -> Tensor:
    """Two matrices of 4 × 3 with the singular values 3, 1.4 and 0.7."""
    left = torch.linalg.qr(random(2, 4, 3, dtype=dtype)).Q
    right = torch.linalg.qr(random(2, 3, 3, seed=1, dtype=dtype)).Q
    return (left * torch.tensor([3, 1.4, 0.7], dtype=dtype)) @ right.mH


def _two_pairs(dtype: torch.dtype) -> Tensor:
    return torch.diag(torch.tensor([3, 3, 1, 1], dtype=dtype))


def _eigh(kernel: str, kind: str) -> Subject:
    """Losses without the vectors' phases and, at ties, without the choice of basis."""
    dtype, read, write = KINDS[kind]

    def decomposed(matrix: Tensor) -> tuple[Tensor, Tensor]:
        return covpool.eigh((matrix + matrix.mH) / 2, kernel=kernel)

    def sizes(a: Tensor) -> Tensor:
        values, vectors = decomposed(read(a))
        return _sizes(vectors) * values

    def projector(a: Tensor) -> Tensor:
        top = decomposed(read(a))[1][..., -2:]
        return write(top @ top.mH)

    def of_factor(x: Tensor) -> Tensor:
        values, vectors = decomposed(read(x) @ read(x).mH)
        return (_sizes(vectors) * values)[..., -2:]

    return Subject(
        group="eigh",
        name=kernel,
        kind=kind,
        call=sizes,
        batch=write(_matrices([-1.0, 1, 2, 4], dtype)),
        tied=(projector, write(_two_pairs(dtype))),
        deficient=(of_factor, write(random(4, 2, dtype=dtype))),
    )


def _svd(kernel: str, kind: str) -> Subject:
    """Losses as for `eigh`."""
    dtype, read, write = KINDS[kind]
    mixing = random(2, 3, seed=1, dtype=dtype)

    def sizes_of(matrix: Tensor) -> Tensor:
        u, s, vh = covpool.svd(matrix, full_matrices=False, kernel=kernel)
        return _sizes(u) * s + _sizes(vh.mT)

    def sizes(a: Tensor) -> Tensor:
        return sizes_of(read(a))

    def polar(a: Tensor) -> Tensor:
        u, _, vh = covpool.svd(read(a), full_matrices=False, kernel=kernel)
        return write(u[..., :2] @ vh[..., :2, :])

    def of_factor(x: Tensor) -> Tensor:
        return sizes_of(read(x) @ mixing)[..., :2]

    return Subject(
        group="svd",
        name=kernel,
        kind=kind,
        call=sizes,
        batch=write(random(2, 4, 3, dtype=dtype)),
        tied=(polar, write(_two_pairs(dtype))),
        deficient=(of_factor, write(random(4, 2, dtype=dtype))),
    )


TABLES = {
    "Functions of matrices": _functions() + _inverse_roots(),
    "Covariance pooling": _poolings(),
    "Distances": _distances(),
    "Decompositions": _decompositions(),
    "Functions of matrices of any shape": _of_any_shape(),
}
SUBJECTS = [subject for subjects in TABLES.values() for subject in subjects]


def close(actual: Tensor, expected: Tensor, tolerance: float = ROUNDING) -> None:
    error = relative_error(actual, expected)
    if not error <= tolerance:
        raise AssertionError(f"relative error {error:.1e}, more than {tolerance:.0e}")


def loss(call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A scalar that no symmetry makes simple; of a batch, the sum over its samples."""

    def scalar(x: Tensor) -> Tensor:
        value = call(x)
        sizes = value.shape[1:] if x.ndim == 3 else value.shape
        weight = torch.arange(1.0, sizes.numel() + 1).cos().reshape(sizes).to(value)
        return (value * weight).sum()

    return scalar


def gradient(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(loss(call)(leaf), leaf)[0]


def jacobian(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Row by row, by eager autograd."""
    leaf = x.detach().clone().requires_grad_()
    value = call(leaf)
    entries = value.flatten().unbind()
    rows = [torch.autograd.grad(entry, leaf, retain_graph=True)[0] for entry in entries]
    return torch.stack(rows).reshape(*value.shape, *x.shape)


def first_order(call: Callable[[Tensor], Tensor], x: Tensor) -> str:
    """Against finite differences; else both modes against each other."""
    leaf = x.clone().requires_grad_()
    # The step suits functions that are good to 1e-11, newton-schulz-minimax at singular matrices.
    options = {"eps": 3e-5, "atol": 1e-6, "rtol": 1e-5, "raise_exception": False}
    if torch.autograd.gradcheck(call, (leaf,), check_forward_ad=True, **options):
        return YES
    if torch.autograd.gradcheck(call, (leaf,), **options):
        return REVERSE
    direction = random(*x.shape, seed=2)
    value, change = jvp(call, (x,), (direction,))
    cotangent = random(*value.shape, seed=3)
    (pulled,) = torch.autograd.grad(call(leaf), leaf, cotangent)
    forward, backward = (change * cotangent).sum(), (pulled * direction).sum()
    if not abs(forward - backward) <= ROUNDING * change.norm() * cotangent.norm():
        raise AssertionError(f"modes differ: forward {forward}, reverse {backward}")
    return OWN


def second_order(call: Callable[[Tensor], Tensor], x: Tensor) -> str:
    leaf = x.clone().requires_grad_()
    torch.autograd.gradgradcheck(
        call, (leaf,), check_fwd_over_rev=True, fast_mode=True, atol=1e-5, rtol=1e-4
    )
    return YES


def under_vmap(subject: Subject) -> str:
    call, batch = subject.call, subject.batch
    close(vmap(call)(batch), torch.stack([call(x) for x in batch]))
    close(vmap(grad(loss(call)))(batch), torch.stack([gradient(call, x) for x in batch]))
    return YES


def under_grad(subject: Subject) -> str:
    close(grad(loss(subject.call))(subject.batch), gradient(subject.call, subject.batch))
    return YES


def under_jacrev(subject: Subject) -> str:
    x = subject.batch[0]
    close(jacrev(subject.call)(x), jacobian(subject.call, x))  # type: ignore[arg-type]
    return YES


def under_jvp(subject: Subject) -> str:
    x, direction = subject.batch[0], random(*subject.batch.shape[1:], seed=2)
    value, change = jvp(subject.call, (x,), (direction,))
    close(value, subject.call(x))
    close(change, (jacobian(subject.call, x) * direction).sum((-2, -1)))
    return YES


def under_compile(subject: Subject) -> str:
    """One graph, traced at a batch of 2, which batches of 2 and 5 then run."""
    torch.compiler.reset()
    compiled = torch.compile(subject.call, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (subject.batch, subject.batch[[0, 1, 1, 0, 1]]):
            leaf = batch.clone().requires_grad_()
            torch._dynamo.mark_dynamic(leaf, 0)
            value = compiled(leaf)
            close(value, subject.call(batch))
            (found,) = torch.autograd.grad(loss(lambda _, value=value: value)(leaf), leaf)
            close(found, gradient(subject.call, batch))
    return YES


def under_export(subject: Subject) -> str:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return subject.call(x)

    shapes = {"x": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(Module(), (subject.batch,), dynamic_shapes=shapes)
    many = subject.batch[[0, 1, 1, 0, 1]]
    close(exported.module()(many), subject.call(many))
    return YES


def under_autocast(subject: Subject) -> str:
    single = subject.batch.float()
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype):
            leaf = single.clone().requires_grad_()
            value = subject.call(leaf)
        (found,) = torch.autograd.grad(loss(lambda _, value=value: value)(leaf), leaf)
        close(value, subject.call(single), 1e-6)
        close(found, gradient(subject.call, single), 1e-5)
    return YES


def with_half_input(subject: Subject) -> str:
    if subject.kind == "complex":
        return NONE
    for dtype in (torch.float16, torch.bfloat16):
        half = subject.batch.to(dtype)
        eps = torch.finfo(dtype).eps
        with torch.autocast("cpu", dtype):
            value = subject.call(half)
        close(value.double(), subject.call(half.double()), eps)
        close(gradient(subject.call, half).double(), gradient(subject.call, half.double()), 2 * eps)
    return YES


def with_strides(subject: Subject) -> str:
    x = subject.batch
    spread = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)[..., ::2].copy_(x)
    for other in (x.mT.contiguous().mT, spread, x.movedim(0, -1).contiguous().movedim(-1, 0)):
        assert not other.is_contiguous()
        close(subject.call(other), subject.call(x))
        close(gradient(subject.call, other), gradient(subject.call, x))
    expanded = x[:1].expand_as(x)
    close(subject.call(expanded), subject.call(x[:1]).expand_as(subject.call(x)))
    close(gradient(subject.call, expanded), gradient(subject.call, x[:1]).expand_as(x))
    return YES


CHECKS: dict[str, Callable[[Subject], str]] = {
    "gradcheck": lambda subject: first_order(subject.call, subject.batch[0]),
    "at ties": lambda subject: first_order(*subject.tied),
    "at deficient rank": lambda subject: first_order(*subject.deficient),
    "gradgradcheck": lambda subject: second_order(subject.call, subject.batch[0]),
    "the same at ties": lambda subject: second_order(*subject.tied),
    "the same at deficient rank": lambda subject: second_order(*subject.deficient),
    "vmap": under_vmap,
    "grad": under_grad,
    "jacrev": under_jacrev,
    "jvp": under_jvp,
    "compile": under_compile,
    "export": under_export,
    "autocast": under_autocast,
    "half input": with_half_input,
    "strides": with_strides,
}


def measure(subject: Subject, check: str) -> str:
    """YES, OWN, REVERSE, REFUSED or NONE, see docs/transforms.md; what is wrong raises."""
    if subject.kind == "complex" and subject.group == "kabsch":  # rotations are real
        return NONE
    try:
        return CHECKS[check](subject)
    except (RuntimeError, ValueError) as error:
        if REFUSALS.search(str(error)) is None:
            raise
        return REFUSED


Cells = dict[tuple[str, str], dict[str, list[str]]]
"""Of each group and name: the outcomes of all checks, for each of `KINDS`."""


def render(cells: Cells) -> str:
    """The tables in Markdown; neighbours of a group that agree in every cell share a line."""
    parts = [f"<!-- Written by `{COMMAND}`; test_transforms.py holds it to what it measures. -->"]
    for title, subjects in TABLES.items():
        lines = [["", "by", *CHECKS], ["---"] * (2 + len(CHECKS))]
        shared: dict[tuple[str, ...], list[str]] = {}
        for group, name in dict.fromkeys((subject.group, subject.name) for subject in subjects):
            row = zip(*(cells[group, name][kind] for kind in KINDS), strict=True)
            entries = [BETWEEN.join(dict.fromkeys(of_kinds)) for of_kinds in row]
            shared.setdefault((group, *entries), []).append(f"`{name}`")
        lines += [[group, ", ".join(names), *row] for (group, *row), names in shared.items()]
        parts += [f"**{title}**", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join(parts) + "\n"


def parse(text: str) -> Cells:
    found: Cells = {}
    for line in text.splitlines():
        if "`" in line and line.startswith("|"):
            group, names, *row = (cell.strip() for cell in line.split("|")[1:-1])
            # Where they agree, one entry stands for all kinds.
            found_kinds = [cell.split(BETWEEN) for cell in row]
            kinds = zip(*(each * (len(KINDS) // len(each)) for each in found_kinds), strict=True)
            entries = dict(zip(KINDS, map(list, kinds), strict=True))
            found |= {(group, name): entries for name in re.findall(r"`([^`]+)`", names)}
    return found


GRAPHS = ("compile", "export")

QUICK = re.compile(
    # Every function, by the exact row; every method, on one way; every kind of kernel.
    r"matrix_.* exact real|cov_pool, N ≤ C .* real|(eigh|svd) (difference|power-iteration) real"
    r"|svd_function (polar|torch\.atan) real|(polar|low_rank|kabsch) exact real"
    # Iterations on the matrix itself, and what covariances of full rank have of their own.
    r"|cov_pool, N > C (exact|isqrt-cov|mpa-lyapunov|newton-schulz-minimax|svd-topn) real"
    r"|matrix_sqrt newton-schulz-minimax real|(matrix_log|cov_pool, N ≤ C) exact complex"
    r"|svd difference complex|distances bures-wasserstein real"
)
QUICK_GRAPHS = re.compile(
    r"(matrix_sqrt|cov_pool, N ≤ C) exact real|svd difference real|cov_pool, N > C isqrt-cov real"
    r"|svd_function torch\.atan real"
)
"""The rows, as group, name and kind, that stand for the others in the quick tests: in eager mode,
and in graphs, which take seconds each."""


def is_quick(subject: Subject, graphs: bool) -> bool:
    row = f"{subject.group} {subject.name} {subject.kind}"
    return (QUICK_GRAPHS if graphs else QUICK).fullmatch(row) is not None


def in_every_run(subject: Subject, check: str) -> bool:
    """All but graphs of complex input and of functions other than the root, but for the exact ones.

    A graph takes a second or more, and these are made of parts that others hold. They are measured
    when the table is written.
    """
    function = subject.group.startswith("matrix_") and subject.group != "matrix_sqrt"
    others = function or subject.kind == "complex"
    exact = subject.name in ("exact", "difference", "polar", "torch.atan")
    return not (check in GRAPHS and others and not exact)


if __name__ == "__main__":
    torch.set_num_threads(1)
    PATH.parent.mkdir(exist_ok=True)
    measured: Cells = {}
    for subject in SUBJECTS:
        entries = measured.setdefault((subject.group, subject.name), {})
        entries[subject.kind] = [measure(subject, check) for check in CHECKS]
    PATH.write_text(render(measured), encoding="utf-8")
