"""Whitening as a layer: batch normalisation that removes the correlation of channels too."""

from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from covpool.linalg import checks
from covpool.linalg.api import matrix_function, matrix_inv_sqrt
from covpool.linalg.evaluate import get_pairing
from covpool.linalg.functions import INV_SQRT
from covpool.linalg.methods import Method
from covpool.linalg.names import MethodName
from covpool.linalg.precision import full_precision
from covpool.linalg.spectrum import rank_tolerance
from covpool.linalg.tables import choose
from covpool.linalg.transforms import unreadable
from covpool.nn.statistics import check_options, mean, mean_and_count

Kind = Literal["zca", "cholesky"]


def _follow_loaded(layer: "Whitening", _: object) -> None:
    layer._follow_running_statistics()


class Whitening(nn.Module):
    """Decorrelated batch norm: (B, C) or (B, C, *) → the same shape, with covariance I in a batch.

    y = W (x − μ) · weight + bias, for each group of n = C/groups neighbouring channels by itself:
    μ and Σ = E[(x − μ)(x − μ)ᵀ] are those of the batch over samples and positions, and

        "zca":       W = (Σ + eps I)^(−1/2), the whitening that changes x least
        "cholesky":  W = L⁻¹ with L Lᵀ = Σ + eps I: channel i takes part in channels from i on

    With groups of one channel both are `torch.nn.BatchNorm1d` and its kin, value, gradient, running
    statistics and all. There is no PCA whitening: its axes turn and swap from batch to batch, as
    eigenvectors do, so that nothing can be learnt behind it (Huang et al., 2018).

    In training the statistics are those of the batch, and running averages of μ and of the unbiased
    covariance follow them; the gradient goes through both, and is exact where the method's is.
    In evaluation y is one product with a fixed matrix. It is computed from the running covariance
    by `eval()` and by `load_state_dict`; after you set the running statistics by other means, call
    `eval()` again. That matrix is the buffer `matrix`, which the state dict lacks: to evaluate with
    another layer's state by torch.func.functional_call, pass its `named_buffers()`, `matrix`
    included; with running statistics alone the layer would go on with its own matrix.

    In distributed training, where torch.distributed is initialised, the statistics are those of all
    processes' samples together, and the gradient is that of the joined batch. Each process must
    then call the layer equally often. torch.compile(fullgraph=True) takes all of this.

    Args:
        num_features: C.
        groups: how many groups the channels are divided in, a divisor of C. Fewer channels a group
            cost less, and their covariance is better known: take several times as many samples and
            positions as n.
        kind: "zca" or "cholesky".
        method: of the inverse root of "zca", a name of `METHODS` or a row: "exact"; "isqrt-cov"
            is IterNorm (Huang et al., 2019), whose five steps by design whiten large eigenvalues
            alone; "newton-schulz-minimax" is exact to rounding by products alone, for GPUs.
        eps: what is added to the diagonal, as in BatchNorm.
        momentum: of the running averages, as in BatchNorm; None: the plain average of all batches.
        affine: whether there are `weight` and `bias`, one for each channel.
        synchronize: whether processes share their statistics.
        compute_dtype: in which dtype covariances are formed and decomposed. None: float64. What is
            lost in `torch.float32`, for devices without float64, are eigenvalues below n · 1e-7 of
            the largest; "cholesky" may then fail for them.
        check: whether to refuse batches with NaN or infinities. Costs a synchronisation on a GPU.

    float16 and bfloat16 features, under autocast too, are computed with in float32, and y has the
    dtype of x. Call backward outside autocast, as PyTorch recommends.

    Deficient rank: with fewer samples than channels, or dead channels, Σ is singular. In its null
    space x − μ is zero, and so is W (x − μ); the gradient there is multiplied by up to 1/√eps, as
    BatchNorm's is for a constant channel. Eigenvalues λ of Σ become λ/(λ + eps) in the covariance
    of W (x − μ). Eigenvalues of Σ + eps I below n · finfo(compute_dtype).eps of the largest count
    as zero.

    Raises:
        ValueError: numbers out of range, groups that do not divide C, an unknown kind or method, a
            method with "cholesky"; in `forward`, another shape or dtype and, in training, a single
            value for each channel, and NaN or infinities, by channel; of "cholesky", in training
            and in `eval()`, Σ + eps I that is singular to rounding or not finite. Compiled, that
            is torch's LinAlgError.

    Source: Huang, Yang, Lang, Deng, "Decorrelated batch normalization", CVPR 2018; Huang, Zhou,
    Zhu, Liu, Shao, "Iterative normalization", CVPR 2019; for the running covariance Huang, Zhao,
    Zhou, Zhu, Liu, Shao, "An investigation into the stochasticity of batch whitening", CVPR 2020.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> y = Whitening(3, affine=False)(torch.randn(100, 3) @ torch.randn(3, 3))
    >>> torch.testing.assert_close(y.T.cov(correction=0), torch.eye(3), atol=1e-2, rtol=0)
    """

    running_mean: Tensor
    running_cov: Tensor
    num_batches_tracked: Tensor
    matrix: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        groups: int = 1,
        kind: Kind = "zca",
        method: MethodName | Method = "exact",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        synchronize: bool = True,
        compute_dtype: torch.dtype | None = None,
        check: bool = True,
    ) -> None:
        super().__init__()
        share = 1.0 if momentum is None else momentum
        check_options("Whitening", share, eps, num_features=num_features, groups=groups)
        if num_features % groups:
            raise ValueError(
                f"Whitening: {num_features} channels do not divide into {groups} groups"
            )
        checks.compute_dtype("Whitening", compute_dtype)
        choose("kind of whitening", kind, dict.fromkeys(get_args(Kind)))
        self.method = get_pairing("Whitening", INV_SQRT, method)
        if kind == "cholesky" and self.method.name != "exact":
            raise ValueError(
                f"Whitening: kind 'cholesky' takes no root, got method {self.method.name!r}; "
                "leave the method out, or take kind='zca'"
            )
        self.num_features = num_features
        self.groups = groups
        self.kind = kind
        self.eps = eps
        self.momentum = momentum
        self.synchronize = synchronize
        self.compute_dtype = compute_dtype
        self.check = check
        size = num_features // groups
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_cov", torch.eye(size).repeat(groups, 1, 1))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self.register_buffer("matrix", torch.empty(groups, size, size), persistent=False)
        self._follow_running_statistics()
        self.register_load_state_dict_post_hook(_follow_loaded)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if not mode:
            self._follow_running_statistics()
        return self

    @torch.inference_mode(False)  # what is computed there could not be differentiated by later
    @torch.no_grad()
    def _follow_running_statistics(self) -> None:
        """The matrix of evaluation, from the running covariance."""
        covariance = self.running_cov.to(self._dtype(self.running_cov))
        # An average of covariances, rounded to the buffer's dtype, may have lost its definiteness.
        covariance = matrix_function(
            covariance, "positive_part", compute_dtype=self.compute_dtype, check=False
        )
        self.matrix = self._whitening(covariance).to(self.running_cov)

    def _dtype(self, like: Tensor) -> torch.dtype:
        return self.compute_dtype or torch.promote_types(like.dtype, torch.float64)

    def _whitening(self, covariance: Tensor) -> Tensor:
        """W of covariances (groups, n, n)."""
        identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        shifted = covariance + self.eps * identity
        if self.kind == "cholesky":
            try:
                factor = torch.linalg.cholesky(shifted)
            except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
                raise ValueError(self._without_factor(shifted.detach())) from error
            return torch.linalg.solve_triangular(factor, identity, upper=False)
        return matrix_inv_sqrt(shifted, self.method, compute_dtype=self.compute_dtype, check=False)

    def _without_factor(self, shifted: Tensor) -> str:
        """Why matrices (groups, n, n) have no Cholesky factor, and what helps."""
        refusal = f"Whitening: kind 'cholesky' finds no factor of Σ + eps I with eps={self.eps:g}: "
        if not shifted.isfinite().all():
            return (
                f"{refusal}Σ is not finite; find the cause upstream (a diverged loss, float16 "
                "overflow), and reset the running statistics if they hold it"
            )
        variances = shifted.diagonal(dim1=-2, dim2=-1)
        # The backward error of the factorisation.
        needed = rank_tolerance(shifted.shape[-1], shifted.dtype) * variances.sum(-1).max().item()
        wider = "" if shifted.dtype == torch.float64 else "compute_dtype=torch.float64, "
        return (
            f"{refusal}it is singular to the rounding of {shifted.dtype}, with variances up to "
            f"{variances.max().item():.3g}; take an eps of at least {2 * needed:.1g}, {wider}or "
            "kind='zca', which counts such eigenvalues as zero"
        )

    def forward(self, x: Tensor) -> Tensor:
        checks.floating("Whitening", x)
        if x.ndim < 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"Whitening needs features (B, {self.num_features}) or "
                f"(B, {self.num_features}, *), got {tuple(x.shape)}"
            )
        with full_precision(x):
            by_channel = x.transpose(0, 1)
            features = by_channel.flatten(1).unflatten(0, self.running_cov.shape[:2])
            products = torch.promote_types(x.dtype, torch.float32)
            if self.training:
                centred, matrix = self._centre_and_follow(features.to(self._dtype(x)), x)
            else:
                centre = self.running_mean.reshape(*features.shape[:-1], 1)
                centred, matrix = features.to(products) - centre.to(products), self.matrix
            matrix = matrix.to(products)
            if self.weight is None or self.bias is None:
                whitened = matrix @ centred.to(products)
            else:
                weight, bias = (
                    each.to(products).reshape(*features.shape[:-1], 1)
                    for each in (self.weight, self.bias)
                )
                whitened = weight * matrix @ centred.to(products) + bias
        return whitened.reshape(by_channel.shape).transpose(0, 1).contiguous().to(x.dtype)

    def _centre_and_follow(self, features: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The centred features (groups, n, N) and W of the batch; running averages follow it."""
        total, number = features.sum(-1, keepdim=True), features.shape[-1]
        centre, count = mean_and_count("Whitening", total, number, self.synchronize, x)
        centred = features - centre
        covariance = mean(centred @ centred.mT, count, self.synchronize)
        if self.check and not unreadable(x):
            self._refuse_non_finite(covariance.detach().diagonal(dim1=-2, dim2=-1).flatten())
        matrix = self._whitening(covariance)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            share = self.momentum
            if share is None:
                share = 1 / self.num_batches_tracked.to(covariance.dtype)
            for running, found in (
                (self.running_mean, centre.flatten()),
                (self.running_cov, covariance * (count / (count - 1))),
            ):
                running.add_((found - running) * share)
        return centred, matrix

    def _refuse_non_finite(self, variance: Tensor) -> None:
        bad = ~variance.isfinite()
        if bad.any():
            channels = bad.nonzero().flatten().tolist()
            more = ", …" if len(channels) > 8 else ""
            raise ValueError(
                f"Whitening: NaN or infinite values in {len(channels)} of {len(variance)} "
                f"channels: [{', '.join(map(str, channels[:8]))}{more}]; find their cause upstream "
                "(a diverged loss, float16 overflow, a division by zero)"
            )

    def extra_repr(self) -> str:
        shown = [f"{self.num_features}, groups={self.groups}, kind={self.kind!r}"]
        if self.kind == "zca":
            shown.append(f"method={self.method.name!r}")
            shown += [f"{name}={value}" for name, value in self.method.constants.items()]
        shown.append(f"eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}")
        return ", ".join(shown)
