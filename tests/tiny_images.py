"""A folder of small real image files, quick to train on, and options to match."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("checks", "grain", "stripes")

OPTIONS = [
    *("--data.image_size", "16"),
    *("--data.batch_size", "8"),
    *("--model.backbone_options.width", "8"),
    *("--train.epochs", "2"),
    *("--train.threads", "1"),
    *("--train.accelerator", "cpu"),
]
"""27 training images give 3 steps an epoch of 8 images each, and 3 images left out."""


def make_tiny_images(root: Path, train: int = 9, test: int = 4) -> Path:
    """Grey 20×20 images of three textures, as root/train/CLASS/*.png and root/test/CLASS/*.png."""
    generator = np.random.default_rng(0)
    row, column = np.indices((20, 20))
    textures = {"checks": (row + column) % 2, "grain": None, "stripes": row % 2}
    for split, count in (("train", train), ("test", test)):
        for name, texture in textures.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                noise = generator.random((20, 20))
                pixels = noise if texture is None else 0.7 * texture + 0.3 * noise
                image = Image.fromarray((255 * pixels).astype(np.uint8))
                image.save(folder / f"{index}.png")
    return root
