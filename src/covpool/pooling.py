"""Global covariance pooling: functions on feature maps, and the module."""

import math
import warnings

import torch
from torch import Tensor, nn

from covpool.linalg import checks
from covpool.linalg.autograd.pooled import covariance_function
from covpool.linalg.autograd.product import multiplication
from covpool.linalg.autograd.root import iterate
from covpool.linalg.checks import require_integer
from covpool.linalg.covariance import Computation, plainly_centred, works_on_gram
from covpool.linalg.evaluate import get_pairing
from covpool.linalg.functions import SQRT, ScalarFunction
from covpool.linalg.methods import Method, get_method, warn_of_float32
from covpool.linalg.names import MethodName
from covpool.linalg.precision import full_precision, on_cpu, range_unit
from covpool.linalg.products import SUBSTITUTE, root_in_products
from covpool.linalg.spectrum import real_dtype, symmetric_part
from covpool.linalg.transforms import as_leaf, recorded

VECTOR_LAYOUT = "triu-row-major-v1"
"""The order of `triu_vector`. Part of a checkpoint's meaning: it is recorded beside the weights."""


ONE_POSITION = (
    "one position has no covariance; take larger images or a backbone of a smaller stride "
    "(last_stride=1 or output_stride=16 of create_model, where the backbone has them)"
)


def covariance(x: Tensor, *, correction: int = 0) -> Tensor:
    """The covariance Σ = Xc Xcᵀ / N over positions, Xc = X − mean; Xc Xcᴴ / N of complex features.

    Args:
        x: (*, C, H, W), or (*, C, N) where it has two or three dimensions.
        correction: the sum is divided by N − `correction`, as `torch.cov` does, whose default is 1
            (Bessel's correction, without bias). 0 here, as in `cov_pool`.

    Returns:
        (*, C, C) in the input's dtype, of rank at most N − 1, so zero of one position. In float32
        its small eigenvalues are rounding errors: for a root, convert to float64 first or let
        `cov_pool` choose.

    Call backward outside autocast, as PyTorch recommends: within it, the product of the backward
    pass is in half precision.

    Raises:
        ValueError: fewer than two dimensions, none of C or N, not floating point, complex64 or
            complex128, or a correction that is not whole, below 0, or not below N.

    Source: the maximum-likelihood estimate, as in MPN-COV (Li, Xie, Wang, Zuo, ICCV 2017).
    """
    features, readable = checks.features("covariance", x, check_finite=False)
    require_integer("covariance: correction", correction, 0)
    if features.shape[-1] <= correction:
        raise ValueError(
            f"covariance: correction {correction} needs more than {correction} positions, got "
            f"{features.shape[-1]} in shape {tuple(x.shape)}; take a smaller correction"
        )
    with full_precision(x):
        unit = range_unit(features, x.dtype, power=6, readable=readable)
        if unit is None:
            return _covariance(features, correction)
        return _covariance(features / unit, correction) * unit * unit


def _covariance(features: Tensor, correction: int = 0) -> Tensor:
    centred = plainly_centred(features)
    return multiplication(centred)(centred, centred.mH) / (features.shape[-1] - correction)


