"""Matrices of a prescribed spectrum, and oracles in mpmath that share no code with covpool."""

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from covpool.linalg.forwards.halley import Halley

SIZE = 8
DIGITS = 50
EPS = torch.finfo(torch.float64).eps


def orthogonal(size: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def unitary(size: int, seed: int) -> np.ndarray:
    real, imaginary = np.random.default_rng(seed).standard_normal((2, size, size))
    return np.linalg.qr(real + 1j * imaginary)[0]


def with_spectrum(
    eigenvalues: np.ndarray, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Q diag(λ) Qᴴ, exactly symmetric in float64, exactly Hermitian in complex128."""
    basis = (unitary if dtype.is_complex else orthogonal)(len(eigenvalues), seed)
    matrix = (basis * eigenvalues) @ basis.conj().T
    return torch.from_numpy((matrix + matrix.conj().T) / 2)


def _exactly_tied() -> Tensor:
    """Two eigenvalues, 1 and 4, eight times each, in a dense matrix without any rounding."""
    basis = scipy.linalg.hadamard(16) / 4.0
    return torch.from_numpy((basis * np.repeat([1.0, 4.0], 8)) @ basis.T)


def _rank_deficient() -> Tensor:
    """Rank 3 of 8, without any rounding: integers."""
    factor = np.random.default_rng(3).integers(-3, 4, (SIZE, 3)).astype(float)
    return torch.from_numpy(factor @ factor.T)


SPECTRA: dict[str, Callable[[], Tensor]] = {
    "separated": lambda: with_spectrum(np.arange(1.0, SIZE + 1)),
    "clustered": lambda: with_spectrum(np.repeat([1.0, 5.0], 4) + 1e-9 * np.arange(SIZE)),
    "tied-diagonal": lambda: torch.diag(torch.tensor([1.0, 1, 1, 2, 2, 5, 5, 5]).double()),
    "tied-dense": _exactly_tied,
    "decaying": lambda: with_spectrum(np.logspace(0, -14, SIZE)),
    "rank-deficient": _rank_deficient,
    "rank-deficient-diagonal": lambda: torch.diag(torch.tensor([0.0, 0, 0, 1, 2, 4]).double()),
    "identity": lambda: torch.eye(SIZE, dtype=torch.float64),
    "zero": lambda: torch.zeros(SIZE, SIZE, dtype=torch.float64),
    "one-by-one": lambda: torch.full((1, 1), 3.0, dtype=torch.float64),
    "tiny": lambda: with_spectrum(np.linspace(1, 9, SIZE)) * 1e-200,
    "huge": lambda: with_spectrum(np.linspace(1, 9, SIZE)) * 1e200,
}


def to_mpmath(matrix: Tensor) -> mpmath.matrix:
    return mpmath.matrix(matrix.tolist())


def to_torch(matrix: mpmath.matrix) -> Tensor:
    return torch.tensor(matrix.tolist(), dtype=torch.float64)


def lift(matrix: mpmath.matrix, values: Callable[[list], list]) -> mpmath.matrix:
    """V diag(values(λ)) Vᵀ with λ ascending; λ below half the digits counts as zero."""
    eigenvalues, vectors = mpmath.eigsy(matrix)
    floor = max(abs(x) for x in eigenvalues) * mpmath.mpf(10) ** (-mpmath.mp.dps // 2)
    clean = [x if x > floor else mpmath.mpf(0) for x in eigenvalues]
    return vectors * mpmath.diag(values(clean)) * vectors.T


def sqrt(matrix: mpmath.matrix) -> mpmath.matrix:
    return lift(matrix, lambda eigenvalues: [mpmath.sqrt(x) for x in eigenvalues])


def newton_schulz(matrix: mpmath.matrix, iterations: int) -> mpmath.matrix:
    """The iteration as Li et al. (2018) write it, in matrix products."""
    identity = mpmath.eye(matrix.rows)
    trace = sum(matrix[i, i] for i in range(matrix.rows))
    if trace == 0:
        return matrix
    y, z = matrix / trace, identity
    for _ in range(iterations):
        t = (3 * identity - z * y) / 2
        y, z = y * t, t * z
    return mpmath.sqrt(trace) * y


def halley(matrix: mpmath.matrix, iterations: int, start: str) -> mpmath.matrix:
    """X ← X (X² + 3A) (3X² + A)⁻¹ with A of trace 1; from A on the quotient X/A, which is finite
    where A is singular."""
    identity = mpmath.eye(matrix.rows)
    trace = sum(matrix[i, i] for i in range(matrix.rows))
    if trace == 0:
        return matrix
    a = matrix / trace
    x = identity
    for _ in range(iterations):
        if start == "identity":
            x = x * (x * x + 3 * a) * (3 * x * x + a) ** -1
        else:  # X = A Q: the factor A of numerator and denominator cancels
            x = x * (a * x * x + 3 * identity) * (3 * a * x * x + identity) ** -1
    return mpmath.sqrt(trace) * (x if start == "identity" else a * x)


def normalised(matrix: mpmath.matrix, root: Callable[[mpmath.matrix], mpmath.matrix]):
    """√s · root(A/s) with s the Frobenius norm; zero for the zero matrix."""
    norm = mpmath.mnorm(matrix, "f")
    return mpmath.sqrt(norm) * root(matrix / norm) if norm else matrix


def polynomial(coefficients: list, matrix: mpmath.matrix) -> mpmath.matrix:
    """Σ cₖ Mᵏ, the lowest power first."""
    total = mpmath.zeros(matrix.rows)
    for k, coefficient in enumerate(coefficients):
        total += coefficient * matrix**k
    return total


def matrix_taylor(matrix: mpmath.matrix, degree: int) -> mpmath.matrix:
    """The Taylor polynomial of √(1 − z) at z = 0, of the matrix z = I − A/‖A‖."""
    coefficients = mpmath.taylor(lambda z: mpmath.sqrt(1 - z), 0, degree)
    return normalised(matrix, lambda x: polynomial(coefficients, mpmath.eye(x.rows) - x))


def matrix_pade(matrix: mpmath.matrix, degree: int) -> mpmath.matrix:
    """The Padé approximant of √(1 − z) at z = 0, solved by mpmath, of the matrix z = I − A/‖A‖."""
    numerator, denominator = pade_of_root(degree)

    def root(x: mpmath.matrix) -> mpmath.matrix:
        z = mpmath.eye(x.rows) - x
        return polynomial(denominator, z) ** -1 * polynomial(numerator, z)

    return normalised(matrix, root)


def pade_of_root(degree: int) -> tuple[list, list]:
    """Numerator and denominator of the diagonal Padé approximant of √(1 − z), in powers of z."""
    taylor = mpmath.taylor(lambda z: mpmath.sqrt(1 - z), 0, 2 * degree)
    return mpmath.pade(taylor, degree, degree)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in the Frobenius norm; absolute where expected is zero."""
    scale = expected.abs().amax() if expected.numel() else torch.tensor(0.0)
    scale = scale if scale > 0 else torch.ones_like(scale)
    norm = (expected / scale).norm()
    error = ((actual - expected) / scale).norm()
    return (error / norm if norm > 0 else error).item()


def null_space_rounding(row: Any) -> float:
    """What roundings leave open in the gradient of a singular matrix's factors: some eps · κ of the
    minimax iteration, some eps/r² of the Lyapunov equation resolved down to r = 3⁻ᵏ of Halley's
    root, nothing of the other rows.

    Of 200 random matrices each of several ranks the errors had a median of 4 and a maximum of 21
    times eps · κ. Pairs of two null vectors are roundings altogether.
    """
    halleys = isinstance(row.forward, Halley) and not row.differentiates_steps
    resolved = row.forward.least_root(None) ** -2 if halleys else 0
    return 96 * EPS * (row.constants.get("condition", 0) + resolved)


def range_condition(features: Tensor) -> float:
    """The largest condition number of the covariances of (*, C, N), each on its range."""
    values = torch.linalg.svdvals(features - features.mean(-1, keepdim=True))
    rank = min(values.shape[-1], features.shape[-1] - 1)
    return (values[..., 0] / values[..., rank - 1]).square().max().item() if rank else 1
