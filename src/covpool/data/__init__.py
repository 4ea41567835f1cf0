"""Images by class, in the layouts of `covpool.data.layouts`, as the network's input."""

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
