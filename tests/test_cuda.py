"""The layers on a CUDA GPU give what they give on the CPU; skipped where there is none."""

import pytest
import torch

import covpool
from covpool import KERNELS, METHODS
from covpool.linalg.forwards.coupled import MinimaxNewtonSchulz
from covpool.linalg.forwards.top_n import TopN
from covpool.linalg.gradients.base import DividedDifferences, Pairwise
from covpool.linalg.gradients.lyapunov import Lyapunov
from spectra import EPS, SPECTRA, null_space_rounding, range_condition, relative_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def value_and_gradient(function, x, device):
    x = x.to(device).requires_grad_()
    result = function(x)
    weight = torch.randn(result.shape[-2:], generator=torch.manual_seed(0)).to(result)
    (gradient,) = torch.autograd.grad((result * weight).sum(), x)
    return result.detach().cpu(), gradient.cpu()


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("name", METHODS)
def test_matrix_sqrt(name, spectrum, note_error):
    matrix = SPECTRA[spectrum]()
    on_gpu = value_and_gradient(lambda a: covpool.matrix_sqrt(a, name), matrix, "cuda")
    on_cpu = value_and_gradient(lambda a: covpool.matrix_sqrt(a, name), matrix, "cpu")
    assert all(tensor.isfinite().all() for tensor in on_gpu)
    row = METHODS[name]
    tied = spectrum in ("tied-diagonal", "tied-dense", "identity")
    smooth = isinstance(row.gradient, DividedDifferences | Lyapunov) or row.unrolled
    if tied and not smooth:
        return  # within a tie the others depend on the basis that the decomposition returns
    if spectrum == "clustered" and isinstance(row.forward, TopN):
        return  # the cut lies within the cluster
    tolerance = 1e-2 if spectrum == "decaying" else 1e-11
    if spectrum == "clustered" and isinstance(row.gradient, Pairwise):
        tolerance = 2e-5  # biased kernels see the cluster's vectors, known to n · eps/1e-9
    if isinstance(row.forward, MinimaxNewtonSchulz) and spectrum in ("decaying", "rank-deficient"):
        # What reaches the factors of the matrix: pairs of two null vectors are rounding errors.
        on_gpu, on_cpu = ((root, gradient @ root) for root, gradient in (on_gpu, on_cpu))
        tolerance = null_space_rounding(row)
    for one, other in zip(on_gpu, on_cpu, strict=True):
        assert note_error(f"cuda {spectrum}", name, relative_error(one, other)) <= tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["exact", "svd-pade", "isqrt-cov"])
@pytest.mark.parametrize("function", METHODS["svd"].functions)
def test_matrix_functions(function, method, dtype):
    if not METHODS[method].supports(function):
        pytest.skip("not offered")
    layer = covpool.MatrixFunction(
        function, method, exponent=torch.tensor(0.3) if function == "power" else None
    )
    matrix = SPECTRA["separated"]().to(dtype).expand(3, 8, 8)
    results = {}
    for device in ("cuda", "cpu"):
        layer.to(device)
        results[device] = value_and_gradient(layer, matrix, device)
    for one, other in zip(results["cuda"], results["cpu"], strict=True):
        assert one.dtype == dtype
        assert relative_error(one.double(), other.double()) <= 200 * torch.finfo(dtype).eps


@pytest.mark.parametrize("function", METHODS["svd"].functions)
def test_second_derivatives(function):
    exponent = torch.tensor(0.3) if function == "power" else None
    layer = covpool.MatrixFunction(function, exponent=exponent)
    matrix = SPECTRA["tied-dense"]()
    hessian = torch.func.hessian(lambda a: layer(a).pow(3).sum())
    on_cpu = hessian(matrix[:4, :4])
    layer.cuda()
    on_gpu = hessian(matrix[:4, :4].cuda())
    assert relative_error(on_gpu.cpu(), on_cpu) <= 1e-11


def test_return_info():
    _, info = covpool.matrix_sqrt(SPECTRA["separated"]().cuda(), return_info=True)
    assert info.condition_number.device.type == "cuda"
    assert info.condition_number.item() == pytest.approx(8)


@pytest.mark.parametrize("positions", [4, 8, 9, 30])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", METHODS)
def test_cov_pool(name, dtype, positions):
    x = torch.randn(2, 3, 8, 1, positions, generator=torch.manual_seed(1)).to(dtype)
    on_gpu = value_and_gradient(lambda x: covpool.cov_pool(x, name), x, "cuda")
    on_cpu = value_and_gradient(lambda x: covpool.cov_pool(x, name), x, "cpu")
    # Two ways to form a covariance know its smallest eigenvalue to eps · its condition.
    condition = range_condition(x.double().flatten(3))
    singular = null_space_rounding(METHODS[name]) if positions <= 8 else 0
    tolerance = 200 * torch.finfo(dtype).eps + EPS * condition + singular
    for one, other in zip(on_gpu, on_cpu, strict=True):
        assert one.dtype == dtype
        assert relative_error(one.double(), other.double()) <= tolerance


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(3, 6, 6), (3, 7, 6), (3, 6, 9)])
def test_decompositions(shape, kernel):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.manual_seed(2))

    def from_svd(x):
        u, s, vh = covpool.svd(x, full_matrices=False, kernel=kernel)
        return (u[..., :4] * s[..., None, :4].sqrt()) @ vh[..., :4, :]

    def from_eigh(x):
        values, vectors = covpool.eigh(x @ x.mT, kernel=kernel)
        return (vectors * values.sqrt()[..., None, :]) @ vectors.mT

    for function in (from_svd, from_eigh) if shape[1] <= shape[2] else (from_svd,):
        on_gpu = value_and_gradient(function, x, "cuda")
        on_cpu = value_and_gradient(function, x, "cpu")
        for one, other in zip(on_gpu, on_cpu, strict=True):
            assert relative_error(one, other) <= 1e-11


def test_gauge_dependence():
    matrix = SPECTRA["tied-diagonal"]().cuda()
    found = covpool.gauge_dependence(lambda w, v: v.abs().sum(), matrix)
    assert found.rotation.is_cuda
    assert found.rotation > 0.1 > found.sign


@pytest.mark.parametrize("name", METHODS)
def test_layer_under_autocast(name):
    torch.manual_seed(0)
    layer = covpool.CovPool2d(16, 8, name).cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output = layer(torch.randn(4, 16, 7, 7, device="cuda"))
    output.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_non_finite_samples_are_named():
    x = torch.randn(4, 8, 9, device="cuda")
    x[2, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"1 of 4 samples: \[2\]"):
        covpool.cov_pool(x)


@pytest.mark.parametrize("name", ["exact", "svd-newton", "isqrt-cov", "mpa-lyapunov"])
@pytest.mark.parametrize("positions", [40, 300])
def test_tf32_does_not_reach_the_products(name, positions):
    """Forward and backward, where the user has switched it on."""
    x = torch.randn(4, 128, positions, generator=torch.Generator().manual_seed(0))
    setting = torch.backends.cuda.matmul
    results = {}
    for precision in ("ieee", "tf32"):
        before, setting.fp32_precision = setting.fp32_precision, precision
        try:
            results[precision] = value_and_gradient(lambda x: covpool.cov_pool(x, name), x, "cuda")
            assert setting.fp32_precision == precision
        finally:
            setting.fp32_precision = before
    for one, other in zip(results["tf32"], results["ieee"], strict=True):
        assert relative_error(one.double(), other.double()) <= 1e-5
