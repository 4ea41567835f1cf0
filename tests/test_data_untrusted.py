"""Images that others made: what a file may be and how much it may claim, wherever it is read."""

import io
import json
import os
import subprocess
import tarfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile

from covpool.cli import main
from covpool.data import DataConfig, DataError, Preprocessing, load_image, open_images
from covpool.data.archives import KEYS
from covpool.data.folders import IMAGE_ENDINGS
from covpool.data.inspection import inspect_images
from covpool.data.layouts import read_layout
from covpool.data.reading import FORMATS, LARGEST_RATIO, read_image
from miniatures import Pictures, write_miniature, write_shards

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
PICTURES = Pictures(classes=3, train=4, test=2, size=32)


@pytest.fixture
def folder(tmp_path):
    """Class folders of JPEG files; the first training image of the first class is `victim`."""
    return write_miniature("folder", tmp_path / "data", size=32)


def victim(folder: Path) -> Path:
    return folder / "train" / "typeface 0" / "0.jpg"


def encoded(name: str, picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, name)
    return content.getvalue()


STRANGE = {
    "EPS": POSTSCRIPT,
    "TGA": encoded("TGA", Image.new("RGB", (8, 8))),
    "PCX": encoded("PCX", Image.new("RGB", (8, 8))),
    "ICO": encoded("ICO", Image.new("RGB", (16, 16))),
    "JPEG2000": encoded("JPEG2000", Image.new("RGB", (8, 8))),
    "SGI": encoded("SGI", Image.new("RGB", (8, 8))),
}


@pytest.fixture
def no_programs(monkeypatch):
    """A test fails where an image starts a program, as Pillow does for PostScript."""

    def refuse(*arguments, **options):
        pytest.fail(f"a program was started: {arguments}")

    for name in ("call", "check_call", "run", "Popen"):
        monkeypatch.setattr(subprocess, name, refuse)
    Image.init()
    monkeypatch.setattr(EpsImagePlugin, "has_ghostscript", lambda: True)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")


@pytest.mark.parametrize("name", STRANGE)
def test_the_listed_formats_alone_are_opened(folder, tmp_path, name, no_programs):
    victim(folder).write_bytes(STRANGE[name])
    config = DataConfig(root=str(folder), image_size=16)
    shards = write_shards(tmp_path, PICTURES)
    strange_shard(shards, STRANGE[name])
    for call in (
        lambda: read_image(victim(folder), 3),
        lambda: open_images(config),
        lambda: open_images(DataConfig(root=str(folder), image_size=16, check="headers")),
        lambda: open_images(DataConfig(name="wds/x", root=str(shards), image_size=16)),
    ):
        with pytest.raises(DataError, match="not an image, or of another format than JPEG, PNG"):
            call()
    (unreadable,) = inspect_images(*read_layout(config)).unreadable
    assert "not an image, or of another format than" in str(unreadable.error)


def strange_shard(root: Path, content: bytes, label: bytes = b"0") -> None:
    """A shard of training images with one more: these bytes."""
    with tarfile.open(root / "more-train-0009.tar", "w") as shard:
        for ending, inside in (("cls", label), ("jpg", content)):
            member = tarfile.TarInfo(f"train/strange.{ending}")
            member.size = len(inside)
            shard.addfile(member, io.BytesIO(inside))


@pytest.mark.parametrize("name", FORMATS)
def test_each_listed_format_is_read(tmp_path, name):
    for ending in FORMATS[name]:
        path = tmp_path / f"a{ending}"
        mode = "1" if ending == ".pbm" else "L"
        Image.new(mode, (8, 6), 1).save(path, name)
        assert read_image(path, 1).shape == (1, 6, 8)
    assert set(FORMATS[name]) <= set(IMAGE_ENDINGS)


def test_docs_name_formats_and_limits():
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    for name in (*FORMATS, *IMAGE_ENDINGS, f"{LARGEST_RATIO} times"):
        assert name in text


def test_a_camera_may_put_a_second_picture_into_a_jpeg_file(tmp_path):
    """Pillow calls such a file MPO, which is no format of the list."""
    pictures = [Image.new("L", (8, 6), grey) for grey in (200, 10)]
    pictures[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=pictures[1:])
    assert read_image(tmp_path / "a.jpg", 1).unique().tolist() == [200]


PIPES = {
    "a pipe": (os.mkfifo, "a pipe"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "a device"),
}


