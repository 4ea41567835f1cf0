"""What every result of an analysis shares: plain data for JSON, and a summary over samples."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from covpool.linalg import checks
from covpool.linalg.methods import choose

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""What a distribution is described by: least, largest, median, quartiles, and the 5% ends."""


class Record:
    """A frozen dataclass of figures that can be written down as plain data."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as strict JSON has them: tensors as nested lists, dtypes by name.

        Infinities and NaN, for which JSON has no number, are "inf", "-inf" and "nan", which
        `float` reads.
        """
        record: Any = self  # a dataclass in each subclass, which this base cannot declare
        fields = dataclasses.fields(record)
        return {field.name: plain(getattr(self, field.name)) for field in fields}


def plain(value: Any) -> Any:
    """The value as strict JSON has it, see `Record.to_dict`."""
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Tensor):
        return plain(value.detach().cpu().tolist())
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


@dataclass(frozen=True, kw_only=True)
class Distribution(Record):
    """How a figure is distributed over samples.

    Attributes:
        count: how many values there are.
        infinite: how many are infinite.
        not_a_number: how many are NaN; they are left out of the quantiles.
        quantiles: the value at each of `QUANTILES`, in order: of the sorted values the nearest one,
            never a mean of two, so that infinities stay what they are. Empty without values.
    """

    count: int
    infinite: int
    not_a_number: int
    quantiles: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle quantile; NaN without values."""
        return self.quantiles[QUANTILES.index(0.5)] if self.quantiles else math.nan

    @property
    def largest(self) -> float:
        """The last quantile; NaN without values."""
        return self.quantiles[-1] if self.quantiles else math.nan

    def __str__(self) -> str:
        shown = ", ".join(f"{value:.3g}" for value in self.quantiles)
        left_out = f", {self.not_a_number} not a number" if self.not_a_number else ""
        return f"{self.count} values{left_out}; quantiles {shown or 'none'}"


def summarise(values: Tensor) -> Distribution:
    """The distribution of all values of a tensor of any shape."""
    values = values.detach().double().flatten()
    known = values[~values.isnan()].sort().values
    quantiles: tuple[float, ...] = ()
    if known.numel():
        places = [round(share * (known.numel() - 1)) for share in QUANTILES]
        quantiles = tuple(known[places].tolist())
    return Distribution(
        count=values.numel(),
        infinite=int(values.isinf().sum()),
        not_a_number=values.numel() - known.numel(),
        quantiles=quantiles,
    )


def check_spectrum(caller: str, eigenvalues: Tensor) -> Tensor:
    """Eigenvalues (*, n) in ascending order, detached, in float32 or wider.

    Raises:
        ValueError: not floating point, none, negative or not finite.
    """
    if not isinstance(eigenvalues, Tensor) or eigenvalues.ndim < 1 or eigenvalues.shape[-1] == 0:
        shape = tuple(getattr(eigenvalues, "shape", ()))
        raise ValueError(f"{caller} needs eigenvalues (*, n), n of 1 or more, got shape {shape}")
    checks.floating(caller, eigenvalues)
    eigenvalues = eigenvalues.detach()
    eigenvalues = eigenvalues.to(torch.promote_types(eigenvalues.dtype, torch.float32))
    if eigenvalues.numel() and not (eigenvalues.isfinite() & (eigenvalues >= 0)).all():
        worst = eigenvalues[~(eigenvalues.isfinite() & (eigenvalues >= 0))][0].item()
        raise ValueError(
            f"{caller} needs eigenvalues of covariances, finite and not negative, got {worst:.3g}; "
            "set rounding errors to zero first, or start from the features"
        )
    return eigenvalues.sort(-1).values


def check_dtype(caller: str, dtype: object) -> None:
    """Raises ValueError for another dtype than float32 and float64."""
    choices = {str(each): each for each in (torch.float32, torch.float64)}
    choose(f"dtype of {caller}", str(dtype), choices)
