"""Functions of matrices of any shape against mpmath, scipy and torch: values, derivatives, ties."""

import math

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacfwd, jacrev, jvp, vmap

import covpool
import quick
from covpool.linalg.functions.odd import ODD_FUNCTIONS
from covpool.linalg.names import OddFunctionName
from spectra import DIGITS, orthogonal, relative_error, unitary

STEP = mpmath.mpf(10) ** -15
THRESHOLD = 1.25


def power(p):
    return lambda x: x**p


def kept(g):
    return lambda x: g(x) if x > THRESHOLD else mpmath.mpf(0)


# Of each function: how it is asked for, its parameter, and f(σ) for σ > 0 in mpmath.
FUNCTIONS = {
    "polar": ("polar", None, lambda x: mpmath.mpf(1)),
    "soft_threshold": ("soft_threshold", THRESHOLD, lambda x: max(x - THRESHOLD, 0)),
    "hard_threshold": ("hard_threshold", THRESHOLD, kept(lambda x: x)),
    "clip": ("clip", THRESHOLD, lambda x: min(x, mpmath.mpf(THRESHOLD))),
    "root": ("power", 0.5, mpmath.sqrt),
    "cube": ("power", 3.0, power(3)),
    "inverse square": ("power", -2.0, power(-2)),
    "zeroth power": ("power", 0.0, power(0)),
    "pinv": ("pinv", None, power(-1)),
    "pinv above a bound": ("pinv", THRESHOLD, kept(power(-1))),
    "tanh": ("tanh", None, mpmath.tanh),
    "identity": ("identity", None, power(1)),
    "own, odd": (torch.sin, None, mpmath.sin),
    "own, not odd": (torch.log1p, None, lambda x: mpmath.log(1 + x)),
    "own, not zero at zero": (torch.exp, None, mpmath.exp),
    "own, steep at zero": (torch.sqrt, None, mpmath.sqrt),
}
QUICK = ["polar", "soft_threshold", "pinv above a bound", "own, odd", "own, not odd"]

SPECTRA = {
    "apart": (3.0, 1.5, 1.0),
    "tied": (2.0, 2.0, 1.0),
    "all tied": (1.5, 1.5, 1.5),
    "tied to 1e-9": (2.0, 2.0 - 1e-9, 1.0),
    "tied, of rank two": (2.0, 2.0, 0.0),
    "of rank one": (2.0, 0.0, 0.0),
    "zero": (0.0, 0.0, 0.0),
    "next to zero": (2.0, 1e-7, 1e-9),
}
SMOOTH = ["tanh", "own, odd", "clip", "hard_threshold", "identity"]
SHAPES = [(3, 3), (5, 3), (3, 4)]
CASES = [
    (name, spectrum, shape, dtype)
    for name in FUNCTIONS
    for spectrum in SPECTRA
    for shape in SHAPES
    for dtype in (torch.float64, torch.complex128)
    # Others have derivatives there that change by all of their size within rounding errors of A.
    if spectrum != "next to zero" or name in SMOOTH
]


def is_quick(case):
    """Every function at a tie, every spectrum by a few of them."""
    name, spectrum, shape, dtype = case
    real = dtype == torch.float64
    return (shape == (5, 3) and spectrum == "tied" and (real or name == "polar")) or (
        name in QUICK[:2] and shape == (3, 4) and real
    )


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.manual_seed(seed))


def factors(spectrum, shape, dtype=torch.float64):
    """(m, r) and (r, n) whose product has these singular values, of which r are not zero."""
    basis = unitary if dtype.is_complex else orthogonal
    values = np.array([value for value in spectrum if value])
    count = len(values)
    left, right = basis(shape[0], 1)[:, :count] * values, basis(shape[1], 2)[:, :count]
    return torch.from_numpy(left).to(dtype), torch.from_numpy(right.conj().T.copy()).to(dtype)


def to_mpmath(matrix):
    return mpmath.matrix(matrix.tolist())


