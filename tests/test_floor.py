"""`floor=`: logarithms, powers and any function of eigenvalues that are clamped from below."""

import pickle

import numpy as np
import pytest
import torch

import covpool
import quick
from covpool import FUNCTIONS, METHODS
from spectra import EPS, orthogonal, relative_error, with_spectrum

PARAMETERS = {"power": -0.3, "inv_root": 3.0, "clamp_min": 0.8}
FLOOR = 0.25
# Negative, zero, tied and below the floor; tied and above it.
SPECTRUM = np.array([-1.0, 0, 0.1, 0.1, 0.7, 0.7, 3])


def clamped(values, floor=FLOOR, seed=0):
    return with_spectrum(np.maximum(values, floor), seed)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_is_that_of_clamped_eigenvalues(name):
    matrix = with_spectrum(SPECTRUM)
    options = {"parameter": PARAMETERS.get(name)}
    found = covpool.matrix_function(matrix, name, floor=FLOOR, **options)
    expected = covpool.matrix_function(clamped(SPECTRUM), name, **options)
    assert relative_error(found, expected) <= 64 * EPS
    layer = covpool.MatrixFunction(name, floor=FLOOR, **options)
    assert torch.equal(layer(matrix), found)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(matrix), found)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("log", covpool.matrix_log),
        ("inv_sqrt", covpool.matrix_inv_sqrt),
        ("power", lambda a, **options: covpool.matrix_power(a, -0.3, **options)),
    ],
)
def test_each_public_function_takes_it(name, call):
    matrix = with_spectrum(SPECTRUM)
    expected = covpool.matrix_function(
        matrix, name, floor=FLOOR, parameter=-0.3 if name == "power" else None
    )
    assert torch.equal(call(matrix, floor=FLOOR), expected)
    found, info = call(matrix, floor=FLOOR, return_info=True)
    assert torch.equal(found, expected)
    assert info.residual is None
    assert info.rank == 6  # of the matrix, not of what was made of it
    with pytest.raises(ValueError, match="not positive semi-definite"):
        call(matrix)


@quick.whole_jacobians
@pytest.mark.parametrize(
    "values", [(-1.0, 0.1, 0.5, 2), (0.1, 0.1, 0.5, 0.5), (0.1, 0.1, 0.2, 0.2)]
)
@pytest.mark.parametrize("name", [*FUNCTIONS, "own"])
def test_derivatives_off_the_kink(name, values, fast_mode):
    matrix = with_spectrum(np.array(values)).requires_grad_()
    function = torch.sin if name == "own" else name
    inputs = [matrix]
    if name in PARAMETERS:
        inputs.append(torch.tensor(PARAMETERS[name], dtype=torch.float64, requires_grad=True))

    def call(matrix, parameter=None):
        symmetric = (matrix + matrix.mT) / 2
        return covpool.matrix_function(symmetric, function, parameter=parameter, floor=FLOOR)

    # torch has no forward mode inside forward mode, by which a function of one's own gets its f′.
    options = {"fast_mode": fast_mode}
    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=name != "own", **options)
    assert torch.autograd.gradgradcheck(call, inputs, **options)


