"""The digest by which a run knows its images again."""

import shutil

import numpy as np
import pytest

from covpool.data import DataConfig, open_images
from covpool.data.archives import embedded_typefaces
from miniatures import Pictures, write_miniature, write_shards

PICTURES = Pictures(classes=3, train=4, test=2, size=32)


def write_archive(root, change):
    with np.load(embedded_typefaces()) as archive:
        arrays = {key: archive[key] for key in archive.files}
    if change:
        arrays["train_images"][7, 3, 3] ^= 1
    root.mkdir(parents=True)
    np.savez(root / "letters.npz", **arrays)
    return {"root": str(root / "letters.npz")}


def write_folder(root, change):
    write_miniature("folder", root)
    if change:
        image = root / "train" / "typeface 1" / "2.jpg"
        image.rename(image.with_name("20.jpg"))
    return {"root": str(root)}


def write_wds(root, change):
    root.mkdir(parents=True)
    write_shards(root, Pictures(3, 4, 2, size=40) if change else PICTURES)
    return {"root": str(root), "name": "wds/letters"}


def write_hfds(root, change):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    write_miniature("folder", root / "data", size=40 if change else 32)
    shutil.move(root / "data" / "test", root / "data" / "validation")
    return {"root": str(root / "cache"), "name": f"hfds/{root / 'data'}"}


@pytest.mark.filterwarnings("ignore")  # those of `datasets` are not ours to mend
@pytest.mark.parametrize("write", [write_archive, write_folder, write_wds, write_hfds])
def test_the_digest_is_of_the_images_wherever_they_lie(write, tmp_path):
    """Other images of the same number and labels have another one."""
    digests = []
    for place, change in (("here", False), ("there/deeper", False), ("changed", True)):
        options = write(tmp_path / place, change)
        train = open_images(DataConfig(image_size=16, **options)).train
        digests.append(train.digest(options["root"]))
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]
