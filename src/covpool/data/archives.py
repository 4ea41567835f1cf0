"""NumPy archives of images, the embedded typefaces among them."""

import difflib
import math
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from covpool.data.config import DataError, fault
from covpool.data.reading import check_size, open_file

SPLITS = ("train", "test")

KEYS = ("train_images", "train_labels", "test_images", "test_labels", "classes")

LARGEST_GROWTH = 200
"""How many times the file's size its arrays may take in memory; DEFLATE reaches 1032. The embedded
typefaces grow to twice theirs."""

ALWAYS_READ = 2**28
"""Bytes of arrays that are read however small the file is."""


@dataclass(frozen=True, kw_only=True)
class ArchiveContents:
    """Images (n, channels, H, W) uint8 and labels of each split; −1 where a class is not known."""

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

    Where faults are collected, a split without usable images and labels has none, an image without
    a class has the label −1, and classes without usable names are called by their numbers.

    Raises:
        DataError: a damaged file, or an array that is missing or not as described.
    """
    arrays = _arrays(path)
    labels = {split: arrays.get(f"{split}_labels") for split in SPLITS}
    classes = _classes(path, arrays.get("classes"), labels.values())
    splits: dict[str, tuple[Tensor, list[int]]] = {}
    for split in SPLITS:
        images, numbers = arrays.get(f"{split}_images"), labels[split]
        tensor, values = None, []
        if images is not None:
            tensor = _images(path, split, images)
        if images is not None and numbers is not None:
            count = images.shape[0] if images.ndim else 0
            values = _labels(path, split, numbers, count, len(classes))
        none = torch.empty(0, 1, 1, 1), list[int]()
        splits[split] = none if tensor is None or not values else (tensor, values)
    (train, test) = (splits[split][0].shape for split in SPLITS)
    if train[1:] != test[1:] and train[0] and test[0]:
        fault(
            f"{path}: training images are {tuple(train[1:])}, test images {tuple(test[1:])} "
            "(channels, height, width); make them alike"
        )
    return ArchiveContents(classes=classes, train=splits["train"], test=splits["test"])


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of `KEYS` that are there and can be read."""
    arrays: dict[str, np.ndarray] = {}
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
                    others = set(archive.files) - set(KEYS)
                    near = difflib.get_close_matches(missing[0], others, n=1)
                    remedy = f"; is {near[0]} meant for {missing[0]}?" if near else ""
                    fault(
                        f"{path} lacks {', '.join(missing)}; an archive of images holds "
                        f"{', '.join(KEYS)}{remedy}"
                    )
                assert archive.zip is not None
                there = [key for key in KEYS if key not in missing]
                _check_growth(path, archive.zip, there)
                for key in there:
                    try:
                        _check_claim(key, archive.zip)
                        arrays[key] = archive[key]
                    except Exception as error:  # see below
                        fault(_unreadable(f"{path}: {key}", error), error)
    except DataError:
        raise
    # NumPy and zipfile raise what they like: BadZipFile, zlib.error, TokenError on damaged files,
    # RuntimeError where they are encrypted, MemoryError where the machine is too small, …
    except Exception as error:
        raise DataError(_unreadable(str(path), error)) from error
    return arrays


def _unreadable(what: str, error: Exception) -> str:
    cause = " ".join(str(error).split())
    return (
        f"cannot read NumPy archive {what}: {cause}; it is damaged, or holds more than plain arrays"
    )


def _classes(
    path: Path, names: np.ndarray | None, labels: Iterable[np.ndarray | None]
) -> tuple[str, ...]:
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        fault(f"{path}: classes must be a list of text, got {names.dtype} of shape {names.shape}")
    elif names is not None:
        classes = tuple(names.tolist())
        if len(classes) >= 2 and len(set(classes)) == len(classes):
            return classes
        fault(f"{path}: classes must be at least two different names, got {classes}")
    # A fault has been told. Damaged labels must not make millions of names.
    known = [own for own in labels if own is not None and np.issubdtype(own.dtype, np.integer)]
    images = sum(own.size for own in known)
    count = len(names) if names is not None and names.ndim == 1 else 0
    highest = max((int(value) for own in known for value in own.flat if value < images), default=-1)
    return tuple(map(str, range(count or highest + 1)))


def _check_growth(path: Path, archive: zipfile.ZipFile, keys: Sequence[str]) -> None:
    """Compare what the entries would take with the file, before memory is asked for.

    Raises:
        DataError: entries that would grow to many times the file.
    """
    total, size = sum(archive.getinfo(f"{key}.npy").file_size for key in keys), path.stat().st_size
    if total > max(ALWAYS_READ, LARGEST_GROWTH * size):
        raise DataError(
            f"{path}: its arrays would take {total / 2**30:.1f} GiB, {total // size} times the "
            f"file's size, and more than {LARGEST_GROWTH} times is refused; if they are as they "
            "should be, write them uncompressed, by numpy.savez"
        )


def _check_claim(key: str, archive: zipfile.ZipFile) -> None:
    """Raise a ValueError for a header that claims more than its entry holds."""
    entry = archive.getinfo(f"{key}.npy")
    with archive.open(entry) as file:
        first = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        claimed, held = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
    if claimed > held:
        raise ValueError(f"it claims {claimed} bytes and has {held}")


def _images(path: Path, split: str, images: np.ndarray) -> Tensor | None:
    channels_last = images.ndim == 4 and images.shape[-1] in (1, 3)
    if images.dtype != np.uint8 or not (images.ndim == 3 or channels_last) or images.size == 0:
        fault(
            f"{path}: {split}_images must be uint8 of shape (n, height, width) or "
            f"(n, height, width, 1 or 3), got {images.dtype} {images.shape}"
        )
        return None
    try:
        check_size(images.shape[2], images.shape[1])
    except ValueError as error:
        fault(f"{path}: {split}_images have {error}", error)
        return None
    tensor = torch.from_numpy(images)
    return tensor.permute(0, 3, 1, 2).contiguous() if channels_last else tensor[:, None]


def _labels(path: Path, split: str, labels: np.ndarray, images: int, classes: int) -> list[int]:
    if labels.shape != (images,) or not np.issubdtype(labels.dtype, np.integer):
        fault(
            f"{path}: {split}_labels must be {images} whole numbers, got {labels.dtype} "
            f"{labels.shape}"
        )
        return []
    values = labels.astype(np.int64)
    wrong = np.flatnonzero((values < 0) | (values >= classes))
    if len(wrong):
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        fault(
            f"{path}: {split}_labels[{wrong[0]}] is {values[wrong[0]]}, outside the {classes} "
            f"classes{more}"
        )
        values[wrong] = -1
    return values.tolist()
