"""covpool: global covariance pooling and differentiable spectral layers for PyTorch."""

from covpool._version import __version__

__all__ = ["__version__"]
