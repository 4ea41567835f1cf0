"""Small trees of real images in the layouts in which data sets are published.

`write_miniature` writes any of `MINIATURES`: photographs of text in the embedded typefaces, a
typeface a class, as JPEG files beside annotation files of the published structure.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from covpool.data.archives import embedded_typefaces, read_archive

WORDS = {
    "n01440764": "tench, Tinca tinca",
    "n01443537": "goldfish, Carassius auratus",
    "n01484850": "great white shark, white shark, man-eater, Carcharodon carcharias",
    "n01518878": "ostrich, Struthio camelus",
    "n02012849": "crane",
    "n02085620": "Chihuahua",
    "n02123045": "tabby, tabby cat",
    "n03126707": "crane",
    "n03710637": "maillot",
    "n07753592": "banana",
}
BIRDS = "Black_footed_Albatross Laysan_Albatross Sooty_Albatross Groove_billed_Ani Crested_Auklet"
DOGS = "n02085620-Chihuahua n02085782-Japanese_spaniel n02085936-Maltese_dog n02086079-Pekinese"
CARS = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"]
AIRCRAFT = ["707-320", "Boeing 717", "F/A-18", "Cessna 172"]


@dataclass(frozen=True)
class Pictures:
    """Different pictures, numbered from 0 in each class of each split."""

    classes: int
    train: int
    test: int
    size: int

    def save(self, split: str, label: int, number: int, path: Path) -> Path:
        """Write one as JPEG, higher than wide or wider than high, at least `size` on each side."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.picture(split, label, number).save(path, quality=90)
        return path

    def picture(self, split: str, label: int, number: int) -> Image.Image:
        images, labels = _typefaces()[split]
        own = np.flatnonzero(np.asarray(labels) == label)
        grey = Image.fromarray(images[int(own[number])][0].numpy())
        longer = self.size * 5 // 4
        sides = (longer, self.size) if number % 3 else (self.size, longer)
        return grey.resize(sides, Image.Resampling.BICUBIC).convert("RGB")

    def each(self, *splits: str) -> Iterator[tuple[str, int, int]]:
        """(split, label, number) of all, class by class as published lists have them."""
        for label in range(self.classes):
            for split in splits or ("train", "test"):
                for number in range(getattr(self, split)):
                    yield split, label, number


_cache: dict = {}


def _typefaces() -> dict:
    if not _cache:
        contents = read_archive(embedded_typefaces())
        _cache.update(train=contents.train, test=contents.test)
    return _cache


def write_miniature(
    layout_name: str,
    root: Path,
    *,
    classes: int = 3,
    train: int = 4,
    test: int = 2,
    size: int = 64,
) -> Path:
    """Write a data set in a published layout.

    Args:
        layout_name: a key of `MINIATURES`.
        root: folder to write into; made where it is missing.
        classes: number of classes, 2 to 10.
        train: training images of each class, 1 to 80.
        test: test images of each class, 1 to 80.
        size: shorter side of every image.

    Returns:
        What to give as data.root.
    """
    assert 2 <= classes <= len(WORDS)
    root.mkdir(parents=True, exist_ok=True)
    return MINIATURES[layout_name](root, Pictures(classes, train, test, size))


def _names(published: list[str], classes: int, other: str) -> list[str]:
    """As many of the published names as there are, then others like them."""
    return [*published, *(other.format(number) for number in range(len(published), 10))][:classes]


def _lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _cells(values: list[str], *, column: bool) -> np.ndarray:
    """A MATLAB cell array of text."""
    cells = np.empty(len(values), dtype=object)
    cells[:] = values
    return cells[:, None] if column else cells[None]


def _structs(fields: dict[str, list], *, column: bool) -> np.ndarray:
    """A MATLAB array of structs."""
    count = len(next(iter(fields.values())))
    made = np.empty(count, dtype=[(name, object) for name in fields])
    for name, values in fields.items():
        for index, value in enumerate(values):
            made[name][index] = value
    return made[:, None] if column else made[None]


def folder(root: Path, pictures: Pictures) -> Path:
    for split, label, number in pictures.each():
        pictures.save(split, label, number, root / split / f"typeface {label}" / f"{number}.jpg")
    return root


def archive(root: Path, pictures: Pictures) -> Path:
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "test"):
        chosen = list(pictures.each(split))
        size = (pictures.size, pictures.size)
        images = [np.asarray(pictures.picture(*each).resize(size)) for each in chosen]
        arrays[f"{split}_images"] = np.stack(images)
        arrays[f"{split}_labels"] = np.array([label for _, label, _ in chosen])
    classes = np.array([f"typeface {label}" for label in range(pictures.classes)])
    np.savez(root / "miniature.npz", classes=classes, **arrays)
    return root / "miniature.npz"


