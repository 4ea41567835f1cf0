"""How far a loss depends on the gauge, signs and bases of tied spaces, and what is lost at ties."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from covpool.linalg import checks
from covpool.linalg.checks import require_integer
from covpool.linalg.decompositions import eigh, svd
from covpool.linalg.spectrum import name_samples, rank_tolerance
from covpool.linalg.tables import choose

ALARM = 1e-3
"""What `str` counts as dependent: far above rounding, far below 1, where real dependence lies."""


@dataclass(frozen=True, eq=False)
class GaugeDependence:
    """What `gauge_dependence` found, sample by sample.

    Attributes:
        sign: (*), the share of the gradient that changes with the vectors' signs, which of complex
            vectors are phases.
        rotation: (*), the share that changes with the basis within tied eigenspaces.
        lost: (*), the share of the matrix's gradient that `eigh` or `svd` does not give at ties,
            though the loss has it: see `gauge_dependence`.
        largest_multiplicity: (*), the size of the largest tied eigenspace, 1 if there is no tie.
        tolerance: the relative gap up to which neighbours counted as tied.
    """

    sign: Tensor
    rotation: Tensor
    lost: Tensor
    largest_multiplicity: Tensor
    tolerance: float

    def __str__(self) -> str:
        lines = [
            f"gauge dependence of {self.sign.numel()} samples, ties at a relative gap of at most "
            f"{self.tolerance:.1e}:"
        ]
        for share, what, alarm, remedy in (
            (
                self.sign,
                "signs     change up to {:.1e} of the gradient",
                "the loss depends on them",
                "use what is even in each vector and blind to phases, such as v vᴴ or |v|",
            ),
            (
                self.rotation,
                "rotations change up to {:.1e} of the gradient",
                "the loss depends on them",
                "use spectral functions, or projections V Vᵀ on ties",
            ),
            (
                torch.where(self.rotation > ALARM, 0, self.lost),
                "the gradient at ties lacks up to {:.1e}",
                "values and vectors meet in the loss",
                "use a function of the matrix, such as matrix_power, in place of the decomposition",
            ),
        ):
            worst = share.max().item() if share.numel() else 0.0
            line = "  " + what.format(worst)
            if worst > ALARM:
                line += f": {alarm}{name_samples(share > ALARM)}; {remedy}"
            lines.append(line)
        multiplicity = self.largest_multiplicity
        largest = multiplicity.max().item() if multiplicity.numel() else 0
        lines.append(f"  largest multiplicity {largest:.0f}")
        return "\n".join(lines)


def gauge_dependence(
    loss: Callable[..., Tensor],
    matrix: Tensor,
    decomposition: Literal["eigh", "svd"] = "eigh",
    *,
    tolerance: float | None = None,
    draws: int = 4,
    seed: int = 0,
) -> GaugeDependence:
    """How much of a loss's gradient depends on arbitrary choices of the decomposition.

    Eigenvectors are determined up to their signs, complex ones up to their phases, and, where
    eigenvalues are tied, up to a rotation (complex: a unitary matrix) of their eigenspace: the
    gauge. A loss that depends on it has no derivative at a tie, and what `torch.linalg.eigh`
    returns as NaN or as a huge number there no kernel repairs: the loss itself must change. With V
    replaced by V Q, where Q holds signs or phases or rotates tied columns, the gradient G(V) of a
    loss that does not depend on the gauge becomes G(V) Q. Measured is

        max over Q of ‖G(V Q) Qᴴ − G(V)‖ / max(‖G(V)‖, ‖G(V Q)‖)

    per sample, in the Frobenius norm: about finfo(dtype).eps without dependence (times the loss's
    own condition; up to the relative gap where the tie is not exact), about 1 with it, 0 where
    there is no gradient.

    A loss that does not depend on the gauge can lose its gradient at ties all the same. Let it be a
    function of V f(Λ) Vᴴ. Where A moves along v vᴴ, v in a tied space, its derivative is the
    gradient of the eigenvalue whose vector is v. So the gradients of the eigenvalues in one basis
    do not tell the derivatives along the vectors of another, and no backward of `eigh` can know
    what f′ is between tied vectors. `lost` compares, with B = Vᴴ(gradient of A)V and g(V) the
    gradient of the eigenvalues,

        max over Q of ‖diag(QᴴBQ) − g(V Q)‖ / max(‖B‖, ‖g(V Q)‖),

    both being the derivatives along the vectors of V Q. The remedy is a function of the matrix,
    `matrix_sqrt`, `matrix_power`, `matrix_log`, which is exact at ties, in place of the
    decomposition. It means nothing where `rotation` is large: such a loss has no derivative.

    Args:
        loss: takes the eigenvalues (*, n) and eigenvectors (*, n, n), or for "svd" U (*, m, k), σ
            and Vᴴ (*, k, n), k = min(m, n), of the whole batch, and returns a tensor, of which the
            sum is differentiated. It must be deterministic: no dropout.
        matrix: (*, n, n) symmetric or Hermitian, of which the lower triangle is read, or (*, m, n)
            for "svd"; what `eigh` and `svd` take.
        decomposition: "eigh" or "svd".
        tolerance: the gap, as a share of the largest |λ| or σ, up to which neighbouring values
            count as tied; √finfo(dtype).eps by default, below which rounding takes more than half
            of the vectors' digits.
        draws: signs are drawn in this many pairs of opposite ones, so that each vector is flipped
            at least once, and as many rotations.
        seed: of the draws; torch's own generators are not touched.

    Returns:
        The shares of each sample, with a readable `str`.

    For "svd" U and V turn together, and apart within the space of zero singular values. The freedom
    to choose U's vectors for zeros outside their own span (where m > n, or V's where m < n) is not
    looked at, nor is what is lost within the space of zeros, which only changes of the rank enter.
    A loss that couples the samples of a batch (batch statistics) shows one sample's
    dependence in others too.

    Raises:
        ValueError: an unknown decomposition, a number out of range, a loss that is not
            differentiable; and what `eigh` and `svd` refuse.
    """
    choose("decomposition", decomposition, {"eigh": eigh, "svd": svd})
    require_integer("draws", draws, 1)
    require_integer("seed", seed, 0)
    checks.floating("gauge_dependence", matrix, complex_too=True)
    leaf = matrix.detach().requires_grad_()
    with torch.enable_grad():
        if decomposition == "eigh":
            values, vectors = eigh(leaf)
            factors = [vectors]
        else:
            u, values, vh = svd(leaf, full_matrices=False)
            factors = [u, vh.mH]
    width = torch.finfo(values.dtype).eps ** 0.5 if tolerance is None else tolerance
    if isinstance(width, bool | str) or not 0 <= width < float("inf"):
        raise ValueError(f"tolerance must be a non-negative number, got {tolerance!r}")

    outputs = [*factors, values]
    bases, values = [factor.detach() for factor in factors], values.detach()
    tied = _tied(values, width)
    zero, null = torch.zeros_like(tied), torch.zeros_like(values, dtype=torch.bool)
    if decomposition == "svd":
        limit = rank_tolerance(max(matrix.shape[-2:]), values.dtype) * values[..., :1]
        null = values <= limit
        zero = null[..., :, None] & null[..., None, :]
        tied = (tied & (null[..., :, None] == null[..., None, :])) | zero

    dtype = bases[0].dtype
    identity = torch.diag_embed(torch.ones_like(values, dtype=dtype))
    gradients, of_values = _gradient(loss, values, bases, [identity] * len(bases))
    plain = _joined(gradients)
    (whole,) = torch.autograd.grad(outputs, leaf, [*gradients, of_values])
    inner = bases[0].mH @ whole @ bases[-1]

    def shares(turns: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Of the vectors' gradient, what changes; of the matrix's, what is lost."""
        turned, of_values = _gradient(loss, values, bases, turns)
        along = (turns[0].mH @ inner @ turns[-1]).diagonal(dim1=-2, dim2=-1).real
        kept = torch.where(null, 0, along), torch.where(null, 0, of_values)
        return _share(_joined(turned), plain), _share(*kept, whole.flatten(-2))

    generator = torch.Generator(device=values.device).manual_seed(seed)
    sign = rotation = lost = values.new_zeros(values.shape[:-1])
    for _ in range(draws):
        flip = torch.diag_embed(_phases(values, generator, dtype))
        for turn in (flip, -flip):
            sign = torch.maximum(sign, shares([turn] * len(bases))[0])
        turn = _rotation(tied, generator, dtype)
        own = torch.where(zero, _rotation(zero, generator, dtype), turn)
        changed, lacking = shares([turn, own][: len(bases)])
        rotation, lost = torch.maximum(rotation, changed), torch.maximum(lost, lacking)
    # The column of zeros serves matrices without any eigenvalue.
    multiplicity = torch.nn.functional.pad(tied.sum(-1), (0, 1)).amax(-1)
    return GaugeDependence(sign, rotation, lost, multiplicity, width)


