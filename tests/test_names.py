"""Names of classes, files and folders, whatever they hold, through every command and file."""

import ast
import csv
import json
import os
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import covpool
from covpool.cli import main
from covpool.data import DataConfig, open_images
from covpool.text import encodable, file_name, markdown, printable, printable_lines, shortened
from tiny_images import OPTIONS

HOSTILE = {
    "escape": "\x1b[2J\x1b]0;title\x07\x9b31m",
    "lines": "one\ncovpool: error: two\r\t\u2028three",
    "markup": "[red]x[bold] [@click=f] :cat: $x^2 {{ 7 * 7 }}",
    "html": "<img src=x onerror=alert(1)> & [a](b) `c` | *d*",
    "yaml": "null: {a: !!b} #",
    "direction": "\u202eabc\u2066\u200b",
    "bytes": os.fsdecode(b"caf\xe9"),
    "long": "W" * 255,
    "accents": "Ж é 日本 می\u200cشود",
}
"""Names by what is strange about them, but for the slash, which no folder's name can have."""

CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[2J\x9b", r"\x1b[2J\x9b"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("\u202eabc\u2028\ufeff\ud800", r"\u202eabc\u2028\ufeff\ud800"),
        ("Ж é 日本 می\u200cشود 😀", "Ж é 日本 می\u200cشود 😀"),
        (r"C:\x1b", r"C:\x1b"),
    ],
)
def test_what_is_shown_of_a_name(name, shown):
    assert printable(name) == shown
    assert printable(shown) == shown
    assert printable_lines(f"{name}\n\t{name}").count("\n") == 2 * name.count("\n") + 1


def test_other_forms_of_a_name():
    assert encodable("a\nb\x1b") == "a\nb\x1b"
    assert encodable(f"\x1b{HOSTILE['bytes']}") == r"\x1bcaf\xe9"
    assert markdown("<b>|[x](y)`\x1b") == r"\<b\>\|\[x\](y)\`\\x1b"
    assert markdown("# _x_ ~~x~~ $x$") == r"\# \_x\_ \~\~x\~\~ \$x\$"
    assert shortened("W" * 255, 10) == "W" * 9 + "…"
    assert len(file_name("日" * 255).encode()) <= 200
    assert file_name("a/b\nc") == r"a-b\nc"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A class for each of the hostile names, in a folder and with files of such names too."""
    root = tmp_path_factory.mktemp("images") / f"{HOSTILE['escape']}{HOSTILE['bytes']}"
    for label, name in enumerate(HOSTILE.values()):
        for number in range(3):
            file = root / name / f"{number}{HOSTILE['escape']}{HOSTILE['bytes']}.png"
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.effect_noise((20, 20), 20 + 10 * label).save(file)
            except OSError as error:
                pytest.skip(f"the file system cannot hold {name!r}: {error}")
    return root


def run(capsys, *arguments: object) -> tuple[str, str]:
    """Output and errors of a command, which must be clean and fit into UTF-8."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert not CONTROL.search(captured.out), ascii(captured.out)
    assert not CONTROL.search(captured.err), ascii(captured.err)
    assert status == 0, captured.err
    return captured.out, captured.err