def lift(matrix, f):
    """U f(S) Vᴴ as the corner of f([[0, A], [Aᴴ, 0]]), in mpmath."""
    rows, columns = matrix.rows, matrix.cols
    block = mpmath.zeros(rows + columns)
    block[:rows, rows:] = matrix
    block[rows:, :rows] = matrix.H
    values, vectors = mpmath.eighe(block)
    floor = mpmath.mpf(10) ** (-mpmath.mp.dps // 2)
    lifted = [mpmath.sign(x) * f(abs(x)) if abs(x) > floor else mpmath.mpf(0) for x in values]
    return (vectors * mpmath.diag(lifted) * vectors.H)[:rows, rows:]


def to_torch(matrix, dtype):
    entries = [[complex(entry) for entry in row] for row in matrix.tolist()]
    found = torch.tensor(entries, dtype=torch.complex128)
    return found if dtype.is_complex else found.real


def expand(spectrum, shape, dtype, f):
    """A, a direction that keeps its rank where that is not full, F, dF and d²F along it."""
    left, right = factors(SPECTRA[spectrum], shape, dtype)
    deficient = left.shape[-1] < 3
    change = random(*left.shape, seed=5, dtype=dtype), random(*right.shape, seed=6, dtype=dtype)
    if not deficient:
        change = random(*shape, seed=5, dtype=dtype), None
    with mpmath.workdps(DIGITS):
        if spectrum == "zero":
            return torch.zeros(shape, dtype=dtype), change, [mpmath.zeros(*shape)] * 3
        first, second = to_mpmath(left), to_mpmath(right)

        def at(t):
            if deficient:
                return (first + t * to_mpmath(change[0])) * (second + t * to_mpmath(change[1]))
            return first * second + t * to_mpmath(change[0])

        matrix, up, down = lift(at(0), f), lift(at(STEP), f), lift(at(-STEP), f)
        found = [matrix, (up - down) / (2 * STEP), (up - 2 * matrix + down) / STEP**2]
    direction = change[0] @ right + left @ change[1] if deficient else change[0]
    bend = 2 * change[0] @ change[1] if deficient else torch.zeros(shape, dtype=dtype)
    return left @ right, (direction, bend), found


@quick.parametrize(("name", "spectrum", "shape", "dtype"), CASES, keep=is_quick, ids=str)
def test_values_and_derivatives_are_those_of_mpmath(name, spectrum, shape, dtype, note_error):
    function, parameter, f = FUNCTIONS[name]
    matrix, along, expected = expand(spectrum, shape, dtype, f)
    expected = [to_torch(each, dtype) for each in expected]
    scale = max(1.0, *(each.abs().max().item() for each in expected))

    def call(a):
        found = covpool.svd_function(a, function, parameter=parameter)
        return found.mH if function == "pinv" else found

    found = call(matrix)
    assert note_error("value", name, (found - expected[0]).abs().max() / scale) <= 1e-14
    if spectrum == "zero":
        return
    direction, bend = along
    value, first = jvp(call, (matrix,), (direction,))
    assert (value - found).abs().max() <= 1e-14 * scale
    assert note_error("derivative", name, (first - expected[1]).abs().max() / scale) <= 2e-14
    cotangent = random(*shape, seed=7, dtype=dtype)
    leaf = matrix.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(call(leaf), leaf, cotangent, create_graph=True)

    def inner(x, y):
        return (x * y.conj()).real.sum()

    error = (inner(gradient, direction) - inner(cotangent, expected[1])).abs().item()
    assert note_error("gradient", name, error / scale) <= 1e-13
    (second,) = torch.autograd.grad(inner(gradient, direction), leaf)
    total = inner(second, direction) + inner(gradient, bend)
    error = (total - inner(cotangent, expected[2])).abs().item()
    assert note_error("second derivative", name, error / scale) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivatives_in_every_direction_and_mode(name, shape, dtype):
    function, parameter, _ = FUNCTIONS[name]
    left, right = factors(SPECTRA["tied"], shape, dtype)

    def call(a):
        return covpool.svd_function(a, function, parameter=parameter)

    leaf = (left @ right).requires_grad_()
    assert gradcheck(call, leaf, check_forward_ad=True)
    assert gradgradcheck(call, leaf, check_fwd_over_rev=True, atol=2e-5)


@quick.parametrize(
    ("name", "value"),
    [("soft_threshold", 0.7), ("clip", 1.7), ("power", 1.5), ("power", -0.5), ("power", 1.0)],
    keep=[("soft_threshold", 0.7), ("power", 1.5)],
)
def test_parameters_have_gradients(name, value):
    leaf = torch.stack([x @ y for x, y in [factors((3.0, 3.0, 1.0), (3, 4))] * 2]).requires_grad_()
    parameter = torch.tensor([value, value + 0.1], dtype=torch.float64, requires_grad=True)

    def call(a, p):
        return covpool.svd_function(a, name, parameter=p)

    assert gradcheck(call, (leaf, parameter), check_forward_ad=True)
    assert gradgradcheck(call, (leaf, parameter))


def test_a_program_of_u_s_and_v_loses_what_these_keep():
    """At the identity torch's gradient is NaN; the one of `svd`, finite, lacks f′ in every tie."""
    eye, weight = torch.eye(4, dtype=torch.float64), random(4, 4)

    def gradient(call):
        leaf = eye.clone().requires_grad_()
        return torch.autograd.grad((call(leaf) * weight).sum(), leaf)[0]

    def apart(svd):
        def call(a):
            u, s, vh = svd(a, full_matrices=False)
            return (u * torch.tanh(s)) @ vh

        return call

    ours = gradient(lambda a: covpool.svd_function(a, "tanh"))
    slope, quotient = 1 - math.tanh(1) ** 2, math.tanh(1)
    expected = slope * (weight + weight.T) / 2 + quotient * (weight - weight.T) / 2
    assert relative_error(ours, expected) <= 1e-15
    assert gradient(apart(torch.linalg.svd)).isnan().any()
    assert relative_error(gradient(apart(covpool.svd)), expected) > 0.1


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.float32])
def test_against_other_libraries(shape, dtype):
    matrix = random(2, *shape, dtype=dtype)
    tolerance = 200 * torch.finfo(dtype).eps
    pinv = covpool.svd_function(matrix, "pinv")
    assert relative_error(pinv, torch.linalg.pinv(matrix)) <= tolerance
    bound = 1.5
    cut = covpool.svd_function(matrix, "pinv", parameter=bound)
    assert relative_error(cut, torch.linalg.pinv(matrix, atol=bound, rtol=0)) <= tolerance
    for side in ("right", "left"):
        found = covpool.polar(matrix, side)
        for sample, factor, root in zip(matrix, *found, strict=True):
            expected = scipy.linalg.polar(sample.numpy(), side)
            assert relative_error(factor, torch.from_numpy(expected[0])) <= tolerance
            assert relative_error(root, torch.from_numpy(expected[1])) <= tolerance
            assert factor.dtype == root.dtype == dtype
            assert torch.equal(root, root.mH)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("shape", [(4, 3), (3, 4)])
