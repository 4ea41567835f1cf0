"""`matrix_function`, `matrix_exp` and the layer: any function by name or of a user's own."""

import copy
import pickle

import numpy as np
import pytest
import scipy.linalg
import torch

import covpool
import quick
from covpool import FUNCTIONS, METHODS
from spectra import EPS, orthogonal, relative_error, with_spectrum

PARAMETERS = {"power": 0.3, "inv_root": 3.0, "clamp_min": 0.8}
INDEFINITE = np.array([-2.0, -2, -0.5, 0.7, 0.7, 3])
POSITIVE = np.array([0.1, 0.1, 0.5, 0.7, 0.7, 3])

BY_SCIPY = {
    "sqrt": scipy.linalg.sqrtm,
    "inv_sqrt": lambda a: scipy.linalg.inv(scipy.linalg.sqrtm(a)),
    "power": lambda a: scipy.linalg.fractional_matrix_power(a, 0.3),
    "log": scipy.linalg.logm,
    "exp": scipy.linalg.expm,
    "inverse": scipy.linalg.inv,
    "inv_root": lambda a: scipy.linalg.fractional_matrix_power(a, -1 / 3),
    "entropy": lambda a: -a @ scipy.linalg.logm(a),
    "sign": scipy.linalg.signm,
    "abs": lambda a: a @ scipy.linalg.signm(a),
    "positive_part": lambda a: (a + a @ scipy.linalg.signm(a)) / 2,
    "clamp_min": lambda a: a + scipy.linalg.funm(a, lambda x: np.maximum(0.8 - x.real, 0)),
    "softplus": lambda a: scipy.linalg.logm(np.eye(len(a)) + scipy.linalg.expm(a)),
    "tanh": scipy.linalg.tanhm,
}


def accepted(name):
    return INDEFINITE if FUNCTIONS[name].domain.has_negative else POSITIVE


KINDS = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])


@KINDS
@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_is_scipys(name, dtype):
    matrix = with_spectrum(accepted(name), dtype=dtype)
    found = covpool.matrix_function(matrix, name, parameter=PARAMETERS.get(name))
    assert relative_error(found, torch.from_numpy(BY_SCIPY[name](matrix.numpy()))) <= 1e-12
    layer = covpool.MatrixFunction(name, parameter=PARAMETERS.get(name))
    assert torch.equal(layer(matrix), found)


@quick.whole_jacobians
@KINDS
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_at_ties(name, dtype, fast_mode):
    """gradcheck of both orders, by finite differences of the public function itself.

    The basis is orthogonal or unitary without any rounding.
    """
    basis = torch.from_numpy(scipy.linalg.hadamard(4) / 2.0).to(dtype)
    if dtype.is_complex:
        basis = torch.tensor([1, 1j, 1, -1j])[:, None] * basis
    values = [-1.5, -1.5, 0.5, 0.5] if FUNCTIONS[name].domain.has_negative else [0.5, 0.5, 2, 2]
    matrix = (basis * torch.tensor(values, dtype=torch.float64)) @ basis.mH
    inputs = [matrix.requires_grad_()]
    if name in PARAMETERS:
        inputs.append(torch.tensor(PARAMETERS[name], dtype=torch.float64, requires_grad=True))

    def call(matrix, parameter=None):
        return covpool.matrix_function((matrix + matrix.mH) / 2, name, parameter=parameter)

    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True, fast_mode=fast_mode)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=fast_mode)


def rational(x):
    return x / (1 + x * x)


@quick.whole_jacobians
@KINDS
def test_a_users_own_function(dtype, fast_mode):
    matrix = with_spectrum(INDEFINITE, dtype=dtype).requires_grad_()
    found = covpool.matrix_function(matrix, torch.sin)
    assert relative_error(found, torch.from_numpy(scipy.linalg.sinm(matrix.detach()))) <= 1e-13

    def call(a):
        return covpool.matrix_function((a + a.mH) / 2, rational)

    assert torch.autograd.gradcheck(call, matrix, check_forward_ad=True, fast_mode=fast_mode)
    assert torch.autograd.gradgradcheck(call, matrix, check_fwd_over_rev=True, fast_mode=fast_mode)
    positive = covpool.Elementwise(torch.log, domain="positive")
    with pytest.raises(ValueError, match=r"lowest eigenvalue is -2"):
        covpool.matrix_function(matrix, positive)
    definite = with_spectrum(POSITIVE, dtype=dtype)
    torch.testing.assert_close(
        covpool.matrix_function(definite, positive), covpool.matrix_log(definite)
    )


