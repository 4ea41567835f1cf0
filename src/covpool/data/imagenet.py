"""ImageNet (ILSVRC2012; Russakovsky et al., 2015) as it is published.

torchvision's reader wants the original archives or a file that it made of them; this one reads the
trees that are on disks: validation images in class folders, or in one folder beside the devkit's
ground truth or the Kaggle competition's.
"""

import csv
import re
from pathlib import Path

from covpool.data.annotations import field, find, read_lines, read_mat, read_table
from covpool.data.config import DataError, fault
from covpool.data.dataset import Files
from covpool.data.folders import IMAGE_ENDINGS, class_files, compare_classes, label, subfolders
from covpool.data.listing import Labelled, Listing

KAGGLE = "ILSVRC/Data/CLS-LOC"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
SOLUTION = "LOC_val_solution.csv"
MAPPING = "LOC_synset_mapping.txt"


def read_imagenet(root: Path) -> Listing:
    """The training folders by WordNet number, and the validation images.

    A class is called by its WordNet number and, where the devkit or the Kaggle archive is there,
    its first word; words alone do not tell all classes apart (there are two cranes).

    Raises:
        DataError: what is missing or does not fit, by name.
    """
    train = find(root, "the folder of training images", "train")
    val = find(root, "the folder of validation images", "val")
    found, passed = class_files(train)
    wnids = list(found)
    if subfolders(val):
        tests, more = class_files(val)
        wnids = compare_classes(found, tests, train, val)
        test = label(tests, wnids)
        passed += more
    else:
        test = _flat_validation(root, wnids)
    words = _words(root)
    classes = tuple(
        f"{wnid} {words[wnid].split(',')[0]}" if wnid in words else wnid for wnid in wnids
    )
    return Listing(
        name="imagenet",
        classes=classes,
        train=label(found, wnids),
        test=test,
        passed_over=passed,
    )


def _places(root: Path) -> list[Path]:
    """Where the files of annotation may lie."""
    places = [root / "ILSVRC2012_devkit_t12" / "data", root / "devkit" / "data", root / "data"]
    places += [root, root / "val"]
    if root.as_posix().endswith(KAGGLE):
        places.append(root.parents[2])
    return places


def _annotation(root: Path, name: str) -> Path | None:
    return next((place / name for place in _places(root) if (place / name).is_file()), None)


def _words(root: Path) -> dict[str, str]:
    """What the classes are called, by WordNet number."""
    if meta := _annotation(root, "meta.mat"):
        return dict(_devkit_classes(meta).values())
    if mapping := _annotation(root, MAPPING):
        return read_table(mapping)
    return {}


def _devkit_classes(meta: Path) -> dict[int, tuple[str, str]]:
    """(WordNet number, words) by the devkit's own number, which follows no order."""
    [synsets] = read_mat(meta, "synsets")
    numbers, wnids, words = (
        field(meta, synsets, name) for name in ("ILSVRC2012_ID", "WNID", "words")
    )
    pairs = zip(map(str, wnids), map(str, words), strict=True)
    return dict(zip(map(int, numbers), pairs, strict=True))


def _flat_validation(root: Path, wnids: list[str]) -> Labelled:
    """Validation images in one folder, with their classes from the devkit or from Kaggle's file."""
    val = root / "val"
    names = sorted(
        entry.name for entry in val.iterdir() if entry.name.lower().endswith(IMAGE_ENDINGS)
    )
    if not names:
        raise DataError(
            f"{val} holds no images; unpack ILSVRC2012_img_val.tar there, with or without class "
            "folders"
        )
    truth, solution = _annotation(root, TRUTH), _annotation(root, SOLUTION)
    if truth is not None:
        source, of_image = truth, _by_devkit(root, truth, names)
    elif solution is not None:
        source, of_image = solution, _by_solution(solution)
    else:
        places = ", ".join(str(place) for place in _places(root))
        raise DataError(
            f"{val} holds {len(names)} images without class folders, and neither {TRUTH} of the "
            f"devkit nor {SOLUTION} was found in {places}; put one there, or the images into "
            "folders of their classes"
        )
    paths: list[str] = []
    labels: list[int] = []
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    for name in names:
        wnid = of_image.get(Path(name).stem)
        if wnid == "":  # which has been told
            continue
        if wnid is None:
            what = f"{source} says nothing of {val / name}"
        elif wnid not in numbers:
            what = (
                f"{val / name} is of class {wnid} by {source}, and {root / 'train'} has no such "
                "folder"
            )
        else:
            paths.append(str(val / name))
            labels.append(numbers[wnid])
            continue
        fault(f"{what}; restore it, or remove the image")
    if missing := sorted(set(of_image) - {Path(name).stem for name in names}):
        fault(
            f"{val} lacks {len(missing)} of the {len(of_image)} images of {source}, such as "
            f"{missing[0]}.JPEG; restore them"
        )
    return Files(paths), labels


def _by_devkit(root: Path, truth: Path, names: list[str]) -> dict[str, str]:
    """WordNet numbers by image: line k of the ground truth is the class of image k. Empty where a
    fault has been told."""
    meta = _annotation(root, "meta.mat")
    if meta is None:
        raise DataError(
            f"{truth} has the devkit's own class numbers, and its meta.mat, which explains them, "
            f"is not in {truth.parent}; put it there"
        )
    classes = _devkit_classes(meta)
    stem = re.sub(r"\d+$", "", Path(names[0]).stem)
    of_image = {}
    for number, line in enumerate(read_lines(truth), 1):
        known = line.isdigit() and int(line) in classes
        if not known:
            fault(f"{truth}: line {number} is {line!r}, where a class number of {meta} is due")
        of_image[f"{stem}{number:08d}"] = classes[int(line)][0] if known else ""
    return of_image


def _by_solution(path: Path) -> dict[str, str]:
    """WordNet numbers by image from lines such as ILSVRC2012_val_00000001,n01440764 1 2 3 4. Empty
    where a fault has been told."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}; restore it") from error
    of_image = {}
    for number, row in enumerate(rows, 2):
        image, answer = row.get("ImageId"), row.get("PredictionString")
        if not image or not answer:
            fault(f"{path}: line {number} lacks ImageId or PredictionString; restore it")
        if image:
            of_image[image] = answer.split()[0] if answer else ""
    return of_image
