"""Augmentation is a function of (seed, epoch, number) alone, and shows what it should."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from covpool.data import Preprocessing
from covpool.data.augmentation import seeded
from covpool.data.dataset import Arrays, Images

SIZE = 24
IMAGES = torch.from_numpy(
    np.random.default_rng(5).integers(0, 256, (4, 1, SIZE, SIZE), dtype=np.uint8)
)
PLAIN = Preprocessing(channels=1, image_size=SIZE, resize=SIZE, mean=(0.0,), std=(1 / 255,))
"""Under it the input's values are the grey levels."""


def images(augment, seed=0, source=IMAGES, preprocessing=PLAIN) -> Images:
    labels = list(range(len(source)))
    augment, _, erased = augment.partition(" ")
    erasing = (0.8, {"mode": "pixel"}) if erased else (0.0, {})
    return Images(
        Arrays(source), labels, preprocessing, augment=augment, erasing=erasing, seed=seed
    )


SHIFTED, CROPPED, ERASED = images("shift"), images("crop"), images("none erased")


def generator_states() -> tuple:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), name, bytes(keys), rest, torch.get_rng_state().tolist()


@settings(max_examples=40, deadline=None)
@given(
    augment=st.sampled_from(["shift", "crop", "flip", "none erased"]),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 10_000),
    number=st.integers(0, 3),
    disturbance=st.integers(0, 2**32 - 1),
)
def test_pure_function_of_seed_epoch_and_number(augment, seed, epoch, number, disturbance):
    first, label = images(augment, seed)[epoch, number]
    torch.manual_seed(disturbance)
    random.seed(disturbance)
    before = generator_states()
    again, _ = images(augment, seed)[epoch, number]
    assert torch.equal(first, again)
    assert label == number
    assert generator_states() == before


@pytest.mark.parametrize("augment", ["shift", "crop", "none erased"])
@pytest.mark.parametrize("axis", ["seed", "epoch", "number"])
def test_seed_epoch_and_number_all_matter(augment, axis):
    same = IMAGES[:1].expand(12, -1, -1, -1)
    made = set()
    for value in range(12):
        seed, epoch, number = (value if name == axis else 0 for name in ("seed", "epoch", "number"))
        image, _ = images(augment, seed, same)[epoch, number]
        made.add(image.numpy().tobytes())
    assert len(made) > 6


def test_processes_read_the_same():
    batches = [[(3, number) for number in range(4)], [(4, number) for number in range(4)]]
    loaders = [
        DataLoader(CROPPED, batch_sampler=batches, num_workers=workers) for workers in (0, 1)
    ]
    for (alone, _), (worker, _) in zip(*loaders, strict=True):
        assert torch.equal(alone, worker)


def test_shift_moves_by_up_to_a_twelfth_and_repeats_the_edge():
    ramp = torch.arange(SIZE, dtype=torch.uint8).expand(1, 1, SIZE, SIZE)
    shifts = set()
    for epoch in range(60):
        row = images("shift", source=ramp)[epoch, 0][0][0, 0].round().int()
        offset = int(row[SIZE // 2]) - SIZE // 2
        expected = (torch.arange(SIZE) + offset).clamp(0, SIZE - 1)
        assert row.tolist() == expected.tolist()
        shifts.add(offset)
    assert shifts == {-2, -1, 0, 1, 2}


def test_crop_shows_parts_and_mirror_images():
    ramp = torch.arange(0, 240, 10, dtype=torch.uint8).expand(1, 1, SIZE, SIZE)
    slopes = []
    for epoch in range(40):
        image, _ = images("crop", source=ramp)[epoch, 0]
        assert image.shape == (1, SIZE, SIZE)
        slopes.append(float(image[0, 0, -1] - image[0, 0, 0]))
    assert min(slopes) < 0 < max(slopes)
    assert len({abs(slope) for slope in slopes}) > 8


def test_test_images_do_not_vary():
    plain = images("none")
    assert torch.equal(plain[7, 2][0], plain[2][0])
    assert torch.equal(plain[2][0], IMAGES[2].float())


def test_numbers_count_from_the_end_too():
    assert torch.equal(SHIFTED[1, -1][0], SHIFTED[1, 3][0])
    with pytest.raises(IndexError):
        SHIFTED[0, 4]


def test_seeded_restores_after_an_error():
    before = generator_states()
    with pytest.raises(ZeroDivisionError), seeded(1, 2, 3):
        torch.rand(3) / (1 // 0)
    assert generator_states() == before


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (24, 24), (5, 9)])
def test_evaluation_shows_the_centre(shape):
    """A bright centre stays in the centre, whatever the image's shape."""
    picture = torch.zeros(3, *shape, dtype=torch.uint8)
    picture[:, shape[0] // 2 - 1 : shape[0] // 2 + 1, shape[1] // 2 - 1 : shape[1] // 2 + 1] = 255
    prepare = Preprocessing(
        channels=3, image_size=20, resize=24, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    result = prepare(picture)
    assert result.shape == (3, 20, 20)
    # The picture's centre lies between pixels or, where a side is odd, half a pixel beside it.
    centre = result[:, 7:13, 7:13]
    assert centre.mean() > result.mean()
    assert result.min() >= -1
    assert result.max() <= 1


def test_preprocessing_survives_its_dictionary():
    assert Preprocessing.from_dict(PLAIN.to_dict()) == PLAIN


def test_erasing_changes_a_rectangle_of_some_images_and_nothing_else():
    changed, plain = [], images("none")
    for epoch in range(20):
        difference = (ERASED[epoch, 1][0] != plain[epoch, 1][0])[0]
        rows, columns = difference.any(1).nonzero(), difference.any(0).nonzero()
        changed.append(len(rows) * len(columns))
        assert difference.sum() == changed[-1]
    share = len([area for area in changed if area]) / len(changed)
    assert 0.5 < share < 1
    assert max(changed) <= SIZE * SIZE / 2
