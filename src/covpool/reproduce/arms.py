"""What is trained: a method from the first epoch on, or by the hybrid protocol."""

from dataclasses import dataclass

from covpool.linalg.methods import METHODS
from covpool.linalg.tables import choose
from covpool.report.paper import NAMES

NEWTON_SCHULZ = "isqrt-cov"
"""What the hybrid protocol trains first, and what the paper compares the rest with."""

ACCURATE = "svd"
"""The paper's accurate SVD (MPN-COV)."""

METHODS_OF_PAPER = ("exact", *(row.name for row in METHODS.values() if row.paper_name))
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


def read_arm(label: str) -> Arm:
    """The arm of a label.

    Raises:
        ValueError: no such way to train.
    """
    known = {
        arm.label: arm
        for arm in (
            *standalone(*METHODS),
            *(Arm("gap", matched=m, reduced=r) for r in (False, True) for m in (False, True)),
            *hybrid(*METHODS),
        )
    }
    return choose("way to train", label, known)


def standalone(*methods: str) -> tuple[Arm, ...]:
    """Arms that train one method throughout."""
    return tuple(Arm(method) for method in methods)


def hybrid(*methods: str) -> tuple[Arm, ...]:
    """Arms of the hybrid protocol; Newton-Schulz itself has none."""
    return tuple(Arm(method, hybrid=True) for method in methods if method != NEWTON_SCHULZ)


def printed_name(method: str) -> str | None:
    """The method's row in the paper's tables, None where it has none."""
    row = METHODS.get(method)
    name = row.paper_name if row else None
    return NAMES.get(name, name) if name else None
