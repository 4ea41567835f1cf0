"""Nothing of one sample depends on its batch-mates; roots turn with the matrix; bad input."""

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import covpool
from covpool import METHODS
from covpool.linalg.forwards.top_n import TopN
from spectra import SPECTRA, null_space_rounding, orthogonal, relative_error, with_spectrum

SIZE = 8
ROUNDING = 1e-13
"""Products of a batch may be summed in another order than those of one matrix: then results differ
by the methods' own rounding errors, of which the gradient of "svd-newton" has the largest, 3e-14.
"""


def hostile_batch(sample):
    """The sample at place 17 among zeros, huge, tiny, tied, singular and random neighbours."""
    mates = [
        torch.zeros(SIZE, SIZE).double(),
        torch.eye(SIZE).double() * 1e280,
        torch.eye(SIZE).double() * 1e-280,
        SPECTRA["tied-diagonal"](),
        SPECTRA["clustered"](),
        SPECTRA["decaying"](),
        SPECTRA["rank-deficient"](),
        *(with_spectrum(np.random.default_rng(i).exponential(size=SIZE), i) for i in range(4)),
    ]
    batch = torch.stack([mates[i % len(mates)] for i in range(64)])
    batch[17] = sample
    return batch


@pytest.mark.parametrize("spectrum", ["separated", "clustered", "tied-diagonal", "rank-deficient"])
@pytest.mark.parametrize("name", METHODS)
def test_gradient_alone_and_in_a_hostile_batch(name, spectrum):
    sample = SPECTRA[spectrum]()
    weight = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=torch.manual_seed(0))

    def root_and_gradient(batch):
        batch = batch.clone().requires_grad_()
        root = covpool.matrix_sqrt(batch, name)
        (root * weight).sum().backward()
        assert batch.grad is not None
        return root.detach(), batch.grad

    alone = [t[0] for t in root_and_gradient(sample[None])]
    among = [t[17] for t in root_and_gradient(hostile_batch(sample))]
    tolerance = ROUNDING
    if name == "newton-schulz-minimax" and spectrum == "rank-deficient":
        # What reaches the factors of the matrix: pairs of two null vectors are rounding errors.
        alone, among = ((root, gradient @ root) for root, gradient in (alone, among))
        tolerance = null_space_rounding(METHODS[name])
    for one, other in zip(alone, among, strict=True):
        assert relative_error(other, one) <= tolerance


@pytest.mark.parametrize("decompose", [covpool.eigh, covpool.svd])
def test_gradient_of_a_decomposition_alone_and_in_a_hostile_batch(decompose):
    """A neighbour with a tie or out of range takes the whole batch another way backward.

    Of separated values alone: at ties vectors may be another basis in a batch.
    """
    sample = SPECTRA["separated"]()
    weight = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=torch.manual_seed(0))

    def gradient(batch):
        batch = batch.clone().requires_grad_()
        # Of functions of the matrix alone: its square, or its polar factor and norm.
        first, *factors = decompose(batch)
        if decompose is covpool.eigh:
            value = (factors[0] * first.square().unsqueeze(-2)) @ factors[0].mT
        else:
            value = first @ factors[1] + factors[0].sum(-1)[..., None, None]
        (found,) = torch.autograd.grad((value * weight).sum((-2, -1))[place], batch)
        return found[place]

    place = 0
    alone = gradient(sample[None])
    place = 17
    assert relative_error(gradient(hostile_batch(sample)), alone) <= ROUNDING


@pytest.mark.parametrize("name", METHODS)
def test_pooled_gradient_alone_and_in_a_hostile_batch(name):
    generator = torch.manual_seed(1)
    sample = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    mates = torch.randn(64, 6, 4, dtype=torch.float64, generator=generator)
    mates[::3] = 0
    mates[1::3] *= 1e140
    mates[5] = sample

    def pooled_gradient(batch):
        batch = batch.clone().requires_grad_()
        covpool.cov_pool(batch, name).tril().sum().backward()
        assert batch.grad is not None
        return batch.grad

    assert relative_error(pooled_gradient(mates)[5], pooled_gradient(sample[None])[0]) <= ROUNDING