def test_clamped_eigenvalues_get_no_gradient_among_themselves():
    """And pairs across the floor what the definition says, (f(a) − f(floor)) / (a − b)."""
    basis = torch.from_numpy(orthogonal(3, 0))
    matrix = (basis * torch.tensor([-1.0, 0.1, 2], dtype=torch.float64)) @ basis.mT
    cotangent = torch.ones(3, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(
        covpool.matrix_log(matrix.requires_grad_(), floor=FLOOR),
        matrix,
        basis @ cotangent @ basis.mT,
    )
    found = basis.mT @ gradient @ basis
    rise = np.log(2 / FLOOR)
    expected = torch.tensor(
        [[0, 0, rise / 3], [0, 0, rise / 1.9], [rise / 3, rise / 1.9, 0.5]], dtype=torch.float64
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_a_floor_for_each_matrix():
    batch = torch.stack([with_spectrum(SPECTRUM, seed) for seed in range(2)])
    floors = torch.tensor([0.05, 0.5], dtype=torch.float64)
    expected = torch.stack(
        [
            covpool.matrix_log(matrix, floor=floor)
            for matrix, floor in zip(batch, [0.05, 0.5], strict=True)
        ]
    )
    for shape in ((2,), (2, 1), (2, 1, 1)):
        torch.testing.assert_close(covpool.matrix_log(batch, floor=floors.reshape(shape)), expected)
    layer = covpool.MatrixFunction("log", floor=floors)
    torch.testing.assert_close(layer(batch), expected)
    assert list(layer.state_dict()) == ["floor"]
    assert "floor=<buffer of shape (2,)>" in repr(layer)
    assert "floor=0.25" in repr(covpool.MatrixFunction("log", floor=FLOOR))


def test_under_transforms():
    batch = torch.stack([with_spectrum(SPECTRUM, seed) for seed in range(2)])
    floors = torch.tensor([0.05, 0.5], dtype=torch.float64)

    def loss(matrix, floor):
        return covpool.matrix_power(matrix, -0.5, floor=floor).pow(3).sum()

    leaf = batch.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, floors), leaf)
    found = torch.func.vmap(torch.func.grad(loss))(batch, floors)
    torch.testing.assert_close(found, expected)
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(batch, 0.3)
    (expected,) = torch.autograd.grad(loss(leaf, 0.3), leaf)
    torch.testing.assert_close(found, expected)
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for floor in (floors, 0.3):
        results = [f(leaf, floor) for f in (loss, compiled)]
        gradients = [torch.autograd.grad(result, leaf)[0] for result in results]
        torch.testing.assert_close(*results)
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("exponent", [-1000, -300, 300, 1000])
def test_of_extreme_matrices_and_floors(exponent):
    """The floor is in the unit of the matrix, in which what is computed leaves no range."""
    unit = 2.0**exponent
    matrix, floor = with_spectrum(np.array([0.0, 0.01, 0.5, 2])), 0.125
    cotangent = torch.randn(4, 4, dtype=torch.float64, generator=torch.manual_seed(0))
    results = []
    # The cotangents have the inverse unit of the result's derivative.
    for scale, weights in ((1, cotangent), (unit, cotangent * 2.0 ** (0.5 * exponent))):
        leaf = (matrix * scale).requires_grad_()
        found = covpool.matrix_inv_sqrt(leaf, floor=floor * scale)
        (gradient,) = torch.autograd.grad(found, leaf, weights)
        results.append((found.detach() * scale**0.5, gradient * scale))
        logarithm = covpool.matrix_log(leaf, floor=floor * scale)
        shift = np.log(scale) * torch.eye(4, dtype=torch.float64)
        results[-1] += ((logarithm - shift).detach(),)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_a_floor_beyond_the_digits_of_the_unit():
    """10⁻⁶⁰⁰ of the largest eigenvalue: below the range in any unit that suits that one."""
    matrix = torch.diag(torch.tensor([0.0, 1e300], dtype=torch.float64))
    found = covpool.matrix_log(matrix, floor=1e-300).diagonal()
    torch.testing.assert_close(found, torch.tensor([-300.0, 300], dtype=torch.float64) * np.log(10))
    tiny = torch.diag(torch.tensor([0.0, 1e-300], dtype=torch.float64))
    found = covpool.matrix_inv_sqrt(tiny, floor=1e300).diagonal()
    torch.testing.assert_close(
        found, torch.full((2,), 1e-150, dtype=torch.float64), rtol=1e-14, atol=0
    )


