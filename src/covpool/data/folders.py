"""Folders of class folders: finding the files, and reading them before training does."""

import os
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from covpool.data.config import DataConfig, DataError
from covpool.data.dataset import REMEDY, read_image

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")
TEST_FOLDERS = ("test", "val", "valid", "validation")
GREY_MODES = ("1", "L", "LA", "F")
FULL_CHECK_FILES = 5000

Labelled = tuple[list[str], list[int]]


@dataclass(frozen=True, kw_only=True)
class FolderContents:
    """What a folder holds: paths and labels of each split.

    Attributes:
        skipped: a line for each damaged file that was left out.
        ignored: how many files are no images by their ending.
        grey: whether every image is; False where headers were not read.
        note: what was decided on the user's behalf, or "".
    """

    classes: tuple[str, ...]
    train: Labelled
    test: Labelled
    skipped: tuple[str, ...]
    ignored: int
    grey: bool
    note: str


def read_folder(
    root: Path, config: DataConfig, progress: Callable[[int, int], None] | None = None
) -> FolderContents:
    """Find, check and split the images below a folder.

    Raises:
        DataError: what is wrong with the folder, by name.
    """
    test_root = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    has_splits = (root / "train").is_dir() and test_root is not None
    roots = {"train": root / "train", "test": test_root} if has_splits else {"train": root}
    found: dict[str, dict[str, list[str]]] = {}
    ignored = 0
    for split, folder in roots.items():
        assert folder is not None
        found[split], passed = _class_files(folder)
        ignored += passed
    if has_splits:
        assert test_root is not None
        _compare_classes(found["train"], found["test"], root / "train", test_root)

    paths = [path for classes in found.values() for files in classes.values() for path in files]
    check = config.check
    if check == "auto":
        check = "full" if len(paths) <= FULL_CHECK_FILES else "headers"
    damaged, grey = check_files(paths, check, progress)
    if damaged and not config.skip_damaged:
        more = f" (and {len(damaged) - 1} more such files)" if len(damaged) > 1 else ""
        path, reason = next(iter(damaged.items()))
        raise DataError(f"cannot read image {path}: {reason}{more}; {REMEDY}")
    for classes in found.values():
        for name, files in classes.items():
            classes[name] = [path for path in files if path not in damaged]
            if not classes[name]:
                raise DataError(f"every image of class {name!r} is damaged; repair or remove it")

    classes = tuple(found["train"])
    note = ""
    if has_splits:
        train, test = _label(found["train"], classes), _label(found["test"], classes)
    else:
        train, test = _split(found["train"], classes, config)
        note = (
            f"{root} has no test split: held out {len(test[0])} of {len(paths) - len(damaged)} "
            f"images, {config.test_fraction:.0%} of each class (data.test_fraction, "
            f"data.split_seed {config.split_seed})"
        )
    return FolderContents(
        classes=classes,
        train=train,
        test=test,
        skipped=tuple(f"{path}: {reason}" for path, reason in damaged.items()),
        ignored=ignored,
        grey=grey,
        note=note,
    )


def _class_files(folder: Path) -> tuple[dict[str, list[str]], int]:
    """Image paths by class, classes in alphabetical order, and the number of other files."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        what = "holds no folders" if entries else "is empty"
        raise DataError(
            f"{folder} {what}; it must hold one folder of images for each class, or train/ and "
            "test/ with those in each"
        )
    classes: dict[str, list[str]] = {}
    ignored = sum(entry.is_file() for entry in entries)
    for entry in folders:
        files = [
            os.path.join(base, name)
            for base, _, names in os.walk(entry)
            for name in names
            if not name.startswith(".")
        ]
        images = sorted(path for path in files if path.lower().endswith(IMAGE_ENDINGS))
        ignored += len(files) - len(images)
        if not images:
            raise DataError(
                f"class folder {entry} holds no images ({', '.join(IMAGE_ENDINGS)}); "
                "add some or remove the folder"
            )
        classes[entry.name] = images
    if len(classes) < 2:
        raise DataError(f"{folder} holds one class, {folders[0].name!r}; at least two are needed")
    return classes, ignored


def _compare_classes(
    train: Iterable[str], test: Iterable[str], train_root: Path, test_root: Path
) -> None:
    problems = [
        f"{', '.join(map(repr, sorted(names)[:5]))}{' …' if len(names) > 5 else ''} only in {root}"
        for names, root in (
            (set(train) - set(test), train_root),
            (set(test) - set(train), test_root),
        )
        if names
    ]
    if problems:
        raise DataError(f"training and test classes differ: {'; '.join(problems)}; make them alike")


def _label(found: dict[str, list[str]], classes: tuple[str, ...]) -> Labelled:
    pairs = [(path, label) for label, name in enumerate(classes) for path in found[name]]
    return [path for path, _ in pairs], [label for _, label in pairs]


def _split(
    found: dict[str, list[str]], classes: tuple[str, ...], config: DataConfig
) -> tuple[Labelled, Labelled]:
    """Hold out the same share of every class, by a shuffle that depends on its own files alone."""
    held: dict[str, list[str]] = {}
    kept: dict[str, list[str]] = {}
    for name in classes:
        files = found[name]
        if len(files) < 2:
            raise DataError(
                f"class {name!r} has one image ({files[0]}); two are needed to hold one out for "
                "testing: add images, or make train/ and test/ folders"
            )
        order = sorted(range(len(files)))
        random.Random(f"{config.split_seed}-{name}").shuffle(order)
        count = min(len(files) - 1, max(1, round(config.test_fraction * len(files))))
        held[name] = sorted(files[i] for i in order[:count])
        kept[name] = sorted(files[i] for i in order[count:])
    return _label(kept, classes), _label(held, classes)


def check_files(
    paths: list[str],
    check: Literal["full", "headers", "none"],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, str], bool]:
    """Reasons why files cannot be read, by path, and whether all that can are grey."""
    if check == "none":
        return {}, False

    def examine(path: str) -> tuple[str | None, bool]:
        from PIL import Image

        try:
            with Image.open(path) as image:
                grey = image.mode in GREY_MODES or image.mode.startswith("I")
            if check == "full":
                read_image(path, 1)
        except DataError as error:
            return str(error.__cause__), False
        except Exception as error:  # see read_image
            return str(error), False
        return None, grey

    damaged: dict[str, str] = {}
    all_grey = True
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        results = zip(paths, pool.map(examine, paths), strict=True)
        for done, (path, (reason, grey)) in enumerate(results, 1):
            if reason is not None:
                damaged[path] = reason
            else:
                all_grey &= grey
            if progress is not None:
                progress(done, len(paths))
    return damaged, all_grey