@pytest.mark.parametrize("name", METHODS)
def test_non_finite_neighbours_are_refused_by_name(name):
    batch = hostile_batch(SPECTRA["separated"]())
    batch[3, 2, 2], batch[40, 0, 1] = torch.nan, torch.inf
    with pytest.raises(ValueError, match=r"matrix_sqrt: NaN or infinite .* 2 of 64.*\[3, 40\]"):
        covpool.matrix_sqrt(batch, name)
    with pytest.raises(ValueError, match=r"cov_pool: NaN or infinite .* 2 of 64.*\[3, 40\]"):
        covpool.cov_pool(batch, name)
    with pytest.raises(ValueError, match=r"\[\(1, 0\), \(1, 1\)\]"):
        covpool.matrix_sqrt(
            torch.stack([torch.eye(2), torch.eye(2) * torch.nan])
            .expand(2, 2, 2, 2)
            .mT.transpose(0, 1),
            name,
        )


@given(
    eigenvalues=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=6),
    seed=st.integers(0, 10**6),
    name=st.sampled_from(list(METHODS)),
)
def test_orthogonal_equivariance(eigenvalues, seed, name):
    """f(Q A Qᵀ) = Q f(A) Qᵀ."""
    values = np.sort(np.array(eigenvalues))
    if isinstance(METHODS[name].forward, TopN):
        # The cut must not lie within a tie: what is kept there is the decomposition's choice.
        values = values + np.linspace(0, 1, len(values))
    matrix = with_spectrum(values, seed)
    turn = torch.from_numpy(orthogonal(len(values), seed + 1))
    turned = turn @ matrix @ turn.mT
    turned = (turned + turned.mT) / 2
    expected = turn @ covpool.matrix_sqrt(matrix, name) @ turn.mT
    assert relative_error(covpool.matrix_sqrt(turned, name), expected) <= 1e-10


@given(scale=st.floats(1e-100, 1e100), name=st.sampled_from(list(METHODS)))
def test_homogeneity(scale, name):
    """f(c A) = √c f(A): no hidden absolute threshold in the value."""
    matrix = SPECTRA["separated"]()
    expected = scale**0.5 * covpool.matrix_sqrt(matrix, name)
    assert relative_error(covpool.matrix_sqrt(scale * matrix, name), expected) <= 1e-12


BAD_MATRICES = {
    "not square": (torch.ones(3, 2, 4), r"square matrices \(\*, n, n\), got shape \(3, 2, 4\)"),
    "a vector": (torch.ones(3), r"got shape \(3,\)"),
    "not finite": (torch.full((2, 2), torch.nan), "NaN or infinite values; find"),
}


BAD_FOR_FUNCTIONS = BAD_MATRICES | {
    "integers": (torch.eye(3).long(), "floating-point tensor, got torch.int64"),
    "not symmetric": (
        torch.stack([torch.eye(2), torch.tensor([[1.0, 0.1], [0.0, 1.0]])]),
        r"not symmetric in 1 of 2 samples: \[1\]; .* 1.0e-01 of the largest .*pass \(A \+ Aᵀ\)",
    ),
    "one, not symmetric": (torch.tensor([[1.0, 0.1], [0.0, 1.0]]), "not symmetric; the largest"),
}


@pytest.mark.parametrize(
    ("function", "matrix", "message"),
    [
        *[(covpool.matrix_sqrt, *row) for row in BAD_FOR_FUNCTIONS.values()],
        (covpool.eigh, torch.eye(3).long(), "needs float32 or float64, .*got torch.int64"),
        *[(covpool.eigh, *row) for row in BAD_MATRICES.values()],
    ],
)
def test_bad_matrices(function, matrix, message):
    with pytest.raises(ValueError, match=f"^{function.__name__}.*{message}"):
        function(matrix)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", METHODS)
