"""WebDataset shards: tar files of images and classes, read by an index of where each image lies.

timm's own reader of them gives a stream, from which a run could not be resumed exactly.
"""

import io
import json
import mmap
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Self

from torch import Tensor

from covpool.data.annotations import inside, read_lines
from covpool.data.config import DataError, fault
from covpool.data.dataset import EncodedSource
from covpool.data.folders import IMAGE_ENDINGS, TEST_FOLDERS, files_below
from covpool.data.listing import Listing, Progress
from covpool.data.reading import LARGEST_BYTES, open_file, read_image

INFORMATION = ("_info.json", "info.json")
CLASSES = "classes.txt"
LONGEST_NUMBER = 20
"""How many bytes a class number may take."""


@dataclass(frozen=True)
class TarImages(EncodedSource):
    """Images in uncompressed tar files: `places` are (shard, offset, bytes, key)."""

    shards: tuple[str, ...]
    places: Sequence[tuple[int, int, int, str]]
    channels: int = 3

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        return read_image(self.open(index), self.channels, self.name(index))

    def name(self, index: int) -> str:
        shard, _, _, key = self.places[index]
        return f"{self.shards[shard]}:{key}"

    def open(self, index: int) -> IO[bytes]:
        shard, offset, size, _ = self.places[index]
        with open_file(self.shards[shard]) as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))

    def length(self, index: int) -> int | None:
        return self.places[index][2]

    def marks(self, root: Path) -> Iterator[bytes]:
        for shard, offset, size, key in self.places:
            inner = os.path.relpath(self.shards[shard], root)
            yield os.fsencode(f"{inner}:{key}:{offset}:{size}")

    def select(self, indices: Sequence[int]) -> Self:
        return replace(self, places=[self.places[index] for index in indices])

    def with_channels(self, channels: int) -> Self:
        return replace(self, channels=channels)


def read_shards(title: str, root: Path, progress: Progress | None = None) -> Listing:
    """A folder of shards, in which each sample is an image and KEY.cls, its class number from 0.

    Which shards are of which split is told by `_info.json`, as timm has it, else by the word train,
    test, val or validation in their paths. Classes are called as in classes.txt, a line each, where
    there is one, else by their numbers.

    Raises:
        DataError: what is missing or damaged, by name.
    """
    shards = _split_shards(root)
    total = sum(map(len, shards.values()))
    splits: dict[str, tuple[TarImages, list[int]]] = {}
    done = 0
    for split, paths in shards.items():
        places: list[tuple[int, int, int, str]] = []
        labels: list[int] = []
        for number, path in enumerate(paths):
            for offset, size, key, label in _index(path):
                places.append((number, offset, size, key))
                labels.append(label)
            done += 1
            if progress is not None:
                progress(done, total)
        if not labels:
            fault(f"{root}: the {split} shards, such as {paths[0]}, hold no images")
        splits[split] = TarImages(tuple(map(str, paths)), places), labels
    classes = _classes(root, splits)
    train, test = (
        (source.select(kept), [labels[place] for place in kept])
        for source, labels in splits.values()
        for kept in [[place for place, label in enumerate(labels) if label < len(classes)]]
    )
    return Listing(name=title, classes=classes, train=train, test=test)


def _classes(root: Path, splits: Mapping[str, tuple[TarImages, list[int]]]) -> tuple[str, ...]:
    """The names of the classes; where faults are collected, images of a class that has none are to
    be left out."""
    highest = max((label for _, labels in splits.values() for label in labels), default=-1)
    if (root / CLASSES).is_file():
        classes = tuple(read_lines(root / CLASSES))
        if len(classes) <= highest:
            fault(
                f"{root / CLASSES} has {len(classes)} lines, and the shards hold an image of class "
                f"{highest}, counted from 0; add the missing names"
            )
        return classes
    images = len(splits["train"][1])
    for source, labels in splits.values():
        if highest >= images > 0 and highest in labels:
            fault(
                f"{source.name(labels.index(highest))} is of class {highest}, and there are "
                f"{images} training images, one of each class being due; number the classes "
                "from 0 without gaps"
            )
            break
    return tuple(map(str, range(min(highest + 1, images or highest + 1))))


