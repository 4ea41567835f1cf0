"""Why a loss or a gradient is not finite: which layer, and the spectrum of the worst image."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from covpool.linalg.diagnostics import diagnose
from covpool.models import CovPoolModel
from covpool.pooling import CovPool2d, covariance


class TrainingDiverged(RuntimeError):
    """The loss, features or weights ceased to be finite. The last checkpoint is not affected."""


class Observer:
    """What the hooks of `observing` saw during one forward pass.

    Attributes:
        layer: the first module, in the order of execution, whose output was not finite.
        features: what was pooled, (B, C, H, W), before the covariance.
        pooled: the pooled vectors.
    """

    layer: str | None = None
    features: Tensor | None = None
    pooled: Tensor | None = None


@contextmanager
def observing(model: CovPoolModel) -> Iterator[Observer]:
    """Watch the outputs of the model's modules; no compiled code runs meanwhile."""
    seen, handles = Observer(), []

    def watch(name: str, module: nn.Module) -> None:
        def note(module: nn.Module, inputs: object, output: object) -> None:
            if seen.layer is None and isinstance(output, Tensor) and not output.isfinite().all():
                seen.layer = f"{name} ({type(module).__name__})"

        handles.append(module.register_forward_hook(note))

    def keep_features(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.features = output.detach()

    def keep_pooled(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.pooled = output.detach()

    for name, module in model.named_modules():
        if module is model.pool or not any(True for _ in module.children()):
            watch(name, module)
    if isinstance(model.pool, CovPool2d):
        handles.append(model.pool.reduction.register_forward_hook(keep_features))
        handles.append(model.pool.register_forward_hook(keep_pooled))
    try:
        with torch.compiler.set_stance("force_eager"):
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def explain_forward(model: CovPoolModel, images: Tensor, names: Sequence[str]) -> str | None:
    """Run the model once more and say what is not finite, and the worst image's spectrum.

    Args:
        model: in training mode, as in the step; its running statistics are changed.
        images: the batch.
        names: what to call its images.

    Returns:
        None where images, layers and features are all finite and there is no spectrum.
    """
    parts = []
    broken = ~images.flatten(1).isfinite().all(1)
    if broken.any():
        parts.append(f"the input itself is not finite in {_list(broken, names)}")
    with torch.no_grad(), observing(model) as seen:
        try:
            model(images)
        except ValueError:
            if seen.layer is None:  # it is not for its values that the pooling refuses the batch
                raise
    if seen.layer is not None:
        parts.append(f"the first layer whose output is not finite is {seen.layer}")
    if seen.features is not None and not broken.any():
        parts += _worst_spectrum(seen.features, seen.pooled, names)
    return "; ".join(parts) or None


def explain_gradient(model: nn.Module) -> str:
    """The parameter nearest to the loss whose gradient is not finite."""
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name} is not finite (those nearer to the loss are)"
    return "the gradient's norm is beyond the range of its numbers"


def _worst_spectrum(features: Tensor, pooled: Tensor | None, names: Sequence[str]) -> list[str]:
    finite = features.flatten(1).isfinite().all(1).cpu()
    parts = []
    if not finite.all():
        parts.append(f"the pooled features are not finite in {_list(~finite, names)}")
    suspects = finite
    if pooled is not None:
        lost = finite & ~pooled.flatten(1).isfinite().all(1).cpu()
        suspects = lost if lost.any() else finite
    if suspects.any():
        figures = diagnose(covariance(features.cpu()[suspects].double()), check=False)
        # Where several are singular, the one that lost most of its rank, then the closest pair.
        order = sorted(
            range(int(suspects.sum())),
            key=lambda i: (
                -figures.condition_number[i].item(),
                int(figures.rank[i]),
                figures.smallest_relative_gap[i].item(),
            ),
        )
        worst = order[0]
        which = names[int(suspects.nonzero().flatten()[worst])]
        parts.append(
            f"the worst spectrum is that of {which}: condition number "
            f"{figures.condition_number[worst]:.3g}, smallest relative gap "
            f"{figures.smallest_relative_gap[worst]:.3g}, rank {int(figures.rank[worst])} of "
            f"{figures.size}"
        )
    return parts


def _list(mask: Tensor, names: Sequence[str]) -> str:
    chosen = [name for name, bad in zip(names, mask.tolist(), strict=True) if bad]
    more = f" and {len(chosen) - 3} more" if len(chosen) > 3 else ""
    return ", ".join(chosen[:3]) + more
