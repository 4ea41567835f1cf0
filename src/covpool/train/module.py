"""The Lightning module and data module: training step, evaluation step, optimiser, loaders.

Everything random is a pure function of the seed and of the position in the run, so no generator's
state has to survive in a checkpoint; see `covpool.train.sampling`.
"""

import math
import signal
from bisect import bisect_right
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler
from typing_extensions import override

from covpool.data import Images, ImageSplits, average_over_views
from covpool.models import CovPoolModel
from covpool.train.checkpoint import METADATA
from covpool.train.config import OptimConfig, RunConfig
from covpool.train.sampling import EvaluationBatchSampler, TrainBatchSampler, combine_seeds
from covpool.train.schedule import MethodSchedule
from covpool.train.weight_average import join_average, make_average, split_average


class TrainingDiverged(RuntimeError):
    """The loss, features or weights ceased to be finite. The last checkpoint is not affected."""


def learning_rate_factor(config: OptimConfig, epoch: float, epochs: int) -> float:
    """The learning rate relative to its start, at a point of the run counted in epochs."""
    if epoch < config.warmup_epochs:
        return (epoch + 1e-3) / (config.warmup_epochs + 1e-3)
    if config.decay == "cosine":
        span = max(epochs - config.warmup_epochs, 1e-12)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - config.warmup_epochs) / span)))
    return config.factor ** bisect_right(config.milestones, math.floor(epoch))


class ClassificationModule(LightningModule):
    """A pooling network under its recipe.

    Sums over the images of the epoch so far stand in `train_sums` and `test_sums`: loss, top-1
    hits, top-5 hits, number of images; after an evaluation `confusion[i, j]` counts images of
    class i called j.
    """

    train_sums: Tensor
    test_sums: Tensor
    confusion: Tensor

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
        self.sums_epoch = 0
        if config.optim.trained == "classifier":
            freeze(model)
        decay = config.optim.weight_average
        self.average = None if decay is None else make_average(model, decay)
        for name in ("train_sums", "test_sums"):
            self.register_buffer(name, torch.zeros(4, dtype=torch.float64), persistent=False)
        confusion = torch.zeros(classes, classes, dtype=torch.long)
        self.register_buffer("confusion", confusion, persistent=False)

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
        if method is not None:
            self.model.method = method
            if self.average is not None:
                self.average.module.method = method

    @override
    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        epoch = self.epoch
        self.use_method_of(epoch)
        if epoch != self.sums_epoch:
            self.train_sums.zero_()
            self.sums_epoch = epoch
        seed = combine_seeds(self.config.train.seed, self.global_step, self.global_rank)
        torch.manual_seed(seed)

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self._logits(images)
        smoothing = self.config.optim.label_smoothing
        loss = cross_entropy(logits, labels, label_smoothing=smoothing)
        if not loss.isfinite():
            raise TrainingDiverged(f"{self._where(self.global_step)}: the loss is {loss.item()}")
        self.train_sums += self._count(loss.detach(), logits.detach(), labels)
        return loss

    def _logits(self, images: Tensor) -> Tensor:
        model = self.model if self.training or self.average is None else self.average
        try:
            return average_over_views(model, images)
        except ValueError as error:  # the pooling met features that are not finite
            raise TrainingDiverged(f"{self._where(self.global_step)}: {error}") from error

    def _where(self, step: int) -> str:
        if not self.training:
            return f"the evaluation after epoch {self.epoch}" if self.epoch else "the evaluation"
        epoch, step = divmod(step, self.steps_per_epoch)
        return f"epoch {epoch + 1}, step {step + 1} of {self.steps_per_epoch}"

    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss, top-1 hits, top-5 hits and number of images, summed over a batch."""
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
        flags = [~tensor.isfinite().all() for tensor in self.state_dict().values()]
        if self.over_all_processes(torch.stack(flags).any().long()):
            where = self._where(self.global_step - 1)
            raise TrainingDiverged(f"{where}: weights are no longer finite")

    def over_all_processes(self, sums: Tensor) -> Tensor:
        """The total of every process's sums."""
        return self.trainer.strategy.reduce(sums.clone(), reduce_op="sum")  # type: ignore[return-value]

    def learning_rate_at(self, epoch: int) -> float:
        """The backbone's learning rate at the start of an epoch."""
        optim, epochs = self.config.optim, self.config.train.epochs
        return optim.learning_rate * learning_rate_factor(optim, epoch, epochs)

    @override
    def optimizer_step(self, *args: Any, **options: Any) -> None:
        super().optimizer_step(*args, **options)
        if self.average is not None:
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
    def configure_optimizers(self):  # type: ignore[override]
        optim, epochs = self.config.optim, self.config.train.epochs
        groups = self.model.parameter_groups(optim.learning_rate, optim.classifier_multiplier)
        optimizer = torch.optim.SGD(
            [group for group in groups if group["params"]],
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
            nesterov=optim.nesterov,
        )
        scheduler = LambdaLR(
            optimizer,
            lambda step: learning_rate_factor(optim, step / self.steps_per_epoch, epochs),
        )
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


def ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the main process, which ends the run in order and then its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class ImageDataModule(LightningDataModule):
    """The loaders of both splits, each process with its own part."""

    def __init__(self, splits: ImageSplits, config: RunConfig) -> None:
        super().__init__()
        self.splits = splits
        self.config = config

    @property
    def _process(self) -> dict[str, int]:
        trainer = self.trainer
        assert trainer is not None
        return {"rank": trainer.global_rank, "world": trainer.world_size}

    @override
    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        return self._loader(
            self.splits.train,
            TrainBatchSampler(
                len(self.splits.train),
                self.config.data.batch_size,
                seed=self.config.train.seed,
                step=lambda: trainer.global_step,
                **self._process,
            ),
        )

    @override
    def val_dataloader(self) -> DataLoader:
        size = len(self.splits.test)
        batch_size = self.config.data.batch_size
        return self._loader(
            self.splits.test, EvaluationBatchSampler(size, batch_size, **self._process)
        )

    def _loader(self, dataset: Images, batch_sampler: Sampler[Any]) -> DataLoader:
        workers = self.config.data.workers
        return DataLoader(
            dataset,
            batch_sampler=batch_sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=ignore_interrupts,
            pin_memory=torch.cuda.is_available(),
        )
