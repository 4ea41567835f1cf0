"""Images by class: the embedded typefaces, folders of class folders, and NumPy archives."""

from covpool.data.config import DataConfig, DataError
from covpool.data.dataset import Images, Preprocessing, load_image
from covpool.data.opening import ImageSplits, open_images

__all__ = [
    "DataConfig",
    "DataError",
    "ImageSplits",
    "Images",
    "Preprocessing",
    "load_image",
    "open_images",
]
