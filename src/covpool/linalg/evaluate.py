"""One way through all functions of symmetric matrices: check, decompose or iterate, lift."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from covpool.linalg import checks, diagnostics
from covpool.linalg.autograd.lift import lift
from covpool.linalg.autograd.root import iterate_each
from covpool.linalg.engine.factorisation import DIVIDED_SIZE, sum_is_finite
from covpool.linalg.engine.symmetric import EIGENDECOMPOSITION
from covpool.linalg.functions import POWER, Floored, ScalarFunction, with_floor
from covpool.linalg.methods import METHODS, Method, get_method, warn_of_float32
from covpool.linalg.precision import full_precision, on_cpu, range_edge, range_unit
from covpool.linalg.spectrum import (
    PLANAR_SIZE,
    clip_to_rank,
    of_kind,
    planar,
    real_dtype,
    symmetric_part,
)
from covpool.linalg.transforms import is_ordinary, unreadable

EXACT = METHODS["exact"]

WIDE = (torch.float64, torch.complex128)
"""What is computed in as it is."""

ORDINARY = {
    dtype: (torch.finfo(dtype).eps, 2 ** range_edge(dtype))
    for dtype in (*WIDE, torch.float32, torch.complex64, torch.bfloat16, torch.float16)
}
"""The dtypes that most matrices have: their rounding, and the largest number whose cube they hold,
see `range_unit`."""


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
    """Matrices (*, n, n) with the eigenpairs of their symmetric part, all in one unit.

    floor: (*) in that unit, or None.
    unit: (*, 1, 1), see `range_unit`; None: 1.
    lowest: the least eigenvalue of the batch, if it is known.
    within_range: whether the powers of every matrix are known to be within the dtype's range.
    clear: whether every eigenvalue is known to be further above zero than rounding.
    """

    matrix: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor
    floor: Tensor | None = None
    unit: Tensor | None = None
    lowest: float = -math.inf
    within_range: bool = False
    clear: bool = False

    def in_unit_of(self, function: ScalarFunction) -> "_Decomposed":
        """As it is for functions that follow from those of a multiple, with unit 1 for others."""
        if self.unit is None or function.scales:
            return self
        along = self.unit[..., 0]
        floor = None if self.floor is None else self.floor * along[..., 0]
        return _Decomposed(
            self.matrix * self.unit, self.eigenvalues * along, self.eigenvectors, floor
        )


def _at_once(
    function: ScalarFunction | None,
    matrix: Tensor,
    row: Method,
    compute_dtype: torch.dtype | None,
    check: bool,
) -> Tensor | _Decomposed | None:
    """What the eigenvalues of matrices (*, n, n) on a CPU tell, without a look at the entries.

    Where they tell that nothing has to be refused, clipped or rescaled, f(A) of the function if
    there is one. This is the usual case, and a call of a small matrix takes as long as what it
    touches: so it touches little.

    Returns:
        f(A), the eigenpairs, or None where more has to be known: of matrices to be refused, too.
    """
    shape, given = matrix.shape, matrix.dtype
    if len(shape) < 2 or shape[-1] != shape[-2] or given not in ORDINARY or matrix.numel() == 0:
        return None
    if matrix.layout is not torch.strided:  # to be refused
        return None
    size, dtype = shape[-1], given
    if compute_dtype is not None or given not in WIDE:
        if compute_dtype not in (None, torch.float32, torch.float64):
            return None
        dtype = row.dtype(given, compute_dtype)
    values = matrix.detach()
    if size <= PLANAR_SIZE:
        values = planar(values)
    symmetric = values if given is dtype else values.to(dtype)
    exact = torch.equal(values, values.mH)
    # NaN is not equal to itself. Of infinite matrices to be refused LAPACK would print messages.
    if (check or not exact) and not sum_is_finite(values):
        return None
    if not exact:
        # One fresh tensor, not two as in `symmetric_part`; where the sum overflows, it is seen.
        symmetric = (symmetric + symmetric.mH).mul_(0.5)
    found, solved = EIGENDECOMPOSITION.attempt(symmetric, row.exact_gradient)
    eigenvalues, eigenvectors = found
    lowest, highest = eigenvalues.aminmax()
    lowest, highest = lowest.item(), highest.item()
    if not solved or lowest == -math.inf or not highest < math.inf:
        return None
    if size >= DIVIDED_SIZE and EIGENDECOMPOSITION.doubtful(symmetric, found):
        return None
    rounding, edge = ORDINARY[dtype]
    # The largest eigenvalue of each matrix is 1 to n times its largest entry; 2 for rounding.
    least = lowest / (2 * size)
    if least < 1 / edge or (check and not exact):
        least = eigenvalues.select(-1, -1).amin().item() / (2 * size)
    if check and not exact and not checks.nearly_symmetric(values, symmetric, least):
        return None
    within = 1 / edge <= least and 2 * max(-lowest, highest) <= edge
    clear = lowest > 2 * size * rounding * highest
    wide = matrix if given is dtype else matrix.to(dtype)
    if within and clear and function is not None:
        lifted = lift(wide, None, eigenvalues, eigenvectors, function, row)
        return lifted if given is dtype else lifted.to(given)
    return _Decomposed(wide, eigenvalues, eigenvectors, None, None, lowest, within, clear)


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
    decomposed = None
    if method == EXACT.name and floor is None and is_ordinary(matrix) and on_cpu(matrix):
        alone = len(functions) == 1 and functions[0].parameter is None and not return_info
        function = functions[0] if alone else None
        decomposed = _at_once(function, matrix, EXACT, compute_dtype, check)
        if isinstance(decomposed, Tensor):
            return [decomposed]
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
    narrow = compute_dtype == torch.float32 and not row.smooth
    if narrow and row.iteration is not None:
        warn_of_float32(row, compute_dtype, stacklevel=3)
    dtype = row.dtype(matrix.dtype, compute_dtype)
    values = planar(matrix.detach())
    readable = not unreadable(values)
    checked = check and readable and matrix.numel() > 0
    exact = readable and checks.exactly_symmetric(values)
    extent = unit = None
    if checked and decomposed is None:
        extent = checks.entries(caller, values, exact)
    with full_precision(matrix):
        if floor is not None:
            unit, floor = _unit_and_floor(functions, matrix, floor, dtype)
        elif not (decomposed and decomposed.within_range) and any(f.scales for f in functions):
            unit = range_unit(matrix, dtype, readable=readable, extent=extent)
        scaled = (matrix if unit is None else matrix / unit).to(dtype)
        if row.iteration is not None:
            symmetric = symmetric_part(scaled)
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
            symmetric = None
            if decomposed is None or unit is not None:
                symmetric = (values if unit is None else values / unit).to(dtype)
                symmetric = symmetric if exact else symmetric_part(symmetric)
                # A GPU is waited for once, below.
                pairs = EIGENDECOMPOSITION(
                    symmetric,
                    readable and unit is None,
                    read=False,
                    # Other rules than the exact one tell bases of a tie apart.
                    any_basis=row.exact_gradient,
                )
                decomposed = _Decomposed(scaled, *pairs, floor=floor, unit=unit)
            asked = list(zip(functions, parameters, strict=True))
            terms = [_term(*pair, decomposed) for pair in asked]
            if checked:
                doubts = [doubt for term in terms for doubt in _doubts(term, row)]
                if narrow and not decomposed.clear:
                    doubts += [_loses(term) for term in terms]
                if not on_cpu(matrix):
                    doubts.append(decomposed.eigenvalues.isnan().any(-1))
                if checks.any_of(doubts):
                    if symmetric is not None and not on_cpu(matrix):
                        pairs = EIGENDECOMPOSITION(symmetric)
                        decomposed = _Decomposed(scaled, *pairs, floor=floor, unit=unit)
                        terms = [_term(*pair, decomposed) for pair in asked]
                    for term in terms:
                        _refuse(caller, term, row, matrix.dtype)
                    if narrow and checks.any_of([_loses(term) for term in terms]):
                        warn_of_float32(row, compute_dtype, stacklevel=3)
            found = [_lifted(term, row, matrix.dtype) for term in terms]
        if not return_info:
            return [each[0] for each in found]
        return [(lifted, _diagnose(row, compute_dtype, *rest)) for lifted, *rest in found]


def _unit_and_floor(
    functions: Sequence[ScalarFunction],
    matrix: Tensor,
    floor: Tensor | float,
    dtype: torch.dtype,
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
    return unit, floors.to(real)


class _Term(NamedTuple):
    """A function, its parameters (*), and the matrices with their eigenvalues as it takes them."""

    function: ScalarFunction
    parameter: str
    powers: Tensor | None
    known: bool
    decomposed: _Decomposed
    clipped: Tensor


def _term(
    function: ScalarFunction,
    parameter: Tensor | float | None,
    decomposed: _Decomposed,
) -> _Term:
    decomposed = decomposed.in_unit_of(function)
    matrix, eigenvalues = decomposed.matrix, decomposed.eigenvalues
    powers, known, name = None, True, function.parameter
    if name is not None:
        powers = torch.as_tensor(parameter, dtype=eigenvalues.dtype, device=matrix.device)
        powers = powers.expand(matrix.shape[:-2])
        known = not unreadable(powers)
        # After it a number may not be finite: the exponent of a root of zero is not.
        function, powers = function.canonical(powers)
    # What is further above zero than rounding stays as it is.
    clipped = eigenvalues if decomposed.clear else function.clip(eigenvalues, matrix.shape[-1])
    return _Term(function, name or "", powers, known, decomposed, clipped)


def _restricted(term: _Term) -> bool | Tensor:
    """Whether singular matrices are refused; (*) where that depends on the parameter."""
    powers = None if term.powers is None else term.powers.detach()
    defined = term.function.defined_at_zero(powers)
    return ~defined if isinstance(defined, Tensor) else not defined


def _doubts(term: _Term, row: Method) -> Iterator[Tensor]:
    """Masks that are all False where `_refuse` has nothing to refuse: few operations, no read."""
    function, eigenvalues, floor = term.function, term.decomposed.eigenvalues, term.decomposed.floor
    if floor is not None and not unreadable(floor):
        yield ~checks.is_positive(floor)
    if term.powers is not None and term.known:
        yield ~term.powers.isfinite()
    if term.decomposed.clear:
        return
    if not function.domain.has_negative and term.decomposed.lowest < 0:
        yield eigenvalues[..., 0] < 0
    restricted = _restricted(term)
    if restricted is True or (restricted is not False and term.known):
        needed = row.forward.kept_count(term.decomposed.matrix.shape[-1])
        yield (_rank(term) < needed) & restricted


def _rank(term: _Term) -> Tensor:
    if not term.function.smooth_at_zero:
        return (term.clipped != 0).sum(-1)
    eigenvalues = term.decomposed.eigenvalues
    magnitudes = eigenvalues.abs() if term.function.domain.has_negative else eigenvalues
    return (clip_to_rank(magnitudes, term.decomposed.matrix.shape[-1]) > 0).sum(-1)


def _loses(term: _Term) -> Tensor:
    """In which samples eigenvalues that the function tells from zero are lost to rounding."""
    if term.function.smooth_at_zero:
        return torch.zeros_like(term.clipped[..., 0], dtype=torch.bool)
    return _rank(term) < term.clipped.shape[-1]


def _refuse(caller: str, term: _Term, row: Method, given: torch.dtype) -> None:
    """Refuse floors, parameters and eigenvalues that the function does not accept."""
    function, (matrix, eigenvalues, _, floor, unit, *_) = term.function, term.decomposed
    if floor is not None and not unreadable(floor):
        checks.positive(f"{caller}: floor", floor)
    if term.powers is not None and term.known:
        checks.finite(f"{caller}: {term.parameter}", term.powers, sample_dims=0)
    if not function.domain.has_negative:
        checks.positive_semidefinite(caller, eigenvalues, given, unit)
    restricted = _restricted(term)
    if restricted is True or (restricted is not False and term.known):
        size, helps = matrix.shape[-1], not function.domain.has_negative
        needed = row.forward.kept_count(size)
        checks.full_rank(caller, _rank(term), needed, size, restricted, floor_helps=helps)


def _lifted(term: _Term, row: Method, given: torch.dtype) -> tuple[Any, ...]:
    """f(A) in the given dtype, and what `_diagnose` takes."""
    function, powers = term.function, term.powers
    matrix, eigenvalues, eigenvectors, floor, unit, *_ = term.decomposed
    clipped = term.clipped if floor is None else with_floor(term.clipped, floor)
    result = lift(matrix, powers, clipped, eigenvectors, function, row)
    lifted = result
    if unit is not None:

        def projector() -> Tensor:
            zeroth = torch.zeros_like(clipped[..., 0])
            return lift(matrix, zeroth, clipped, eigenvectors, POWER, row)

        lifted = function.bind(powers).rescale(result, unit, projector)
    return lifted.to(given), function, matrix, result, (eigenvalues, eigenvectors), unit


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
    matrix, result = symmetric_part(matrix), result.detach()
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