@KINDS
def test_exponential_is_torchs(dtype):
    """torch.linalg.matrix_exp, which is right at ties too, with its gradient and its tangent."""
    matrix, direction, weight = (
        with_spectrum(values, seed, dtype)
        for seed, values in enumerate([INDEFINITE, POSITIVE, INDEFINITE])
    )
    found, expected = (
        (*torch.func.vjp(f, matrix)[1](weight), *torch.func.jvp(f, (matrix,), (direction,)))
        for f in (covpool.matrix_exp, torch.linalg.matrix_exp)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) <= 1e-13


@KINDS
@pytest.mark.parametrize("function", ["exp", "sign", rational])
def test_transforms_of_named_and_own_functions_agree_with_eager(function, dtype):
    """vmap, grad and jvp of torch.func, and one graph."""
    batch, direction = (
        torch.stack([with_spectrum(INDEFINITE * scale, seed, dtype) for scale in (1, 0.5)])
        for seed in (0, 1)
    )
    weight = with_spectrum(INDEFINITE, 2, dtype)

    def loss(a):
        value = covpool.matrix_function((a + a.mH) / 2, function)
        return (value * weight.conj()).sum().real + value.abs().square().sum()

    leaf = batch.clone().requires_grad_()
    value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert relative_error(torch.vmap(torch.func.grad(loss))(batch), gradient) <= 1e-12
    again, change = torch.func.jvp(loss, (batch,), (direction,))
    torch.testing.assert_close(again, value.detach(), rtol=1e-13, atol=0)
    expected = (gradient.conj() * direction).sum().real
    torch.testing.assert_close(change, expected, rtol=1e-12, atol=0)
    torch.compiler.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(leaf)
    torch.testing.assert_close(compiled, value, rtol=1e-13, atol=0)
    assert relative_error(torch.autograd.grad(compiled, leaf)[0], gradient) <= 1e-12


@pytest.mark.parametrize(
    "name", [name for name, f in FUNCTIONS.items() if not f.domain.has_negative]
)
def test_eigenvalues_outside_the_domain_are_named(name):
    batch = torch.stack([with_spectrum(POSITIVE), with_spectrum(INDEFINITE)])
    with pytest.raises(ValueError, match=r"in 1 of 2 samples: \[1\]; the lowest eigenvalue is -2"):
        covpool.matrix_function(batch, name, parameter=PARAMETERS.get(name))


@pytest.mark.parametrize("name", ["inverse", "sign", "inv_root", "inv_sqrt", "log"])
def test_singular_matrices_are_refused_where_the_function_is_not_defined(name):
    singular = with_spectrum(np.array([0.0, 1, 2, 3]))
    with pytest.raises(ValueError, match=r"matrix singular.*rank is 3 of 4"):
        covpool.matrix_function(singular, name, parameter=PARAMETERS.get(name))
    found = covpool.matrix_function(singular, name, parameter=PARAMETERS.get(name), check=False)
    assert found.isfinite().all()