@pytest.mark.parametrize("name", PIPES)
def test_regular_files_alone_are_read(folder, tmp_path, name):
    make, words = PIPES[name]
    path = victim(folder)
    path.unlink()
    make(path)
    for check in ("full", "headers"):
        with pytest.raises(DataError, match=f"{path}: {words}, not a file"):
            open_images(DataConfig(root=str(folder), image_size=16, check=check))
    splits = open_images(DataConfig(root=str(folder), image_size=16, check="none"))
    with pytest.raises(DataError, match=f"{words}, not a file"):
        splits.train[splits.train.source.paths.index(str(path))]
    (unreadable,) = inspect_images(*read_layout(DataConfig(root=str(folder)))).unreadable
    assert f"{words}, not a file" in str(unreadable.error)
    preparation = Preprocessing(channels=1, image_size=8, resize=8, mean=(0.5,), std=(0.25,))
    with pytest.raises(DataError, match=f"{words}, not a file"):
        load_image(path, preparation)


ANNOTATIONS = [
    *(("birds", f"{name}.txt") for name in ("classes", "images", "train_test_split")),
    ("dogs", "train_list.mat"),
    ("imagenet/kaggle", "LOC_val_solution.csv"),
]


@pytest.mark.parametrize(("layout", "name"), ANNOTATIONS)
def test_annotations_are_regular_files(tmp_path, layout, name):
    root = write_miniature(layout, tmp_path / "data", size=32)
    (root / name).unlink()
    (root / name).symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"a device, not a file|neither|lacks"):
        read_layout(DataConfig(name=layout.split("/")[0], root=str(root)))


def test_shards_are_regular_files(tmp_path):
    root = write_shards(tmp_path, PICTURES)
    os.mkfifo(root / "more-train-0009.tar")
    with pytest.raises(DataError, match=r"0009\.tar: a pipe, not a file"):
        open_images(DataConfig(name="wds/x", root=str(root)))


SHAPES = {"thin": (1, 3_000_000), "flat": (LARGEST_RATIO * 3 + 1, 3), "vast": (20_000, 20_000)}


def header_of_png(width: int, height: int) -> bytes:
    """The file of a blank picture, without drawing it whole: the rows are compressed as zeros."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return len(content).to_bytes(4) + checked + zlib.crc32(checked).to_bytes(4)

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = width.to_bytes(4) + height.to_bytes(4) + bytes([1, 0, 0, 0, 0])
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("name", SHAPES)
def test_aspect_ratio_and_size_are_limited(folder, name, monkeypatch):
    width, height = SHAPES[name]
    victim(folder).write_bytes(header_of_png(width, height))
    # The limit must hold before anything is decoded, and where a user has lifted Pillow's own.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    load = ImageFile.ImageFile.load

    def guarded(self):
        assert self.size != (width, height), "it was decoded"
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", guarded)
    words = f"{width}×{height} pixels"
    for check in ("full", "headers"):
        with pytest.raises(DataError, match=words):
            open_images(DataConfig(root=str(folder), image_size=16, check=check))
    with pytest.raises(DataError, match=words):
        read_image(victim(folder), 3)
    found = inspect_images(*read_layout(DataConfig(root=str(folder)))).unreadable
    assert any(words in str(one.error) for one in found)


def test_the_longest_picture_that_is_taken_needs_little_memory(tmp_path):
    path = tmp_path / "long.png"
    path.write_bytes(header_of_png(LARGEST_RATIO * 20, 20))
    preparation = Preprocessing(channels=1, image_size=448, resize=512, mean=(0.5,), std=(0.25,))
    assert load_image(path, preparation).shape == (1, 448, 448)


def test_an_image_file_may_not_be_endless(folder):
    """A sparse file takes no room on the disk."""
    content = victim(folder).read_bytes()
    with victim(folder).open("wb") as file:
        file.write(content)
        file.truncate(2**41)
    with pytest.raises(DataError, match=r"0\.jpg: it takes 2199023255552 bytes, more than"):
        open_images(DataConfig(root=str(folder), image_size=16))
    (unreadable,) = inspect_images(*read_layout(DataConfig(root=str(folder)))).unreadable
    assert "more than" in str(unreadable.error)


@pytest.mark.parametrize("number", [b"99999999", b"15"])
def test_class_numbers_of_shards_are_without_gaps(tmp_path, number):
    root = write_shards(tmp_path, PICTURES)
    strange_shard(root, victim_of_shard(), number)
    message = rf"train/strange is of class {number.decode()}, and there are 13 training images"
    with pytest.raises(DataError, match=message):
        open_images(DataConfig(name="wds/x", root=str(root)))


def victim_of_shard() -> bytes:
    return encoded("JPEG", PICTURES.picture("train", 0, 0))


def test_a_class_number_is_not_read_without_end(tmp_path):
    root = write_shards(tmp_path, PICTURES)
    strange_shard(root, victim_of_shard(), b"0" * 10_000)
    with pytest.raises(DataError, match=r"train/strange\.cls is '0{20}', where a class"):
        open_images(DataConfig(name="wds/x", root=str(root)))


@pytest.mark.parametrize("size", [2**40, 2**85], ids=["a terabyte", "beyond any file"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_what_a_shard_claims(tmp_path, kind, size):
    root = write_shards(tmp_path, PICTURES)
    member = tarfile.TarInfo("train/strange.jpg")
    member.type, member.size = kind, size
    header = member.tobuf(tarfile.GNU_FORMAT)
    (root / "more-train-0009.tar").write_bytes(header + bytes(10_240))
    with pytest.raises(DataError, match=r"cannot read shard .*0009\.tar: "):
        open_images(DataConfig(name="wds/x", root=str(root)))


@pytest.mark.parametrize("name", ["../outside-train.tar", "{absolute}", "a/../../outside.tar"])
def test_information_names_shards_inside_its_root(tmp_path, name):
    (tmp_path / "inside").mkdir()
    root = write_shards(tmp_path / "inside", PICTURES)
    inside = sorted(path.name for path in root.glob("*validation*.tar"))
    name = name.format(absolute=tmp_path / "outside-train.tar")
    splits = {"train": {"filenames": [name]}, "validation": {"filenames": inside}}
    (root / "_info.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(DataError, match=r"_info\.json: .*outside.*, out of which"):
        open_images(DataConfig(name="wds/x", root=str(root)))


def test_annotations_name_images_inside_their_folder(tmp_path):
    root = write_miniature("birds", tmp_path / "data", size=32)
    lines = (root / "images.txt").read_text().splitlines()
    lines[0] = "1 ../../../secret.jpg"
    (root / "images.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"secret\.jpg.* out of which it leads"):
        read_layout(DataConfig(root=str(root)))


def arrays_of(count: int = 4) -> dict[str, np.ndarray]:
    return {
        "train_images": np.zeros((count, 10, 12), np.uint8),
        "train_labels": np.arange(count) % 2,
        "test_images": np.zeros((count, 10, 12), np.uint8),
        "test_labels": np.arange(count) % 2,
        "classes": np.array(["cat", "dog"]),
    }


def write_archive(path: Path, **contents: bytes) -> Path:
    """An archive of `arrays_of`, with other bytes in place of some of its files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays_of().items():
            plain = io.BytesIO()
            np.save(plain, array)
            name = key if contents.get(key, b"").startswith(b"plain") else f"{key}.npy"
            archive.writestr(name, contents.get(key, plain.getvalue()))
    return path


