"""Which images are trained on and which are evaluated on: classes, held-out parts, duplicates.

All of it works on images with their labels, wherever the images come from, and says in notes what
it did. The order is: classes, a test split where there is none, validation, duplicates.
"""

import difflib
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from covpool.data.config import DataConfig, DataError
from covpool.data.dataset import Source, content_digest
from covpool.data.listing import Progress, in_threads, shorten
from covpool.data.reading import REMEDY, cause
from covpool.text import quantity

AnySource = TypeVar("AnySource", bound=Source)
Labelled = tuple[AnySource, list[int]]
"""Images with a class number for each."""


def select_classes(
    classes: tuple[str, ...],
    train: Labelled[AnySource],
    test: Labelled[AnySource] | None,
    config: DataConfig,
) -> tuple[tuple[str, ...], Labelled[AnySource], Labelled[AnySource] | None, list[str]]:
    """The classes that the configuration leaves, their images numbered anew, and notes.

    Raises:
        DataError: a pattern that matches no class, too high a limit, or fewer than two classes.
    """
    excluded: set[int] = set()
    for pattern in config.exclude_classes:
        matches = {
            label
            for label, name in enumerate(classes)
            if name == pattern or fnmatchcase(name, pattern)
        }
        if not matches:
            near = difflib.get_close_matches(pattern, classes, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else f": {shorten([*classes])}"
            raise DataError(
                f"data.exclude_classes {pattern!r} matches none of the {len(classes)} classes{hint}"
            )
        excluded |= matches
    kept = [label for label in range(len(classes)) if label not in excluded]
    if len(kept) < 2:
        left = f"{classes[kept[0]]!r} alone" if kept else "none"
        raise DataError(
            f"data.exclude_classes {list(config.exclude_classes)} leaves {left} of the "
            f"{len(classes)} classes; at least two are needed"
        )
    notes = []
    if excluded:
        names = shorten([classes[label] for label in sorted(excluded)])
        notes.append(
            f"left out {len(excluded)} of {len(classes)} classes (data.exclude_classes): {names}"
        )
    if config.class_limit is not None:
        if config.class_limit > len(kept):
            raise DataError(
                f"data.class_limit {config.class_limit} is more than the {len(kept)} classes that "
                "there are; lower it, or leave it out"
            )
        if config.class_limit < len(kept):
            notes.append(
                f"kept the first {config.class_limit} of {len(kept)} classes (data.class_limit)"
            )
        kept = kept[: config.class_limit]
    if len(kept) == len(classes):
        return classes, train, test, notes
    numbers = {label: number for number, label in enumerate(kept)}

    def of_kept(images: Labelled[AnySource]) -> Labelled[AnySource]:
        source, labels = images
        indices = [index for index, label in enumerate(labels) if label in numbers]
        return source.select(indices), [numbers[labels[index]] for index in indices]

    names = tuple(classes[label] for label in kept)
    return names, of_kept(train), None if test is None else of_kept(test), notes


def hold_out_test(
    classes: tuple[str, ...], train: Labelled[AnySource], root: Path, config: DataConfig
) -> tuple[Labelled[AnySource], Labelled[AnySource], str]:
    """Training and test images where there is no test split, and a note of it.

    Args:
        classes: class names.
        train: all images.
        root: the folder of the class folders.
        config: share and seed.

    Raises:
        DataError: a class with a single image.
    """
    source, labels = train

    def identity(index: int) -> bytes:
        _, *inner = Path(source.name(index)).relative_to(root).parts  # the first is the class's
        return os.fsencode("/".join(inner))

    numbers = _hold_out(
        classes,
        train,
        config.test_fraction,
        config.split_seed,
        identity,
        f"testing: add images, or make train/ and test/ folders{_OR_LEAVE_OUT}",
    )
    kept, held = (_selected(train, chosen) for chosen in numbers)
    note = (
        f"{root} has no test split: held out {len(held[1])} of {quantity(len(labels), 'image')}, "
        f"{config.test_fraction:.0%} of each class (data.test_fraction, data.split_seed "
        f"{config.split_seed})"
    )
    return kept, held, note


_OR_LEAVE_OUT = ", or leave the class out by data.exclude_classes"


def hold_out_validation(
    classes: tuple[str, ...], train: Labelled[AnySource], config: DataConfig
) -> tuple[Labelled[AnySource], Labelled[AnySource], str]:
    """Training images, those of them that are held out for validation, and a note of it.

    Raises:
        DataError: a class with a single training image.
    """
    labels = train[1]
    kept, held = (_selected(train, chosen) for chosen in validation_numbers(classes, train, config))
    note = (
        f"held out {len(held[1])} of {quantity(len(labels), 'training image')} for validation, "
        f"{config.validation_fraction:.0%} of each class (data.validation_fraction, "
        f"data.split_seed {config.split_seed}); the test split is left alone"
    )
    return kept, held, note


def validation_numbers(
    classes: tuple[str, ...], train: Labelled[AnySource], config: DataConfig
) -> tuple[list[int], list[int]]:
    """Which training images are kept, and which are held out for validation.

    Raises:
        DataError: a class with a single training image.
    """
    marks = list(train[0].marks(Path(os.path.expanduser(config.root or "."))))
    return _hold_out(
        classes,
        train,
        config.validation_fraction,
        config.split_seed,
        marks.__getitem__,
        f"validation: add training images{_OR_LEAVE_OUT}",
    )


def _selected(images: Labelled[AnySource], chosen: list[int]) -> Labelled[AnySource]:
    source, labels = images
    return source.select(chosen), [labels[index] for index in chosen]


def _hold_out(
    classes: tuple[str, ...],
    images: Labelled[AnySource],
    fraction: float,
    seed: int,
    identity: Callable[[int], bytes],
    purpose: str,
) -> tuple[list[int], list[int]]:
    """Numbers of the images that are kept and of those that are held out: the same share of
    every class, at least one image and not all.

    Each image's rank follows from its own identity, its class's name and the seed, so that images
    and classes which come or go leave the others where they are, except at the boundary.
    """
    source, labels = images
    of_class: dict[int, list[int]] = {label: [] for label in range(len(classes))}
    for index, label in enumerate(labels):
        of_class[label].append(index)
    kept: list[int] = []
    held: list[int] = []
    for label, indices in of_class.items():
        prefix = os.fsencode(f"{seed}/{classes[label]}/")
        if len(indices) < 2:
            raise DataError(
                f"class {classes[label]!r} has one image ({source.name(indices[0])}); two are "
                f"needed to hold one out for {purpose}"
            )
        ranked = sorted(
            indices, key=lambda index: hashlib.sha256(prefix + identity(index)).digest()
        )
        count = min(len(ranked) - 1, max(1, round(fraction * len(ranked))))
        held += sorted(ranked[:count])
        kept += sorted(ranked[count:])
    return kept, held


def drop_duplicates(
    classes: tuple[str, ...],
    train: Labelled[AnySource],
    test: Labelled[AnySource],
    config: DataConfig,
    progress: Progress | None = None,
) -> tuple[Labelled[AnySource], str]:
    """The evaluated images that equal no training image, and a note of how many did.

    Equal are images of the same content: pixels of arrays, bytes of files. Only those of a length
    that occurs on both sides are read.

    Args:
        classes: class names.
        train: the training images.
        test: what is evaluated.
        config: what the note calls them by.
        progress: called with (images read, images to read).

    Raises:
        DataError: a file that cannot be read, or a class of which no image is left.
    """
    sides = [[(source, index) for index in range(len(labels))] for source, labels in (train, test)]
    lengths = [list(in_threads(_length, side)) for side in sides]
    common = set(lengths[0]) & set(lengths[1])
    chosen = [
        [index for index, length in enumerate(found) if length in common] for found in lengths
    ]
    entries = [side[index] for side, found in zip(sides, chosen, strict=True) for index in found]
    digests = []
    for digest in in_threads(_digest, entries):
        digests.append(digest)
        if progress is not None:
            progress(len(digests), len(entries))
    first = len(chosen[0])
    trained: dict[bytes, set[int]] = defaultdict(set)
    for index, digest in zip(chosen[0], digests[:first], strict=True):
        trained[digest].add(train[1][index])
    source, labels = test
    equal = {
        index: trained[digest]
        for index, digest in zip(chosen[1], digests[first:], strict=True)
        if digest in trained
    }
    what = "test" if config.evaluate == "test" else "held-out"
    others = sum(bool(found - {labels[index]}) for index, found in equal.items())
    note = (
        f"left out {len(equal)} of {len(labels)} {what} images that equal a training image, "
        f"{others} of them one of another class (data.drop_duplicates)"
    )
    if not equal:
        return test, note
    kept = [index for index in range(len(labels)) if index not in equal]
    remaining = [labels[index] for index in kept]
    if lacking := sorted(set(labels) - set(remaining)):
        names = shorten([repr(classes[label]) for label in lacking])
        raise DataError(
            f"every {what} image of class {names} equals a training image (data.drop_duplicates); "
            "leave the class out by data.exclude_classes, or add images"
        )
    return (source.select(kept), remaining), note


Entry = tuple[Source, int]


def _length(entry: Entry) -> int | None:
    return _tried(entry, lambda source, index: source.length(index))


def _digest(entry: Entry) -> bytes:
    return _tried(entry, lambda source, index: content_digest(source.content(index)))


Result = TypeVar("Result")


def _tried(entry: Entry, function: Callable[[Source, int], Result]) -> Result:
    source, index = entry
    try:
        return function(source, index)
    except OSError as error:
        raise DataError(
            f"cannot read image {source.name(index)}: {cause(error)}; {REMEDY}"
        ) from error
