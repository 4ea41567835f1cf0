"""Refusals of bad tensors, each naming the function, the samples and the remedy.

The checks read values. Where there are none to read, while a graph is traced or under vmap, they
are left out.
"""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from covpool.linalg.spectrum import rank_tolerance

SYMMETRY_SLACK = 16
"""How many roundings per row two products that should be equal may differ by."""

LARGEST_TOLERANCE = 0.05
"""What passes as rounding at most, in half precision too, where n roundings exceed everything."""


def unreadable(tensor: Tensor) -> bool:
    # torch has no public test for a tensor inside a functorch transform (2.11 to 2.15).
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # pyright: ignore[reportAttributeAccessIssue]
    return (
        torch.compiler.is_compiling()
        or tensor.is_meta
        or isinstance(tensor, FakeTensor)
        or wrapped(tensor)
    )


def name_samples(bad: Tensor) -> str:
    """'samples [3, 17] of 64', from a mask over the batch; '' where there is no batch."""
    if bad.ndim == 0:
        return ""
    found = bad.nonzero().tolist()
    shown = [index[0] if bad.ndim == 1 else tuple(index) for index in found[:8]]
    more = ", …" if len(found) > 8 else ""
    listed = ", ".join(map(str, shown))
    return f" in {len(found)} of {bad.numel()} samples: [{listed}{more}]"


def square(caller: str, matrix: Tensor) -> None:
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(
            f"{caller} needs square matrices (*, n, n), got shape {tuple(matrix.shape)}"
        )
    floating(caller, matrix)


def floating(caller: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ValueError(f"{caller} needs a real floating-point tensor, got {tensor.dtype}")


def compute_dtype(caller: str, dtype: torch.dtype | None) -> None:
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(
            f"{caller}: compute_dtype must be torch.float32, torch.float64 or None, got {dtype!r}"
        )


def _tolerance(size: int, dtype: torch.dtype) -> float:
    return min(SYMMETRY_SLACK * rank_tolerance(size, dtype), LARGEST_TOLERANCE)


def finite(caller: str, tensor: Tensor, sample_dims: int) -> None:
    """Refuse NaN and infinities; the last `sample_dims` dimensions make up one sample."""
    if unreadable(tensor):
        return
    # A sum is one pass over the tensor; it may overflow where no element is infinite.
    if tensor.detach().sum().isfinite() or tensor.isfinite().all():
        return
    bad = ~tensor.isfinite().flatten(-sample_dims).all(-1)
    raise ValueError(
        f"{caller}: NaN or infinite values{name_samples(bad)}; find their cause upstream "
        "(a diverged loss, float16 overflow, a division by zero)"
    )


def symmetric(caller: str, matrix: Tensor) -> None:
    if unreadable(matrix) or matrix.numel() == 0:
        return
    scale = matrix.detach().abs().amax((-2, -1))
    difference = (matrix - matrix.mT).detach().abs().amax((-2, -1))
    bad = difference > _tolerance(matrix.shape[-1], matrix.dtype) * scale
    if bad.any():
        worst = (difference / scale.clamp_min(torch.finfo(matrix.dtype).tiny)).max().item()
        raise ValueError(
            f"{caller}: matrix not symmetric{name_samples(bad)}; the largest |A − Aᵀ| is "
            f"{worst:.1e} of the largest entry; pass (A + Aᵀ)/2 if that is rounding"
        )


def positive_semidefinite(caller: str, eigenvalues: Tensor, input_dtype: torch.dtype) -> None:
    """Refuse eigenvalues below zero by more than rounding in the input's dtype explains."""
    if unreadable(eigenvalues) or eigenvalues.numel() == 0:
        return
    lowest = eigenvalues[..., 0]
    tolerance = _tolerance(eigenvalues.shape[-1], input_dtype)
    bad = lowest < -tolerance * eigenvalues.abs().amax(-1)
    if bad.any():
        _refuse_indefinite(caller, bad, lowest)


def positive_semidefinite_matrix(caller: str, matrix: Tensor, input_dtype: torch.dtype) -> None:
    """The same for a method that computes no eigenvalues: by a Cholesky factorisation."""
    if unreadable(matrix) or matrix.numel() == 0:
        return
    symmetric = matrix.detach()
    shift = _tolerance(matrix.shape[-1], input_dtype) * symmetric.abs().amax((-2, -1))
    # A zero matrix has no factorisation; any positive shift lets it pass.
    shift = torch.where(shift > 0, shift, 1)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    bad = torch.linalg.cholesky_ex(symmetric + shift[..., None, None] * identity).info != 0
    if bad.any():
        lowest = torch.linalg.eigvalsh(symmetric)[..., 0]
        _refuse_indefinite(caller, bad, lowest)


def _refuse_indefinite(caller: str, bad: Tensor, lowest: Tensor) -> None:
    raise ValueError(
        f"{caller}: matrix not positive semi-definite{name_samples(bad)}; the lowest "
        f"eigenvalue is {lowest[bad].min().item():.3g}; add a multiple of the identity, or pass "
        "check=False to go on regardless"
    )
