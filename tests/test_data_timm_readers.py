"""Data sets through timm's readers."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch

from covpool.data import DataConfig, DataError, open_images
from covpool.data.timm_readers import REFUSED
from miniatures import write_miniature

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of `datasets` are not ours to mend


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def opened(path: Path, cache: Path, **options):
    config = DataConfig(name=f"hfds/{path}", root=str(cache), image_size=16, **options)
    return open_images(config)


def contents(images) -> set[tuple[bytes, int]]:
    """Pixels and label of every image."""
    pixels = (images.source[number].numpy().tobytes() for number in range(len(images)))
    return set(zip(pixels, images.labels, strict=True))


def test_random_access_reader_reads_what_the_folder_holds(tmp_path):
    root = write_miniature("folder", tmp_path / "data")
    shutil.move(root / "test", root / "validation")
    splits = opened(root, tmp_path / "cache")
    own = open_images(DataConfig(root=str(root), image_size=16))
    assert (splits.name, splits.classes) == ("data", own.classes)
    for found, expected in ((splits.train, own.train), (splits.test, own.test)):
        assert len(found) == len(expected)
        assert contents(found) == contents(expected)
    copy = pickle.loads(pickle.dumps(splits.train))  # as for loaders' processes
    assert torch.equal(copy[3, 5][0], splits.train[3, 5][0])


def test_damaged_images_are_named(tmp_path):
    root = write_miniature("folder", tmp_path / "data")
    (root / "train" / "typeface 1" / "2.jpg").write_bytes(b"words")
    with pytest.raises(DataError, match=r"cannot read image hfds.*data train\[\d+\]: not an"):
        opened(root, tmp_path / "cache")
    assert len(opened(root, tmp_path / "cache", skip_damaged=True).train) == 11


def test_without_test_images(tmp_path):
    root = write_miniature("folder", tmp_path / "data")
    shutil.rmtree(root / "test")
    with pytest.raises(DataError, match="has none of the splits test, validation, valid, val with"):
        opened(root, tmp_path / "cache")


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match=r"nothing', split 'train': .*"):
        opened(tmp_path / "nothing", tmp_path / "cache")


@pytest.mark.parametrize("prefix", REFUSED)
def test_streams_are_refused(prefix):
    with pytest.raises(DataError) as caught:
        open_images(DataConfig(name=f"{prefix}/cars"))
    assert f"{prefix}/" in str(caught.value)
    assert str(caught.value).endswith(REFUSED[prefix])