def _split_shards(root: Path) -> dict[str, list[Path]]:
    """The shards of "train" and of "test"."""
    found: dict[str, list[Path]] = {}
    information = next((root / name for name in INFORMATION if (root / name).is_file()), None)
    if information is not None:
        try:
            splits = json.loads(information.read_text(encoding="utf-8"))["splits"]
            found = {
                name: [inside(root, file) for file in of["filenames"]]
                for name, of in splits.items()
            }
        except DataError as error:
            raise DataError(f"{information}: {error}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"cannot read {information}: {type(error).__name__} {error}; it must hold "
                '{"splits": {"train": {"filenames": […]}, …}}, or be removed'
            ) from error
    else:
        # By the parts of their paths, as in earlier versions: runs are resumed by this order.
        for path in sorted(map(Path, files_below(root, (".tar",))[0])):
            words = re.split(r"[^a-z]+", path.relative_to(root).as_posix().lower())
            for name in ("train", *TEST_FOLDERS):
                if name in words:
                    found.setdefault(name, []).append(path)
    tests = [name for name in TEST_FOLDERS if found.get(name)]
    if not found.get("train") or not tests:
        raise DataError(
            f"{root} has shards (.tar) of {', '.join(found) or 'no split'}; train and one of "
            f"{', '.join(TEST_FOLDERS)} are due, by {INFORMATION[0]} or as words in their names"
        )
    return {"train": found["train"], "test": found[tests[0]]}


def _index(path: Path) -> list[tuple[int, int, str, int]]:
    """(offset, bytes, key, label) of each image of a shard that can be read and has a class."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        # Of a mapped file no more can be read than there is, whatever a header claims.
        with (
            open_file(path) as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            tarfile.open(fileobj=mapped, mode="r:") as shard,
        ):
            for member in shard:
                folder, name = os.path.split(member.name)
                stem, _, ending = name.partition(".")
                key = os.path.join(folder, stem)
                if not member.isfile():
                    continue
                blocks = -(-member.size // tarfile.BLOCKSIZE)
                if member.offset_data + blocks * tarfile.BLOCKSIZE > len(mapped):
                    raise tarfile.ReadError("unexpected end of data")
                if f".{ending.lower()}" in IMAGE_ENDINGS:
                    if member.size > LARGEST_BYTES:
                        fault(_unreadable(path, f"{key} takes more than {LARGEST_BYTES} bytes"))
                        continue
                    images[key] = member.offset_data, member.size
                elif ending == "cls":
                    content = shard.extractfile(member)
                    assert content is not None
                    labels[key] = _class_number(path, key, content.read(LONGEST_NUMBER + 1))
    except DataError:
        raise
    except (OSError, tarfile.TarError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        fault(_unreadable(path, reason), error)
    for key in images:
        if key not in labels:
            fault(f"shard {path} has no class for {key} ({key}.cls); write it anew")
    return [(*place, key, labels[key]) for key, place in images.items() if labels.get(key, -1) >= 0]


def _class_number(path: Path, key: str, content: bytes) -> int:
    """The number in KEY.cls; −1 where faults are collected and it holds none."""
    try:
        number = int(content) if len(content) <= LONGEST_NUMBER else -1
    except ValueError:
        number = -1
    if number < 0:
        shown = content[:LONGEST_NUMBER].decode(errors="replace")
        fault(f"shard {path}: {key}.cls is {shown!r}, where a class number is due; write it anew")
    return number


def _unreadable(path: Path, reason: str) -> str:
    return f"cannot read shard {path}: {reason}; restore it, or write it anew uncompressed"