def test_indefinite_matrices_have_diagnostics():
    matrix = with_spectrum(np.array([-4.0, 0.5, 2]))
    _, info = covpool.matrix_function(matrix, "abs", return_info=True)
    assert info.condition_number.item() == pytest.approx(8)
    assert info.residual <= 64 * EPS


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("positiv_part",), {}, "unknown function 'positiv_part'.*did you mean 'positive_part'"),
        (("exp", "svd-pade"), {}, "'svd-pade' does not offer 'exp'; methods that do: exact$"),
        ((torch.sin, "isqrt-cov"), {}, "does not offer 'sin'; methods that do: exact$"),
        (("clamp_min",), {}, "the bound must be a number or a tensor, got None"),
        (("exp",), {"parameter": 2.0}, "function 'exp' has no parameter, got 2.0"),
        ((lambda x: x.sum(),), {}, "must give a tensor of its input's shape"),
    ],
)
def test_mistakes_are_told(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        covpool.matrix_function(torch.eye(3), *arguments, **options)


def test_exponents_of_every_shape_that_fits():
    batch = torch.stack([with_spectrum(POSITIVE, seed) for seed in range(2)])
    expected = covpool.matrix_power(batch, torch.tensor([0.3, 0.5]))
    for shape in ((2,), (2, 1), (2, 1, 1)):
        exponents = torch.tensor([0.3, 0.5]).reshape(shape)
        assert torch.equal(covpool.matrix_power(batch, exponents), expected)
    one = covpool.matrix_power(batch, 0.5)
    for exponent in (np.float64(0.5), np.float32(0.5), torch.tensor([0.5]), torch.tensor([[0.5]])):
        assert torch.equal(covpool.matrix_power(batch, exponent), one)
    assert torch.equal(covpool.matrix_power(batch, np.int64(2)), covpool.matrix_power(batch, 2))
    with pytest.raises(ValueError, match=r"exponent of shape \(3,\) does not broadcast"):
        covpool.matrix_power(batch, torch.ones(3))


def test_layers_keep_their_function_and_parameter():
    bound = torch.nn.Parameter(torch.tensor(0.8, dtype=torch.float64))
    layer = covpool.MatrixFunction("clamp_min", parameter=bound)
    assert list(layer.state_dict()) == ["bound"]
    matrix = with_spectrum(INDEFINITE)
    layer(matrix).trace().backward()
    assert bound.grad.item() == pytest.approx(5)  # eigenvalues below it
    assert torch.equal(copy.deepcopy(layer)(matrix), layer(matrix))
    own = covpool.MatrixFunction(torch.sin)
    assert repr(own) == "MatrixFunction('sin', method='exact')"
    assert torch.equal(copy.deepcopy(own)(matrix), own(matrix))
    with pytest.raises(ValueError, match="function 'exp' has no parameter"):
        covpool.MatrixFunction("exp", parameter=1.0)
    with pytest.raises(ValueError, match="function 'inv_root' needs a root, got None"):
        covpool.MatrixFunction("inv_root")


@pytest.mark.parametrize("name", ["log", "inv_sqrt", "inv_root"])
def test_a_negative_eigenvalue_that_is_rounding_makes_a_matrix_singular(name):
    matrix = torch.diag(torch.tensor([1.0, -1e-6]))
    with pytest.raises(ValueError, match=r"matrix singular.*rank is 1 of 2"):
        covpool.matrix_function(matrix, name, parameter=PARAMETERS.get(name))
    with pytest.raises(ValueError, match="matrix singular"):
        covpool.matrix_power(matrix, -1)


def test_layers_of_a_row_of_the_table_can_be_copied():
    matrix = with_spectrum(POSITIVE)
    for function, method in (("inv_sqrt", "isqrt-cov"), ("sqrt", "svd-pade")):
        layer = covpool.MatrixFunction(FUNCTIONS[function], method)
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(twin(matrix), layer(matrix))


def test_a_module_as_function_shows_no_parameters_that_do_not_learn():
    layer = covpool.MatrixFunction(torch.nn.PReLU(dtype=torch.float64))
    assert not list(layer.parameters())
    assert layer(with_spectrum(INDEFINITE)).isfinite().all()


def test_a_root_of_zero_is_refused():
    with pytest.raises(ValueError, match="root: NaN or infinite"):
        covpool.matrix_function(torch.eye(2), "inv_root", parameter=0.0)


@pytest.mark.parametrize("make", [lambda: torch.sin, lambda: covpool.Elementwise(torch.sin)])
def test_a_users_own_function_compiles(make):
    matrix = with_spectrum(INDEFINITE).requires_grad_()
    layer = covpool.MatrixFunction(make())
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = [f(matrix) for f in (layer, compiled)]
    gradients = [torch.autograd.grad(result.square().sum(), matrix)[0] for result in results]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*gradients)


def test_a_method_of_a_users_own_is_used_by_pooling():
    row = METHODS["svd-lorentz"].replace(epsilon=1e-4)
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(covpool.cov_pool(x, row), covpool.cov_pool(x, "svd-lorentz"))


def products(size, condition, dtype, seed=0):
    """A covariance of the dtype, of that condition number."""
    values = np.logspace(0, -np.log10(condition), size)
    return with_spectrum(values, seed).to(dtype)


ASYMMETRIC = {
    # A congruence by two different products, and a covariance whitened by its own inverse root.
    "float32 congruence": lambda: (lambda m, x: m @ (x @ m))(
        products(16, 1e2, torch.float32), products(16, 1e3, torch.float32, 1)
    ),
    "whitened, condition 1e4": lambda: (lambda a: (r := covpool.matrix_inv_sqrt(a)) @ a @ r)(
        products(8, 1e4, torch.float32)
    ),
    "whitened, condition 1e5": lambda: (lambda a: (r := covpool.matrix_inv_sqrt(a)) @ a @ r)(
        products(64, 1e5, torch.float32)
    ),
    "float32 in float64": lambda: (
        lambda x: (x @ x.mT + torch.triu(torch.full((32, 32), 1e-6), 1)).double()
    )(torch.eye(32)),
    "bfloat16 in float32": lambda: (lambda m: (m @ (m @ m)).float())(
        products(16, 10, torch.bfloat16)
    ),
    "float64 congruence": lambda: (lambda m, x: m @ (x @ m))(
        products(64, 1e4, torch.float64), products(64, 1e3, torch.float64, 1)
    ),
    "zero to rounding": lambda: EPS * torch.randn(6, 6, generator=torch.manual_seed(0)).double(),
}


