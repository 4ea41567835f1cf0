"""Weights that a model starts from: another run's, or those of the backbone's plain network.

They are for a new run, whose classes may be others; `covpool.train.checkpoint` is for going on with
a run. What is loaded, what stays fresh and what the file has besides is always said.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg, load_state_dict
from torch import Tensor

from covpool.data import DataConfig
from covpool.linalg.methods import METHODS
from covpool.models import CovPoolModel
from covpool.models.backbones import SOURCES
from covpool.train.checkpoint import METADATA, holds_weights, naming_damage, read_checkpoint
from covpool.train.config import ModelConfig, RunConfig
from covpool.train.published import WEIGHTS, PublishedDirectory, read_published
from covpool.train.run_directory import RunDirectory

REDUCTION = ("pool.",)
HEAD = ("hidden.", "classifier.")
PARTS = ("backbone.", *REDUCTION, *HEAD)
"""How the names of a whole model's weights begin."""


@dataclass(frozen=True, kw_only=True)
class StartingWeights:
    """Weights, by the names that they have in a `CovPoolModel`, on the CPU.

    Attributes:
        path: where they are from.
        weights: of the backbone alone, or of a whole model.
        about: what a covpool checkpoint says of itself; None for a plain network's.
    """

    path: Path
    weights: dict[str, Tensor]
    about: Mapping[str, Any] | None = None

    @property
    def channels(self) -> int | None:
        """Channels of the images, by the first convolution."""
        return next((value.shape[1] for value in self.weights.values() if value.ndim == 4), None)

    def load(self, model: CovPoolModel, config: ModelConfig, classes: Sequence[str]) -> str:
        """Put them into the model: all of its backbone; its reduction where the weights have one;
        its classifier where the weights are of the very same classes.

        Returns:
            One line: what was loaded, what stays as it was drawn, what the file has besides.

        Raises:
            ValueError: another backbone or another reduction; the message names the first
                difference.
        """
        self._check_architecture(config)
        own = model.state_dict()
        chosen, ignored = self._backbone(own, cut=config.feature_stage is not None)
        loaded, fresh = ["backbone"], []
        unused = [_parents(ignored)] if ignored else []
        for part, prefix, take in (
            ("reduction", REDUCTION, self._takes_reduction(own, model)),
            ("classifier", HEAD, self._takes_classifier(own, classes)),
        ):
            there = {k: v for k, v in self.weights.items() if k.startswith(prefix)}
            if take:
                chosen |= there
                loaded.append(part)
            else:
                if any(name.startswith(prefix) for name in own):
                    fresh.append(part)
                if there:
                    unused.append(part)
        model.load_state_dict(chosen, strict=False)
        parts = [("loaded", loaded), ("fresh", fresh), ("not used of it", unused)]
        told = "; ".join(f"{word}: {' and '.join(names)}" for word, names in parts if names)
        return f"starts from {self._description(config, classes)}; {told}"

    def _description(self, config: ModelConfig, classes: Sequence[str]) -> str:
        if self.about is None:
            return str(self.path)
        facts = [f"epoch {self.about['epoch'] + 1}", f"{len(self.about['classes'])} classes"]
        if len(self.about["classes"]) == len(classes) and list(classes) != self.about["classes"]:
            facts[-1] += " of other names or in another order"
        there = self.about["config"]["model"]["last_stride"]
        if there != config.last_stride:
            facts.append(f"with model.last_stride {there}, here {config.last_stride}")
        return f"{self.path} ({', '.join(facts)})"

    def _check_architecture(self, config: ModelConfig) -> None:
        if self.about is None:
            return
        there = self.about["config"]["model"]["backbone"]
        # What follows the point is the tag of pretrained weights.
        if there.partition(".")[0] != config.backbone.partition(".")[0]:
            raise ValueError(
                f"model.init_from {self.path} is of backbone {there!r}, model.backbone is "
                f"{config.backbone!r}; choose the same"
            )

    def _backbone(
        self, own: Mapping[str, Tensor], *, cut: bool
    ) -> tuple[dict[str, Tensor], list[str]]:
        """The backbone's weights, and the names of those that the backbone does without.

        These are the plain network's head: the model has no weights at all under the head's
        children; and in a network that is cut after a stage, the later stages.
        """
        chosen, ignored = {}, []
        for name in own:
            # Files from before PyTorch 0.4.1 have no such counters, which training does not use.
            if name.startswith("backbone.") and not name.endswith("num_batches_tracked"):
                self._require_same(name, own)
        children = {name.split(".")[1] for name in own if name.startswith("backbone.")}
        for name, value in self.weights.items():
            if not name.startswith("backbone."):
                continue
            _, child, *rest = name.split(".")
            if name in own:
                chosen[name] = value
            elif (child in children or not rest) and not cut:
                self._require_same(name, own)
            else:
                ignored.append(name)
        return chosen, ignored

    def _takes_reduction(self, own: Mapping[str, Tensor], model: CovPoolModel) -> bool:
        """Whether the reduction is loaded; it is none of a network that pooled without it by
        averaging, and none for such a one."""
        here = [name for name in own if name.startswith("pool.")]
        there = [name for name in self.weights if name.startswith("pool.")]
        source = self.about and self.about["config"]["model"]["method"]
        pooled_otherwise = (model.method if there else source) not in METHODS
        if (not here or not there) and pooled_otherwise:
            return False
        for name in [*here, *there]:
            self._require_same(name, own)
        return bool(here)

    def _takes_classifier(self, own: Mapping[str, Tensor], classes: Sequence[str]) -> bool:
        if self.about is None or self.about["classes"] != list(classes):
            return False
        # All of it or nothing: a classifier that reads a hidden layer is none of the pooled vector.
        here, there = (
            {name: value.shape for name, value in weights.items() if name.startswith(HEAD)}
            for weights in (own, self.weights)
        )
        return here == there

    def _require_same(self, name: str, own: Mapping[str, Tensor]) -> None:
        there, here = self.weights.get(name), own.get(name)
        if there is None or here is None or there.shape != here.shape:
            sizes = ["no" if tensor is None else tuple(tensor.shape) for tensor in (there, here)]
            plain = name.removeprefix("backbone.") if self.about is None else name
            raise ValueError(
                f"model.init_from {self.path} is of another network: it has {sizes[0]} {plain}, "
                f"the model of the configuration {sizes[1]}; choose its model.backbone, its "
                "model.reduced_channels, and data.channels (1 grey, 3 colour) as there"
            )


