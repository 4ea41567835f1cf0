"""Draw the embedded data set: which typeface is this patch of text set in?

    apt-get install fonts-aenigma          # Debian; 465 typefaces by Brian Kent
    python tools/make_typefaces.py         # writes src/covpool/data/typefaces/typefaces.npz
    python tools/make_typefaces.py --check # draws again, compares, writes nothing
    python tools/make_typefaces.py --sheet sheet.png   # also a picture: some images of each class

The shipped file was drawn with fonts-aenigma 0.0.20080511+dfsg-4, NumPy 2.4.6 and Pillow 13.0.0.
Besides NumPy and Pillow it needs fontTools.

**Typefaces.** Chosen by the outlines of their glyphs alone, before anything was trained on them:

1. both cases present: a-z and A-Z are 52 different outlines;
2. readable: the letters have the plain topology of Latin script (between 1.25 and 1.45 closed
   contours a letter on average; 70 / 52 = 1.35 is an "i" with its dot, an "A" with its counter …),
   which leaves out outlined, shaded, striped, dotted and shattered designs, and at most 100 points
   an outline, which leaves out rough edges;
3. one typeface a family (same first five letters of the font's name; the first file by name);
4. of those that remain, the `CLASSES` whose file name has the smallest SHA-256: a draw by lot.

Solid strokes of similar weight remain, so telling these designs apart is fine-grained work.

**Images.** Patches of 48x48 pixels (`text_patches.py`), letters 10 to 19 pixels high.
Letter size, blur and noise were set in three trials so that a small network with plain average
pooling, the baseline, gets between half and two thirds of the test images right (57% after 12
epochs at a learning rate of 0.05 with cosine decay, one seed; a higher rate gets more). No
covariance method had a part in it.
"""

import argparse
import string
import sys
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont
from text_patches import contact_sheet, digest, draw_split

FONTS = Path("/usr/share/fonts/truetype/aenigma")
OUTPUT = Path(__file__).parents[1] / "src/covpool/data/typefaces/typefaces.npz"

SEED = 2021
CLASSES = 24
IMAGES = {"train": 80, "test": 80}
SIZE = 48
HEIGHTS = (10, 19)

CONTOURS_A_LETTER = (1.25, 1.45)
POINTS_A_LETTER = 100
FAMILY_LETTERS = 5


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fonts", type=Path, default=FONTS, help="folder of the .ttf files")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--check", action="store_true", help="compare with the file; write nothing")
    parser.add_argument("--sheet", type=Path, help="also write a picture of some images")
    options = parser.parse_args()

    typefaces = choose_typefaces(options.fonts)
    arrays = {"classes": np.array(list(typefaces))}
    for split, count in IMAGES.items():
        arrays |= draw_split(list(typefaces.values()), split, count, SEED, SIZE, HEIGHTS)
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