@pytest.mark.parametrize("name", ASYMMETRIC)
def test_what_rounding_leaves_asymmetric_is_taken(name):
    matrix = ASYMMETRIC[name]()
    assert not torch.equal(matrix, matrix.mT)
    found = covpool.matrix_function(matrix, "positive_part")
    expected = covpool.matrix_function((matrix + matrix.mT) / 2, "positive_part")
    torch.testing.assert_close(found, expected, rtol=0, atol=8 * torch.finfo(matrix.dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gross_asymmetry_is_refused(dtype):
    basis = torch.from_numpy(orthogonal(6, 0)).to(dtype)
    batch = torch.stack([torch.eye(6, dtype=dtype), basis])
    with pytest.raises(ValueError, match=r"not symmetric in 1 of 2 samples: \[1\]"):
        covpool.matrix_exp(batch)
    with pytest.raises(ValueError, match="not symmetric"):
        covpool.matrix_exp(torch.eye(6, dtype=dtype) + 0.06 * torch.ones(6, 6).triu(1).to(dtype))


PAIRS = [("sqrt", "inv_sqrt"), ("log", "exp"), ("power", "inverse", "power")]


def parameters_of(functions):
    return tuple(
        (0.3, -0.7)[index > 0] if name == "power" else None for index, name in enumerate(functions)
    )


@pytest.mark.parametrize("functions", PAIRS)
def test_several_functions_of_one_decomposition(functions, monkeypatch):
    matrix = torch.stack([with_spectrum(POSITIVE, seed) for seed in range(3)])
    parameters = parameters_of(functions)
    expected = tuple(
        covpool.matrix_function(matrix, name, parameter=parameter)
        for name, parameter in zip(functions, parameters, strict=True)
    )
    calls = []
    solve = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda *a, **k: calls.append(a) or solve(*a, **k))
    found = covpool.matrix_function(matrix, functions, parameter=parameters)
    assert len(calls) == 1
    assert isinstance(found, tuple)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    listed, infos = covpool.matrix_function(
        matrix, list(functions), parameter=list(parameters), return_info=True
    )
    assert [torch.equal(one, other) for one, other in zip(listed, expected, strict=True)]
    for name, parameter, info in zip(functions, parameters, infos, strict=True):
        alone = covpool.matrix_function(matrix, name, parameter=parameter, return_info=True)[1]
        assert torch.equal(info.condition_number, alone.condition_number)
        assert (info.residual is None) == (alone.residual is None)


@quick.whole_jacobians
@pytest.mark.parametrize("functions", PAIRS)
def test_derivatives_of_several_functions(functions, fast_mode):
    basis = torch.from_numpy(scipy.linalg.hadamard(4) / 2.0)
    matrix = (basis * torch.tensor([0.5, 0.5, 2, 2], dtype=torch.float64)) @ basis.T
    matrix.requires_grad_()
    parameters = parameters_of(functions)

    def results(a):
        return covpool.matrix_function((a + a.mT) / 2, functions, parameter=parameters)

    def loss(a):
        first, second, *_ = results(a)
        return (first @ second @ first).sum() + sum(r.pow(3).sum() for r in results(a))

    assert torch.autograd.gradcheck(results, matrix, check_forward_ad=True, fast_mode=fast_mode)
    assert torch.autograd.gradcheck(loss, matrix, fast_mode=fast_mode)
    assert torch.autograd.gradgradcheck(loss, matrix, fast_mode=fast_mode)


@pytest.mark.parametrize("method", [n for n, r in METHODS.items() if r.supports("inv_sqrt")])
def test_the_root_and_its_inverse_of_every_method(method, monkeypatch):
    """One decomposition or one iteration, each result and gradient as alone."""
    matrix = torch.stack([with_spectrum(POSITIVE, seed) for seed in range(2)]).requires_grad_()
    weights = torch.randn(2, 2, 6, 6, dtype=torch.float64, generator=torch.manual_seed(0))
    alone = [covpool.matrix_sqrt(matrix, method), covpool.matrix_inv_sqrt(matrix, method)]
    expected = torch.autograd.grad(
        sum((w * r).sum() for w, r in zip(weights, alone, strict=True)), matrix
    )[0]
    row = METHODS[method]
    if row.iteration is not None:
        calls = []
        step = "iterate" if row.differentiates_steps else "normalised_roots"
        kept = getattr(type(row.iteration), step)
        monkeypatch.setattr(type(row.iteration), step, lambda *a: calls.append(a) or kept(*a))
    pair = covpool.matrix_function(matrix, ("sqrt", "inv_sqrt"), method)
    if row.iteration is not None:
        assert len(calls) == 1
    for one, other in zip(pair, alone, strict=True):
        assert torch.equal(one, other)
    found = torch.autograd.grad(
        sum((w * r).sum() for w, r in zip(weights, pair, strict=True)), matrix
    )[0]
    assert relative_error(found, expected) <= 1e-12


def test_several_functions_are_refused_as_each_of_them_is():
    indefinite, singular = with_spectrum(INDEFINITE), with_spectrum(np.array([0.0, 1, 2]))
    with pytest.raises(ValueError, match="not positive semi-definite"):
        covpool.matrix_function(indefinite, ("abs", "sqrt"))
    for method in ("exact", "newton-schulz-minimax"):
        with pytest.raises(ValueError, match="matrix singular"):
            covpool.matrix_function(singular, ("sqrt", "inv_sqrt"), method)
    with pytest.raises(ValueError, match="'svd-pade' does not offer 'exp'"):
        covpool.matrix_function(singular, ("sqrt", "exp"), "svd-pade")
    for parameter in (0.5, torch.ones(2), (0.5,), (0.5, None, None)):
        with pytest.raises(ValueError, match="one parameter for each of the 2 functions, None for"):
            covpool.matrix_function(singular, ("power", "log"), parameter=parameter)
    with pytest.raises(ValueError, match="the exponent must be a number or a tensor, got None"):
        covpool.matrix_function(singular, ("power", "sqrt"))
    with pytest.raises(ValueError, match=r"function 'sqrt' has no parameter, got 0.5"):
        covpool.matrix_function(singular, ("power", "sqrt"), parameter=(0.5, 0.5))
    with pytest.raises(ValueError, match=r"at least one function, got \(\)"):
        covpool.matrix_function(singular, ())


def test_several_functions_under_transforms():
    batch = torch.stack([with_spectrum(POSITIVE, seed) for seed in range(2)])

    def loss(a):
        root, inverse = covpool.matrix_function(a, ("sqrt", "inv_sqrt"))
        return (root @ inverse.pow(3)).sum()

    leaf = batch.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(batch), expected)
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(leaf), leaf)
    torch.testing.assert_close(found, expected)


