"""Batch normalisation of symmetric positive definite matrices."""

import torch
from torch import Tensor, nn

from covpool.linalg import checks
from covpool.linalg.api import matrix_exp, matrix_function, matrix_log, matrix_power
from covpool.linalg.precision import full_precision
from covpool.linalg.products import NoProductForm
from covpool.linalg.spectrum import rank_tolerance, symmetric_part
from covpool.linalg.transforms import unreadable
from covpool.nn.statistics import check_options, mean, mean_and_count


class RiemannianBatchNorm(nn.Module):
    """Batch norm of positive definite matrices: (*, n, n) → (*, n, n), mean by all of (*).

    Y = G^(1/2) (M^(−1/2) X M^(−1/2))^p G^(1/2), with M the mean of the batch and G a positive
    definite matrix that is learnt. M is a step of Karcher flow from the arithmetic mean A towards
    the mean of the affine-invariant metric, the M that minimises Σ ‖log(M^(−1/2) X M^(−1/2))‖²:

        M = A^(1/2) exp(mean of log(A^(−1/2) X A^(−1/2))) A^(1/2)

    So the eigenvalues of M^(−1/2) X M^(−1/2) do not depend on basis and units, X → C X Cᵀ. p is 1
    or, with `dispersion`, s/√(V + eps): V is the mean of ‖log(M^(−1/2) X M^(−1/2))‖², and s > 0 is
    learnt.

    In training the running mean follows M by `momentum` along the geodesic, and the running V
    linearly; in evaluation they stand in for M and V. The gradient is exact: it goes through M and
    V. In distributed training, where torch.distributed is initialised, M and V are those of all
    processes' matrices together, and the gradient is that of the joined batch, as in `Whitening`.

    Args:
        num_features: n.
        steps: of Karcher flow.
        momentum: of the running statistics.
        affine: whether G, and s where there is a dispersion, are learnt. `bias` is the symmetric
            matrix log G, `log_scale` is log s; both start at zero, G = I and s = 1.
        dispersion: whether to divide by the batch's dispersion (Kobler, Hirayama, Zhao, Kawanabe,
            2022).
        eps: what is added to V.
        synchronize: whether processes share their statistics.
        check: whether to refuse matrices, in training and in evaluation, that are not finite,
            symmetric and positive definite, and parameters that are not finite. Costs
            synchronisations on a GPU. The matrices must be of full rank: put `ReEig` before.

    All is computed in float64, and the running mean is kept in it: as M^(−1/2) is taken of it, its
    small eigenvalues count. Where the layer is converted, as by `float()`, so is the running mean,
    and its eigenvalues below n · finfo(dtype).eps of the largest entry are lifted to that.

    Raises:
        ValueError: numbers out of range; in `forward`, another shape, a single matrix in training
            and, with `check`, matrices that are not finite, symmetric or positive definite, by
            index, and parameters that are not finite.

    Source: Brooks, Schwander, Barbaresco, Schneider, Cord, "Riemannian batch normalization for SPD
    neural networks", NeurIPS 2019.
    """

    running_mean: Tensor
    running_var: Tensor | None

    def __init__(
        self,
        num_features: int,
        *,
        steps: int = 1,
        momentum: float = 0.1,
        affine: bool = True,
        dispersion: bool = False,
        eps: float = 1e-5,
        synchronize: bool = True,
        check: bool = True,
    ) -> None:
        super().__init__()
        name = "RiemannianBatchNorm"
        check_options(name, momentum, eps, num_features=num_features, steps=steps)
        self.num_features = num_features
        self.steps = steps
        self.momentum = momentum
        self.dispersion = dispersion
        self.eps = eps
        self.synchronize = synchronize
        self.check = check
        self.bias = nn.Parameter(torch.zeros(num_features, num_features)) if affine else None
        self.log_scale = nn.Parameter(torch.tensor(0.0)) if affine and dispersion else None
        self.register_buffer("running_mean", torch.eye(num_features, dtype=torch.float64))
        self.register_buffer("running_var", torch.tensor(1.0) if dispersion else None)

    def in_matrix_products(self, dtype: torch.dtype) -> str | None:
        raise NoProductForm(
            "roots and exponentials of its statistics and the power of its dispersion; "
            "covpool.nn.Whitening, of the features before they are pooled, has one"
        )

    def forward(self, matrix: Tensor) -> Tensor:
        checks.square("RiemannianBatchNorm", matrix)
        if matrix.shape[-1] != self.num_features:
            raise ValueError(
                f"RiemannianBatchNorm needs matrices (*, {self.num_features}, "
                f"{self.num_features}), got {tuple(matrix.shape)}"
            )
        with full_precision(matrix):
            x = symmetric_part(matrix.to(torch.float64))
            if self.check and matrix.numel() and not unreadable(matrix):
                self._refuse(matrix.detach(), x.detach())
            if self.training:
                centred, variance = self._centre_and_follow(x[None].flatten(0, -3), matrix)
                centred = centred.reshape(x.shape)
            else:
                _, inverse = self._running_roots()
                centred, variance = _turned(x, inverse), self.running_var
            if variance is not None:
                exponent = (variance.to(x) + self.eps).rsqrt()
                if self.log_scale is not None:
                    exponent = exponent * self.log_scale.to(x).exp()
                centred = matrix_power(centred, exponent, check=False)
            if self.bias is not None:
                root = matrix_exp(symmetric_part(self.bias.to(x)) / 2, check=False)
                centred = _turned(centred, root)
            return centred.to(matrix.dtype)

    def _refuse(self, matrix: Tensor, symmetric: Tensor) -> None:
        """Look at what is given; what is computed from it is off by rounding alone."""
        caller = "RiemannianBatchNorm"
        for name, parameter in self.named_parameters():
            checks.finite(f"{caller}: {name}", parameter, sample_dims=0)
        checks.entries(caller, matrix)
        checks.positive_definite_matrix(caller, symmetric, matrix.dtype, None, floor_helps=False)

    def _centre_and_follow(self, x: Tensor, given: Tensor) -> tuple[Tensor, Tensor | None]:
        """M^(−1/2) X M^(−1/2) of (B, n, n) and V of the batch; running statistics follow it."""
        caller = "RiemannianBatchNorm"
        centre, count = mean_and_count(caller, x.sum(0), len(x), self.synchronize, given)
        for _ in range(self.steps):
            root, inverse = _roots(centre)
            logarithms = matrix_log(_turned(x, inverse), check=False)
            direction = mean(logarithms.sum(0), count, self.synchronize)
            centre = _turned(matrix_exp(direction, check=False), root)
        _, inverse = _roots(centre)
        centred = _turned(x, inverse)
        variance = None
        if self.dispersion:
            squares = matrix_log(centred, check=False).square().sum()
            variance = mean(squares, count, self.synchronize)
        with torch.no_grad():
            root, inverse = self._running_roots()
            along = matrix_power(_turned(centre, inverse), self.momentum, check=False)
            self.running_mean.copy_(_turned(along, root))
            if variance is not None and self.running_var is not None:
                self.running_var.lerp_(variance.to(self.running_var), self.momentum)
        return centred, variance

    def _running_roots(self) -> tuple[Tensor, Tensor]:
        """The roots of the running mean, which rounding to its dtype may have made indefinite."""
        running = self.running_mean
        share = rank_tolerance(self.num_features, running.dtype)
        running = running.to(torch.float64)
        return _roots(running, floor=share * running.diagonal().amax())

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, steps={self.steps}, momentum={self.momentum}, "
            f"affine={self.bias is not None}, dispersion={self.dispersion}"
        )


def _turned(matrix: Tensor, root: Tensor) -> Tensor:
    """R A R for symmetric R, symmetric to the last digit, which the products are not."""
    return symmetric_part(root @ matrix @ root)


def _roots(matrix: Tensor, floor: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The root and the inverse root, by one decomposition."""
    root, inverse = matrix_function(matrix, ("sqrt", "inv_sqrt"), floor=floor, check=False)
    return root, inverse
