"""The layouts in which data sets lie on disks: one table, which the options, tests and docs read.

A new one is one row and its reader.
"""

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from covpool.data import fine_grained, imagenet
from covpool.data.archives import ArchiveContents, embedded_typefaces, read_archive
from covpool.data.config import DataConfig, DataError
from covpool.data.folders import NotClassFolders, read_folder
from covpool.data.listing import Listing, Progress
from covpool.data.timm_readers import READERS, REFUSED, read_timm
from covpool.text import encodable

Contents = Listing | ArchiveContents


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout of a data set.

    Attributes:
        title: what it is called.
        read: from the folder (or file) to what it holds.
        signs: what a folder of this layout holds, all of them, where | stands between
            alternatives, * for anything and # for a digit; none: not recognised by its files.
        nested: folders below the root in which it may lie, as archives unpack.
        source: where it comes from.
    """

    title: str
    read: Callable[[Path], Contents]
    signs: tuple[str, ...] = ()
    nested: tuple[str, ...] = ()
    source: str = ""

    def locate(self, root: Path) -> Path | None:
        """The folder that has the signs: the root or one in it."""
        if not self.signs:
            return None
        for base in (root, *(root / inner for inner in self.nested)):
            if base.is_dir() and all(
                any(_holds(base, name) for name in sign.split("|")) for sign in self.signs
            ):
                return base
        return None

    def describe_signs(self) -> str:
        """The signs in words."""
        signs = " and ".join(sign.replace("|", " or ") for sign in self.signs)
        return f"{signs} (in it or in {', '.join(self.nested)})" if self.nested else signs


def _holds(folder: Path, pattern: str) -> bool:
    return next(folder.glob(pattern.replace("#", "[0-9]")), None) is not None


LAYOUTS: Mapping[str, Layout] = {
    "folder": Layout(
        title="a folder for each class, or train/ and test/ (or val/) with those in each",
        read=read_folder,
    ),
    "archive": Layout(title="a NumPy archive (.npz) of images", read=read_archive),
    "typefaces": Layout(title="the embedded typefaces", read=read_archive),
    "imagenet": Layout(
        title="ImageNet (ILSVRC2012)",
        read=imagenet.read_imagenet,
        signs=("train/n########", "val"),
        nested=(imagenet.KAGGLE,),
        source="Russakovsky et al., 2015",
    ),
    "birds": Layout(
        title="CUB-200-2011",
        read=fine_grained.read_birds,
        signs=("image_class_labels.txt|train_test_split.txt",),
        nested=("CUB_200_2011",),
        source="Wah et al., 2011",
    ),
    "dogs": Layout(
        title="Stanford Dogs",
        read=fine_grained.read_dogs,
        signs=("train_list.mat|test_list.mat|lists/train_list.mat|lists/test_list.mat",),
        source="Khosla et al., 2011",
    ),
    "cars": Layout(
        title="Stanford Cars: the devkit's, or class folders in car_data/",
        read=fine_grained.read_cars,
        signs=("devkit/cars_*.mat|cars_*.mat|car_data/car_data/train|car_data/train",),
        nested=("stanford_cars",),
        source="Krause et al., 2013",
    ),
    "aircraft": Layout(
        title="FGVC Aircraft, by variant",
        read=fine_grained.read_aircraft,
        signs=("data/variants.txt|variants.txt|data/images_variant_*.txt|images_variant_*.txt",),
        nested=("fgvc-aircraft-2013b",),
        source="Maji et al., 2013",
    ),
}
"""Layouts by the name that `data.name` takes; hfds/NAME and wds/NAME go to `read_timm`."""


def read_layout(config: DataConfig, progress: Progress | None = None) -> tuple[str, Contents]:
    """The name of the configuration's layout, and what the data set holds.

    A byte that is no UTF-8 in a class's name is an escape such as \\xe9 from here on, so that every
    file can hold the name.

    Raises:
        DataError: an unknown or ambiguous layout, a root that is not as the layout has it, or what
            its reader finds wrong.
    """
    name, contents = _read(config, progress)
    return name, replace(contents, classes=tuple(map(encodable, contents.classes)))


def _read(config: DataConfig, progress: Progress | None) -> tuple[str, Contents]:
    name = config.name
    check_name(name)
    if "/" in name:
        return name, read_timm(name, config.root, progress)
    if config.root is None or name == "typefaces":
        return _embedded(config)
    path = Path(os.path.expanduser(config.root))
    if not path.exists():
        raise DataError(f"data.root {config.root!r} does not exist; {_remedy(path)}")
    if name == "archive" or path.is_file():
        return _archive(config, path)
    if name == "auto":
        return _recognised(path)
    layout = LAYOUTS[name]
    # Without its signs the layout's own reader says best which file is missing, unless the folder
    # is clearly another's.
    base = layout.locate(path)
    others = _candidates(path) if base is None and layout.signs else []
    if others:
        raise DataError(
            f"data.root {str(path)!r} is not laid out as data.name {name} ({layout.title}): it "
            f"lacks {layout.describe_signs()}; by its files it is {', '.join(others)}: give that "
            "as data.name, or auto"
        )
    return name, layout.read(base or path)


def layout_name(config: DataConfig) -> str:
    """The name of the configuration's layout, by the signs of its root alone: folder or archive
    where there are none.

    Raises:
        DataError: an unknown layout, or a root that does not exist.
    """
    check_name(config.name)
    if config.root is None:
        return "typefaces" if config.name == "auto" else config.name
    path = Path(os.path.expanduser(config.root))
    if not path.exists():
        raise DataError(f"data.root {config.root!r} does not exist; {_remedy(path)}")
    if config.name != "auto":
        return config.name
    return "archive" if path.is_file() else next(iter(_candidates(path)), "folder")


def check_name(name: str) -> None:
    """Raise a DataError unless this is what data.name may be."""
    prefix, slash, _ = name.partition("/")
    if slash and prefix not in (*READERS, *REFUSED):
        raise DataError(
            f"unknown data.name {name!r}; before the slash stands a reader of timm: "
            f"{', '.join(READERS)}"
        )
    if not slash and name != "auto" and name not in LAYOUTS:
        near = difflib.get_close_matches(name, [*LAYOUTS, "auto"], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(
            f"unknown data.name {name!r}{hint} (known are auto, {', '.join(LAYOUTS)}, hfds/NAME, "
            "wds/NAME)"
        )


def _embedded(config: DataConfig) -> tuple[str, Contents]:
    if config.name not in ("auto", "typefaces"):
        raise DataError(f"data.name {config.name!r} needs data.root: where the images lie")
    if config.root is not None:
        raise DataError(
            f"data.name 'typefaces' is embedded in the package and has no data.root, which is "
            f"{config.root!r}; leave one of them out"
        )
    return "typefaces", read_archive(embedded_typefaces())


def _archive(config: DataConfig, path: Path) -> tuple[str, Contents]:
    if path.is_dir() or path.suffix.lower() != ".npz":
        kind = "a folder" if path.is_dir() else "a file"
        due = (
            "data.name 'archive' needs an .npz archive"
            if path.is_dir()
            else "give a folder of class folders, or an .npz archive"
        )
        raise DataError(f"data.root {config.root!r} is {kind}; {due}")
    if config.name not in ("auto", "archive"):
        raise DataError(
            f"data.root {config.root!r} is an .npz archive, and data.name {config.name!r} needs a "
            "folder; give data.name auto, or another root"
        )
    return "archive", read_archive(path)


def _candidates(root: Path) -> list[str]:
    return [name for name, layout in LAYOUTS.items() if layout.locate(root) is not None]


def _recognised(root: Path) -> tuple[str, Contents]:
    found = _candidates(root)
    if len(found) > 1:
        places = ", ".join(f"{name} in {LAYOUTS[name].locate(root)}" for name in found)
        raise DataError(
            f"data.root {str(root)!r} has the signs of several layouts: {places}; choose one by "
            "data.name"
        )
    if found:
        layout = LAYOUTS[found[0]]
        base = layout.locate(root)
        assert base is not None
        return found[0], layout.read(base)
    try:
        return "folder", read_folder(root)
    except NotClassFolders as error:
        looked = "; ".join(
            f"{name}: {layout.describe_signs()}" for name, layout in LAYOUTS.items() if layout.signs
        )
        raise DataError(
            f"{error} (no published layout was recognised either; looked for {looked})"
        ) from error


def _remedy(missing: Path) -> str:
    siblings = missing.parent.iterdir() if missing.parent.is_dir() else ()
    near = difflib.get_close_matches(missing.name, [entry.name for entry in siblings], n=1)
    if near:
        return f"did you mean {str(missing.parent / near[0])!r}?"
    return "give a folder of class folders"