def test_functions_that_scale_and_others_share_a_decomposition_beyond_the_range():
    """The root's is done in a unit, in which the positive part's bound would be another."""
    matrix = 1e200 * with_spectrum(POSITIVE)
    root, clamped = covpool.matrix_function(
        matrix, ("sqrt", "clamp_min"), parameter=(None, 0.6e200)
    )
    assert relative_error(root / 1e100, covpool.matrix_sqrt(matrix / 1e200)) <= 1e-14
    expected = covpool.matrix_function(matrix, "clamp_min", parameter=0.6e200)
    assert relative_error(clamped / 1e200, expected / 1e200) <= 1e-14


def test_several_functions_of_no_matrices():
    for shape in ((0, 3, 3), (2, 0, 0)):
        found = covpool.matrix_function(torch.ones(shape), ("sqrt", "log"))
        assert [tuple(result.shape) for result in found] == [shape, shape]


@pytest.mark.parametrize("shape", [(2, 0, 0), (0, 3, 3), (0, 0)])
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_no_matrices_get_a_gradient_of_zero(name, shape):
    """As torch gives it: a loss of nothing depends on everything, and not at all."""
    matrix = torch.ones(shape).requires_grad_()
    for size in ((), shape[:-2], (1, 1)):
        parameter = torch.full(size, PARAMETERS[name], dtype=torch.float64, requires_grad=True)
        found = covpool.matrix_function(matrix, name, parameter=parameter)
        assert (found.shape, found.dtype) == (shape, torch.float32)
        gradients = torch.autograd.grad(found.sum(), (matrix, parameter))
        for gradient, leaf in zip(gradients, (matrix, parameter), strict=True):
            assert torch.equal(gradient, torch.zeros_like(leaf))
        speed = torch.ones_like(parameter)
        tangent = torch.func.jvp(
            lambda p: covpool.matrix_function(matrix, name, parameter=p), (parameter,), (speed,)
        )[1]
        assert tangent.shape == shape
