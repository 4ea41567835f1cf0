"""Draw the embedded data set: which typeface is this patch of text set in?

    apt-get install fonts-aenigma          # Debian; 465 typefaces by Brian Kent
    python tools/make_typefaces.py         # writes src/covpool/data/typefaces/typefaces.npz
    python tools/make_typefaces.py --check # draws again, compares, writes nothing
    python tools/make_typefaces.py --sheet sheet.png   # also a picture: some images of each class

Everything drawn follows from `SEED`, so one version of the fonts, NumPy and Pillow gives one file.
The shipped file was drawn with fonts-aenigma 0.0.20080511+dfsg-4, NumPy 2.4.6 and Pillow 13.0.0;
other versions of Pillow may move single grey levels. Besides NumPy and Pillow it needs fontTools.

**Typefaces.** Chosen by the outlines of their glyphs alone, before anything was trained on them:

1. both cases present: a-z and A-Z are 52 different outlines;
2. readable: the letters have the plain topology of Latin script (between 1.25 and 1.45 closed
   contours a letter on average; 70 / 52 = 1.35 is an "i" with its dot, an "A" with its counter …),
   which leaves out outlined, shaded, striped, dotted and shattered designs, and at most 100 points
   an outline, which leaves out rough edges;
3. one typeface a family (same first five letters of the font's name; the first file by name);
4. of those that remain, the `CLASSES` whose file name has the smallest SHA-256: a draw by lot.

Solid strokes of similar weight remain, so telling these designs apart is fine-grained work.

**Images.** Each is a patch of 48x48 grey pixels from a page of pseudo-words in lower case, with
capitals or all capitals: random size (letters 10 to 19 pixels high, descenders included), slant of
the page (rotation and shear), position, ink and paper (either may be the lighter), uneven light,
blur and noise.
Grey levels are rounded to 32 steps, which halves the file and adds less than the noise does.

Letter size, blur and noise were set in three trials so that a small network with plain average
pooling, the baseline, gets between half and two thirds of the test images right (57% after 12
epochs at a learning rate of 0.05 with cosine decay, one seed; a higher rate gets more). No
covariance method had a part in it.

**Splits.** A pseudo-word belongs to training or test by the parity of its SHA-256, so no word
stands in both. Each image's text is kept beside it (`train_texts`, `test_texts`).
"""

import argparse
import hashlib
import string
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FONTS = Path("/usr/share/fonts/truetype/aenigma")
OUTPUT = Path(__file__).parents[1] / "src/covpool/data/typefaces/typefaces.npz"

SEED = 2021
CLASSES = 24
IMAGES = {"train": 80, "test": 80}
SIZE = 48
SUPERSAMPLING = 4
GREY_STEP = 8

CONTOURS_A_LETTER = (1.25, 1.45)
POINTS_A_LETTER = 100
FAMILY_LETTERS = 5

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


def choose_typefaces(folder: Path) -> dict[str, Path]:
    """Name and file of the typefaces that the module's rule chooses, in order of the names."""
    families: dict[str, tuple[str, Path]] = {}
    for path in sorted(folder.glob("*.ttf")):
        font = TTFont(path)
        if is_plain(font):
            name = font["name"].getDebugName(1).removesuffix(" BRK")
            family = name.replace(" ", "").lower()[:FAMILY_LETTERS]
            families.setdefault(family, (name, path))
    by_lot = sorted(families.values(), key=lambda item: digest(item[1].stem))
    print(f"{len(families)} families fit the rule; {CLASSES} are drawn by lot")
    return dict(sorted(by_lot[:CLASSES]))


def is_plain(font: TTFont) -> bool:
    """Whether the 52 letters are present, all different, and of plain topology."""
    characters = font.getBestCmap() or {}
    if not all(ord(letter) in characters for letter in string.ascii_letters):
        return False
    outlines = set()
    contours = points = 0
    for letter in string.ascii_letters:
        glyph = font["glyf"][characters[ord(letter)]]
        coordinates, ends, _ = glyph.getCoordinates(font["glyf"])
        outlines.add((tuple(map(tuple, coordinates)), tuple(ends)))
        contours += len(ends)
        points += len(coordinates)
    letters = len(string.ascii_letters)
    fewest, most = CONTOURS_A_LETTER
    return (
        len(outlines) == letters
        and fewest <= contours / letters <= most
        and points / letters <= POINTS_A_LETTER
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


def draw_patch(path: Path, random: np.random.Generator, split: str) -> tuple[np.ndarray, str]:
    """One patch of text (SIZE, SIZE) uint8 and the text of its page."""
    patch = SIZE * SUPERSAMPLING
    page = round(1.6 * patch)
    height = SUPERSAMPLING * np.exp(random.uniform(*np.log([10, 19])))
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
    ink = ink.resize((SIZE, SIZE), Image.Resampling.BOX)
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

    across, down = np.meshgrid(np.linspace(-1, 1, SIZE), np.linspace(-1, 1, SIZE))
    direction = random.uniform(0, 2 * np.pi)
    slope = across * np.cos(direction) + down * np.sin(direction)
    grey *= 1 + random.uniform(0, 0.35) * slope

    grey += random.normal(0, random.uniform(3, 11), grey.shape)
    return (np.clip(np.round(grey / GREY_STEP), 0, 255 // GREY_STEP) * GREY_STEP).astype(np.uint8)


def draw_split(typefaces: list[Path], split: str) -> dict[str, np.ndarray]:
    images, labels, texts = [], [], []
    for label, path in enumerate(typefaces):
        for number in range(IMAGES[split]):
            random = np.random.default_rng([SEED, label, split == "test", number])
            image, text = draw_patch(path, random, split)
            images.append(image)
            labels.append(label)
            texts.append(text.encode("ascii"))
    return {
        f"{split}_images": np.stack(images),
        f"{split}_labels": np.array(labels, np.uint8),
        f"{split}_texts": np.array(texts),
    }


def contact_sheet(arrays: dict[str, np.ndarray], columns: int = 16) -> Image.Image:
    """A row of training images for each class."""
    images, labels = arrays["train_images"], arrays["train_labels"]
    rows = [np.hstack(images[labels == label][:columns]) for label in np.unique(labels)]
    return Image.fromarray(np.vstack(rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fonts", type=Path, default=FONTS, help="folder of the .ttf files")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--check", action="store_true", help="compare with the file; write nothing")
    parser.add_argument("--sheet", type=Path, help="also write a picture of some images")
    options = parser.parse_args()

    typefaces = choose_typefaces(options.fonts)
    arrays = {"classes": np.array(list(typefaces))}
    for split in IMAGES:
        arrays |= draw_split(list(typefaces.values()), split)
    if options.sheet:
        contact_sheet(arrays).save(options.sheet)
    if options.check:
        with np.load(options.output, allow_pickle=False) as shipped:
            differing = [name for name in arrays if not np.array_equal(shipped[name], arrays[name])]
        print(f"differs from {options.output.name}: {', '.join(differing) or 'nothing'}")
        return bool(differing)
    np.savez_compressed(options.output, **arrays)
    print(f"{options.output.name}: {options.output.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