def cov_pool(
    x: Tensor,
    method: MethodName | Method = "exact",
    *,
    compute_dtype: torch.dtype | None = None,
    check_finite: bool = True,
) -> Tensor:
    """Global covariance pooling: the square root of the covariance of a feature map's channels.

    Σ = Xc Xcᵀ / N over the N positions of each sample; the result is Σ^(1/2) as `method` computes
    and differentiates it. Where N − 1 < C it is computed from the N × N Gram matrix of the centred
    features, without forming Σ: cheaper, and well posed although Σ is singular. The two ways agree
    beyond rounding.

    Args:
        x: (*, C, H, W), or (*, C, N) where it has two or three dimensions. float64, float32, or
            float16/bfloat16 (under autocast too), which are computed in higher precision.
            Complex128 and complex64 with Σ = Xc Xcᴴ / N: a dtype named below stands for the complex
            one of its precision.
        method: as for `matrix_sqrt`.
        compute_dtype: the dtype of the computation. None: what is decomposed is formed and
            decomposed in float64, and products around the decomposition are in float32 (float64
            for float64 input). Methods to which small singular values are like others
            (`isqrt-cov`, `mtp-lyapunov`, `mpa-lyapunov`) are in float32 throughout, but for the
            covariance where they iterate on a CPU: at C = 256 the value is off by about 1e-6, the
            gradient by about 2e-6. `torch.float32` is for
            devices without float64: singular values of Xc below √(C · eps) of the largest, 1/180
            at C = 256, are then lost, and the gradient is wrong by tens of percent where there
            are any; a UserWarning says so, for methods to which small singular values matter.
        check_finite: whether to refuse NaN and infinities by sample. Costs a synchronisation on a
            GPU.

    Returns:
        (*, C, C) symmetric or Hermitian, in the input's dtype.

    One position has no covariance: the result is zero, with zero gradient and a UserWarning.

    Ties and rank deficiency: as for `matrix_sqrt`. The gradient of x is right for `exact` at any
    rank, unless singular values of Xc that are not zero lie near or below √(C · eps) of the
    largest, 2.4e-7 at C = 256 in float64: those count as zero.

    Second derivatives and forward mode: as for `matrix_sqrt`, on both ways; second derivatives
    are computed by way of the covariance. Call backward outside autocast, as PyTorch recommends:
    within it, the products of the backward pass of `isqrt-cov`, where it iterates, are done in half
    precision. It does so where N > C, on a CPU up to 24 channels.

    Raises:
        ValueError: a bad shape or dtype, an unknown method, or non-finite samples.

    Source: Li, Xie, Wang, Zuo, "Is second-order information helpful for large-scale visual
    recognition?", ICCV 2017, and the method's own.

    >>> import torch, covpool
    >>> covpool.cov_pool(torch.randn(8, 256, 7, 7), method="svd-pade").shape
    torch.Size([8, 256, 256])
    """
    checks.compute_dtype("cov_pool", compute_dtype)
    features, readable = checks.features("cov_pool", x, check_finite)
    row = get_method(method)
    warn_of_float32(row, compute_dtype, stacklevel=2)
    dtype = row.dtype(x.dtype, compute_dtype)
    if features.shape[-1] == 1 and not torch.compiler.is_compiling():
        warnings.warn(f"cov_pool gives zeros: {ONE_POSITION}", UserWarning, stacklevel=2)
    narrow = compute_dtype is None and not row.smooth
    products = torch.promote_types(x.dtype, torch.float32) if narrow else dtype
    iteration = row.iteration
    if iteration is not None and works_on_gram(features):
        iteration = None
    unit = range_unit(features, dtype, power=6, readable=readable)
    if unit is not None:
        features = features / unit
    if not readable and recorded() and (steps := row.forward.product_steps(dtype)) is not None:
        with full_precision(features):
            pooled = root_in_products(features.to(dtype), *steps)
    # By the matrix where that is quicker, which does not depend on the batch: a sample's result is
    # to depend on nothing but itself.
    elif iteration is not None and (
        not (cpu := on_cpu(features)) or features.shape[-2] <= iteration.iterated_channels
    ):
        # Few channels on a CPU: float64 halves the error for little. A GPU's may be 64 times as
        # slow.
        wide = cpu and compute_dtype is None
        formed = torch.promote_types(dtype, torch.float64) if wide else dtype
        with full_precision(features):
            matrix = _covariance(features.to(formed)).to(dtype)
            pooled = iterate(symmetric_part(matrix), SQRT, row)
    else:
        pooled = covariance_function(features, Computation(SQRT, row, dtype, products, readable))[0]
    return (pooled if unit is None else pooled * unit).to(x.dtype)


def cov_pool_in_products(x: Tensor, method: Method, dtype: torch.dtype | None = None) -> Tensor:
    """`cov_pool` by a method that consists of matrix products, in these alone, as graphs have it.

    Args:
        x: as for `cov_pool`, real.
        method: one whose forward algorithm has `product_steps`.
        dtype: of the products; None: the method's.
    """
    dtype = method.dtype(x.dtype, dtype)
    steps = method.forward.product_steps(dtype)
    assert steps is not None
    features, _ = checks.features("cov_pool", x, check_finite=False)
    with full_precision(features):
        return root_in_products(features.to(dtype), *steps).to(x.dtype)