def test_polar_at_deficient_rank(shape, side):
    """A partial isometry, with the derivative along changes that keep the rank."""
    left, right = factors((2.0, 2.0, 0.0), shape)
    u, h = covpool.polar(left @ right, side)
    assert (u.mT @ u @ right.mT - right.mT).abs().max() <= 1e-14
    product = u @ h if side == "right" else h @ u
    assert (product - left @ right).abs().max() <= 1e-14
    leaves = left.requires_grad_(), right.requires_grad_()
    assert gradcheck(lambda x, y: covpool.polar(x @ y, side), leaves, check_forward_ad=True)
    assert gradgradcheck(lambda x, y: covpool.polar(x @ y, side), leaves)


def test_what_torchs_polar_does_there():
    torchs = getattr(torch.linalg, "polar", None)
    if torchs is None:
        pytest.skip("this torch has no linalg.polar")
    wide = random(3, 4)
    with pytest.raises(RuntimeError):
        torchs(wide)
    assert covpool.polar(wide).U.shape == (3, 4)
    left, right = factors((2.0, 1.0, 0.0), (4, 3))
    leaf = (left @ right).requires_grad_()
    (gradient,) = torch.autograd.grad(torchs(leaf)[0].sum(), leaf)
    assert not gradient.abs().max() < 1e10
    (gradient,) = torch.autograd.grad(covpool.polar(leaf).U.sum(), leaf)
    assert gradient.abs().max() < 10


