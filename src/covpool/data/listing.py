"""What a data set holds by its annotations, and the check that its images can be read."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from covpool.data.config import DataConfig, DataError, fault
from covpool.data.dataset import EncodedSource, Files
from covpool.data.reading import REMEDY, cause, open_picture, read_image

GREY_MODES = ("1", "L", "LA", "La")
FULL_CHECK_FILES = 5000
SHOWN = 10
"""How many names a message lists at most."""

SPLITS = {"train": "training", "test": "test"}

Entry = TypeVar("Entry")
Result = TypeVar("Result")
Labelled = tuple[EncodedSource, list[int]]
Progress = Callable[[int, int], None]
"""Called with (images read, images in all)."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a data set holds: images and labels of each split.

    Attributes:
        name: for messages and file names.
        classes: class names; a label is an index into them.
        train: the training images.
        test: the test images; None where some of the training images are to be held out.
        root: folder of the class folders, where some are to be held out.
        passed_over: counts of what is not read in the folders, by what it is.
    """

    name: str
    classes: tuple[str, ...]
    train: Labelled
    test: Labelled | None
    root: Path | None = None
    passed_over: Mapping[str, int] = field(default_factory=dict)

    def splits(self) -> Iterator[tuple[str, EncodedSource, list[int]]]:
        """("train" or "test", images, labels) of each split that there is."""
        yield ("train", *self.train)
        if self.test is not None:
            yield ("test", *self.test)

    def __len__(self) -> int:
        return sum(len(labels) for _, _, labels in self.splits())


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The images of a listing that can be read.

    Attributes:
        skipped: a line for each damaged image that was left out.
        grey: whether every image is; False where headers were not read.
    """

    classes: tuple[str, ...]
    train: Labelled
    test: Labelled | None
    skipped: tuple[str, ...]
    grey: bool


def shorten(names: list[str]) -> str:
    """The names with commas, the first few of many."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def check_listing(listing: Listing, config: DataConfig, progress: Progress | None) -> Checked:
    """Read the images as the configuration says, and leave out damaged ones.

    Raises:
        DataError: images that cannot be read, or a class without any.
    """
    for split, _, labels in listing.splits():
        check_classes(listing.name, listing.classes, split, labels)
    check_listed_once(listing)
    total = len(listing)
    check = config.check
    if check == "auto":
        full = config.skip_damaged or total <= FULL_CHECK_FILES
        check = "full" if full else "headers"
    damaged, grey = check_images(listing, check, progress)
    named = [
        (source.name(index), reason)
        for split, source, _ in listing.splits()
        for index, reason in damaged[split].items()
    ]
    if named and not config.skip_damaged:
        if len(named) == 1:
            [(path, reason)] = named
            raise DataError(f"cannot read image {path}: {reason}; {REMEDY}")
        names = shorten([f"{path} ({reason})" for path, reason in named])
        raise DataError(
            f"cannot read {len(named)} of {total} images: {names}; repair or remove them, "
            "or leave them out by --data.skip_damaged true"
        )
    readable = {}
    for split, source, labels in listing.splits():
        kept = [index for index in range(len(labels)) if index not in damaged[split]]
        readable[split] = source.select(kept), [labels[index] for index in kept]
        for label in sorted(set(labels) - set(readable[split][1])):
            first = source.name(labels.index(label))
            what = "" if listing.test is None else f"{SPLITS[split]} "
            raise DataError(
                f"every {what}image of class {listing.classes[label]!r} is damaged, such as "
                f"{first}; repair them or remove the class"
            )
    return Checked(
        classes=listing.classes,
        train=readable["train"],
        test=readable.get("test"),
        skipped=tuple(f"{path}: {reason}" for path, reason in named),
        grey=grey,
    )


def check_classes(name: str, classes: Sequence[str], split: str, labels: Sequence[int]) -> None:
    """Raise a DataError for classes without an image."""
    present = set(labels)
    lacking = [repr(each) for label, each in enumerate(classes) if label not in present]
    if lacking:
        raise DataError(
            f"{name}: no {SPLITS[split]} image of class {shorten(lacking)}; the annotations list "
            "none: restore them, or remove the class from them"
        )


def check_listed_once(listing: Listing) -> None:
    """Raise a DataError for an image that is listed twice."""
    seen: dict[str, str] = {}
    for split, source, _ in listing.splits():
        for path in source.paths if isinstance(source, Files) else ():
            if path in seen:
                other = "twice" if seen[path] == split else "for training and for testing"
                fault(
                    f"{listing.name}: {path} is listed {other}; restore the annotations as they "
                    "were published"
                )
            seen[path] = split


def check_images(
    listing: Listing,
    check: Literal["full", "headers", "none"],
    progress: Progress | None = None,
) -> tuple[dict[str, dict[int, str]], bool]:
    """Reasons why images cannot be read, by split and index, and whether all that can are grey."""
    damaged: dict[str, dict[int, str]] = {split: {} for split, _, _ in listing.splits()}
    if check == "none":
        return damaged, False

    def examine(entry: tuple[str, EncodedSource, int]) -> tuple[str | None, bool]:
        _, source, index = entry
        try:
            with source.open(index) as file:
                with open_picture(file) as image:
                    grey = image.mode in GREY_MODES or image.mode.startswith("I")
                if check == "full":
                    file.seek(0)
                    read_image(file, 1, source.name(index))
        except DataError as error:
            return cause(error.__cause__ or error), False
        except MemoryError:
            raise
        except Exception as error:  # see read_image
            return cause(error), False
        return None, grey

    entries = [
        (split, source, index)
        for split, source, labels in listing.splits()
        for index in range(len(labels))
    ]
    all_grey = True
    results = zip(entries, in_threads(examine, entries), strict=True)
    for done, ((split, _, index), (reason, grey)) in enumerate(results, 1):
        if reason is not None:
            damaged[split][index] = reason
        else:
            all_grey &= grey
        if progress is not None:
            progress(done, len(entries))
    return damaged, all_grey


def in_threads(function: Callable[[Entry], Result], entries: Sequence[Entry]) -> Iterator[Result]:
    """The function's results in order, a thread for each core.

    A block of entries at a time: leaving a pool, as Ctrl-C does, waits for all that it was given.
    """
    block = 1024
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for start in range(0, len(entries), block):
            yield from pool.map(function, entries[start : start + block])
