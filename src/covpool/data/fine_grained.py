"""Readers of four fine-grained data sets as they are published.

torchvision has two of them, and reads them from folders of its own naming alone, without saying
what is missing; these start from the folder that the archive unpacks.
"""

from pathlib import Path

from covpool.data.annotations import (
    entries,
    field,
    find,
    inside,
    read_lines,
    read_mat,
    read_pairs,
    read_table,
    to_labels,
)
from covpool.data.config import fault
from covpool.data.dataset import Files
from covpool.data.folders import list_splits
from covpool.data.listing import Labelled, Listing


def _files(folder: Path, names: list[str], labels: list[int]) -> Labelled:
    """The images that have a name and a class; others have been told."""
    known = [(n, label) for n, label in zip(names, labels, strict=False) if n and label >= 0]
    return Files([str(inside(folder, name)) for name, _ in known]), [label for _, label in known]


def _compare_lengths(path: Path, counts: dict[str, int]) -> None:
    if len(set(counts.values())) > 1:
        held = ", ".join(f"{count} {name}" for name, count in counts.items())
        fault(f"{path} holds {held}; these must be as many: restore the file")


def read_birds(root: Path) -> Listing:
    """CUB-200-2011 (Wah et al., 2011): four text files, tied by the images' numbers."""
    paths = {
        name: find(root, what, f"{name}.txt")
        for name, what in {
            "classes": "the names of the classes",
            "images": "the list of images",
            "image_class_labels": "the class of each image",
            "train_test_split": "which images are for training",
        }.items()
    }
    folder = find(root, "the folder of images", "images")
    tables = {name: read_table(path) for name, path in paths.items()}
    classes = tuple(tables["classes"].values())
    positions = {number: label for label, number in enumerate(tables["classes"])}
    split: dict[str, tuple[list[str], list[int]]] = {"1": ([], []), "0": ([], [])}
    for number, name in tables["images"].items():
        lacking = [
            other
            for other in ("image_class_labels", "train_test_split")
            if number not in tables[other]
        ]
        for file in (paths[other] for other in lacking if tables[other]):
            fault(
                f"{file} has no line for image {number} ({name}); restore it from the "
                "published archive"
            )
        if lacking:
            continue
        label = positions.get(tables["image_class_labels"][number])
        part = split.get(tables["train_test_split"][number])
        if not positions:  # which has been told
            continue
        if label is None or part is None:
            file = paths["image_class_labels" if label is None else "train_test_split"]
            due = f"a number of {paths['classes']}" if label is None else "0 or 1"
            fault(f"{file}: image {number} has {tables[file.stem][number]!r}, where {due} is due")
            continue
        part[0].append(name)
        part[1].append(label)
    train, test = (_files(folder, *split[part]) for part in ("1", "0"))
    return Listing(name="birds", classes=classes, train=train, test=test)


def read_dogs(root: Path) -> Listing:
    """Stanford Dogs (Khosla et al., 2011): MATLAB lists of files below Images/ and of labels."""
    folder = find(root, "the folder of images", "Images")
    splits: list[Labelled] = []
    names: dict[int, str] = {}
    for split, what in (("train", "training"), ("test", "test")):
        file = f"{split}_list.mat"
        path = find(root, f"the list of {what} images", file, f"lists/{file}")
        cells, numbers = read_mat(path, "file_list", "labels")
        files = [str(entry or "") for entry in entries(path, cells)]
        labels = to_labels(path, numbers.tolist(), 120)
        _compare_lengths(path, {"files": len(files), "labels": len(labels)})
        for name, label in zip(files, labels, strict=False):
            if not name or label < 0:
                continue
            breed = Path(name).parts[0].partition("-")[2] or Path(name).parts[0]
            if names.setdefault(label, breed) != breed:
                fault(
                    f"{path}: class {label + 1} is {names[label]!r} and, by {name}, "
                    f"{breed!r}; restore it from the published archive"
                )
        splits.append(_files(folder, files, labels))
    count = max(names, default=-1) + 1
    classes = tuple(names.get(label, f"class {label + 1}") for label in range(count))
    return Listing(name="dogs", classes=classes, train=splits[0], test=splits[1])


def read_cars(root: Path) -> Listing:
    """Stanford Cars (Krause et al., 2013): the devkit's MATLAB files, or a mirror's class folders.

    A mirror that unpacks to car_data/ holds train/ and test/ with class folders.
    """
    for nested in ("car_data/car_data", "car_data", "."):
        if (root / nested / "train").is_dir():
            base = root / nested
            return list_splits("cars", base / "train", find(base, "the test images", "test"))
    meta = find(root, "the names of the classes", "devkit/cars_meta.mat", "cars_meta.mat")
    classes = tuple(str(name or "") for name in entries(meta, *read_mat(meta, "class_names")))
    splits: list[Labelled] = []
    for split, file in (("train", "cars_train_annos"), ("test", "cars_test_annos_withlabels")):
        what = "the training images' classes"
        if split == "test":
            what = "the test images' classes, which the devkit's cars_test_annos.mat lacks"
        path = find(root, what, f"devkit/{file}.mat", f"{file}.mat")
        [structs] = read_mat(path, "annotations")
        numbers = field(path, structs, "class") if classes else []
        labels = to_labels(path, numbers, len(classes))
        folder = find(root, f"the folder of its {split} images", f"cars_{split}")
        splits.append(_files(folder, [str(n or "") for n in field(path, structs, "fname")], labels))
    return Listing(name="cars", classes=classes, train=splits[0], test=splits[1])


def read_aircraft(root: Path) -> Listing:
    """FGVC Aircraft (Maji et al., 2013), its variants: lists of image number and class name."""
    base = root / "data" if (root / "data").is_dir() else root
    variants = find(base, "the names of the classes", "variants.txt")
    folder = find(base, "the folder of images", "images")
    classes = tuple(read_lines(variants))
    numbers = {name: label for label, name in enumerate(classes)}
    splits: list[Labelled] = []
    for part, what in (("trainval", "training"), ("test", "test")):
        path = find(base, f"the list of {what} images", f"images_variant_{part}.txt")
        pairs = read_pairs(path)
        for image, name in pairs:
            if numbers and name not in numbers:
                fault(
                    f"{path}: image {image} is of the variant {name!r}, which {variants} "
                    "lacks; restore them from the published archive"
                )
        known = [(f"{image}.jpg", numbers[name]) for image, name in pairs if name in numbers]
        splits.append(_files(folder, [file for file, _ in known], [label for _, label in known]))
    return Listing(name="aircraft", classes=classes, train=splits[0], test=splits[1])
