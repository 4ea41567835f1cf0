"""The configuration of a training run: its groups of options together, and as plain values.

The images' options are in `covpool.data`, all others in `covpool.train.options`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from covpool.data import DataConfig
from covpool.data.types import check_value
from covpool.train.options import ModelConfig, OptimConfig, TrainConfig

__all__ = ["DataConfig", "ModelConfig", "OptimConfig", "RunConfig", "TrainConfig"]

ELEMENTWISE = ("sgd", "adam", "adamw", "lion")
"""Optimisers that treat each number of the weights by itself, so that these may be sharded."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that a run is made from."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        model, optim = self.model, self.optim
        if model.hybrid is not None:
            last = optim.milestones[-1] if optim.decay == "step" and optim.milestones else None
            if last is None:
                raise ValueError(
                    f"model.hybrid {model.hybrid!r} switches at the last of optim.milestones, and "
                    "there is none; give optim.decay step with milestones, or the epoch itself by "
                    f"model.schedule 0:{model.method},EPOCH:{model.hybrid}"
                )
            if last >= self.train.epochs:
                raise ValueError(
                    f"model.hybrid {model.hybrid!r} switches at epoch {last}, the last of "
                    f"optim.milestones, and train.epochs {self.train.epochs} ends before it"
                )
        if self.train.strategy.startswith("fsdp"):
            for name in ("weight_average", "layer_decay", "decay_norm_and_bias", "reduction_steps"):
                if (value := getattr(optim, name)) != getattr(OptimConfig, name):
                    raise ValueError(
                        f"optim.{name} {str(value).lower()} needs whole weights in each process, "
                        f"and train.strategy {self.train.strategy!r} shards them; use ddp"
                    )
            if optim.name not in ELEMENTWISE:
                raise ValueError(
                    f"optim.name {optim.name!r} may need whole weights in each process, and "
                    f"train.strategy {self.train.strategy!r} shards them; use ddp, or one of "
                    f"{', '.join(ELEMENTWISE)}"
                )
        if "smoothness" in self.train.probes and self.train.strategy.startswith("fsdp"):
            raise ValueError(
                "train.probes smoothness moves whole weights in each process, and train.strategy "
                f"{self.train.strategy!r} shards them; use ddp, or leave that probe out"
            )

    @classmethod
    def groups(cls) -> dict[str, type]:
        """Each group's name and dataclass."""
        # Typed as MISSING or a factory without a name; each field here has its class for one.
        return {item.name: item.default_factory for item in dataclasses.fields(cls)}  # type: ignore[misc]

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> Self:
        """The configuration that `to_dict` described.

        Raises:
            ValueError: an unknown group or field (a run of another version), or a bad value.
        """
        check_value("the configuration", values, dict[str, dict[str, Any]])
        made = {}
        for group, fields in values.items():
            if group not in cls.groups():
                raise ValueError(f"unknown configuration group {group!r}")
            owner = cls.groups()[group]
            known = {item.name for item in dataclasses.fields(owner)}
            for name in fields:
                if name not in known:
                    raise ValueError(f"unknown configuration key {group}.{name}")
            made[group] = owner(
                **{
                    name: tuple(value) if isinstance(value, list) else value
                    for name, value in fields.items()
                }
            )
        return cls(**made)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain dictionaries, lists, strings and numbers, for YAML and checkpoints."""
        return {
            group: {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in fields.items()
            }
            for group, fields in dataclasses.asdict(self).items()
        }
