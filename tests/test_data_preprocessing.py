"""Sizes, views and statistics: what the options ask for reaches the network's input."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from covpool.data import DataConfig, DataError, Preprocessing, average_over_views, open_images
from covpool.data.augmentation import AUGMENTATIONS
from covpool.data.config import Augment, Views
from covpool.data.preprocessing import VIEWS
from miniatures import write_miniature

PICTURE = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 40, 60), dtype=np.uint8))
STATISTICS = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}


def preprocessing(**changes) -> Preprocessing:
    return Preprocessing(**{"channels": 3, "image_size": 16, "resize": 20, **STATISTICS, **changes})


def reference(resize: list[int]) -> v2.Compose:
    """torchvision's own composition of the paper's evaluation."""
    steps = [v2.Resize(resize, antialias=True), v2.CenterCrop(16)]
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(**STATISTICS)])


@pytest.mark.parametrize("resize", [16, 20, (24, 20), (16, 16)])
def test_evaluation_is_torchvisions(resize):
    sides = [resize] if isinstance(resize, int) else list(resize)
    expected = reference(sides)(PICTURE)
    torch.testing.assert_close(preprocessing(resize=resize)(PICTURE), expected)


def test_views():
    centre = preprocessing()(PICTURE)
    mirror = preprocessing(views="mirror")(PICTURE)
    torch.testing.assert_close(mirror, torch.stack([centre, centre.flip(-1)]))
    crops = functional.ten_crop(functional.resize(PICTURE, [20]), [16, 16])
    expected = torch.stack([preprocessing().normalise(crop) for crop in crops])
    torch.testing.assert_close(preprocessing(views="ten-crop")(PICTURE), expected)
    assert len({view.numpy().tobytes() for view in expected}) == 10


def test_logits_are_averaged_over_views():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.ReLU())
    images = torch.randn(4, 3, 3, 2, 2)
    made = average_over_views(model, images)
    torch.testing.assert_close(made, model(images.flatten(0, 1)).unflatten(0, (4, 3)).mean(1))
    torch.testing.assert_close(average_over_views(model, images[:, 0]), model(images[:, 0]))


def test_tables_are_those_of_the_options():
    assert set(Views.__args__) == set(VIEWS)
    assert set(Augment.__args__) == {"auto", *AUGMENTATIONS}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": 12}, "data.resize 12 is smaller than the crop, data.image_size 16; give at"),
        ({"resize": (20, 12)}, r"data.resize \[20, 12\] is smaller"),
        ({"resize": 16, "views": "ten-crop"}, "would take the same crop five times; give a data"),
        ({"resize": (16, 16), "views": "ten-crop"}, "would take the same crop five times"),
    ],
)
def test_sizes_that_do_not_fit(changes, message):
    with pytest.raises(DataError, match=message):
        preprocessing(**changes)


@pytest.mark.parametrize("resize", [20, (24, 20)])
def test_dictionary(resize):
    made = preprocessing(resize=resize, views="mirror")
    assert Preprocessing.from_dict(made.to_dict()) == made
    earlier = {key: value for key, value in made.to_dict().items() if key != "views"}
    assert Preprocessing.from_dict(earlier).views == "center"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(write_miniature("birds", tmp_path_factory.mktemp("birds")))


def opened(root, **options):
    return open_images(DataConfig(root=root, **{"image_size": 16} | options))


@pytest.mark.parametrize(
    ("options", "resize"),
    [
        ({}, 18),
        ({"resize": 16}, 16),
        ({"resize": (20, 24)}, (20, 24)),
        ({"resize": [20, 24]}, (20, 24)),
    ],
)
def test_resize_of_files(root, options, resize):
    assert opened(root, **options).preprocessing.resize == resize


def test_statistics_given(root, tmp_path):
    given = opened(root, **STATISTICS).preprocessing
    assert (given.mean, given.std) == (STATISTICS["mean"], STATISTICS["std"])
    assert opened(root, mean=(0.5,)).preprocessing.mean == (0.5, 0.5, 0.5)
    assert opened(root, mean=(0.5,)).preprocessing.std == (0.229, 0.224, 0.225)
    for name in "aabb":
        path = tmp_path / name / f"{len(list(tmp_path.rglob('*.png')))}.png"
        path.parent.mkdir(exist_ok=True)
        Image.effect_noise((20, 20), 50).save(path)
    grey = opened(str(tmp_path))
    assert (grey.channels, len(grey.preprocessing.mean)) == (1, 1)
    assert opened(str(tmp_path), **STATISTICS).channels == 3
    assert opened(str(tmp_path), augment="timm").channels == 3
    with pytest.raises(DataError, match=r"data\.mean has 3 values, and the images have 1 channel"):
        opened(str(tmp_path), channels=1, **STATISTICS)
    with pytest.raises(DataError, match="works on colours, and these images are grey"):
        opened(str(tmp_path), channels=1, augment="timm")


def test_flip_is_the_evaluation_or_its_mirror_image(root):
    splits = opened(root, augment="flip", resize=(20, 20))
    seen = set()
    for epoch in range(20):
        for number in range(3):
            image = splits.train[epoch, number][0]
            centre = splits.preprocessing(splits.train.source[number])
            mirrored = torch.equal(image, centre.flip(-1))
            assert mirrored or torch.equal(image, centre)
            seen.add((number, mirrored))
    assert len(seen) == 6


def test_views_are_of_test_images_alone(root):
    splits = opened(root, views="ten-crop", augment="none")
    assert splits.test[0][0].shape == (10, 3, 16, 16)
    assert splits.train[0, 0][0].shape == (3, 16, 16)


def test_views_of_a_trained_network_are_the_configurations(root):
    trained = preprocessing(views="mirror")
    config = DataConfig(root=root, image_size=32, views="ten-crop")
    made = open_images(config, preprocessing=trained).preprocessing
    assert made == preprocessing(views="ten-crop")


def test_timms_options(root):
    options = {"scale": [1.0, 1.0], "ratio": [1.0, 1.0], "hflip": 0.0, "color_jitter": 0.0}
    plain = opened(root, augment="timm", augment_options=options)
    assert torch.equal(plain.train[0, 1][0], plain.train[5, 1][0])
    wild = {"auto_augment": "rand-m9-mstd0.5", "re_prob": 1.0, "interpolation": "random"}
    splits = opened(root, augment="timm", augment_options=wild)
    first, again, other = (splits.train[epoch, 1][0] for epoch in (2, 2, 3))
    assert first.shape == (3, 16, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auto_augmnt": "rand"}, "data.augment_options.auto_augmnt; did you mean auto_augment?"),
        ({"mean": 0.5}, "unknown option data.augment_options.mean"),
        ({"auto_augment": "no-such"}, "timm cannot make a transform of data.augment_options {'"),
    ],
)
def test_timms_options_that_do_not_fit(root, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        opened(root, augment="timm", augment_options=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": 4}, "data.resize must be null, a length or .height, width. of at least 8"),
        ({"resize": (20, 20, 20)}, "data.resize must be null"),
        ({"mean": (0.1, 0.2)}, r"data.mean must be null or 1 or 3 numbers, not \[0.1, 0.2\]"),
        ({"std": (0.0,)}, "data.std must be null or 1 or 3 numbers above 0"),
        ({"views": "all"}, "data.views must be one of center, mirror, ten-crop, not 'all'"),
        ({"augment_options": {"scale": 1}}, "they need data.augment timm, not 'auto'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)
