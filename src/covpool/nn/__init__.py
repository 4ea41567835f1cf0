"""Layers around functions of matrices: whitening, and networks of symmetric positive definite ones.

They need PyTorch alone. `CovPool2d` and `MatrixFunction` are layers too, and stand at the top.
"""

from covpool.nn.batch_norm import RiemannianBatchNorm
from covpool.nn.spd import BiMap, LogEig, ReEig
from covpool.nn.whitening import Whitening

__all__ = ["BiMap", "LogEig", "ReEig", "RiemannianBatchNorm", "Whitening"]
