"""covpool: global covariance pooling and differentiable spectral layers for PyTorch."""

from typing import TYPE_CHECKING, Any

from covpool._version import __version__
from covpool.linalg.functions import eigh, matrix_sqrt
from covpool.linalg.kernels import KERNELS
from covpool.linalg.methods import METHODS, Method
from covpool.pooling import CovPool2d, cov_pool, covariance, triu_vector

if TYPE_CHECKING:
    from covpool.models import create_model

__all__ = [
    "KERNELS",
    "METHODS",
    "CovPool2d",
    "Method",
    "__version__",
    "cov_pool",
    "covariance",
    "create_model",
    "eigh",
    "matrix_sqrt",
    "triu_vector",
]


def __getattr__(name: str) -> Any:
    # Models import timm and torchvision, which take seconds; layers need torch alone.
    if name == "create_model":
        from covpool.models import create_model

        return create_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
