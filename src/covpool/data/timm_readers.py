"""Data sets through timm's readers, for those who install what these need.

Exact resume reads any image by its number, so that a reader must have random access: `hfds/` has.
The others give a stream; for `wds/` stands `covpool.data.shards`, the rest is `REFUSED`.
"""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Self

from torch import Tensor

from covpool.data.config import DataError
from covpool.data.dataset import EncodedSource, content_digest
from covpool.data.listing import Labelled, Listing, Progress
from covpool.data.reading import LARGEST_BYTES, open_file, read_image
from covpool.data.shards import read_shards

TEST_SPLITS = ("test", "validation", "valid", "val")

READERS = ("hfds", "wds")
"""Readers that are supported."""

SAMPLED = 64
"""At most so many images, evenly spread, are read to tell a data set from others."""

REFUSED = {
    "hfids": "use hfds/ instead, the same data with random access",
    "tfds": "write the images out as class folders, or use hfds/",
    "torch": "give the folder itself as data.root",
}
"""timm's readers that give a stream of images, or their own transforms, and what to do instead."""


@dataclass(frozen=True)
class ReaderImages(EncodedSource):
    """Images of a random-access reader of timm.

    Not timm's own data set of it, which puts another image in a damaged one's place.
    """

    reader: Any
    title: str
    indices: Sequence[int]
    channels: int = 3

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:
        with self.open(index) as file:
            return read_image(file, self.channels, self.name(index))

    def name(self, index: int) -> str:
        return f"{self.title}[{self.indices[index]}]"

    def open(self, index: int) -> IO[bytes]:
        # Not by the reader's own indexing, which would open whatever lies at the path.
        stored = self.reader.dataset[self.indices[index]][self.reader.image_key]
        if stored.get("bytes"):
            return io.BytesIO(stored["bytes"])
        return open_file(stored["path"], LARGEST_BYTES)

    def marks(self, root: Path) -> Iterator[bytes]:
        # Names would be those of the reader's cache. Reading all images could take hours.
        step = -(-len(self) // SAMPLED)
        for index in range(len(self)):
            sampled = index % step == 0
            content = content_digest(self.content(index)) if sampled else b""
            yield f"{self.indices[index]}/".encode() + content

    def length(self, index: int) -> int | None:
        return None

    def select(self, indices: Sequence[int]) -> Self:
        return replace(self, indices=[self.indices[index] for index in indices])

    def with_channels(self, channels: int) -> Self:
        return replace(self, channels=channels)


def read_timm(name: str, root: str | None, progress: Progress | None = None) -> Listing:
    """A data set through timm, as `timm.data.create_dataset` takes its name.

    Args:
        name: hfds/NAME, NAME being a folder or a data set that `datasets` knows; wds/NAME, NAME
            being what to call it.
        root: of hfds/, where downloads are kept, None being the reader's own place; of wds/, the
            folder of shards.
        progress: called with (shards indexed, shards in all).

    Raises:
        DataError: a reader without random access, one that cannot open the data set, or a data set
            without classes or without both splits.
    """
    prefix, _, inner = name.partition("/")
    if prefix in REFUSED:
        raise DataError(
            f"data.name {name!r}: timm's reader {prefix}/ gives a stream without numbers, by which "
            f"a run could not be resumed exactly; {REFUSED[prefix]}"
        )
    if prefix == "wds":
        if root is None:
            raise DataError(f"data.name {name!r} needs data.root: the folder of the shards")
        if not Path(os.path.expanduser(root)).is_dir():
            raise DataError(f"data.root {root!r} is no folder; give that of the shards")
        return read_shards(inner or "wds", Path(os.path.expanduser(root)), progress)
    train, classes = _open(name, "train", root)
    tried = []
    for split in TEST_SPLITS:
        try:
            test, _ = _open(name, split, root)
        except DataError as error:
            tried.append(str(error))
            continue
        if min(test[1]) >= 0:  # the test images of challenges come without classes
            title = inner.rstrip("/").rpartition("/")[2]
            return Listing(name=title, classes=classes, train=train, test=test)
        tried.append(f"split {split} has no classes")
    raise DataError(
        f"data.name {name!r} has none of the splits {', '.join(TEST_SPLITS)} with classes to test "
        f"on ({tried[0]}); choose another data set, or write it out as class folders"
    )


def _open(name: str, split: str, root: str | None) -> tuple[Labelled, tuple[str, ...]]:
    from timm.data.dataset_factory import create_dataset

    try:
        dataset: Any = create_dataset(name, root=root, split=split)
        reader = dataset.reader
    except ImportError as error:
        raise DataError(
            f"data.name {name!r} needs {error.name}; install it with: pip install {error.name}"
        ) from error
    # Loading of data sets fails in as many ways as there are libraries behind it.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"data.name {name!r}, split {split!r}: {reason}") from error
    classes = tuple(sorted(reader.class_to_idx, key=reader.class_to_idx.__getitem__))
    if len(classes) < 2:
        raise DataError(
            f"data.name {name!r}, split {split!r}: its labels have no class names; a data set of "
            "images by class is due"
        )
    labels = [-1 if target is None else int(target) for target in reader.iter_targets()]
    return (ReaderImages(reader, f"{name} {split}", range(len(labels))), labels), classes