def test_strange_names_through_every_command(images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")  # wide enough for a row a class
    names = [printable(name) for name in HOSTILE.values()]

    report = tmp_path / "check.json"
    out, _ = run(
        capsys, "data", "check", images, "--json", report, "--contact-sheet", tmp_path / "sheet.png"
    )
    table = re.sub(r"[\s│┃]+", "", out)
    for name in names:
        assert re.sub(r"\s+", "", name) in table
    assert set(json.loads(report.read_text())["classes"]) == {*map(encodable, HOSTILE.values())}

    logged = ["--train.loggers", "[tensorboard]"] if find_spec("tensorboard") else []
    run(capsys, "train", "--data.root", images, *OPTIONS, "--train.epochs", "1", *logged)
    [directory] = (tmp_path / "runs").iterdir()
    assert printable(HOSTILE["escape"]) in directory.name
    with (directory / "confusions.csv").open(encoding="utf-8", newline="") as file:
        called = {row[key] for row in csv.DictReader(file) for key in ("class", "called")}
    assert called <= {*map(encodable, HOSTILE.values())}
    config = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    assert config["data"]["root"] == str(images)

    directory = directory.rename(tmp_path / HOSTILE["bytes"])
    run(capsys, "train", "--resume", directory, "--train.epochs", "2", "--train.loggers", "[]")
    run(capsys, "evaluate", directory)
    picture = next((images / HOSTILE["lines"]).iterdir())
    out, _ = run(capsys, "predict", directory, picture, "--top", len(names))
    lines = out.splitlines()
    assert lines[0] == printable(str(picture))
    assert sorted(line.split("%  ", 1)[1] for line in lines[1:]) == sorted(names)

    exported = tmp_path / "<b>exported</b>"
    run(capsys, "export", directory, "--output", exported, "--formats", "safetensors")
    run(capsys, "predict", exported, picture)
    assert main(["export", str(directory), "--formats", "onnx"]) == 2
    assert r"caf\xe9/export is not UTF-8" in capsys.readouterr().err
    run(capsys, "report", directory)
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert not re.search('<img (?!alt="" src="data:image/jpeg)', page)
    assert not CONTROL.search(page.replace("\t", ""))


def test_names_in_the_model_card_are_text(tmp_path):
    from covpool.publish.card import model_card

    metadata = {
        "version": "1",
        "config": {
            "model": {"backbone": "small-convnet", "reduced_channels": "auto"},
            "optim": {"learning_rate": 0.1, "weight_decay": 0.0},
            "train": {"epochs": 1, "seed": 0},
        },
        "classes": ["a", "b"],
        "schedule": "exact",
        "vector_layout": "triu",
        "epoch": 0,
        "images": {"train": {"number": 2}, "test": {"number": 2}},
        "preprocessing": {
            "channels": 1,
            "image_size": 8,
            "resize": 8,
            "mean": [0.5],
            "std": [0.5],
        },
        "data": HOSTILE["html"],
    }
    row = {
        "file": "model.onnx",
        "format": "ONNX",
        "pooling": "x",
        "dtype": "float32",
        "max_logit": 0.0,
        "max_probability": 0.0,
        "top1_agreement": 1.0,
        "images": 2,
        "source": f"test split of {HOSTILE['html']}",
        "method": "exact",
        "logit_scale": 1.0,
    }
    card = model_card(metadata, title=f"{HOSTILE['html']}\n# other", exports=[row])
    assert not re.search(r"(?<!\\)<(?!/?br)[a-z]", card)
    assert card.count(r"\<img src=x onerror=alert(1)\>") == 3
    assert "\n# other" not in card


def test_notes_and_errors_of_others_names_are_clean(tmp_path, capsys):
    """Damaged files, left-out classes and mistakes name files and classes."""
    for name in (HOSTILE["escape"], HOSTILE["lines"], "plain"):
        for number in range(3):
            file = tmp_path / "images" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (20, 20)).save(file)
    (tmp_path / "images" / HOSTILE["escape"] / "0.png").write_bytes(b"words")
    config = DataConfig(
        root=str(tmp_path / "images"), skip_damaged=True, exclude_classes=("one*",), image_size=8
    )
    notes = open_images(config).notes
    assert any(printable(HOSTILE["escape"]) in note for note in notes)
    assert any(printable(HOSTILE["lines"]) in note for note in notes)
    assert not CONTROL.search("\n".join(notes))
    for arguments in (
        ["train", "--data.root", str(tmp_path / "images"), *OPTIONS],
        ["train", "--data.root", HOSTILE["escape"]],
        ["train", HOSTILE["escape"]],
        ["train", "--model.method", HOSTILE["escape"]],
        ["evaluate", HOSTILE["escape"]],
        ["data", "check", HOSTILE["escape"]],
        [HOSTILE["escape"]],
        ["pull", f"./{HOSTILE['escape']}"],
    ):
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert r"\x1b" in captured.err
        assert not CONTROL.search(captured.err + captured.out), ascii(captured.err)
        assert captured.err.count("\n") == 1


def test_text_of_an_archive_is_no_markup(tmp_path, capsys):
    """Class names of folders have no slash; those of archives may close what was never opened."""
    pixels = np.random.default_rng(0).integers(0, 255, (4, 8, 8), np.uint8)
    archive = tmp_path / "archive.npz"
    labels = np.array([0, 1, 0, 1])
    names = np.array(["[/] [/red]", "\x1b[31m"])
    splits = {"images": pixels, "labels": labels}
    arrays = {
        f"{split}_{key}": value for split in ("train", "test") for key, value in splits.items()
    }
    np.savez(archive, classes=names, **arrays)
    assert main(["data", "check", str(archive)]) == 1
    out = capsys.readouterr().out
    assert "[/] [/red]" in out
    assert r"\x1b[31m" in out
    assert not CONTROL.search(out)


def test_an_output_that_cannot_hold_a_name_gets_escapes(images, tmp_path, monkeypatch):
    import io
    import sys

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["data", "check", str(images)]) == 0
    stream.flush()
    assert r"\u0416 \xe9" in stream.buffer.getvalue().decode("ascii")


def test_commands_print_through_what_cleans():
    """`say` and `PlainConsole` are the only ways from a command to standard output."""
    folder = Path(covpool.__file__).parent / "cli"
    found = [
        f"{path.name}:{node.lineno}"
        for path in sorted(folder.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and (node.func.id == "print" or (node.func.id == "Console" and not node.keywords))
    ]
    [own] = found
    assert own.startswith("__init__.py:")
