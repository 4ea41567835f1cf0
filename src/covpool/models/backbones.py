"""Backbones by name: which there are, building them, and their features as (B, C, H, W) maps."""

import difflib
import socket
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
from huggingface_hub import constants
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, model_entrypoint
from torch import Tensor, nn

from covpool.models.plain import ALEXNET, SMALL_CONVNET, SmallConvNet, alexnet
from covpool.models.stages import keep_stages, set_last_stride
from covpool.pooling import ONE_POSITION

PREFIX = "covpool_"
"""How the names begin under which whole models are registered with timm."""

SOURCES = ("hf-hub:", "local-dir:")
"""How names of timm models begin that come from elsewhere than timm's own list."""

WITHOUT_MAP: Mapping[str, str] = {
    "crossvit": "its features are two token sequences of different patch sizes",
    "efficientvim": "its features are a list of hidden states of different sizes",
    "pit": "its features are the class token alone",
}
"""timm's modules whose features are no spatial map, with the reason."""

UNDECLARED_PREFIX_TOKENS: Mapping[str, int] = {"CoaT": 1, "VOLO": 1}
"""timm's classes that put class tokens before the others without setting `num_prefix_tokens`."""


def check_backbone(name: str) -> None:
    """Refuse a name that is no backbone, before anything is built or loaded.

    Names are timm's, with or without a tag of its pretrained weights ("resnet50.a1_in1k"),
    "alexnet" and "small-convnet". "hf-hub:…" and "local-dir:…" are left to timm.

    Raises:
        ValueError: unknown name (with the nearest ones), unknown tag, a whole model of ours, or a
            family whose features are no spatial map.
    """
    if not isinstance(name, str):
        raise ValueError(f"a backbone is chosen by its name, got {name!r}")
    if name in (ALEXNET, SMALL_CONVNET) or name.startswith(SOURCES):
        return
    architecture, _, tag = name.partition(".")
    if architecture.startswith(PREFIX):
        raise ValueError(
            f"{name!r} is a whole model; name its backbone, {name.removeprefix(PREFIX)!r}, "
            "or build it with timm.create_model"
        )
    if not timm.is_model(architecture):
        known = [*timm.list_models(exclude_filters=PREFIX + "*"), ALEXNET, SMALL_CONVNET]
        near = difflib.get_close_matches(architecture, known, n=3)
        hint = f"did you mean {', '.join(map(repr, near))}? " if near else ""
        raise ValueError(
            f"unknown backbone {name!r}; {hint}Choose a name that timm.list_models() gives, "
            f"{ALEXNET!r} or {SMALL_CONVNET!r}"
        )
    tags = [known.partition(".")[2] for known in get_arch_pretrained_cfgs(architecture)]
    if tag and tag not in tags:
        listed = ", ".join(filter(None, tags)) or "none"
        raise ValueError(f"backbone {name!r}: unknown tag {tag!r}; choose from {listed}")
    family = model_entrypoint(architecture).__module__.rpartition(".")[2]
    if family in WITHOUT_MAP:
        raise ValueError(
            f"backbone {name!r} has no spatial feature map to pool: {WITHOUT_MAP[family]}; "
            "choose another family"
        )


def load_backbone(
    name: str,
    *,
    pretrained: bool = False,
    in_chans: int = 3,
    image_size: int | None = None,
    last_stride: int | None = None,
    feature_stage: int | None = None,
    **arguments: Any,
) -> nn.Module:
    """The backbone without its own pooling and classifier.

    Args:
        name: see `check_backbone`.
        pretrained: whether to load weights.
        in_chans: channels of the images.
        image_size: side of the images; backbones that are built for one size are built for it.
        last_stride: see `set_last_stride`.
        feature_stage: see `keep_stages`.
        **arguments: passed on, to timm's `create_model` or to `SmallConvNet`; None as if absent.

    Raises:
        ValueError: a bad name or an argument that the backbone does not take.
    """
    check_backbone(name)
    arguments = {key: value for key, value in arguments.items() if value is not None}
    if "global_pool" in arguments:
        raise ValueError(
            f"global_pool={arguments['global_pool']!r}: method chooses the pooling; leave it out"
        )
    if "pooling" in arguments:
        raise ValueError(
            f"pooling={arguments['pooling']!r}: the argument is called method here; write "
            f"method={arguments['pooling']!r}"
        )
    if arguments.pop("features_only", False):
        raise ValueError(
            "features_only=True: covariance pooling takes the last feature map; for maps of "
            f"several depths call timm.create_model({name!r}, features_only=True)"
        )
    try:
        if name == SMALL_CONVNET:
            if pretrained:
                raise ValueError(f"backbone {name!r} has no pretrained weights")
            backbone: nn.Module = SmallConvNet(in_chans, **arguments)
        elif name == ALEXNET:
            backbone = alexnet(in_chans, pretrained, **arguments)
        else:
            if image_size is not None and not name.startswith(SOURCES):
                cfg = get_pretrained_cfg(name)
                if cfg is not None and cfg.fixed_input_size:
                    arguments.setdefault("img_size", image_size)
            backbone = _load_timm(name, pretrained=pretrained, in_chans=in_chans, **arguments)
    except OSError as error:
        if not pretrained:
            raise
        raise ValueError(
            f"the pretrained weights of backbone {name!r} could not be loaded: "
            f"{str(error).rstrip('. ')}; give a file of them (--model.init_from), or set "
            "pretrained to false"
        ) from error
    except TypeError as error:
        if not arguments:
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ValueError(f"backbone {name!r} does not take ({given}): {error}") from error
    if last_stride is not None:
        set_last_stride(backbone, name, last_stride)
    if feature_stage is not None:
        keep_stages(backbone, name, feature_stage)
    return backbone


