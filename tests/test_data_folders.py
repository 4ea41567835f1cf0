"""Folders of class folders: layouts, the division into splits, and every message about them."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from covpool.data import DataConfig, DataError, open_images
from covpool.data.dataset import Files

SMALL = {"image_size": 8}


def add(root: Path, *names: str, colour: str = "red") -> Path:
    """Small pictures, one for each path below root."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), colour).save(path)
    return root


def split_tree(root: Path, test: str = "test") -> Path:
    for split, count in (("train", 3), (test, 2)):
        for name in ("cat", "dog"):
            add(root, *(f"{split}/{name}/{number}.png" for number in range(count)))
    return root


def flat_tree(root: Path, images: int = 10) -> Path:
    for name in ("cat", "dog", "owl"):
        add(root, *(f"{name}/{number}.png" for number in range(images)))
    return root


def paths(images) -> set[str]:
    assert isinstance(images.source, Files)
    return {Path(path).parent.name + "/" + Path(path).name for path in images.source.paths}


def open_folder(root: Path, **options):
    return open_images(DataConfig(root=str(root), **SMALL | options))


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_folders_of_both_splits(tmp_path, test):
    splits = open_folder(split_tree(tmp_path / "pets", test))
    assert (splits.name, splits.classes, splits.channels) == ("pets", ("cat", "dog"), 3)
    assert (splits.train.labels, splits.test.labels) == ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1])
    assert (splits.notes, splits.skipped) == ((), ())
    image, label = splits.train[0, 4]
    assert (image.shape, label) == ((3, 8, 8), 1)


def test_test_images_without_classes_give_way_to_val(tmp_path):
    split_tree(tmp_path, "val")
    add(tmp_path, "test/0.png", "test/1.png")
    assert len(open_folder(tmp_path).test) == 4


def test_division_is_stratified_stable_and_said(tmp_path):
    splits = open_folder(flat_tree(tmp_path / "pets"))
    assert [splits.test.labels.count(label) for label in range(3)] == [2, 2, 2]
    assert not paths(splits.train) & paths(splits.test)
    assert len(paths(splits.train) | paths(splits.test)) == 30
    assert "held out 6 of 30 images" in splits.notes[0]
    elsewhere = shutil.copytree(tmp_path / "pets", tmp_path / "copy")
    assert paths(open_folder(elsewhere).test) == paths(splits.test)
    assert paths(open_folder(elsewhere, split_seed=1).test) != paths(splits.test)
    assert len(open_folder(elsewhere, test_fraction=0.5).test) == 15


@pytest.mark.parametrize("change", ["added", "removed"])
def test_division_moves_few_files_when_one_comes_or_goes(tmp_path, change):
    before = paths(open_folder(flat_tree(tmp_path, 20)).test)
    if change == "added":
        add(tmp_path, "cat/00.png")
    else:
        (tmp_path / "cat/7.png").unlink()
    after = paths(open_folder(tmp_path).test)
    moved = (before ^ after) - {"cat/00.png", "cat/7.png"}
    assert len(moved) <= 2
    assert all(name.startswith("cat/") for name in moved)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_division_leaves_no_class_empty(tmp_path, fraction):
    splits = open_folder(flat_tree(tmp_path, 2), test_fraction=fraction)
    assert splits.train.labels == splits.test.labels == [0, 1, 2]


def test_a_class_may_be_called_train(tmp_path):
    add(tmp_path, *(f"{name}/{number}.png" for name in ("train", "car") for number in "123"))
    assert open_folder(tmp_path).classes == ("car", "train")


def test_other_files_are_counted_and_hidden_ones_left_alone(tmp_path):
    split_tree(tmp_path)
    for name in ("train/notes.txt", "train/cat/Thumbs.db", "train/cat/.hidden.png"):
        (tmp_path / name).write_text("no image")
    add(tmp_path, "train/cat/.ipynb_checkpoints/0.png", "train/cat/more/3.JPG")
    splits = open_folder(tmp_path)
    assert splits.train.labels == [0, 0, 0, 0, 1, 1, 1]
    assert splits.notes == ("passed over 3 file(s) that are no images by their ending",)


