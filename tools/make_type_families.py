"""Draw a larger set for the table of poolings: in which type family is this patch of text set?

    npm install --prefix FONTS --ignore-scripts $(grep -v '#' tools/type_families.txt)
    python tools/make_type_families.py FONTS/node_modules/@fontsource --output type_families.npz

`type_families.txt` names the packages with their versions: the families of npm's @fontsource whose
upright letters a to z and A to Z can be read, chosen before anything was trained on them.

**Classes.** Each family gives one typeface, upright, of the weight nearest to 400. Families that
draw the same Latin letters (one script's extension of another's, an old name and a new) are one
design: letters of all families are drawn at one size; of those whose squared difference is below
`SAME_DESIGN` of their ink the first by name stays. Sorted, these differences grow without a gap, so
near twins remain among the classes, as in any fine-grained set.

**Images.** 24 training and 16 test patches of 64x64 pixels of each family (`text_patches.py`),
letters 11 to 24 pixels high. No text stands in both splits, and no design in two classes.

Beside the archive, a JSON file records each family's package, version, licence and attribution.
Drawn with NumPy 2.4.6 and Pillow 13.0.0; besides these it needs fontTools.
"""

import argparse
import json
import re
import string
import sys
import tempfile
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw
from text_patches import contact_sheet, draw_split, sized_font

SEED = 2026
IMAGES = {"train": 24, "test": 16}
SIZE = 64
HEIGHTS = (11, 24)

SAME_DESIGN = 0.09
LETTER = 48  # pixels, of which letters with their descenders take 40


def upright(package: Path) -> Path | None:
    """The file of the upright Latin typeface whose weight is nearest to 400."""
    names = re.compile(rf"{re.escape(package.name)}-latin-(\d+)-normal\.woff")
    files = {
        int(name[1]): path
        for path in package.glob("files/*.woff")
        if (name := names.fullmatch(path.name))
    }
    return files[min(files, key=lambda weight: (abs(weight - 400), weight))] if files else None


def unpack(source: Path, folder: Path) -> Path | None:
    """The typeface as plain TrueType or OpenType, or None where letters are missing."""
    font = TTFont(source)
    characters = font.getBestCmap() or {}
    if not all(ord(letter) in characters for letter in string.ascii_letters):
        return None
    font.flavor = None
    target = folder / f"{source.stem}.ttf"
    font.save(target)
    return target


def letters(path: Path) -> np.ndarray:
    """The ink of all letters, one after the other, drawn at one size."""
    font = sized_font(path, LETTER * 5 / 6)
    drawn = []
    for letter in string.ascii_letters:
        image = Image.new("L", (LETTER, LETTER), 0)
        place = (LETTER / 12, LETTER * 11 / 12)
        ImageDraw.Draw(image).text(place, letter, font=font, fill=255, anchor="ls")
        drawn.append(np.asarray(image, np.float32).ravel() / 255)
    return np.concatenate(drawn)


def different(typefaces: dict[str, Path]) -> dict[str, Path]:
    """The families of which no earlier one draws the same letters."""
    ink = np.stack([letters(path) for path in typefaces.values()])
    products = ink @ ink.T
    total = np.diag(products)[:, None] + np.diag(products)
    same = np.tril(total - 2 * products < SAME_DESIGN * total, -1)
    kept: list[int] = []
    for index in range(len(ink)):
        if not same[index, kept].any():
            kept.append(index)
    names = list(typefaces)
    return {names[index]: typefaces[names[index]] for index in kept}


def licence(package: Path) -> dict[str, str]:
    """What must be said of a family wherever its pictures go."""
    said = json.loads((package / "package.json").read_text(encoding="utf-8"))
    family = json.loads((package / "metadata.json").read_text(encoding="utf-8"))
    terms = family.get("license", {})
    terms = terms if isinstance(terms, dict) else {"url": terms}
    return {
        "package": f"{said['name']}@{said['version']}",
        "family": family.get("family") or family["fontName"],
        "licence": terms.get("type") or said.get("license", ""),
        "attribution": terms.get("attribution", ""),
        "source": terms.get("url", ""),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fonts", type=Path, help="the folder @fontsource that npm has filled")
    parser.add_argument("--output", type=Path, required=True, help="the archive to write (.npz)")
    parser.add_argument("--sheet", type=Path, help="also write a picture of some images")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        typefaces = {}
        for package in sorted(options.fonts.iterdir()):
            source = upright(package)
            target = unpack(source, Path(folder)) if source else None
            if target is None:
                print(f"left out: {package.name} has no upright Latin letters", file=sys.stderr)
            else:
                typefaces[package.name] = target
        classes = different(typefaces)
        print(f"{len(classes)} designs of {len(typefaces)} families", file=sys.stderr)
        arrays = {"classes": np.array(list(classes))}
        for split, count in IMAGES.items():
            print(f"drawing {split} images ...", file=sys.stderr)
            arrays |= draw_split(list(classes.values()), split, count, SEED, SIZE, HEIGHTS)
    np.savez_compressed(options.output, **arrays)
    licences = {name: licence(options.fonts / name) for name in classes}
    text = json.dumps(licences, indent=1, ensure_ascii=False) + "\n"
    options.output.with_suffix(".licences.json").write_text(text, encoding="utf-8")
    if options.sheet:
        contact_sheet(arrays).save(options.sheet)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
