"""The Lightning module: training step, evaluation step, optimiser.

Everything random is a pure function of the seed and of the position in the run, so no generator's
state has to survive in a checkpoint; see `covpool.train.sampling`.
"""

from itertools import chain
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from covpool.data import average_over_views
from covpool.data.augmentation import MIXING, seeded
from covpool.models import CovPoolModel
from covpool.train.checkpoint import METADATA
from covpool.train.config import RunConfig
from covpool.train.divergence import TrainingDiverged
from covpool.train.guard import StepGuard
from covpool.train.loaders import ImageDataModule
from covpool.train.mixing import make_mixup
from covpool.train.optimizer import learning_rate_course, make_optimizer
from covpool.train.sampling import combine_seeds
from covpool.train.schedule import MethodSchedule
from covpool.train.trainer import over_processes
from covpool.train.weight_average import join_average, make_average, split_average


class ClassificationModule(LightningModule):
    """A pooling network under its recipe.

    Sums over the images of the epoch so far stand in `train_sums` and `test_sums`: loss, top-1
    hits, top-5 hits, number of images; after an evaluation `confusion[i, j]` counts images of
    class i called j.
    """

    def __init__(
        self,
        model: CovPoolModel,
        config: RunConfig,
        schedule: MethodSchedule,
        *,
        classes: int,
        steps_per_epoch: int,
        metadata: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.schedule = schedule
        self.classes = classes
        self.steps_per_epoch = steps_per_epoch
        self.metadata = metadata
        self.course = learning_rate_course(
            config.optim, epochs=config.train.epochs, steps_per_epoch=steps_per_epoch
        )
        self.mixup = make_mixup(config, classes)
        self.guard = StepGuard(self, skip=config.train.on_nonfinite == "skip")
        self.sums_epoch = 0
        if config.optim.trained == "classifier":
            freeze(model)
        self.step_begun = -1
        self.part = 0
        # No buffers: DDP would put the first process's in place of all the others'.
        self.train_sums = torch.zeros(4, dtype=torch.float64)
        self.test_sums = torch.zeros(4, dtype=torch.float64)
        self.confusion = torch.zeros(classes, classes, dtype=torch.long)
        self.memory_format = torch.contiguous_format
        if config.train.channels_last:
            self.memory_format = torch.channels_last
            model.to(memory_format=torch.channels_last)
        decay = config.optim.weight_average
        self.average = None if decay is None else make_average(model, decay)

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to, counted from 0.

        From the steps taken, not from Lightning's own counter, whose hooks are skipped in the
        first epoch after some resumptions.
        """
        return self.global_step // self.steps_per_epoch

    def use_method_of(self, epoch: int) -> None:
        """Let the pooling have the schedule's method of that epoch, whichever it had."""
        method = self.schedule.method_at(epoch)
        self.model.method = method
        if self.average is not None:
            self.average.module.method = method

    def compile_backbone(self) -> None:
        """Let torch.compile have the backbone. The names of the weights stay.

        The pooling is left out for its eigendecompositions, which are no code to compile. Every
        shape is compiled for itself: guessing which sizes vary would make the code depend on what
        came before, and a resumed run has not had the same before.
        """
        backbone = self.model.backbone
        backbone.forward_features = torch.compile(backbone.forward_features, dynamic=False)

    @override
    def setup(self, stage: str) -> None:
        for name in ("train_sums", "test_sums", "confusion"):
            setattr(self, name, getattr(self, name).to(self.trainer.strategy.root_device))

    @override
    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> Any:
        if self.mixup is None or not self.trainer.training:
            return batch
        part = 0 if self.between_steps else self.part
        place = (self.config.train.seed, self.global_step, self.global_rank, part)
        with seeded(*place, MIXING):
            images, shares = self.mixup(*batch)
        return images, shares.to(images.dtype)

    @override
    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        epoch = self.epoch
        self.use_method_of(epoch)
        if epoch != self.sums_epoch:
            self.train_sums.zero_()
            self.guard.skipped = 0
            self.sums_epoch = epoch
        if self.step_begun != self.global_step:
            self.step_begun, self.part = self.global_step, 0
            self.guard.begin()
        self.seed_dropout()

    def seed_dropout(self) -> None:
        """Seed what is random in the network, for the batch at hand."""
        place = (self.config.train.seed, self.global_step, self.global_rank)
        part = (self.part,) if self.part else ()
        torch.manual_seed(combine_seeds(*place, *part))

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        self.images = images
        failure = logits = loss = None
        try:
            logits, loss = self.logits_and_loss(images, labels)
            if not loss.isfinite():
                failure = f"the loss is {loss.item()}"
        except ValueError as error:  # the pooling met features that are not finite
            failure = str(error)
        good = self.guard.check_loss(images, failure, self._where(self.global_step))
        if not good or loss is None or logits is None:
            return torch.zeros((), device=self.device, requires_grad=True)
        self.train_sums += self._count(loss.detach(), logits.detach(), labels)
        return loss

    def logits_and_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Of a training batch: nothing is counted, so probes may evaluate it too.

        `labels` are classes, (B,), or with mixup each image's shares of them, (B, classes).
        """
        logits = self.model(images.contiguous(memory_format=self.memory_format))
        smoothing = self.config.optim.label_smoothing
        return logits, cross_entropy(logits, labels, label_smoothing=smoothing)

    @override
    def on_after_backward(self) -> None:
        self.guard.after_backward()

    @override
    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        where = self._where(self.global_step)
        self.guard.check_gradient(optimizer, self.images, gradient_clip_val, where)

    @override
    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        self.part += 1

    @property
    def between_steps(self) -> bool:
        """Whether no step is half done, as one whose gradient is accumulated may be."""
        return self.step_begun != self.global_step or self.part == 0

    def names_of_batch(self) -> list[str]:
        """What to call the images of the batch at hand: their files, or their numbers."""
        trainer: Any = self.trainer  # which does not declare where `fit` puts it
        data: ImageDataModule = trainer.datamodule
        return data.names(self.global_step, self.part)

    def _logits(self, images: Tensor) -> Tensor:
        model = self.model if self.training or self.average is None else self.average
        try:
            return average_over_views(
                lambda x: model(x.contiguous(memory_format=self.memory_format)), images
            )
        except ValueError as error:  # the pooling met features that are not finite
            raise TrainingDiverged(f"{self._where(self.global_step)}: {error}") from error

    def _where(self, step: int) -> str:
        if not self.training:
            return f"the evaluation after epoch {self.epoch}" if self.epoch else "the evaluation"
        epoch, step = divmod(step, self.steps_per_epoch)
        return f"epoch {epoch + 1}, step {step + 1} of {self.steps_per_epoch}"

    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss, top-1 hits, top-5 hits and number of images, summed over a batch.

        A mixed image is of the class that has the largest share of it.
        """
        labels = labels if labels.ndim == 1 else labels.argmax(1)
        likeliest = logits.topk(min(5, self.classes), dim=1).indices
        hits = likeliest == labels[:, None]
        number = torch.full_like(loss, len(labels))
        sums = torch.stack([loss * number, hits[:, 0].sum(), hits.sum(), number])
        return sums.to(self.train_sums)

    @override
    def on_validation_epoch_start(self) -> None:
        if self.epoch:  # a run may be resumed in an evaluation, before any step has chosen
            self.use_method_of(self.epoch - 1)
        self.test_sums.zero_()
        self.confusion.zero_()

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self._logits(images)
        self.test_sums += self._count(cross_entropy(logits, labels), logits, labels)
        pairs = labels * self.classes + logits.argmax(1)
        counts = torch.bincount(pairs, minlength=self.classes**2)
        self.confusion += counts.view(self.classes, self.classes)

    @override
    def on_validation_epoch_end(self) -> None:
        for sums in (self.test_sums, self.confusion):
            sums.copy_(self.over_all_processes(sums))
        if not self.test_sums.isfinite().all():
            loss = (self.test_sums[0] / self.test_sums[3]).item()
            raise TrainingDiverged(f"{self._where(self.global_step)}: the test loss is {loss}")

    def check_weights(self) -> None:
        """Raise `TrainingDiverged` where a parameter or running statistic is not finite."""
        tensors = chain(self.model.parameters(), self.model.buffers())
        flags = [~tensor.isfinite().all() for tensor in tensors]
        if self.over_all_processes(torch.stack(flags).any().long()):
            where = self._where(self.global_step - 1)
            raise TrainingDiverged(f"{where}: weights are no longer finite")

    def of_each_process(self, sums: Tensor) -> Tensor:
        """Every process's sums, as rows."""
        rows = sums.new_zeros(self.trainer.world_size, *sums.shape)
        rows[self.global_rank] = sums
        return self.over_all_processes(rows)

    def over_all_processes(self, sums: Tensor) -> Tensor:
        """The total of every process's sums."""
        return over_processes(self.trainer, sums.clone(), "sum")

    def learning_rate_at(self, epoch: int) -> float:
        """The backbone's learning rate at the start of an epoch."""
        return self.config.optim.learning_rate * self.course(epoch * self.steps_per_epoch)

    @override
    def optimizer_step(self, *args: Any, **options: Any) -> None:
        super().optimizer_step(*args, **options)
        if self.average is not None and not self.guard.bad:
            # The step that is being taken is not counted yet.
            self.average.update(self.model, step=self.global_step + 1)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        last_step = max(0, self.global_step - 1)
        checkpoint[METADATA] = {**self.metadata, "epoch": last_step // self.steps_per_epoch}
        if self.average is not None:
            split_average(checkpoint)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.average is not None:
            join_average(checkpoint)

    @override
    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.model, self.config.optim)
        scheduler = LambdaLR(optimizer, lambda step: self.course(step))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def freeze(model: CovPoolModel) -> None:
    """Freeze all but the classifier: weights, and by evaluation mode batch statistics and dropout
    (Lightning leaves each layer in the mode that it finds)."""
    for parameter in model.backbone_parameters():
        parameter.requires_grad_(False)
    for part in (model.backbone, model.pool):
        part.eval()
