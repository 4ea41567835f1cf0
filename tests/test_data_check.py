"""`covpool data check`: what it finds, and its exit status."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from covpool.cli import main
from covpool.data import DataConfig, DataError, open_images
from miniatures import MINIATURES, Pictures, write_miniature, write_shards


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


def test_one_training_class_does_not_hide_what_else_is_wrong(tmp_path, capsys):
    root = write_miniature("folder", tmp_path / "data")
    train = root / "train"
    for number in (1, 2):
        shutil.rmtree(train / f"typeface {number}")
    (train / "typeface 0" / "empty.jpg").write_bytes(b"")
    status, report = check(root, tmp_path)
    assert status == 1
    assert report["problems"] == [
        f"training and test classes differ: 'typeface 1', 'typeface 2' only in {root / 'test'}; "
        "make them alike",
        "unreadable images: 1 of 11",
        "classes without a training image: 'typeface 1', 'typeface 2'",
    ]
    assert [entry["name"] for entry in report["unreadable"]] == [
        str(train / "typeface 0" / "empty.jpg")
    ]


@pytest.mark.parametrize(
    ("gone", "message"),
    {
        "one class in all": (
            ["train/typeface 1", "train/typeface 2", "test/typeface 1", "test/typeface 2"],
            "{root}/train and {root}/test hold one class, 'typeface 0'; at least two are needed",
        ),
        "an empty split": (
            [f"test/typeface {number}" for number in range(3)],
            "{root}/test is empty; it must hold one folder of images for each class",
        ),
    }.values(),
)
def test_where_both_splits_are_found_no_other_layout_is_told(gone, message, tmp_path, capsys):
    root = write_miniature("folder", tmp_path / "data")
    for name in gone:
        shutil.rmtree(root / name)
    status, _ = check(root, tmp_path)
    output = "".join(capsys.readouterr())
    assert (status, "layout" in output) == (1, False)
    assert message.format(root=root) in " ".join(output.split())


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
    assert len(lines) == 3
    assert "lacks classes.txt, the names of the classes" in lines[0]
    assert "lacks train_test_split.txt, which images are for training" in lines[1]
    assert f"image_class_labels.txt has no line for {image}" in lines[2]


def told(report, expected):
    """Each problem holds its words, in this order, and there is no other."""
    assert len(report["problems"]) == len(expected), report["problems"]
    for problem, part in zip(report["problems"], expected, strict=True):
        assert part in problem


def changed_archive(path, **changes):
    with np.load(path) as archive:
        arrays = {**archive, **changes}
    path.unlink()
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def test_every_fault_of_an_archive_is_told(tmp_path):
    path = write_miniature("archive", tmp_path / "data", size=32)
    with np.load(path) as archive:
        labels, images = archive["train_labels"], archive["train_images"]
    labels[[2, 5]] = 7, -1
    images[4] = images[0]
    changed_archive(
        path,
        train_labels=labels,
        train_images=images,
        test_images=np.zeros((6, 9, 12), np.uint8),
        test_labels=np.full(6, 2),
        classes=np.array(["one", "two", "one"]),
    )
    sheet = tmp_path / "sheet.png"
    status, report = check(path, tmp_path, "--contact-sheet", str(sheet))
    assert status == 1
    assert sheet.exists()
    told(
        report,
        [
            "classes must be at least two different names, got ('one', 'two', 'one')",
            "train_labels[2] is 7, outside the 3 classes (and 1 more)",
            "training images are (3, 32, 32), test images (1, 9, 12)",
            "classes without a test image: '0', '1'",
            "images in several classes: 1",
        ],
    )
    assert report["images"] == 16
    for group in report["duplicates"]:
        assert {each["name"] for each in group} <= {
            f"{split}_images[{number}]" for split in ("train", "test") for number in range(12)
        }
    with pytest.raises(DataError, match="at least two different names"):
        open_images(DataConfig(root=str(path)))


def test_arrays_that_are_missing_or_damaged_leave_the_others_to_be_checked(tmp_path, capsys):
    path = write_miniature("archive", tmp_path / "data", size=32)
    changed_archive(path, test_labels=None, classes=np.array([1, 2, 3]))
    content = path.read_bytes()
    place = content.index(b"test_images.npy") + 500  # its checksum is then another
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    status, report = check(path, tmp_path)
    assert status == 1
    told(
        report,
        [
            "lacks test_labels; an archive of images holds",
            "miniature.npz: test_images: Bad CRC-32 for file 'test_images.npy'; it is damaged",
            "classes must be a list of text, got int64 of shape (3,)",
            "classes without a test image: '0', '1', '2'",
        ],
    )
    assert report["problems"][0].endswith("test_labels, classes")  # none is meant for another
    assert report["images"] == 12
    changed = {"train_labels": np.zeros(3), "test_images": np.zeros((2, 3)), "test_labels": None}
    other = write_miniature("archive", tmp_path / "other", size=32)
    changed_archive(other, **changed)
    capsys.readouterr()
    assert check(other, tmp_path) == (1, None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # nothing is left to be looked at
    for line, part in zip(
        lines,
        ["lacks test_labels", "train_labels must be 12 whole", "test_images must be uint8"],
        strict=True,
    ):
        assert part in line


def test_every_fault_of_shards_is_told(tmp_path):
    root = tmp_path / "shards"
    root.mkdir()
    write_shards(root, Pictures(classes=3, train=4, test=2, size=32))
    for part, (left_out, changes) in enumerate(
        [("train/000002.cls", {"train/000000.cls": b"many"}), (None, {"train/000003.cls": b"5"})]
    ):
        path = root / f"typefaces-train-{part:04d}.tar"
        with tarfile.open(path) as shard:
            members = {m.name: shard.extractfile(m).read() for m in shard} | changes
        with tarfile.open(path, "w") as shard:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                if name != left_out:
                    shard.addfile(member, io.BytesIO(content))
    test = root / "typefaces-validation-0000.tar"
    test.write_bytes(test.read_bytes()[:-9000])
    (root / "classes.txt").write_text("ay\nbee\ncee\n")
    file = tmp_path / "report.json"
    options = ["--data.name", "wds/letters", "--json", str(file)]
    assert main(["data", "check", str(root), *options]) == 1
    report = json.loads(file.read_text())
    told(
        report,
        [
            "0000.tar: train/000000.cls is 'many', where a class number is due",
            "0000.tar has no class for train/000002 (train/000002.cls); write it anew",
            "validation-0000.tar: unexpected end of data",
            "classes.txt has 3 lines, and the shards hold an image of class 5",
        ],
    )
    assert sum(of["train"] for of in report["classes"].values()) == 9
    assert sum(of["test"] for of in report["classes"].values()) == 3


def test_every_fault_of_matlab_files_is_told(tmp_path):
    root = write_miniature("dogs", tmp_path / "dogs")
    path = next(tmp_path.rglob("train_list.mat"))
    content = loadmat(path)
    content["labels"][1, 0] = 0
    content["labels"][3, 0] = 121
    content["file_list"][5, 0] = np.array([])
    savemat(path, {name: content[name] for name in ("file_list", "labels")})
    next((root / "Images").rglob("*.jpg")).write_bytes(b"words")
    status, report = check(root, tmp_path)
    assert status == 1
    told(
        report,
        [
            "train_list.mat: entry 6 is empty",
            "train_list.mat: entry 2 has the class number 0; 1 to 120 are due",
            "train_list.mat: entry 4 has the class number 121",
            "unreadable images: 1 of 15",
        ],
    )


def test_every_fault_of_lists_is_told(tmp_path):
    root = write_miniature("aircraft", tmp_path / "aircraft")
    path = root / "data" / "images_variant_trainval.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["", lines[0].split()[0], f"{lines[1].split()[0]} X-1", *lines[2:]]))
    status, report = check(root, tmp_path)
    assert status == 1
    told(
        report,
        [
            "images_variant_trainval.txt: line 1 is ",
            "is of the variant 'X-1', which ",
        ],
    )
    assert report["images"] == 16


def test_an_image_that_is_listed_twice_is_told_as_in_training(tmp_path):
    root = write_miniature("aircraft", tmp_path / "aircraft")
    path = root / "data" / "images_variant_test.txt"
    first, *_ = path.read_text().splitlines()
    path.write_text(path.read_text() + first + "\n")
    _, report = check(root, tmp_path)
    told(report, [" is listed twice; restore the annotations"])
    with pytest.raises(DataError, match="is listed twice"):
        open_images(DataConfig(root=str(root)))


def test_many_faults_of_what_cannot_be_opened_are_cut(tmp_path, capsys):
    root = write_miniature("aircraft", tmp_path / "aircraft")
    for path in (root / "data").glob("images_variant_*.txt"):
        path.write_text("word\n" * 30)
    assert check(root, tmp_path) == (1, None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 21
    assert lines[-1] == "covpool: error: and 40 more"


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
        (["check", "--json", "no/such/file.json"], "there is no folder no/such; make it"),
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


@pytest.mark.parametrize("option", ["--json", "--contact-sheet"])
def test_a_file_that_is_there_is_not_written_over(option, tmp_path, capsys):
    file = tmp_path / "there"
    file.write_text("mine")
    assert main(["data", "check", option, str(file)]) == 2
    assert f"{option} {file} exists; remove it, or choose another name" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_a_contact_sheet_is_a_png(tmp_path, capsys):
    assert main(["data", "check", "--contact-sheet", str(tmp_path / "sheet.pdf")]) == 2
    assert "sheet.pdf must end in .png" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
