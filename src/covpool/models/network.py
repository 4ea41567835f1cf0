"""The model: backbone, pooling, linear classifier, behind timm's interface."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn

from covpool.linalg import checks
from covpool.linalg.methods import Method
from covpool.linalg.names import PoolingName
from covpool.models.backbones import PREFIX, probe
from covpool.pooling import CovPool2d
from covpool.poolings import Pool2d, Pooling, method_or_pooling

REDUCED_CHANNELS = 256
"""The paper's number of channels that are pooled."""

WEIGHT_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source")
"""Keys of timm's `pretrained_cfg` that say where weights are: the backbone's, not the model's."""


@torch.fx.wrap  # one call in a graph of torch.fx, as it decides by shapes
def _checked_images(x: Tensor, channels: int, size: tuple[int, int] | None) -> Tensor:
    """Images as they are, or an error where they are not those that the model is built for."""
    checks.tensor("the model", x)
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(
            f"the model takes images (batch, {channels}, height, width), got {tuple(x.shape)}; "
            "in_chans of create_model sets their channels"
        )
    if size is not None and size != (x.shape[2], x.shape[3]):
        raise ValueError(
            f"the backbone is built for images of {size}, got {tuple(x.shape[2:])}; image_size of "
            "create_model sets their size"
        )
    return x


