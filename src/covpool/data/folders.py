"""Folders of class folders: finding the files of both splits."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from covpool.data.config import DataError
from covpool.data.dataset import Files
from covpool.data.listing import Labelled, Listing, shorten
from covpool.data.reading import FORMATS

IMAGE_ENDINGS = tuple(ending for endings in FORMATS.values() for ending in endings)
TEST_FOLDERS = ("test", "val", "valid", "validation")


class NotClassFolders(DataError):
    """No class folders where they are due, so that the layout may be another one."""


def read_folder(root: Path) -> Listing:
    """The images below a folder of class folders, or of train/ and test/ with those in each.

    Raises:
        DataError: what is wrong with the folder, by name.
    """
    train_root, test_root = split_folders(root)
    return list_splits(root.resolve().name, train_root, test_root)


def list_splits(name: str, train_root: Path, test_root: Path | None) -> Listing:
    """The images of class folders that are alike in both splits; without a test split, of one.

    Raises:
        DataError: what is wrong with the folders, by name.
    """
    train, ignored = class_files(train_root)
    test = None
    if test_root is not None:
        found, passed = class_files(test_root)
        compare_classes(train, found, train_root, test_root)
        test, ignored = label(found, train), ignored + passed
    return Listing(
        name=name,
        classes=tuple(train),
        train=label(train, train),
        test=test,
        root=train_root,
        ignored=ignored,
    )


def split_folders(root: Path) -> tuple[Path, Path | None]:
    """The folders of training and of test classes; (root, None) where they are not apart."""
    train = root / "train"
    tests = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    # ImageNet's test folder holds images without classes; its val is the one to test on.
    with_classes = [folder for folder in tests if subfolders(folder)]
    if train.is_dir() and tests:
        return train, (with_classes or tests)[0]
    if train.is_dir() and subfolders(train):
        raise DataError(
            f"{root} has train/ but none of {', '.join(TEST_FOLDERS)}; add one with the same "
            f"class folders, or give {train} as data.root to hold some images out"
        )
    if with_classes and len(subfolders(root)) == len(tests):
        raise DataError(f"{root} has {with_classes[0].name}/ but no train/; add it")
    return root, None


def subfolders(folder: Path) -> list[Path]:
    visible = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return sorted(entry for entry in visible if entry.is_dir())


def class_files(folder: Path) -> tuple[dict[str, list[str]], int]:
    """Image paths by class, classes in alphabetical order, and the number of other files."""
    folders = subfolders(folder)
    loose = [entry.name for entry in folder.iterdir() if entry.is_file()]
    if not folders:
        images = sum(name.lower().endswith(IMAGE_ENDINGS) for name in loose)
        what = f"holds {images} images but no folders" if images else "holds no folders"
        what = what if loose else "is empty"
        raise NotClassFolders(
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
        # Where others hold images these are class folders, and no other layout comes into question.
        kind = NotClassFolders if len(empty) == len(classes) else DataError
        raise kind(
            f"{holds.format(shorten(empty))} no images ({', '.join(IMAGE_ENDINGS)}); add some "
            "or remove the folder"
        )
    if len(classes) < 2:
        below = len(subfolders(folders[0]))
        remedy = f"; is data.root {folders[0]}, which holds {below} folders?" if below else ""
        raise NotClassFolders(
            f"{folder} holds one class, {folders[0].name!r}; at least two are needed{remedy}"
        )
    return classes, ignored


def compare_classes(
    train: Iterable[str], test: Iterable[str], train_root: Path, test_root: Path
) -> None:
    problems = [
        f"{shorten([repr(name) for name in sorted(names)])} only in {root}"
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


def label(found: dict[str, list[str]], classes: Iterable[str]) -> Labelled:
    """Files by class as one list, with each file's class number."""
    pairs = [(path, number) for number, name in enumerate(classes) for path in found[name]]
    return Files([path for path, _ in pairs]), [number for _, number in pairs]
