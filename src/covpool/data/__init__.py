"""Images by class, in the layouts of `covpool.data.layouts`, as the network's input."""

from typing import TYPE_CHECKING

from covpool.lazy import lazy_names

if TYPE_CHECKING:
    from covpool.data.config import DataConfig, DataError
    from covpool.data.dataset import Images
    from covpool.data.opening import ImageSplits, open_images
    from covpool.data.preprocessing import Preprocessing, average_over_views
    from covpool.data.reading import load_image

__all__ = [
    "DataConfig",
    "DataError",
    "ImageSplits",
    "Images",
    "Preprocessing",
    "average_over_views",
    "load_image",
    "open_images",
]

# The options of a run are read, and shown by --help, without torch.
_HOMES = {
    "DataConfig": "covpool.data.config",
    "DataError": "covpool.data.config",
    "ImageSplits": "covpool.data.opening",
    "Images": "covpool.data.dataset",
    "Preprocessing": "covpool.data.preprocessing",
    "average_over_views": "covpool.data.preprocessing",
    "load_image": "covpool.data.reading",
    "open_images": "covpool.data.opening",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
