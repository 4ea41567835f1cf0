"""Fashion-MNIST's photographs as an archive that `--data.root` takes: the coarse control.

    apt-get install dataset-fashion-mnist      # Debian; 70,000 photographs of 28x28, MIT licence
    python tools/make_fashion_mnist.py --output fashion_mnist.npz

Xiao, Rasul, Vollgraf, Fashion-MNIST, arXiv 1708.07747. All 60,000 training and 10,000 test images,
or the first `--images` of each class and split.
"""

import argparse
import gzip
import sys
from pathlib import Path

import numpy as np

FILES = Path("/usr/share/datasets/fashion-mnist")

CLASSES = ("T-shirt or top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker")
CLASSES += ("bag", "ankle boot")


def idx(path: Path) -> np.ndarray:
    """The array of bytes in an IDX file: two zero bytes, type 8, dimensions, sizes, values."""
    with gzip.open(path) as file:
        content = file.read()
    if content[:3] != b"\0\0\x08":
        raise SystemExit(f"{path} is no IDX file of bytes; it starts with {content[:4].hex(' ')}")
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", dimensions, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def first_of_each(labels: np.ndarray, count: int | None) -> np.ndarray:
    """Places of the first images of each class, in the order of the file."""
    chosen = [np.flatnonzero(labels == label)[:count] for label in range(len(CLASSES))]
    return np.sort(np.concatenate(chosen))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=Path, default=FILES, help="folder of the four .gz files")
    parser.add_argument("--images", type=int, nargs=2, help="images of a class, training and test")
    parser.add_argument("--output", type=Path, required=True, help="the archive to write (.npz)")
    options = parser.parse_args()

    arrays = {"classes": np.array(CLASSES)}
    counts = options.images or (None, None)
    for split, prefix, count in zip(("train", "test"), ("train", "t10k"), counts, strict=True):
        images = idx(options.files / f"{prefix}-images-idx3-ubyte.gz")
        labels = idx(options.files / f"{prefix}-labels-idx1-ubyte.gz")
        chosen = first_of_each(labels, count)
        arrays |= {f"{split}_images": images[chosen], f"{split}_labels": labels[chosen]}
    np.savez_compressed(options.output, **arrays)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