@pytest.mark.parametrize("name", [n for n, row in METHODS.items() if n != "exact"])
def test_other_methods_are_refused_by_name(name):
    message = f"method '{name}' does not offer 'inv_sqrt with a floor'; methods that do: exact$"
    if "inv_sqrt" in METHODS[name].functions:
        with pytest.raises(ValueError, match=f"matrix_inv_sqrt: {message}"):
            covpool.matrix_inv_sqrt(torch.eye(3), name, floor=0.1)
    with pytest.raises(ValueError, match=f"MatrixFunction: {message}"):
        covpool.MatrixFunction("inv_sqrt", name, floor=0.1)


@pytest.mark.parametrize(
    ("floor", "message"),
    [
        (0.0, "the floor must be positive, got 0.0"),
        (-1, "the floor must be positive, got -1"),
        (float("nan"), "the floor must be finite, got nan"),
        ("low", "the floor must be a number or a tensor, got 'low'"),
        (torch.ones(3), r"floor of shape \(3,\) does not broadcast to the batch shape \(2,\)"),
        (torch.tensor([0.1, 0.0]), r"floor must be positive .*, got 0 in 1 of 2 samples: \[1\]"),
        (
            torch.tensor([torch.inf, 1]),
            r"floor must be positive .*, got inf in 1 of 2 samples: \[0\]",
        ),
        (torch.ones(2, requires_grad=True), "floor is a constant.*detach.*'clamp_min'"),
    ],
)
def test_bad_floors_are_refused(floor, message):
    with pytest.raises(ValueError, match=f"matrix_log.*{message}"):
        covpool.matrix_log(torch.eye(3).expand(2, 3, 3), floor=floor)


@pytest.mark.filterwarnings("ignore:compute_dtype=torch.float32")
def test_layers_refuse_what_cannot_be_a_floor():
    with pytest.raises(ValueError, match=r"floor must be positive, got -0.5"):
        covpool.MatrixFunction("log", floor=-0.5)
    with pytest.raises(ValueError, match="MatrixFunction: the floor is a constant"):
        covpool.MatrixFunction("log", floor=torch.nn.Parameter(torch.tensor(0.5)))
    one = torch.tensor(0.5)
    with pytest.raises(ValueError, match="matrix_log: the floor is a constant"):
        torch.func.jvp(lambda floor: covpool.matrix_log(torch.eye(2), floor=floor), (one,), (one,))
    with pytest.raises(ValueError, match="matrix_log: the floor is a constant"):
        torch.func.grad(lambda floor: covpool.matrix_log(torch.eye(2), floor=floor).sum())(one)
    with pytest.raises(
        ValueError, match=r"floor must be positive and finite in torch.float32, got 0"
    ):
        covpool.matrix_log(torch.eye(2), floor=1e-60, compute_dtype=torch.float32)


def test_floors_of_one_matrix_are_mapped():
    matrix = torch.diag(torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64))
    floors = torch.tensor([0.1, 0.5], dtype=torch.float64)
    for function in ("log", "inv_sqrt", "exp"):
        of = lambda floor, f=function: covpool.matrix_function(matrix, f, floor=floor)  # noqa: E731
        expected = torch.stack([of(floor) for floor in floors])
        assert torch.equal(torch.vmap(of)(floors), expected)


def test_a_floor_is_no_remedy_for_functions_of_either_sign():
    matrix = torch.diag(torch.tensor([-5.0, 0.0, 2.0]))
    with pytest.raises(ValueError, match="singular") as caught:
        covpool.matrix_function(matrix, "inverse")
    assert "floor" not in str(caught.value)


def test_complex_matrices_have_a_floor():
    turn = torch.linalg.qr(
        torch.randn(4, 4, dtype=torch.complex128, generator=torch.manual_seed(0))
    ).Q
    values = torch.tensor([-1.0, 0.1, 0.7, 3], dtype=torch.float64)
    matrix = (turn * values) @ turn.mH
    expected = (turn * values.clamp_min(FLOOR).log()) @ turn.mH
    torch.testing.assert_close(covpool.matrix_log(matrix, floor=FLOOR), expected)
    leaf = matrix.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a: covpool.matrix_log((a + a.mH) / 2, floor=FLOOR), (leaf,)
    )
