"""NumPy archives of images, the embedded typefaces among them."""

import difflib
import math
import zipfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from covpool.data.config import DataError
from covpool.data.reading import check_size, open_file

KEYS = ("train_images", "train_labels", "test_images", "test_labels", "classes")

LARGEST_GROWTH = 200
"""How many times the file's size its arrays may take in memory; DEFLATE reaches 1032. The embedded
typefaces grow to twice theirs."""

ALWAYS_READ = 2**28
"""Bytes of arrays that are read however small the file is."""


@dataclass(frozen=True, kw_only=True)
class ArchiveContents:
    """Images (n, channels, H, W) uint8 and labels of each split."""

    classes: tuple[str, ...]
    train: tuple[Tensor, list[int]]
    test: tuple[Tensor, list[int]]


def embedded_typefaces() -> Path:
    """The embedded data set: 24 typefaces, 80 training and 80 test patches of text of each."""
    return Path(str(resources.files("covpool.data") / "typefaces" / "typefaces.npz"))


def read_archive(path: Path) -> ArchiveContents:
    """Read an archive with the arrays of `KEYS`.

    Images are uint8, (n, H, W) or (n, H, W, 1) grey or (n, H, W, 3) colour; labels are whole
    numbers that index `classes`. Nothing in the file is executed.

    Raises:
        DataError: a damaged file, or an array that is missing or not as described.
    """
    try:
        # np.load leaves a damaged file open where it opened it itself.
        with open_file(path) as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(
                    f"{path} holds a single array; an archive of {', '.join(KEYS)} is due"
                )
            with archive:
                missing = [key for key in KEYS if key not in archive]
                if missing:
                    near = difflib.get_close_matches(missing[0], archive.files, n=1)
                    remedy = f"; is {near[0]} meant for {missing[0]}?" if near else ""
                    raise DataError(
                        f"{path} lacks {', '.join(missing)}; an archive of images holds "
                        f"{', '.join(KEYS)}{remedy}"
                    )
                assert archive.zip is not None
                _check_claims(path, archive.zip)
                arrays = {key: archive[key] for key in KEYS}
    except DataError:
        raise
    # NumPy and zipfile raise what they like: BadZipFile, zlib.error, TokenError on damaged files,
    # RuntimeError where they are encrypted, MemoryError where the machine is too small, …
    except Exception as error:
        cause = " ".join(str(error).split())
        raise DataError(
            f"cannot read NumPy archive {path}: {cause}; it is damaged, or holds more than plain "
            "arrays"
        ) from error

    names = arrays["classes"]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(
            f"{path}: classes must be a list of text, got {names.dtype} of shape {names.shape}"
        )
    classes = tuple(names.tolist())
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise DataError(f"{path}: classes must be at least two different names, got {classes}")
    splits = {
        split: (
            _images(path, split, arrays[f"{split}_images"]),
            _labels(path, split, arrays[f"{split}_labels"], arrays[f"{split}_images"], classes),
        )
        for split in ("train", "test")
    }
    (train, test) = (splits[split][0].shape[1:] for split in ("train", "test"))
    if train != test:
        raise DataError(
            f"{path}: training images are {tuple(train)}, test images {tuple(test)} (channels, "
            "height, width); make them alike"
        )
    for split, what in (("train", "training"), ("test", "test")):
        present = set(splits[split][1])
        lacking = [repr(name) for label, name in enumerate(classes) if label not in present]
        if lacking:
            raise DataError(f"{path}: no {what} image of class {', '.join(lacking[:10])}")
    return ArchiveContents(classes=classes, train=splits["train"], test=splits["test"])


def _check_claims(path: Path, archive: zipfile.ZipFile) -> None:
    """Compare what the arrays claim to take with what the file holds, before memory is asked for.

    Raises:
        ValueError: a header that claims more than its entry holds.
        DataError: entries that would grow to many times the file.
    """
    total, size = 0, path.stat().st_size
    for key in KEYS:
        entry = archive.getinfo(f"{key}.npy")
        total += entry.file_size
        with archive.open(entry) as file:
            first = np.lib.format.read_magic(file) == (1, 0)
            read = (
                np.lib.format.read_array_header_1_0
                if first
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(file)
            claimed, held = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
        if claimed > held:
            raise ValueError(f"{key} claims {claimed} bytes and has {held}")
    if total > max(ALWAYS_READ, LARGEST_GROWTH * size):
        raise DataError(
            f"{path}: its arrays would take {total / 2**30:.1f} GiB, {total // size} times the "
            f"file's size, and more than {LARGEST_GROWTH} times is refused; if they are as they "
            "should be, write them uncompressed, by numpy.savez"
        )


def _images(path: Path, split: str, images: np.ndarray) -> Tensor:
    channels_last = images.ndim == 4 and images.shape[-1] in (1, 3)
    if images.dtype != np.uint8 or not (images.ndim == 3 or channels_last) or images.size == 0:
        raise DataError(
            f"{path}: {split}_images must be uint8 of shape (n, height, width) or "
            f"(n, height, width, 1 or 3), got {images.dtype} {images.shape}"
        )
    try:
        check_size(images.shape[2], images.shape[1])
    except ValueError as error:
        raise DataError(f"{path}: {split}_images have {error}") from error
    tensor = torch.from_numpy(images)
    return tensor.permute(0, 3, 1, 2).contiguous() if channels_last else tensor[:, None]


def _labels(
    path: Path, split: str, labels: np.ndarray, images: np.ndarray, classes: tuple[str, ...]
) -> list[int]:
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{path}: {split}_labels must be {len(images)} whole numbers, got {labels.dtype} "
            f"{labels.shape}"
        )
    values = labels.astype(np.int64)
    wrong = np.flatnonzero((values < 0) | (values >= len(classes)))
    if len(wrong):
        raise DataError(
            f"{path}: {split}_labels[{wrong[0]}] is {values[wrong[0]]}, outside the "
            f"{len(classes)} classes"
        )
    return values.tolist()
