"""Layouts as published: what is read from miniatures of them, and every message about them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.recfunctions import repack_fields
from scipy.io import loadmat, savemat

from covpool.data import DataConfig, DataError, open_images
from covpool.data.dataset import Files
from covpool.data.layouts import LAYOUTS
from miniatures import MINIATURES, Pictures, write_miniature

CLASSES = {
    "folder": ("typeface 0", "typeface 1", "typeface 2"),
    "archive": ("typeface 0", "typeface 1", "typeface 2"),
    "imagenet": ("n01440764 tench", "n01443537 goldfish", "n01484850 great white shark"),
    "imagenet/folders": ("n01440764", "n01443537", "n01484850"),
    "imagenet/kaggle": ("n01440764 tench", "n01443537 goldfish", "n01484850 great white shark"),
    "birds": ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"),
    "dogs": ("Chihuahua", "Japanese_spaniel", "Maltese_dog"),
    "cars": ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"),
    "cars/folders": (
        *("AM General Hummer SUV 2000", "Acura RL Sedan 2012"),
        "Ram C-V Cargo Van Minivan 2012",
    ),
    "aircraft": ("707-320", "Boeing 717", "F/A-18"),
}
FILES = [name for name in MINIATURES if name != "archive"]


def open_root(root: Path, **options):
    return open_images(DataConfig(root=str(root), **{"image_size": 16} | options))


def test_every_layout_has_a_miniature():
    assert {name.split("/")[0] for name in MINIATURES} == set(LAYOUTS) - {"typefaces"}
    assert set(CLASSES) == set(MINIATURES)


@pytest.mark.parametrize("name", FILES)
def test_each_image_has_the_class_and_split_that_it_was_written_with(tmp_path, name):
    root = write_miniature(name, tmp_path / "data")
    pictures = Pictures(classes=3, train=4, test=2, size=64)
    expected = {}
    for split, label, number in pictures.each():
        path = pictures.save(split, label, number, tmp_path / "one.jpg")
        expected[path.read_bytes()] = split, label
    assert len(expected) == 18
    splits = open_root(root)
    found = {}
    for split, images in (("train", splits.train), ("test", splits.test)):
        assert isinstance(images.source, Files)
        for path, label in zip(images.source.paths, images.labels, strict=True):
            found[Path(path).read_bytes()] = split, label
    assert found == expected
    assert splits.classes == CLASSES[name]
    assert splits.train[0, 0][0].shape == splits.test[0][0].shape == (3, 16, 16)


@pytest.mark.parametrize("name", MINIATURES)
def test_recognised_and_named_alike(tmp_path, name):
    root = write_miniature(name, tmp_path / "data")
    own = name.split("/")[0]
    roots = {root, tmp_path / "data"} if own in ("birds", "aircraft") else {root}
    for each in roots:
        auto, named = open_root(each), open_root(each, name=own)
        assert auto.name == named.name
        assert auto.classes == named.classes
        assert auto.train.labels == named.train.labels
        assert auto.test.labels == named.test.labels
    assert own in ("folder", "archive") or auto.name == own


def test_plain_class_folders_of_cars_too(tmp_path):
    root = write_miniature("cars/folders", tmp_path) / "car_data" / "car_data"
    assert open_root(root, name="cars").classes == CLASSES["cars/folders"]
    assert open_root(root).name == "car_data"


def test_kaggle_archive_from_its_inner_folder_too(tmp_path):
    root = write_miniature("imagenet/kaggle", tmp_path) / "ILSVRC" / "Data" / "CLS-LOC"
    assert open_root(root).classes == CLASSES["imagenet/kaggle"]


def test_single_entries_are_read_as_several_are(tmp_path):
    """MATLAB files do not tell a list of one from its entry."""
    for name in ("dogs", "cars"):
        root = write_miniature(name, tmp_path / name, classes=2, train=1, test=1)
        splits = open_root(root)
        assert sorted(splits.train.labels) == sorted(splits.test.labels) == [0, 1]


def test_labels_beyond_a_byte(tmp_path):
    """The 196 classes of Cars fit in a byte; their numbers minus one must not wrap around."""
    root = write_miniature("cars", tmp_path, classes=2)
    path = root / "devkit" / "cars_train_annos.mat"
    content = loadmat(path)
    for entry in content["annotations"][0]:
        entry["class"] = np.array([[0]], np.uint8)
    savemat(path, {"annotations": content["annotations"]})
    with pytest.raises(
        DataError, match=r"cars_train_annos\.mat: entry 1 has the class number 0; 1"
    ):
        open_root(root)


def delete(*names):
    return lambda root: [(root / name).unlink() for name in names]


def remove_folder(name):
    return lambda root: shutil.rmtree(root / name)


def text(name, content):
    return lambda root: (root / name).write_text(content)


def edit(name, old, new):
    def change(root):
        content = (root / name).read_text()
        assert old in content
        (root / name).write_text(content.replace(old, new, 1))

    return change


def tear(name):
    def change(root):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])

    return change


def mat(name, **changes):
    def change(root):
        content = {key: value for key, value in loadmat(root / name).items() if key[0] != "_"}
        for key, new in changes.items():
            content[key] = new(content[key])
        savemat(root / name, {key: value for key, value in content.items() if value is not None})

    return change


def with_class(value):
    def change(structs):
        structs[0, 1]["class"] = np.array([[value]])
        return structs

    return change


def without_classes(structs):
    return repack_fields(structs[["bbox_x1", "fname"]])


def copied(source, target):
    return lambda root: shutil.copy(root / source, root / target)


DEVKIT = "ILSVRC2012_devkit_t12/data"
TRUTH = f"{DEVKIT}/ILSVRC2012_validation_ground_truth.txt"
BAD = {
    "birds": [
        (delete("train_test_split.txt"), "{root} lacks train_test_split.txt, which images are"),
        (delete("classes.txt"), "{root} lacks classes.txt, the names of the classes; restore"),
        (remove_folder("images"), "{root} lacks images, the folder of images"),
        (text("images.txt", ""), "annotation file {root}/images.txt is empty"),
        (text("images.txt", "1\n"), "{root}/images.txt: line 1 is '1', where two columns are due"),
        (edit("images.txt", "2 ", "1 "), "{root}/images.txt has '1' twice"),
        (edit("image_class_labels.txt", "1 1\n", ""), "labels.txt has no line for image 1 (001"),
        (edit("image_class_labels.txt", "1 1\n", "1 9\n"), "labels.txt: image 1 has '9', where a"),
        (edit("train_test_split.txt", "1 0\n", "1 2\n"), "split.txt: image 1 has '2', where 0 or"),
        (
            text("train_test_split.txt", "".join(f"{n} 1\n" for n in range(1, 19))),
            "no test image of class '001.Black_footed_Albatross', '002.",
        ),
        (
            lambda root: next((root / "images").glob("002*/*.jpg")).unlink(),
            "cannot read image {root}/images/002.Laysan_Albatross/Laysan_Albatross_",
        ),
    ],
    "dogs": [
        (delete("test_list.mat"), "{root} lacks test_list.mat or lists/test_list.mat, the list"),
        (remove_folder("Images"), "{root} lacks Images, the folder of images"),
        (tear("train_list.mat"), "cannot read MATLAB file {root}/train_list.mat: "),
        (text("train_list.mat", "words"), "cannot read MATLAB file {root}/train_list.mat: "),
        (mat("train_list.mat", labels=lambda _: None), "lacks 'labels'; it holds file_list, annot"),
        (mat("train_list.mat", labels=lambda x: x[1:]), "holds 12 files, 11 labels; these must"),
        (
            mat("train_list.mat", labels=lambda x: x[::-1]),
            "class 1 is 'Maltese_dog' and, by n02",
        ),
        (mat("train_list.mat", labels=lambda x: x + 0.5), "entry 1 has the class number 1.5; 1 to"),
        (copied("train_list.mat", "test_list.mat"), "is listed for training and for testing"),
    ],
    "cars": [
        (delete("cars_test_annos_withlabels.mat"), "which the devkit's cars_test_annos.mat lacks"),
        (delete("devkit/cars_meta.mat"), "{root} lacks devkit/cars_meta.mat or cars_meta.mat"),
        (remove_folder("cars_test"), "{root} lacks cars_test, the folder of its test images"),
        (tear("devkit/cars_meta.mat"), "cannot read MATLAB file {root}/devkit/cars_meta.mat"),
        (
            copied("devkit/cars_meta.mat", "devkit/cars_train_annos.mat"),
            "cars_train_annos.mat lacks 'annotations'; it holds class_names: is it another file",
        ),
        (
            mat("devkit/cars_train_annos.mat", annotations=with_class(4)),
            "cars_train_annos.mat: entry 2 has the class number 4; 1 to 3 are due",
        ),
        (
            mat(
                "cars_test_annos_withlabels.mat",
                annotations=lambda x: repack_fields(x[["bbox_x1", "fname"]]),
            ),
            "its structs lack the field 'class'; they have bbox_x1, fname",
        ),
        (delete("cars_train/00002.jpg"), "cannot read image {root}/cars_train/00002.jpg: No such"),
    ],
    "aircraft": [
        (delete("data/variants.txt"), "{root}/data lacks variants.txt, the names of the classes"),
        (delete("data/images_variant_test.txt"), "{root}/data lacks images_variant_test.txt"),
        (remove_folder("data/images"), "{root}/data lacks images, the folder of images"),
        (edit("data/variants.txt", "F/A-18", "FA-18"), "is of the variant 'F/A-18', which {root}"),
        (
            lambda root: (root / "data/variants.txt").write_bytes(b"\xff\xfe"),
            "cannot read annotation file {root}/data/variants.txt: 'utf-8' codec",
        ),
    ],
    "imagenet": [
        (delete(TRUTH), "{root}/val holds 6 images without class folders, and neither ILSVRC2012_"),
        (delete(f"{DEVKIT}/meta.mat"), "its meta.mat, which explains them, is not in {root}/ILSV"),
        (edit(TRUTH, "\n", "\n99\n"), "ground_truth.txt: line 2 is '99', where a class number of"),
        (
            lambda root: (root / TRUTH).write_text("".join((root / TRUTH).read_text()[:-3])),
            "ground_truth.txt says nothing of {root}/val/ILSVRC2012_val_00000006.JPEG",
        ),
        (
            delete("val/ILSVRC2012_val_00000002.JPEG"),
            "{root}/val lacks 1 of the 6 images of {root}/ILSVRC2012_devkit_t12/data/ILSVRC2012",
        ),
        (remove_folder("train/n01443537"), "of class n01443537 by {root}/ILSVRC2012_devkit_t12/"),
        (
            lambda root: [path.unlink() for path in (root / "val").iterdir()],
            "{root}/val holds no images; unpack ILSVRC2012_img_val.tar there",
        ),
    ],
    "imagenet/folders": [
        (remove_folder("val/n01443537"), "'n01443537' only in {root}/train; make them alike"),
    ],
    "imagenet/kaggle": [
        (text("LOC_val_solution.csv", "ImageId\na\n"), "csv: line 2 lacks ImageId or Prediction"),
    ],
    "cars/folders": [
        (remove_folder("car_data/car_data/test"), "{root}/car_data/car_data lacks test, the test"),
    ],
}


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, number) for name, cases in BAD.items() for number in range(len(cases))],
)
def test_what_is_missing_or_damaged_is_named(tmp_path, name, number):
    root = write_miniature(name, tmp_path / "data", size=16)
    damage, message = BAD[name][number]
    damage(root)
    with pytest.raises(DataError) as caught:
        open_root(root, image_size=8)
    assert message.format(root=root) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_published_layout_is_tried_damaged():
    assert {name.split("/")[0] for name in BAD} == {
        name for name, layout in LAYOUTS.items() if layout.signs
    }


def test_damaged_images_are_left_out_aloud(tmp_path):
    root = write_miniature("cars", tmp_path)
    (root / "cars_train/00003.jpg").write_bytes(b"words")
    splits = open_root(root, skip_damaged=True)
    assert len(splits.train) == 11
    assert splits.skipped == (
        f"{root}/cars_train/00003.jpg: not an image, or of another format than JPEG, PNG, "
        "WEBP, GIF, BMP, TIFF, PPM",
    )


def test_other_layouts_are_pointed_out(tmp_path):
    root = write_miniature("dogs", tmp_path / "data")
    with pytest.raises(DataError) as caught:
        open_root(root, name="birds")
    assert "is not laid out as data.name birds (CUB-200-2011): it lacks image_class" in str(
        caught.value
    )
    assert "by its files it is dogs" in str(caught.value)


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.signs])
def test_named_roots_without_anything(tmp_path, name):
    with pytest.raises(DataError, match=rf"{tmp_path} lacks .*; restore it from the published"):
        open_root(tmp_path, name=name)


def test_classes_that_look_like_wordnet_numbers(tmp_path):
    root = write_miniature("folder", tmp_path / "data", classes=2)
    for split in ("train", "test"):
        (root / split / "typeface 0").rename(root / split / "newspaper")
    (root / "test").rename(root / "val")
    assert open_root(root).name == "data"


def test_ambiguous_roots(tmp_path):
    write_miniature("birds", tmp_path)
    write_miniature("aircraft", tmp_path)
    with pytest.raises(DataError) as caught:
        open_root(tmp_path)
    assert "has the signs of several layouts: birds in " in str(caught.value)
    assert "choose one by data.name" in str(caught.value)
    assert open_root(tmp_path, name="aircraft").name == "aircraft"


def test_unrecognised_roots_say_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("no images")
    with pytest.raises(DataError) as caught:
        open_root(tmp_path)
    for name, layout in LAYOUTS.items():
        assert f"{name}: {layout.describe_signs()}" in str(caught.value) or not layout.signs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "bird"}, "unknown data.name 'bird'; did you mean birds?"),
        ({"name": "birds"}, "data.name 'birds' needs data.root"),
        ({"name": "typefaces", "root": "."}, "'typefaces' is embedded in the package"),
        ({"name": "archive", "root": "."}, "data.root '.' is a folder; data.name 'archive' needs"),
        ({"name": "cvds/cars"}, "unknown data.name 'cvds/cars'; before the slash stands"),
        ({"name": "tfds/cars"}, "timm's reader tfds/ gives a stream without numbers"),
    ],
)
def test_names_that_do_not_fit(options, message):
    with pytest.raises(DataError) as caught:
        open_images(DataConfig(**options))
    assert message in str(caught.value)


def test_archives_are_no_folders(tmp_path):
    path = write_miniature("archive", tmp_path)
    with pytest.raises(
        DataError, match=r"is an \.npz archive, and data.name 'dogs' needs a folder"
    ):
        open_root(path, name="dogs")