def test_low_rank_keeps_the_gradient_at_ties():
    """A_r where the kept σ are tied: a program of U, S and V loses a part of its gradient."""
    left, right = factors((2.0, 2.0, 1.0), (5, 3))
    matrix, weight = left @ right, random(5, 3)
    leaf = matrix.clone().requires_grad_()
    assert gradcheck(lambda a: covpool.low_rank(a, 2), leaf, check_forward_ad=True)
    assert gradgradcheck(lambda a: covpool.low_rank(a, 2), leaf)
    (whole,) = torch.autograd.grad((covpool.low_rank(leaf, 2) * weight).sum(), leaf)
    u, s, vh = covpool.svd(leaf, full_matrices=False)
    again = (u[:, :2] * s[:2]) @ vh[:2]
    (apart,) = torch.autograd.grad((again * weight).sum(), leaf)
    assert relative_error(covpool.low_rank(matrix, 2), again.detach()) <= 1e-15
    assert relative_error(apart, whole) > 0.1


def test_low_rank_by_tolerance():
    matrix = torch.stack([torch.diag(torch.tensor([4.0, 2.0, 1.0]) * f) for f in (1.0, 0.1)])
    kept = [torch.linalg.matrix_rank(covpool.low_rank(matrix, **how)).tolist() for how in HOW]
    assert kept == [[3, 0], [2, 2], [2, 0], [1, 0], [0, 0], [3, 3]]
    tolerances = torch.tensor([1.5, 0.15])
    found = covpool.low_rank(matrix, atol=tolerances)
    assert torch.linalg.matrix_rank(found).tolist() == [2, 2]
    assert torch.equal(covpool.low_rank(matrix, 3), matrix)


HOW = [
    {"atol": 0.5},
    {"rtol": 0.3},
    {"atol": 0.5, "rtol": 0.3},
    {"rank": 1, "atol": 0.5},
    {"rank": 0},
    {"rank": 9},
]


def test_low_rank_has_no_derivative_where_a_tie_is_cut():
    ties = torch.stack([torch.eye(3), torch.diag(torch.tensor([3.0, 2.0, 1.0]))]).double()
    leaf = ties.requires_grad_()
    found = covpool.low_rank(leaf, 2)
    assert torch.linalg.matrix_rank(found).tolist() == [2, 2]
    assert (torch.linalg.svdvals(found)[0] - torch.tensor([1.0, 1.0, 0.0])).abs().max() <= 1e-15
    with pytest.raises(RuntimeError, match=r"where a tie is cut.* in 1 of 2 samples: \[0\]"):
        found.sum().backward()
    inside = vmap(torch.func.grad(lambda a: covpool.low_rank(a, 2).sum()))(ties.detach())
    assert inside[0].isnan().all()
    assert inside[1].isfinite().all()
    # Zeros that are dropped beside zeros that are kept are no such tie.
    left, right = factors((2.0, 0.0, 0.0), (3, 3))
    leaves = left.requires_grad_(), right.requires_grad_()
    assert gradcheck(lambda x, y: covpool.low_rank(x @ y, 2), leaves)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from(SHAPES), st.sampled_from(list(FUNCTIONS)))
