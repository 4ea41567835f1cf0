"""How smooth a loss is along its own gradient: the effective β-smoothness of a training step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from covpool.analysis.records import Record
from covpool.analysis.state import unchanged_buffers, unchanged_generators


@dataclass(frozen=True, kw_only=True)
class Smoothness(Record):
    """What was met at θ and along −∇ℓ(θ), a figure for each step length.

    Attributes:
        smoothness: the effective β-smoothness: the largest finite one of `quotients`; NaN where
            there is none.
        loss: ℓ(θ).
        gradient_norm: ‖∇ℓ(θ)‖.
        step_lengths: η.
        losses: ℓ(θ − η∇ℓ(θ)).
        gradient_changes: ‖∇ℓ(θ) − ∇ℓ(θ − η∇ℓ(θ))‖.
        cosines: of the angle between the two gradients.
        quotients: the gradient's change over the length of the step; NaN where one of them is not
            finite or nothing moved.
        evaluations: gradients computed, 1 + the number of step lengths.
    """

    smoothness: float
    loss: float
    gradient_norm: float
    step_lengths: tuple[float, ...]
    losses: tuple[float, ...]
    gradient_changes: tuple[float, ...]
    cosines: tuple[float, ...]
    quotients: tuple[float, ...]
    evaluations: int

    @property
    def loss_range(self) -> tuple[float, float]:
        """Least and largest loss at the steps: the landscape of Santurkar et al., Figure 4a."""
        return min(self.losses), max(self.losses)

    @property
    def gradient_range(self) -> tuple[float, float]:
        """Least and largest change of the gradient: its predictiveness, Figure 4b."""
        return min(self.gradient_changes), max(self.gradient_changes)


def effective_smoothness(
    model: nn.Module, closure: Callable[[], Tensor], *, step_lengths: Sequence[float]
) -> Smoothness:
    """Effective β-smoothness of a loss at the model's present parameters θ, on one batch:

        β = max over η of ‖∇ℓ(θ) − ∇ℓ(θ − η∇ℓ(θ))‖ / ‖η∇ℓ(θ)‖

    Low is smooth: the gradient stays what it is when a step is taken along it. Norms are over all
    parameters that need a gradient, taken as one vector, accumulated in float64. The length of the
    step is that of the step really taken, which rounding makes differ from ‖η∇ℓ(θ)‖ where η is
    tiny.

    The model is left as it was, bit for bit: parameters, `.grad`, buffers (the running statistics
    of batch norm), training or evaluation mode, and the state of torch's random generators. Every
    evaluation starts from the same buffers and the same generator state, so that dropout draws the
    same masks: what differs is θ alone.

    Cost: 1 + len(step_lengths) forward and backward passes, and memory for three copies of the
    parameters beside them. Gradients are not accumulated, no hook of a distributed strategy is
    called, and parameters that are sharded over processes are not supported.

    Args:
        model: holds the parameters and buffers that the closure uses.
        closure: evaluates the loss on one fixed batch with the model as it is, and returns it,
            a tensor of one element: `lambda: cross_entropy(model(images), labels)`. All that is
            random in it must come from torch's generators.
        step_lengths: η, positive numbers; Santurkar et al. take 1/2 to 4 times the learning rate.

    Returns:
        `Smoothness`: β, and each step's loss and change of gradient.

    What it is not: the Lipschitz constant of the gradient, of which it is a lower bound along one
    line; nor a property of the pooling alone, as every layer takes part. It has the unit of
    1/η: networks of different scale are not comparable. At a kink of the loss (ReLU) that the
    step crosses, small η give large quotients.

    Raises:
        ValueError: no parameter that needs a gradient, step lengths that are not positive, a
            closure that returns no differentiable number, a loss or gradient at θ that is not
            finite; and what the closure raises.

    Source: Santurkar, Tsipras, Ilyas, Mądry, "How does batch normalization help optimization?",
    NeurIPS 2018, §3.1 and Figure 4; Song, Sebe, Wang, ICCV 2021, Figure 1.
    """
    lengths = tuple(float(length) for length in step_lengths)
    if not lengths or not all(0 < length < float("inf") for length in lengths):
        raise ValueError(
            f"effective_smoothness needs step lengths that are positive numbers, got {step_lengths}"
        )
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("effective_smoothness: no parameter of the model needs a gradient")

    loss, gradient = _evaluate(model, closure, parameters)
    squared = _dot(gradient, gradient)
    if not (torch.isfinite(loss) and torch.isfinite(squared)):
        raise ValueError(
            f"effective_smoothness: the loss is {loss.item():.3g} and the gradient's norm "
            f"{squared.sqrt().item():.3g} at the model's own parameters; nothing can be measured"
        )
    rows: list[tuple[float, float, float, float]] = []
    for length in lengths:
        with _moved(parameters, gradient, length) as distance:
            loss_there, gradient_there = _evaluate(model, closure, parameters)
        change = [there - here for there, here in zip(gradient_there, gradient, strict=True)]
        changed = _dot(change, change).sqrt()
        both = (squared * _dot(gradient_there, gradient_there)).sqrt()
        cosine = (_dot(gradient, gradient_there) / both).clamp(-1, 1)
        quotient = changed / distance if distance > 0 else torch.full_like(changed, torch.nan)
        quotient = torch.where(loss_there.isfinite() & quotient.isfinite(), quotient, torch.nan)
        rows.append((loss_there.item(), changed.item(), cosine.item(), quotient.item()))
    losses, changes, cosines, quotients = zip(*rows, strict=True)
    return Smoothness(
        smoothness=max((q for q in quotients if q == q), default=float("nan")),
        loss=loss.item(),
        gradient_norm=squared.sqrt().item(),
        step_lengths=lengths,
        losses=losses,
        gradient_changes=changes,
        cosines=cosines,
        quotients=quotients,
        evaluations=1 + len(lengths),
    )


def _evaluate(
    model: nn.Module, closure: Callable[[], Tensor], parameters: list[nn.Parameter]
) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradient, with buffers and generators left as they were."""
    with unchanged_buffers(model), unchanged_generators(parameters), torch.enable_grad():
        loss = closure()
        if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad):
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                "effective_smoothness: the closure must return the loss, a tensor of one element "
                f"that depends on the model's parameters, got {got}"
            )
        gradient = torch.autograd.grad(
            loss.reshape(()), parameters, allow_unused=True, materialize_grads=True
        )
    return loss.detach().double().reshape(()), [each.detach() for each in gradient]


def _dot(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """The inner product over all parameters, in float64."""
    products = [torch.sum(a.double() * b.double()) for a, b in zip(left, right, strict=True)]
    return torch.stack([each.to(products[0].device) for each in products]).sum()


@contextmanager
def _moved(
    parameters: list[nn.Parameter], gradient: list[Tensor], length: float
) -> Iterator[Tensor]:
    """The parameters moved by −length · gradient; gives the length of the step really taken.

    Their storage is exchanged and put back, not written to: nothing is rounded on the way back, and
    a graph that is alive keeps its version counters.
    """
    originals = [parameter.data for parameter in parameters]
    moved = [data - length * each for data, each in zip(originals, gradient, strict=True)]
    step = [there - here for there, here in zip(moved, originals, strict=True)]
    try:
        for parameter, data in zip(parameters, moved, strict=True):
            parameter.data = data
        yield _dot(step, step).sqrt()
    finally:
        for parameter, data in zip(parameters, originals, strict=True):
            parameter.data = data
