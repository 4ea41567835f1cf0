"""A report on a data set: its classes, sizes of images, unreadable ones and duplicates."""

import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from covpool.data.archives import ArchiveContents
from covpool.data.dataset import Arrays, Source, content_digest
from covpool.data.folders import FILES, LINKS
from covpool.data.layouts import Contents
from covpool.data.listing import SPLITS, Listing, Progress, in_threads, shorten
from covpool.data.reading import cause, open_picture, to_tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is found out about one image.

    Attributes:
        split: train or test.
        index: its number in the split.
        label: its class number.
        name: its path, or the like.
        size: (width, height); None where it cannot be read.
        digest: of its content as it is stored.
        error: why it cannot be read.
    """

    split: str
    index: int
    label: int
    name: str
    size: tuple[int, int] | None = None
    digest: bytes | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `inspect_images` found.

    Attributes:
        layout: the layout's name.
        classes: class names.
        splits: the splits that there are.
        images: every image's facts.
        duplicates: groups of images of the same content.
        passed_over: counts of what is not read in the folders, by what it is.
        faults: what the layout's reader found wrong, a line for each.
    """

    layout: str
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    images: Sequence[Facts]
    duplicates: Sequence[Sequence[Facts]]
    passed_over: Mapping[str, int] = field(default_factory=dict)
    faults: Sequence[str] = ()

    @property
    def unreadable(self) -> list[Facts]:
        return [facts for facts in self.images if facts.error is not None]

    @property
    def across_splits(self) -> list[Sequence[Facts]]:
        """Duplicates that are in both splits, which makes test results too good."""
        return [group for group in self.duplicates if len({one.split for one in group}) > 1]

    @property
    def across_classes(self) -> list[Sequence[Facts]]:
        """Duplicates that have several classes, at least one of which is wrong."""
        return [group for group in self.duplicates if len({one.label for one in group}) > 1]

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of images by class and split."""
        found = Counter((facts.label, facts.split) for facts in self.images)
        return {
            name: {split: found[label, split] for split in self.splits}
            for label, name in enumerate(self.classes)
        }

    def sizes(self) -> dict[str, dict[str, float]]:
        """Least, median and greatest width and height."""
        sides = {
            name: [facts.size[axis] for facts in self.images if facts.size is not None]
            for axis, name in enumerate(("width", "height"))
        }
        return {
            name: {"least": min(values), "median": median(values), "greatest": max(values)}
            for name, values in sides.items()
            if values
        }

    @property
    def problems(self) -> list[str]:
        """A line for each kind of thing that is wrong; none where all is well."""
        found = list(self.faults)
        if self.unreadable:
            found.append(f"unreadable images: {len(self.unreadable)} of {len(self.images)}")
        for split in self.splits:
            lacking = [repr(name) for name, count in self.counts().items() if not count[split]]
            if lacking:
                found.append(f"classes without a {SPLITS[split]} image: {shorten(lacking)}")
        if self.across_splits:
            found.append(f"images in both splits: {len(self.across_splits)}")
        if self.across_classes:
            found.append(f"images in several classes: {len(self.across_classes)}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists, texts and numbers, for JSON."""

        def describe(group: Sequence[Facts]) -> list[dict[str, str]]:
            return [
                {"split": one.split, "class": self.classes[one.label], "name": one.name}
                for one in group
            ]

        return {
            "layout": self.layout,
            "images": len(self.images),
            "ignored": self.passed_over.get(FILES, 0),
            "links_passed_over": self.passed_over.get(LINKS, 0),
            "classes": self.counts(),
            "sizes": self.sizes(),
            "unreadable": [{"name": one.name, "reason": one.error} for one in self.unreadable],
            "duplicates": [describe(group) for group in self.duplicates],
            "duplicates_across_splits": len(self.across_splits),
            "duplicates_across_classes": len(self.across_classes),
            "problems": self.problems,
        }


def labelled_sources(contents: Contents) -> Iterator[tuple[str, Source, list[int]]]:
    """("train" or "test", images, labels) of each split that there is."""
    if isinstance(contents, ArchiveContents):
        for split, (images, labels) in (("train", contents.train), ("test", contents.test)):
            yield split, Arrays(images), labels
    else:
        yield from contents.splits()


def inspect_images(
    layout: str,
    contents: Contents,
    progress: Progress | None = None,
    *,
    faults: Sequence[str] = (),
) -> Report:
    """Read every image in full, and report on all.

    Args:
        layout: the layout's name.
        contents: what was found by the layout's reader.
        progress: called with (images read, images in all).
        faults: what the reader found wrong, a line for each.
    """
    sources = list(labelled_sources(contents))
    entries = [
        (split, source, index, label)
        for split, source, labels in sources
        for index, label in enumerate(labels)
        if label >= 0  # one that has no class has been told
    ]
    images: list[Facts] = []
    for facts in in_threads(lambda entry: _examine(*entry), entries):
        images.append(facts)
        if progress is not None:
            progress(len(images), len(entries))
    same: dict[bytes, list[Facts]] = defaultdict(list)
    for facts in images:
        if facts.digest is not None:
            same[facts.digest].append(facts)
    return Report(
        layout=layout,
        classes=contents.classes,
        splits=tuple(split for split, _, _ in sources),
        images=images,
        duplicates=[group for group in same.values() if len(group) > 1],
        passed_over=contents.passed_over if isinstance(contents, Listing) else {},
        faults=faults,
    )


def _examine(split: str, source: Source, index: int, label: int) -> Facts:
    if isinstance(source, Arrays):
        content = source.content(index)
        _, height, width = source[index].shape
        return Facts(
            split=split,
            index=index,
            label=label,
            name=f"{split}_images[{index}]",
            size=(width, height),
            digest=content_digest(content),
        )
    size = digest = error = None
    try:
        stored = source.content(index)
        digest = content_digest(stored)
        size = _decode(stored)
    except MemoryError:
        raise
    except Exception as failure:  # see read_image
        error = cause(failure)
    return Facts(
        split=split,
        index=index,
        label=label,
        name=source.name(index),
        size=size,
        digest=digest,
        error=error,
    )


def _decode(stored: bytes) -> tuple[int, int]:
    """Width and height of an image, upright, once all of it has been decoded."""
    with open_picture(io.BytesIO(stored)) as image:
        pixels = to_tensor(image, 1)
    return pixels.shape[2], pixels.shape[1]