def _imagenet_train(root: Path, pictures: Pictures) -> list[str]:
    wnids = sorted(WORDS)[: pictures.classes]
    for split, label, number in pictures.each("train"):
        name = f"{wnids[label]}_{10026 + 17 * number}.JPEG"
        pictures.save(split, label, number, root / "train" / wnids[label] / name)
    return wnids


def _imagenet_val(pictures: Pictures) -> list[tuple[int, int, str]]:
    """(label, number, file name); classes alternate, as validation images are in no order."""
    chosen = sorted(pictures.each("test"), key=lambda each: (each[2], -each[1]))
    return [
        (label, number, f"ILSVRC2012_val_{position:08d}.JPEG")
        for position, (_, label, number) in enumerate(chosen, 1)
    ]


def imagenet(root: Path, pictures: Pictures) -> Path:
    """Validation images in one folder; their classes by the devkit's own numbers."""
    wnids = _imagenet_train(root, pictures)
    devkit = root / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    # The devkit's numbers do not follow the order of the wnids, and inner nodes come after.
    leaves = sorted(WORDS, key=lambda wnid: WORDS[wnid][::-1])
    synsets = [*leaves, "n00001740", "n01317541"]
    count = len(synsets)
    children = [*(np.zeros((1, 0)) for _ in leaves), np.array([1.0, 2.0]), np.array([3.0, 4.0])]
    fields = {
        "ILSVRC2012_ID": [float(number) for number in range(1, count + 1)],
        "WNID": synsets,
        "words": [WORDS.get(wnid, "entity") for wnid in synsets],
        "gloss": [f"what is called {wnid}" for wnid in synsets],
        "num_children": [float(each.size) for each in children],
        "children": children,
        "wordnet_height": [float(each.size > 0) for each in children],
        "num_train_images": [float(pictures.train * (wnid in wnids)) for wnid in synsets],
    }
    savemat(devkit / "meta.mat", {"synsets": _structs(fields, column=True)})
    numbers = []
    for label, number, name in _imagenet_val(pictures):
        pictures.save("test", label, number, root / "val" / name)
        numbers.append(str(1 + leaves.index(wnids[label])))
    _lines(devkit / "ILSVRC2012_validation_ground_truth.txt", numbers)
    return root


def imagenet_folders(root: Path, pictures: Pictures) -> Path:
    """Validation images in folders of their wnids; no devkit."""
    wnids = _imagenet_train(root, pictures)
    for label, number, name in _imagenet_val(pictures):
        pictures.save("test", label, number, root / "val" / wnids[label] / name)
    return root


def imagenet_kaggle(root: Path, pictures: Pictures) -> Path:
    """The archive of the Kaggle competition."""
    inner = root / "ILSVRC" / "Data" / "CLS-LOC"
    wnids = _imagenet_train(inner, pictures)
    rows = ["ImageId,PredictionString"]
    for label, number, name in _imagenet_val(pictures):
        pictures.save("test", label, number, inner / "val" / name)
        rows.append(f"{Path(name).stem},{wnids[label]} 85 1 499 272 {wnids[label]} 5 7 90 80 ")
    pictures.save("test", 0, 0, inner / "test" / "ILSVRC2012_test_00000001.JPEG")
    _lines(root / "LOC_val_solution.csv", [rows[0], *rows[:0:-1]])
    _lines(root / "LOC_synset_mapping.txt", [f"{wnid} {words}" for wnid, words in WORDS.items()])
    return root


def birds(root: Path, pictures: Pictures) -> Path:
    base = root / "CUB_200_2011"
    classes = [
        f"{number:03d}.{name}"
        for number, name in enumerate(_names(BIRDS.split(), pictures.classes, "Bird_{}"), 1)
    ]
    images, labels, splits = [], [], []
    for position, (split, label, number) in enumerate(pictures.each("test", "train"), 1):
        name = f"{classes[label]}/{classes[label][4:]}_{number:04d}_{position + 795}.jpg"
        pictures.save(split, label, number, base / "images" / name)
        images.append(f"{position} {name}")
        labels.append(f"{position} {label + 1}")
        splits.append(f"{position} {int(split == 'train')}")
    _lines(base / "classes.txt", [f"{number} {name}" for number, name in enumerate(classes, 1)])
    _lines(base / "images.txt", images)
    _lines(base / "image_class_labels.txt", labels)
    _lines(base / "train_test_split.txt", splits)
    boxes = [f"{position} 60.0 27.0 325.0 304.0" for position in range(1, len(images) + 1)]
    _lines(base / "bounding_boxes.txt", boxes)
    _lines(base / "attributes" / "certainties.txt", ["1 not visible", "2 guessing"])
    return base


