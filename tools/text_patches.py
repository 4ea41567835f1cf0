"""Patches of text, set in given typefaces and drawn as a camera might see them.

Each is a patch of grey pixels from a page of pseudo-words in lower case, with capitals or all
capitals: random size, slant of the page (rotation and shear), position, ink and paper (either may
be the lighter), uneven light, blur and noise. Grey levels are rounded to 32 steps, which halves a
file and adds less than the noise does.

A pseudo-word belongs to training or test by the parity of its SHA-256, so no word stands in both.
Each image's text is kept beside it (`train_texts`, `test_texts`).

Everything drawn follows from the seed, so one version of the fonts, NumPy and Pillow gives one
file; other versions of Pillow may move single grey levels.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SUPERSAMPLING = 4
GREY_STEP = 8

ONSETS = (
    *("", "b", "bl", "br", "c", "ch", "cl", "cr", "d", "dr", "f", "fl", "fr", "g", "gl", "gr"),
    *("h", "j", "k", "kl", "kn", "l", "m", "n", "p", "ph", "pl", "pr", "qu", "r", "s", "sc", "sh"),
    *("sk", "sl", "sm", "sn", "sp", "st", "str", "sw", "t", "th", "tr", "v", "w", "wh", "y", "z"),
)
NUCLEI = ("a", "e", "i", "o", "u", "ai", "au", "ea", "ee", "ie", "oa", "oo", "ou")
CODAS = (
    *("", "b", "ck", "d", "f", "ft", "g", "ld", "lk", "lt", "m", "mp", "n", "nd", "ng", "nt", "p"),
    *("r", "rd", "rk", "rm", "rt", "s", "sh", "sk", "st", "t", "th", "v", "x", "y", "zz"),
)


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def pseudo_words(random: np.random.Generator, split: str) -> Iterator[str]:
    """Pseudo-words of one split, without end."""
    parity = {"train": 0, "test": 1}[split]
    while True:
        word = "".join(
            random.choice(ONSETS) + random.choice(NUCLEI) + random.choice(CODAS)
            for _ in range(random.integers(1, 3))
        )
        if len(word) >= 3 and digest(word)[0] % 2 == parity:
            yield random.choice([word, word, word.capitalize(), word.upper()])


def set_page(
    font: ImageFont.FreeTypeFont, words: Iterator[str], side: int
) -> tuple[list[str], int]:
    """Lines of words that fill a square page, and the distance of their baselines."""
    pitch = round(1.35 * letter_height(font))
    lines = []
    for _ in range(-(-side // pitch)):
        line = next(words)
        while font.getlength(line) < side:
            line += " " + next(words)
        lines.append(line)
    return lines, pitch


def letter_height(font: ImageFont.FreeTypeFont) -> float:
    _, top, _, bottom = font.getbbox("Hbdpx")
    return bottom - top


def draw_patch(
    path: Path, random: np.random.Generator, split: str, size: int, heights: tuple[int, int]
) -> tuple[np.ndarray, str]:
    """One patch of text (size, size) uint8 and the text of its page.

    The letters are between `heights` pixels high, descenders included.
    """
    patch = size * SUPERSAMPLING
    page = round(1.6 * patch)
    height = SUPERSAMPLING * np.exp(random.uniform(*np.log(heights)))
    font = sized_font(path, height)
    lines, pitch = set_page(font, pseudo_words(random, split), page)

    ink = Image.new("L", (page, page), 0)
    draw = ImageDraw.Draw(ink)
    for row, line in enumerate(lines):
        indent = -random.uniform(0, 0.3) * patch
        draw.text((indent, row * pitch), line, font=font, fill=255)

    angle = np.deg2rad(random.uniform(-12, 12))
    shear = random.uniform(-0.12, 0.12)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = matrix @ np.array([[1, shear], [0, 1]])
    centre = page / 2 + random.uniform(-0.06, 0.06, 2) * page
    offset = centre - matrix @ np.array([patch / 2, patch / 2])
    (a, b), (d, e) = matrix
    affine = (a, b, offset[0], d, e, offset[1])
    ink = ink.transform((patch, patch), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    ink = ink.filter(ImageFilter.GaussianBlur(SUPERSAMPLING * random.uniform(0.1, 0.6)))
    ink = ink.resize((size, size), Image.Resampling.BOX)
    return photograph(np.asarray(ink) / 255, random), "\n".join(lines)


def sized_font(path: Path, height: float) -> ImageFont.FreeTypeFont:
    """The typeface at the size whose letters are `height` pixels high, descenders included."""
    layout = ImageFont.Layout.BASIC
    em = 100
    size = em * height / letter_height(ImageFont.truetype(path, em, layout_engine=layout))
    return ImageFont.truetype(path, size, layout_engine=layout)


def photograph(ink: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Grey levels of ink (1) on paper (0) under uneven light, with noise."""
    dark, light = random.uniform(10, 100), random.uniform(160, 245)
    paper, pigment = (light, dark) if random.random() < 0.7 else (dark, light)
    grey = paper + (pigment - paper) * ink

    across, down = np.meshgrid(*[np.linspace(-1, 1, len(ink))] * 2)
    direction = random.uniform(0, 2 * np.pi)
    slope = across * np.cos(direction) + down * np.sin(direction)
    grey *= 1 + random.uniform(0, 0.35) * slope

    grey += random.normal(0, random.uniform(3, 11), grey.shape)
    return (np.clip(np.round(grey / GREY_STEP), 0, 255 // GREY_STEP) * GREY_STEP).astype(np.uint8)


def draw_split(
    typefaces: list[Path], split: str, count: int, seed: int, size: int, heights: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Images, labels and texts of one split, `count` of each typeface."""
    images, labels, texts = [], [], []
    for label, path in enumerate(typefaces):
        for number in range(count):
            random = np.random.default_rng([seed, label, split == "test", number])
            image, text = draw_patch(path, random, split, size, heights)
            images.append(image)
            labels.append(label)
            texts.append(text.encode("ascii"))
    return {
        f"{split}_images": np.stack(images),
        f"{split}_labels": np.array(labels, np.uint8 if len(typefaces) <= 256 else np.uint16),
        f"{split}_texts": np.array(texts),
    }


def contact_sheet(arrays: dict[str, np.ndarray], columns: int = 16) -> Image.Image:
    """A row of training images for each class."""
    images, labels = arrays["train_images"], arrays["train_labels"]
    rows = [np.hstack(images[labels == label][:columns]) for label in np.unique(labels)]
    return Image.fromarray(np.vstack(rows))