def test_functions_turn_with_the_matrix(seed, shape, name):
    """F(Q A Z) = Q F(A) Z, and positive multiples have the same polar factor."""
    function, parameter, _ = FUNCTIONS[name]
    matrix = random(*shape, seed=seed)
    gaps = (torch.linalg.svdvals(matrix) - THRESHOLD).abs()
    if gaps.min() < 1e-3:
        return
    left = torch.from_numpy(orthogonal(shape[0], seed + 1))
    right = torch.from_numpy(orthogonal(shape[1], seed + 2))

    def call(a):
        found = covpool.svd_function(a, function, parameter=parameter)
        return found.mT if function == "pinv" else found

    found = call(matrix)
    condition = 1 / torch.linalg.svdvals(matrix)[-1] ** 3
    bound = 1e-13 * max(1.0, condition.item(), found.abs().max().item())
    assert (call(left @ matrix @ right) - left @ found @ right).abs().max() <= bound
    factor = covpool.polar(matrix).U
    assert (covpool.polar(17.5 * matrix).U - factor).abs().max() <= bound


def test_samples_do_not_see_each_other():
    """3000 matrices by the closed form, each alone by LAPACK; ties and zeros among them."""
    # Next to zero the polar factor changes by far more than rounding of the matrix.
    spectra = [spectrum for name, spectrum in SPECTRA.items() if name != "next to zero"]
    tried = [x @ y for x, y in (factors(spectrum, (3, 3)) for spectrum in spectra)]
    many = torch.stack([tried[i % len(tried)] for i in range(3003)]).requires_grad_()
    weight = random(3, 3)
    for function, parameter in [("polar", None), ("soft_threshold", 0.5), (torch.sin, None)]:
        together = covpool.svd_function(many, function, parameter=parameter)
        (gradients,) = torch.autograd.grad((together * weight).sum(), many)
        for index, one in enumerate(tried):
            leaf = one.clone().requires_grad_()
            alone = covpool.svd_function(leaf, function, parameter=parameter)
            (gradient,) = torch.autograd.grad((alone * weight).sum(), leaf)
            for start in (0, 2 * len(tried)):
                assert (together[start + index] - alone).abs().max() <= 1e-14
                assert (gradients[start + index] - gradient).abs().max() <= 1e-12


def test_transforms_of_torch_func():
    batch = random(3, 4, 3)

    def call(a):
        return covpool.svd_function(a, torch.sin)

    alone = torch.stack([call(a) for a in batch])
    assert relative_error(vmap(call)(batch), alone) <= 1e-14
    assert relative_error(jacfwd(call)(batch[0]), jacrev(call)(batch[0])) <= 1e-13
    weight = random(4, 3, seed=3)
    hessian = jacfwd(jacrev(lambda a: (covpool.polar(a).U * weight).sum()))(batch[0])
    twice = torch.autograd.functional.hessian(
        lambda a: (covpool.polar(a).U * weight).sum(), batch[0]
    )
    assert relative_error(hessian, twice) <= 1e-13
    with torch.inference_mode():
        assert relative_error(call(batch), alone) <= 1e-15


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (2, 3, 0), (0, 0)])
def test_nothing_to_do(shape):
    leaf = torch.zeros(shape, requires_grad=True)
    assert covpool.svd_function(leaf, "pinv").shape == leaf.mT.shape
    assert covpool.low_rank(leaf, 1).shape == shape
    u, h = covpool.polar(leaf)
    assert u.shape == shape
    assert h.shape == (*shape[:-2], shape[-1], shape[-1])
    bound = torch.tensor(1.0, requires_grad=True)
    covpool.svd_function(leaf, "clip", parameter=bound).sum().backward()
    assert bound.grad == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.complex64])
def test_low_precision_is_that_of_float64_rounded(dtype):
    matrix = random(3, 5, 4).to(dtype)
    wide = matrix.to(torch.promote_types(dtype, torch.float64))
    for name in ("polar", "soft_threshold"):
        parameter = None if name == "polar" else 0.5
        found = covpool.svd_function(matrix, name, parameter=parameter)
        expected = covpool.svd_function(wide, name, parameter=parameter)
        assert found.dtype == dtype
        assert (found - expected.to(dtype)).abs().max() == 0
    narrow = covpool.polar(matrix, compute_dtype=torch.float32).U
    assert (narrow - covpool.polar(matrix).U).abs().max() <= 8 * torch.finfo(dtype).eps