def cov_function(
    x: Tensor,
    function: ScalarFunction,
    method: str | Method = "exact",
    *,
    check_finite: bool = True,
) -> Tensor:
    """Any scalar function of the covariance, f(Σ), computed from the features as `cov_pool` does.

    Where N − 1 < C it is f(0) I + (f − f(0))(Σ), of which the second term vanishes on the null
    space and comes from the N × N Gram matrix.

    Args:
        x: as for `cov_pool`, real.
        function: of λ ≥ 0; its parameter, if it has one, bound to a number. One of `FUNCTIONS`
            whose value at zero is not finite is taken on the range alone, as `matrix_function`
            does; with one of your own such a covariance gives NaN.
        method: one that offers the function.
        check_finite: as for `cov_pool`.

    Returns:
        (*, C, C) symmetric, in the input's dtype. Gradients, ties and rank deficiency as for
        `matrix_function`; those of the features are right at any rank.

    Raises:
        ValueError: a bad shape or dtype, non-finite samples, a method without the function.
    """
    features, readable = checks.features("cov_function", x, check_finite)
    row = get_pairing("cov_function", function, method)
    dtype = row.dtype(x.dtype, None)
    products = dtype if row.forward.smooth else torch.promote_types(x.dtype, torch.float32)
    computation = Computation(function, row, dtype, products, readable)
    result = covariance_function(features, computation)[0]
    null = function.value(torch.zeros((), dtype=dtype, device=x.device))
    # What is smooth at zero by its algorithm has its own value there already.
    if not row.smooth:
        result = result + null.to(result.dtype) * _identity(result)
    return result.to(x.dtype)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def triu_vector(matrix: Tensor, *, isometric: bool = False) -> Tensor:
    """The upper triangle, diagonal included, row by row: (*, n, n) → (*, n(n+1)/2).

    Args:
        matrix: (*, n, n); what is below its diagonal is not read.
        isometric: whether to multiply the entries off the diagonal by √2. Of symmetric and
            Hermitian matrices, lengths are then Frobenius norms, and real parts of inner products
            are kept, as distances in tangent spaces need. Off by default, as in MPN-COV and in the
            layout that checkpoints of `CovPool2d` record, `VECTOR_LAYOUT`.

    Raises:
        TypeError: not a tensor.
        ValueError: not square, or neither floating point nor complex.

    Source: the vector of MPN-COV (Li, Xie, Wang, Zuo, ICCV 2017).

    >>> triu_vector(torch.arange(9.0).reshape(3, 3))
    tensor([0., 1., 2., 4., 5., 8.])
    """
    checks.square("triu_vector", matrix, complex_too=True)
    size = matrix.shape[-1]
    row, column = torch.triu_indices(size, size, device=matrix.device)
    vector = matrix.flatten(-2).index_select(-1, row * size + column)
    if not isometric:
        return vector
    weights = matrix.new_ones(row.shape, dtype=real_dtype(matrix.dtype))
    return vector * weights.masked_fill_(row != column, math.sqrt(2))


def channel_reduction(channels: int, reduced_channels: int | None) -> nn.Module:
    """1×1 convolution, batch norm and ReLU to `reduced_channels`; None: the identity."""
    if reduced_channels is None:
        return nn.Identity()
    convolution = nn.Conv2d(channels, reduced_channels, kernel_size=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(reduced_channels), nn.ReLU(inplace=True))


def _as_batch(x: Tensor, channels: int) -> Tensor:
    """Feature maps (B, C, H, W), one of a single map, or a ValueError where there is no covariance.

    Batch norm takes no map without a batch, and `cov_pool` would read (C, H, W) as C samples.
    """
    checks.tensor("CovPool2d", x)
    if x.ndim not in (3, 4) or x.shape[-3] != channels:
        raise ValueError(
            f"CovPool2d needs features (B, {channels}, H, W) or ({channels}, H, W), got "
            f"{tuple(x.shape)}"
        )
    checks.floating("CovPool2d", x)
    if x.shape[-2] * x.shape[-1] == 1:
        raise ValueError(f"CovPool2d: {ONE_POSITION}; got features {tuple(x.shape)}")
    return x if x.ndim == 4 else x.unsqueeze(0)


