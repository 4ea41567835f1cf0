"""The embedded data set: what its README says of it, and that its splits share nothing."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from covpool.data import DataConfig, open_images
from covpool.data.archives import embedded_typefaces

CLASSES, IMAGES, SIZE = 24, 80, 48


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(embedded_typefaces(), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def words(texts: np.ndarray) -> set[str]:
    return {word.lower() for text in texts for word in text.decode("ascii").split()}


@pytest.mark.parametrize("split", ["train", "test"])
def test_shapes_and_balance(arrays, split):
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    assert images.shape == (CLASSES * IMAGES, SIZE, SIZE)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [IMAGES] * CLASSES
    assert len(set(arrays["classes"].tolist())) == CLASSES
    assert len(arrays[f"{split}_texts"]) == len(images)


def test_no_image_occurs_twice(arrays):
    both = np.concatenate([arrays["train_images"], arrays["test_images"]])
    assert len({image.tobytes() for image in both}) == len(both)


def test_no_word_stands_in_both_splits(arrays):
    train, test = words(arrays["train_texts"]), words(arrays["test_texts"])
    assert min(len(train), len(test)) > 1000
    assert not train & test


def test_every_patch_shows_something(arrays):
    # Text covers paper, or the light changes: no patch is a plain surface.
    for split in ("train", "test"):
        assert arrays[f"{split}_images"].reshape(CLASSES * IMAGES, -1).std(axis=1).min() > 8


def test_licence_lies_beside_it_and_package_stays_small():
    folder = embedded_typefaces().parent
    assert "Brian Kent" in (folder / "LICENSE.md").read_text(encoding="utf-8")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 7e6


def test_readme_lists_the_classes_in_order(arrays):
    readme = (embedded_typefaces().parent / "README.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in readme.splitlines() if line.endswith(".ttf` |")]
    assert [row[1] for row in rows] == arrays["classes"].tolist()


def test_opened_by_default(arrays):
    splits = open_images(DataConfig())
    assert (splits.name, splits.channels, splits.image_size) == ("typefaces", 1, SIZE)
    assert splits.classes == tuple(arrays["classes"].tolist())
    assert (len(splits.train), len(splits.test)) == (CLASSES * IMAGES, CLASSES * IMAGES)
    image, label = splits.test[100]
    assert (image.shape, image.dtype) == ((1, SIZE, SIZE), torch.float32)
    assert label == arrays["test_labels"][100]
    mean, std = splits.preprocessing.mean[0], splits.preprocessing.std[0]
    pixels = torch.from_numpy(arrays["test_images"][100]) / 255
    torch.testing.assert_close(image[0], (pixels - mean) / std, rtol=1e-5, atol=1e-5)


def test_inputs_are_standardised():
    splits = open_images(DataConfig())
    images = torch.stack(
        [splits.train.preprocessing(image) for image in splits.train.source.images]
    )  # type: ignore[attr-defined]
    assert abs(images.mean()) < 1e-3
    assert abs(images.std() - 1) < 1e-3


@pytest.mark.slow
def test_imports_stay_light():
    """Neither torchvision nor Pillow is needed to describe data or to open the typefaces."""
    code = (
        "import sys, covpool; assert 'covpool.data' not in sys.modules;"
        "from covpool.data import DataConfig, open_images; open_images(DataConfig()).train[0, 0];"
        "assert not {'torchvision', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
