"""Factorisations by a batched solver, whose results are probed and, where they fail, retried.

Each sample is judged and retried for itself: the others keep what the solver gave them.
"""

import cmath
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from covpool.linalg import checks
from covpool.linalg.engine.back_off import is_small
from covpool.linalg.engine.cores import spread, usable_threads
from covpool.linalg.engine.shares import SampleError, shares
from covpool.linalg.engine.small import CLOSED_ELEMENTS, CLOSED_SIZE
from covpool.linalg.precision import on_cpu
from covpool.linalg.spectrum import rank_tolerance
from covpool.linalg.transforms import refuse_onnx, transformed, unreadable

PROBE_SLACK = 64
"""How many times n · finfo(dtype).eps the probed errors of a factorisation may be. Those of LAPACK
and cuSOLVER were at most 1 here, those of failed factorisations are of order one."""

PARALLEL_WORK = 10**5
"""Batch size times m · n · min(m, n) from which several threads are worth their start, measured for
the symmetric eigendecomposition on 2 cores: 16 matrices of n = 16 take as long either way, 64 of
them, 4 of n = 49 or 16 of n = 49 take 0.7, 0.75 and 0.6 of the time."""

DIVIDED_SIZE = 26
"""Rows or columns from which LAPACK divides and conquers (above SMLSIZ of ILAENV). Below, it
iterates by QR, and either has converged or says that it has not."""

Factors = tuple[Tensor, ...]
_Error = tuple[Tensor, Tensor | None]

# Documented by torch, but not listed in its `__all__`.
LinAlgError = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]


class DecompositionError(SampleError, LinAlgError):
    """No way of decomposing succeeded; the message names the samples."""


class InvalidMatrixError(LinAlgError, ValueError):
    """Matrices that a decomposition refuses for their values, which torch's LinAlgError is for."""


def require_finite(caller: str, matrix: Tensor) -> None:
    """Refuse matrices (*, m, n), real or complex, with NaN or infinite entries.

    Not where values cannot be read.
    """
    if unreadable(matrix):
        return
    is_complex = matrix.is_complex()
    entries = torch.view_as_real(matrix.resolve_conj()) if is_complex else matrix
    try:
        checks.finite(caller, entries, sample_dims=2 + is_complex)
    except ValueError as error:
        raise InvalidMatrixError(*error.args) from None


