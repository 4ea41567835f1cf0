"""Refusals of bad tensors, each naming the function, the samples and the remedy.

Most of them read values. Where there are none to read, while a graph is traced or under vmap (see
`transforms.unreadable`), callers leave them out.
"""

import cmath
import contextlib
import math
import operator
import sys
from collections.abc import Sequence
from numbers import Real
from typing import Any, SupportsIndex, cast

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from covpool.linalg.precision import on_cpu
from covpool.linalg.spectrum import name_samples, rank_tolerance
from covpool.linalg.transforms import unreadable

ROUNDING_SLACK = 16
"""How many roundings per row a product may be off by."""

LARGEST_TOLERANCE = 0.05
"""What passes as rounding at most, in half precision too, where n roundings exceed everything."""

EARLIER_DTYPE = {torch.float64: torch.float32, torch.float32: torch.bfloat16}
"""The lowest precision in which a matrix of the dtype may have been computed before it was
converted. Its two triangles differ by the roundings of that: those of a float32 kernel matrix in
float64, of a bfloat16 product in float32."""

COMPLEX_DTYPES = (torch.complex64, torch.complex128)
REAL_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tensor(caller: str, value: object) -> None:
    """Refuse arrays, lists and whatever else is no tensor, and sparse tensors."""
    if not isinstance(value, Tensor):
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise TypeError(
            f"{caller} needs a torch.Tensor, got {kind}; torch.as_tensor makes one of arrays and "
            "lists of numbers"
        )
    if value.layout is not torch.strided:
        raise ValueError(
            f"{caller} needs a dense tensor, got layout {value.layout}; convert it by to_dense()"
        )


def square(caller: str, matrix: Tensor, *, complex_too: bool = False) -> None:
    tensor(caller, matrix)
    shape = matrix.shape
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise ValueError(f"{caller} needs square matrices (*, n, n), got shape {tuple(shape)}")
    floating(caller, matrix, complex_too=complex_too)


def floating(caller: str, values: Tensor, *, complex_too: bool = False) -> None:
    tensor(caller, values)
    if values.dtype in REAL_DTYPES or (complex_too and values.dtype in COMPLEX_DTYPES):
        return
    kind = "real, complex64 or complex128" if complex_too else "real"
    remedy = "" if values.is_complex() else "; convert it, as by float()"
    raise ValueError(f"{caller} needs a {kind} floating-point tensor, got {values.dtype}{remedy}")


def features(caller: str, x: Tensor, check_finite: bool) -> tuple[Tensor, bool]:
    """(*, C, H, W) or (*, C, N) → (*, C, N), and whether its values can be read.

    Refused where there is nothing to pool or, if asked, where values are not finite.
    """
    floating(caller, x, complex_too=True)
    if x.ndim < 2:
        raise ValueError(f"{caller} needs features (*, C, H, W) or (*, C, N), got {tuple(x.shape)}")
    positions = x.flatten(-2) if x.ndim >= 4 else x
    if 0 in positions.shape[-2:]:
        raise ValueError(f"{caller}: no channels or no positions in shape {tuple(x.shape)}")
    readable = not unreadable(x)
    if check_finite and readable and not cmath.isfinite(x.detach().sum().item()):
        finite(caller, positions, sample_dims=2)
    return positions, readable


def compute_dtype(caller: str, dtype: torch.dtype | None) -> None:
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(
            f"{caller}: compute_dtype must be torch.float32, torch.float64 or None, got {dtype!r}"
        )


def parameter(caller: str, name: str, value: Any, batch: torch.Size) -> Tensor | float:
    """A real number for each matrix of the batch; `finite` looks at the values of tensors.

    A tensor may have one or two trailing dimensions of size 1 more, where it would stand beside
    eigenvalues (*, n) or matrices (*, n, n); they are taken off.

    Raises:
        TypeError: an array or a list.
        ValueError: not real, not finite, or of a shape that does not broadcast to the batch.
    """
    if isinstance(value, Tensor):
        if value.is_complex() or value.dtype == torch.bool:
            raise ValueError(f"{caller}: the {name} must be real, got {value.dtype}")
        shape = tuple(value.shape)
        for extra in range(3):
            kept = shape[: len(shape) - extra]
            taken = shape[len(kept) :]
            if extra <= len(shape) and taken == (1,) * extra and _broadcasts(kept, batch):
                return value.reshape(kept)
        raise ValueError(
            f"{caller}: {name} of shape {shape} does not broadcast to the batch shape "
            f"{tuple(batch)}; give one number for each matrix, or expand the matrices first"
        )
    if value is None or isinstance(value, bool | str):
        raise ValueError(f"{caller}: the {name} must be a number or a tensor, got {value!r}")
    if not isinstance(value, Real):
        tensor(f"{caller}: the {name}", value)
    number: Any = value if isinstance(value, int) else float(value)
    if not abs(number) <= sys.float_info.max:  # this way round so that NaN is refused
        raise ValueError(f"{caller}: the {name} must be finite, got {value!r}")
    return float(number)