REFUSED = {
    "no tensor": (lambda: covpool.polar([[1.0]]), TypeError, "polar needs a torch.Tensor"),
    "a vector": (lambda: covpool.polar(torch.ones(3)), ValueError, r"matrices \(\*, m, n\)"),
    "integers": (lambda: covpool.low_rank(torch.ones(2, 2).int(), 1), ValueError, "torch.int32"),
    "a side": (lambda: covpool.polar(torch.eye(2), "up"), ValueError, "'right' or 'left', got"),
    "a name": (
        lambda: covpool.svd_function(torch.eye(2), "softthreshold"),
        ValueError,
        "unknown function 'softthreshold'; .*did you mean 'soft_threshold'",
    ),
    "no function": (lambda: covpool.svd_function(torch.eye(2), 3), TypeError, "polar, soft.*got 3"),
    "a missing parameter": (
        lambda: covpool.svd_function(torch.eye(2), "clip"),
        ValueError,
        "the bound must be a number",
    ),
    "a superfluous parameter": (
        lambda: covpool.svd_function(torch.eye(2), "tanh", parameter=1.0),
        ValueError,
        "'tanh' has no parameter, got 1.0",
    ),
    "a superfluous parameter, by the name that was given": (
        lambda: covpool.svd_function(torch.eye(2), "polar", parameter=1.0),
        ValueError,
        "'polar' has no parameter, got 1.0",
    ),
    "a function of NumPy": (
        lambda: covpool.svd_function(torch.eye(2), np.sin),
        TypeError,
        "torch function.*got <ufunc 'sin'>",
    ),
    "a function of numbers": (
        lambda: covpool.matrix_function(torch.eye(2), math.sin),
        TypeError,
        "torch function.*got <built-in function sin>",
    ),
    "a negative threshold": (
        lambda: covpool.svd_function(
            torch.eye(2).expand(2, 2, 2), "soft_threshold", parameter=torch.tensor([1.0, -0.5])
        ),
        ValueError,
        r"'soft_threshold' must not be negative, got -0.5 in 1 of 2 samples: \[1\]; clamp it",
    ),
    "NaN": (
        lambda: covpool.svd_function(torch.stack([torch.eye(2), torch.eye(2) * torch.nan]), "tanh"),
        torch.linalg.LinAlgError,
        r"svd_function: NaN or infinite values in 1 of 2 samples: \[1\]",
    ),
    "a function that is not elementwise": (
        lambda: covpool.svd_function(torch.eye(2), torch.sum),
        ValueError,
        "must give a tensor of its input's shape",
    ),
    "no rank": (lambda: covpool.low_rank(torch.eye(2)), ValueError, "needs a rank, an atol or"),
    "a rank": (lambda: covpool.low_rank(torch.eye(2), 1.5), ValueError, "whole number.*got 1.5"),
    "a tolerance": (
        lambda: covpool.low_rank(torch.eye(2), rtol=-0.1),
        ValueError,
        "rtol must not be negative, got -0.1",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_what_is_not_checked_is_nan():
    matrix = torch.stack([torch.eye(4), torch.full((4, 4), torch.nan)])
    assert covpool.svd_function(matrix, "tanh", check=False)[1].isnan().all()


def test_third_derivatives_are_refused():
    leaf = random(3, 3).requires_grad_()
    (first,) = torch.autograd.grad(covpool.polar(leaf).U.sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="third derivative"):
        torch.autograd.grad(second.sum(), leaf)


def test_the_type_names_the_table():
    assert OddFunctionName.__args__ == tuple(ODD_FUNCTIONS)
    assert {function for function, *_ in FUNCTIONS.values() if isinstance(function, str)} == set(
        ODD_FUNCTIONS
    )
