"""Image files of every kind arrive upright, in 8 bits, over white."""

import numpy as np
import pytest
import torch
from PIL import Image

from covpool.data import DataError, Preprocessing, load_image
from covpool.data.reading import read_image

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def clear(mode: str) -> Image.Image:
    """Half of a picture red or black, half transparent over black."""
    picture = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    picture.paste((*RED, 255), (0, 0, 2, 2))
    return picture.convert(mode)


def palette() -> Image.Image:
    picture = Image.new("P", (4, 2), 1)
    picture.putpalette([*RED, *BLACK])
    picture.paste(0, (0, 0, 2, 2))
    picture.info["transparency"] = 1
    return picture


PICTURES = {
    "rgba.png": (clear("RGBA"), RED, WHITE),
    "transparent palette.png": (palette(), RED, WHITE),
    "la.png": (clear("LA"), (76, 76, 76), WHITE),
    "grey.png": (Image.new("L", (4, 2), 90), (90, 90, 90), (90, 90, 90)),
    "bilevel.png": (Image.new("1", (4, 2), 1), WHITE, WHITE),
    "cmyk.tif": (Image.new("CMYK", (4, 2), (0, 255, 255, 0)), RED, RED),
    "16 bits.png": (Image.fromarray(np.full((2, 4), 257 * 90, np.uint16)), (90,) * 3, (90,) * 3),
    "dark 16 bits.png": (Image.fromarray(np.full((2, 4), 200, np.uint16)), (1,) * 3, (1,) * 3),
    "16 bits.tif": (Image.fromarray(np.full((2, 4), 65535, np.uint16)), WHITE, WHITE),
    "32 bits.tif": (Image.fromarray(np.full((2, 4), 257 * 9, np.int32)), (9,) * 3, (9,) * 3),
}


@pytest.mark.parametrize("name", PICTURES)
def test_modes(tmp_path, name):
    picture, left, right = PICTURES[name]
    picture.save(tmp_path / name)
    pixels = read_image(tmp_path / name, 3)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 2, 4))
    assert tuple(pixels[:, 0, 0].tolist()) == left
    assert tuple(pixels[:, 1, 3].tolist()) == right
    assert read_image(tmp_path / name, 1).shape == (1, 2, 4)


def test_orientation_of_cameras(tmp_path):
    picture = Image.new("L", (4, 2))
    picture.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn by 90 degrees clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    pixels = read_image(tmp_path / "turned.png", 1)
    assert pixels.shape == (1, 4, 2)
    assert pixels[0, 0].tolist() == [0, 255]


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("L", (4, 2), grey) for grey in (200, 10)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.gif", 1).unique().tolist() == [200]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an image"),
        (b"these are words", "not an image"),
        ("truncated", "truncated"),
        ("floats", "floating-point numbers"),
        ("folder", "Is a directory"),
    ],
)
def test_unreadable_files_are_named(tmp_path, content, message):
    path = tmp_path / ("a.tif" if content == "floats" else "a.png")
    if content == "truncated":
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif content == "floats":
        Image.new("F", (4, 4), 0.5).save(path)
    elif content == "folder":
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_image(path, 3)
    text = str(caught.value)
    assert text.startswith(f"cannot read image {path}: ")
    assert message in text
    assert text.count(str(path)) == 1
    assert "\n" not in text


def test_load_image_prepares_as_in_evaluation(tmp_path):
    preparation = Preprocessing(channels=1, image_size=8, resize=10, mean=(0.5,), std=(0.25,))
    Image.new("RGB", (30, 20), (102, 102, 102)).save(tmp_path / "a.png")
    pixels = load_image(tmp_path / "a.png", preparation)
    torch.testing.assert_close(pixels, torch.full((1, 8, 8), (102 / 255 - 0.5) / 0.25))
    with pytest.raises(DataError, match=r"no such image file: .*missing\.png"):
        load_image(tmp_path / "missing.png", preparation)