def floor(caller: str, value: Any, batch: torch.Size) -> Tensor | float:
    """A floor for each matrix of the batch, as `parameter` takes it, and without a gradient.

    Raises:
        ValueError: as `parameter`; a number that is not positive, a tensor that needs a gradient.
    """
    found = parameter(caller, "floor", value, batch)
    if isinstance(found, Tensor):
        if found.requires_grad or _has_tangent(found):
            raise ValueError(
                f"{caller}: the floor is a constant, got a tensor that needs a gradient; detach "
                "it, or learn it as the bound of matrix_function(A, 'clamp_min')"
            )
    elif not found > 0:
        raise ValueError(f"{caller}: the floor must be positive, got {value!r}")
    return found


def _has_tangent(value: Tensor) -> bool:
    # torch.compile takes no forward mode.
    return not torch.compiler.is_compiling() and unpack_dual(value).tangent is not None


def is_positive(values: Tensor) -> Tensor:
    """Which numbers are positive and finite."""
    return (values > 0) & values.isfinite()


def positive(caller: str, values: Tensor) -> None:
    """Refuse numbers, one for each sample, that are not positive and finite."""
    bad = ~is_positive(values)
    if bad.any():
        raise ValueError(
            f"{caller} must be positive and finite in {values.dtype}, got "
            f"{values[bad].flatten()[0].item():g}{name_samples(bad)}; one below its least normal "
            "number counts as zero"
        )


def _broadcasts(shape: tuple[int, ...], batch: torch.Size) -> bool:
    return len(shape) <= len(batch) and all(
        size in (1, wanted) for size, wanted in zip(shape[::-1], batch[::-1], strict=False)
    )


def full_rank(
    caller: str,
    rank: Tensor,
    needed: int,
    size: int,
    restricted: bool | Tensor = True,
    floor_helps: bool = True,
) -> None:
    """Refuse ranks (*) below the needed one, in the samples where `restricted` holds.

    A floor helps functions of positive eigenvalues alone: it would turn the sign of others.
    """
    if rank.numel() == 0:
        return
    bad = (rank < needed) & restricted
    if bad.any():
        lowest = int(rank[bad].min())
        floor = "give a floor (of method 'exact'), " if floor_helps else ""
        raise ValueError(
            f"{caller}: matrix singular{name_samples(bad)}; the lowest numerical rank is "
            f"{lowest} of {size} and the function is not defined at zero; add a multiple of the "
            f"identity, {floor}or pass "
            "check=False to apply it on the range alone; if rows and columns (a covariance's "
            "features) differ in size by many orders, scale them to similar size"
        )


def _tolerance(size: int, dtype: torch.dtype) -> float:
    return min(ROUNDING_SLACK * rank_tolerance(size, dtype), LARGEST_TOLERANCE)


def finite(caller: str, tensor: Tensor, sample_dims: int) -> None:
    """Refuse NaN and infinities; the last `sample_dims` dimensions make up one sample."""
    # A sum is one pass over the tensor; it may overflow where no element is infinite.
    if cmath.isfinite(tensor.detach().sum().item()) or tensor.isfinite().all():
        return
    bad = ~tensor.isfinite()
    if sample_dims:
        bad = bad.flatten(-sample_dims).any(-1)
    raise ValueError(
        f"{caller}: NaN or infinite values{name_samples(bad)}; find their cause upstream "
        "(a diverged loss, float16 overflow, a division by zero)"
    )


def any_of(masks: Sequence[Tensor]) -> bool:
    """Whether any element of any mask is True, in one read: on a GPU each would synchronise."""
    if len(masks) < 2:
        return bool(masks) and bool(masks[0].any())
    return bool(torch.stack([mask.any() for mask in masks]).any())