class CovPoolModel(nn.Module):
    """Images (B, in_chans, H, W) → logits (B, num_classes), with timm's interface.

    Parts: `backbone`, `pool` (`CovPool2d` for methods, `Pool2d` for other poolings), `hidden` (a
    hidden layer where there is to be one), `dropout`, `classifier`.

    Attributes:
        num_classes: 0 where the classifier was removed.
        in_chans: channels of the images.
        num_features: channels C of the feature map.
        head_hidden_size: length of the vector that the classifier reads.
        layout: how the backbone lays out its features.
        pretrained_cfg: timm's description of the model (input size, mean, standard deviation, …).
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        method: PoolingName | Method | Pooling = "exact",
        reduced_channels: int | Literal["auto"] | None = "auto",
        hidden_features: int | Literal["matched"] | None = None,
        gap_reduction: bool = False,
        in_chans: int = 3,
        image_size: int | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        """
        Args:
            backbone: with timm's `forward_features`, `num_features` and `pretrained_cfg`; changed
                in place (see `backbones.probe`).
            num_classes: classes; 0 for no classifier.
            method: as for `create_model`.
            reduced_channels: as for `create_model`.
            hidden_features: as for `create_model`.
            gap_reduction: as for `create_model`.
            in_chans: channels of the images.
            image_size: side of the images, where it is not the one in `pretrained_cfg`.
            drop_rate: dropout before the classifier.
        """
        super().__init__()
        source: Any = backbone  # whose attributes nn.Module does not declare
        cfg: dict[str, Any] = dict(source.pretrained_cfg)
        name = str(cfg.get("architecture") or type(backbone).__name__)
        current = get_model_input_config(backbone)
        fixed = bool(current["fixed_input_size"])
        size = tuple(current["input_size"][-2:])
        if image_size is not None and not fixed:
            size = (image_size, image_size)
        self.fixed_size = size if fixed else None
        weight = next(backbone.parameters())
        image = torch.zeros(1, in_chans, *size, dtype=weight.dtype, device=weight.device)
        self.layout = probe(backbone, name, image)
        self.backbone: Any = backbone
        self.in_chans = in_chans
        self.num_features: int = source.num_features
        row = method_or_pooling(method)
        reduced, hidden = head_widths(
            row,
            self.num_features,
            num_classes,
            reduced_channels=reduced_channels,
            hidden_features=hidden_features,
            gap_reduction=gap_reduction,
        )
        self.pool: CovPool2d | Pool2d
        if isinstance(row, Method):
            self.pool = CovPool2d(self.num_features, reduced, row)
        else:
            token = self.num_features * (row.class_token and self.layout.class_token)
            self.pool = Pool2d(self.num_features, row, reduced, token_features=token)
        self.hidden = _hidden_layer(self.pool.out_features, hidden, weight)
        self.head_hidden_size = hidden or self.pool.out_features
        self.dropout = nn.Dropout(drop_rate)
        self.num_classes = num_classes
        self.classifier = self._new_classifier(num_classes)
        first = current["first_conv"]
        self.pretrained_cfg: dict[str, Any] = {
            **{key: value for key, value in cfg.items() if key not in WEIGHT_SOURCES},
            "architecture": PREFIX + name.replace("-", "_"),
            "input_size": (in_chans, *size),
            "fixed_input_size": fixed,
            "pool_size": None,
            "num_classes": num_classes,
            "classifier": "classifier",
            "first_conv": _prefixed(first) if isinstance(first, str) else None,
        }

    @property
    def default_cfg(self) -> dict[str, Any]:
        """timm's older name of `pretrained_cfg`."""
        return self.pretrained_cfg

    @property
    def method(self) -> str:
        """The pooling's name; of a model with a method, assign another method to switch to it.

        Methods have no parameters, so training goes on with the other one: the switch of the
        hybrid protocol. Other poolings can be switched neither to nor from.
        """
        return self.pool.method.name if isinstance(self.pool, CovPool2d) else self.pool.row.name

    @method.setter
    def method(self, method: PoolingName | Method | Pooling) -> None:
        row = method_or_pooling(method)
        if isinstance(row, Method) and isinstance(self.pool, CovPool2d):
            self.pool.method = row
        elif row.name != self.method:
            raise ValueError(
                f"a model with pooling {self.method!r} cannot be switched to {row.name!r}: their "
                "parameters differ (reduction and classifier); build a new model"
            )

    def forward_features(self, x: Tensor) -> Any:
        """Images (B, in_chans, H, W) → feature map (B, num_features, H', W').

        Where the pooling takes the class token too, a tuple of the map and that, (B, num_features).

        Raises:
            TypeError: what is no tensor.
            ValueError: images of another number of channels, or of another size where the
                backbone is built for one.
        """
        x = _checked_images(x, self.in_chans, self.fixed_size)
        features = self.backbone.forward_features(x)
        found = self.layout.to_map(features, (x.shape[2], x.shape[3]))
        return (found, features[:, 0]) if self._takes_token else found

    @property
    def _takes_token(self) -> bool:
        return isinstance(self.pool, Pool2d) and self.pool.token_features > 0

    def forward_intermediates(
        self, x: Tensor, *, intermediates_only: bool = False, **options: Any
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The backbone's intermediate features, as timm's method of this name gives them.

        Args:
            x: images, as for `forward_features`.
            intermediates_only: False puts the feature map (B, num_features, H', W') before them.
            **options: timm's: `indices`, `norm`, `stop_early`, `output_fmt`.

        Raises:
            ValueError: as `forward_features`; a backbone without such a method.
        """
        intermediates = getattr(self.backbone, "forward_intermediates", None)
        if intermediates is None:
            raise ValueError(
                f"{type(self.backbone).__name__} gives no intermediate features; name their layers "
                "to torchvision's create_feature_extractor, or choose a backbone of timm's"
            )
        x = _checked_images(x, self.in_chans, self.fixed_size)
        if intermediates_only:
            return intermediates(x, intermediates_only=True, **options)
        features, found = intermediates(x, **options)
        return self.layout.to_map(features, (x.shape[2], x.shape[3])), found

    def forward_head(self, x: Tensor | tuple[Tensor, Tensor], pre_logits: bool = False) -> Tensor:
        """What `forward_features` gave → logits, or what the classifier reads
        (B, head_hidden_size) if `pre_logits`."""
        pooled = self.pool(*x) if isinstance(x, tuple) else self.pool(x)
        vector = self.dropout(self.hidden(pooled))
        return vector if pre_logits else self.classifier(vector)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier, or none for `num_classes` = 0; the pooling stays.

        Raises:
            ValueError: negative `num_classes`, or a `global_pool`, which is the method's place.
        """
        if global_pool is not None:
            raise ValueError(
                f"global_pool={global_pool!r}: the method is the pooling, and resetting the "
                "classifier keeps it; assign model.method"
            )
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {num_classes}")
        self.classifier = self._new_classifier(num_classes)
        self.num_classes = num_classes

    def _new_classifier(self, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        like = next(self.backbone.parameters())
        return nn.Linear(self.head_hidden_size, num_classes, device=like.device, dtype=like.dtype)

    def classifier_parameters(self) -> Iterator[nn.Parameter]:
        """The classifier's and the hidden layer's parameters, whose rate recipes multiply."""
        yield from self.hidden.parameters()
        yield from self.classifier.parameters()

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """All other parameters: those of the backbone and of the channel reduction."""
        yield from self.backbone.parameters()
        yield from self.pool.parameters()

    def parameter_groups(
        self, learning_rate: float, classifier_factor: float = 1.0
    ) -> list[dict[str, Any]]:
        """Two groups for an optimizer, the classifier's with `classifier_factor` × the rate.

        Frozen parameters are left out.

        Raises:
            ValueError: a rate or factor that is not positive.
        """
        for name, value in (("learning_rate", learning_rate), ("factor", classifier_factor)):
            if not value > 0:
                raise ValueError(f"parameter_groups: {name} must be positive, got {value}")
        parts = (
            ("backbone", self.backbone_parameters(), learning_rate),
            ("classifier", self.classifier_parameters(), learning_rate * classifier_factor),
        )
        return [
            {"name": name, "params": [p for p in parameters if p.requires_grad], "lr": rate}
            for name, parameters, rate in parts
        ]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, where the backbone can."""
        setter = getattr(self.backbone, "set_grad_checkpointing", None)
        if setter is not None:
            setter(enable)
        elif enable:
            raise ValueError(
                f"{type(self.backbone).__name__} cannot checkpoint its gradients; "
                "leave gradient checkpointing off"
            )

    def no_weight_decay(self) -> set[str]:
        """Names of the backbone's parameters that should not decay."""
        names = getattr(self.backbone, "no_weight_decay", set)()
        return {_prefixed(name) for name in names}

    def group_matcher(self, coarse: bool = False) -> Any:
        """The backbone's grouping of layers, for layer-wise rates; the head is the last group."""
        matcher = getattr(self.backbone, "group_matcher", None)
        if matcher is None:
            return {"backbone": r"^backbone\."}
        groups = matcher(coarse=coarse)
        if callable(groups):
            return lambda name: (
                groups(name.removeprefix("backbone."))
                if name.startswith("backbone.")
                else float("inf")
            )
        return {key: _prefixed_pattern(value) for key, value in groups.items()}


def head_widths(
    row: Method | Pooling,
    channels: int,
    classes: int,
    *,
    reduced_channels: int | Literal["auto"] | None,
    hidden_features: int | Literal["matched"] | None,
    gap_reduction: bool,
) -> tuple[int | None, int | None]:
    """Channels after the reduction before the pooling, and the width of the hidden layer; None
    where there is no such part.

    Args:
        row: the pooling.
        channels: of the features.
        classes: what is told apart.
        reduced_channels: as for `create_model`, like all that follow.
        hidden_features: likewise.
        gap_reduction: likewise.
    """
    if isinstance(row, Method):
        reduces = True
    else:
        reduces = gap_reduction if row.name == "gap" else row.reduced or reduced_channels != "auto"
    if reduced_channels == "auto":
        reduced_channels = REDUCED_CHANNELS if channels >= REDUCED_CHANNELS else None
    if hidden_features == "matched":
        hidden_features = matched_width(
            channels, reduced_channels, classes, gap_reduction=gap_reduction
        )
    return reduced_channels if reduces else None, hidden_features


def matched_width(
    channels: int, reduced_channels: int | None, classes: int, *, gap_reduction: bool = False
) -> int:
    """The hidden width at which an average's head has the parameters of a covariance's.

    Of C channels reduced to r, with d = r(r+1)/2 and K classes, the covariance head has
    C·r + 2r + d·K + K parameters (without reduction d·K + K, r = C); that of an average with h
    hidden features has C·h + 3h + h·K + K, after the same reduction r·h in place of C·h and that
    one's C·r + 2r.

    Returns:
        h, rounded to the nearest, at least 1.
    """
    r = reduced_channels or channels
    vector = r * (r + 1) // 2
    if gap_reduction:
        return max(1, round(vector * classes / (r + 3 + classes)))
    reduction = 0 if reduced_channels is None else channels * r + 2 * r
    return max(1, round((reduction + vector * classes) / (channels + 3 + classes)))


def _hidden_layer(before: int, width: int | None, like: Tensor) -> nn.Module:
    if width is None:
        return nn.Identity()
    return nn.Sequential(
        nn.Linear(before, width, device=like.device, dtype=like.dtype),
        nn.BatchNorm1d(width, device=like.device, dtype=like.dtype),
        nn.ReLU(inplace=True),
    )


def _prefixed(name: str) -> str:
    return f"backbone.{name}"


def _prefixed_pattern(pattern: Any) -> Any:
    """timm's group pattern, or list of (pattern, suffix), for names that begin with backbone."""
    if isinstance(pattern, str):
        # The circumflex stands as an anchor only; `match` anchors the alternatives without it.
        return rf"^backbone\.(?:{pattern.replace('^', '')})"
    if pattern is None:
        return None
    return [(_prefixed_pattern(expression), suffix) for expression, suffix in pattern]
