"""What a benchmark run measures and how: its settings, checked, and the cases they make."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from covpool.bench.cases import Case, floor_cases, make_cases
from covpool.bench.features import SPECTRA, Shape, Spectrum, make_features, make_weight
from covpool.bench.peers import OpenPeer, open_peer
from covpool.linalg.methods import METHODS, choose, get_method
from covpool.machine import available_cores

DTYPES = {"float32": torch.float32, "float64": torch.float64}
FEWEST_ROUNDS = 7


@dataclass(frozen=True)
class Settings:
    """The options of a run, as they stand in its results.

    Attributes:
        shapes: of the features, BATCHxCHANNELSxPOSITIONS.
        methods: ours.
        peers: NAME=CHECKOUT or NAME, see `peers.open_peer`.
        rounds: timed steps of each case.
        warm_up: untimed ones before.
        threads: of the CPU.
        device: "cpu", "cuda" or "cuda:1".
        dtype: of the features.
        compute_dtype: of our methods, as for `cov_pool`; None: the default accuracy.
        spectrum: of the features that are timed, see `features.make_features`.
        condition: cond(X) of the features that are timed, where the spectrum is geometric.
        accuracy_conditions: cond(X) at each of which errors are measured.
        vector: gather the upper triangle on all sides.
        time: measure times.
        memory: measure the peak memory.
        floor: measure the least work.
        seed: of the features.
    """

    shapes: tuple[str, ...]
    methods: tuple[str, ...] = tuple(METHODS)
    peers: tuple[str, ...] = ()
    rounds: int = 9
    warm_up: int = 2
    threads: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    compute_dtype: str | None = None
    spectrum: Spectrum = "geometric"
    condition: float = 1e4
    accuracy_conditions: tuple[float, ...] = (1e4, 1e5, 1e6)
    vector: bool = False
    time: bool = True
    memory: bool = True
    floor: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.threads == 0:
            object.__setattr__(self, "threads", available_cores())
        if not self.shapes:
            raise ValueError("no shapes to measure; give at least one, such as 16x256x49")
        for text in self.shapes:
            Shape.parse(text)
        for name in self.methods:
            get_method(name)
        choose("dtype", self.dtype, DTYPES)
        if self.compute_dtype is not None:
            choose("compute_dtype", self.compute_dtype, DTYPES)
        choose("spectrum", self.spectrum, dict.fromkeys(SPECTRA))
        for name, least in (("rounds", 1), ("warm_up", 0), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for condition in (self.condition, *self.accuracy_conditions):
            if not 1 <= condition < float("inf"):
                raise ValueError(f"a condition number must be finite and at least 1: {condition}")
        self._check_device()

    def _check_device(self) -> None:
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"unknown device {self.device!r}; cpu or cuda") from error
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device {self.device!r} cannot be measured on; cpu or cuda")
        if device.type == "cuda":
            count = torch.cuda.device_count()
            if count <= (device.index or 0):
                raise ValueError(f"no device {self.device!r}: torch finds {count} CUDA devices")

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def open_peers(self) -> list[OpenPeer]:
        """
        Raises:
            ValueError: as `open_peer`, or one is given twice.
        """
        opened = [open_peer(text, self.torch_device) for text in self.peers]
        names = [one.peer.name for one in opened]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"--peer {min(twice)} is given twice; give one checkout of it")
        return opened

    def cases(self, peers: Sequence[OpenPeer]) -> list[Case]:
        """All cases, the floor's last."""
        compute_dtype = None if self.compute_dtype is None else DTYPES[self.compute_dtype]
        made = make_cases(self.methods, peers, vector=self.vector, compute_dtype=compute_dtype)
        if self.floor:
            made += floor_cases((self.torch_dtype, torch.float64), self.torch_device)
        return made

    def inputs(self, shape: Shape, **changed: Any) -> tuple[Tensor, Tensor]:
        """Features of that shape and the weight of the loss, as `make_features` and `make_weight`
        give them.

        Args:
            shape: of the features.
            **changed: a spectrum or condition other than the settings'.
        """
        options: Any = {"seed": self.seed, "dtype": self.torch_dtype, "device": self.device}
        chosen: Any = {"spectrum": self.spectrum, "condition": self.condition, **changed}
        return make_features(shape, **chosen, **options), make_weight(shape, **options)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Of `to_dict`'s form; lists in place of tuples are taken as well."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.items()
        }
        return cls(**values)
