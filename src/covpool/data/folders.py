"""Folders of class folders: finding the files of both splits."""

import difflib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from covpool.data.config import DataError, fault
from covpool.data.dataset import Files
from covpool.data.listing import Labelled, Listing, shorten
from covpool.data.reading import FORMATS

IMAGE_ENDINGS = tuple(ending for endings in FORMATS.values() for ending in endings)
FILES = "file(s) that are no images by their ending"
LINKS = "link(s) to folders that were read already"
"""What `files_below` passes over."""

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
    train, passed = class_files(train_root, split=test_root is not None)
    classes, test = list(train), None
    if test_root is not None:
        found, more = class_files(test_root, split=True)
        classes = compare_classes(train, found, train_root, test_root)
        test, passed = label(found, classes), passed + more
        if len(classes) < 2:
            fault(
                f"{train_root} and {test_root} hold one class, {classes[0]!r}; at least two are "
                "needed"
            )
    return Listing(
        name=name,
        classes=tuple(classes),
        train=label(train, classes),
        test=test,
        root=train_root,
        passed_over=passed,
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
        fault(
            f"{root} has train/ but none of {', '.join(TEST_FOLDERS)}; add one with the same "
            f"class folders, or give {train} as data.root to hold some images out"
        )
        return train, None
    if with_classes and len(subfolders(root)) == len(tests):
        fault(f"{root} has {with_classes[0].name}/ but no train/; add it")
        return with_classes[0], None
    return root, None


def subfolders(folder: Path) -> list[Path]:
    visible = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return sorted(entry for entry in visible if entry.is_dir())


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files among these paths, and the image files in the folders among them and below.

    Raises:
        DataError: a folder that cannot be read, or that holds no images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = [path]
        if path.is_dir():
            inside = [Path(file) for file in files_below(path, IMAGE_ENDINGS)[0]]
        if not inside:
            raise DataError(
                f"folder {path} holds no images ({', '.join(IMAGE_ENDINGS)}), nor do those in it; "
                "name another one, or image files"
            )
        found += inside
    return found


def files_below(folder: Path, endings: Collection[str]) -> tuple[list[str], Counter[str]]:
    """The files of these endings in a folder and in all below it, sorted, and counts of what was
    passed over, by what it is.

    Links to folders are followed, after all that is really there, and each folder is read once: a
    link that leads to one that was read, or to one in which this folder itself lies, is passed
    over. So are hidden files and folders; folders such as .ipynb_checkpoints hold copies of images.

    Raises:
        DataError: a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        fault(
            f"cannot read folder {error.filename}: {error.strerror}; make it readable, or remove "
            "it",
            error,
        )

    found: list[str] = []
    passed = Counter[str]()
    read = {os.path.realpath(above) for above in folder.absolute().parents}
    read |= {str(above) for above in Path(os.path.realpath(folder)).parents}
    waiting = [str(folder)]
    for top in waiting:
        for base, inner, names in os.walk(top, onerror=refuse):
            place = os.path.realpath(base)
            if place in read:
                passed[LINKS] += 1
                inner.clear()
                continue
            read.add(place)
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            paths = (os.path.join(base, name) for name in inner)
            waiting += filter(os.path.islink, paths)
            chosen = [
                name
                for name in names
                if os.path.splitext(name)[1].lower() in endings and not name.startswith(".")
            ]
            found += [os.path.join(base, name) for name in chosen]
            passed[FILES] += len(names) - len(chosen)
    return sorted(found), passed


def class_files(folder: Path, *, split: bool = False) -> tuple[dict[str, list[str]], Counter[str]]:
    """Image paths by class, classes in alphabetical order, and counts of what was passed over.

    Args:
        folder: holds the class folders.
        split: whether it is a split beside another one: then these are class folders for certain,
            and the classes of both are counted together.
    """
    wrong = DataError if split else NotClassFolders
    folders = subfolders(folder)
    loose = [entry.name for entry in folder.iterdir() if entry.is_file()]
    if not folders:
        images = sum(name.lower().endswith(IMAGE_ENDINGS) for name in loose)
        what = f"holds {images} images but no folders" if images else "holds no folders"
        what = what if loose else "is empty"
        either = "" if split else ", or train/ and test/ with those in each"
        raise wrong(f"{folder} {what}; it must hold one folder of images for each class{either}")
    classes: dict[str, list[str]] = {}
    passed = Counter({FILES: len(loose)})
    for entry in folders:
        classes[entry.name], more = files_below(entry, IMAGE_ENDINGS)
        passed += more
    empty = [str(folder / name) for name, images in classes.items() if not images]
    if empty:
        holds = "class folder {} holds" if len(empty) == 1 else "class folders {} hold"
        message = (
            f"{holds.format(shorten(empty))} no images ({', '.join(IMAGE_ENDINGS)}); add some "
            "or remove the folder"
        )
        # Where others hold images these are class folders, and no other layout comes into question.
        if len(empty) == len(classes):
            raise wrong(message)
        fault(message)
    if len(classes) < 2 and not split:
        below = len(subfolders(folders[0]))
        remedy = f"; is data.root {folders[0]}, which holds {below} folders?" if below else ""
        raise NotClassFolders(
            f"{folder} holds one class, {folders[0].name!r}; at least two are needed{remedy}"
        )
    return classes, passed


def compare_classes(
    train: Mapping[str, list[str]],
    test: Mapping[str, list[str]],
    train_root: Path,
    test_root: Path,
) -> list[str]:
    """The names of the classes, which must be the same in both splits."""
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
        fault(f"training and test classes differ: {'; '.join(problems)}; make them alike{remedy}")
    return sorted({*train, *test})


def label(found: Mapping[str, list[str]], classes: Iterable[str]) -> Labelled:
    """Files by class as one list, with each file's class number."""
    pairs = [(path, number) for number, name in enumerate(classes) for path in found.get(name, ())]
    return Files([path for path, _ in pairs]), [number for _, number in pairs]
