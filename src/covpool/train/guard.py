"""What happens to a training step whose loss or gradient is not finite: stop, or leave it out."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from covpool.models import CovPoolModel
from covpool.train.divergence import TrainingDiverged, explain_forward, explain_gradient
from covpool.train.trainer import over_processes

EXPLAINED = 3
"""How many skipped steps are explained in full; further ones are counted."""

logger = logging.getLogger("covpool")


class Guarded(Protocol):
    """What the guard needs of the Lightning module."""

    model: CovPoolModel

    @property
    def trainer(self) -> Trainer: ...

    def seed_dropout(self) -> None: ...

    def names_of_batch(self) -> list[str]: ...


class StepGuard:
    """Watches over one run's steps; every process comes to the same decision.

    A step that is skipped leaves parameters, their average, momenta and running statistics as they
    were. It counts as a step: the order of images and the learning rate go on as planned.

    Args:
        module: whose steps.
        skip: leave bad steps out, instead of stopping.

    Attributes:
        skipped: steps left out in this epoch.
        bad: whether the step at hand is to be skipped, as far as is known.
    """

    def __init__(self, module: Guarded, *, skip: bool) -> None:
        self.module = module
        self.skip = skip
        self.skipped = 0
        self.bad = False
        self.explained = 0
        self.before: list[Tensor] = []

    def begin(self) -> None:
        """A step begins."""
        self.bad = False
        if self.skip:
            self.before = [buffer.clone() for buffer in self.module.model.buffers()]

    def check_loss(self, images: Tensor, failure: str | None, where: str) -> bool:
        """Whether the loss is good in every process.

        Args:
            images: this process's batch.
            failure: what is wrong here, or None.
            where: the step, for people.

        Raises:
            TrainingDiverged: it is not, and steps are not to be skipped.
        """
        if not self._anywhere(failure is not None):
            return True
        self._refuse(where, failure, lambda: self._explain(images))
        return False

    def check_gradient(
        self, optimizer: torch.optim.Optimizer, images: Tensor, clip: float | None, where: str
    ) -> None:
        """Clip the gradient's norm; or empty the gradient, where the step is to be skipped.

        Raises:
            TrainingDiverged: it is not finite, and steps are not to be skipped.
        """
        scaler = getattr(self.module.trainer.precision_plugin, "scaler", None)
        if not self.bad:
            norm = self._clip(optimizer, clip)
            # Float16's scaler meets infinite gradients in the course of things, and skips them.
            # Under DDP all processes have the same gradient; under FSDP each has its own shard.
            bad = scaler is None and not norm.isfinite()
            if self._anywhere(bad) if self._sharded else bad:
                failure = f"the gradient's norm is {norm.item()}"
                gradient = explain_gradient(self.module.model)
                self._refuse(where, failure, lambda: f"{gradient}; {self._explain(images)}")
        if self.bad:
            optimizer.zero_grad(set_to_none=True)  # a parameter without gradient is left alone
            for buffer, kept in zip(self.module.model.buffers(), self.before, strict=True):
                buffer.copy_(kept)
            self.skipped += 1

    def after_backward(self) -> None:
        """Let float16's scaler, where there is one, know of a bad loss that had no backward."""
        if self.bad and getattr(self.module.trainer.precision_plugin, "scaler", None) is not None:
            first = next(p for p in self.module.model.parameters() if p.requires_grad)
            first.grad = torch.full_like(first, torch.inf)

    @property
    def _sharded(self) -> bool:
        return hasattr(self.module.trainer.model, "clip_grad_norm_")

    def _clip(self, optimizer: torch.optim.Optimizer, clip: float | None) -> Tensor:
        if clip is not None and self._sharded:  # the norm over all shards
            sharded: Any = self.module.trainer.model
            return sharded.clip_grad_norm_(clip)
        parameters = [p for p in _parameters(optimizer) if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if clip is not None:
            clip_grads_with_norm_(parameters, clip, norm)
        return norm

    def _anywhere(self, here: bool) -> bool:
        trainer = self.module.trainer
        if trainer.world_size == 1:
            return here
        flag = torch.tensor(int(here), device=trainer.strategy.root_device)
        return bool(over_processes(trainer, flag, "max"))

    def _refuse(self, where: str, failure: str | None, explain: Callable[[], str | None]) -> None:
        """Raise, or note that the step is to be skipped; every process calls this together."""
        reason = None
        if not self.skip or self.explained < EXPLAINED:
            self.explained += 1
            explanation = explain()  # in every process: batch norm may be synchronised
            if failure is not None:
                reason = "; ".join(filter(None, (failure, explanation)))
            reason = f"{where}: {self._first(reason)}"
        if not self.skip:
            raise TrainingDiverged(reason)
        self.bad = True
        if reason and self.module.trainer.is_global_zero:
            more = "; further ones are counted only" if self.explained == EXPLAINED else ""
            logger.warning("skipped %s%s", reason, more)

    def _explain(self, images: Tensor) -> str | None:
        module = self.module
        module.seed_dropout()
        with module.trainer.precision_plugin.train_step_context():
            return explain_forward(module.model, images, module.names_of_batch())

    def _first(self, reason: str | None) -> str | None:
        """The reason of the first process that has one."""
        trainer = self.module.trainer
        if trainer.world_size == 1:
            return reason
        owner = trainer.world_size if reason is None else trainer.global_rank
        number = torch.tensor(owner, device=trainer.strategy.root_device)
        lowest = int(over_processes(trainer, number, "min"))
        return f"process {lowest}: {trainer.strategy.broadcast(reason, src=lowest)}"


def _parameters(optimizer: Any) -> Iterable[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