def test_links_to_folders_are_followed_once(tmp_path):
    """What is there counts before links to it; loops end; no link makes other classes' images of
    this one."""
    elsewhere = add(tmp_path / "elsewhere", *(f"{name}/{name}.png" for name in "abc"))
    root = flat_tree(tmp_path / "pets", 2)
    cat = root / "cat"
    (cat / "a link").symlink_to(elsewhere / "a")
    (elsewhere / "a" / "on").symlink_to(elsewhere / "b", target_is_directory=True)
    (elsewhere / "b" / "back").symlink_to(elsewhere / "a")
    (root / "fox").symlink_to(elsewhere / "c")
    add(elsewhere, "c/1.png")
    (root / "dog" / ".hidden").symlink_to(elsewhere / "c")
    assert "passed over 1 link(s) to folders that were read already" in open_folder(root).notes
    for number, target in enumerate((cat, root, tmp_path, "missing")):
        (cat / f"link {number}").symlink_to(target)
    (cat / "before").symlink_to(cat / "inner")
    add(cat, "inner/3.png")
    splits = open_folder(root)
    assert splits.classes == ("cat", "dog", "fox", "owl")
    assert {*paths(splits.train), *paths(splits.test)} == {
        *(f"{name}/{number}.png" for name in ("cat", "dog", "owl") for number in "01"),
        *("a link/a.png", "on/b.png", "inner/3.png", "fox/c.png", "fox/1.png"),
    }
    assert "passed over 5 link(s) to folders that were read already" in splits.notes
    assert "passed over 1 file(s) that are no images by their ending" in splits.notes


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    root = flat_tree(tmp_path, 2)
    (root / "cat" / "closed").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot read folder .*cat/closed: Permission denied"):
        open_folder(root)


@pytest.mark.parametrize(("check", "channels"), [("full", 1), ("headers", 1), ("none", 3)])
def test_grey_where_all_images_are(tmp_path, check, channels):
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        add(tmp_path, name)
        Image.open(tmp_path / name).convert("L").save(tmp_path / name)
    splits = open_folder(tmp_path, check=check)
    assert splits.channels == channels
    assert splits.test[0][0].shape == (channels, 8, 8)
    assert open_folder(tmp_path, channels=3).channels == 3
    add(tmp_path, "b/2.png")
    assert open_folder(tmp_path, check=check).channels == 3


def test_progress_reaches_the_end(tmp_path):
    seen = []
    config = DataConfig(root=str(split_tree(tmp_path)), **SMALL)
    open_images(config, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 10) for done in range(1, 11)]


def truncate(path: Path) -> None:
    Image.effect_noise((64, 64), 60).save(path)
    path.write_bytes(path.read_bytes()[:1500])


def damage(root: Path) -> Path:
    split_tree(root)
    truncate(root / "train/cat/1.png")
    (root / "test/dog/0.png").write_text("words")
    return root


def test_damaged_files_are_all_named(tmp_path):
    with pytest.raises(DataError) as caught:
        open_folder(damage(tmp_path))
    message = str(caught.value)
    assert message.startswith("cannot read 2 of 10 images: ")
    assert f"{tmp_path}/train/cat/1.png (" in message
    assert f"{tmp_path}/test/dog/0.png (not an image" in message
    assert message.endswith("or leave them out by --data.skip_damaged true")
    (tmp_path / "test/dog/0.png").unlink()
    with pytest.raises(DataError, match=r"cannot read image .*train/cat/1\.png: .*truncated"):
        open_folder(tmp_path)


def test_damaged_files_are_left_out_aloud(tmp_path, caplog):
    splits = open_folder(damage(tmp_path), skip_damaged=True)
    assert (splits.train.labels, splits.test.labels) == ([0, 0, 1, 1, 1], [0, 0, 1])
    for said in (splits.skipped, splits.notes, caplog.messages):
        assert any("train/cat/1.png" in line for line in said)
        assert any("test/dog/0.png" in line for line in said)
    assert all(splits.test[number][0].isfinite().all() for number in range(3))


def test_headers_find_other_files_but_not_truncated_ones(tmp_path):
    damage(tmp_path)
    with pytest.raises(DataError, match=r"test/dog/0\.png"):
        open_folder(tmp_path, check="headers")
    (tmp_path / "test/dog/0.png").unlink()
    splits = open_folder(tmp_path, check="headers")
    with pytest.raises(DataError, match=r"cannot read image .*train/cat/1\.png"):
        splits.train[0, 1]


def test_skipping_decodes_however_many_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr("covpool.data.listing.FULL_CHECK_FILES", 3)
    damage(tmp_path)
    assert len(open_folder(tmp_path, skip_damaged=True).skipped) == 2
    (tmp_path / "test/dog/0.png").unlink()
    assert len(open_folder(tmp_path).train) == 6


def test_long_lists_of_names_are_cut(tmp_path):
    flat_tree(tmp_path, 6)
    for path in tmp_path.glob("*/[0-4].png"):
        path.write_text("words")
    with pytest.raises(DataError, match=r"cannot read 15 of 18 images: .* and 5 more; repair"):
        open_folder(tmp_path)


