"""Poolings: what is made of a feature map before the classifier, one table of all of them.

A pooling is representation × normalisation × regulariser → vector, and a row of `POOLINGS`:

- `representations.py` has the symmetric matrices of a feature map, and `matrix.py` the pooling
  that normalises one of them; `spectral.py`, `scaling.py`, `cholesky.py` and `inverse.py` have the
  normalisations, `channel_dropout.py` a regulariser;
- `first_order.py`, `bilinear.py`, `distance.py`, `cross.py` and `moments.py` have poolings that
  are made otherwise.

Each family's rows stand at the end of its file. `Pool2d` makes a layer of a row.
"""

from covpool.poolings.base import Pooling, PoolingModule
from covpool.poolings.layer import Pool2d
from covpool.poolings.matrix import matrix_pooling
from covpool.poolings.table import POOLINGS, check_pooling, get_pooling, method_or_pooling

__all__ = [
    "POOLINGS",
    "Pool2d",
    "Pooling",
    "PoolingModule",
    "check_pooling",
    "get_pooling",
    "matrix_pooling",
    "method_or_pooling",
]
