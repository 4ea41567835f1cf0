"""`covpool predict` over folders: lines for other programs, and a page of what was called what."""

import base64
import csv
import io
import json
import os
import re
import shutil
from itertools import pairwise

import pytest
from PIL import Image

import covpool
from covpool.cli import main
from covpool.train import prediction as predictions
from covpool.train.prediction import TrainedModel, load_model
from made_up_runs import HOSTILE
from test_publish_untrusted import PREPROCESSING, trained_model
from test_report_page import Page
from tiny_images import CLASSES, OPTIONS, make_tiny_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_tiny_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(images), "--output", str(path), *OPTIONS]) == 0
    return path


@pytest.fixture
def mixed(images, tmp_path):
    """A folder with images at several depths, other files, and one that cannot be read."""
    folder = tmp_path / "mixed"
    shutil.copytree(images / "test" / "grain", folder / "deep" / "er")
    shutil.copy(images / "test" / "checks" / "0.png", folder / "A.PNG")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    (folder / "damaged.jpg").write_text("no image")
    return folder


def test_folders_files_and_both_are_read_whole(run, images, mixed, capsys):
    single = images / "test" / "stripes" / "1.png"
    assert main(["predict", str(run), str(mixed), str(single), "--top", "1"]) == 2
    told = capsys.readouterr()
    paths = [line for line in told.out.splitlines() if not line.startswith("  ")]
    wanted = [mixed / "A.PNG", *(mixed / "deep" / "er" / f"{n}.png" for n in range(4)), single]
    assert paths == [str(path) for path in wanted]
    assert "damaged.jpg" in told.err
    assert told.err.splitlines()[-1] == "covpool: error: no result for 1 of 7 images"
    found = covpool.load_model(run).predict([mixed, single], top=1)
    assert [each.path for each in found if each.error is None] == wanted


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_lines_hold_every_image_with_its_classes(ending, run, mixed, tmp_path, capsys):
    file = tmp_path / f"out.{ending}"
    assert main(["predict", str(run), str(mixed), "--top", "9", "--output", str(file)]) == 2
    told = capsys.readouterr()
    assert told.out.splitlines() == [str(file)]
    wanted = load_model(run).predict(mixed, top=9)
    if ending == "csv":
        with file.open(encoding="utf-8", newline="") as lines:
            rows = [*csv.DictReader(lines)]
        number = ["", "_2", "_3"]
        found = [
            [(row[f"class{n}"], float(row[f"probability{n}"])) for n in number if row[f"class{n}"]]
            for row in rows
        ]
    else:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found = [
            [(each["class"], each["probability"]) for each in row.get("likeliest", ())]
            for row in rows
        ]
    assert [row["path"] for row in rows] == [str(each.path) for each in wanted]
    assert len(rows) == 6
    for row, pairs, each in zip(rows, found, wanted, strict=True):
        assert [name for name, _ in pairs] == [name for name, _ in each.likeliest]
        shares = [share for _, share in pairs]
        assert shares == pytest.approx([share for _, share in each.likeliest], abs=1e-6)
        assert (row.get("error") or None) == each.error
        if each.error is None:
            assert row["class"] == each.likeliest[0][0]
            assert len(pairs) == len(CLASSES)


def test_lines_that_were_written_survive_an_interruption(run, images, tmp_path, monkeypatch):
    original, seen = predictions.load_image, []

    def stopped(path, preprocessing):
        seen.append(path)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return original(path, preprocessing)

    monkeypatch.setattr(predictions, "load_image", stopped)
    file = tmp_path / "out.jsonl"
    assert main(["predict", str(run), str(images / "test"), "--output", str(file)]) == 130
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["path"] for row in rows] == [str(path) for path in seen[:3]]


def test_the_sheet_shows_each_image_under_its_class_the_surest_first(run, mixed, tmp_path, capsys):
    file = tmp_path / "sheet.html"
    assert main(["predict", str(run), str(mixed), "--sheet", str(file)]) == 2
    assert capsys.readouterr().out.splitlines() == [str(file)]
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("content", policy) in page.attributes
    pictures = re.findall(
        r'<img src="data:image/jpeg;base64,([A-Za-z0-9+/=]+)" alt="([^"]*)"', text
    )
    assert len(pictures) == page.tags.count("img") == 5
    for content, _ in pictures:
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            assert picture.format == "JPEG"
            assert picture.size == (20, 20)
    found = [each for each in load_model(run).predict(mixed) if each.error is None]
    wanted = sorted(
        found, key=lambda each: (each.likeliest[0][0], -each.likeliest[0][1], str(each.path))
    )
    assert [name for _, name in pictures] == [each.path.name for each in wanted]
    headings = re.findall(r"<h2><bdi>(.*?)</bdi>", text)
    assert headings == sorted({each.likeliest[0][0] for each in found})
    assert "damaged.jpg" in page.text
    assert not re.search(r'(src|href)="(?!data:|#)', text)


def test_hostile_names_are_text(tmp_path, monkeypatch):
    trained = trained_model()
    model = TrainedModel(
        model=trained.model,
        preprocessing=PREPROCESSING,
        classes=HOSTILE[:3],
        metadata=trained.metadata,
    )
    monkeypatch.setattr("covpool.cli.predict.load_model", lambda *_, **__: model)
    monkeypatch.setattr("covpool.cli.predict.find_checkpoints", lambda path: (None, [("", path)]))
    folder = tmp_path / "<b>folder"
    folder.mkdir()
    for number, name in enumerate(("<script>.png", '"quoted".png', os.fsdecode(b"\xff\n.png"))):
        Image.new("RGB", (9, 9), (80 * number, 0, 90)).save(folder / name)
    sheet, lines = tmp_path / "sheet.html", tmp_path / "out.csv"
    command = ["predict", "run", str(folder), "--sheet", str(sheet), "--output", str(lines)]
    assert main(command) == 0
    page = Page(sheet.read_text(encoding="utf-8"))
    assert set(page.tags) <= {
        *("html", "head", "meta", "title", "style", "body", "header", "h1", "p", "nav", "a"),
        *("main", "section", "h2", "bdi", "small", "ul", "li", "img", "b", "span"),
    }
    assert not {"\x1b", "\x00"} & set(sheet.read_text(encoding="utf-8"))
    with lines.open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 3
    assert {row["class"] for row in rows} <= set(HOSTILE)
    assert all(float(a["probability"]) > 0 for a, _ in pairwise(rows))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "out.txt"], "--output out.txt must end in .csv or .jsonl"),
        (["--sheet", "sheet.pdf"], "--sheet sheet.pdf must end in .html or .htm"),
        (["--output", "none/out.csv"], "there is no folder none; make it first"),
        (["--output", "there.csv"], "there.csv exists; remove it, or choose another name"),
        (["--sheet", "there.csv"], "there.csv exists; remove it, or choose another name"),
        (["--sheet", "empty"], "--sheet empty is a folder; name a file in it"),
        (["empty"], "folder empty holds no images"),
    ],
)
def test_what_cannot_be_is_refused_first(
    arguments, message, run, images, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.csv").write_text("kept")
    (tmp_path / "empty").mkdir()
    picture = str(images / "test" / "grain" / "0.png")
    assert main(["predict", str(run), picture, *arguments]) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert sorted(os.listdir()) == ["empty", "there.csv"]
    assert (tmp_path / "there.csv").read_text() == "kept"
