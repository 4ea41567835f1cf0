"""One way through all functions of symmetric matrices: check, decompose or iterate, lift."""

import warnings

import torch
from torch import Tensor

from covpool.linalg import checks, diagnostics
from covpool.linalg.autograd.lift import eigenpairs, lift
from covpool.linalg.autograd.root import iterate
from covpool.linalg.engine.symmetric import decompose
from covpool.linalg.functions import POWER, ScalarFunction
from covpool.linalg.methods import METHODS, Method, get_method
from covpool.linalg.precision import full_precision, range_unit
from covpool.linalg.spectrum import clip_to_rank, of_kind, real_dtype, symmetric_part


def working_dtype(
    dtype: torch.dtype, method: Method, compute_dtype: torch.dtype | None
) -> torch.dtype:
    """The dtype in which a method computes on matrices of `dtype`.

    float64 where it decomposes, since a small eigenvalue is known to finfo(dtype).eps of the
    largest alone; the input's, and at least the forward algorithm's own, where it iterates.
    """
    if compute_dtype is not None:
        return of_kind(compute_dtype, dtype)
    return torch.promote_types(dtype, method.forward.least_dtype)


def warn_of_float32(method: Method, compute_dtype: torch.dtype | None, stacklevel: int) -> None:
    """Tell of the error of float32 where it was asked for and the method needs float64."""
    if compute_dtype != torch.float32 or method.smooth or torch.compiler.is_compiling():
        return
    warnings.warn(
        f"compute_dtype=torch.float32 with method {method.name!r}: the gradient is wrong by tens "
        "of percent where eigenvalues of an n × n matrix, relative to the largest, are below "
        "n · 1e-7 (singular values of features with C channels below √(C · 1e-7)); leave "
        "compute_dtype=None where the device has float64, or, if that is meant, silence this by "
        "warnings.filterwarnings('ignore', 'compute_dtype=torch.float32')",
        UserWarning,
        stacklevel=stacklevel + 1,
    )


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
    size = matrix.shape[-1]
    if function.parameter is not None:
        parameter = checks.parameter(caller, function.parameter, parameter, matrix.shape[:-2])
    if check:
        checks.finite(caller, matrix, sample_dims=2)
        checks.symmetric(caller, matrix)
    if size == 0:
        if return_info:
            raise ValueError(
                f"{caller}: matrices of size 0 have no diagnostics, got {tuple(matrix.shape)}"
            )
        return matrix.clone()
    warn_of_float32(row, compute_dtype, stacklevel=3)
    dtype = working_dtype(matrix.dtype, row, compute_dtype)
    with full_precision(matrix):
        unit = range_unit(matrix, dtype) if function.scales else None
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
        powers = None
        if function.parameter is not None:
            powers = torch.as_tensor(parameter, dtype=real_dtype(dtype), device=matrix.device)
            powers = powers.expand(matrix.shape[:-2])
        name = function.parameter
        function, powers = function.canonical(powers)
        if check and powers is not None:
            checks.finite(f"{caller}: {name}", powers, sample_dims=0)
        eigenvalues, eigenvectors = eigenpairs(symmetric)
        if check:
            if not function.domain.has_negative:
                checks.positive_semidefinite(caller, eigenvalues, matrix.dtype, unit)
            defined = function.defined_at_zero(None if powers is None else powers.detach())
            if defined is not True:
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
        spectrum = decompose(matrix)
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
