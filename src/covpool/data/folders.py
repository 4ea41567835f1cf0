"""Folders of class folders: finding the files, and reading them before training does."""

import difflib
import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from covpool.data.config import DataConfig, DataError
from covpool.data.dataset import REMEDY, cause, read_image

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")
TEST_FOLDERS = ("test", "val", "valid", "validation")
GREY_MODES = ("1", "L", "LA", "La")
FULL_CHECK_FILES = 5000
SHOWN = 10
"""How many names a message lists at most."""

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
    train_root, test_root = _split_folders(root)
    has_splits = test_root is not None
    roots = {"train": train_root, "test": test_root} if has_splits else {"train": train_root}
    found: dict[str, dict[str, list[str]]] = {}
    ignored = 0
    for split, folder in roots.items():
        found[split], passed = _class_files(folder)
        ignored += passed
    if has_splits:
        _compare_classes(found["train"], found["test"], train_root, test_root)

    paths = [path for classes in found.values() for files in classes.values() for path in files]
    check = config.check
    if check == "auto":
        full = config.skip_damaged or len(paths) <= FULL_CHECK_FILES
        check = "full" if full else "headers"
    damaged, grey = check_files(paths, check, progress)
    if damaged and not config.skip_damaged:
        if len(damaged) == 1:
            [(path, reason)] = damaged.items()
            raise DataError(f"cannot read image {path}: {reason}; {REMEDY}")
        named = _shorten([f"{path} ({reason})" for path, reason in damaged.items()])
        raise DataError(
            f"cannot read {len(damaged)} of {len(paths)} images: {named}; repair or remove them, "
            "or train without them by --data.skip_damaged true"
        )
    for split, classes in found.items():
        for name, files in classes.items():
            classes[name] = [path for path in files if path not in damaged]
            if not classes[name]:
                raise DataError(
                    f"every image of class {name!r} in {roots[split]} is damaged, such as "
                    f"{files[0]}; repair them or remove the class"
                )

    classes = tuple(found["train"])
    note = ""
    if has_splits:
        train, test = _label(found["train"], classes), _label(found["test"], classes)
    else:
        train, test = _split(found["train"], classes, train_root, config)
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


def _split_folders(root: Path) -> tuple[Path, Path | None]:
    """The folders of training and of test classes; (root, None) where they are not apart."""
    train = root / "train"
    tests = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    # ImageNet's test folder holds images without classes; its val is the one to test on.
    with_classes = [folder for folder in tests if _subfolders(folder)]
    if train.is_dir() and tests:
        return train, (with_classes or tests)[0]
    if train.is_dir() and _subfolders(train):
        raise DataError(
            f"{root} has train/ but none of {', '.join(TEST_FOLDERS)}; add one with the same "
            f"class folders, or give {train} as data.root to hold some images out"
        )
    if with_classes and len(_subfolders(root)) == len(tests):
        raise DataError(f"{root} has {with_classes[0].name}/ but no train/; add it")
    return root, None


def _subfolders(folder: Path) -> list[Path]:
    visible = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return sorted(entry for entry in visible if entry.is_dir())


def _shorten(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _class_files(folder: Path) -> tuple[dict[str, list[str]], int]:
    """Image paths by class, classes in alphabetical order, and the number of other files."""
    folders = _subfolders(folder)
    loose = [entry.name for entry in folder.iterdir() if entry.is_file()]
    if not folders:
        images = sum(name.lower().endswith(IMAGE_ENDINGS) for name in loose)
        what = f"holds {images} images but no folders" if images else "holds no folders"
        what = what if loose else "is empty"
        raise DataError(
            f"{folder} {what}; it must hold one folder of images for each class, or train/ and "
            "test/ with those in each"
        )
    classes: dict[str, list[str]] = {}
    ignored = len(loose)
    for entry in folders:
        images = []
        for base, inner, names in os.walk(entry):
            # Hidden folders, such as .ipynb_checkpoints, hold copies of images.
            inner[:] = [name for name in inner if not name.startswith(".")]
            chosen = [
                name
                for name in names
                if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")
            ]
            images += [os.path.join(base, name) for name in chosen]
            ignored += len(names) - len(chosen)
        classes[entry.name] = sorted(images)
    empty = [str(folder / name) for name, images in classes.items() if not images]
    if empty:
        holds = "class folder {} holds" if len(empty) == 1 else "class folders {} hold"
        raise DataError(
            f"{holds.format(_shorten(empty))} no images ({', '.join(IMAGE_ENDINGS)}); add some "
            "or remove the folder"
        )
    if len(classes) < 2:
        below = len(_subfolders(folders[0]))
        remedy = f"; is data.root {folders[0]}, which holds {below} folders?" if below else ""
        raise DataError(
            f"{folder} holds one class, {folders[0].name!r}; at least two are needed{remedy}"
        )
    return classes, ignored


def _compare_classes(
    train: Iterable[str], test: Iterable[str], train_root: Path, test_root: Path
) -> None:
    problems = [
        f"{_shorten([repr(name) for name in sorted(names)])} only in {root}"
        for names, root in (
            (set(train) - set(test), train_root),
            (set(test) - set(train), test_root),
        )
        if names
    ]
    if problems:
        pairs = [
            (name, near)
            for name in sorted(set(test) - set(train))
            for near in difflib.get_close_matches(name, sorted(set(train) - set(test)), n=1)
        ]
        remedy = f" (is {pairs[0][0]!r} {pairs[0][1]!r}?)" if pairs else ""
        raise DataError(
            f"training and test classes differ: {'; '.join(problems)}; make them alike{remedy}"
        )


def _label(found: dict[str, list[str]], classes: tuple[str, ...]) -> Labelled:
    pairs = [(path, label) for label, name in enumerate(classes) for path in found[name]]
    return [path for path, _ in pairs], [label for _, label in pairs]


def _split(
    found: dict[str, list[str]], classes: tuple[str, ...], root: Path, config: DataConfig
) -> tuple[Labelled, Labelled]:
    """Hold out the same share of every class.

    Each file's rank follows from its own name and the seed, so that files which come or go leave
    the others where they are, except at the boundary.
    """

    def rank(path: str, name: str) -> bytes:
        inner = Path(path).relative_to(root / name).as_posix()
        return hashlib.sha256(os.fsencode(f"{config.split_seed}/{name}/{inner}")).digest()

    held: dict[str, list[str]] = {}
    kept: dict[str, list[str]] = {}
    for name in classes:
        files = found[name]
        if len(files) < 2:
            raise DataError(
                f"class {name!r} has one image ({files[0]}); two are needed to hold one out for "
                "testing: add images, or make train/ and test/ folders"
            )
        ranked = sorted(files, key=lambda path: rank(path, name))
        count = min(len(files) - 1, max(1, round(config.test_fraction * len(files))))
        held[name] = sorted(ranked[:count])
        kept[name] = sorted(ranked[count:])
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
            return cause(error.__cause__ or error), False
        except MemoryError:
            raise
        except Exception as error:  # see read_image
            return cause(error), False
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