def _batched_as(pooled: Tensor, x: Tensor) -> Tensor:
    """The result without a batch where the feature map x had none."""
    return pooled if x.ndim == 4 else pooled.squeeze(0)


# What decides by shapes and values is one call in a graph of torch.fx.
for _function in (_as_batch, _batched_as, cov_pool, cov_pool_in_products, triu_vector):
    torch.fx.wrap(_function)


class CovPool2d(nn.Module):
    """Global covariance pooling as a layer: (B, C, H, W) → (B, `out_features`).

    One sample (C, H, W) gives (`out_features`,), as with PyTorch's own pooling layers.

    1×1 convolution, batch norm and ReLU to `reduced_channels`, then `cov_pool`, then the upper
    triangle as a vector. A method has no parameters: assign `method` at any time, as the hybrid
    training protocol does, and checkpoints interchange.

    Args:
        in_channels: C of the input.
        reduced_channels: channels that are pooled; None pools the input's own. The paper's 256
            gives a vector of 32,896.
        method: as for `matrix_sqrt`; its ties and rank deficiency hold here too.
        vectorize: False gives the matrix (B, r, r), or (r, r) of one sample, instead of its upper
            triangle.
        compute_dtype: as for `cov_pool`.
        check_finite: as for `cov_pool`.

    Raises:
        ValueError: a number of channels that is not whole or below 1, an unknown method; in
            `forward`, another shape than (B, in_channels, H, W) and (in_channels, H, W), one
            position alone (a 1×1 map), and as `cov_pool`.

    Source: Li, Xie, Wang, Zuo, "Is second-order information helpful for large-scale visual
    recognition?", ICCV 2017.
    """

    def __init__(
        self,
        in_channels: int,
        reduced_channels: int | None = 256,
        method: MethodName | Method = "exact",
        vectorize: bool = True,
        *,
        compute_dtype: torch.dtype | None = None,
        check_finite: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("reduced_channels", reduced_channels)):
            if not (value is None and name == "reduced_channels"):
                require_integer(f"CovPool2d: {name}", value, 1)
        self.in_channels = in_channels
        self.method = method
        self.vectorize = vectorize
        self.compute_dtype = compute_dtype
        self.check_finite = check_finite
        self.products = False
        self.channels = reduced_channels or in_channels
        self.reduction = channel_reduction(in_channels, reduced_channels)

    @property
    def method(self) -> Method:
        """The row in use; assign a name or a row."""
        return self._method

    @method.setter
    def method(self, method: MethodName | Method) -> None:
        self._method = get_method(method)

    @property
    def out_features(self) -> int:
        """The length of the output vector (of the flattened matrix where not vectorized)."""
        size = self.channels
        return size * (size + 1) // 2 if self.vectorize else size * size

    def in_matrix_products(self, dtype: torch.dtype) -> str | None:
        """Compute by matrix products alone from now on, see `covpool.exportable`.

        Returns:
            What stands in for the method, if it is another one.
        """
        self.products = True
        if self._method.forward.product_steps(dtype) is None:
            self.method, self.compute_dtype = SUBSTITUTE, dtype
            return SUBSTITUTE
        if self._method.name == SUBSTITUTE:
            self.compute_dtype = dtype
        return None

    def forward(self, x: Tensor) -> Tensor:
        if (leaf := as_leaf(self, x)) is not None:
            return leaf
        features = self.reduction(_as_batch(x, self.in_channels))
        if self.products:
            pooled = cov_pool_in_products(features, self._method, self.compute_dtype)
        else:
            pooled = cov_pool(
                features,
                self._method,
                compute_dtype=self.compute_dtype,
                check_finite=self.check_finite,
            )
        return _batched_as(triu_vector(pooled) if self.vectorize else pooled, x)

    def extra_repr(self) -> str:
        constants = "".join(f", {name}={value}" for name, value in self._method.constants.items())
        return f"method={self._method.name!r}{constants}, out_features={self.out_features}"
