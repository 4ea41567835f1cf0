"""What is trained: a method from the first epoch on, or by the hybrid protocol."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from covpool.experiments.paper import printed_name
from covpool.linalg.methods import METHODS
from covpool.linalg.tables import choose
from covpool.poolings import method_or_pooling
from covpool.train.config import RunConfig

NEWTON_SCHULZ = "isqrt-cov"
"""What the hybrid protocol trains first, and what the paper compares the rest with."""

ACCURATE = "svd"
"""The paper's accurate SVD (MPN-COV)."""

METHODS_OF_PAPER = ("exact", *(name for name in METHODS if printed_name(name)))
"""The paper's methods, and the exact gradient, which it does not have."""

SMOOTHED = ("svd-topn", "svd-trunc", "svd-pi", "svd-newton", "svd-taylor")
"""What the paper calls variants with smooth gradients, before it proposes SVD-Padé."""


@dataclass(frozen=True)
class Arm:
    """One way to train; runs of it differ in their seed.

    Attributes:
        method: the pooling, gap included.
        hybrid: whether Newton-Schulz is trained until the last decay of the rate, and this method
            after it.
        matched: of gap: with a hidden layer, so that its head has as many parameters as that of
            covariance pooling.
        reduced: of gap: averaging the reduced channels that covariance pooling pools.
    """

    method: str
    hybrid: bool = False
    matched: bool = False
    reduced: bool = False

    @property
    def label(self) -> str:
        """For file names and people."""
        suffix = "-reduced" * self.reduced + "-matched" * self.matched
        return f"{'hybrid-' * self.hybrid}{self.method}{suffix}"

    @property
    def protocol(self) -> str:
        """The paper's word."""
        return "hybrid" if self.hybrid else "standalone"

    @property
    def tuned_as(self) -> "Arm":
        """The arm whose trials choose this one's rate.

        Hybrid training is that of Newton-Schulz until the last decay, with its rates: the paper's
        protocol changes the method of a given training.
        """
        return TRUNK if self.hybrid else self

    def config(self, shared: RunConfig) -> RunConfig:
        """Its configuration, from the options that all arms share.

        Raises:
            ValueError: a hybrid arm without a decay to switch at.
        """
        method, model = NEWTON_SCHULZ if self.hybrid else self.method, shared.model
        return replace(
            shared,
            model=replace(
                model,
                method=method,
                hybrid=self.method if self.hybrid else None,
                constants=_constants(shared, method) | _constants(shared, self.method),
                hidden_features="matched" if self.matched else model.hidden_features,
                gap_reduction=self.reduced or (self.method == "gap" and model.gap_reduction),
            ),
        )


def _constants(config: RunConfig, method: str) -> dict[str, Any]:
    """Those of the configuration's constants that the pooling has."""
    row = method_or_pooling(method)
    return {k: v for k, v in config.model.constants.items() if k in row.constants}


TRUNK = Arm(NEWTON_SCHULZ)
"""What hybrid training is equal to before the switch."""


def standalone(*methods: str) -> tuple[Arm, ...]:
    """Arms that train one method throughout."""
    return tuple(Arm(method) for method in methods)


def hybrid(*methods: str) -> tuple[Arm, ...]:
    """Arms of the hybrid protocol; Newton-Schulz itself has none."""
    return tuple(Arm(method, hybrid=True) for method in methods if method != NEWTON_SCHULZ)


BASELINES = tuple(Arm("gap", matched=m, reduced=r) for r in (False, True) for m in (False, True))
"""The ways to train without a covariance."""


def read_arm(label: str) -> Arm:
    """The arm of a label.

    Raises:
        ValueError: no such way to train.
    """
    arms = (*standalone(*METHODS), *BASELINES, *hybrid(*METHODS))
    known: Mapping[str, Arm] = {arm.label: arm for arm in arms}
    return choose("way to train", label, known)
