"""Image classifiers with covariance pooling on the backbones of timm and torchvision.

Importing this package imports timm (seconds) and registers models with it.
"""

try:  # imported only to say plainly that it is missing
    import timm as _timm  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "covpool.models needs timm and torchvision; from the checkout: pip install '.[models]'",
        name=error.name,
    ) from None

from covpool.models.backbones import check_backbone
from covpool.models.factory import create_model
from covpool.models.network import CovPoolModel
from covpool.models.plain import SmallConvNet
from covpool.models.registry import REGISTERED

__all__ = ["REGISTERED", "CovPoolModel", "SmallConvNet", "check_backbone", "create_model"]
