"""One way through all functions of symmetric matrices: check, decompose or iterate, lift."""

import torch
from torch import Tensor

from covpool.linalg import checks, diagnostics
from covpool.linalg.autograd.lift import lift
from covpool.linalg.autograd.root import iterate
from covpool.linalg.engine.symmetric import EIGENDECOMPOSITION
from covpool.linalg.functions import POWER, ScalarFunction
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


def evaluate(
    caller: str,
    function: ScalarFunction,
    matrix: Tensor,
    parameter: Tensor | float | None,
    method: str | Method,
    compute_dtype: torch.dtype | None,
    check: bool,
    return_info: bool,
) -> Tensor | tuple[Tensor, diagnostics.Diagnostics]:
    """f(A) of symmetric matrices, as the public functions document it."""
    row = get_pairing(caller, function, method)
    checks.square(caller, matrix, complex_too=True)
    checks.compute_dtype(caller, compute_dtype)
    warn_of_float32(row, compute_dtype, stacklevel=3)
    size, batch = matrix.shape[-1], matrix.shape[:-2]
    if function.parameter is not None:
        parameter = checks.parameter(caller, function.parameter, parameter, batch)
    if size == 0:
        if return_info:
            raise ValueError(
                f"{caller}: matrices of size 0 have no diagnostics, got {tuple(matrix.shape)}"
            )
        return matrix.clone()
    dtype = row.dtype(matrix.dtype, compute_dtype)
    readable = not unreadable(matrix)
    check = check and readable
    extent = checks.entries(caller, matrix) if check and matrix.numel() else None
    with full_precision(matrix):
        unit = None
        if function.scales:
            unit = range_unit(matrix, dtype, readable=readable, extent=extent)
        scaled = matrix if unit is None else matrix / unit
        symmetric = symmetric_part(scaled.to(dtype))
        if row.iteration is not None:
            if check and not function.defined_at_zero():
                checks.positive_definite_matrix(caller, symmetric, matrix.dtype, unit)
            elif check:
                checks.positive_semidefinite_matrix(caller, symmetric, matrix.dtype, unit)
            result = iterate(symmetric, function, row)
            lifted = result if unit is None else function.rescale(result, unit, lambda: result)
            lifted = lifted.to(matrix.dtype)
            if not return_info:
                return lifted
            return lifted, _diagnose(function, row, symmetric, result, None, compute_dtype, unit)
        powers, known = None, True
        if function.parameter is not None:
            powers = torch.as_tensor(parameter, dtype=real_dtype(dtype), device=matrix.device)
            powers = powers.expand(batch)
            known = not unreadable(powers)
            if check and known:
                checks.finite(f"{caller}: {function.parameter}", powers, sample_dims=0)
            function, powers = function.canonical(powers)
        eigenvalues, eigenvectors = EIGENDECOMPOSITION(symmetric, readable)
        if check:
            if not function.domain.has_negative:
                checks.positive_semidefinite(caller, eigenvalues, matrix.dtype, unit)
            defined = function.defined_at_zero(None if powers is None else powers.detach())
            if defined is not True and (defined is False or known):
                negative = function.domain.has_negative
                magnitudes = eigenvalues.abs() if negative else eigenvalues
                rank = (clip_to_rank(magnitudes, size) > 0).sum(-1)
                restricted = True if defined is False else ~defined
                checks.full_rank(caller, rank, row.forward.kept_count(size), size, restricted)
        clipped = function.clip(eigenvalues, size)
        result = lift(symmetric, powers, clipped, eigenvectors, function, row)
        lifted = result
        if unit is not None:

            def projector() -> Tensor:
                zeroth = torch.zeros_like(clipped[..., 0])
                return lift(symmetric, zeroth, clipped, eigenvectors, POWER, row)

            lifted = function.bind(powers).rescale(result, unit, projector)
        lifted = lifted.to(matrix.dtype)
        if not return_info:
            return lifted
        return lifted, _diagnose(
            function, row, symmetric, result, (eigenvalues, eigenvectors), compute_dtype, unit
        )


@torch.no_grad()
def _diagnose(
    function: ScalarFunction,
    method: Method,
    matrix: Tensor,
    result: Tensor,
    spectrum: tuple[Tensor, Tensor] | None,
    compute_dtype: torch.dtype | None,
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
