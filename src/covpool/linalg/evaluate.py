"""One way through all functions of symmetric matrices: check, decompose or iterate, lift."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from covpool.linalg import checks, diagnostics
from covpool.linalg.autograd.lift import lift
from covpool.linalg.autograd.root import iterate_each
from covpool.linalg.engine.symmetric import EIGENDECOMPOSITION
from covpool.linalg.functions import POWER, Floored, ScalarFunction, with_floor
from covpool.linalg.methods import METHODS, Method, get_method, warn_of_float32
from covpool.linalg.precision import full_precision, range_unit
from covpool.linalg.spectrum import clip_to_rank, of_kind, real_dtype, symmetric_part
from covpool.linalg.transforms import unreadable


def get_pairing(caller: str, function: ScalarFunction, method: str | Method) -> Method:
    """The method's row, or a ValueError that names the rows that offer the function."""
    row = get_method(method)
    if not row.offers(function):
        valid = [name for name, other in METHODS.items() if other.offers(function)]
        raise ValueError(
            f"{caller}: method {row.name!r} does not offer {function.name!r}; methods that do: "
            f"{', '.join(valid)}"
        )
    return row


class _Decomposed(NamedTuple):
    """Symmetric matrices (*, n, n) with their eigenpairs and floors (*) or None, all in one unit.

    unit: (*, 1, 1), see `range_unit`; None: 1.
    """

    matrix: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor
    floor: Tensor | None
    unit: Tensor | None

    def in_unit_of(self, function: ScalarFunction) -> "_Decomposed":
        """As it is for functions that follow from those of a multiple, with unit 1 for others."""
        if self.unit is None or function.scales:
            return self
        along = self.unit[..., 0]
        floor = None if self.floor is None else self.floor * along[..., 0]
        return _Decomposed(
            self.matrix * self.unit, self.eigenvalues * along, self.eigenvectors, floor, None
        )


def evaluate(
    caller: str,
    functions: Sequence[ScalarFunction],
    matrix: Tensor,
    parameters: Sequence[Tensor | float | None],
    method: str | Method,
    compute_dtype: torch.dtype | None,
    check: bool,
    return_info: bool,
    floor: Tensor | float | None = None,
) -> list[Any]:
    """f(A) of symmetric matrices for each f, by one decomposition or iteration.

    The public functions document it.

    Returns:
        The result of each function or, with `return_info`, a tuple of it and `Diagnostics`.
    """
    if floor is not None:
        functions = [Floored(function) for function in functions]
    row, *_ = [get_pairing(caller, function, method) for function in functions]
    checks.square(caller, matrix, complex_too=True)
    checks.compute_dtype(caller, compute_dtype)
    size, batch = matrix.shape[-1], matrix.shape[:-2]
    parameters = [
        value if f.parameter is None else checks.parameter(caller, f.parameter, value, batch)
        for f, value in zip(functions, parameters, strict=True)
    ]
    if floor is not None:
        floor = checks.floor(caller, floor, batch)
    if size == 0:
        if return_info:
            raise ValueError(
                f"{caller}: matrices of size 0 have no diagnostics, got {tuple(matrix.shape)}"
            )
        # Of no entries, but they depend on the parameter: its gradient is zero, not missing.
        return [
            matrix * value.to(matrix)[..., None, None]
            if isinstance(value, Tensor)
            else matrix.clone()
            for value in parameters
        ]
    warn_of_float32(row, compute_dtype, stacklevel=3)
    dtype = row.dtype(matrix.dtype, compute_dtype)
    readable = not unreadable(matrix)
    checked = check and readable
    extent = checks.entries(caller, matrix) if checked and matrix.numel() else None
    with full_precision(matrix):
        unit = None
        if floor is not None:
            unit, floor = _unit_and_floor(caller, functions, matrix, floor, dtype, check)
        elif any(function.scales for function in functions):
            unit = range_unit(matrix, dtype, readable=readable, extent=extent)
        scaled = matrix if unit is None else matrix / unit
        symmetric = symmetric_part(scaled.to(dtype))
        if row.iteration is not None:
            if checked and not all(function.defined_at_zero() for function in functions):
                checks.positive_definite_matrix(caller, symmetric, matrix.dtype, unit)
            elif checked:
                checks.positive_semidefinite_matrix(caller, symmetric, matrix.dtype, unit)
            found = []
            for function, result in zip(
                functions, iterate_each(symmetric, functions, row), strict=True
            ):
                lifted = (
                    result if unit is None else function.rescale(result, unit, lambda r=result: r)
                )
                found.append((lifted.to(matrix.dtype), function, symmetric, result, None, unit))
        else:
            eigenvalues, eigenvectors = EIGENDECOMPOSITION(symmetric, readable and unit is None)
            decomposed = _Decomposed(symmetric, eigenvalues, eigenvectors, floor, unit)
            found = [
                _lifted(caller, *pair, decomposed, row, matrix.dtype, checked)
                for pair in zip(functions, parameters, strict=True)
            ]
        if not return_info:
            return [lifted for lifted, *_ in found]
        return [(lifted, _diagnose(row, compute_dtype, *rest)) for lifted, *rest in found]


