"""`covpool data check`: what it finds, and its exit status."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from covpool.cli import main
from covpool.data import DataConfig, DataError, open_images
from miniatures import MINIATURES, write_miniature


def check(root, tmp_path, *options):
    """Exit status and report."""
    file = tmp_path / "report.json"
    file.unlink(missing_ok=True)
    status = main(["data", "check", str(root), "--json", str(file), *options])
    return status, json.loads(file.read_text()) if file.exists() else None


@pytest.mark.parametrize("name", MINIATURES)
def test_counts(tmp_path, capsys, name):
    root = write_miniature(name, tmp_path / "data", size=32)
    status, report = check(root, tmp_path)
    assert (status, report["problems"], report["unreadable"]) == (0, [], [])
    assert report["layout"] == name.split("/")[0]
    assert [*report["classes"].values()] == [{"train": 4, "test": 2}] * 3
    sides = (32, 32) if name == "archive" else (32, 40)
    for axis in ("width", "height"):
        assert (report["sizes"][axis]["least"], report["sizes"][axis]["greatest"]) == sides
    out = capsys.readouterr().out
    assert f"(data.name {report['layout']}): 3 classes, 18 images" in out
    assert "nothing wrong was found" in out


def test_what_is_wrong(tmp_path, capsys):
    root = write_miniature("folder", tmp_path / "data", train=6)
    names = [root / "train" / f"typeface {number}" for number in range(3)]
    shutil.copy(names[0] / "0.jpg", root / "test" / "typeface 0" / "copy.jpg")
    shutil.copy(names[1] / "1.jpg", names[2] / "copy.jpg")
    shutil.copy(names[2] / "2.jpg", names[2] / "again.jpg")
    (names[1] / "3.jpg").write_bytes((names[1] / "3.jpg").read_bytes()[:600])
    (names[1] / "4.jpg").write_bytes(b"words")
    (names[1] / "5.heic").write_bytes(b"of an ending that is not read")
    status, report = check(root, tmp_path)
    assert status == 1
    assert report["ignored"] == 1
    assert report["problems"] == [
        "unreadable images: 2 of 27",
        "images in both splits: 1",
        "images in several classes: 1",
    ]
    assert [entry["name"] for entry in report["unreadable"]] == [
        str(names[1] / f"{number}.jpg") for number in (3, 4)
    ]
    groups = [sorted(entry["name"] for entry in group) for group in report["duplicates"]]
    assert sorted(groups) == sorted(
        [
            sorted([str(names[0] / "0.jpg"), str(root / "test/typeface 0/copy.jpg")]),
            sorted([str(names[1] / "1.jpg"), str(names[2] / "copy.jpg")]),
            sorted([str(names[2] / "2.jpg"), str(names[2] / "again.jpg")]),
        ]
    )
    out = capsys.readouterr().out
    assert f"{names[1] / '4.jpg'}: not an image" in out
    assert "several times in one class of one split: 1" in out
    assert "wrong: images in both splits: 1" in out


def test_missing_images_and_annotations(tmp_path, capsys):
    root = write_miniature("aircraft", tmp_path / "data")
    next((root / "data" / "images").iterdir()).unlink()
    status, report = check(root, tmp_path)
    assert (status, report["problems"]) == (1, ["unreadable images: 1 of 18"])
    assert report["unreadable"][0]["reason"] == "No such file or directory"
    (root / "data" / "variants.txt").unlink()
    assert check(root, tmp_path) == (1, None)
    assert "lacks variants.txt, the names of the classes" in capsys.readouterr().err


def test_every_fault_of_folders_is_told(tmp_path, capsys):
    """Empty classes, classes of one split, loops and damage, all at once."""
    root = write_miniature("folder", tmp_path / "data", classes=4)
    names = [f"typeface {number}" for number in range(4)]
    for file in (root / "train" / names[0]).iterdir():
        file.unlink()
    (root / "test" / names[1]).rename(root / "test" / "typeface one")
    (root / "train" / names[2] / "loop").symlink_to(root)
    (root / "test" / names[3] / "0.jpg").write_bytes(b"words")
    status, report = check(root, tmp_path)
    assert status == 1
    starts = [
        f"class folder {root / 'train' / names[0]} holds no images",
        f"training and test classes differ: '{names[1]}' only in {root / 'train'}",
        "unreadable images: 1 of ",
        f"classes without a training image: '{names[0]}', 'typeface one'",
        f"classes without a test image: '{names[1]}'",
    ]
    assert len(report["problems"]) == len(starts)
    for problem, start in zip(report["problems"], starts, strict=True):
        assert problem.startswith(start), problem
    assert report["links_passed_over"] == 1
    out = capsys.readouterr().out
    assert all(f"wrong: {start}" in out for start in starts)
    with pytest.raises(DataError, match="holds no images"):  # a training stops at the first
        open_images(DataConfig(root=str(root)))


def test_every_fault_of_annotations_is_told(tmp_path, capsys):
    root = write_miniature("birds", tmp_path / "birds")
    for name in ("image_class_labels", "train_test_split"):
        file = next(tmp_path.rglob(f"{name}.txt"))
        lines = file.read_text().splitlines()
        file.write_text("\n".join(["1 7", *lines[2:]]))
    status, report = check(root, tmp_path)
    assert status == 1
    [_, second, *_] = next(tmp_path.rglob("images.txt")).read_text().splitlines()
    image = f"image {second.replace(' ', ' (', 1)})"
    expected = [
        "image_class_labels.txt: image 1 has '7', where a number of ",
        f"image_class_labels.txt has no line for {image}; restore it",
        f"train_test_split.txt has no line for {image}; restore it",
        "classes without a test image: '001.",
    ]
    assert len(report["problems"]) == len(expected)
    for problem, part in zip(report["problems"], expected, strict=True):
        assert part in problem
    for name in ("classes", "train_test_split"):
        next(tmp_path.rglob(f"{name}.txt")).unlink()
    assert check(root, tmp_path) == (1, None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "lacks classes.txt, the names of the classes" in lines[0]
    assert "lacks train_test_split.txt, which images are for training" in lines[1]


def test_the_root_may_be_given_as_to_other_commands(tmp_path, capsys):
    root = write_miniature("folder", tmp_path / "data")
    file = tmp_path / "report.json"
    assert main(["data", "check", "--data.root", str(root), "--json", str(file)]) == 0
    assert json.loads(file.read_text())["images"] == 18
    assert main(["data", "check", str(root), "--data.root", str(root)]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_folder_without_splits(tmp_path):
    root = write_miniature("folder", tmp_path / "data") / "train"
    status, report = check(root, tmp_path)
    assert status == 0
    assert [*report["classes"].values()] == [{"train": 4}] * 3


def test_long_tables_are_cut(capsys):
    assert main(["data", "check"]) == 0
    out = capsys.readouterr().out
    assert "… and 4 more" in out
    assert "1920" in out


def test_contact_sheet_names_classes_with_accents(tmp_path):
    """Letters that the font lacks would all be the same box."""
    sheets = []
    for name in ("É", "Ü", "Ж"):
        root = tmp_path / f"data {ord(name)}"
        for folder in (name, "other"):
            (root / folder).mkdir(parents=True)
            for number in range(2):
                Image.new("L", (8, 8), number).save(root / folder / f"{number}.png")
        file = tmp_path / f"{ord(name)}.png"
        main(["data", "check", str(root), "--contact-sheet", str(file)])
        sheets.append(file.read_bytes())
    assert len(set(sheets)) == 3


def test_contact_sheet_shows_the_images(tmp_path):
    """A class of one colour gives a row of that colour; what cannot be read a red cross."""
    colours = {"green": (0, 128, 0), "blue": (0, 0, 255)}
    for name, colour in colours.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (90, 90), colour).save(tmp_path / "data" / name / f"{number}.png")
    (tmp_path / "data" / "blue" / "1.png").write_bytes(b"words")
    sheet = tmp_path / "sheet.png"
    status, _ = check(tmp_path / "data", tmp_path, "--contact-sheet", str(sheet))
    assert status == 1
    pixels = np.asarray(Image.open(sheet).convert("RGB")).reshape(-1, 3)
    areas = {name: int((pixels == colour).all(1).sum()) for name, colour in colours.items()}
    assert areas == {"green": 3 * 64 * 64, "blue": 2 * 64 * 64}
    assert 100 < (pixels == (255, 0, 0)).all(1).sum() < 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "nowhere"], "nowhere does not exist; give the folder or archive of images"),
        (["check", ".", "--data.name", "bird"], "unknown data.name 'bird'; did you mean birds?"),
        (["check", "--json", "no/such/file.json"], "cannot write no/such/file.json: there is no"),
        (["chek", "."], "invalid choice: 'chek'"),
        ([], "the following arguments are required: action"),
    ],
)
def test_mistakes(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