def claim(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    header = io.BytesIO()
    described = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue() + bytes(500)


CLAIMS = {
    "a terabyte": {"train_images": claim((2**40, 1, 1))},
    "beyond any number": {"train_images": claim((2**62, 2**62, 4))},
    "a long label": {"train_labels": claim((4,), "<U999999999")},
    "a name of classes": {"classes": claim((2,), "<U99999999")},
    "no array": {"classes": b"plain text"},
    "words": {"train_images": b"\x93NUMPY\x01\x00\x10\x00{'descr': 3, 'a':"},
}


@pytest.mark.parametrize("name", CLAIMS)
def test_what_arrays_claim(tmp_path, name):
    path = write_archive(tmp_path / "a.npz", **CLAIMS[name])
    with pytest.raises(DataError, match=r"cannot read NumPy archive .*a\.npz: ") as caught:
        open_images(DataConfig(root=str(path)))
    assert "\n" not in str(caught.value)


def test_an_archive_may_not_grow_without_end(tmp_path):
    """300 KB that would become 320 MB."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays_of().items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                if key == "train_images":
                    file.write(claim((320, 2**10, 2**10))[:-500])
                    for _ in range(20):
                        file.write(bytes(2**24))
                else:
                    np.save(file, array)
    with pytest.raises(DataError, match=r"would take 0\.3 GiB, .* times the file's size"):
        open_images(DataConfig(root=str(path)))


def test_damaged_archives_never_end_in_a_traceback(tmp_path):
    """Each byte of the directory and of the headers, changed in several ways."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **arrays_of())
    content = path.read_bytes()
    for position in range(0, len(content), 3):
        for change in (1, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[position] ^= change
            path.write_bytes(damaged)
            with suppress(DataError):
                open_images(DataConfig(root=str(path)))


def test_an_encrypted_archive(tmp_path):
    path = write_archive(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        open_images(DataConfig(root=str(path)))


def test_pictures_of_an_archive_have_limits_too(tmp_path):
    thin = np.zeros((4, 1, LARGEST_RATIO + 1), np.uint8)
    arrays = arrays_of() | {"train_images": thin, "test_images": thin}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=rf"{LARGEST_RATIO + 1}×1 pixels"):
        open_images(DataConfig(root=str(tmp_path / "a.npz")))
    assert set(arrays) == set(KEYS)


def test_data_check_writes_over_nothing(folder, tmp_path, capsys):
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("mine")
    for option in ("--json", "--contact-sheet"):
        assert main(["data", "check", str(folder), option, str(thesis)]) == 2
        message = capsys.readouterr().err
        assert f"{option} {thesis} exists" in message
        assert message.count("\n") == 1
    assert thesis.read_text() == "mine"
