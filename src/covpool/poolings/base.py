"""What a pooling is: a row of words and constants, and the module that it makes."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

NONE: Mapping[str, Any] = MappingProxyType({})


class PoolingModule(nn.Module):
    """Feature maps (B, C, H, W) → vectors (B, `out_features`).

    One of your own sets `out_features` in its constructor, which takes the number of channels C
    and the pooling's constants by name, and writes `forward`.
    """

    out_features: int

    least_positions = 1
    """Positions that a feature map needs for the vector to depend on it."""


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """A pooling by name: representation × normalisation × regulariser, and how it is made.

    Attributes:
        name: the name by which functions, layers and the command line know it.
        representation: what is computed from the features.
        normalisation: what is made of that.
        regulariser: what is done in training alone.
        make: from the number of channels, and the constants by name, to the module.
        chosen: constants that `make` is given beside the channels; what else it takes has its
            defaults.
        reduced: whether a network reduces its channels first, by a 1×1 convolution, batch norm
            and ReLU (the number of channels is the network's choice).
        class_token: whether the vector also holds the class token, where the backbone has one.
            `make` then takes its length, `token_features`, and the module the token.
        paper: the source.
        description: one line.
        caution: what a reader must know: deviations, and what is not known.
    """

    name: str
    representation: str
    normalisation: str = "none"
    regulariser: str = "none"
    make: Callable[..., PoolingModule]
    chosen: Mapping[str, Any] = field(default_factory=dict)
    reduced: bool = True
    class_token: bool = False
    paper: str
    description: str
    caution: str = ""

    @property
    def constants(self) -> dict[str, Any]:
        """Every constant by name, chosen or by default."""
        taken = inspect.signature(self.make).parameters.values()
        defaults = {
            parameter.name: parameter.default
            for parameter in taken
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "token_features"
        }
        return {
            name: value
            for name, value in {**defaults, **self.chosen}.items()
            if value is not inspect.Parameter.empty
        }

    def replace(self, **constants: Any) -> Self:
        """The row with other constants, `POOLINGS["power"].replace(exponent=0.3)`.

        Raises:
            ValueError: the row has no constant of that name. Values are checked when it is built.
        """
        known = self.constants
        if not known and constants:
            raise ValueError(f"pooling {self.name!r} has no constants, got {constants}")
        unknown = [name for name in constants if name not in known]
        if unknown:
            has = ", ".join(f"{name}={value!r}" for name, value in known.items())
            raise ValueError(
                f"pooling {self.name!r} has no constant {unknown[0]!r}; its constants: {has}"
            )
        return replace(
            self,
            representation=constants.get("representation", self.representation),
            chosen={**self.chosen, **constants},
        )

    def build(self, channels: int, token_features: int = 0) -> PoolingModule:
        """The module for that many channels, and for a class token of that length."""
        extra = {"token_features": token_features} if self.class_token else {}
        return self.make(channels, **self.chosen, **extra)

    def count(self, channels: int) -> tuple[int, int]:
        """The length of its vector and the number of its parameters, reduction not counted."""
        with torch.device("meta"):
            made = self.build(channels)
        return made.out_features, sum(parameter.numel() for parameter in made.parameters())


def require(ok: bool, name: str, requirement: str, value: object) -> None:
    """A ValueError that names the constant, what it must be and what it was, unless ok."""
    if not ok:
        raise ValueError(f"{name} must be {requirement}, got {value!r}")


def quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 where the denominator is 0, with zero gradients there."""
    zero = denominator == 0
    return torch.where(zero, 0, numerator / torch.where(zero, 1, denominator))


def power(x: Tensor, exponent: float) -> Tensor:
    """x^p of x ≥ 0 for p > 0, whose gradient at 0 is 0, as on the null space of a matrix."""
    zero = x <= 0
    return torch.where(zero, 0, torch.where(zero, 1, x) ** exponent)
