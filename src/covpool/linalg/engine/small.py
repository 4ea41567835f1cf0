"""Decompositions of matrices of up to 3 × 3 by closed forms, the batch at a time.

A solver is called for one matrix after the other; these are a hundred or so operations on the whole
batch. Eigenvalues are right to rounding relative to the matrix's norm and eigenvectors are
orthonormal to rounding, at ties, close to them and at deficient rank too.

Of a 3 × 3 matrix, centred and scaled, the characteristic cubic by itself would lose half of the
digits at a tie. Of the three eigenvalues it gives the largest or the smallest alone, whichever is
further from the other two. That one is a simple root, so that its eigenvector is well conditioned
too: a column of the adjugate of A − λI. A reflection that has it as a column takes the matrix to
that eigenvalue and a 2 × 2 block, and one rotation diagonalises the block, whatever its gap.

A singular value decomposition takes the largest singular value alone from AᴴA: in the others half
of the digits would be lost. The vectors v and Av of that one are the first columns of two
reflections, which take A to σ and a smaller block, whose largest singular value is the next.

Shapes: the two dimensions of the matrix come first here, (n, n, *).

Source of the simple root: Eberly, "A robust eigensolver for 3×3 symmetric matrices", Geometric
Tools, 2014.
"""

from itertools import pairwise

import torch
from torch import Tensor

from covpool.linalg.spectrum import planar, real_part

CLOSED_SIZE = 3
"""Rows up to which there is a closed form."""

CLOSED_ELEMENTS = 9 * 700
"""Elements of a batch from which it is quicker on a CPU: as many 3 × 3 matrices as LAPACK takes its
fixed time of 0.7 ms for, at 1.1 µs each."""


def small_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (*, n), ascending, and eigenvectors (*, n, n) of symmetric or Hermitian matrices.

    n is at most `CLOSED_SIZE`. Matrices that are not finite give NaN.
    """
    entries = planar(matrix).movedim((-2, -1), (0, 1))
    scale = entries.abs().amax((0, 1))
    # Of a zero matrix too a scale that can be divided by.
    scale = scale.clamp_min(torch.finfo(scale.dtype).tiny)
    entries = entries / scale
    vectors = _OF_SIZE[matrix.shape[-1]](entries)
    # The vectors' own quotients: those of the formulas are differences of terms as large as the
    # largest eigenvalue, of which the rounding can exceed what counts as rank.
    values = real_part((vectors.conj() * _product(entries, vectors)).sum(0)).contiguous()
    for lower, higher in pairwise(values.unbind()):
        torch.maximum(lower, higher, out=higher)
    return (values * scale).movedim(0, -1), vectors.movedim((0, 1), (-2, -1))


def small_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (*, m, k), S (*, k), descending, and Vᴴ (*, k, n) of any matrices, k = min(m, n).

    m and n are at most `CLOSED_SIZE`. Matrices that are not finite give NaN.
    """
    if matrix.shape[-2] < matrix.shape[-1]:
        v, s, uh = small_svd(matrix.mH)
        return uh.mH, s, v.mH
    block = planar(matrix).movedim((-2, -1), (0, 1))
    tiny = torch.finfo(matrix.dtype).tiny
    scale = block.abs().amax((0, 1)).clamp_min(tiny)
    block = block / scale
    values: list[Tensor] = []
    phases: list[Tensor] = []
    left = right = None
    while True:
        columns = block.shape[1]
        if columns > 1:
            # Of a block far below the first one squares must not vanish.
            unit = block / block.abs().amax((0, 1)).clamp_min(tiny)
            gram = _product(unit.conj().movedim(0, 1), unit)
            vector = _OF_SIZE[columns](gram)[:, -1]
            # Of a zero block the first unit vector, as on the left: U Vᴴ is the identity then.
            zero = gram.abs().amax((0, 1)) == 0
            turn = _reflection(torch.where(zero, _first_unit(vector), vector))
            right = _beside(right, turn)
            block = _product(block, turn)
        if block.shape[0] > 1:
            image = block[:, 0]
            largest = image.abs().amax(0).clamp_min(tiny)
            image = image / largest
            size = image.abs().square().sum(0).sqrt()
            zero = size == 0
            image = image / size.masked_fill(zero, 1)
            turn = _reflection(torch.where(zero, _first_unit(image), image))
            left = _beside(left, turn)
            block = _product(turn, block)
        phase = torch.sgn(block[0, 0])
        phases.append(phase.masked_fill(block[0, 0] == 0, 1))
        values.append(block[0, 0].abs())
        if columns == 1:
            break
        block = block[1:, 1:]
    count = len(values)
    phase = torch.stack(phases)
    u = phase.unsqueeze(0) if left is None else left[:, :count] * phase
    v = torch.ones_like(phase).unsqueeze(0) if right is None else right
    s = torch.stack(values).cummin(0).values * scale
    return u.movedim((0, 1), (-2, -1)), s.movedim(0, -1), v.conj().movedim((0, 1), (-1, -2))


def _first_unit(like: Tensor) -> Tensor:
    """The first unit vector (n, *)."""
    return torch.cat([torch.ones_like(like[:1]), torch.zeros_like(like[1:])])