def _parents(names: Sequence[str]) -> str:
    """The children of the plain network that the weights belong to."""
    return ", ".join(dict.fromkeys(name.split(".")[1] for name in names))


def read_starting_weights(path: str | Path) -> StartingWeights:
    """Read weights to start from. No code in a file is ever run.

    Args:
        path: a run directory (its best.ckpt, else its last.ckpt), a checkpoint of covpool, a
            published model's directory (timm's too), or a file with a state dict: of the
            backbone's plain network, or of a `CovPoolModel`. Names may begin as wrappers leave
            them ("module.", "_orig_mod.", "model."), and the state dict may lie under
            "state_dict" or "model".

    Raises:
        ValueError, OSError: nothing there, a damaged file, one that holds no weights, or a vector
            layout of another version.
    """
    given = path = Path(os.path.expanduser(path))
    if PublishedDirectory.is_at(path):
        weights, about = read_published(path)
        return StartingWeights(path=path, weights=weights, about=about)
    if path.is_dir():
        directory = RunDirectory(path)
        files = (directory.best, directory.last, path / WEIGHTS)
        path = next((file for file in files if file.is_file()), path)
        if path.is_dir():
            raise ValueError(
                f"model.init_from {given} is a folder without best.ckpt, last.ckpt or {WEIGHTS}"
            )
    if not path.is_file():
        raise ValueError(f"model.init_from {given} does not exist; give a run or a file of weights")
    if _is_ours(path):
        checkpoint = read_checkpoint(path)
        prefix = "model."
        weights = {
            name.removeprefix(prefix): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(prefix)
        }
        return StartingWeights(path=path, weights=weights, about=checkpoint[METADATA])
    return StartingWeights(path=path, weights=_read_plain(path))


def _is_ours(path: Path) -> bool:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # whatever it is then, the reader of plain files says what is wrong with it
        return False
    return isinstance(content, dict) and METADATA in content


def _read_plain(path: Path) -> dict[str, Tensor]:
    remedy = "; give a file that torch.save(model.state_dict(), …) or safetensors wrote"
    with naming_damage(f"model.init_from {path} cannot be read as weights", remedy):
        # timm opens wrappers of several kinds, and safetensors.
        content = load_state_dict(str(path), weights_only=True)
    if not content or not holds_weights(content):
        named = isinstance(content, Mapping) and content
        strange = [k for k, v in content.items() if not isinstance(v, Tensor)] if named else []
        what = f"{strange[0]!r} in it is no tensor" if strange else "it has no names"
        raise ValueError(f"model.init_from {path} holds no state dict ({what}){remedy}")
    weights = dict(content)
    if all(name.startswith("model.") for name in weights):
        weights = {name.removeprefix("model."): value for name, value in weights.items()}
    if all(name.startswith(PARTS) for name in weights) and any(
        name.startswith("backbone.") for name in weights
    ):
        return weights
    return {f"backbone.{name}": value for name, value in weights.items()}


def standardised_as(source: StartingWeights | None, config: RunConfig) -> DataConfig:
    """The options of the images, with the mean and deviation that the starting weights are used to.

    These are those of the run that the weights are from; of the backbone as timm describes it,
    where they are pretrained or a plain network's; as they were where the options give their own,
    or for fresh weights.
    """
    data, model = config.data, config.model
    if data.mean is not None or data.std is not None:
        return data
    if source is not None and source.about is not None:
        there = source.about["preprocessing"]
        return replace(data, mean=tuple(there["mean"]), std=tuple(there["std"]))
    mean, std = _described_by_timm(model.backbone)
    if source is not None and source.channels == 3:
        return replace(data, mean=mean, std=std)
    # One value does for grey images and for colour; three would turn grey ones into colour.
    if source is None and model.pretrained and len(set(mean)) == len(set(std)) == 1:
        return replace(data, mean=mean[:1], std=std[:1])
    return data


def _described_by_timm(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    described = None if backbone.startswith(SOURCES) else get_pretrained_cfg(backbone)
    if described is None:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return tuple(described.mean), tuple(described.std)
