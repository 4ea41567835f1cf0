"""NumPy archives: what is read from them, and every message about them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from covpool.data import DataConfig, DataError, open_images

GENERATOR = np.random.default_rng(3)


def grey(count: int = 4) -> np.ndarray:
    return GENERATOR.integers(0, 256, (count, 10, 12), dtype=np.uint8)


def good() -> dict[str, np.ndarray]:
    return {
        "train_images": grey(),
        "train_labels": np.array([0, 1, 0, 1], np.int16),
        "test_images": grey(2),
        "test_labels": np.array([1, 0]),
        "classes": np.array(["cat", "dog"]),
    }


def write(path: Path, **changes) -> Path:
    np.savez_compressed(path, **good() | changes)
    return path


def open_archive(path: Path, **options):
    return open_images(DataConfig(root=str(path), **options))


def test_grey_archive(tmp_path):
    arrays = good()
    np.savez(tmp_path / "pets.npz", **arrays)
    splits = open_archive(tmp_path / "pets.npz")
    assert (splits.name, splits.classes) == ("pets", ("cat", "dog"))
    assert (splits.channels, splits.image_size) == (1, 10)
    assert (splits.train.labels, splits.test.labels) == ([0, 1, 0, 1], [1, 0])
    raw = splits.test.source[0]
    assert torch.equal(raw[0], torch.from_numpy(arrays["test_images"][0]))
    mean = float(arrays["train_images"].mean()) / 255
    assert splits.preprocessing.mean == pytest.approx([mean], abs=1e-4)
    assert splits.train[2, 3][0].shape == splits.test[1][0].shape == (1, 10, 10)


def test_shapes_of_images(tmp_path):
    colour = GENERATOR.integers(0, 256, (4, 10, 10, 3), dtype=np.uint8)
    path = write(tmp_path / "a.npz", train_images=colour, test_images=colour[:2])
    splits = open_archive(path)
    assert splits.channels == 3
    assert torch.equal(splits.test.source[1][2], torch.from_numpy(colour[1, :, :, 2]))
    path = write(tmp_path / "b.npz", train_images=grey()[..., None], test_images=grey(2))
    assert open_archive(path).channels == 1


def test_channels_and_size_may_be_chosen(tmp_path):
    path = write(tmp_path / "a.npz")
    splits = open_archive(path, channels=3, image_size=16)
    image, _ = splits.test[0]
    assert image.shape == (3, 16, 16)
    raw = splits.test.source[0]
    assert torch.equal(raw[0], raw[2])
    colour = np.full((4, 8, 8, 3), (255, 0, 0), np.uint8)
    path = write(tmp_path / "b.npz", train_images=colour, test_images=colour[:2])
    assert open_archive(path, channels=1).test.source[0].unique().tolist() == [76]


def test_preprocessing_of_a_trained_network_is_kept(tmp_path):
    trained = open_archive(write(tmp_path / "a.npz"), image_size=9).preprocessing
    config = DataConfig(root=str(write(tmp_path / "b.npz")))
    assert open_images(config, preprocessing=trained).preprocessing == trained


def test_evaluation_ignores_what_else_the_archive_holds(tmp_path):
    path = write(tmp_path / "a.npz", comments=np.array(["x"]))
    assert len(open_archive(path).train) == 4


BAD_ARRAYS = {
    "labels beyond": (
        {"train_labels": np.array([0, 1, 0, 7])},
        "train_labels[3] is 7, outside the 2 classes",
    ),
    "labels below": ({"test_labels": np.array([0, -1])}, "test_labels[1] is -1, outside the 2"),
    "labels as floats": (
        {"train_labels": np.zeros(4)},
        "train_labels must be 4 whole numbers, got float64 (4,)",
    ),
    "labels too few": ({"train_labels": np.array([0, 1])}, "must be 4 whole numbers, got int64"),
    "class without training": (
        {"train_labels": np.zeros(4, int)},
        "no training image of class 'dog'",
    ),
    "class without test": ({"test_labels": np.ones(2, int)}, "no test image of class 'cat'"),
    "floats": (
        {"train_images": np.zeros((4, 10, 12), np.float32)},
        "train_images must be uint8 of shape (n, height, width) or (n, height, width, 1 or 3), "
        "got float32 (4, 10, 12)",
    ),
    "channels first": (
        {"test_images": np.zeros((2, 3, 10, 12), np.uint8)},
        "test_images must be uint8 of shape",
    ),
    "no images": (
        {"test_images": np.zeros((0, 10, 12), np.uint8), "test_labels": np.zeros(0, int)},
        "test_images must be uint8 of shape",
    ),
    "sizes differ": (
        {"test_images": np.zeros((2, 9, 12), np.uint8)},
        "training images are (1, 10, 12), test images (1, 9, 12)",
    ),
    "one class": ({"classes": np.array(["cat"])}, "at least two different names, got ('cat',)"),
    "same class": (
        {"classes": np.array(["cat", "cat"])},
        "at least two different names, got ('cat', 'cat')",
    ),
    "classes as numbers": (
        {"classes": np.array([1, 2])},
        "classes must be a list of text, got int64 of shape (2,)",
    ),
    "one name": ({"classes": np.array("cat")}, "classes must be a list of text, got <U3 of shape"),
    "pickled": (
        {"classes": np.array(["cat", None], object)},
        "Object arrays cannot be loaded when allow_pickle=False",
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(tmp_path, case):
    changes, message = BAD_ARRAYS[case]
    path = write(tmp_path / "images.npz", **changes)
    with pytest.raises(DataError) as caught:
        open_archive(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_array_and_its_nearest(tmp_path):
    arrays = good()
    arrays["train_label"] = arrays.pop("train_labels")
    np.savez(tmp_path / "images.npz", **arrays)
    with pytest.raises(DataError, match=r"images\.npz lacks train_labels; .*is train_label meant"):
        open_archive(tmp_path / "images.npz")


@pytest.mark.parametrize("damage", ["words", "nothing", "half", "middle", "one array"])
def test_damaged_archives(tmp_path, damage):
    path = write(tmp_path / "images.npz")
    content = path.read_bytes()
    middle = len(content) // 4
    changed = {
        "words": b"these are words",
        "nothing": b"",
        "half": content[: len(content) // 2],
        "middle": content[:middle] + bytes(200) + content[middle + 200 :],
    }
    if damage == "one array":
        with path.open("wb") as file:
            np.save(file, grey())
    else:
        path.write_bytes(changed[damage])
    message = "holds a single array" if damage == "one array" else "cannot read NumPy archive"
    with pytest.raises(DataError, match=message) as caught:
        open_archive(path)
    assert str(path) in str(caught.value)