def remove(*names: str):
    def build(root: Path) -> Path:
        split_tree(root)
        for name in names:
            shutil.rmtree(root / name)
        return root

    return build


def empty_class(*names: str):
    def build(root: Path) -> Path:
        split_tree(root)
        for name in names:
            (root / name).mkdir()
            (root / name / "notes.txt").write_text("none yet")
        return root

    return build


def made_of(*names: str):
    return lambda root: add(root, *names)


def rename(old: str, new: str):
    def build(root: Path) -> Path:
        split_tree(root)
        (root / old).rename(root / new)
        return root

    return build


def words_only(root: Path) -> Path:
    flat_tree(root, 2)
    for path in root.glob("owl/*"):
        path.write_text("words")
    return root


def mkdir(root: Path) -> Path:
    root.mkdir()
    return root


BAD_FOLDERS = {
    "empty": (mkdir, {}, ("{root} is empty; it must hold one folder of images for each class",)),
    "loose": (made_of("0.png", "1.png"), {}, ("{root} holds 2 images but no folders",)),
    "empty class": (
        empty_class("train/ant", "train/bee"),
        {},
        ("class folders {root}/train/ant, {root}/train/bee hold no images", "add some or remove"),
    ),
    "one class": (made_of("cat/0.png"), {}, ("{root} holds one class, 'cat'; at least two",)),
    "one level up": (
        made_of("pets/cat/0.png", "pets/dog/0.png"),
        {},
        ("is data.root {root}/pets, which holds 2 folders?",),
    ),
    "no test": (
        remove("test"),
        {},
        ("{root} has train/ but none of test, val", "give {root}/train as data.root"),
    ),
    "no train": (remove("train"), {}, ("{root} has test/ but no train/; add it",)),
    "class in train alone": (
        remove("test/dog"),
        {},
        ("training and test classes differ: 'dog' only in {root}/train; make them alike",),
    ),
    "class misspelt": (
        rename("test/dog", "test/dogs"),
        {},
        (
            "training and test classes differ: 'dog' only in {root}/train; 'dogs' only in "
            "{root}/test; make them alike (is 'dogs' 'dog'?)",
        ),
    ),
    "one image": (
        made_of("cat/0.png", "cat/1.png", "dog/0.png"),
        {},
        ("class 'dog' has one image ({root}/dog/0.png); two are needed",),
    ),
    "class all damaged": (
        words_only,
        {"skip_damaged": True},
        ("every image of class 'owl' is damaged, such as {root}/owl/0.png",),
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folders(tmp_path, case):
    build, options, fragments = BAD_FOLDERS[case]
    root = build(tmp_path / "images")
    with pytest.raises(DataError) as caught:
        open_folder(root, **options)
    for fragment in fragments:
        assert fragment.format(root=root) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_layouts_are_spoken_of_where_no_folder_holds_images(tmp_path):
    """An empty class among others is not a sign of another layout."""
    with pytest.raises(DataError) as one_empty:
        open_folder(empty_class("train/ant")(tmp_path / "one"))
    assert "published layout" not in str(one_empty.value)
    for name in ("ant", "bee"):
        (tmp_path / "all" / name).mkdir(parents=True)
    with pytest.raises(DataError, match="no published layout was recognised"):
        open_folder(tmp_path / "all")


def test_missing_root(tmp_path):
    add(tmp_path, "flowers/rose/0.png")
    with pytest.raises(DataError, match=r"flower' does not exist; did you mean '.*flowers'\?"):
        open_folder(tmp_path / "flower")
    with pytest.raises(DataError, match="does not exist; give a folder of class folders"):
        open_folder(tmp_path / "nowhere" / "at all")


def test_root_is_another_file(tmp_path):
    add(tmp_path, "a.png")
    with pytest.raises(DataError, match=r"a\.png' is a file; give a folder of class folders"):
        open_folder(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 4}, "data.image_size must be at least 8, not 4"),
        ({"batch_size": 0}, "data.batch_size must be at least 1, not 0"),
        ({"workers": -1}, "data.workers must be at least 0, not -1"),
        ({"test_fraction": 1.0}, r"data.test_fraction must lie in \(0, 1\), not 1.0"),
        ({"channels": 2}, "data.channels must be one of auto, 1, 3, not 2"),
        (
            {"augment": "turn"},
            "data.augment must be one of auto, crop, flip, shift, timm, none, not 'turn'",
        ),
        ({"check": "yes"}, "data.check must be one of auto, full, headers, none, not 'yes'"),
        ({"check": "none", "skip_damaged": True}, "data.check must be full or auto with data.skip"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)
