"""covpool: global covariance pooling and differentiable spectral layers for PyTorch."""

from typing import TYPE_CHECKING

from covpool._version import __version__
from covpool.lazy import lazy_names

if TYPE_CHECKING:
    from covpool.exporting import exportable
    from covpool.fitting import TrainedRun, fit
    from covpool.linalg.api import (
        matrix_exp,
        matrix_function,
        matrix_inv_sqrt,
        matrix_log,
        matrix_power,
        matrix_sqrt,
    )
    from covpool.linalg.decompositions import eigh, eigh_generalized, eigvalsh, svd, svdvals
    from covpool.linalg.diagnostics import Diagnostics, diagnose
    from covpool.linalg.elementwise import Elementwise
    from covpool.linalg.functions import FUNCTIONS
    from covpool.linalg.gauge import GaugeDependence, gauge_dependence
    from covpool.linalg.gradients.kernels import KERNELS
    from covpool.linalg.inverse_root import matrix_inv_root
    from covpool.linalg.methods import METHODS, Method
    from covpool.linalg.module import MatrixFunction
    from covpool.linalg.rectangular import low_rank, polar, svd_function
    from covpool.linalg.registration import kabsch, orthogonal_procrustes
    from covpool.models import create_model
    from covpool.pooling import CovPool2d, cov_pool, covariance, triu_vector
    from covpool.poolings import POOLINGS, Pool2d, Pooling
    from covpool.train.prediction import load_model

__all__ = [
    "FUNCTIONS",
    "KERNELS",
    "METHODS",
    "POOLINGS",
    "CovPool2d",
    "Diagnostics",
    "Elementwise",
    "GaugeDependence",
    "MatrixFunction",
    "Method",
    "Pool2d",
    "Pooling",
    "TrainedRun",
    "__version__",
    "cov_pool",
    "covariance",
    "create_model",
    "diagnose",
    "eigh",
    "eigh_generalized",
    "eigvalsh",
    "exportable",
    "fit",
    "gauge_dependence",
    "kabsch",
    "load_model",
    "low_rank",
    "matrix_exp",
    "matrix_function",
    "matrix_inv_root",
    "matrix_inv_sqrt",
    "matrix_log",
    "matrix_power",
    "matrix_sqrt",
    "orthogonal_procrustes",
    "polar",
    "svd",
    "svd_function",
    "svdvals",
    "triu_vector",
]

# Names are looked up when they are first used: `covpool --help` does without torch, layers do
# without timm and torchvision.
_HOMES = {
    "FUNCTIONS": "covpool.linalg.functions",
    "KERNELS": "covpool.linalg.gradients.kernels",
    "METHODS": "covpool.linalg.methods",
    "POOLINGS": "covpool.poolings",
    "CovPool2d": "covpool.pooling",
    "Diagnostics": "covpool.linalg.diagnostics",
    "Elementwise": "covpool.linalg.elementwise",
    "GaugeDependence": "covpool.linalg.gauge",
    "MatrixFunction": "covpool.linalg.module",
    "Method": "covpool.linalg.methods",
    "Pool2d": "covpool.poolings",
    "Pooling": "covpool.poolings",
    "TrainedRun": "covpool.fitting",
    "cov_pool": "covpool.pooling",
    "covariance": "covpool.pooling",
    "create_model": "covpool.models",
    "diagnose": "covpool.linalg.diagnostics",
    "eigh": "covpool.linalg.decompositions",
    "eigh_generalized": "covpool.linalg.decompositions",
    "eigvalsh": "covpool.linalg.decompositions",
    "exportable": "covpool.exporting",
    "fit": "covpool.fitting",
    "gauge_dependence": "covpool.linalg.gauge",
    "kabsch": "covpool.linalg.registration",
    "load_model": "covpool.train.prediction",
    "low_rank": "covpool.linalg.rectangular",
    "matrix_exp": "covpool.linalg.api",
    "matrix_function": "covpool.linalg.api",
    "matrix_inv_root": "covpool.linalg.inverse_root",
    "matrix_inv_sqrt": "covpool.linalg.api",
    "matrix_log": "covpool.linalg.api",
    "matrix_power": "covpool.linalg.api",
    "matrix_sqrt": "covpool.linalg.api",
    "orthogonal_procrustes": "covpool.linalg.registration",
    "polar": "covpool.linalg.rectangular",
    "svd": "covpool.linalg.decompositions",
    "svd_function": "covpool.linalg.rectangular",
    "svdvals": "covpool.linalg.decompositions",
    "triu_vector": "covpool.pooling",
}

# The optional dependencies without which a name cannot be used.
_EXTRAS = {"create_model": "models", "fit": "train", "load_model": "train", "TrainedRun": "train"}

__getattr__, __dir__ = lazy_names(__name__, _HOMES, _EXTRAS)
