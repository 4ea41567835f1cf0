"""Pictures of a run: learning curves, the confusion of its worst classes, and images of these."""

import json
import warnings
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from covpool.data import DataError, Images
from covpool.data.contact_sheet import encoded_thumbnail
from covpool.text import shortened
from covpool.train.run_directory import Row, replace_file, replace_text

WORST_CLASSES = 20

CONFUSIONS, EXAMPLES, SIDE = 24, 2, 64
"""Of the classes in so many of the most frequent confusions, so many images of that size are kept
for the report."""

NAME_LENGTH = 40
"""As many characters of a class's name fit beside the picture."""


def draw_curves(history: Sequence[Row], path: Path) -> None:
    """Loss and top-1 by epoch, training and test; a dotted line where the method switches."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    percent = [("top1", "top-1 (%)", 100), ("loss", "loss", 1)]
    for axes, (name, label, scale) in zip(figure.subplots(1, 2), percent, strict=True):
        for split, style in (("train", "--"), ("test", "-")):
            values = [scale * row[f"{split}_{name}"] for row in history]
            axes.plot(epochs, values, style, marker=".", label=split)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        for before, after in pairwise(history):
            if before["method"] != after["method"]:
                axes.axvline(after["epoch"] - 0.5, color="0.4", linestyle=":")
                axes.annotate(
                    after["method"],
                    (after["epoch"] - 0.5, 0.02),
                    xycoords=("data", "axes fraction"),
                    rotation=90,
                    fontsize=8,
                )
        axes.legend(loc="center right")
    _save(figure, path)


def draw_confusion(confusion: Tensor, classes: Sequence[str], path: Path) -> None:
    """Among the classes of the lowest recall, the share of each that is called each."""
    images = confusion.sum(1)
    recall = confusion.diagonal() / images.clamp(min=1)
    worst = torch.argsort(recall, stable=True)[:WORST_CLASSES]
    shares = 100 * (confusion / images.clamp(min=1)[:, None])[worst][:, worst]
    names = [shortened(classes[int(i)], NAME_LENGTH) for i in worst.tolist()]
    side = 2.5 + 0.33 * len(names)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    ticks = range(len(names))
    # Class names are text: dollar signs in them are no mathematics.
    axes.set_xticks(ticks, names, rotation=90, fontsize=7, parse_math=False)
    axes.set_yticks(
        ticks,
        [f"{name} ({100 * recall[i]:.0f}%)" for name, i in zip(names, worst.tolist(), strict=True)],
        fontsize=7,
        parse_math=False,
    )
    axes.set(xlabel="called", ylabel="class (recall)", title=f"The {len(names)} classes told worst")
    figure.colorbar(picture, label="% of the class's test images", shrink=0.7)
    _save(figure, path)


def write_examples(confusion: Tensor, images: Images, classes: Sequence[str], path: Path) -> None:
    """Write small pictures of test images of the classes that are confused most often, as JSON:
    lists of JPEG in base 64, by the class's name as confusions.csv has it.

    Args:
        confusion: images of class i called j.
        images: those that were evaluated.
        classes: class names.
        path: the file.
    """
    wrong = confusion.clone().fill_diagonal_(0).flatten()
    most = [n for n in wrong.topk(min(CONFUSIONS, len(wrong))).indices.tolist() if wrong[n]]
    chosen = sorted({label for pair in most for label in divmod(pair, len(classes))})
    places: dict[int, list[int]] = {label: [] for label in chosen}
    for index, label in enumerate(images.labels):
        if len(places.get(label, images.labels)) < EXAMPLES:
            places[label].append(index)
    found: dict[str, list[str]] = {}
    for label, indices in places.items():
        name = classes[label].encode("utf-8", "backslashreplace").decode()
        found[name] = []
        for index in indices:
            with suppress(DataError):  # it has been damaged since it was evaluated
                found[name].append(encoded_thumbnail(images.source[index], SIDE))
    replace_text(path, json.dumps(found) + "\n")


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        # A class name in a script that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        replace_file(path, lambda partial: figure.savefig(partial, format=path.suffix[1:], dpi=120))
