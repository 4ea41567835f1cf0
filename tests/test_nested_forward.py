"""Forward mode within forward mode of maps whose own second derivative is not zero.

torch switches forward mode off in a function's jvp (pytorch issue 197867), so that what is computed
there by plain operations lost the outer derivative in silence.
"""

import pytest
import torch
from torch.func import jacfwd, jacrev

import covpool
from covpool import FUNCTIONS

FACTOR = 0.5 * torch.randn(3, 5, dtype=torch.float64, generator=torch.manual_seed(0))
UNIT = torch.eye(3, dtype=torch.float64)


def definite(x):
    """Quadratic in x, so that its second derivative counts."""
    return x @ x.mT + UNIT


def function(name, method="exact"):
    parameter = {"power": 0.3, "inv_root": 3.0, "clamp_min": 2.0}.get(name)
    # Of eigenvalues of both signs where the function is flat elsewhere.
    shift = 2 * UNIT if name in ("sign", "abs", "positive_part") else 0 * UNIT
    return lambda x: covpool.matrix_function(definite(x) - shift, name, method, parameter=parameter)


CASES = {
    **{name: function(name) for name in FUNCTIONS},
    "root by Newton-Schulz": function("sqrt", "isqrt-cov"),
    "inverse root by Newton-Schulz": function("inv_sqrt", "isqrt-cov"),
    "root by minimax": function("sqrt", "newton-schulz-minimax"),
    "inverse root by minimax": function("inv_sqrt", "newton-schulz-minimax"),
    "learned exponent": lambda x: covpool.matrix_power(definite(x), x.sum() * x[0, 0]),
    "pooling": lambda x: covpool.cov_pool(x @ x.mT @ x),
    "pooling by the Gram matrix": lambda x: covpool.cov_pool((x @ x.mT @ x)[:, :3]),
    "covariance": lambda x: covpool.covariance(x @ x.mT @ x),
    "eigvalsh": lambda x: covpool.eigvalsh(definite(x)),
    "eigh": lambda x: covpool.eigh(definite(x))[1].abs(),
    "eigh of the largest": lambda x: covpool.eigh(definite(x), k=2)[0],
    "eigh_generalized": lambda x: covpool.eigh_generalized(definite(x), definite(x.cos()))[0],
    "svdvals": lambda x: covpool.svdvals(x @ x.mT @ x),
    "svd": lambda x: covpool.svd(x @ x.mT @ x, full_matrices=False)[0].abs(),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_second_derivative(name):
    """By central differences of the first, and forward over reverse to the last digits."""

    def loss(x):
        value = CASES[name](x)
        return value.square().sum() + value.sin().sum()

    wanted = jacfwd(jacrev(loss))(FACTOR)
    found = jacfwd(jacfwd(loss))(FACTOR)
    largest = float(wanted.abs().max())
    assert largest > 1e-3
    step = 1e-5
    for index in ((0, 0), (2, 4)):
        move = torch.zeros_like(FACTOR)
        move[index] = step
        rate = (jacfwd(loss)(FACTOR + move) - jacfwd(loss)(FACTOR - move)) / (2 * step)
        # The differences' own error is of the order of the step's square, and of eps over it.
        torch.testing.assert_close(found[index], rate, rtol=0, atol=1e-5 * largest)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11 * largest)
