"""A published model: a directory with weights, what they mean, and a card for people.

model.safetensors holds the weights under the names of `CovPoolModel`, config.json what a checkpoint
has under "covpool" (see `covpool.train.checkpoint`), README.md the model card. Nothing in it is
executed when it is read.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from covpool.train.checkpoint import METADATA, METADATA_KEYS, naming_damage, read_checkpoint
from covpool.train.claim import claimed
from covpool.train.config import RunConfig
from covpool.train.metadata import checked_metadata
from covpool.train.run_directory import remove_leftovers, replace_file, replace_text, replacing

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"

PREFIX = "model."
"""How the names of the model's weights begin in a run's checkpoint."""


@dataclass(frozen=True)
class PublishedDirectory:
    """A published model's directory, which can stand where a run's is asked for."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> Self:
        """The published model at that path.

        Raises:
            ValueError: there is none; the message names what is missing.
        """
        if not path.is_dir():
            raise ValueError(f"no directory {path}")
        missing = [name for name in (WEIGHTS, CONFIG) if not (path / name).is_file()]
        if missing:
            raise ValueError(
                f"{path} is not a published model: it has no {' and no '.join(missing)}; "
                "covpool export, convert and pull write such directories"
            )
        return cls(path)

    @staticmethod
    def is_at(path: Path) -> bool:
        """Whether a published model is there; timm's directories have files of the same names."""
        if not all((path / name).is_file() for name in (WEIGHTS, CONFIG)):
            return False
        try:
            content = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError):
            return True  # damaged: its reader says so
        return not (isinstance(content, dict) and "architecture" in content)

    def read_config(self) -> RunConfig:
        """The configuration of the run that trained it, but for what is of the machine alone.

        Raises:
            ValueError: config.json cannot be read, or is of another version.
        """
        config = RunConfig.from_dict(read_metadata(self.path)["config"])
        train = replace(config.train, threads=None, accelerator="auto", compile=False)
        return replace(config, train=train, data=replace(config.data, workers=0))


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A neighbouring directory to fill, which takes the path's place when all went well.

    Raises:
        ValueError: a directory is there that another process holds, or that holds more than what a
            killed one left, which is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    if path.is_dir():
        with claimed(path):
            pass  # it removes leftovers, and an old lock
        if any(path.iterdir()):
            raise ValueError(f"{path} is not empty; choose another --output")
    with replacing(path) as partial:
        partial.mkdir()
        yield partial


def write_published(
    path: Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, Any], card: str
) -> None:
    """Write a published model into a directory, which is made where it is missing.

    Args:
        path: the directory; files of these names in it are replaced, each in one step.
        state_dict: of the `CovPoolModel`.
        metadata: what a checkpoint has under "covpool"; further entries are kept.
        card: the model card, Markdown.

    Raises:
        ValueError: the metadata lacks an entry.
    """
    missing = [key for key in METADATA_KEYS if key not in metadata]
    if missing:
        raise ValueError(f"the metadata of a published model lacks {', '.join(missing)}")
    path.mkdir(parents=True, exist_ok=True)
    write_weights(path / WEIGHTS, state_dict)
    replace_text(path / CONFIG, json.dumps(metadata, indent=2, ensure_ascii=False) + "\n")
    replace_text(path / CARD, card)


def write_weights(file: Path, weights: Mapping[str, Tensor]) -> None:
    """Write weights as safetensors."""
    from safetensors.torch import save

    # Safetensors refuses tensors that share memory, as views and tied weights do.
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }
    content = save(plain, {"format": "pt"})
    # Its own writing of files leaves them readable by their owner alone.
    replace_file(file, lambda partial: partial.write_bytes(content))


def read_metadata(path: Path) -> dict[str, Any]:
    """The content of config.json of a published model.

    Raises:
        ValueError: it cannot be read, or as `checked_metadata`.
    """
    file = path / CONFIG
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{file} is damaged and cannot be read ({error}); get it again") from error
    return checked_metadata(metadata, file)


def read_published(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a published model, on the CPU, and its metadata.

    Raises:
        ValueError: not a published model, damaged, or as `checked_metadata` and `check_finite`.
    """
    from safetensors.torch import load_file

    PublishedDirectory.open(path)
    metadata = read_metadata(path)
    with naming_damage(f"{path / WEIGHTS} is damaged and cannot be read", "; get it again"):
        weights = load_file(path / WEIGHTS)
    check_finite(weights, path / WEIGHTS)
    return weights, metadata


def check_finite(weights: Mapping[str, Tensor], file: object) -> None:
    """Raise a ValueError that names the first weight with NaN or infinity in it."""
    for name, value in weights.items():
        if value.is_complex() or not value.to(torch.float32).isfinite().all():
            raise ValueError(
                f"{file}: {name} holds NaN, infinity or complex numbers; it is damaged, or its "
                "training diverged: get another one"
            )


def read_trained(path: Path) -> dict[str, Any]:
    """A run's checkpoint, or a published model in the form of one.

    Raises:
        ValueError, OSError: as `read_checkpoint`, `read_published` and `check_finite`.
    """
    if not path.is_dir():
        checkpoint = read_checkpoint(path)
        about = checked_metadata(checkpoint[METADATA], path)
        check_finite(model_weights(checkpoint), path)
        return {**checkpoint, METADATA: about}
    weights, metadata = read_published(path)
    return {"state_dict": {PREFIX + k: v for k, v in weights.items()}, METADATA: metadata}


def model_weights(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint under the model's own names."""
    return {
        name.removeprefix(PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(PREFIX)
    }