def extent(matrix: Tensor) -> tuple[float, float]:
    """The smallest and the largest of the largest magnitudes of (*, m, n), detached and not empty.

    NaN where there is one.
    """
    least, most = matrix.abs().amax((-2, -1)).aminmax()
    return least.item(), most.item()


def exactly_symmetric(matrix: Tensor) -> bool:
    """Whether (*, n, n), detached, are to the last digit; a GPU is not asked and has False."""
    return on_cpu(matrix) and torch.equal(matrix, matrix.mH)


def nearly_symmetric(matrix: Tensor, symmetric: Tensor, least: float) -> bool:
    """Whether matrices (*, n, n), detached, on a CPU, plainly pass for symmetric: see `entries`.

    Args:
        symmetric: their symmetric part.
        least: what no matrix's largest magnitude is below.
    """
    relative, absolute = _asymmetry(matrix.shape[-1], matrix.dtype)
    apart = matrix - symmetric
    ends = (torch.view_as_real(apart) if apart.is_complex() else apart).aminmax()
    # It is half way to the transpose, and a complex number at most √2 times its larger part.
    largest = 3 * max(-ends.min.item(), ends.max.item())
    return largest <= max(relative * least, absolute)


def _asymmetry(size: int, dtype: torch.dtype) -> tuple[float, float]:
    """What passes for rounding, relative to the largest entry, and beside numbers of order one."""
    earlier = EARLIER_DTYPE.get(dtype.to_real(), dtype)
    return _tolerance(size, earlier), _tolerance(size, dtype)


def entries(caller: str, matrix: Tensor, symmetric: bool = False) -> tuple[float, float]:
    """Refuse matrices (*, n, n), detached and not empty, that are not finite or not symmetric.

    Symmetric is what differs from its transpose by no more than some rounding explains. The
    symmetric part is computed with, which is off by less than the matrix itself is. So what passes
    is the rounding of the lowest precision that the matrix may have had (`EARLIER_DTYPE`), relative
    to its largest entry, and that of numbers of order one: a difference of such matrices that is
    zero to rounding has no symmetry left.

    Args:
        symmetric: whether they are known to be, to the last digit.

    Returns:
        The smallest and the largest of the batch's largest magnitudes.
    """
    if symmetric and (found := extent(matrix))[1] < math.inf:
        return found
    scale = matrix.abs().amax((-2, -1))
    difference = (matrix - matrix.mH).abs().amax((-2, -1))
    # In one read: on a GPU each would synchronise.
    least, most, apart = torch.stack([*scale.aminmax(), difference.amax()]).tolist()
    relative, absolute = _asymmetry(matrix.shape[-1], matrix.dtype)
    # At most one look at each sample: NaN and infinities make the difference NaN or infinite.
    if not apart <= max(relative * least, absolute) or most == math.inf:
        finite(caller, matrix, sample_dims=2)
        _refuse_asymmetric(caller, matrix, scale, difference, relative, absolute)
    return least, most


def _refuse_asymmetric(
    caller: str,
    matrix: Tensor,
    scale: Tensor,
    difference: Tensor,
    relative: float,
    absolute: float,
) -> None:
    scale = scale.clamp_min(torch.finfo(matrix.dtype).tiny)
    allowed = (relative * scale).clamp_min(absolute)
    bad = difference > allowed
    if bad.any():
        # Divided before the difference, which overflows where the largest entries are opposite.
        unit = matrix / scale[..., None, None]
        worst = (unit - unit.mH).abs().max().item()
        kind, turned = ("Hermitian", "Aᴴ") if matrix.is_complex() else ("symmetric", "Aᵀ")
        remedy = f"pass (A + {turned})/2 if that is rounding"
        transposed = (matrix - matrix.mT).abs().amax((-2, -1))
        if (transposed <= allowed)[bad].all():  # of complex matrices alone
            remedy += "; it equals Aᵀ: the covariance of complex X is X Xᴴ, not X Xᵀ"
        raise ValueError(
            f"{caller}: matrix not {kind}{name_samples(bad)}; the largest |A − {turned}| is "
            f"{worst:.1e} of the largest entry; {remedy}"
        )