@dataclass(frozen=True, kw_only=True, eq=False)
class Factorisation:
    """A factorisation of matrices (*, m, n), none of whose functions is differentiated.

    Attributes:
        name: what it is called in messages.
        solver: the name in torch.linalg of the batched solver, which can be given the factors to
            write to.
        options: what it is called with.
        blank: uninitialised factors, of the shapes, dtype, device and strides that it gives.
        errors: of (batch, m, n), their factors and two unit vectors, min(m, n) and n long: what
            should be zero, (batch, k), each beside the numbers that it is an error of, None where
            they are ones.
        fallbacks: what is tried for a single matrix that failed, in this order. What it returns is
            probed against the matrix that it has factorised, which it returns too.
        advice: the end of the message where nothing helps.
        closed: a closed form for matrices of at most `CLOSED_SIZE` rows and columns, which does not
            fail. On a CPU a solver is quicker for few of them.
    """

    name: str
    solver: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    blank: Callable[[Tensor], Factors]
    errors: Callable[[Tensor, Factors, Tensor, Tensor], Sequence[_Error]]
    fallbacks: Mapping[str, Callable[[Tensor], tuple[Tensor, Factors]]]
    advice: str
    closed: Callable[[Tensor], Factors] | None = None

    def __call__(
        self,
        matrix: Tensor,
        readable: bool = False,
        *,
        caller: str | None = None,
        read: bool = True,
        any_basis: bool = False,
    ) -> Factors:
        """The factors of (*, m, n), as constants to autograd, inside torch.func transforms too.

        On a CPU the batch is spread over the cores. Outside torch.compile, where values cannot be
        read, each sample's factors are probed, but not those of LAPACK that are finite: it says
        where it has failed. Samples that fail, or all of them where the solver raises, are
        factorised again in the ways of `fallbacks`, one after the other. Samples that are not
        finite give NaN.

        Args:
            matrix: to be given in a context of full precision.
            readable: whether its values are known to be readable; else it is asked.
            caller: in whose name matrices that are not finite are refused; None: they are not.
            read: whether a GPU may be waited for to see which samples have failed. If not, those
                are NaN.
            any_basis: whether the caller's result is the same for each choice of basis, so that the
                batch may decide between a closed form and a solver.

        Raises:
            DecompositionError: samples for which every way failed.
            InvalidMatrixError: a matrix that is not finite, where there is a caller.
        """
        matrix = matrix.detach()
        if not readable and unreadable(matrix):
            if transformed(matrix):
                return BelowTransforms.apply(matrix, self)
            refuse_onnx(self.name)
            return self.solve(matrix)
        if matrix.numel() == 0:
            return self.solve(matrix)
        finite = on_cpu(matrix) and sum_is_finite(matrix)
        if caller is not None and not finite:
            require_finite(caller, matrix)
        factors, solved = self.attempt(matrix, any_basis)
        if solved and finite and not self.doubtful(matrix, factors):
            return factors
        if self._by_closed_form(matrix, any_basis):
            return factors
        outer, read = matrix.ndim - 2, read or not solved
        if outer == 1:
            return self._probed(matrix, factors, read)
        flat = [each.reshape(-1, *each.shape[outer:]) for each in (matrix, *factors)]
        factors = self._probed(flat[0], tuple(flat[1:]), read)
        # Copies, as autograd treats views that a function returns specially.
        return tuple(each.reshape(*matrix.shape[:-2], *each.shape[1:]).clone() for each in factors)

    def solve(self, matrix: Tensor, **out: Factors) -> Factors:
        """What the solver gives, unprobed."""
        return getattr(torch.linalg, self.solver)(matrix, **self.options, **out)

    def attempt(self, matrix: Tensor, any_basis: bool = False) -> tuple[Factors, bool]:
        """The factors of (*, m, n), detached, readable and not empty, and whether all were found.

        They are NaN where the solver raised. Those that were found on a CPU of finite matrices are
        right unless they are `doubtful`.
        """
        if self._by_closed_form(matrix, any_basis):
            return cast(Any, self.closed)(matrix), True
        rows, columns = matrix.shape[-2:]
        batch, threads = 1, 1
        if matrix.numel() * min(rows, columns) >= PARALLEL_WORK and on_cpu(matrix):
            batch = matrix.shape[:-2].numel()
            threads = min(usable_threads(), batch)
        if threads == 1:
            try:
                return self.solve(matrix), True
            except LinAlgError:
                return tuple(f.fill_(torch.nan) for f in self.blank(matrix)), False
        factors = self.blank(matrix)
        given = matrix.reshape(batch, rows, columns)
        flat = [factor.view(batch, *factor.shape[matrix.ndim - 2 :]) for factor in factors]
        raised: list[slice] = []

        def solve(part: slice) -> None:
            out = tuple(factor[part] for factor in flat)
            try:
                self.solve(given[part], out=out)
            except LinAlgError:
                raised.append(part)
                for factor in out:
                    factor.fill_(torch.nan)

        # One call for each thread: between calls they wait for Python's lock.
        spread(solve, shares(batch, -(-batch // threads)), small=is_small(matrix))
        return factors, not raised

    def doubtful(self, matrix: Tensor, factors: Factors) -> bool:
        """Whether LAPACK may have failed without a word: where it divides, and has found NaN."""
        divided = max(matrix.shape[-2:]) >= DIVIDED_SIZE
        return divided and not all(map(sum_is_finite, factors))

    def _by_closed_form(self, matrix: Tensor, any_basis: bool) -> bool:
        rows, columns = matrix.shape[-2:]
        if rows > CLOSED_SIZE or columns > CLOSED_SIZE or self.closed is None or not any_basis:
            return False
        return matrix.numel() >= CLOSED_ELEMENTS or not on_cpu(matrix)

    def _probed(self, matrices: Tensor, factors: Factors, read: bool) -> Factors:
        """Factors of (batch, m, n), and those that are not right found in other ways."""
        failed = self.failed(matrices, factors)
        if not read and not on_cpu(matrices):
            return tuple(
                factor.masked_fill(failed.reshape(-1, *(1,) * (factor.ndim - 1)), torch.nan)
                for factor in factors
            )
        if not failed.any():
            return factors
        hopeless: list[int] = []
        for index in failed.nonzero()[:, 0].tolist():
            found = self._retry(matrices[index])
            if found is None:
                hopeless.append(index)
                continue
            for factor, part in zip(factors, found, strict=True):
                factor[index] = part
        if hopeless:
            rows, columns = matrices.shape[-2:]
            raise DecompositionError(
                f"no {self.name} found in {{samples}}, {rows} × {columns} in {matrices.dtype} on "
                f"{matrices.device}; tried {', '.join(self.fallbacks)}; {self.advice}",
                hopeless,
                len(matrices),
            )
        return factors

    def failed(self, matrices: Tensor, factors: Factors) -> Tensor:
        """Which of (batch, m, n) have factors that are not theirs. (batch,)"""
        rows, columns = matrices.shape[-2:]
        long = _probe_of(columns, matrices)
        short = long if columns <= rows else _probe_of(rows, matrices)
        found = self.errors(matrices, factors, short, long)
        masks = [_exceeds(error, numbers, max(rows, columns)) for error, numbers in found]
        return masks[0] if len(masks) == 1 else torch.stack(masks).any(0)

    def _retry(self, matrix: Tensor) -> Factors | None:
        if not matrix.isfinite().all():
            return tuple(factor.fill_(torch.nan) for factor in self.blank(matrix))
        for way in self.fallbacks.values():
            try:
                factorised, factors = way(matrix)
            except (LinAlgError, TypeError):  # TypeError: a device without the way's float64
                continue
            batch = tuple(factor[None] for factor in factors)
            if not bool(self.failed(factorised[None], batch)):
                return factors
        return None


def with_jitter(factorisation: Factorisation, matrix: Tensor) -> tuple[Tensor, Factors]:
    """The matrix with n · eps of its norm, times 1 to 2, added to its diagonal; with a warning.

    A way of last resort for (m, n): a small change of the matrix often lets a solver converge.
    """
    rows, columns = matrix.shape
    scale = matrix.abs().amax()
    share = rank_tolerance(max(rows, columns), matrix.dtype)
    jitter = share * torch.linalg.matrix_norm(matrix / scale) * scale
    ramp = torch.linspace(1, 2, min(rows, columns), dtype=jitter.dtype, device=matrix.device)
    jittered = matrix.clone()
    jittered.diagonal().add_(jitter * ramp)
    factors = factorisation.solve(jittered)
    batch = tuple(factor[None] for factor in factors)
    if not bool(factorisation.failed(jittered[None], batch)):
        warnings.warn(
            f"the {factorisation.name} of a {rows} × {columns} matrix in {matrix.dtype} succeeded "
            f"only with {2 * jitter.item():.1e} added to its diagonal",
            RuntimeWarning,
            stacklevel=3,
        )
    return jittered, factors


def sum_is_finite(values: Tensor) -> bool:
    """Whether all numbers are finite, in one pass; a sum may overflow where they are."""
    return cmath.isfinite(values.sum().item())


def _probe_of(size: int, like: Tensor) -> Tensor:
    """A unit vector (size,) without symmetries, which shows a wrong result. Not to be changed."""
    return _probe(size, like.dtype).to(like.device)


@lru_cache(maxsize=64)
def _probe(size: int, dtype: torch.dtype) -> Tensor:
    # Kept on the CPU alone: a GPU's would be written on one stream and read on another.
    x = torch.arange(1, size + 1, dtype=dtype.to_real(), device="cpu").mul(2.4).cos()
    return (x / x.norm()).to(dtype)


def _largest(values: Tensor) -> Tensor:
    """The largest magnitude of each row (*, n); NaN where there is one. n is not 0."""
    # In one operation: on so few numbers it costs what its call costs.
    return torch.linalg.vector_norm(values, torch.inf, dim=-1)


def _exceeds(error: Tensor, numbers: Tensor | None, size: int) -> Tensor:
    """Whether an error (*, n) is more than rounding explains in the largest number of (*, m)."""
    precision = torch.finfo(error.dtype)
    tolerance = PROBE_SLACK * size * precision.eps
    # Numbers below the least normal one are rounded to the same absolute error as that.
    scale = 1 if numbers is None else _largest(numbers).clamp_min(precision.tiny)
    # This way round so that NaN counts as an error.
    return ~(_largest(error) <= tolerance * scale)


class BelowTransforms(Function):
    """(matrix, function) → `function(matrix)`, constants to autograd.

    An autograd function sees the plain tensors below the levels of torch.func's transforms, which
    can be probed and spread over the cores. Its rule for vmap takes the batch as another leading
    dimension, as `function` takes any number of them.
    """

    @staticmethod
    def forward(matrix: Tensor, function: Callable[[Tensor], Factors]) -> Factors:
        return function(matrix)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None]:
        return None, None

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any,
        in_dims: tuple[int, None],
        matrix: Tensor,
        function: Callable[[Tensor], Factors],
    ) -> tuple[Factors, tuple[int, ...]]:
        factors = BelowTransforms.apply(matrix.movedim(in_dims[0], 0), function)
        return factors, (0,) * len(factors)
