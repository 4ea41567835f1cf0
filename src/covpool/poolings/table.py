"""POOLINGS, the one table of poolings; everything that lists poolings iterates it."""

from collections.abc import Mapping

from covpool.linalg.methods import METHODS, Method
from covpool.linalg.names import PoolingName
from covpool.linalg.tables import choose, table
from covpool.poolings.base import Pooling
from covpool.poolings.bilinear import BILINEAR
from covpool.poolings.channel_dropout import CHANNEL_DROPOUT
from covpool.poolings.cholesky import CHOLESKY
from covpool.poolings.cross import CROSS
from covpool.poolings.distance import DISTANCE
from covpool.poolings.first_order import FIRST_ORDER
from covpool.poolings.inverse import INVERSES
from covpool.poolings.moments import MOMENTS
from covpool.poolings.scaling import SCALINGS
from covpool.poolings.spectral import ROOTS, SPECTRAL, root_of

_GAP, *_OTHERS = FIRST_ORDER

POOLINGS: Mapping[str, Pooling] = table(
    {
        row.name: row
        for rows in (
            (_GAP,),
            ROOTS,
            _OTHERS,
            *(SPECTRAL, SCALINGS, CHOLESKY, INVERSES, CHANNEL_DROPOUT),
            *(BILINEAR, DISTANCE, CROSS, MOMENTS),
        )
        for row in rows
    },
    kind="pooling",
)
"""Every pooling by name: the average, the square root by every method of `METHODS`, the others."""


def get_pooling(pooling: str | Method | Pooling) -> Pooling:
    """The row of that name, the root by that method, or the row itself.

    Raises:
        ValueError: no such pooling; the message names the nearest.
    """
    if isinstance(pooling, Pooling):
        return pooling
    return root_of(pooling) if isinstance(pooling, Method) else POOLINGS[check_pooling(pooling)]


def check_pooling(name: str) -> PoolingName:
    """The name itself, or a ValueError that lists `POOLINGS` and the nearest one."""
    return choose("pooling method", name, dict(zip(POOLINGS, POOLINGS, strict=True)))


def method_or_pooling(chosen: str | Method | Pooling) -> Method | Pooling:
    """The method's row where the pooling is a square root, which can be switched; else its own.

    Raises:
        ValueError: as `get_pooling`.
    """
    if not isinstance(chosen, str):
        return chosen
    return METHODS.get(check_pooling(chosen)) or POOLINGS[chosen]
