"""WebDataset shards: what is read by the index, and every message about them."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest
import torch

from covpool.data import DataConfig, DataError, open_images
from covpool.data.shards import _split_shards
from miniatures import Pictures, write_shards

PICTURES = Pictures(classes=3, train=4, test=2, size=32)


@pytest.fixture
def root(tmp_path):
    return write_shards(tmp_path, PICTURES)


def opened(root: Path, **options):
    return open_images(DataConfig(name="wds/letters", root=str(root), image_size=16, **options))


def stored(images) -> dict[bytes, int]:
    return {images.source.open(number).read(): label for number, label in enumerate(images.labels)}


def test_each_image_has_the_class_and_split_that_it_was_written_with(root, tmp_path):
    splits = opened(root)
    assert (splits.name, splits.classes) == ("letters", ("0", "1", "2"))
    for split, images in (("train", splits.train), ("test", splits.test)):
        paths = [
            (PICTURES.save(split, label, number, tmp_path / "one.jpg").read_bytes(), label)
            for split, label, number in PICTURES.each(split)
        ]
        assert stored(images) == dict(paths)
    copy = pickle.loads(pickle.dumps(splits.train))  # as for loaders' processes
    assert torch.equal(copy[3, 5][0], splits.train[3, 5][0])


# webdataset leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_order_is_that_of_webdataset(root):
    """By the library that reads shards as a stream."""
    webdataset = pytest.importorskip("webdataset")
    paths = sorted(str(path) for path in root.glob("*train*.tar"))
    stream = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)
    expected = [(sample["jpg"], int(sample["cls"]), sample["__key__"]) for sample in stream]
    train = opened(root).train
    found = [
        (train.source.open(number).read(), label, train.source.places[number][3])
        for number, label in enumerate(train.labels)
    ]
    assert found == expected


def test_shards_are_in_the_order_of_their_paths_parts(tmp_path):
    names = ["train/0.tar", "train-more/0.tar"]  # as texts they are in the other order
    for name in [*names, "test/0.tar"]:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert _split_shards(tmp_path)["train"] == [tmp_path / name for name in names]


def test_a_shard_outside_the_folder_is_told_with_one_remedy(root):
    (root / "_info.json").write_text('{"splits": {"train": {"filenames": ["../a.tar"]}}}')
    with pytest.raises(
        DataError, match=r"_info\.json: '\.\./a\.tar' is named as a file in .*published$"
    ):
        opened(root)


def test_information_and_class_names(root):
    (root / "classes.txt").write_text("ay\nbee\ncee\n")
    names = {
        split: sorted(path.name for path in root.glob(f"*{split}*.tar"))
        for split in ("train", "validation")
    }
    splits = {
        "train": {"filenames": names["train"][:1]},
        "validation": {"filenames": names["validation"]},
    }
    (root / "_info.json").write_text(json.dumps({"splits": splits}))
    made = opened(root)
    assert made.classes == ("ay", "bee", "cee")
    assert (len(made.train), len(made.test)) == (6, 6)


def test_damaged_images_are_named_by_shard_and_key(root):
    path = root / "typefaces-train-0001.tar"
    with tarfile.open(path) as shard:
        member = shard.getmember("train/000003.jpg")
    with path.open("r+b") as file:
        file.seek(member.offset_data)
        file.write(b"words")
    with pytest.raises(DataError, match=r"cannot read image .*0001\.tar:train/000003: not an"):
        opened(root)
    assert len(opened(root, skip_damaged=True).train) == 11


def rewrite(root: Path, keep) -> None:
    path = root / "typefaces-train-0000.tar"
    with tarfile.open(path) as shard:
        members = [(member, shard.extractfile(member).read()) for member in shard]
    with tarfile.open(path, "w") as shard:
        for member, content in members:
            if keep(member.name):
                shard.addfile(member, io.BytesIO(content))


DAMAGE = {
    "torn": (
        lambda root: (root / "typefaces-train-0000.tar").write_bytes(
            (root / "typefaces-train-0000.tar").read_bytes()[:3000]
        ),
        "typefaces-train-0000.tar: unexpected end of data; restore it",
    ),
    "no tar": (
        lambda root: (root / "typefaces-train-0000.tar").write_bytes(b"words" * 200),
        "cannot read shard {root}/typefaces-train-0000.tar: ",
    ),
    "no class": (
        lambda root: rewrite(root, lambda name: name != "train/000002.cls"),
        "0000.tar has no class for train/000002 (train/000002.cls); write it anew",
    ),
    "no test": (
        lambda root: (root / "typefaces-validation-0000.tar").unlink(),
        "{root} has shards (.tar) of train; train and one of test, val, valid, validation are due",
    ),
    "few names": (
        lambda root: (root / "classes.txt").write_text("ay\nbee\n"),
        "classes.txt has 2 lines, and the shards hold an image of class 2, counted from 0",
    ),
    "bad information": (
        lambda root: (root / "_info.json").write_text("{}"),
        "cannot read {root}/_info.json: KeyError 'splits'; it must hold",
    ),
    "missing shard": (
        lambda root: (root / "_info.json").write_text(
            '{"splits": {"train": {"filenames": ["a.tar"]}, "test": {"filenames": ["b.tar"]}}}'
        ),
        "cannot read shard {root}/a.tar: No such file or directory",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_missing_or_damaged_is_named(root, case):
    damage, message = DAMAGE[case]
    damage(root)
    with pytest.raises(DataError) as caught:
        opened(root)
    assert message.format(root=root) in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "message"), [(None, "needs data.root: the folder"), ("nowhere", "is no folder")]
)
def test_without_a_folder(folder, message):
    with pytest.raises(DataError, match=message):
        open_images(DataConfig(name="wds/letters", root=folder))