def _load_timm(name: str, **arguments: Any) -> nn.Module:
    hub = arguments.get("pretrained") or name.startswith(SOURCES)
    with _offline_where_unreachable() if hub else nullcontext():
        try:
            # Heads that pool with parameters (attention pooling) are left out this way.
            return timm.create_model(name, num_classes=0, global_pool="", **arguments)
        except AssertionError:
            # A few families assert that they pool; their forward_features is the same.
            return timm.create_model(name, num_classes=0, **arguments)


@contextmanager
def _offline_where_unreachable() -> Iterator[None]:
    """Within it only the cache of this machine is asked where the hub cannot be reached, whose
    client would try for a minute and a half before it says so."""
    if constants.HF_HUB_OFFLINE or _reachable(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except OSError as error:
        raise ConnectionError(
            f"{constants.ENDPOINT} cannot be reached, and this machine's cache has not all of it"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = False


def _reachable(address: str) -> bool:
    """Whether a server answers there. Behind a proxy, which alone may know the name, it is taken
    to."""
    if urllib.request.getproxies():
        return True
    parts = urlsplit(address)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class FeatureLayout:
    """How a backbone's `forward_features` lays its features out.

    Attributes:
        order: "NCHW", "NHWC", or "NLC" for a sequence of tokens.
        prefix_tokens: tokens before those of the positions (class, distillation, registers).
        class_token: whether the first of those is a class token.
    """

    order: str
    prefix_tokens: int = 0
    class_token: bool = False

    def to_map(self, features: Tensor, image_size: tuple[int, int]) -> Tensor:
        """The features as (B, C, H, W).

        A sequence of tokens is laid out row by row on the grid whose sides are nearest to the
        image's proportions. Covariance and average do not depend on where a position is.
        """
        if self.order == "NCHW":
            return features
        if self.order == "NHWC":
            return features.permute(0, 3, 1, 2)
        tokens = features[:, self.prefix_tokens :].mT
        return tokens.unflatten(2, token_grid(tokens.shape[2], image_size))


@torch.fx.wrap  # one call in a graph of torch.fx, as it decides by the numbers
def token_grid(tokens: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of `tokens` square patches of an image of this size.

    Raises:
        ValueError: they fill no rectangle of the image's proportions.
    """
    # torch.jit.trace has them as tensors.
    tokens, height, width = map(int, (tokens, *image_size))
    short = round((tokens * min(height, width) / max(height, width)) ** 0.5)
    if short == 0 or tokens % short:
        raise ValueError(
            f"{tokens} tokens fill no grid with the proportions of a {height}×{width} image"
        )
    return (short, tokens // short) if height <= width else (tokens // short, short)


def find_layout(features: Any, backbone: nn.Module, name: str) -> FeatureLayout:
    """The layout of what `forward_features` gave.

    Raises:
        ValueError: not one tensor, or no dimension of `num_features` where it should be.
    """
    channels: Any = backbone.num_features
    if isinstance(features, Tensor):
        if features.ndim == 3 and features.shape[2] == channels:
            undeclared = UNDECLARED_PREFIX_TOKENS.get(type(backbone).__name__, 0)
            prefix = getattr(backbone, "num_prefix_tokens", undeclared)
            # Registers may stand there without a class token.
            token = prefix > 0 and getattr(backbone, "cls_token", True) is not None
            return FeatureLayout(order="NLC", prefix_tokens=int(prefix), class_token=token)
        if features.ndim == 4:
            order = "NHWC" if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else "NCHW"
            if features.shape[order.index("C")] == channels:
                return FeatureLayout(order=order)
    shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
    raise ValueError(
        f"backbone {name!r} has no spatial feature map to pool: forward_features gives {shape}, "
        f"not a map or a sequence of {channels} channels"
    )


def probe(backbone: nn.Module, name: str, image: Tensor) -> FeatureLayout:
    """Find the layout of the features, and drop what of the backbone does not lead to them.

    Runs `forward_features` once, forward and backward, in evaluation mode. Children that it neither
    calls nor reads (layers between the feature map and the classifier; vgg11's 119 of 128 million
    parameters) become identities: they would bloat checkpoints, and distributed training demands
    that every parameter gets a gradient.

    Args:
        backbone: changed in place.
        name: for messages.
        image: (1, in_chans, H, W).

    Raises:
        ValueError: no spatial map, or fewer than two positions.
    """
    called: set[nn.Module] = set()
    hooks = [
        module.register_forward_pre_hook(lambda module, _: called.add(module))
        for module in backbone.modules()
    ]
    forward_features: Any = backbone.forward_features
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.enable_grad():
            features = forward_features(image)
            layout = find_layout(features, backbone, name)
            size = (image.shape[2], image.shape[3])
            try:
                feature_map = layout.to_map(features, size)
            except ValueError as error:
                raise ValueError(f"backbone {name!r} has no spatial feature map: {error}") from None
            trained = [p for p in backbone.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(feature_map.sum(), trained, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
        backbone.train(was_training)
    if feature_map.shape[2] * feature_map.shape[3] < 2:
        raise ValueError(
            f"backbone {name!r} leaves one position of a {size[0]}×{size[1]} image: {ONE_POSITION}"
        )
    used = {p for p, g in zip(trained, gradients, strict=True) if g is not None}
    for key, child in list(backbone.named_children()):
        parameters = set(child.parameters())
        if parameters and used.isdisjoint(parameters) and called.isdisjoint(child.modules()):
            setattr(backbone, key, nn.Identity())
    return layout