def test_indefinite_matrices_are_refused(name, dtype):
    batch = torch.stack(
        [torch.diag(torch.tensor([-1e-30, 1e6])), torch.diag(torch.tensor([-1.0, 4]))]
    )
    with pytest.raises(
        ValueError,
        match=r"not positive semi-definite in 1 of 2 samples: \[1\]; the lowest eigenvalue is -1;",
    ):
        covpool.matrix_sqrt(batch.to(dtype), name)


def test_negative_eigenvalues_count_as_zero_unchecked():
    root = covpool.matrix_sqrt(torch.diag(torch.tensor([-1.0, 4.0])), check=False)
    torch.testing.assert_close(root, torch.diag(torch.tensor([0.0, 2.0])))


@pytest.mark.parametrize(("share", "message"), [(0.5, None), (2.0, "not positive semi-definite")])
@pytest.mark.parametrize("name", ["exact", "isqrt-cov"])
def test_negative_eigenvalues_are_rounding_up_to_16_eps_a_row(name, share, message):
    least = -share * 16 * 4 * torch.finfo(torch.float64).eps
    matrix = torch.diag(torch.tensor([least, 0.5, 0.7, 1.0], dtype=torch.float64))
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        covpool.matrix_sqrt(matrix, name)


@pytest.mark.parametrize(("share", "message"), [(0.5, None), (2.0, "not symmetric")])
def test_asymmetry_is_rounding_up_to_16_eps_a_row_of_a_lower_precision(share, message):
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 1] = share * 16 * 4 * torch.finfo(torch.float32).eps
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        covpool.matrix_sqrt(matrix)


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_asymmetry_is_refused_in_half_precision_too(dtype, size):
    with pytest.raises(ValueError, match="not symmetric"):
        covpool.matrix_sqrt(torch.ones(size, size).triu().to(dtype))


@pytest.mark.parametrize("positions", [3, 20])
@pytest.mark.parametrize("name", METHODS)
def test_nan_stays_nan_where_it_is_not_looked_for(name, positions):
    """LAPACK refuses NaN on the CPU by itself; what it lets through must not turn into numbers."""
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[0, 0] = torch.nan
    features = torch.ones(2, 3, positions, dtype=torch.float64)
    features[0, 0, 0] = torch.nan
    for function in (
        lambda: covpool.matrix_sqrt(matrix, name, check=False),
        lambda: covpool.cov_pool(features, name, check_finite=False)[0],
    ):
        try:
            result = function()
        except torch.linalg.LinAlgError:
            continue
        assert result.isnan().any()


@pytest.mark.filterwarnings("ignore:compute_dtype=torch.float32")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", METHODS)
def test_gradient_is_finite_at_ties_of_any_scale(name, dtype):
    for scale in (torch.finfo(dtype).tiny, 1e-35, 1e-18, 1e-9, 1e30):
        matrix = (torch.eye(4, dtype=dtype) * scale).requires_grad_()
        root = covpool.matrix_sqrt(matrix, name, compute_dtype=dtype)
        (gradient,) = torch.autograd.grad(root.sum(), matrix)
        assert root.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("positions", [3, 9])
def test_large_float32_features_do_not_overflow(positions):
    x = torch.randn(2, 3, positions, generator=torch.manual_seed(0))
    for name in METHODS:
        if name == "svd-topn":
            continue  # which part is discarded depends on N here: 2 of 3 kept, rank 2 at N = 3
        scale = 2.0**66  # a power of two, which adds no rounding
        large = covpool.cov_pool(x * scale, name)
        torch.testing.assert_close(large, covpool.cov_pool(x, name) * scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int32, "float32", torch.complex64])
def test_other_compute_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match=r"compute_dtype must be torch.float32, torch.float64"):
        covpool.matrix_sqrt(torch.eye(2), compute_dtype=dtype)
    with pytest.raises(ValueError, match=r"compute_dtype must be torch.float32, torch.float64"):
        covpool.cov_pool(torch.ones(2, 3), compute_dtype=dtype)