def dogs(root: Path, pictures: Pictures) -> Path:
    classes = _names(DOGS.split(), pictures.classes, "n0208{}000-Dog")
    for split in ("train", "test"):
        files, labels = [], []
        for _, label, number in pictures.each(split):
            stem = f"{classes[label]}/{classes[label][:9]}_{number + 100 * (split == 'test')}"
            pictures.save(split, label, number, root / "Images" / f"{stem}.jpg")
            files.append(f"{stem}.jpg")
            labels.append(label + 1)
        content = {
            "file_list": _cells(files, column=True),
            "annotation_list": _cells([file[:-4] for file in files], column=True),
            "labels": np.array(labels, dtype=np.uint8)[:, None],
        }
        savemat(root / f"{split}_list.mat", content)
    return root


def cars(root: Path, pictures: Pictures) -> Path:
    """The devkit's annotations; training and test images have the same names."""
    devkit = root / "devkit"
    devkit.mkdir()
    classes = _names(CARS, pictures.classes, "Car {}")
    savemat(devkit / "cars_meta.mat", {"class_names": _cells(classes, column=False)})
    for split, file in (
        ("train", "devkit/cars_train_annos.mat"),
        ("test", "cars_test_annos_withlabels.mat"),
    ):
        chosen = sorted(pictures.each(split), key=lambda each: (each[2], -each[1]))
        names = [f"{position:05d}.jpg" for position in range(1, len(chosen) + 1)]
        for (_, label, number), name in zip(chosen, names, strict=True):
            pictures.save(split, label, number, root / f"cars_{split}" / name)
        count = len(chosen)
        fields = {
            "bbox_x1": [np.uint8(39)] * count,
            "bbox_y1": [np.uint16(116)] * count,
            "bbox_x2": [np.uint16(569)] * count,
            "bbox_y2": [np.uint16(375)] * count,
            "class": [np.uint8(label + 1) for _, label, _ in chosen],
            "fname": names,
        }
        savemat(root / file, {"annotations": _structs(fields, column=False)})
    return root


def cars_folders(root: Path, pictures: Pictures) -> Path:
    """The mirror by class folders, nested as it unpacks."""
    classes = _names(CARS, pictures.classes, "Car {}")
    for split, label, number in pictures.each():
        inner = root / "car_data" / "car_data" / split / classes[label].replace("/", "-")
        pictures.save(split, label, number, inner / f"{number:05d}.jpg")
    _lines(root / "names.csv", classes)
    return root


def aircraft(root: Path, pictures: Pictures) -> Path:
    base = root / "fgvc-aircraft-2013b"
    classes = _names(AIRCRAFT, pictures.classes, "Plane {}")
    lists: dict[str, list[str]] = {"train": [], "val": [], "trainval": [], "test": []}
    for position, (split, label, number) in enumerate(pictures.each()):
        name = f"{position * 7919 % 9999999 + 34309:07d}"
        pictures.save(split, label, number, base / "data" / "images" / f"{name}.jpg")
        halves = ("trainval", "val" if number % 2 else "train")
        for part in halves if split == "train" else ("test",):
            lists[part].append(f"{name} {classes[label]}")
    for part, lines in lists.items():
        _lines(base / "data" / f"images_variant_{part}.txt", lines)
    _lines(base / "data" / "variants.txt", classes)
    return base


def write_shards(root: Path, pictures: Pictures) -> Path:
    """WebDataset shards, two of training and one of validation, for data.name wds/NAME."""
    for split, word, parts in (("train", "train", 2), ("test", "validation", 1)):
        chosen = sorted(pictures.each(split), key=lambda each: (each[2], -each[1]))
        for part in range(parts):
            with tarfile.open(root / f"typefaces-{word}-{part:04d}.tar", "w") as shard:
                for position, (_, label, number) in list(enumerate(chosen))[part::parts]:
                    image = io.BytesIO()
                    pictures.picture(split, label, number).save(image, "JPEG", quality=90)
                    key = f"{word}/{position:06d}"
                    for ending, content in (("cls", b"%d" % label), ("jpg", image.getvalue())):
                        member = tarfile.TarInfo(f"{key}.{ending}")
                        member.size = len(content)
                        shard.addfile(member, io.BytesIO(content))
    return root


MINIATURES: dict[str, Callable[[Path, Pictures], Path]] = {
    "folder": folder,
    "archive": archive,
    "imagenet": imagenet,
    "imagenet/folders": imagenet_folders,
    "imagenet/kaggle": imagenet_kaggle,
    "birds": birds,
    "dogs": dogs,
    "cars": cars,
    "cars/folders": cars_folders,
    "aircraft": aircraft,
}
"""Writers by the name of the layout, or LAYOUT/VARIANT where it is published in several forms."""
