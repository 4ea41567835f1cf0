"""The groups of a run's options beside the images': one keyword-only dataclass each, checked on
creation.

Names of methods and backbones are checked where they are looked up (`covpool.train.schedule`,
`covpool.models`), never listed here.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from covpool.data.types import check_types
from covpool.head import check_head


def require(ok: bool, option: str, requirement: str, value: object) -> None:
    """Raise a ValueError that names the option, what it must be and what it was, unless ok."""
    if not ok:
        raise ValueError(f"{option} must be {requirement}, not {value!r}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network and its pooling."""

    backbone: str = "small-convnet"
    """Backbone: small-convnet, alexnet, or any timm model with a spatial feature map."""

    method: str = "isqrt-cov"
    """Pooling: gap (plain average), or a method that `covpool methods` lists."""

    constants: dict[str, Any] = field(default_factory=dict)
    """Constants of the method instead of the paper's, as in --model.constants.degree 50."""

    schedule: str | None = None
    """Switches of the method by epoch (counted from 0), as in 0:isqrt-cov,20:svd-pade."""

    hybrid: str | None = None
    """The paper's hybrid training: `method` until the last of optim.milestones, then this one."""

    reduced_channels: int | Literal["auto"] | None = "auto"
    """Channels after the 1x1 convolution before the pooling; auto: 256, or the backbone's own
    where it has fewer; null: the backbone's own."""

    last_stride: int | None = None
    """Stride of the backbone's last stage: 1 gives MPN-COV's 14x14 features; null leaves it."""

    feature_stage: int | None = None
    """Pool the output of this stage of the backbone, counted from 0 as in timm's feature_info,
    and leave out what follows it; null: its last features."""

    hidden_features: int | Literal["matched"] | None = None
    """Width of a hidden layer before the classifier; matched, for gap alone: as many parameters
    in the head as covariance pooling has; null: none."""

    gap_reduction: bool = False
    """For gap alone: average what covariance pooling pools, the reduced channels."""

    pretrained: bool = False
    """Start from timm's ImageNet weights of the backbone."""

    init_from: str | None = None
    """Start from these weights: a run directory (its best.ckpt), a checkpoint of one, a published
    model, or the state dict of the backbone's plain network (.pth, .pt, .safetensors)."""

    drop_rate: float = 0.0
    """Dropout before the classifier."""

    backbone_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the backbone, as in --model.backbone_options.width 32."""

    def __post_init__(self) -> None:
        check_types("model", self)
        check_head(
            method=self.method,
            reduced_channels=self.reduced_channels,
            hidden_features=self.hidden_features,
            gap_reduction=self.gap_reduction,
            drop_rate=self.drop_rate,
            option="model.{}",
        )
        stride, stage = self.last_stride, self.feature_stage
        require(stride in (None, 1), "model.last_stride", "1 or null", stride)
        require(stage is None or stage >= 0, "model.feature_stage", "at least 0, or null", stage)
        if self.hybrid is not None and self.schedule is not None:
            raise ValueError(
                f"model.hybrid {self.hybrid!r} and model.schedule {self.schedule!r} exclude each "
                "other: both say when the method is switched"
            )
        if self.hybrid is not None and self.hybrid == self.method:
            raise ValueError(
                f"model.hybrid {self.hybrid!r} is model.method too, so that nothing would be "
                "switched; leave model.method at isqrt-cov, which is trained first"
            )
        if self.pretrained and self.init_from is not None:
            raise ValueError(
                f"model.pretrained and model.init_from {self.init_from!r} exclude each other: both "
                "say where the backbone's weights come from"
            )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser, and the course of its learning rate."""

    name: str = "sgd"
    """Optimiser: sgd, adamw, lamb, lion, or another that timm.optim.list_optimizers() names."""

    learning_rate: float = 0.05
    """Learning rate at the start, after any warm-up."""

    momentum: float = 0.9
    """Momentum, for the optimisers that have one."""

    weight_decay: float = 1e-4
    """Weight decay."""

    decay_norm_and_bias: bool = True
    """Weight decay of all parameters; false: not of biases, of normalisation layers and of what
    the backbone exempts, as timm's trainings have it."""

    nesterov: bool = False
    """Nesterov's form of momentum, for sgd."""

    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the optimiser, as in --optim.options.betas '[0.9,0.95]'."""

    layer_decay: float | None = None
    """Layer-wise rates: each layer's rate is the next layer's times this, as timm numbers the
    backbone's layers; null: one rate."""

    decay: Literal["step", "cosine", "constant", "poly", "tanh", "wsd", "rsqrt"] = "cosine"
    """cosine: to zero over the run; step: multiplied by `factor` at each milestone; the others are
    timm's schedules of these names."""

    milestones: tuple[int, ...] = ()
    """Epochs (counted from 0) from which the rate is multiplied by `factor` once more."""

    factor: float = 0.1
    """The factor at a milestone; with decay poly the power."""

    decay_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of timm.scheduler.create_scheduler_v2, which is then used for every decay, as in
    --optim.decay_options.min_lr 0.01; rates are relative to learning_rate."""

    warmup_epochs: float = 0.0
    """Epochs over which the rate rises linearly from near zero."""

    clip_norm: float | None = None
    """Largest norm of the whole gradient; null does not clip."""

    classifier_multiplier: float = 1.0
    """The classifier's learning rate relative to the backbone's."""

    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropy in training."""

    trained: Literal["all", "classifier"] = "all"
    """classifier: the backbone and the reduction are frozen, their batch statistics too."""

    weight_average: float | None = None
    """Decay of an exponential moving average of the weights, which is then what is evaluated and
    kept; null: none. The decay rises to this value over the first steps."""

    reduction_steps: tuple[Literal["nog", "olr"], ...] = ()
    """How the channel reduction before the covariance is stepped: nog, along the nearest orthogonal
    gradient; olr, by the rate that keeps it near orthogonality, where that is the smaller one."""

    def __post_init__(self) -> None:
        check_types("optim", self)
        rate, clip = self.learning_rate, self.clip_norm
        require(rate > 0, "optim.learning_rate", "above 0", rate)
        require(0 <= self.momentum < 1, "optim.momentum", "in [0, 1)", self.momentum)
        require(self.weight_decay >= 0, "optim.weight_decay", "at least 0", self.weight_decay)
        require(
            not self.nesterov or self.momentum > 0,
            "optim.momentum",
            "above 0 with optim.nesterov",
            self.momentum,
        )
        require(
            self.name == "sgd" or not self.nesterov,
            "optim.nesterov",
            f"false with optim.name {self.name}",
            self.nesterov,
        )
        layers = self.layer_decay
        require(layers is None or 0 < layers <= 1, "optim.layer_decay", "in (0, 1] or null", layers)
        rising = list(self.milestones) == sorted(set(self.milestones))
        require(
            rising and all(epoch > 0 for epoch in self.milestones),
            "optim.milestones",
            "rising epochs above 0",
            list(self.milestones),
        )
        require(
            (self.decay == "step" and not self.decay_options) or not self.milestones,
            "optim.milestones",
            "empty unless optim.decay is step, and with optim.decay_options",
            list(self.milestones),
        )
        require(0 < self.factor <= 1, "optim.factor", "in (0, 1]", self.factor)
        require(self.warmup_epochs >= 0, "optim.warmup_epochs", "at least 0", self.warmup_epochs)
        require(clip is None or clip > 0, "optim.clip_norm", "above 0 or null", clip)
        require(
            self.classifier_multiplier > 0,
            "optim.classifier_multiplier",
            "above 0",
            self.classifier_multiplier,
        )
        smoothing = self.label_smoothing
        require(0 <= smoothing < 1, "optim.label_smoothing", "in [0, 1)", smoothing)
        steps = self.reduction_steps
        for name, value, needed in (
            ("trained", self.trained, "all"),
            ("clip_norm", clip, None if "nog" in steps else clip),
            ("name", self.name, "sgd" if "olr" in steps else self.name),
        ):
            require(
                not steps or value == needed,
                f"optim.{name}",
                f"{needed or 'null'} with optim.reduction_steps {list(steps)}",
                value,
            )
        decay = self.weight_average
        require(decay is None or 0 < decay < 1, "optim.weight_average", "in (0, 1) or null", decay)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The course of the run and the machine it runs on."""

    epochs: int = 30
    """Passes over the training images."""

    seed: int = 0
    """Seed of everything random: initial weights, order, augmentation, dropout."""

    precision: Literal["32", "64", "16-mixed", "bf16-mixed"] = "32"
    """Arithmetic of the network; the spectral layer keeps its own (see `cov_pool`)."""

    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu, …"""

    devices: int = 1
    """Devices on each node."""

    nodes: int = 1
    """Nodes."""

    strategy: str = "auto"
    """Lightning's strategy: auto (ddp where there are several processes), ddp, fsdp (GPUs), …"""

    accumulate: int = 1
    """Parts in which a step's batch is computed, one after another, to fit into memory."""

    sync_batchnorm: bool = False
    """Batch norm over the images of all processes (GPUs) instead of each process's own."""

    channels_last: bool = False
    """Images and weights with channels innermost in memory, which GPUs prefer for convolutions."""

    compile: bool = False
    """torch.compile for the backbone; pooling and classifier are left out."""

    deterministic: bool = False
    """Only deterministic kernels, which exact resumption needs on a GPU; slower there."""

    threads: int | None = None
    """Threads of this process; null divides the machine's cores among the devices."""

    checkpoint_steps: int = 1000
    """Also save last.ckpt every so many steps within an epoch; 0 saves at its end alone."""

    keep: Literal["best", "last", "all"] = "last"
    """Checkpoints of a run that has finished: last keeps best.ckpt and last.ckpt, by which it can
    be made longer; best keeps best.ckpt alone; all keeps previous.ckpt too."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    """When loss or gradient are not finite: stop, or skip that step's update and count it."""

    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where metrics also go, beside metrics.csv: tensorboard, wandb."""

    probes: tuple[Literal["smoothness", "conditioning", "fidelity"], ...] = ()
    """What is measured along the training, which it does not change, and written to
    analysis.jsonl: smoothness, conditioning, fidelity."""

    probe_every: int | None = None
    """Steps from one measurement of the probes to the next; null: three in an epoch."""

    def __post_init__(self) -> None:
        check_types("train", self)
        require(0 <= self.seed < 2**32, "train.seed", "in [0, 2**32)", self.seed)
        for name in ("epochs", "devices", "nodes", "accumulate"):
            value = getattr(self, name)
            require(value >= 1, f"train.{name}", "at least 1", value)
        threads, steps = self.threads, self.checkpoint_steps
        require(threads is None or threads >= 1, "train.threads", "at least 1 or null", threads)
        require(steps >= 0, "train.checkpoint_steps", "at least 0", steps)
        every = self.probe_every
        require(every is None or every >= 1, "train.probe_every", "at least 1 or null", every)