def _joined(gradients: list[Tensor]) -> Tensor:
    # The zero serves matrices without any vectors.
    flat = [gradient.flatten(-2) for gradient in gradients]
    return torch.nn.functional.pad(torch.cat(flat, -1), (0, 1))


def _share(one: Tensor, other: Tensor, *whole: Tensor) -> Tensor:
    """The distance of two vectors (*, p) as a share of the larger, or of what they are part of."""
    everything = [torch.nn.functional.pad(vector, (0, 1)) for vector in (one, other, *whole)]
    # Scaled by the largest entry, so that squares neither overflow nor vanish.
    scale = torch.stack([vector.abs().amax(-1) for vector in everything]).amax(0)[..., None]
    scale = torch.where(scale > 0, scale, 1)
    sizes = [(vector / scale).norm(dim=-1) for vector in everything]
    size = torch.stack(sizes).amax(0)
    return (one / scale - other / scale).norm(dim=-1) / torch.where(size > 0, size, 1)


def _gradient(
    loss: Callable[..., Tensor], values: Tensor, bases: list[Tensor], turns: list[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """The loss's gradient at the turned vectors, turned back, U's and V's; that of the values."""
    turned = [(basis @ turn).requires_grad_() for basis, turn in zip(bases, turns, strict=True)]
    values = values.detach().requires_grad_()
    with torch.enable_grad():
        if len(bases) == 1:
            result = loss(values, turned[0])
        else:
            result = loss(turned[0], values, turned[1].mH)
        found: Sequence[Tensor | None] = [None] * len(turned)
        if isinstance(result, Tensor) and result.requires_grad:
            found = torch.autograd.grad(result.sum(), [*turned, values], allow_unused=True)
        if all(gradient is None for gradient in found[: len(turned)]):
            what = "one without a gradient" if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(
                "gauge_dependence: the loss must return a tensor that depends on the vectors and "
                f"is differentiable, got {what}"
            )
    *gradients, of_values = (
        torch.zeros_like(leaf) if gradient is None else gradient
        for gradient, leaf in zip(found, [*turned, values], strict=True)
    )
    return [g @ turn.mH for g, turn in zip(gradients, turns, strict=True)], of_values


def _tied(values: Tensor, tolerance: float) -> Tensor:
    """(*, n, n), whether a chain of gaps within the tolerance joins two of the sorted values."""
    gap = values.diff(dim=-1).abs()
    largest = torch.nn.functional.pad(values.abs(), (0, 1)).amax(-1, keepdim=True)
    breaks = torch.nn.functional.pad(gap > tolerance * largest, (1, 0)) if values.shape[-1] else gap
    cluster = breaks.cumsum(-1)
    return cluster[..., :, None] == cluster[..., None, :]


def _phases(values: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """A random sign for each value, or a random phase e^(iφ) where the dtype is complex."""
    shape, device = values.shape, values.device
    if not dtype.is_complex:
        return (2 * torch.randint(0, 2, shape, generator=generator, device=device) - 1).to(dtype)
    angle = torch.rand(shape, generator=generator, dtype=values.dtype, device=device)
    return torch.polar(torch.ones_like(angle), 2 * math.pi * angle)


def _rotation(tied: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Uniformly random orthogonal or unitary matrices within ties, the identity elsewhere."""
    draw = torch.randn(tied.shape, generator=generator, dtype=dtype, device=tied.device)
    identity = torch.eye(tied.shape[-1], dtype=dtype, device=tied.device)
    several = tied & (tied.sum(-1, keepdim=True) > 1)
    # The QR factors of a block-diagonal matrix are block-diagonal; a positive diagonal of R makes
    # Q uniformly distributed (Mezzadri, Notices of the AMS 54, 2007).
    q, r = torch.linalg.qr(torch.where(several, draw, identity))
    phases = r.diagonal(dim1=-2, dim2=-1).sgn()
    q = q * torch.where(phases == 0, 1, phases)[..., None, :]
    return torch.where(several, q, identity)
