"""Classes left out, validation images, and duplicates, of arrays and of files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import covpool
from covpool.cli import main
from covpool.data import DataConfig, DataError, ImageSplits, open_images
from covpool.data.dataset import Arrays
from covpool.data.selection import hold_out_validation
from miniatures import Pictures, write_miniature, write_shards
from tiny_images import OPTIONS

CLASSES = ("ash", "beech", "cedar", "cherry", "elm")


def write_archive(root: Path, train, test) -> dict:
    arrays = {}
    for split, found in (("train", train), ("test", test)):
        arrays[f"{split}_images"] = np.stack([image for _, image in found])
        arrays[f"{split}_labels"] = np.array([label for label, _ in found])
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / "trees.npz", classes=np.array(CLASSES), **arrays)
    return {"root": str(root / "trees.npz")}


def write_folder(root: Path, train, test) -> dict:
    for split, found in (("train", train), ("test", test)):
        for number, (label, image) in enumerate(found):
            path = root / split / CLASSES[label] / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return {"root": str(root), "image_size": 16}


def write_readers_folder(root: Path, train, test) -> dict:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    write_folder(root / "trees", train, test)
    name = f"hfds/{root / 'trees'}"
    return {"root": str(root / "cache"), "name": name, "image_size": 16}


WRITERS = {"archive": write_archive, "folder": write_folder, "hfds": write_readers_folder}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def pictures(each: int, seed: int) -> list[tuple[int, np.ndarray]]:
    """So many of each class, all different."""
    generator = np.random.default_rng(seed)
    return [
        (label, generator.integers(0, 256, (16, 16), dtype=np.uint8))
        for label in range(len(CLASSES))
        for _ in range(each)
    ]


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


def opened(places: dict, **options) -> ImageSplits:
    return open_images(DataConfig(**places, **options))


def contents(images) -> list[tuple[int, bytes]]:
    found = (images.source[index].numpy().tobytes() for index in range(len(images)))
    return sorted(zip(images.labels, found, strict=True))


CHOICES = {
    "one name": ({"exclude_classes": ("elm",)}, "ash beech cedar cherry"),
    "patterns": ({"exclude_classes": ("c*", "[a]sh")}, "beech elm"),
    "limit": ({"class_limit": 2}, "ash beech"),
    "limit of what is left": (
        {"exclude_classes": ("beech",), "class_limit": 3},
        "ash cedar cherry",
    ),
    "limit at all": ({"class_limit": 5}, " ".join(CLASSES)),
}


@pytest.mark.parametrize("case", CHOICES)
def test_classes_are_chosen_in_both_splits_and_numbered_anew(case, write, tmp_path):
    options, names = CHOICES[case]
    places = write(tmp_path, pictures(3, seed=1), pictures(2, seed=2))
    every, chosen = opened(places), opened(places, **options)
    assert chosen.classes == tuple(names.split())
    for split in ("train", "test"):
        of_name = [
            (every.classes[label], pixels) for label, pixels in contents(getattr(every, split))
        ]
        expected = sorted((name, pixels) for name, pixels in of_name if name in names.split())
        found = contents(getattr(chosen, split))
        assert sorted((chosen.classes[label], pixels) for label, pixels in found) == expected
    assert all("data.exclude_classes" in n or "data.class_limit" in n for n in chosen.notes)
    assert bool(chosen.notes) == (chosen.classes != CLASSES)


BAD_CHOICES = {
    "no match": (
        {"exclude_classes": ("bech",)},
        "data.exclude_classes 'bech' matches none of the 5 classes; did you mean beech",
    ),
    "nothing near": (
        {"exclude_classes": ("q*",)},
        "'q*' matches none of the 5 classes: ash, beech, cedar, cherry, elm",
    ),
    "case counts": ({"exclude_classes": ("Ash",)}, "'Ash' matches none"),
    "one left": (
        {"exclude_classes": ("c*", "elm", "ash")},
        "data.exclude_classes ['c*', 'elm', 'ash'] leaves 'beech' alone of the 5 classes; at least",
    ),
    "none left": ({"exclude_classes": ("*",)}, "leaves none of the 5 classes; at least two"),
    "beyond": (
        {"exclude_classes": ("elm",), "class_limit": 5},
        "data.class_limit 5 is more than the 4 classes that there are",
    ),
}


@pytest.mark.parametrize("case", BAD_CHOICES)
def test_bad_choices_of_classes(case, tmp_path):
    options, message = BAD_CHOICES[case]
    for write in (write_archive, write_folder):
        places = write(tmp_path, pictures(2, seed=1), pictures(1, seed=2))
        with pytest.raises(DataError) as caught:
            opened(places, **options)
        assert message in str(caught.value)


def test_a_class_whose_name_looks_like_a_pattern(tmp_path):
    write_folder(tmp_path, pictures(2, seed=1), pictures(2, seed=2))
    for split in ("train", "test"):
        (tmp_path / split / "ash").rename(tmp_path / split / "as[h]")
    left = opened({"root": str(tmp_path)}, exclude_classes=("as[h]",))
    assert left.classes == CLASSES[1:]


def test_files_of_excluded_classes_are_not_read(tmp_path):
    places = write_folder(tmp_path, pictures(2, seed=1), pictures(2, seed=2))
    next((tmp_path / "test" / "elm").iterdir()).write_bytes(b"words")
    with pytest.raises(DataError, match="cannot read image"):
        opened(places)
    assert len(opened(places, exclude_classes=("elm",)).test) == 8


def test_validation_is_held_out_of_the_training_images_and_said(write, tmp_path, caplog):
    places = write(tmp_path / "here", pictures(10, seed=1), pictures(2, seed=2))
    plain, validating = opened(places), opened(places, evaluate="validation")
    train, held = contents(validating.train), contents(validating.test)
    assert sorted(train + held) == contents(plain.train)  # a part of them, and the rest
    assert [validating.test.labels.count(label) for label in range(5)] == [2] * 5
    assert (plain.evaluated, validating.evaluated) == ("test", "validation")
    [note] = validating.notes
    assert "held out 10 of 50 training images for validation, 20% of each class" in note
    assert note in caplog.messages
    assert contents(opened(places, evaluate="validation", split_seed=1).test) != held
    more = opened(places, evaluate="validation", validation_fraction=0.5)
    assert len(more.test) == 25
    # Neither the seed of training nor the place where the images lie, nor other classes matter.
    config = DataConfig(**places, evaluate="validation")
    assert contents(open_images(config, seed=7).test) == held
    fewer = opened(places, evaluate="validation", exclude_classes=("ash",))
    assert contents(fewer.test) == [(label - 1, pixels) for label, pixels in held if label]
    if "name" not in places:
        shutil.move(tmp_path / "here", tmp_path / "there")
        moved = {**places, "root": places["root"].replace("/here", "/there")}
        assert contents(opened(moved, evaluate="validation").test) == held


def test_standardisation_is_of_the_images_that_are_trained_on(tmp_path):
    places = write_archive(tmp_path, pictures(5, seed=1), pictures(1, seed=2))
    splits = opened(places, evaluate="validation", exclude_classes=("elm",))
    pixels = np.stack([splits.train.source[i].numpy() for i in range(len(splits.train))]) / 255
    assert splits.preprocessing.mean == pytest.approx([pixels.mean()], abs=1e-4)
    assert splits.preprocessing.std == pytest.approx([pixels.std(ddof=1)], abs=1e-4)


def test_validation_beside_a_test_split_that_is_held_out_too(tmp_path):
    write_folder(tmp_path, pictures(10, seed=1), pictures(1, seed=2))
    places = {"root": str(tmp_path / "train"), "image_size": 16}
    plain, validating = opened(places), opened(places, evaluate="validation")
    assert (len(plain.train), len(plain.test)) == (40, 10)
    assert (len(validating.train), len(validating.test)) == (30, 10)
    assert not set(contents(validating.test)) & set(contents(plain.test))
    assert not set(contents(validating.train)) & set(contents(plain.test))


@given(
    counts=st.lists(st.integers(2, 9), min_size=2, max_size=4),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
def test_validation_leaves_each_class_in_both_parts(counts, fraction, seed):
    import torch

    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None]
    config = DataConfig(evaluate="validation", validation_fraction=fraction, split_seed=seed)
    names = tuple(map(str, range(len(counts))))
    kept, held, _ = hold_out_validation(names, (Arrays(images), labels), config)
    numbers = [int(source[index]) for source, own in (kept, held) for index in range(len(own))]
    assert sorted(numbers) == list(range(len(labels)))
    assert [labels[number] for number in numbers] == kept[1] + held[1]
    for label, count in enumerate(counts):
        assert held[1].count(label) == min(count - 1, max(1, round(fraction * count)))


def test_a_class_of_one_training_image_cannot_be_validated(tmp_path):
    train = [pair for index, pair in enumerate(pictures(3, seed=1)) if index not in (4, 5)]
    for write, name in ((write_archive, "image 3"), (write_folder, "003.png")):
        places = write(tmp_path / name, train, pictures(1, seed=2))
        with pytest.raises(DataError, match=rf"class 'beech' has one image \(.*{name}\); two are"):
            opened(places, evaluate="validation")
        splits = opened(places, evaluate="validation", exclude_classes=("beech",))
        assert splits.classes == ("ash", "cedar", "cherry", "elm")


def test_duplicates_of_training_images_are_not_evaluated(write, tmp_path):
    train, test = pictures(3, seed=1), pictures(3, seed=2)
    test[0] = train[1]  # an ash in both splits
    test[4] = (1, train[0][1])  # a beech that is called ash in training
    test[5] = test[3]  # two that no training image equals
    train[6] = train[7]
    places = write(tmp_path, train, test)
    plain, without = opened(places), opened(places, drop_duplicates=True)
    expected = sorted((label, image.tobytes()) for label, image in test[1:4] + test[5:])
    if len(plain.test.source[0]) == 1:
        assert contents(without.test) == expected
    assert without.test.labels == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert contents(without.train) == contents(plain.train)
    assert without.notes == (
        "left out 2 of 15 test images that equal a training image, 1 of them one of another class "
        "(data.drop_duplicates)",
    )


def test_duplicates_within_the_training_images_are_not_validated_on(tmp_path):
    train = pictures(6, seed=1)
    train[5] = (0, train[12][1])  # a cedar that is called ash as well
    for write in (write_archive, write_folder):
        places = write(tmp_path, train, pictures(1, seed=2))
        options = {"evaluate": "validation", "validation_fraction": 0.5}
        both = []
        for seed in range(20):
            splits = opened(places, **options, split_seed=seed, drop_duplicates=True)
            trained = {pixels for _, pixels in contents(splits.train)}
            assert not trained & {pixels for _, pixels in contents(splits.test)}
            both.append(splits.notes[-1])
        dropped = "left out 1 of 15 held-out images that equal a training image, 1 of them one"
        assert any(note.startswith(dropped) for note in both)
        assert any(note.startswith("left out 0 of 15 held-out images") for note in both)


def test_a_class_of_duplicates_alone(tmp_path):
    train, test = pictures(2, seed=1), pictures(2, seed=2)
    test[2:4] = train[2:4]
    places = write_archive(tmp_path, train, test)
    with pytest.raises(DataError, match="every test image of class 'beech' equals a training imag"):
        opened(places, drop_duplicates=True)
    assert len(opened(places, drop_duplicates=True, exclude_classes=("beech",)).test) == 8


def test_only_files_of_a_length_on_both_sides_are_read(tmp_path, monkeypatch):
    """By the count of what is read, of shards too; and progress is told of."""
    write_miniature("folder", tmp_path / "files", train=3, test=2)
    shutil.copy(
        tmp_path / "files/train/typeface 0/1.jpg", tmp_path / "files/test/typeface 2/copy.jpg"
    )
    (tmp_path / "shards").mkdir()
    write_shards(tmp_path / "shards", Pictures(3, 3, 2, size=32))
    shards = {"root": str(tmp_path / "shards"), "name": "wds/letters"}
    options: dict[str, Any]
    for options in ({"root": str(tmp_path / "files")}, shards):
        told: list[tuple[int, int]] = []

        def tell(done, total, told=told):
            told.append((done, total))

        config = DataConfig(**options, check="none", drop_duplicates=True)
        splits = open_images(config, progress=tell)
        equal = int("name" not in options)
        assert splits.notes[0].startswith(f"left out {equal} of {6 + equal} test images that equal")
        read = told[-1] if told else (0, 0)
        assert read[0] == read[1] < 15


def test_a_missing_file_is_named_where_duplicates_are_looked_for(tmp_path):
    places = write_folder(tmp_path, pictures(2, seed=1), pictures(2, seed=2))
    missing = next((tmp_path / "train" / "ash").iterdir())
    missing.unlink()
    missing.symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=f"cannot read image {missing}: No such file"):
        opened(places, check="none", drop_duplicates=True)


BAD_OPTIONS = {
    "evaluate": ("train", "data.evaluate must be one of test, validation, not 'train'"),
    "validation_fraction": (1.0, r"data.validation_fraction must lie in \(0, 1\), not 1.0"),
    "class_limit": (1, "data.class_limit must be null or at least 2, not 1"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_out_of_range(name):
    value, message = BAD_OPTIONS[name]
    with pytest.raises(ValueError, match=message):
        replace(DataConfig(), **{name: value})


def test_a_run_on_a_subset_with_validation_from_beginning_to_end(tmp_path, capsys):
    """Trained, resumed, evaluated as it was trained and on the test split, and predicted with."""
    train, test = pictures(8, seed=1), pictures(3, seed=2)
    test[0] = train[0]
    images, run = write_folder(tmp_path / "trees", train, test), tmp_path / "run"
    command = [
        *("train", "--data.root", images["root"], "--output", str(run), *OPTIONS),
        *("--data.evaluate", "validation", "--data.exclude_classes", "[c*]"),
    ]
    assert main([*command, "--data.drop_duplicates", "true", "--train.epochs", "1"]) == 0
    _, _, first, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith(
        "3 classes, 18 training images 1×16×16, evaluated on 6 held-out training images, not on "
        "the test split"
    )
    assert main(["train", "--resume", str(run), "--train.epochs", "2"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["evaluated"] == "validation"
    assert len(summary["notes"]) == 3
    assert "| validation split |" in (run / "summary.md").read_text()
    capsys.readouterr()
    assert main(["evaluate", str(run / "last.ckpt")]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert "held-out training images (data.evaluate validation), not on the test split" in heading
    assert f"top-1 {100 * summary['final']['test_top1']:.2f}%" in line
    assert "6 images" in line
    assert main(["evaluate", str(run / "last.ckpt"), "--data.evaluate", "test"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert "8 images" in line  # nine, and one that equals a training image
    assert covpool.load_model(run).classes == ("ash", "beech", "elm")
    assert main(["predict", str(run), f"{images['root']}/test/ash/001.png"]) == 0
    found = [text.split()[-1] for text in capsys.readouterr().out.splitlines()[1:]]
    assert sorted(found) == ["ash", "beech", "elm"]
    # The same command in its place goes on, another split does not.
    auto = [*command, "--resume", "auto", "--data.drop_duplicates", "true"]
    assert main(auto) == 0
    assert main([*auto, "--data.split_seed", "1"]) == 2
    assert "started with data.split_seed 0, not 1" in capsys.readouterr().err


def test_configurations_of_before_read_as_the_defaults(tmp_path):
    from covpool.train.config import RunConfig
    from covpool.train.run_directory import RunDirectory

    config = RunConfig(data=replace(DataConfig(), batch_size=3))
    directory = RunDirectory.create(tmp_path / "run", config)
    values = config.to_dict()
    for name in (
        *("evaluate", "validation_fraction", "exclude_classes", "class_limit", "drop_duplicates"),
    ):
        del values["data"][name]
    (directory.path / "config.yaml").write_text(yaml.safe_dump(values))
    assert directory.read_config() == config
    chosen = RunConfig(data=DataConfig(exclude_classes=("a", "b*"), class_limit=3))
    directory.write_config(chosen)
    assert directory.read_config() == chosen
