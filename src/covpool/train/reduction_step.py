"""Steps of the weight before the covariance: nearest orthogonal gradient, optimal learning rate.

Song, Sebe, Wang, "Improving covariance conditioning of the SVD meta-layer by orthogonality", ECCV
2022, change how the layer before a decomposition is trained, and not what the network computes.
W, r × C, is the weight of the channel reduction, and G the gradient of the loss by it.

- NOG: G becomes the nearest matrix with orthonormal rows, U Vᵀ of G = U S Vᵀ. Its norm is √rank
  whatever the loss, so that the learning rate means another thing for this layer.
- OLR: the rate η of this step that brings W − η G nearest to orthogonality, to first order,
  η = ⟨W, W⟩⟨G, W⟩ / (⟨W, W⟩⟨G, G⟩ + 2⟨G, W⟩²), where it is above 0 and below the scheduled rate.

With both, G of the second is the gradient of the first, as in the published code. That code has
decorrelated batch norm and generative networks, and none for covariance pooling: that W is the
reduction's weight here follows the paper's abstract, "Pre-SVD layer". It completes U Vᵀ of a G of
deficient rank by arbitrary directions, those of rounding errors; here they are left out, so that a
gradient of zero stays zero.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from covpool.linalg.spectrum import rank_tolerance
from covpool.models import CovPoolModel
from covpool.train.config import OptimConfig

STEPS = ("nog", "olr")
"""The names in `optim.reduction_steps`."""


def nearest_orthogonal(gradient: Tensor) -> Tensor:
    """U Vᵀ of a gradient (r, …) = U S Vᵀ, whose rows are flattened, over its range.

    Computed in float32 at least. A gradient that is not finite is returned as it is.
    """
    matrix = gradient.flatten(1).to(torch.promote_types(gradient.dtype, torch.float32))
    if not matrix.isfinite().all():
        return gradient
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = values > rank_tolerance(max(matrix.shape), matrix.dtype) * values[:1]
    return ((left * kept) @ right).reshape(gradient.shape).to(gradient.dtype)


def optimal_rate(weight: Tensor, gradient: Tensor) -> float:
    """η of a weight and its gradient, see above; 0 where both products vanish."""
    w, g = weight.detach().flatten().double(), gradient.flatten().double()
    square, along = w @ w, g @ w
    below = square * (g @ g) + 2 * along**2
    return (square * along / torch.where(below == 0, 1, below)).item()


class ReductionStep(Callback):
    """A Lightning callback that takes the steps of one weight by NOG, OLR or both.

    It acts on the gradient that the optimiser is about to use: summed over accumulated parts,
    averaged over processes and free of the scale of mixed precision. OLR needs the weight in a
    group of its own, and sets that group's rate for the step alone. It keeps no state, so that a
    resumed run goes on as it would have.

    Args:
        weight: gives the weight of the module that is trained.
        steps: names in `STEPS`.
    """

    def __init__(
        self, weight: Callable[[LightningModule], nn.Parameter], steps: Sequence[str]
    ) -> None:
        unknown = [name for name in steps if name not in STEPS]
        if unknown:
            raise ValueError(f"unknown step {unknown[0]!r}; choose from {', '.join(STEPS)}")
        self.weight, self.steps = weight, frozenset(steps)
        self.changed: tuple[dict[str, Any], float, float] | None = None

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        weight = self.weight(pl_module)
        if weight.grad is None:
            return
        if "nog" in self.steps:
            weight.grad.copy_(nearest_orthogonal(weight.grad))
        if "olr" in self.steps:
            group = _own_group(optimizer, weight)
            scheduled, rate = group["lr"], optimal_rate(weight, weight.grad)
            if 0 < rate < scheduled:
                self.changed = group, scheduled, rate
                group["lr"] = rate

    @override
    def on_train_batch_end(self, *args: Any, **options: Any) -> None:
        if self.changed is not None:
            group, scheduled, rate = self.changed
            if group["lr"] == rate:  # a schedule has set the next one already
                group["lr"] = scheduled
            self.changed = None


def _own_group(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> dict[str, Any]:
    for group in optimizer.param_groups:
        if any(parameter is weight for parameter in group["params"]):
            if len(group["params"]) > 1:
                raise ValueError(
                    "olr sets the rate of one weight, which shares its parameter group with "
                    f"{len(group['params']) - 1} others; give it a group of its own"
                )
            return group
    raise ValueError("olr sets the rate of a weight that the optimiser does not have")


def reduction_weight(model: CovPoolModel) -> nn.Parameter:
    """The weight of the channel reduction before the pooling.

    Raises:
        ValueError: the model has none.
    """
    reduction = model.pool.reduction
    if not isinstance(reduction, nn.Sequential):
        raise ValueError(
            f"optim.reduction_steps change the steps of the channel reduction, and pooling "
            f"{model.method!r} has none here; give model.reduced_channels, or leave them out"
        )
    convolution: Any = reduction[0]
    return convolution.weight


def make_reduction_steps(config: OptimConfig) -> list[ReductionStep]:
    """The configuration's callback, if it names any step."""
    if not config.reduction_steps:
        return []

    def weight(module: Any) -> nn.Parameter:
        return reduction_weight(module.model)

    return [ReductionStep(weight, config.reduction_steps)]