def _beside(basis: Tensor | None, turn: Tensor) -> Tensor:
    """The basis with its last columns turned among themselves."""
    if basis is None:
        return turn
    done = basis.shape[1] - turn.shape[0]
    return torch.cat([basis[:, :done], _product(basis[:, done:], turn)], 1)


def _one(entries: Tensor) -> Tensor:
    # 0 · NaN is NaN.
    return 1 + 0 * entries


def _three(entries: Tensor) -> Tensor:
    diagonal = torch.stack([real_part(entries[i, i]) for i in range(3)])
    beside = torch.stack([entries[1, 2], entries[2, 0], entries[0, 1]])
    mean = diagonal.mean(0)
    diagonal = diagonal - mean
    # Beside a tiny rest the mean was rounded to few of its digits.
    rest = diagonal.mean(0)
    diagonal = diagonal - rest
    squares = diagonal.square().sum(0) + 2 * beside.abs().square().sum(0)
    # Of what is a multiple of the identity to rounding and more, any basis is one of eigenvectors.
    spread = (squares / 6).sqrt().clamp_min(torch.finfo(mean.dtype).tiny ** 0.5)
    diagonal, beside = diagonal / spread, beside / spread
    product = real_part(beside[0] * beside[1] * beside[2])
    determinant = diagonal[0] * diagonal[1] * diagonal[2] + 2 * product
    half = (determinant - (diagonal * beside.abs().square()).sum(0)).div_(2).clamp_(-1, 1)
    # The root of λ³ − 3λ = det that is the furthest from the others: between √3 and 2 in magnitude.
    furthest = torch.copysign(2 * torch.cos(torch.acos(half.abs()) / 3), half)
    diagonal = diagonal - furthest
    reflection = _reflection(_null_vector(diagonal, beside))
    plane = reflection[:, 1:]
    shifted = torch.stack(
        [
            torch.stack([diagonal[0].to(beside.dtype), beside[2], beside[1].conj()]),
            torch.stack([beside[2].conj(), diagonal[1].to(beside.dtype), beside[0]]),
            torch.stack([beside[1], beside[0].conj(), diagonal[2].to(beside.dtype)]),
        ]
    )
    turn = _rotation(_product(plane.conj().movedim(0, 1), _product(shifted, plane)))
    low, high = _product(plane, turn).unbind(1)
    alone, largest = reflection[:, 0], furthest > 0
    vectors = torch.empty_like(reflection)
    torch.where(largest, low, alone, out=vectors[:, 0])
    torch.where(largest, high, low, out=vectors[:, 1])
    torch.where(largest, alone, high, out=vectors[:, 2])
    return vectors


def _product(left: Tensor, right: Tensor) -> Tensor:
    total = left[:, :1] * right[:1]
    for index in range(1, left.shape[1]):
        total.addcmul_(left[:, index, None], right[None, index])
    return total


def _rotation(entries: Tensor) -> Tensor:
    """The rotation of the eigenvectors of (2, 2, *), in ascending order."""
    first, second, beside = real_part(entries[0, 0]), real_part(entries[1, 1]), entries[0, 1]
    size = beside.abs()
    angle = torch.atan2(size, (first - second) / 2) / 2
    # Of a number that is zero, torch.sgn is zero.
    phase = torch.sgn(beside).masked_fill(size == 0, 1)
    cosine, sine = torch.cos(angle).to(phase.dtype), torch.sin(angle) * phase
    return torch.stack([-sine, cosine, cosine, sine.conj()]).unflatten(0, (2, 2))


_OF_SIZE = {1: _one, 2: _rotation, 3: _three}
"""The eigenvectors (n, n, *), in ascending order of their eigenvalues, of (n, n, *)."""


def _null_vector(diagonal: Tensor, beside: Tensor) -> Tensor:
    """A unit vector (3, *) that a Hermitian matrix of rank two takes to zero.

    It is each column of the adjugate times a number, zero where its diagonal element is: that of
    the largest is taken. Elements beside the diagonal are those at (1, 2), (2, 0) and (0, 1).
    """
    first, second = _next_two(diagonal)
    following, last = _next_two(beside)
    at = (first * second - beside.abs().square()).to(beside.dtype)
    after = beside * following - last.conj() * second
    before = (last * beside).conj() - first * following
    size = at.abs()
    columns = [torch.stack([at[0], after[0], before[0]]), torch.stack([before[1], at[1], after[1]])]
    vector = torch.where(size[0] > size[1], *columns)
    column = torch.stack([after[2], before[2], at[2]])
    vector = torch.where(torch.maximum(size[0], size[1]) > size[2], vector, column)
    return vector / vector.abs().square().sum(0).sqrt()


def _next_two(of_three: Tensor) -> tuple[Tensor, Tensor]:
    """The tensor (3, *) turned by one and by two places, as views of one copy."""
    around = torch.cat([of_three, of_three[:2]])
    return around[1:4], around[2:]


def _reflection(vector: Tensor) -> Tensor:
    """The Householder reflection (3, 3, *) whose first column is the unit vector (3, *), turned."""
    first = vector[0]
    size = first.abs()
    phase = torch.sgn(first).masked_fill(size == 0, 1)
    normal = torch.cat([(first + phase).unsqueeze(0), vector[1:]])
    reflection = (normal / (-1 - size)).unsqueeze(1) * normal.conj()
    reflection.diagonal(dim1=0, dim2=1).add_(1)
    return reflection