def _rounding(largest: Tensor, size: int, dtype: torch.dtype, unit: Tensor | None) -> Tensor:
    """What passes as rounding of matrices (*) of that largest magnitude, in units (*, 1, 1) or 1.

    Numbers below the least normal one are rounded to the same absolute error as that.
    """
    tiny = torch.finfo(dtype).tiny
    least = tiny if unit is None else tiny / unit[..., 0, 0]
    return _tolerance(size, dtype) * largest.clamp_min(least)


def positive_semidefinite(
    caller: str, eigenvalues: Tensor, input_dtype: torch.dtype, unit: Tensor | None
) -> None:
    """Refuse eigenvalues below zero by more than rounding explains, in the input's dtype or in that
    of the computation.

    Args:
        unit: (*, 1, 1), of the eigenvalues, see `range_unit`; None: 1.
    """
    if eigenvalues.numel() == 0 or (lowest := eigenvalues[..., 0]).amin() >= 0:
        return
    largest = eigenvalues.abs().amax(-1)
    coarser = _coarser(input_dtype, eigenvalues.dtype)
    bad = lowest < -_rounding(largest, eigenvalues.shape[-1], coarser, unit)
    if bad.any():
        _refuse_indefinite(caller, bad, lowest, unit)


def _coarser(*dtypes: torch.dtype) -> torch.dtype:
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def positive_semidefinite_matrix(
    caller: str, matrix: Tensor, input_dtype: torch.dtype, unit: Tensor | None
) -> None:
    """The same for a method that computes no eigenvalues: by a Cholesky factorisation."""
    if matrix.numel() == 0:
        return
    symmetric = matrix.detach()
    # A zero matrix has no factorisation; the shift lets it pass.
    normalised, largest = _normalised(symmetric)
    coarser = _coarser(input_dtype, matrix.dtype)
    shift = _rounding(largest, matrix.shape[-1], coarser, unit) / largest
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    bad = torch.linalg.cholesky_ex(normalised + shift[..., None, None] * identity).info != 0
    if bad.any():
        lowest = torch.linalg.eigvalsh(symmetric)[..., 0]
        _refuse_indefinite(caller, bad, lowest, unit)


def positive_definite_matrix(
    caller: str,
    matrix: Tensor,
    input_dtype: torch.dtype,
    unit: Tensor | None,
    floor_helps: bool = True,
) -> None:
    """Refuse matrices that are indefinite or numerically singular, by a Cholesky factorisation."""
    if matrix.numel() == 0:
        return
    size = matrix.shape[-1]
    normalised, _ = _normalised(matrix.detach())
    shift = rank_tolerance(size, matrix.dtype)
    identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    bad = torch.linalg.cholesky_ex(normalised - shift * identity).info != 0
    if bad.any():
        positive_semidefinite_matrix(caller, matrix, input_dtype, unit)
        rank = (torch.linalg.eigvalsh(normalised) > shift).sum(-1)
        rank = torch.where(bad, rank.clamp_max(size - 1), size)
        full_rank(caller, rank, size, size, floor_helps=floor_helps)


def _normalised(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix over its largest magnitude, so that no factor is subnormal, and that (*) or 1."""
    largest = matrix.abs().amax((-2, -1))
    largest = torch.where(largest > 0, largest, 1)
    return matrix / largest[..., None, None], largest


def _refuse_indefinite(caller: str, bad: Tensor, lowest: Tensor, unit: Tensor | None) -> None:
    lowest = lowest if unit is None else lowest * unit[..., 0, 0]
    raise ValueError(
        f"{caller}: matrix not positive semi-definite{name_samples(bad)}; the lowest "
        f"eigenvalue is {lowest[bad].min().item():.3g}; add a multiple of the identity, or pass "
        "check=False to go on regardless"
    )


def require_integer(name: str, value: object, lowest: int) -> None:
    """A ValueError that names the constant unless it is a whole number of at least `lowest`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ValueError(f"{name} must be a whole number of at least {lowest}, got {value!r}")


def integer(name: str, value: object, lowest: int) -> int:
    """The same of an argument, as an int: those of other libraries, as numpy.int64, are taken too.

    Constants of rows are not converted; they are written to files as they are.
    """
    if not isinstance(value, int | Tensor):
        with contextlib.suppress(TypeError):
            value = operator.index(cast(SupportsIndex, value))
    require_integer(name, value, lowest)
    return cast(int, value)