@pytest.mark.parametrize("name", METHODS)
def test_meta_tensors_have_shapes(name):
    assert covpool.matrix_sqrt(torch.empty(2, 5, 5, device="meta"), name).shape == (2, 5, 5)
    for positions in (3, 9):
        x = torch.empty(2, 5, positions, device="meta")
        assert covpool.cov_pool(x, name).shape == (2, 5, 5)
        x = torch.empty(4, 2, 5, positions, 1, device="meta")
        assert covpool.cov_pool(x, name).shape == (4, 2, 5, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounding_is_not_refused(dtype):
    """A covariance formed in the dtype itself: asymmetric and indefinite by rounding alone."""
    factor = torch.randn(4, 30, 5, dtype=dtype, generator=torch.manual_seed(0))
    covpool.matrix_sqrt(factor @ factor.mT)


def test_unknown_names():
    with pytest.raises(
        ValueError, match=r"unknown method 'svd-pad'; choose from exact, .*'svd-pade'"
    ):
        covpool.matrix_sqrt(torch.eye(2), "svd-pad")
    with pytest.raises(ValueError, match=r"unknown kernel 'tailor'; choose from .*'taylor'"):
        covpool.eigh(torch.eye(2), kernel="tailor")
    with pytest.raises(ValueError, match=r"'svd-taylor' has no constant 'order'.*degree=100"):
        METHODS["svd-taylor"].replace(order=3)


@pytest.mark.parametrize(
    ("name", "constants", "message"),
    [
        ("isqrt-cov", {"iterations": 0}, "iterations must be a whole number of at least 1, got 0"),
        ("svd-newton", {"iterations": 2.5}, "iterations must be a whole .* got 2.5"),
        ("svd-taylor", {"degree": "50"}, "degree must be a whole number of at least 0, got '50'"),
        ("svd-taylor", {"degree": True}, "degree must be a whole .* got True"),
        ("svd-pi", {"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ("svd-trunc", {"limit": float("nan")}, "limit must be a positive number, got nan"),
        ("svd-topn", {"kept_fraction": 1.5}, r"kept_fraction must lie in \(0, 1\], got 1.5"),
        ("svd-lorentz", {"epsilon": 0}, "epsilon must be a positive number, got 0"),
        ("svd-pade", {"evaluation": "fast"}, "evaluation must be one of .* got 'fast'"),
        ("mtp-lyapunov", {"degree": 0}, "degree must be a whole number of at least 1, got 0"),
        ("mpa-lyapunov", {"degree": 5.0}, "degree must be a whole number of .* got 5.0"),
        ("newton-schulz-minimax", {"condition": 0.5}, "condition must be .* 1 to 1e\\+16, got 0.5"),
        ("newton-schulz-minimax", {"condition": 1e17}, "condition must be .* got 1e\\+17"),
    ],
)
def test_bad_constants(name, constants, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name].replace(**constants)


@pytest.mark.parametrize("name", METHODS)
def test_row_constants_are_the_papers(name):
    paper = {
        "svd-topn": {"kept_fraction": 206 / 256},
        "svd-trunc": {"limit": 1e10},
        "svd-pi": {"steps": 20},
        "svd-newton": {"iterations": 10},
        "svd-taylor": {"degree": 100},
        "isqrt-cov": {"iterations": 5},
        "svd-pade": {"evaluation": "closed-form"},
        "mtp-lyapunov": {"degree": 10},
        "mpa-lyapunov": {"degree": 5},
        "newton-schulz-minimax": {"condition": 1e8},
        "svd-lorentz": {"epsilon": 1e-6},
        **{n: {"iterations": 5, "start": "matrix"} for n in ("halley", "halley-lyapunov")},
        **{
            n: {"iterations": 5, "start": "identity"}
            for n in ("halley-identity", "halley-identity-lyapunov")
        },
    }
    row = METHODS[name]
    assert row.constants == paper.get(name, {})
    assert row.name == name
    assert row.description
    assert row.reference
    assert row.replace(**row.constants) == row
    for constant, value in row.constants.items():
        if constant not in ("evaluation", "start"):
            other = type(value)(value / 2)
            assert row.replace(**{constant: other}).constants == {**row.constants, constant: other}