def _unit_and_floor(
    caller: str,
    functions: Sequence[ScalarFunction],
    matrix: Tensor,
    floor: Tensor | float,
    dtype: torch.dtype,
    check: bool,
) -> tuple[Tensor | None, Tensor]:
    """What to divide the matrices by, see `range_unit`, and the floors (*) in that unit."""
    real = real_dtype(dtype)
    wide = torch.promote_types(real, real_dtype(matrix.dtype))
    floors = torch.as_tensor(floor, dtype=wide, device=matrix.device).expand(matrix.shape[:-2])
    unit = None
    if any(function.scales for function in functions):
        # The eigenvalues are from the floor on: a matrix far below has no say.
        largest = torch.maximum(matrix.detach().abs(), floors[..., None, None])
        unit = range_unit(largest, dtype, readable=not unreadable(largest))
    if unit is not None:
        # A floor that is no normal number in that unit keeps its matrix in its own.
        moved = floors / unit[..., 0, 0]
        kept = moved < torch.finfo(real).tiny
        unit = torch.where(kept[..., None, None], 1, unit)
        floors = torch.where(kept, floors, moved)
    floors = floors.to(real)
    if check and not unreadable(floors):
        checks.positive(f"{caller}: floor", floors)
    return unit, floors


def _lifted(
    caller: str,
    function: ScalarFunction,
    parameter: Tensor | float | None,
    decomposed: _Decomposed,
    row: Method,
    given: torch.dtype,
    check: bool,
) -> tuple[Any, ...]:
    """f(A) in the given dtype, and what `_diagnose` takes."""
    symmetric, eigenvalues, eigenvectors, floor, unit = decomposed.in_unit_of(function)
    size, batch = symmetric.shape[-1], symmetric.shape[:-2]
    powers, known = None, True
    if function.parameter is not None:
        powers = torch.as_tensor(parameter, dtype=eigenvalues.dtype, device=symmetric.device)
        powers = powers.expand(batch)
        known = not unreadable(powers)
        name = function.parameter
        function, powers = function.canonical(powers)
        if check and known and powers is not None:
            # After it, as the exponent of a root of zero is infinite.
            checks.finite(f"{caller}: {name}", powers, sample_dims=0)
    if check:
        if not function.domain.has_negative:
            checks.positive_semidefinite(caller, eigenvalues, given, unit)
        defined = function.defined_at_zero(None if powers is None else powers.detach())
        if defined is not True and (defined is False or known):
            negative = function.domain.has_negative
            magnitudes = eigenvalues.abs() if negative else eigenvalues
            rank = (clip_to_rank(magnitudes, size) > 0).sum(-1)
            restricted = True if defined is False else ~defined
            needed = row.forward.kept_count(size)
            checks.full_rank(caller, rank, needed, size, restricted, floor_helps=not negative)
    clipped = function.clip(eigenvalues, size)
    if floor is not None:
        clipped = with_floor(clipped, floor)
    result = lift(symmetric, powers, clipped, eigenvectors, function, row)
    lifted = result
    if unit is not None:

        def projector() -> Tensor:
            zeroth = torch.zeros_like(clipped[..., 0])
            return lift(symmetric, zeroth, clipped, eigenvectors, POWER, row)

        lifted = function.bind(powers).rescale(result, unit, projector)
    return lifted.to(given), function, symmetric, result, (eigenvalues, eigenvectors), unit


@torch.no_grad()
def _diagnose(
    method: Method,
    compute_dtype: torch.dtype | None,
    function: ScalarFunction,
    matrix: Tensor,
    result: Tensor,
    spectrum: tuple[Tensor, Tensor] | None,
    unit: Tensor | None,
) -> diagnostics.Diagnostics:
    """Of a matrix and the result for it, both in the unit of `range_unit`."""
    iterations = None
    if spectrum is None:
        taken = None if method.iteration is None else method.iteration.steps(matrix.dtype)
        if taken is not None:
            iterations = torch.full(matrix.shape[:-2], taken, device=matrix.device)
        wide = of_kind(compute_dtype or torch.float64, matrix.dtype)
        matrix, result = matrix.to(wide), result.to(wide)
        eigenvalues, eigenvectors = EIGENDECOMPOSITION(matrix)
        spectrum = eigenvalues, eigenvectors
    matrix, result = matrix.detach(), result.detach()
    eigenvalues = spectrum[0]
    if function.domain.has_negative:
        eigenvalues = eigenvalues.abs().sort(-1).values
    return diagnostics.of_spectrum(
        clip_to_rank(eigenvalues, matrix.shape[-1]),
        eigenvalues,
        unit,
        residual=diagnostics.residual(function, matrix, result, *spectrum),
        iterations=iterations,
    )
